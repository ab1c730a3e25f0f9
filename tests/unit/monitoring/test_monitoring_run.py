"""Monitoring runs over a real store: the windows they select, and the decisions."""

import datetime as dt
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.support.monitored_store import DAY, MonitoredStore, make_rows
from tests.support.releases import make_house_table
from tests.support.sample_store import MODEL, SampleStore
from towline.errors import PromotionRejectedError
from towline.monitoring import monitoring_run
from towline.monitoring.results import QualityResult
from towline.prediction_log.label_store import REQUEST, LabelStore
from towline.registry.ledger import Ledger
from towline.training.evaluation.predictions import Interval


@pytest.fixture
def store(sample_store: SampleStore, tmp_path: Path) -> MonitoredStore:
    return MonitoredStore(sample_store, tmp_path)


def test_an_unknown_window_stays_open(store: MonitoredStore) -> None:
    """Each row is evaluated once; a repeated run has the same result."""
    first = store.since
    store.log_requests(make_rows(30), first + DAY / 2)
    result = store.drift(first + DAY)
    assert (result.state, result.rows, result.start) == ("unknown", 30, first)
    store.log_requests(make_rows(60), first + 1.5 * DAY)
    result = store.drift(first + 2 * DAY)
    assert (result.state, result.rows, result.start) == ("ok", 90, first)
    assert store.drift(first + 2 * DAY).rows == 90
    store.log_requests(make_rows(70), first + 2.5 * DAY)
    result = store.drift(first + 3 * DAY)
    assert (result.rows, result.start) == (70, first + 2 * DAY)
    assert store.decide(first + 3 * DAY).action == "nothing"


def test_a_version_worse_than_the_previous_one_is_rolled_back(store: MonitoredStore) -> None:
    """The ledger records the decision with its evidence, once."""
    store.sample_store.promote(2)  # its predictions are 1,000 too high
    start = store.since
    store.log_requests(make_rows(120), start + DAY / 2, truth=0.0)
    result = store.quality(start + DAY)
    assert (result.state, result.labelled) == ("degraded", 120)
    decisions = [store.decide(start + DAY) for _ in range(2)]
    assert [decision.action for decision in decisions] == ["roll back", "roll back"]
    (row,) = store.sample_store.ledger.decisions(MODEL)
    assert (row.version, row.evidence["comparison"]["previous_is_better"], row.evidence["quality"][-1]["state"]) == (
        2,
        True,
        "degraded",
    )

    store.sample_store.rollback()
    evidence = monitoring_run.gather_evidence(store.settings, store.config, store.serving, store.since + DAY)
    assert (evidence.champion, evidence.drift, evidence.quality) == (1, (), ())


def test_old_labels_do_not_say_that_labels_arrive() -> None:
    """A label of years ago must not stop drift from starting a training for ever."""
    result = QualityResult(
        state="unknown", version=1, metric="mae", value=Interval(value=None), holdout=1.0, bound=1.2, rows=9, due=9,
        labelled=0, start=None, end=None, reason="no labels",
    )  # fmt: skip
    old = result.model_copy(update={"labelled": 1})
    assert monitoring_run.do_labels_arrive([result] * 20 + [old] + [result] * 20)
    assert not monitoring_run.do_labels_arrive([old] + [result] * 200)
    assert not monitoring_run.do_labels_arrive([])


def test_training_needs_new_rows(store: MonitoredStore) -> None:
    """If both versions are worse, the decision is a warning without new rows in the source, else a training.

    The same window gives no warning after the training that it caused.
    """
    start = store.since
    store.log_requests(make_rows(120), start + DAY / 2, truth=80.0)
    assert store.quality(start + DAY).state == "degraded"
    source = store.settings.project / "table.parquet"
    frame = make_house_table(200).drop(columns="sold")
    frame.to_parquet(source, index=False)
    warning = store.decide(start + DAY)
    assert (warning.action, "new rows" in warning.reason) == ("warn", True)
    later = frame.assign(at=frame["at"] + pd.Timedelta(days=400))
    pd.concat([frame, later]).to_parquet(source, index=False)
    assert store.decide(start + DAY + dt.timedelta(minutes=5)).action == "retrain"
    (row,) = [row for row in store.sample_store.ledger.decisions(MODEL) if row.evidence["action"] == "retrain"]
    assert row.evidence["new_rows"] == 200
    again = store.decide(start + DAY + dt.timedelta(minutes=9))
    assert (again.action, "a training started" in again.reason) == ("nothing", True)


def test_a_training_that_pays_is_started(store: MonitoredStore) -> None:
    """The source has rows after a change: 80 above version 1, which predicts 1,000 more than the table had."""
    retrain = store.config.retrain.model_copy(update={"triggers": ("gain", "drift", "quality")})
    quality = store.config.quality.model_copy(update={"window": 3 * DAY})
    store.config = store.config.model_copy(update={"retrain": retrain, "quality": quality})
    frame = make_house_table(400).drop(columns="sold")
    later = frame.assign(at=frame["at"] + pd.Timedelta(days=400), value=frame["value"] + 1080)
    later.to_parquet(store.settings.project / "table.parquet", index=False)
    start, datasets = store.since, sorted((store.settings.store / "datasets").glob("*"))
    store.log_requests(make_rows(120), start + DAY / 2, truth=80.0)
    store.quality(start + DAY)
    assert store.gain(start + DAY) is None, "the window is not complete"
    result = store.gain(start + DAY, at_once=True)
    assert (result.state, result.rows, result.fitted_rows) == ("measured", 120, 400)
    assert result.refit < 0.5 * result.champion
    assert sorted((store.settings.store / "datasets").glob("*")) == datasets, "no snapshot is kept"
    decision = store.decide(start + DAY + dt.timedelta(minutes=5))
    assert (decision.action, decision.trigger) == ("retrain", "gain")
    (row,) = [row for row in store.sample_store.ledger.decisions(MODEL) if row.evidence["action"] == "retrain"]
    assert row.evidence["gain"][0]["rows"] == 120
    repeated = store.decide(start + DAY + dt.timedelta(minutes=9))
    assert repeated.action == "nothing", "windows before the last training are no evidence"


def test_refits_use_the_rows_that_a_training_would_use(store: MonitoredStore) -> None:
    """For the first half of the window the 30 days before it; for the second half also the rows of the first."""
    quality = store.config.quality.model_copy(update={"window": DAY})
    retrain = store.config.retrain.model_copy(update={"triggers": ("gain",)})
    data = store.config.data.model_copy(update={"window": (30 * DAY,)})
    store.config = store.config.model_copy(update={"retrain": retrain, "quality": quality, "data": data})
    start = store.since
    day = pd.Timestamp(start).tz_convert("UTC").tz_localize(None)
    frame = make_house_table(400).drop(columns="sold")
    before = frame.assign(at=day - 29.9 * DAY, value=frame["value"] + 1000)
    within = frame.head(300).assign(at=day + 0.4 * DAY, value=frame["value"] + 1080)
    pd.concat([before, within]).to_parquet(store.settings.project / "table.parquet", index=False)
    for moment in (0.2, 0.8):
        store.log_requests(make_rows(60), start + moment * DAY, truth=80.0)
    result = store.gain(start + DAY)
    assert (result.state, result.rows, result.fitted_rows) == ("measured", 120, 400)
    losses = np.array(result.blocks)
    assert (losses[:5] > 60).all(), "the refit before the change and the champion"
    assert (losses[-5:, 0] > 60).all()
    assert (losses[-5:, 1] < 30).all(), "the refit after the change"


def test_quality_is_unknown_until_the_window_is_complete(store: MonitoredStore) -> None:
    """A window remains open until it has the configured length."""
    config = store.config.model_copy(update={"quality": store.config.quality.model_copy(update={"window": 3 * DAY})})
    store.config = config
    start = store.since
    store.log_requests(make_rows(120), start + DAY / 2, truth=0.0)
    result = store.quality(start + DAY)
    assert (result.state, "the window ends at" in result.reason) == ("unknown", True)
    assert store.quality(start + 3 * DAY).state == "ok"


def test_a_repeated_run_does_not_see_labels_that_were_replaced_later(store: MonitoredStore) -> None:
    """A run with the same time has the same result."""
    now = store.since + dt.timedelta(hours=3)
    store.log_requests(make_rows(60), store.since + dt.timedelta(hours=1), truth=0.0)
    before = store.quality(now)
    assert before.labelled == 60
    folder = LabelStore(store.settings.layout.labels(MODEL))
    with folder.lock():
        folder.append([(REQUEST, [f"r{number}"], 0, "0.0", now + dt.timedelta(hours=1)) for number in range(60)])
    assert store.quality(now) == before


def test_a_champion_younger_than_the_delay_has_an_empty_window(store: MonitoredStore) -> None:
    """No label is due yet: the window must not end before it starts."""
    late = store.config.quality.model_copy(update={"delay": 30 * DAY})
    store.config = store.config.model_copy(update={"quality": late})
    store.log_requests(make_house_table(60).drop(columns=["sold", "value"]), store.since + dt.timedelta(hours=1))
    result = store.quality(store.since + DAY)
    assert (result.state, result.rows) == ("unknown", 0)
    assert result.start == result.end == store.since
    assert result.estimate is not None, "the predictions are estimated"


def test_the_champion_stays_if_the_clock_was_set_back(store: MonitoredStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that are dated in the future were written before now; of the past, the rows of that time count."""
    store.sample_store.promote(2)
    rows, now = store.sample_store.ledger.rows(MODEL), dt.datetime.now(dt.UTC)
    before, future = now - dt.timedelta(minutes=1), (now + 300 * DAY).isoformat()
    ahead = [row.model_copy(update={"time": future} if row.event == "promoted" else {}) for row in rows]
    for recorded in (ahead[:-1], [*rows[:-1], ahead[-1]], [row.model_copy(update={"time": future}) for row in rows]):
        monkeypatch.setattr(Ledger, "rows", lambda _, model, recorded=recorded: recorded)
        champion = monitoring_run.champion_at(store.settings, MODEL, now)
        assert (champion.version, champion.event) == (recorded[-1].version, recorded[-1].event)
        assert dt.datetime.fromisoformat(champion.time) <= now
    monkeypatch.setattr(Ledger, "rows", lambda _, model: [*rows[:-1], ahead[-1]])
    with pytest.raises(PromotionRejectedError):
        monitoring_run.champion_at(store.settings, MODEL, before - DAY)
