"""What the exporter knows, as Prometheus asks for it over HTTP."""

import datetime as dt
import sqlite3
from contextlib import closing

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.support.monitoring_records import DAY, NOW, make_drift, make_quality
from tests.support.sample_store import MODEL, SampleStore
from towline.monitoring.journal import Journal
from towline.monitoring.reporting.metrics_exporter import (
    CACHE_TIME,
    MetricsExporter,
    ModelMetricsSnapshot,
    format_metrics,
    next_run,
)
from towline.monitoring.results import QualityResult
from towline.registry.ledger import JudgedVersion
from towline.training.evaluation.predictions import Interval


def gauges(text: str) -> dict[tuple[str, ...], float]:
    """By name and the labels' values, the model first where it is not the one there is."""
    return {
        (sample.name.removeprefix("towline_"), *(v for k, v in sample.labels.items() if (k, v) != ("model", MODEL))): (
            sample.value
        )
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def told(sample_store: SampleStore, now: dt.datetime = NOW) -> dict[tuple[str, ...], float]:
    return gauges(MetricsExporter(sample_store.settings).text(now))


def promise(sample_store: SampleStore, **parts: object) -> None:
    """Changes the config in the release that serves."""
    path = sample_store.release(1) / "config.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | parts))


def test_a_new_model_says_what_serves(sample_store: SampleStore) -> None:
    """Version and age are there; quality and drift, which nobody has looked at, are absent and not 0."""
    found = told(sample_store)
    assert found["ledger_up",] == 1
    assert found["champion_version",] == 1
    assert 0 < found["model_trained_timestamp_seconds",] <= found["last_run_timestamp_seconds", "training"]
    assert not [name for name, *_ in found if name.startswith(("drift", "quality", "input"))]


def test_the_last_windows_of_the_version_that_serves_count(sample_store: SampleStore) -> None:
    """What another version was found to do is no alarm of this one; what is beyond its bound is told by its sign."""
    journal = Journal.of(sample_store.settings, MODEL)
    for record in (
        make_drift(2),
        make_drift(1, "drift"),
        make_quality(1, "degraded", value=Interval(value=30.0, low=28.0, high=32.0)),
    ):
        journal.add(record, NOW)
    journal.add(make_drift(0, version=2), NOW)
    found = told(sample_store)
    assert (found["drift_alarm", "rooms"], found["drift_ratio", "rooms"], found["input_invalid",]) == (1, 2, 0)
    assert (found["quality", "mae"], found["quality_bound", "mae"], found["quality_headroom", "mae"]) == (30, 25, -5)
    assert (found["quality_degraded",], found["quality_estimate", "mae", "no"]) == (1, 23.75)
    assert found["quality_coverage",] == pytest.approx(300 / 350)


def test_headroom_has_the_same_sign_where_more_is_better() -> None:
    """A roc_auc below its bound is as negative as an error above."""
    for metric, value, sign in (("roc_auc", 0.7, -1), ("roc_auc", 0.9, 1), ("log_loss", 0.7, 1), ("log_loss", 0.9, -1)):
        quality = QualityResult(
            state="unknown", version=1, metric=metric, value=Interval(value=value), holdout=None, bound=0.8, rows=9,
            labelled=0, due=0, reason="",
        )  # fmt: skip
        found = gauges(format_metrics([ModelMetricsSnapshot(model=MODEL, quality=quality)], NOW))
        assert found["quality_headroom", metric] * sign == pytest.approx(0.1)
        assert ("quality_coverage",) not in found


def test_rounds_are_due_by_their_schedule(sample_store: SampleStore) -> None:
    """After the last round, or since the version serves where there was none; a flow without a line is never due."""
    promise(sample_store, schedule={"drift": "0 2 * * 1", "quality": None, "timezone": "Europe/Berlin"})
    found = told(sample_store)
    assert found["run_due_timestamp_seconds", "drift"] > NOW.timestamp()
    monday = dt.datetime(2026, 3, 2, 1, 30, tzinfo=dt.UTC)  # half past two in Berlin
    Journal.of(sample_store.settings, MODEL).add(make_drift(0), monday)
    found = told(sample_store)
    assert found["last_run_timestamp_seconds", "drift"] == monday.timestamp()
    assert found["run_due_timestamp_seconds", "drift"] == (monday + 7 * DAY - DAY / 48).timestamp()
    assert ("run_due_timestamp_seconds", "quality") not in found
    assert next_run("no line", "UTC", NOW) is None


def test_promises_come_from_the_release(sample_store: SampleStore) -> None:
    """A bound between two edges of the service's histogram counts as the next edge; beyond the last there is none."""
    for milliseconds, edge in ((100, 0.1), (120, 0.25), (20_000, None)):
        promise(sample_store, slo={"availability": 0.99, "p95_ms": milliseconds})
        found = told(sample_store)
        assert (found["slo_target", "availability"], found["slo_p95_seconds",]) == (0.99, milliseconds / 1000)
        assert found.get(("slo_p95_edge_seconds",)) == edge


def test_a_model_that_cannot_be_read_takes_none_away(sample_store: SampleStore) -> None:
    """Its gauge says so, the others are told as before."""
    other, path = f"{MODEL}-2", sample_store.release(1).relative_to(sample_store.settings.store).as_posix()
    sample_store.ledger.register(other, "ann", "trained", {}, "k")
    sample_store.ledger.promote(other, JudgedVersion(1, "k", path, {"verdict": "pass"}), None, "ann", "better")
    damaged = Journal.of(sample_store.settings, MODEL)
    damaged.add(make_drift(0), NOW)
    path = damaged.folder / "drift.jsonl"
    path.write_text(path.read_text().replace('"at":"', '"at":"x'))
    found = told(sample_store)
    assert found["monitoring_readable",] == 0
    assert ("champion_version",) not in found
    assert found["monitoring_readable", MODEL + "-2"] == 1


def test_a_ledger_that_was_changed_is_not_believed(sample_store: SampleStore) -> None:
    """The model whose row was changed cannot be read, no champion of it is told; another model is as before."""
    other, path = f"{MODEL}-2", sample_store.release(1).relative_to(sample_store.settings.store).as_posix()
    sample_store.ledger.register(other, "ann", "trained", {}, "k")
    sample_store.ledger.promote(other, JudgedVersion(1, "k", path, {"verdict": "pass"}), None, "ann", "better")
    with closing(sqlite3.connect(sample_store.ledger_file)) as database, database:
        database.execute("UPDATE ledger SET version = 2 WHERE model = ? AND event = 'rolled_back'", (MODEL,))
    found = told(sample_store)
    assert (found["monitoring_readable",], found["monitoring_readable", other]) == (0, 1)
    assert ("champion_version",) not in found
    assert found["champion_version", other] == 1


def test_a_ledger_that_is_away_leaves_what_was_known(sample_store: SampleStore) -> None:
    """Alarms stay as they are; only the ledger's own gauge changes."""
    Journal.of(sample_store.settings, MODEL).add(make_drift(0, "drift"), NOW)
    exporter = MetricsExporter(sample_store.settings)
    before = gauges(exporter.text(NOW))
    sample_store.ledger_file.write_text("no database")
    after = gauges(exporter.text(NOW + CACHE_TIME))
    assert after.pop(("ledger_up",)) == 0
    assert before.pop(("ledger_up",)) == 1
    assert {name: value for name, value in after.items() if name[0] != "model_age_seconds"} == {
        name: value for name, value in before.items() if name[0] != "model_age_seconds"
    }


def test_it_is_read_once_for_all_who_ask(sample_store: SampleStore) -> None:
    """Within ten seconds the same text is told; then what is there now."""
    exporter = MetricsExporter(sample_store.settings)
    exporter.text(NOW)
    Journal.of(sample_store.settings, MODEL).add(make_drift(0, "drift"), NOW)
    assert ("input_invalid",) not in gauges(exporter.text(NOW + CACHE_TIME / 2))
    assert ("input_invalid",) in gauges(exporter.text(NOW + CACHE_TIME))
