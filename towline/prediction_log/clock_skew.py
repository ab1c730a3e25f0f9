"""A clock that was set back: predictions that are dated before ones that were written earlier.

The order in which one worker wrote counts; that several write at once, or that parts are merged, is nothing odd. What
was found in a segment is kept beside the parts when it becomes some, so that whoever reads them need not look for it.
"""

import datetime as dt
import os
from collections.abc import Iterable
from pathlib import Path

import orjson

from towline import files
from towline.config import Frozen

PREVIOUS_CLOCK = "after"  # the only key of a line that says what a segment's clock had been at before it began
TOLERANCE = dt.timedelta(minutes=5)  # of several requests one may be answered, or written, long after it came
FILE = "clock.jsonl"
_MARK = ".opened"  # its time is that at which a segment was last begun or ended
_MAX_SKEWS = 20  # of one segment
_SLACK = TOLERANCE // dt.timedelta(microseconds=1)


class ClockSkew(Frozen):
    """A clock that went from ``before`` to ``after``, as one segment shows it.

    Attributes:
        source: the segment.
        rows: that are dated before ``before``, but for the tolerance.
        back: how far at most, in seconds.
    """

    source: str
    before: dt.datetime
    after: dt.datetime
    rows: int
    back: float

    @property
    def worker(self) -> str:
        return self.source.rsplit("-", 2)[0]


class ClockSkewDetector:
    """The times of one segment as they were written; ``found`` is what is odd about them."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._newest = 0
        self._found: dict[int, list[int]] = {}  # newest before → first after, rows, furthest

    def observe(self, at: int, rows: int) -> None:
        """Rows that were dated ``at``, in microseconds; none where a clock is only known to have been there."""
        if at >= self._newest:
            self._newest = at
        elif rows and self._newest - at > _SLACK:
            known = self._found.get(self._newest)
            if known is not None:
                known[1] += rows
                known[2] = max(known[2], self._newest - at)
            elif len(self._found) < _MAX_SKEWS:
                self._found[self._newest] = [at, rows, self._newest - at]

    @property
    def skews(self) -> list[ClockSkew]:
        return [
            ClockSkew(
                source=self._source, before=_to_datetime(before), after=_to_datetime(after), rows=rows, back=far / 1e6
            )
            for before, (after, rows, far) in self._found.items()
        ]


def segment_start_line(folder: Path, now: float) -> bytes:
    """Notes that a segment begins; a line to begin it with where the clock was ahead of now before."""
    mark = folder / _MARK
    try:
        before = mark.stat().st_mtime
    except OSError:
        before = 0.0
    record_clock(folder)
    return (
        orjson.dumps({PREVIOUS_CLOCK: int(before * 1e6)}) + b"\n" if now < before - TOLERANCE.total_seconds() else b""
    )


def record_clock(folder: Path) -> None:
    """Notes what the clock says."""
    os.close(os.open(folder / _MARK, os.O_WRONLY | os.O_CREAT, 0o600))
    os.utime(folder / _MARK)


def write_skews(folder: Path, found: Iterable[ClockSkew]) -> None:
    """Writes down what a segment showed; for callers that hold the folder. Twice does no harm."""
    for one in found:
        files.append(folder / FILE, orjson.dumps(one.model_dump(mode="json"), option=orjson.OPT_APPEND_NEWLINE))


def read_skews(folder: Path) -> list[ClockSkew]:
    """What was written down, each once."""
    return list({(one.source, one.before): one for one in files.records(folder / FILE, ClockSkew)}.values())


def _to_datetime(microseconds: int) -> dt.datetime:
    return dt.datetime.fromtimestamp(0, dt.UTC) + dt.timedelta(microseconds=microseconds)
