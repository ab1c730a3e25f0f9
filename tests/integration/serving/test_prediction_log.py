"""The prediction log with killed processes, concurrent processes and a full disk."""

import json
import math
import random
import signal
import subprocess
import sys
import time
from collections import Counter, deque
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.support.paths import REPOSITORY
from tests.support.prediction_log import (
    FIRST_TIME,
    PRIVACY,
    ROW,
    FakeRelease,
    fill_log,
    logged_ids,
    make_fake_release,
    make_predictions,
    read_segment_lines,
)
from tests.support.waiting import wait_until
from towline.prediction_log import parquet_store, segments
from towline.prediction_log.writer import PredictionLog


@pytest.mark.slow
def test_converters_killed_at_random(folder: Path, release: FakeRelease) -> None:
    """Repeated SIGKILL of the real process while services write: each prediction is in the log once at the end."""
    command = [sys.executable, "-m", "towline.prediction_log.maintenance", str(folder)]
    for start in range(0, 1_200, 100):
        fill_log(folder, release, range(start, start + 100), rows=2)
    started = time.monotonic()
    subprocess.run([sys.executable, "-c", "import towline.prediction_log.maintenance"], check=True)
    import_seconds = time.monotonic() - started
    killed = 0
    for _ in range(8):
        process = subprocess.Popen(command, cwd=REPOSITORY)
        time.sleep(import_seconds * random.uniform(0.8, 1.6))
        killed += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert set(Counter(logged_ids(folder)).values()) == {2}
    subprocess.run(command, cwd=REPOSITORY, check=True)
    assert Counter(logged_ids(folder)) == dict.fromkeys((f"r{number}" for number in range(1_200)), 2)
    assert segments.list_segments(folder) == []


def test_segments_are_converted_by_another_process(folder: Path, tmp_path: Path) -> None:
    """A separate process converts its segments and those of ended services; the service does not wait for it."""
    release = make_fake_release(tmp_path / "release", PRIVACY)
    fill_log(folder, release, range(5))
    log = PredictionLog(folder, "w1")
    log.write("last", FIRST_TIME.timestamp(), release, [ROW], make_predictions())
    log.close()
    wait_until(lambda: not segments.list_segments(folder))
    assert len(logged_ids(folder)) == 6
    assert not math.isnan(parquet_store.read_predictions(folder).column("prediction")[0].as_py())


OCTOBER = datetime(2026, 10, 5, tzinfo=UTC).timestamp()
WRITER = """
import sys
from pathlib import Path
from tests.support.prediction_log import FIRST_TIME, PRIVACY, ROW, fill_log, logged_ids
from tests.support.prediction_log import make_fake_release, make_predictions
from towline.prediction_log.writer import PredictionLog

folder = Path(sys.argv[1])
release = make_fake_release(folder.parent / "release", PRIVACY)
log = PredictionLog(folder, "w0", segment_bytes=40_000, convert=False)
sent = 0
while True:
    if log.depth < 500:
        log.write(f"r{sent}", 1.79e9 + sent, release, [ROW, ROW], make_predictions(2, sent))
        sent += 1
    if sent % 50 == 0:
        print(log.written, flush=True)
"""


def test_a_kill_loses_nothing_that_was_flushed(tmp_path: Path) -> None:
    """After SIGKILL, every record that the writer reported as written is in the log once."""
    folder = tmp_path / "predictions"
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(folder)], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY
    )
    assert process.stdout
    reported = 0
    while reported < 3_000:
        reported = int(process.stdout.readline())
    process.send_signal(signal.SIGKILL)
    reported = max([reported, *map(int, process.stdout.read().split())])
    process.wait()
    ids = []
    for path in sorted((folder / "segments").glob("*.jsonl"), key=lambda path: path.stat().st_mtime_ns):
        ids += [json.loads(line)["id"] for line in path.read_bytes().split(b"\n")[1:-1]]
    assert ids == [f"r{number}" for number in range(len(ids))]
    assert 2 * len(ids) >= reported >= 3_000


def test_a_real_full_disk(tmp_path: Path, release: FakeRelease) -> None:
    """All rows are written after another process has freed a full file system of 64 KB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no file system may be mounted: {mounted.stderr.decode().strip()}")
    log = PredictionLog(disk / "demo", "w0", convert=False)
    try:
        log.write("r0", OCTOBER, release, [ROW], make_predictions())
        wait_until(lambda: log.written == 1)
        with (disk / "filler").open("wb", buffering=0) as filler, pytest.raises(OSError, match="No space"):
            deque(iter(lambda: filler.write(b"x" * 4096), 0), maxlen=0)
        for number in range(1, 60):
            log.write(f"r{number}", OCTOBER, release, [ROW], make_predictions())
        wait_until(lambda: log.depth > 0 and log._segments.failure is not None)
        assert {line["id"] for line in read_segment_lines(disk / "demo")} == {f"r{n}" for n in range(log.written)}
        (disk / "filler").unlink()
        wait_until(lambda: log.written == 60)
        log.close()
        assert [line["id"] for line in read_segment_lines(disk / "demo")] == [f"r{number}" for number in range(60)]
    finally:
        log.close(timeout=0.1)
        subprocess.run(["umount", str(disk)], check=True)


def test_concurrent_processes_use_one_hash_key(tmp_path: Path) -> None:
    """If several processes need a new key at the same time, all use the first one."""
    code = (
        "import sys, pathlib; from towline.prediction_log.privacy import HashKeys;"
        "print(HashKeys(pathlib.Path(sys.argv[1])).month_key('2026-10').hex())"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "k")], stdout=subprocess.PIPE) for _ in range(4)
    ]
    assert len({process.communicate(timeout=60)[0] for process in processes}) == 1
    assert [path.name for path in (tmp_path / "k").iterdir()] == ["2026-10"]
