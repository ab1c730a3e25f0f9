"""The clock check: wrong timestamps are reported, ordinary delays are not."""

import datetime as dt
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.support.monitored_store import DAY, MonitoredStore, make_rows
from tests.support.sample_store import MODEL, SampleStore
from towline.inference.predictor import open_release
from towline.monitoring.results import DriftCheckResult, DriftResult
from towline.prediction_log import maintenance, parquet_store
from towline.prediction_log.writer import PredictionLog

HOUR = dt.timedelta(hours=1)
SENT = [{k: None if v != v else v for k, v in row.items()} for row in make_rows(150).to_dict("records")]


@pytest.fixture
def store(sample_store: SampleStore, tmp_path: Path) -> MonitoredStore:
    return MonitoredStore(sample_store, tmp_path)


@pytest.fixture
def folder(store: MonitoredStore) -> Path:
    return store.settings.store / "predictions" / MODEL


@pytest.fixture
def write(store: MonitoredStore, folder: Path) -> Callable[[str, Sequence[dt.datetime]], None]:
    """Writes one segment of a worker: a request at each of these times, in this order."""
    model = open_release(store.sample_store.release(1))

    def to(worker: str, moments: Sequence[dt.datetime]) -> None:
        log = PredictionLog(folder, worker, convert=False)
        for number, at in enumerate(moments):
            sent = [SENT[number % len(SENT)]]
            log.write(f"{worker}-{number}", at.timestamp(), model, sent, model.predict_rows(sent))
        log.close()

    return to


def convert(folder: Path) -> None:
    with parquet_store.lock_store(folder):
        parquet_store.convert_segments(folder)


def clock(result: DriftResult) -> list[DriftCheckResult]:
    return [check for check in result.checks if check.name == "clock"]


def minutes(start: dt.datetime, first: int, last: int) -> list[dt.datetime]:
    return [start + dt.timedelta(minutes=minute) for minute in range(first, last)]


@pytest.mark.parametrize("state", ["segments", "parts", "merged"])
def test_rows_dated_before_earlier_ones_are_named(
    state: str, store: MonitoredStore, folder: Path, write: Callable[..., None]
) -> None:
    """The result names the worker, the number of rows and the span, for segments, parts and merged parts."""
    start = store.since
    write("host-1", [*minutes(start, 60, 160), *minutes(start, 40, 60)])
    write("host-2", minutes(start, 30, 170))
    if state != "segments":
        convert(folder)
    if state == "merged":
        write("host-1", minutes(start, 200, 210))
        maintenance.compact(folder)
    result = store.drift(start + DAY)
    (check,) = clock(result)
    assert "20 rows are dated up to 119 minutes before" in check.detail
    assert "worker host-1," in check.detail
    assert not check.alarm
    assert check.detail in result.reason
    assert clock(store.drift(start + 10 * DAY)) == []


def test_a_window_that_misses_rows_warns(store: MonitoredStore, write: Callable[..., None]) -> None:
    """Rows dated into a closed window are in no later window; the decision is a warning with this reason."""
    start = store.since
    write("host-1", minutes(start, 10, 160))
    result = store.drift(start + DAY)
    assert (clock(result), result.rows) == ([], 150)
    write("host-1", [*minutes(start + DAY, 10, 20), *minutes(start, 300, 400)])
    result = store.drift(start + 2 * DAY)
    assert (result.state, result.rows) == ("unknown", 10)
    (check,) = clock(result)
    assert "100 rows" in check.detail
    assert "not checked" in check.detail
    decision = store.decide(start + 2 * DAY)
    assert (decision.action, check.detail in decision.reason) == ("warn", True)
    for number in (2, 3):
        write("host-1", minutes(start + number * DAY, 10, 160))
        result = store.drift(start + (number + 1) * DAY)
    assert (result.rows, clock(result)) == (150, [])
    assert store.decide(start + 4 * DAY).action == "nothing"


def test_parallel_workers_and_slow_requests_are_no_clock_problem(
    store: MonitoredStore, folder: Path, write: Callable[..., None]
) -> None:
    """Several workers in one merged part, and requests that took minutes, are not reported."""
    start = store.since
    slow = [at - dt.timedelta(minutes=4) * (number % 3 == 0) for number, at in enumerate(minutes(start, 10, 100))]
    for worker in ("host-3", "host-1", "host-2"):
        write(worker, slow)
        write(worker, minutes(start, 100, 200))
    assert clock(store.drift(start + DAY)) == []
    maintenance.compact(folder)
    assert len(parquet_store.list_parts(folder)) < 6
    assert clock(store.drift(start + DAY)) == []


def test_a_worker_that_starts_with_a_clock_behind_is_named(
    store: MonitoredStore, folder: Path, write: Callable[..., None]
) -> None:
    """The clock went back during a restart: no segment is out of order, but the worker is reported."""
    start = store.since
    write("host-1", minutes(start, 10, 100))
    mark = folder / ".opened"
    later = (dt.datetime.now(dt.UTC) + 5 * HOUR).timestamp()
    os.utime(mark, (later, later))
    write("host-2", minutes(start, 20, 40))
    convert(folder)
    (check,) = clock(store.drift(start + DAY))
    assert "20 rows" in check.detail
    assert "worker host-2," in check.detail
    write("host-2", minutes(start, 40, 60))
    (check,) = clock(store.drift(start + DAY))
    assert "20 rows" in check.detail


@pytest.mark.parametrize("converted", [False, True])
def test_rows_dated_in_the_future_are_reported(
    converted: bool, store: MonitoredStore, folder: Path, write: Callable[..., None]
) -> None:
    """They would be counted in a later window."""
    start = store.since
    write("host-1", [*minutes(start, 10, 100), *minutes(start + DAY, 30, 50), *minutes(start + 9 * DAY, 0, 5)])
    if converted:
        convert(folder)
    (check,) = clock(store.drift(start + DAY))
    assert "25 rows are dated in the future" in check.detail
    assert f"{start + 9 * DAY + dt.timedelta(minutes=4):%Y-%m-%d %H:%M}" in check.detail
    assert clock(store.drift(start + 10 * DAY)) == []


def test_a_run_before_an_earlier_one_is_reported(store: MonitoredStore, write: Callable[..., None]) -> None:
    """A run before the time of an earlier run is reported; a repeated run with --as-of is not."""
    start = store.since
    write("host-1", minutes(start, 0, 120))
    assert clock(store.drift(start + DAY)) == []
    assert clock(store.drift(start + 10 * DAY)) == []
    assert clock(store.drift(start + DAY)) == []
    (check,) = [check for check in clock(store.drift(dt.datetime.now(dt.UTC))) if "monitoring run" in check.detail]
    assert "10.0 days after this one: the clock was set back" in check.detail


def test_a_segment_that_is_converted_twice_is_reported_once(
    store: MonitoredStore, folder: Path, write: Callable[..., None]
) -> None:
    """A kill between conversion and removal of the segment leads to a second conversion."""
    start = store.since
    write("host-1", [*minutes(start, 60, 160), *minutes(start, 40, 60)])
    (segment,) = (folder / "segments").glob("*.jsonl")
    content = segment.read_bytes()
    convert(folder)
    segment.write_bytes(content)
    convert(folder)
    (check,) = clock(store.drift(start + DAY))
    assert "20 rows" in check.detail
