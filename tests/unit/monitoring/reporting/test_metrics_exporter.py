"""What the exporter knows, as Prometheus asks for it over HTTP."""

import datetime as dt
import shutil
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.shelf import MODEL, Shelf
from tests.unit.monitoring.status.test_status import DAY, NOW, get, night, window
from towline.cli.status_server import StatusServer
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


def told(shelf: Shelf, now: dt.datetime = NOW) -> dict[tuple[str, ...], float]:
    return gauges(MetricsExporter(shelf.settings).text(now))


def promise(shelf: Shelf, **parts: object) -> None:
    """Changes the config in the release that serves."""
    path = shelf.release(1) / "config.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | parts))


@contextmanager
def serving(shelf: Shelf, host: str = "127.0.0.1") -> Iterator[str]:
    with StatusServer(0, shelf.settings, host) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def test_a_new_model_says_what_serves(shelf: Shelf) -> None:
    """Version and age are there; quality and drift, which nobody has looked at, are absent and not 0."""
    found = told(shelf)
    assert found["ledger_up",] == 1
    assert found["champion_version",] == 1
    assert 0 < found["model_trained_timestamp_seconds",] <= found["last_run_timestamp_seconds", "training"]
    assert not [name for name, *_ in found if name.startswith(("drift", "quality", "input"))]


def test_the_last_windows_of_the_version_that_serves_count(shelf: Shelf) -> None:
    """What another version was found to do is no alarm of this one; what is beyond its bound is told by its sign."""
    journal = Journal.of(shelf.settings, MODEL)
    for record in (night(2), night(1, "drift"), window(1, "degraded", value=Interval(value=30.0, low=28.0, high=32.0))):
        journal.add(record, NOW)
    journal.add(night(0, version=2), NOW)
    found = told(shelf)
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


def test_rounds_are_due_by_their_schedule(shelf: Shelf) -> None:
    """After the last round, or since the version serves where there was none; a flow without a line is never due."""
    promise(shelf, schedule={"drift": "0 2 * * 1", "quality": None, "timezone": "Europe/Berlin"})
    found = told(shelf)
    assert found["run_due_timestamp_seconds", "drift"] > NOW.timestamp()
    monday = dt.datetime(2026, 3, 2, 1, 30, tzinfo=dt.UTC)  # half past two in Berlin
    Journal.of(shelf.settings, MODEL).add(night(0), monday)
    found = told(shelf)
    assert found["last_run_timestamp_seconds", "drift"] == monday.timestamp()
    assert found["run_due_timestamp_seconds", "drift"] == (monday + 7 * DAY - DAY / 48).timestamp()
    assert ("run_due_timestamp_seconds", "quality") not in found
    assert next_run("no line", "UTC", NOW) is None


def test_promises_come_from_the_release(shelf: Shelf) -> None:
    """A bound between two edges of the service's histogram counts as the next edge; beyond the last there is none."""
    for milliseconds, edge in ((100, 0.1), (120, 0.25), (20_000, None)):
        promise(shelf, slo={"availability": 0.99, "p95_ms": milliseconds})
        found = told(shelf)
        assert (found["slo_target", "availability"], found["slo_p95_seconds",]) == (0.99, milliseconds / 1000)
        assert found.get(("slo_p95_edge_seconds",)) == edge


def test_a_model_that_cannot_be_read_takes_none_away(shelf: Shelf) -> None:
    """Its gauge says so, the others are told as before."""
    other, path = f"{MODEL}-2", shelf.release(1).relative_to(shelf.settings.store).as_posix()
    shelf.ledger.register(other, "ann", "trained", {}, "k")
    shelf.ledger.promote(other, JudgedVersion(1, "k", path, {"verdict": "pass"}), None, "ann", "better")
    damaged = Journal.of(shelf.settings, MODEL)
    damaged.add(night(0), NOW)
    path = damaged.folder / "drift.jsonl"
    path.write_text(path.read_text().replace('"at":"', '"at":"x'))
    found = told(shelf)
    assert found["monitoring_readable",] == 0
    assert ("champion_version",) not in found
    assert found["monitoring_readable", MODEL + "-2"] == 1


def test_a_ledger_that_was_changed_is_not_believed(shelf: Shelf) -> None:
    """The model whose row was changed cannot be read, no champion of it is told; another model is as before."""
    other, path = f"{MODEL}-2", shelf.release(1).relative_to(shelf.settings.store).as_posix()
    shelf.ledger.register(other, "ann", "trained", {}, "k")
    shelf.ledger.promote(other, JudgedVersion(1, "k", path, {"verdict": "pass"}), None, "ann", "better")
    with closing(sqlite3.connect(shelf.ledger_file)) as database, database:
        database.execute("UPDATE ledger SET version = 2 WHERE model = ? AND event = 'rolled_back'", (MODEL,))
    found = told(shelf)
    assert (found["monitoring_readable",], found["monitoring_readable", other]) == (0, 1)
    assert ("champion_version",) not in found
    assert found["champion_version", other] == 1


def test_a_ledger_that_is_away_leaves_what_was_known(shelf: Shelf) -> None:
    """Alarms stay as they are; only the ledger's own gauge changes."""
    Journal.of(shelf.settings, MODEL).add(night(0, "drift"), NOW)
    exporter = MetricsExporter(shelf.settings)
    before = gauges(exporter.text(NOW))
    shelf.ledger_file.write_text("no database")
    after = gauges(exporter.text(NOW + CACHE_TIME))
    assert after.pop(("ledger_up",)) == 0
    assert before.pop(("ledger_up",)) == 1
    assert {name: value for name, value in after.items() if name[0] != "model_age_seconds"} == {
        name: value for name, value in before.items() if name[0] != "model_age_seconds"
    }


def test_it_is_read_once_for_all_who_ask(shelf: Shelf) -> None:
    """Within ten seconds the same text is told; then what is there now."""
    exporter = MetricsExporter(shelf.settings)
    exporter.text(NOW)
    Journal.of(shelf.settings, MODEL).add(night(0, "drift"), NOW)
    assert ("input_invalid",) not in gauges(exporter.text(NOW + CACHE_TIME / 2))
    assert ("input_invalid",) in gauges(exporter.text(NOW + CACHE_TIME))


def test_metrics_are_served_whatever_the_store_is(shelf: Shelf) -> None:
    """Prometheus gets text, with a store, with a ledger that is no database, and with none at all."""
    with serving(shelf) as address:
        code, text = get(f"{address}/metrics")
        assert (code, gauges(text)["champion_version",]) == (200, 1)
        assert get(f"{address}/metrics", Host="status:8090")[0] == 403
    shelf.ledger_file.write_text("no database")
    with serving(shelf) as address:
        code, text = get(f"{address}/metrics")
        assert (code, gauges(text)) == (200, {("ledger_up",): 0})
    shutil.rmtree(shelf.settings.store)
    with serving(shelf) as address:
        assert get(f"{address}/metrics")[0] == 200


def test_beyond_loopback_a_strangers_name_is_still_refused(shelf: Shelf) -> None:
    """A service of the same network and an address are answered; a name with a dot may be anybody's."""
    with serving(shelf, "0.0.0.0") as address:
        answered = {
            host: get(f"{address}/health", Host=host)[0] for host in ("status:8090", "10.1.2.3:8090", "[::1]:1")
        }
        assert set(answered.values()) == {200}
        refused = {
            host: get(f"{address}/health", Host=host)[0] for host in ("evil.example", "127.0.0.1.evil.example:1")
        }
        assert set(refused.values()) == {403}
