"""A store with a champion, logged predictions and labels."""

import datetime as dt
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from tests.support.releases import make_house_table
from tests.support.sample_store import MODEL, SampleStore
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

    def __init__(self, sample_store: SampleStore, folder: Path) -> None:
        self.sample_store, self.folder = sample_store, folder
        raw = yaml.safe_load((sample_store.release(1) / "config.yaml").read_text())
        monitoring = {
            "quality": {"delay": "0h", "window": "1h"},
            "retrain": {"bad_windows": 1, "recent_windows": 1, "min_rows": 2, "triggers": ["drift", "quality"]},
        }
        self.config: PipelineConfig = build_config({**raw, **monitoring}, "test")
        self.settings, self.request_count = sample_store.settings, 0

    @property
    def serving(self) -> Any:
        return self.sample_store.ledger.champion(MODEL)

    @property
    def since(self) -> dt.datetime:
        return dt.datetime.fromisoformat(self.serving.time)

    def log_requests(self, rows: pd.DataFrame, at: dt.datetime, truth: float | None = None) -> None:
        """Logs each row as a request; ``truth`` adds labels with that difference to the first version's predictions."""
        serving = self.serving
        model, first = open_release(self.settings.store / serving.release), open_release(self.sample_store.release(1))
        log = PredictionLog(self.settings.store / "predictions" / MODEL, f"w{self.request_count}", convert=False)
        truths = []
        for row in rows.to_dict("records"):
            request_row = {key: None if value != value else value for key, value in row.items()}
            log.write(f"r{self.request_count}", at.timestamp(), model, [request_row], model.predict_rows([request_row]))
            truths.append((f"r{self.request_count}", first.predict_rows([request_row]).predictions[0] + (truth or 0.0)))
            self.request_count += 1
        log.close()
        if truth is not None:
            file = self.folder / f"labels{self.request_count}.csv"
            pd.DataFrame(truths, columns=["request_id", "value"]).to_csv(file, index=False)
            contract = Contract.model_validate_json((self.sample_store.release(1) / "contract.json").read_bytes())
            predictions = self.settings.store / "predictions" / MODEL
            fields = read_privacy_filter(
                self.sample_store.release(1), contract, HashKeys(predictions / HASH_KEYS)
            ).fields
            log_labels = labels.LoggedModel(predictions, self.settings.store / "labels" / MODEL, fields)
            labels.add_labels(log_labels, contract, labels.LabelFile(file), at + dt.timedelta(minutes=1))

    def drift(self, now: dt.datetime) -> Any:
        result = monitoring_run.detect_drift(self.settings, self.config, self.serving, now)
        Journal.of(self.settings, MODEL).add(result, now)
        return result

    def quality(self, now: dt.datetime) -> Any:
        result = monitoring_run.measure_quality_window(self.settings, self.config, self.serving, now)
        Journal.of(self.settings, MODEL).add(result, now)
        return result

    def gain(self, now: dt.datetime, *, at_once: bool = False) -> Any:
        result = monitoring_run.measure_gain_window(self.settings, self.config, self.serving, now, at_once=at_once)
        if result is not None:
            Journal.of(self.settings, MODEL).add(result, now)
        return result

    def decide(self, now: dt.datetime) -> Any:
        evidence = monitoring_run.gather_evidence(self.settings, self.config, self.serving, now)
        comparison = monitoring_run.compare_champions(self.settings, self.config, self.serving, evidence)
        evidence = evidence.model_copy(update={"comparison": comparison})
        return monitoring_run.record_decision(self.settings, self.config, self.serving, evidence)


def make_rows(count: int) -> pd.DataFrame:
    """Rows like the training rows, but of another year."""
    drawn = make_house_table(200).drop(columns=["sold", "value"]).sample(count, random_state=count)
    return drawn.assign(at=drawn["at"] + pd.Timedelta(days=365))
