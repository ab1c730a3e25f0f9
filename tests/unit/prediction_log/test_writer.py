"""The writer: what was flushed stays, what is dropped is counted, and whoever calls notices nothing."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pandas as pd
import pytest

from tests.conftest import REPOSITORY
from tests.unit.prediction_log.conftest import ROW, Release, answer, lines, visible, wait
from towline.inference.scorer import RowPredictions
from towline.prediction_log import segments
from towline.prediction_log.writer import PredictionLog

OCTOBER = datetime(2026, 10, 5, tzinfo=UTC).timestamp()
WRITER = """
import sys
from pathlib import Path
from tests.unit.prediction_log.conftest import PRIVACY, ROW, answer, make_release
from towline.prediction_log.writer import PredictionLog

folder = Path(sys.argv[1])
release = make_release(folder.parent / "release", PRIVACY)
log = PredictionLog(folder, "w0", segment_bytes=40_000, convert=False)
sent = 0
while True:
    if log.depth < 500:
        log.write(f"r{sent}", 1.79e9 + sent, release, [ROW, ROW], answer(2, sent))
        sent += 1
    if sent % 50 == 0:
        print(log.written, flush=True)
"""


def test_what_was_answered_is_in_the_segment(
    log: PredictionLog, folder: Path, releases: Callable[..., Release]
) -> None:
    """Id, time, version, inputs, prediction and probabilities, after a line that says what the columns are."""
    release = releases(classes=("no", "yes"))
    log.write("a1", OCTOBER, release, [ROW], RowPredictions(["yes"], [[0.25, 0.75]]))
    wait(lambda: log.written == 1)
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


def test_nothing_is_made_before_the_first_record(log: PredictionLog, folder: Path) -> None:
    """A service that answers nothing leaves no trace."""
    log.close()
    assert not folder.exists()


def test_written_and_dropped_are_what_was_sent(folder: Path, release: Release) -> None:
    """20,000 records in a burst into a queue of 1,000: each is written or counted as dropped."""
    log = PredictionLog(folder, "w0", capacity=1_000, convert=False)
    for number in range(20_000):
        log.write(f"r{number}", OCTOBER, release, [ROW], answer())
        assert len(log._queue) <= 1_000
    log.close()
    assert log.drops > 0
    assert log.depth == 0
    assert log.written + log.drops == 20_000
    ids = [line["id"] for line in lines(folder)]
    assert len(set(ids)) == len(ids) == log.written


def test_threads_may_share_a_log(folder: Path, release: Release) -> None:
    """Several callers at once lose no count."""
    log = PredictionLog(folder, "w0", capacity=500, convert=False)

    def send() -> None:
        for _ in range(2_000):
            log.write("r", OCTOBER, release, [ROW], answer())

    callers = [threading.Thread(target=send) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    log.close()
    assert log.written + log.drops == 8_000
    assert len(lines(folder)) == log.written


def test_a_request_of_many_rows(folder: Path, release: Release) -> None:
    """It is taken whole when nothing else waits, even beyond the capacity; each row keeps its place in the request."""
    log = PredictionLog(folder, "w0", capacity=100, convert=False)
    rows = [ROW | {"size": float(place)} for place in range(1_000)]
    log.write("big", OCTOBER, release, rows, RowPredictions([float(n) for n in range(1_000)], None))
    log.close()
    assert log.written == 1_000
    found = lines(folder)
    places = [line["first"] + place for line in found for place in range(len(line["rows"]))]
    assert places == [row[0] for line in found for row in line["rows"]] == list(range(1_000))
    assert [value for line in found for value in line["predictions"]] == list(range(1_000))


def test_a_kill_loses_nothing_that_was_flushed(tmp_path: Path) -> None:
    """SIGKILL in the midst of writing: every record up to the last that was told as written is there, and once."""
    folder = tmp_path / "predictions"
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(folder)], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY
    )
    assert process.stdout
    told = 0
    while told < 3_000:
        told = int(process.stdout.readline())
    process.send_signal(signal.SIGKILL)
    told = max([told, *map(int, process.stdout.read().split())])
    process.wait()
    ids = []
    for path in sorted((folder / "segments").glob("*.jsonl"), key=lambda path: path.stat().st_mtime_ns):
        ids += [json.loads(line)["id"] for line in path.read_bytes().split(b"\n")[1:-1]]
    assert ids == [f"r{number}" for number in range(len(ids))]
    assert 2 * len(ids) >= told >= 3_000


class Disk:
    """Stands before os.write: takes ``room`` bytes, then none until there is more."""

    def __init__(self, room: int) -> None:
        self.room, self.write, self.failed = room, os.write, 0

    def __call__(self, file: int, data: bytes) -> int:
        if not self.room:
            self.failed += 1
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        taken = self.write(file, data[: self.room])
        self.room -= taken
        return taken


def test_a_full_disk_leaves_whole_lines_and_passes(
    log: PredictionLog, folder: Path, release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What did not fit is taken back to the last whole line and written when there is room again: nothing is lost."""
    disk = Disk(3_000)
    monkeypatch.setattr(segments.os, "write", disk)
    for number in range(200):
        log.write(f"r{number}", OCTOBER, release, [ROW], answer())
        if number == 5:
            wait(lambda: log.written == 6)
    wait(lambda: disk.failed > 0 and log.depth > 0)
    assert len(lines(folder)) == log.written == 6
    assert log.depth == 194
    disk.room = 10**9
    wait(lambda: log.written == 200)
    assert log.drops == 0
    assert [line["id"] for line in lines(folder)] == [f"r{number}" for number in range(200)]


def test_a_tail_that_cannot_be_taken_back_is_taken_back_later(
    log: PredictionLog, folder: Path, release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where even the truncation fails, it comes before the next line."""
    truncate, broken = os.ftruncate, True

    def fails(file: int, size: int) -> None:
        if broken:
            raise OSError(errno.EIO, "the disk is gone")
        truncate(file, size)

    log.write("r0", OCTOBER, release, [ROW], answer())
    wait(lambda: log.written == 1)
    disk = Disk(100)
    monkeypatch.setattr(segments.os, "write", disk)
    monkeypatch.setattr(segments.os, "ftruncate", fails)
    log.write("r1", OCTOBER, release, [ROW], answer())
    wait(lambda: disk.failed > 0)
    disk.room, broken = 10**9, False
    wait(lambda: log.written == 2)
    assert [line["id"] for line in lines(folder)] == ["r0", "r1"]


def test_while_the_disk_is_full_memory_is_bounded(
    folder: Path, release: Release, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A limited number of lines waits, the rest is dropped; the reason is logged, a value never; closing ends."""
    monkeypatch.setattr(segments.os, "write", Disk(0))
    monkeypatch.setattr("towline.prediction_log.writer._MAX_PENDING_BYTES", 20_000)
    log = PredictionLog(folder, "w0", capacity=100, convert=False)
    for _ in range(3_000):
        log.write("r", OCTOBER, release, [ROW], answer())
        time.sleep(0.0001)
    assert log.depth < 300
    log.close(timeout=0.3)
    assert (log.written, log.drops, log.depth) == (0, 3_000, 0)
    assert "No space left on device" in caplog.text
    assert "Gasse" not in caplog.text
    log.write("late", OCTOBER, release, [ROW], answer())
    assert log.drops == 3_001


def test_a_real_full_disk(tmp_path: Path, release: Release) -> None:
    """The same on a file system of 64 KB, another process having filled it."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no file system may be mounted: {mounted.stderr.decode().strip()}")
    log = PredictionLog(disk / "demo", "w0", convert=False)
    try:
        log.write("r0", OCTOBER, release, [ROW], answer())
        wait(lambda: log.written == 1)
        with (disk / "filler").open("wb", buffering=0) as filler, pytest.raises(OSError, match="No space"):
            deque(iter(lambda: filler.write(b"x" * 4096), 0), maxlen=0)
        for number in range(1, 60):
            log.write(f"r{number}", OCTOBER, release, [ROW], answer())
        wait(lambda: log.depth > 0 and log._segments.failure is not None)
        assert {line["id"] for line in lines(disk / "demo")} == {f"r{n}" for n in range(log.written)}
        (disk / "filler").unlink()
        wait(lambda: log.written == 60)
        log.close()
        assert [line["id"] for line in lines(disk / "demo")] == [f"r{number}" for number in range(60)]
    finally:
        log.close(timeout=0.1)
        subprocess.run(["umount", str(disk)], check=True)


def test_what_tells_of_a_person_is_in_no_file(log: PredictionLog, folder: Path, release: Release) -> None:
    """Neither the personal columns nor the plain text of hashed ones, as a value or within one."""
    for number in range(50):
        log.write(f"r{number}", OCTOBER, release, [ROW], answer())
    log.close()
    content = visible(folder)
    assert len(content) > 10_000
    for secret in ("Gasse", "eva@", "803317715", "4711508", "A-100-Z7", "1985-02-11"):
        assert secret.encode() not in content


def test_versions_stand_side_by_side(log: PredictionLog, folder: Path, releases: Callable[..., Release]) -> None:
    """While one release replaces another, a segment holds both, each line by its own policy."""
    old, new = releases(version=1), releases({"pii": ["street", "town"]}, version=2)
    for number in range(6):
        log.write(f"r{number}", OCTOBER, (old, new)[number % 2], [ROW], answer())
    log.close()
    (path,) = (folder / "segments").iterdir()
    heads = [json.loads(line) for line in path.read_text().splitlines() if "fields" in line]
    assert [head["version"] for head in heads] == [1, 2]
    assert [(line["of"], len(line["rows"][0])) for line in lines(folder)] == [(1, 8), (2, 6)] * 3


def test_values_that_json_has_no_word_for(log: PredictionLog, folder: Path, releases: Callable[..., Release]) -> None:
    """Whatever a contract takes is logged with the same meaning."""
    odd = ROW | {
        "size": 10**30, "age": Decimal("41.5"), "zip": "\ud800x", "at": pd.Timestamp("2026-10-05 08:00"),
        "born": pd.NaT, "member": float("nan"), "town": 7.0,
    }  # fmt: skip
    log.write("\udfffid", OCTOBER, releases(), [odd], RowPredictions([float("inf")], None))
    log.close()
    (line,) = lines(folder)
    size, age, zip_, town, _, member, at, born = line["rows"][0]
    assert float(size) == 1e30
    assert float(age) == 41.5
    assert (zip_, town, member, born) == ("?x", 7.0, None, None)
    assert at == "2026-10-05 08:00:00"


def test_without_a_policy_nothing_is_logged(
    log: PredictionLog, folder: Path, release: Release, caplog: pytest.LogCaptureFixture
) -> None:
    """A release whose config cannot be read might hold personal data: its rows are dropped and counted."""
    (release.directory / "config.yaml").unlink()
    log.write("a", OCTOBER, release, [ROW, ROW], answer(2))
    wait(lambda: log.drops == 2)
    assert log.written == 0
    assert not (folder / "segments").exists()
    assert "not logged" in caplog.text


def test_a_key_that_cannot_be_made_is_made_later(
    log: PredictionLog, folder: Path, release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until then nothing is logged in plain text; it is tried now and then, not for each row."""
    tried = 0

    def full(*_: object) -> None:
        nonlocal tried
        tried += 1
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("towline.prediction_log.privacy.os.link", full)
        for _ in range(500):
            log.write("r", OCTOBER, release, [ROW], answer())
        wait(lambda: log.drops == 500)
        assert tried <= 3
    wait(lambda: log.write("later", OCTOBER, release, [ROW], answer()) or log.written > 0)
    assert {line["id"] for line in lines(folder)} == {"later"}


@pytest.mark.parametrize("reason", ["size", "age", "asked", "removed"])
def test_segments_are_closed(folder: Path, release: Release, monkeypatch: pytest.MonkeyPatch, reason: str) -> None:
    """When they are large, old, asked for, or taken away; the next record opens another."""
    monkeypatch.setattr("towline.prediction_log.writer._MAINTENANCE_S", 0.1)
    limits = {"size": {"segment_bytes": 100}, "age": {"segment_seconds": 0.1}}.get(reason, {})
    log = PredictionLog(folder, "w0", convert=False, **limits)
    log.write("a", OCTOBER, release, [ROW], answer())
    wait(lambda: log.written == 1)
    (first,) = segments.list_segments(folder)
    if reason == "asked":
        assert list(segments.finished_segments(folder)) == []
        segments.request_roll(folder)
    if reason == "removed":
        first.unlink()
    wait(lambda: list(segments.finished_segments(folder)) == [first] or log._segments._file < 0)
    log.write("b", OCTOBER, release, [ROW], answer())
    wait(lambda: log.written == 2)
    assert "b" in [line["id"] for line in lines(folder)]
    assert first not in (set(segments.list_segments(folder)) - set(segments.finished_segments(folder)))
    log.close()


def test_the_service_loads_no_table_library() -> None:
    """Neither pandas nor pyarrow comes with the log."""
    code = "import sys, towline.prediction_log.writer; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"pandas", "pyarrow", "sklearn", "sqlalchemy"} & set(done.stdout.split())
