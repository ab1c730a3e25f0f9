"""The metrics exporter: gauges of every model in Prometheus' text format."""

import datetime as dt
import sqlite3
from contextlib import closing

import pytest
import yaml

from tests.support.metrics import parse_gauges
from tests.support.monitoring_records import DAY, NOW, make_drift, make_gain_windows, make_quality
from tests.support.sample_store import MODEL, SampleStore
from towline.errors import DataValidationError
from towline.monitoring.journal import Journal
from towline.monitoring.reporting.metrics_exporter import (
    CACHE_TIME,
    MetricsExporter,
    ModelMetricsSnapshot,
    format_metrics,
    next_run,
)
from towline.monitoring.results import QualityResult
from towline.promotion.outcome import record_run_end
from towline.registry.ledger import JudgedVersion
from towline.training.evaluation.predictions import Interval


def exported_gauges(sample_store: SampleStore, now: dt.datetime = NOW) -> dict[tuple[str, ...], float]:
    return parse_gauges(MetricsExporter(sample_store.settings).text(now))


def set_config(sample_store: SampleStore, **parts: object) -> None:
    """Changes the config in the champion's release."""
    path = sample_store.release(1) / "config.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | parts))


def test_a_new_model_has_version_and_age(sample_store: SampleStore) -> None:
    """Drift and quality were not measured: their gauges are absent, not 0."""
    result = exported_gauges(sample_store)
    assert result["ledger_up",] == 1
    assert result["champion_version",] == 1
    assert 0 < result["model_trained_timestamp_seconds",] <= result["last_run_timestamp_seconds", "training"]
    assert not [name for name, *_ in result if name.startswith(("drift", "quality", "input"))]


def test_only_windows_of_the_champion_count(sample_store: SampleStore) -> None:
    """Windows of other versions are no alarm; a value beyond its bound has a negative headroom."""
    journal = Journal.of(sample_store.settings, MODEL)
    for record in (
        make_drift(2),
        make_drift(1, "drift"),
        make_quality(1, "degraded", value=Interval(value=30.0, low=28.0, high=32.0)),
    ):
        journal.add(record, NOW)
    journal.add(make_drift(0, version=2), NOW)
    result = exported_gauges(sample_store)
    assert (result["drift_alarm", "rooms"], result["drift_ratio", "rooms"], result["input_invalid",]) == (1, 2, 0)
    assert (result["quality", "mae"], result["quality_bound", "mae"], result["quality_headroom", "mae"]) == (30, 25, -5)
    assert (result["quality_degraded",], result["quality_estimate", "mae", "no"]) == (1, 23.75)
    assert result["quality_coverage",] == pytest.approx(300 / 350)


def test_headroom_is_negative_beyond_the_bound_for_scores_too() -> None:
    """The headroom of a roc_auc below its bound is negative, like that of an error above its bound."""
    for metric, value, sign in (("roc_auc", 0.7, -1), ("roc_auc", 0.9, 1), ("log_loss", 0.7, 1), ("log_loss", 0.9, -1)):
        quality = QualityResult(
            state="unknown", version=1, metric=metric, value=Interval(value=value), holdout=None, bound=0.8, rows=9,
            labelled=0, due=0, reason="",
        )  # fmt: skip
        result = parse_gauges(format_metrics([ModelMetricsSnapshot(model=MODEL, quality=quality)], NOW))
        assert result["quality_headroom", metric] * sign == pytest.approx(0.1)
        assert ("quality_coverage",) not in result


def test_the_gain_of_a_training_is_exported(sample_store: SampleStore) -> None:
    """Without a measured window there is no gauge; with evidence, the gain and the evidence that a training needs."""
    assert not [name for name, *_ in exported_gauges(sample_store) if name.startswith("retraining")]
    journal, ledger = Journal.of(sample_store.settings, MODEL), sample_store.ledger
    champion = ledger.champion(MODEL)
    assert champion is not None
    set_config(sample_store, retrain={"min_gain": 0.1})
    now = dt.datetime.fromisoformat(champion.time) + 4 * DAY
    for window in make_gain_windows(now, refit=0.7):
        journal.add(window, now)
    result = exported_gauges(sample_store, now)
    assert result["retraining_gain",] == pytest.approx(0.3)
    assert (result["retraining_gain_required",], result["retraining_pays",]) == (0.1, 1)
    assert result["retraining_gain_e_value",] >= 20


def test_runs_are_due_by_their_schedule(sample_store: SampleStore) -> None:
    """After the last run, or after the promotion without a run; a flow without a schedule is never due."""
    set_config(sample_store, schedule={"drift": "0 2 * * 1", "quality": None, "timezone": "Europe/Berlin"})
    result = exported_gauges(sample_store)
    assert result["run_due_timestamp_seconds", "drift"] > NOW.timestamp()
    monday = dt.datetime(2026, 3, 2, 1, 30, tzinfo=dt.UTC)  # half past two in Berlin
    Journal.of(sample_store.settings, MODEL).add(make_drift(0), monday)
    result = exported_gauges(sample_store)
    assert result["last_run_timestamp_seconds", "drift"] == monday.timestamp()
    assert result["run_due_timestamp_seconds", "drift"] == (monday + 7 * DAY - DAY / 48).timestamp()
    assert ("run_due_timestamp_seconds", "quality") not in result
    assert next_run("no line", "UTC", NOW) is None


def test_a_training_without_a_new_version_is_no_missed_run(sample_store: SampleStore) -> None:
    """The run was a repetition, or refused its data: the ledger has no entry, but the next one is due after it."""
    set_config(sample_store, schedule={"train": "0 1 * * *"})
    before = exported_gauges(sample_store)["last_run_timestamp_seconds", "training"]
    with record_run_end(sample_store.settings, MODEL):
        pass
    result = exported_gauges(sample_store)
    repeated = result["last_run_timestamp_seconds", "training"]
    assert before < repeated < result["run_due_timestamp_seconds", "training"] <= repeated + 86_400
    with pytest.raises(DataValidationError), record_run_end(sample_store.settings, MODEL):
        raise DataValidationError("hour: 3 rows break a rule", where="data", remedy="correct them")
    assert exported_gauges(sample_store)["last_run_timestamp_seconds", "training"] > repeated


def test_slos_come_from_the_release(sample_store: SampleStore) -> None:
    """A limit between two bounds of the histogram counts as the next bound; beyond the last bound there is no gauge."""
    for milliseconds, edge in ((100, 0.1), (120, 0.25), (20_000, None)):
        set_config(sample_store, slo={"availability": 0.99, "p95_ms": milliseconds})
        result = exported_gauges(sample_store)
        assert (result["slo_target", "availability"], result["slo_p95_seconds",]) == (0.99, milliseconds / 1000)
        assert result.get(("slo_p95_edge_seconds",)) == edge


def test_an_unreadable_model_does_not_hide_the_others(sample_store: SampleStore) -> None:
    """The gauge of the unreadable model is 0, and the other models are exported."""
    other, path = f"{MODEL}-2", sample_store.release(1).relative_to(sample_store.settings.store).as_posix()
    sample_store.ledger.register(other, "ann", "trained", {}, "k")
    sample_store.ledger.promote(other, JudgedVersion(1, "k", path, {"verdict": "pass"}), None, "ann", "better")
    damaged = Journal.of(sample_store.settings, MODEL)
    damaged.add(make_drift(0), NOW)
    path = damaged.folder / "drift.jsonl"
    path.write_text(path.read_text().replace('"at":"', '"at":"x'))
    result = exported_gauges(sample_store)
    assert result["monitoring_readable",] == 0
    assert ("champion_version",) not in result
    assert result["monitoring_readable", MODEL + "-2"] == 1


def test_a_changed_ledger_makes_its_model_unreadable(sample_store: SampleStore) -> None:
    """The unreadable model has no champion metric; the other models have one."""
    other, path = f"{MODEL}-2", sample_store.release(1).relative_to(sample_store.settings.store).as_posix()
    sample_store.ledger.register(other, "ann", "trained", {}, "k")
    sample_store.ledger.promote(other, JudgedVersion(1, "k", path, {"verdict": "pass"}), None, "ann", "better")
    with closing(sqlite3.connect(sample_store.ledger_file)) as database, database:
        database.execute("UPDATE ledger SET version = 2 WHERE model = ? AND event = 'rolled_back'", (MODEL,))
    result = exported_gauges(sample_store)
    assert (result["monitoring_readable",], result["monitoring_readable", other]) == (0, 1)
    assert ("champion_version",) not in result
    assert result["champion_version", other] == 1


def test_the_last_known_state_is_exported_without_the_ledger(sample_store: SampleStore) -> None:
    """Alarms remain; only the ledger's own gauge changes."""
    Journal.of(sample_store.settings, MODEL).add(make_drift(0, "drift"), NOW)
    exporter = MetricsExporter(sample_store.settings)
    before = parse_gauges(exporter.text(NOW))
    sample_store.ledger_file.write_text("no database")
    after = parse_gauges(exporter.text(NOW + CACHE_TIME))
    assert after.pop(("ledger_up",)) == 0
    assert before.pop(("ledger_up",)) == 1
    assert {name: value for name, value in after.items() if name[0] != "model_age_seconds"} == {
        name: value for name, value in before.items() if name[0] != "model_age_seconds"
    }


def test_the_text_is_cached_for_ten_seconds(sample_store: SampleStore) -> None:
    """Requests within ten seconds get the same text; later ones get the new state."""
    exporter = MetricsExporter(sample_store.settings)
    exporter.text(NOW)
    Journal.of(sample_store.settings, MODEL).add(make_drift(0, "drift"), NOW)
    assert ("input_invalid",) not in parse_gauges(exporter.text(NOW + CACHE_TIME / 2))
    assert ("input_invalid",) in parse_gauges(exporter.text(NOW + CACHE_TIME))
