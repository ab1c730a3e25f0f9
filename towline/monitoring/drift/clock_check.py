"""What is odd about the time of predictions: a clock that was set back, or is ahead, leads rows past their window."""

import datetime as dt
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from towline.monitoring.results import DriftCheckResult, DriftResult
from towline.prediction_log import parquet_store
from towline.prediction_log.clock_skew import TOLERANCE, ClockSkew, read_skews

WHAT = "clock"
_AROUND = dt.timedelta(hours=1)  # a round whose time is not that of the clock was asked for by hand


class Clock:
    """Collects it while the rows of a window are read.

    Args:
        start: of the window.
        end: of the window, not included.
        now: what the clock says.
    """

    def __init__(self, start: dt.datetime, end: dt.datetime, now: dt.datetime) -> None:
        self.start, self.end = start, end
        self.limit = max(end, now) + TOLERANCE
        self._back: dict[tuple[str, dt.datetime], ClockSkew] = {}
        self._ahead = 0
        self._last = self.limit
        self._rounds: DriftCheckResult | None = None

    def log(self, folder: Path) -> None:
        """What is known of the parts of a log, read from their footers; for callers that hold the folder."""
        self.back(read_skews(folder))
        for part in parquet_store.list_parts(folder, self.limit.date()):
            file = parquet_store.open_part(part.path)
            if part.day > self.limit.date() or _newest(file.metadata) > self.limit:
                self.times(file.read(columns=["time"])["time"])

    def back(self, found: Sequence[ClockSkew]) -> None:
        """Segments that were turned into parts are known from there."""
        self._back.update({(one.source, one.before): one for one in found})

    def times(self, times: pa.ChunkedArray) -> None:
        """Of rows: those in the future are counted."""
        if len(times) and (last := pc.max(times).as_py()) > self.limit:
            self._ahead += pc.sum(pc.greater(times, pa.scalar(self.limit, times.type))).as_py()
            self._last = max(self._last, last)

    def rounds(self, nights: Sequence[DriftResult], now: dt.datetime) -> None:
        """Earlier rounds; one whose window ends after this one was made by a clock that has been set back since."""
        last = max((night.end for night in nights if night.end), default=None)
        if last is not None and abs(now - self.end) < _AROUND and last > max(now, self.end) + TOLERANCE:
            told = f"an earlier round ended at {_told(last)}, {_span(last - self.end)} after this one"
            self._rounds = _finding(f"{told}: the clock was set back", 0.0)

    def results(self, rows: int) -> list[DriftCheckResult]:
        """One for the rows that are dated too early, one for those in the future, one for the rounds."""
        found = [self._rounds] if self._rounds else []
        mine = [one for one in self._back.values() if any(self.start <= t < self.end for t in (one.before, one.after))]
        if mine:
            worst = max(mine, key=lambda one: one.back)
            count = sum(one.rows for one in mine)
            workers = sorted({one.worker for one in mine})
            more = f" and {len(workers) - 1} more workers" if len(workers) > 1 else ""
            told = (
                f"{count:,} rows are dated up to {_span(dt.timedelta(seconds=worst.back))} before rows that were"
                f" written earlier (worker {worst.worker}{more}, from {_told(worst.before)} to {_told(worst.after)}):"
                " the clock was set back, and rows that are dated before this window were not looked at"
            )
            found.append(_finding(told, min(1.0, count / max(rows, count))))
        if self._ahead:
            told = f"{self._ahead:,} rows are dated in the future, up to {_told(self._last)}: a clock is, or was, ahead"
            found.append(_finding(told, min(1.0, self._ahead / max(rows, self._ahead))))
        return found


def _finding(told: str, share: float) -> DriftCheckResult:
    return DriftCheckResult(column="rows", name=WHAT, value=share, threshold=None, alarm=False, detail=told)


def _newest(footer: "object") -> dt.datetime:
    """Of a part's times, as its footer has it; the end of time where it has not."""
    end = dt.datetime.max.replace(tzinfo=dt.UTC)
    newest = dt.datetime.min.replace(tzinfo=dt.UTC)
    place = footer.schema.names.index("time")  # type: ignore[attr-defined]
    for number in range(footer.num_row_groups):  # type: ignore[attr-defined]
        found = footer.row_group(number).column(place).statistics  # type: ignore[attr-defined]
        newest = max(newest, found.max if found is not None and found.has_min_max else end)
    return newest


def _told(moment: dt.datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC"


def _span(length: dt.timedelta) -> str:
    minutes = round(length / dt.timedelta(minutes=1))
    if minutes < 120:
        return f"{minutes} minutes"
    return f"{minutes / 60:.1f} hours" if minutes < 2880 else f"{minutes / 1440:.1f} days"
