"""A segment is a file of JSON lines to which one worker appends its predictions.

An open segment is locked by its writer. The lock ends with the process, so a segment without a lock is finished. Lines
that were flushed stay complete if the process is killed.
"""

import contextlib
import fcntl
import os
import re
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

from towline.prediction_log import clock_skew

FOLDER = "segments"
ROLL = "roll"  # a new modification time of this file makes the writers close their segments
_RETRY = 1.0  # seconds
_BLOCK = 500  # lines per write


class SegmentWriter:
    """Collects lines and appends them to the open segment.

    Args:
        folder: ``predictions/<name>`` of the store; made when the first line is written.
        worker: name of the process; part of the names of its segments.
        max_bytes: size at which a segment is closed.
        max_seconds: age at which a segment is closed.

    Attributes:
        waiting: number of rows in lines that are not written yet.
        bytes: size of the lines that are not written yet.
        failure: error of the last attempt to write; None if it succeeded.
    """

    def __init__(self, folder: Path, worker: str, max_bytes: int, max_seconds: float) -> None:
        self.folder = folder
        self.waiting = self.bytes = 0
        self.failure: OSError | None = None
        self._worker = re.sub(r"[^\w.-]", "_", worker)
        self._max_bytes, self._max_seconds = max_bytes, max_seconds
        self._lines: list[tuple[bytes, int]] = []
        self._heads: dict[int, bytes] = {}
        self._headed: set[int] = set()
        self._file = -1
        self._first = b""
        self._size = 0
        self._torn = False
        self._opened = self._retry = 0.0
        self._rolled = 0

    def add(self, version: int, head: bytes, line: bytes, rows: int) -> None:
        """Adds one or more lines; ``head`` describes the lines of ``version`` and is written once, before the first."""
        self._heads[version] = head
        self._lines.append((line, rows))
        self.waiting += rows
        self.bytes += len(line)

    def flush(self) -> int:
        """Writes the added lines; returns the number of rows written, 0 while the disk fails."""
        now = time.monotonic()
        if not self._lines or (self.failure and now < self._retry):
            return 0
        before = self.waiting
        try:
            if self._file < 0:
                self._open()
            if self._first:
                self._append(self._first)
                self._first = b""
            for version in self._heads.keys() - self._headed:
                self._append(self._heads[version])
                self._headed.add(version)
            while block := self._lines[:_BLOCK]:
                self._append(b"".join(line for line, _ in block))
                del self._lines[:_BLOCK]
                self.waiting -= sum(rows for _, rows in block)
                self.bytes -= sum(len(line) for line, _ in block)
            self._heads, self.failure = {}, None
        except OSError as error:
            self.failure, self._retry = error, now + _RETRY
        return before - self.waiting

    def is_due(self) -> bool:
        """Whether to close the open segment: it is large or old, a roll was requested, or the file was removed."""
        if self._file < 0:
            return False
        return (
            self._size >= self._max_bytes
            or time.monotonic() - self._opened >= self._max_seconds
            or self._roll_request() != self._rolled
            or os.fstat(self._file).st_nlink == 0
        )

    def roll(self) -> None:
        """Closes the open segment; the next line opens another."""
        if self._file < 0:
            return
        with contextlib.suppress(OSError):
            if self._torn:
                os.ftruncate(self._file, self._size)
            os.fsync(self._file)
            clock_skew.record_clock(self.folder)
        os.close(self._file)
        self._file, self._headed, self._torn = -1, set(), False

    def has_finished(self) -> bool:
        """Whether there are finished segments, of this process or of one that ended."""
        return next(finished_segments(self.folder), None) is not None

    def _append(self, data: bytes) -> None:
        if self._torn:
            os.ftruncate(self._file, self._size)
            self._torn = False
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._file, view) :]
        except OSError:
            self._torn = True
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, self._size)
                self._torn = False
            raise
        self._size += len(data)

    def _open(self) -> None:
        home = self.folder / FOLDER
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        home.mkdir(exist_ok=True)
        name = f"{self._worker}-{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{secrets.token_hex(4)}"
        draft = home / f".{name}"  # hidden until it is locked: without a lock it would count as finished
        file = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            rolled = self._roll_request()
            self._first = clock_skew.segment_start_line(self.folder, time.time())
            draft.rename(home / f"{name}.jsonl")
        except BaseException:
            os.close(file)
            draft.unlink(missing_ok=True)
            raise
        self._file, self._size, self._opened, self._rolled, self._headed = file, 0, time.monotonic(), rolled, set()

    def _roll_request(self) -> int:
        try:
            return (self.folder / ROLL).stat().st_mtime_ns
        except OSError:
            return 0


def list_segments(folder: Path) -> list[Path]:
    """Every segment, open or finished."""
    return sorted((folder / FOLDER).glob("*.jsonl"))


def finished_segments(folder: Path) -> Iterator[Path]:
    """The segments that no running process writes to."""
    for path in list_segments(folder):
        try:
            file = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            continue
        try:
            # shared, so that several readers can check at the same time
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        finally:
            os.close(file)
        yield path


def request_roll(folder: Path) -> None:
    """Makes the running writers close their segments, within about a second."""
    (folder / ROLL).touch()
