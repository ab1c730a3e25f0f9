"""A clock that was set back is named by the next night; what is ordinary is not."""

import datetime as dt
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.shelf import MODEL, Shelf
from tests.unit.monitoring.test_rounds import DAY, Life, rows
from towline.inference.predictor import open_release
from towline.monitoring.results import DriftCheckResult, DriftResult
from towline.prediction_log import maintenance, parquet_store
from towline.prediction_log.writer import PredictionLog

HOUR = dt.timedelta(hours=1)
SENT = [{k: None if v != v else v for k, v in row.items()} for row in rows(150).to_dict("records")]


@pytest.fixture
def life(shelf: Shelf, tmp_path: Path) -> Life:
    return Life(shelf, tmp_path)


@pytest.fixture
def folder(life: Life) -> Path:
    return life.settings.store / "predictions" / MODEL


@pytest.fixture
def write(life: Life, folder: Path) -> Callable[[str, Sequence[dt.datetime]], None]:
    """One segment of a worker: a request at each of these moments, in this order."""
    model = open_release(life.shelf.release(1))

    def to(worker: str, moments: Sequence[dt.datetime]) -> None:
        log = PredictionLog(folder, worker, convert=False)
        for number, at in enumerate(moments):
            sent = [SENT[number % len(SENT)]]
            log.write(f"{worker}-{number}", at.timestamp(), model, sent, model.predict_rows(sent))
        log.close()

    return to


def convert(folder: Path) -> None:
    with parquet_store.exclusive_lock(folder):
        parquet_store.convert_segments(folder)


def clock(found: DriftResult) -> list[DriftCheckResult]:
    return [check for check in found.checks if check.name == "clock"]


def minutes(start: dt.datetime, first: int, last: int) -> list[dt.datetime]:
    return [start + dt.timedelta(minutes=minute) for minute in range(first, last)]


@pytest.mark.parametrize("state", ["segments", "parts", "merged"])
def test_rows_dated_before_earlier_ones_are_named(
    state: str, life: Life, folder: Path, write: Callable[..., None]
) -> None:
    """Which worker, how many rows, how far back: from segments, from parts, and after the parts were merged."""
    start = life.since
    write("host-1", [*minutes(start, 60, 160), *minutes(start, 40, 60)])
    write("host-2", minutes(start, 30, 170))
    if state != "segments":
        convert(folder)
    if state == "merged":
        write("host-1", minutes(start, 200, 210))
        maintenance.compact(folder)
    night = life.drift(start + DAY)
    (found,) = clock(night)
    assert "20 rows are dated up to 119 minutes before" in found.detail
    assert "worker host-1," in found.detail
    assert not found.alarm
    assert found.detail in night.reason
    assert clock(life.drift(start + 10 * DAY)) == []


def test_the_night_that_misses_the_rows_warns(life: Life, write: Callable[..., None]) -> None:
    """A clock set back behind a window that is closed: its rows belong to no window to come, and that is said."""
    start = life.since
    write("host-1", minutes(start, 10, 160))
    night = life.drift(start + DAY)
    assert (night.state, night.rows) == ("ok", 150)
    write("host-1", [*minutes(start + DAY, 10, 20), *minutes(start, 300, 400)])
    night = life.drift(start + 2 * DAY)
    assert (night.state, night.rows) == ("unknown", 10)
    (found,) = clock(night)
    assert "100 rows" in found.detail
    assert "not looked at" in found.detail
    decision = life.decide(start + 2 * DAY)
    assert (decision.action, found.detail in decision.reason) == ("warn", True)
    for number in (2, 3):
        write("host-1", minutes(start + number * DAY, 10, 160))
        night = life.drift(start + (number + 1) * DAY)
    assert (night.rows, clock(night)) == (150, [])
    assert life.decide(start + 4 * DAY).action == "nothing"


def test_workers_side_by_side_and_slow_requests_are_ordinary(
    life: Life, folder: Path, write: Callable[..., None]
) -> None:
    """Several workers, hours of each in one merged part, and requests that were answered minutes after they came."""
    start = life.since
    slow = [at - dt.timedelta(minutes=4) * (number % 3 == 0) for number, at in enumerate(minutes(start, 10, 100))]
    for worker in ("host-3", "host-1", "host-2"):
        write(worker, slow)
        write(worker, minutes(start, 100, 200))
    assert clock(life.drift(start + DAY)) == []
    maintenance.compact(folder)
    assert len(parquet_store.list_parts(folder)) < 6
    assert clock(life.drift(start + DAY)) == []


def test_a_worker_that_starts_with_a_clock_behind_is_named(
    life: Life, folder: Path, write: Callable[..., None]
) -> None:
    """After a restart with the clock of yesterday no segment goes backwards by itself."""
    start = life.since
    write("host-1", minutes(start, 10, 100))
    mark = folder / ".opened"
    later = (dt.datetime.now(dt.UTC) + 5 * HOUR).timestamp()
    os.utime(mark, (later, later))
    write("host-2", minutes(start, 20, 40))
    convert(folder)
    (found,) = clock(life.drift(start + DAY))
    assert "20 rows" in found.detail
    assert "worker host-2," in found.detail
    write("host-2", minutes(start, 40, 60))
    (found,) = clock(life.drift(start + DAY))
    assert "20 rows" in found.detail


@pytest.mark.parametrize("converted", [False, True])
def test_rows_of_the_future_are_named(converted: bool, life: Life, folder: Path, write: Callable[..., None]) -> None:
    """They would be looked at on a night to come, as if they were of that night."""
    start = life.since
    write("host-1", [*minutes(start, 10, 100), *minutes(start + DAY, 30, 50), *minutes(start + 9 * DAY, 0, 5)])
    if converted:
        convert(folder)
    (found,) = clock(life.drift(start + DAY))
    assert "25 rows are dated in the future" in found.detail
    assert f"{start + 9 * DAY + dt.timedelta(minutes=4):%Y-%m-%d %H:%M}" in found.detail
    assert clock(life.drift(start + 10 * DAY)) == []


def test_a_round_before_the_last_one_is_named(life: Life, write: Callable[..., None]) -> None:
    """A round that was made with the clock ahead; one that is asked for again by hand is no such thing."""
    start = life.since
    write("host-1", minutes(start, 0, 120))
    assert clock(life.drift(start + DAY)) == []
    assert clock(life.drift(start + 10 * DAY)) == []
    assert clock(life.drift(start + DAY)) == []
    (found,) = [one for one in clock(life.drift(dt.datetime.now(dt.UTC))) if "round" in one.detail]
    assert "10.0 days after this one: the clock was set back" in found.detail


def test_what_is_known_of_clocks_outlasts_a_kill(life: Life, folder: Path, write: Callable[..., None]) -> None:
    """A segment that is converted twice is told of once."""
    start = life.since
    write("host-1", [*minutes(start, 60, 160), *minutes(start, 40, 60)])
    (segment,) = (folder / "segments").glob("*.jsonl")
    content = segment.read_bytes()
    convert(folder)
    segment.write_bytes(content)
    convert(folder)
    (found,) = clock(life.drift(start + DAY))
    assert "20 rows" in found.detail
