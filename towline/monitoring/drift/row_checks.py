"""Checks of whole rows rather than of columns: repeated rows, and timestamps that cannot be right.

Both are collected while the rows of a window are read. They never raise an alarm themselves; they explain a verdict.
"""

import datetime as dt
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from towline.data.schema.contract import Column
from towline.formatting import format_time
from towline.monitoring.drift.histograms import buffer_to_numpy
from towline.monitoring.results import CLOCK, DriftCheckResult, DriftResult
from towline.prediction_log.clock_skew import TOLERANCE, ClockSkew, read_skews

REPEATED_ROWS = "repeated rows"
ROWS = "rows"  # the column name in the results of these checks
MIN_REPEATED_EXCESS = 0.2  # share of repeated rows beyond that of the training rows
SAMPLE_ROWS = 2_048
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # of Fibonacci hashing
_SHIFT = np.uint64(31)
_SCHEDULE_TOLERANCE = dt.timedelta(hours=1)  # a run whose time is further from the clock was started with --as-of


class RepeatedRows:
    """The share of rows that are equal to an earlier one, estimated on a sample.

    The sample holds the rows whose value in one column has a small hash, so of equal rows it holds all or none. A day
    of data that was sent twice shows in it, whatever was sent in between.

    Args:
        columns: the features. The numeric column with the most distinct values selects the sample; if none has many,
            nothing is counted.
    """

    def __init__(self, columns: Sequence[Column]) -> None:
        numeric = [column for column in columns if column.kind == "numeric" and column.levels >= 50]
        self._key = max(numeric, key=lambda column: column.levels).name if numeric else None
        self._names = [column.name for column in columns]
        self._max_hash = np.uint64(2**64 - 1)
        self._sample: dict[int, np.uint64] = {}  # hash of a row → hash of its key
        self._copies: dict[int, int] = {}

    @property
    def share(self) -> float:
        """Repeated rows as a share of the sample."""
        copies = sum(self._copies.values())
        return copies / (copies + len(self._sample)) if self._sample else 0.0

    def add(self, rows: pa.Table | pa.RecordBatch) -> None:
        names = rows.schema.names
        if self._key is None or len(set(names)) < len(names) or self._key not in names or not rows.num_rows:
            return
        for batch in rows.to_batches() if isinstance(rows, pa.Table) else [rows]:
            hashes = _number_bits(batch.column(self._key))
            if hashes is None:
                return
            np.multiply(hashes ^ (hashes >> _SHIFT), _MULTIPLIER, out=hashes)
            positions = np.flatnonzero(hashes <= self._max_hash)
            while len(positions) > 2 * SAMPLE_ROWS:
                self._halve_sample()
                positions = positions[hashes[positions] <= self._max_hash]
            if len(positions):
                self._add_to_sample(batch, _to_arrow(positions), hashes[positions])
            while len(self._sample) > SAMPLE_ROWS:
                self._halve_sample()

    def check(self, training_share: float) -> DriftCheckResult | None:
        """The result, if far more rows are repeated than in the training rows; else None."""
        if self.share <= training_share + MIN_REPEATED_EXCESS:
            return None
        detail = (
            f"{self.share:.0%} of the rows repeat an earlier row ({training_share:.0%} of the training rows do); "
            "was data sent twice?"
        )
        return DriftCheckResult(column=ROWS, name=REPEATED_ROWS, value=self.share, detail=detail)

    def _add_to_sample(self, rows: pa.RecordBatch, positions: pa.Array, key_hashes: np.ndarray) -> None:
        row_hashes = key_hashes.copy()
        for name in self._names:
            if name in rows.schema.names:
                np.multiply(row_hashes ^ (row_hashes >> _SHIFT), _MULTIPLIER, out=row_hashes)
                row_hashes ^= _hash_values(rows.column(name), positions)
        for row_hash, key_hash in zip(row_hashes.tolist(), key_hashes, strict=True):
            if row_hash in self._sample:
                self._copies[row_hash] = self._copies.get(row_hash, 0) + 1
            else:
                self._sample[row_hash] = key_hash

    def _halve_sample(self) -> None:
        if self._max_hash < SAMPLE_ROWS:  # the column holds a single value
            self._key = None
            self._sample, self._copies = {}, {}
        self._max_hash = np.uint64(self._max_hash >> np.uint64(1))
        self._sample = {row: key for row, key in self._sample.items() if key <= self._max_hash}
        self._copies = {row: count for row, count in self._copies.items() if row in self._sample}


class ClockCheck:
    """Finds rows with wrong timestamps: a clock that was set back, or runs ahead, moves rows out of their window.

    Args:
        start: start of the window.
        end: end of the window, not included.
        now: the current time of this machine.
    """

    def __init__(self, start: dt.datetime, end: dt.datetime, now: dt.datetime) -> None:
        self.start, self.end = start, end
        self.latest_valid = max(end, now) + TOLERANCE
        self._skews: dict[tuple[str, dt.datetime], ClockSkew] = {}
        self._future_rows = 0
        self._latest = self.latest_valid
        self._earlier_run: DriftCheckResult | None = None

    def add_log(self, folder: Path) -> None:
        """Reads the log's metadata, for callers that hold the lock of the log's folder."""
        from towline.prediction_log import parquet_store  # needs orjson, which batch scoring does without

        self.add_skews(read_skews(folder))
        for part in parquet_store.list_parts(folder, self.latest_valid.date()):
            file = parquet_store.open_part(part.path)
            if part.day > self.latest_valid.date() or _latest_time(file.metadata) > self.latest_valid:
                self.add_times(file.read(columns=["time"])["time"])

    def add_skews(self, skews: Sequence[ClockSkew]) -> None:
        self._skews.update({(skew.source, skew.before): skew for skew in skews})

    def add_times(self, times: pa.ChunkedArray) -> None:
        """Counts those in the future."""
        if len(times) and (latest := pc.max(times).as_py()) > self.latest_valid:
            self._future_rows += pc.sum(pc.greater(times, pa.scalar(self.latest_valid, times.type))).as_py()
            self._latest = max(self._latest, latest)

    def add_earlier_runs(self, windows: Sequence[DriftResult], now: dt.datetime) -> None:
        """Compares with earlier windows. If one ends after this one, the clock was set back in between."""
        latest = max((window.end for window in windows if window.end), default=None)
        scheduled = abs(now - self.end) < _SCHEDULE_TOLERANCE
        if latest is not None and scheduled and latest > max(now, self.end) + TOLERANCE:
            detail = (
                f"an earlier monitoring run ended at {format_time(latest)} UTC, {_format_span(latest - self.end)} "
                "after this one: the clock was set back"
            )
            self._earlier_run = _clock_result(0.0, detail)

    def results(self, rows: int) -> list[DriftCheckResult]:
        """At most one result each for an earlier run, rows dated too early, and rows dated in the future."""
        results = [self._earlier_run] if self._earlier_run else []
        skews = [skew for skew in self._skews.values() if self._is_in_window(skew)]
        if skews:
            largest = max(skews, key=lambda skew: skew.back)
            count = sum(skew.rows for skew in skews)
            workers = len({skew.worker for skew in skews})
            more = f" and {workers - 1} more workers" if workers > 1 else ""
            detail = (
                f"{count:,} rows are dated up to {_format_span(dt.timedelta(seconds=largest.back))} before rows that "
                f"were written earlier (worker {largest.worker}{more}, from {format_time(largest.before)} UTC to "
                f"{format_time(largest.after)} UTC): the clock was set back, and rows dated before this window "
                "were not checked"
            )
            results.append(_clock_result(min(1.0, count / max(rows, count)), detail))
        if self._future_rows:
            detail = (
                f"{self._future_rows:,} rows are dated in the future, up to {format_time(self._latest)} UTC: a clock "
                "is, or was, ahead"
            )
            results.append(_clock_result(min(1.0, self._future_rows / max(rows, self._future_rows)), detail))
        return results

    def _is_in_window(self, skew: ClockSkew) -> bool:
        return any(self.start <= moment < self.end for moment in (skew.before, skew.after))


def _clock_result(share: float, detail: str) -> DriftCheckResult:
    return DriftCheckResult(column=ROWS, name=CLOCK, value=share, detail=detail)


def _to_arrow(positions: np.ndarray) -> pa.Array:
    """``pa.array`` does the same but imports pandas."""
    return pa.Array.from_buffers(pa.int64(), len(positions), [None, pa.py_buffer(positions.astype(np.int64))])


def _number_bits(values: pa.Array) -> np.ndarray | None:
    """(n,) uint64, the bits of the numbers, 0 for null; None if the values are not numbers."""
    if pa.types.is_timestamp(values.type):
        values = values.cast(pa.int64())
    kind = values.type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        return None
    floats = values.cast(pa.float64(), safe=False)
    bits: np.ndarray = buffer_to_numpy(floats).view(np.uint64).copy()
    bits[_is_null(floats)] = 0
    return bits


def _is_null(values: pa.Array) -> np.ndarray:
    """(n,) bool. The data buffer holds arbitrary numbers there."""
    if not values.null_count:
        return np.zeros(len(values), dtype=bool)
    valid = np.unpackbits(np.frombuffer(values.buffers()[0], np.uint8), bitorder="little")
    null: np.ndarray = valid[values.offset : values.offset + len(values)] == 0
    return null


def _hash_values(column: pa.Array, positions: pa.Array) -> np.ndarray:
    """(n,) uint64 of the values at some positions, equal for equal values; 0 for values that cannot be read (lists)."""
    try:
        values = column.take(positions)
        bits = _number_bits(values)
        if bits is not None:
            return bits
        encoded = values if pa.types.is_dictionary(values.type) else values.dictionary_encode()
        hashes = [hash(value) & (2**64 - 1) for value in encoded.dictionary.to_pylist()]
        places = np.where(_is_null(encoded.indices), len(hashes), buffer_to_numpy(encoded.indices))
        return np.array([*hashes, 0], dtype=np.uint64)[places]
    except (pa.ArrowException, TypeError, ValueError):
        return np.zeros(len(positions), dtype=np.uint64)


def _latest_time(footer: Any) -> dt.datetime:
    """The latest time in a Parquet file by its footer, or the maximum datetime if the footer has no statistics."""
    latest = dt.datetime.min.replace(tzinfo=dt.UTC)
    position = footer.schema.names.index("time")
    for number in range(footer.num_row_groups):
        statistics = footer.row_group(number).column(position).statistics
        if statistics is None or not statistics.has_min_max:
            return dt.datetime.max.replace(tzinfo=dt.UTC)
        latest = max(latest, statistics.max)
    return latest


def _format_span(length: dt.timedelta) -> str:
    minutes = round(length / dt.timedelta(minutes=1))
    if minutes < 120:
        return f"{minutes} minutes"
    return f"{minutes / 60:.1f} hours" if minutes < 2880 else f"{minutes / 1440:.1f} days"
