"""Rounds over a real store: which rows they look at, and what they decide with what they find."""

import datetime as dt
from pathlib import Path

import pandas as pd
import pytest

from tests.support.monitored_store import DAY, MonitoredStore, make_rows
from tests.support.releases import make_house_table
from tests.support.sample_store import MODEL, SampleStore
from towline.monitoring import monitoring_run


@pytest.fixture
def life(sample_store: SampleStore, tmp_path: Path) -> MonitoredStore:
    return MonitoredStore(sample_store, tmp_path)


def test_a_night_that_says_nothing_is_looked_at_again_with_the_next(life: MonitoredStore) -> None:
    """Rows are neither lost nor looked at twice; the same night again is the same night."""
    first = life.since
    life.ask(make_rows(30), first + DAY / 2)
    night = life.drift(first + DAY)
    assert (night.state, night.rows, night.start) == ("unknown", 30, first)
    life.ask(make_rows(60), first + 1.5 * DAY)
    night = life.drift(first + 2 * DAY)
    assert (night.state, night.rows, night.start) == ("ok", 90, first)
    assert life.drift(first + 2 * DAY).rows == 90
    life.ask(make_rows(70), first + 2.5 * DAY)
    night = life.drift(first + 3 * DAY)
    assert (night.rows, night.start) == (70, first + 2 * DAY)
    assert life.decide(first + 3 * DAY).action == "nothing"


def test_a_version_that_is_worse_than_the_one_before_is_rolled_back_from(life: MonitoredStore) -> None:
    """Labels show it, both answer the same rows, and the decision stands in the ledger with its evidence, once."""
    life.sample_store.promote(2)  # a thousand off
    start = life.since
    life.ask(make_rows(120), start + DAY / 2, truth=0.0)
    found = life.quality(start + DAY)
    assert (found.state, found.labelled) == ("degraded", 120)
    decisions = [life.decide(start + DAY) for _ in range(2)]
    assert [decision.action for decision in decisions] == ["roll back", "roll back"]
    (row,) = life.sample_store.ledger.decisions(MODEL)
    assert (row.version, row.evidence["triage"]["better"], row.evidence["quality"][-1]["state"]) == (
        2,
        True,
        "degraded",
    )

    life.sample_store.rollback()
    seen = monitoring_run.evidence(life.settings, life.config, life.serving, life.since + DAY)
    assert (seen.champion, seen.drift, seen.quality) == (1, (), ())


def test_both_versions_worse_on_sound_input_lead_to_training_if_there_are_new_rows(life: MonitoredStore) -> None:
    """The world has moved; without new rows in the source the decision is a warning that says so, then a training."""
    start = life.since
    life.ask(make_rows(120), start + DAY / 2, truth=80.0)
    assert life.quality(start + DAY).state == "degraded"
    source = life.settings.project / "table.parquet"
    frame = make_house_table(200).drop(columns="sold")
    frame.to_parquet(source, index=False)
    held = life.decide(start + DAY)
    assert (held.action, "new rows" in held.reason) == ("warn", True)
    later = frame.assign(at=frame["at"] + pd.Timedelta(days=400))
    pd.concat([frame, later]).to_parquet(source, index=False)
    assert life.decide(start + DAY + dt.timedelta(minutes=5)).action == "retrain"
    (row,) = [row for row in life.sample_store.ledger.decisions(MODEL) if row.evidence["action"] == "retrain"]
    assert row.evidence["new_rows"] == 200
    again = life.decide(start + DAY + dt.timedelta(minutes=9))
    assert (again.action, "cooldown" in again.reason) == ("warn", True)


def test_labels_that_are_not_due_leave_quality_unknown(life: MonitoredStore) -> None:
    """A window is open until it is as long as the config says, whatever is known by then."""
    config = life.config.model_copy(update={"quality": life.config.quality.model_copy(update={"window": 3 * DAY})})
    life.config = config
    start = life.since
    life.ask(make_rows(120), start + DAY / 2, truth=0.0)
    found = life.quality(start + DAY)
    assert (found.state, "the window lasts until" in found.reason) == ("unknown", True)
    assert life.quality(start + 3 * DAY).state == "ok"


def test_a_champion_younger_than_the_delay_has_an_empty_window(life: MonitoredStore) -> None:
    """No label is due yet: the window begins where the champion does and does not end before it."""
    late = life.config.quality.model_copy(update={"delay": 30 * DAY})
    life.config = life.config.model_copy(update={"quality": late})
    life.ask(make_house_table(60).drop(columns=["sold", "value"]), life.since + dt.timedelta(hours=1))
    found = life.quality(life.since + DAY)
    assert (found.state, found.rows) == ("unknown", 0)
    assert found.start == found.end == life.since
    assert found.estimate is not None, "what is asked meanwhile is estimated"
