"""The writer of the prediction log."""

import errno
import json
import os
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pandas as pd
import pytest

from tests.support.prediction_log import ROW, FakeRelease, make_predictions, read_all_bytes, read_segment_lines
from tests.support.waiting import wait_until
from towline.inference.scorer import RowPredictions
from towline.prediction_log import segments
from towline.prediction_log.writer import PredictionLog

OCTOBER = datetime(2026, 10, 5, tzinfo=UTC).timestamp()


def test_a_segment_holds_the_predictions(
    log: PredictionLog, folder: Path, releases: Callable[..., FakeRelease]
) -> None:
    """Each record has id, time, version, inputs, prediction and probabilities; the first line describes the columns."""
    release = releases(classes=("no", "yes"))
    log.write("a1", OCTOBER, release, [ROW], RowPredictions(["yes"], [[0.25, 0.75]]))
    wait_until(lambda: log.written == 1)
    (path,) = (folder / "segments").glob("w0-*.jsonl")
    head, line = map(json.loads, path.read_text().splitlines())
    assert (head["version"], head["model"], head["prediction"]) == (1, "demo", "string")
    assert head["fields"][0] == ["size", "numeric", "keep", "float64", {}]
    assert line == {
        "of": 1,
        "id": "a1",
        "at": round(OCTOBER * 1e6),
        "first": 0,
        "rows": [[ROW[name] for name, *_ in head["fields"]]],
        "predictions": ["yes"],
        "probabilities": [[0.25, 0.75]],
    }
    assert oct(folder.stat().st_mode & 0o777) == "0o700"
    assert oct(path.stat().st_mode & 0o777) == "0o600"


def test_no_file_is_created_before_the_first_record(log: PredictionLog, folder: Path) -> None:
    log.close()
    assert not folder.exists()


def test_written_and_dropped_rows_add_up_to_those_sent(folder: Path, release: FakeRelease) -> None:
    """20,000 records are sent in a burst to a queue of 1,000."""
    log = PredictionLog(folder, "w0", capacity=1_000, convert=False)
    for number in range(20_000):
        log.write(f"r{number}", OCTOBER, release, [ROW], make_predictions())
        assert len(log._queue) <= 1_000
    log.close()
    assert log.drops > 0
    assert log.depth == 0
    assert log.written + log.drops == 20_000
    ids = [line["id"] for line in read_segment_lines(folder)]
    assert len(set(ids)) == len(ids) == log.written


def test_several_threads_may_write_to_a_log(folder: Path, release: FakeRelease) -> None:
    log = PredictionLog(folder, "w0", capacity=500, convert=False)

    def send() -> None:
        for _ in range(2_000):
            log.write("r", OCTOBER, release, [ROW], make_predictions())

    callers = [threading.Thread(target=send) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    log.close()
    assert log.written + log.drops == 8_000
    assert len(read_segment_lines(folder)) == log.written


def test_a_request_may_exceed_the_capacity_if_nothing_waits(folder: Path, release: FakeRelease) -> None:
    """Each row has its position in the request."""
    log = PredictionLog(folder, "w0", capacity=100, convert=False)
    rows = [ROW | {"size": float(place)} for place in range(1_000)]
    log.write("big", OCTOBER, release, rows, RowPredictions([float(n) for n in range(1_000)], None))
    log.close()
    assert log.written == 1_000
    records = read_segment_lines(folder)
    places = [line["first"] + place for line in records for place in range(len(line["rows"]))]
    assert places == [row[0] for line in records for row in line["rows"]] == list(range(1_000))
    assert [value for line in records for value in line["predictions"]] == list(range(1_000))


class Disk:
    """Replaces os.write: accepts ``room`` bytes, then none until there is more space."""

    def __init__(self, room: int) -> None:
        self.room, self.write, self.failed = room, os.write, 0

    def __call__(self, file: int, data: bytes) -> int:
        if not self.room:
            self.failed += 1
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        taken = self.write(file, data[: self.room])
        self.room -= taken
        return taken


def test_after_a_full_disk_all_lines_are_written(
    log: PredictionLog, folder: Path, release: FakeRelease, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An incomplete line is truncated, and written again when there is space."""
    disk = Disk(3_000)
    monkeypatch.setattr(segments.os, "write", disk)
    for number in range(200):
        log.write(f"r{number}", OCTOBER, release, [ROW], make_predictions())
        if number == 5:
            wait_until(lambda: log.written == 6)
    wait_until(lambda: disk.failed > 0 and log.depth > 0)
    assert len(read_segment_lines(folder)) == log.written == 6
    assert log.depth == 194
    disk.room = 10**9
    wait_until(lambda: log.written == 200)
    assert log.drops == 0
    assert [line["id"] for line in read_segment_lines(folder)] == [f"r{number}" for number in range(200)]


def test_a_failed_truncation_is_repeated_before_the_next_line(
    log: PredictionLog, folder: Path, release: FakeRelease, monkeypatch: pytest.MonkeyPatch
) -> None:
    truncate, broken = os.ftruncate, True

    def fails(file: int, size: int) -> None:
        if broken:
            raise OSError(errno.EIO, "the disk is gone")
        truncate(file, size)

    log.write("r0", OCTOBER, release, [ROW], make_predictions())
    wait_until(lambda: log.written == 1)
    disk = Disk(100)
    monkeypatch.setattr(segments.os, "write", disk)
    monkeypatch.setattr(segments.os, "ftruncate", fails)
    log.write("r1", OCTOBER, release, [ROW], make_predictions())
    wait_until(lambda: disk.failed > 0)
    disk.room, broken = 10**9, False
    wait_until(lambda: log.written == 2)
    assert [line["id"] for line in read_segment_lines(folder)] == ["r0", "r1"]


def test_memory_is_limited_while_the_disk_is_full(
    folder: Path, release: FakeRelease, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Further rows are dropped; the service's log has the reason but no value; closing works."""
    monkeypatch.setattr(segments.os, "write", Disk(0))
    monkeypatch.setattr("towline.prediction_log.writer._MAX_PENDING_BYTES", 20_000)
    log = PredictionLog(folder, "w0", capacity=100, convert=False)
    for _ in range(3_000):
        log.write("r", OCTOBER, release, [ROW], make_predictions())
        time.sleep(0.0001)
    assert log.depth < 300
    log.close(timeout=0.3)
    assert (log.written, log.drops, log.depth) == (0, 3_000, 0)
    assert "No space left on device" in caplog.text
    assert "Gasse" not in caplog.text
    log.write("late", OCTOBER, release, [ROW], make_predictions())
    assert log.drops == 3_001


def test_personal_data_is_in_no_file(log: PredictionLog, folder: Path, release: FakeRelease) -> None:
    """The files have neither personal columns nor the plain text of hashed ones."""
    for number in range(50):
        log.write(f"r{number}", OCTOBER, release, [ROW], make_predictions())
    log.close()
    content = read_all_bytes(folder)
    assert len(content) > 10_000
    for secret in ("Gasse", "eva@", "803317715", "4711508", "A-100-Z7", "1985-02-11"):
        assert secret.encode() not in content


def test_a_segment_may_hold_two_versions(
    log: PredictionLog, folder: Path, releases: Callable[..., FakeRelease]
) -> None:
    """Each line follows the policy of its release."""
    old, new = releases(version=1), releases({"pii": ["street", "town"]}, version=2)
    for number in range(6):
        log.write(f"r{number}", OCTOBER, (old, new)[number % 2], [ROW], make_predictions())
    log.close()
    (path,) = (folder / "segments").iterdir()
    heads = [json.loads(line) for line in path.read_text().splitlines() if "fields" in line]
    assert [head["version"] for head in heads] == [1, 2]
    assert [(line["of"], len(line["rows"][0])) for line in read_segment_lines(folder)] == [(1, 8), (2, 6)] * 3


def test_values_that_json_cannot_represent_are_logged(
    log: PredictionLog, folder: Path, releases: Callable[..., FakeRelease]
) -> None:
    """Their meaning is kept."""
    odd = ROW | {
        "size": 10**30, "age": Decimal("41.5"), "zip": "\ud800x", "at": pd.Timestamp("2026-10-05 08:00"),
        "born": pd.NaT, "member": float("nan"), "town": 7.0,
    }  # fmt: skip
    log.write("\udfffid", OCTOBER, releases(), [odd], RowPredictions([float("inf")], None))
    log.close()
    (line,) = read_segment_lines(folder)
    size, age, zip_, town, _, member, at, born = line["rows"][0]
    assert float(size) == 1e30
    assert float(age) == 41.5
    assert (zip_, town, member, born) == ("?x", 7.0, None, None)
    assert at == "2026-10-05 08:00:00"


def test_rows_of_a_release_without_a_readable_config_are_dropped(
    log: PredictionLog, folder: Path, release: FakeRelease, caplog: pytest.LogCaptureFixture
) -> None:
    """They might hold personal data."""
    (release.directory / "config.yaml").unlink()
    log.write("a", OCTOBER, release, [ROW, ROW], make_predictions(2))
    wait_until(lambda: log.drops == 2)
    assert log.written == 0
    assert not (folder / "segments").exists()
    wait_until(lambda: "not logged" in caplog.text)  # the thread counts the rows before it reports them


def test_a_missing_hash_key_is_created_later(
    log: PredictionLog, folder: Path, release: FakeRelease, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until then rows are dropped, and the creation is repeated at intervals."""
    attempts = 0

    def full(*_: object) -> None:
        nonlocal attempts
        attempts += 1
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("towline.prediction_log.privacy.os.link", full)
        for _ in range(500):
            log.write("r", OCTOBER, release, [ROW], make_predictions())
        wait_until(lambda: log.drops == 500)
        assert attempts <= 3
    wait_until(lambda: log.write("later", OCTOBER, release, [ROW], make_predictions()) or log.written > 0)
    assert {line["id"] for line in read_segment_lines(folder)} == {"later"}


@pytest.mark.parametrize("reason", ["size", "age", "asked", "removed"])
def test_a_segment_is_closed_for_each_reason(
    folder: Path, release: FakeRelease, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    """Reasons: the segment is large, old or removed, or a close was requested. The next record opens a new segment."""
    monkeypatch.setattr("towline.prediction_log.writer._MAINTENANCE_S", 0.1)
    limits = {"size": {"segment_bytes": 100}, "age": {"segment_seconds": 0.1}}.get(reason, {})
    log = PredictionLog(folder, "w0", convert=False, **limits)
    log.write("a", OCTOBER, release, [ROW], make_predictions())
    wait_until(lambda: log.written == 1)
    (first,) = segments.list_segments(folder)
    if reason == "asked":
        assert list(segments.finished_segments(folder)) == []
        segments.request_roll(folder)
    if reason == "removed":
        first.unlink()
    wait_until(lambda: list(segments.finished_segments(folder)) == [first] or log._segments._file < 0)
    log.write("b", OCTOBER, release, [ROW], make_predictions())
    wait_until(lambda: log.written == 2)
    assert "b" in [line["id"] for line in read_segment_lines(folder)]
    assert first not in (set(segments.list_segments(folder)) - set(segments.finished_segments(folder)))
    log.close()
