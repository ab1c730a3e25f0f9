"""Monitoring runs over a real store: the windows they select, and the decisions."""

import datetime as dt
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from tests.shelf import MODEL, Shelf
from tests.unit.release.conftest import table
from towline.config import PipelineConfig, build_config
from towline.data.schema.contract import Contract
from towline.inference.predictor import open_release
from towline.monitoring import monitoring_run
from towline.monitoring.journal import Journal
from towline.prediction_log import labels
from towline.prediction_log.privacy import HASH_KEYS, HashKeys, read_privacy_filter
from towline.prediction_log.writer import PredictionLog

DAY = dt.timedelta(days=1)


class MonitoredStore:
    """A store with a champion, logged predictions and labels."""

    def __init__(self, shelf: Shelf, folder: Path) -> None:
        self.shelf, self.folder = shelf, folder
        raw = yaml.safe_load((shelf.release(1) / "config.yaml").read_text())
        watch = {
            "quality": {"delay": "0h", "window": "1h"},
            "retrain": {"bad_windows": 1, "recent_windows": 1, "min_rows": 2},
        }
        self.config: PipelineConfig = build_config({**raw, **watch}, "test")
        self.settings, self.asked = shelf.settings, 0

    @property
    def serving(self) -> Any:
        return self.shelf.ledger.champion(MODEL)

    @property
    def since(self) -> dt.datetime:
        return dt.datetime.fromisoformat(self.serving.time)

    def ask(self, rows: pd.DataFrame, at: dt.datetime, truth: float | None = None) -> None:
        """Logs each row as a request; ``truth`` adds labels with that difference to the first version's predictions."""
        serving = self.serving
        model, first = open_release(self.settings.store / serving.release), open_release(self.shelf.release(1))
        log = PredictionLog(self.settings.store / "predictions" / MODEL, f"w{self.asked}", convert=False)
        known = []
        for row in rows.to_dict("records"):
            sent = {key: None if value != value else value for key, value in row.items()}
            log.write(f"r{self.asked}", at.timestamp(), model, [sent], model.predict_rows([sent]))
            known.append((f"r{self.asked}", first.predict_rows([sent]).predictions[0] + (truth or 0.0)))
            self.asked += 1
        log.close()
        if truth is not None:
            file = self.folder / f"labels{self.asked}.csv"
            pd.DataFrame(known, columns=["request_id", "value"]).to_csv(file, index=False)
            contract = Contract.model_validate_json((self.shelf.release(1) / "contract.json").read_bytes())
            predictions = self.settings.store / "predictions" / MODEL
            fields = read_privacy_filter(self.shelf.release(1), contract, HashKeys(predictions / HASH_KEYS)).fields
            place = labels.Log(predictions, self.settings.store / "labels" / MODEL, fields)
            labels.add_labels(place, contract, labels.LabelFile(file), at + dt.timedelta(minutes=1))

    def drift(self, now: dt.datetime) -> Any:
        result = monitoring_run.detect_drift(self.settings, self.config, self.serving, now)
        Journal.of(self.settings, MODEL).add(result, now)
        return result

    def quality(self, now: dt.datetime) -> Any:
        result = monitoring_run.measure_window(self.settings, self.config, self.serving, now)
        Journal.of(self.settings, MODEL).add(result, now)
        return result

    def decide(self, now: dt.datetime) -> Any:
        evidence = monitoring_run.gather_evidence(self.settings, self.config, self.serving, now)
        comparison = monitoring_run.compare_champions(self.settings, self.config, self.serving, evidence)
        evidence = evidence.model_copy(update={"comparison": comparison})
        return monitoring_run.record_decision(self.settings, self.config, self.serving, evidence)


@pytest.fixture
def store(shelf: Shelf, tmp_path: Path) -> MonitoredStore:
    return MonitoredStore(shelf, tmp_path)


def rows(count: int) -> pd.DataFrame:
    """Rows like the training rows, but of another year."""
    drawn = table(200).drop(columns=["sold", "value"]).sample(count, random_state=count)
    return drawn.assign(at=drawn["at"] + pd.Timedelta(days=365))


def test_an_unknown_window_stays_open(store: MonitoredStore) -> None:
    """Rows are neither lost nor looked at twice; the same night again is the same result."""
    first = store.since
    store.ask(rows(30), first + DAY / 2)
    result = store.drift(first + DAY)
    assert (result.state, result.rows, result.start) == ("unknown", 30, first)
    store.ask(rows(60), first + 1.5 * DAY)
    result = store.drift(first + 2 * DAY)
    assert (result.state, result.rows, result.start) == ("ok", 90, first)
    assert store.drift(first + 2 * DAY).rows == 90
    store.ask(rows(70), first + 2.5 * DAY)
    result = store.drift(first + 3 * DAY)
    assert (result.rows, result.start) == (70, first + 2 * DAY)
    assert store.decide(first + 3 * DAY).action == "nothing"


def test_a_version_worse_than_the_previous_one_is_rolled_back(store: MonitoredStore) -> None:
    """The ledger records the decision with its evidence, once."""
    store.shelf.promote(2)  # a thousand off
    start = store.since
    store.ask(rows(120), start + DAY / 2, truth=0.0)
    result = store.quality(start + DAY)
    assert (result.state, result.labelled) == ("degraded", 120)
    decisions = [store.decide(start + DAY) for _ in range(2)]
    assert [decision.action for decision in decisions] == ["roll back", "roll back"]
    (row,) = store.shelf.ledger.decisions(MODEL)
    assert (row.version, row.evidence["comparison"]["previous_is_better"], row.evidence["quality"][-1]["state"]) == (
        2,
        True,
        "degraded",
    )

    store.shelf.rollback()
    evidence = monitoring_run.gather_evidence(store.settings, store.config, store.serving, store.since + DAY)
    assert (evidence.champion, evidence.drift, evidence.quality) == (1, (), ())


def test_training_needs_new_rows(store: MonitoredStore) -> None:
    """If both versions are worse, the decision is a warning without new rows in the source, and else a training."""
    start = store.since
    store.ask(rows(120), start + DAY / 2, truth=80.0)
    assert store.quality(start + DAY).state == "degraded"
    source = store.settings.project / "table.parquet"
    frame = table(200).drop(columns="sold")
    frame.to_parquet(source, index=False)
    warning = store.decide(start + DAY)
    assert (warning.action, "new rows" in warning.reason) == ("warn", True)
    later = frame.assign(at=frame["at"] + pd.Timedelta(days=400))
    pd.concat([frame, later]).to_parquet(source, index=False)
    assert store.decide(start + DAY + dt.timedelta(minutes=5)).action == "retrain"
    (row,) = [row for row in store.shelf.ledger.decisions(MODEL) if row.evidence["action"] == "retrain"]
    assert row.evidence["new_rows"] == 200
    again = store.decide(start + DAY + dt.timedelta(minutes=9))
    assert (again.action, "cooldown" in again.reason) == ("warn", True)


def test_quality_is_unknown_until_the_window_is_complete(store: MonitoredStore) -> None:
    """A window stays open until it has the configured length."""
    config = store.config.model_copy(update={"quality": store.config.quality.model_copy(update={"window": 3 * DAY})})
    store.config = config
    start = store.since
    store.ask(rows(120), start + DAY / 2, truth=0.0)
    result = store.quality(start + DAY)
    assert (result.state, "the window ends at" in result.reason) == ("unknown", True)
    assert store.quality(start + 3 * DAY).state == "ok"


def test_a_champion_younger_than_the_delay_has_an_empty_window(store: MonitoredStore) -> None:
    """No label is due yet: the window does not end before it starts."""
    late = store.config.quality.model_copy(update={"delay": 30 * DAY})
    store.config = store.config.model_copy(update={"quality": late})
    store.ask(table(60).drop(columns=["sold", "value"]), store.since + dt.timedelta(hours=1))
    result = store.quality(store.since + DAY)
    assert (result.state, result.rows) == ("unknown", 0)
    assert result.start == result.end == store.since
    assert result.estimate is not None, "the predictions are estimated"
