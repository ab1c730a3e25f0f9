"""Rounds over a real store: which rows they look at, and what they decide with what they find."""

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
from towline.prediction_log.privacy import HASH_KEYS, HashKeys, read_policy
from towline.prediction_log.writer import PredictionLog

DAY = dt.timedelta(days=1)


class Life:
    """A store in which a version serves, is asked, and is told what was true."""

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
        """Each row a request; with ``truth``, labels that are off by so much from the first version's answers."""
        serving = self.serving
        model, first = open_release(self.settings.store / serving.release), open_release(self.shelf.release(1))
        log = PredictionLog(self.settings.store / "predictions" / MODEL, f"w{self.asked}", convert=False)
        known = []
        for row in rows.to_dict("records"):
            sent = {key: None if value != value else value for key, value in row.items()}
            log.write(f"r{self.asked}", at.timestamp(), model, [sent], model.answer([sent]))
            known.append((f"r{self.asked}", first.answer([sent]).predictions[0] + (truth or 0.0)))
            self.asked += 1
        log.close()
        if truth is not None:
            file = self.folder / f"labels{self.asked}.csv"
            pd.DataFrame(known, columns=["request_id", "value"]).to_csv(file, index=False)
            contract = Contract.model_validate_json((self.shelf.release(1) / "contract.json").read_bytes())
            predictions = self.settings.store / "predictions" / MODEL
            fields = read_policy(self.shelf.release(1), contract, HashKeys(predictions / HASH_KEYS)).fields
            place = labels.Log(predictions, self.settings.store / "labels" / MODEL, fields)
            labels.add(place, contract, file, at + dt.timedelta(minutes=1))

    def drift(self, now: dt.datetime) -> Any:
        found = monitoring_run.drift(self.settings, self.config, self.serving, now)
        Journal.of(self.settings, MODEL).add(found, now)
        return found

    def quality(self, now: dt.datetime) -> Any:
        found = monitoring_run.quality(self.settings, self.config, self.serving, now)
        Journal.of(self.settings, MODEL).add(found, now)
        return found

    def decide(self, now: dt.datetime) -> Any:
        seen = monitoring_run.evidence(self.settings, self.config, self.serving, now)
        seen = seen.model_copy(update={"triage": monitoring_run.triage(self.settings, self.config, self.serving, seen)})
        return monitoring_run.conclude(self.settings, self.config, self.serving, seen)


@pytest.fixture
def life(shelf: Shelf, tmp_path: Path) -> Life:
    return Life(shelf, tmp_path)


def rows(count: int) -> pd.DataFrame:
    """Like those of training, but from another year: who has learnt from a row is not asked about it."""
    drawn = table(200).drop(columns=["sold", "value"]).sample(count, random_state=count)
    return drawn.assign(at=drawn["at"] + pd.Timedelta(days=365))


def test_a_night_that_says_nothing_is_looked_at_again_with_the_next(life: Life) -> None:
    """Rows are neither lost nor looked at twice; the same night again is the same night."""
    first = life.since
    life.ask(rows(30), first + DAY / 2)
    night = life.drift(first + DAY)
    assert (night.state, night.rows, night.start) == ("unknown", 30, first)
    life.ask(rows(60), first + 1.5 * DAY)
    night = life.drift(first + 2 * DAY)
    assert (night.state, night.rows, night.start) == ("ok", 90, first)
    assert life.drift(first + 2 * DAY).rows == 90
    life.ask(rows(70), first + 2.5 * DAY)
    night = life.drift(first + 3 * DAY)
    assert (night.rows, night.start) == (70, first + 2 * DAY)
    assert life.decide(first + 3 * DAY).action == "nothing"


def test_a_version_that_is_worse_than_the_one_before_is_rolled_back_from(life: Life) -> None:
    """Labels show it, both answer the same rows, and the decision stands in the ledger with its evidence, once."""
    life.shelf.promote(2)  # a thousand off
    start = life.since
    life.ask(rows(120), start + DAY / 2, truth=0.0)
    found = life.quality(start + DAY)
    assert (found.state, found.labelled) == ("degraded", 120)
    decisions = [life.decide(start + DAY) for _ in range(2)]
    assert [decision.action for decision in decisions] == ["roll back", "roll back"]
    (row,) = life.shelf.ledger.decisions(MODEL)
    assert (row.version, row.evidence["triage"]["better"], row.evidence["quality"][-1]["state"]) == (
        2,
        True,
        "degraded",
    )

    life.shelf.rollback()
    seen = monitoring_run.evidence(life.settings, life.config, life.serving, life.since + DAY)
    assert (seen.champion, seen.drift, seen.quality) == (1, (), ())


def test_both_versions_worse_on_sound_input_lead_to_training_if_there_are_new_rows(life: Life) -> None:
    """The world has moved; without new rows in the source the decision is a warning that says so, then a training."""
    start = life.since
    life.ask(rows(120), start + DAY / 2, truth=80.0)
    assert life.quality(start + DAY).state == "degraded"
    source = life.settings.project / "table.parquet"
    frame = table(200).drop(columns="sold")
    frame.to_parquet(source, index=False)
    held = life.decide(start + DAY)
    assert (held.action, "new rows" in held.reason) == ("warn", True)
    later = frame.assign(at=frame["at"] + pd.Timedelta(days=400))
    pd.concat([frame, later]).to_parquet(source, index=False)
    assert life.decide(start + DAY + dt.timedelta(minutes=5)).action == "retrain"
    (row,) = [row for row in life.shelf.ledger.decisions(MODEL) if row.evidence["action"] == "retrain"]
    assert row.evidence["new_rows"] == 200
    again = life.decide(start + DAY + dt.timedelta(minutes=9))
    assert (again.action, "cooldown" in again.reason) == ("warn", True)


def test_labels_that_are_not_due_leave_quality_unknown(life: Life) -> None:
    """A window is open until it is as long as the config says, whatever is known by then."""
    config = life.config.model_copy(update={"quality": life.config.quality.model_copy(update={"window": 3 * DAY})})
    life.config = config
    start = life.since
    life.ask(rows(120), start + DAY / 2, truth=0.0)
    found = life.quality(start + DAY)
    assert (found.state, "the window lasts until" in found.reason) == ("unknown", True)
    assert life.quality(start + 3 * DAY).state == "ok"


def test_a_champion_younger_than_the_delay_has_an_empty_window(life: Life) -> None:
    """No label is due yet: the window begins where the champion does and does not end before it."""
    late = life.config.quality.model_copy(update={"delay": 30 * DAY})
    life.config = life.config.model_copy(update={"quality": late})
    life.ask(table(60).drop(columns=["sold", "value"]), life.since + dt.timedelta(hours=1))
    found = life.quality(life.since + DAY)
    assert (found.state, found.rows) == ("unknown", 0)
    assert found.start == found.end == life.since
    assert found.estimate is not None, "what is asked meanwhile is estimated"
