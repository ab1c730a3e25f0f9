"""Clock skew: the clock was set back, so that predictions have earlier times than predictions written before them.

Only the order of the rows in one worker's segment counts; concurrent writes of several workers are not clock skew. The
skews of a segment are stored in ``clock.jsonl`` when it is converted to Parquet, which does not keep that order.
"""

import datetime as dt
import json
import os
from collections.abc import Iterable
from pathlib import Path

from towline import files
from towline.config import Frozen

# the only key of a segment's first line, which holds the time of the clock before the segment began
PREVIOUS_CLOCK = "after"
TOLERANCE = dt.timedelta(minutes=5)  # requests are not always answered and written in their order
FILE = "clock.jsonl"
_MARK = ".opened"  # its modification time is when a segment was last begun or ended
_MAX_SKEWS = 20  # per segment
_SLACK = TOLERANCE // dt.timedelta(microseconds=1)


class ClockSkew(Frozen):
    """The clock of one segment went back from ``before`` to ``after``.

    Attributes:
        source: name of the segment.
        rows: number of rows dated before ``before`` by more than the tolerance.
        back: largest step back, in seconds.
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
    """Finds clock skews in the times of one segment, in the order in which they were written."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._newest = 0
        self._skews: dict[int, list[int]] = {}  # newest before → first after, rows, furthest

    def observe(self, at: int, rows: int) -> None:
        """Adds rows dated ``at``, in microseconds; ``rows`` is 0 if only the time of the clock is known."""
        if at >= self._newest:
            self._newest = at
        elif rows and self._newest - at > _SLACK:
            known = self._skews.get(self._newest)
            if known is not None:
                known[1] += rows
                known[2] = max(known[2], self._newest - at)
            elif len(self._skews) < _MAX_SKEWS:
                self._skews[self._newest] = [at, rows, self._newest - at]

    @property
    def skews(self) -> list[ClockSkew]:
        return [
            ClockSkew(
                source=self._source, before=_to_datetime(before), after=_to_datetime(after), rows=rows, back=far / 1e6
            )
            for before, (after, rows, far) in self._skews.items()
        ]


def segment_start_line(folder: Path, now: float) -> bytes:
    """Records that a segment begins; returns its first line if the clock was ahead before, else an empty one."""
    mark = folder / _MARK
    try:
        before = mark.stat().st_mtime
    except OSError:
        before = 0.0
    record_clock(folder)
    went_back = now < before - TOLERANCE.total_seconds()
    return json.dumps({PREVIOUS_CLOCK: int(before * 1e6)}).encode() + b"\n" if went_back else b""


def record_clock(folder: Path) -> None:
    """Records the present time of the clock."""
    os.close(os.open(folder / _MARK, os.O_WRONLY | os.O_CREAT, 0o600))
    os.utime(folder / _MARK)


def write_skews(folder: Path, skews: Iterable[ClockSkew]) -> None:
    """Stores the skews of a segment, for callers that hold the lock; a skew may be written twice."""
    for skew in skews:
        files.append(folder / FILE, skew.model_dump_json().encode() + b"\n")


def read_skews(folder: Path) -> list[ClockSkew]:
    """The stored skews, without duplicates."""
    skews = files.read_records(folder / FILE, ClockSkew)
    return list({(skew.source, skew.before): skew for skew in skews}.values())


def _to_datetime(microseconds: int) -> dt.datetime:
    return dt.datetime.fromtimestamp(0, dt.UTC) + dt.timedelta(microseconds=microseconds)
