"""What current rows look like on the grid of a release's profile: one pass, in memory that does not grow with them."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from towline.data.schema.contract import Column, Contract
from towline.data.schema.values import LARGEST, parse_number

SLICE = 65_536  # values at once: they then stay in the cache


@dataclass
class Numbers:
    """Counts on a profile's grid.

    Attributes:
        cells: (cells,) int64.
        below, above: values beyond the grid.
        below_sum, above_sum: of these.
        total: the sum of all values.
        out_of_range: values beyond what training saw.
    """

    cells: np.ndarray
    below: int = 0
    above: int = 0
    below_sum: float = 0.0
    above_sum: float = 0.0
    total: float = 0.0
    out_of_range: int = 0


@dataclass
class Levels:
    """``counts`` of the levels that the profile names; ``other``: the rest; ``unseen``: those training never saw."""

    counts: Counter[str] = field(default_factory=Counter)
    other: int = 0
    unseen: int = 0
    examples: list[str] = field(default_factory=list)


@dataclass
class ColumnStats:
    """One column of current rows.

    Attributes:
        kind: as in the contract.
        rows: rows in which the column was there.
        nulls: of these, without a value.
        unfit: values that are not of the kind, or beyond all that can be summed; in no other count.
        numbers: of a numeric or boolean column whose profile has a grid.
        levels: of a category.
    """

    kind: str
    rows: int = 0
    nulls: int = 0
    unfit: int = 0
    numbers: Numbers | None = None
    levels: Levels | None = None

    @property
    def count(self) -> int:
        """Values that were there and fit."""
        return self.rows - self.nulls - self.unfit


class HistogramAccumulator:
    """Counts rows against a profile.

    Args:
        profile: ``profile.json`` of a release.
        contract: of the same.

    Attributes:
        rows: counted so far.
        columns: what was seen of each feature.
        strange: columns of the rows that the contract does not know.
    """

    def __init__(self, profile: Mapping[str, Any], contract: Contract) -> None:
        self.rows = 0
        self.columns: dict[str, ColumnStats] = {}
        self.strange: set[str] = set()
        self._known = {column.name for column in contract.columns}
        self._counters: list[_Numeric | _Category | _Moment | _Presence] = []
        for column in contract.feature_columns:
            facts = profile["columns"][column.name]
            seen = self.columns[column.name] = ColumnStats(column.kind)
            if column.pii and column.kind == "category":
                self._counters.append(_Presence(column, seen))
            elif column.kind == "category":
                self._counters.append(_Category(column, seen, facts))
            elif column.kind == "datetime":
                self._counters.append(_Moment(column, seen))
            else:
                self._counters.append(_Numeric(column, seen, facts.get("grid")))

    def add(self, rows: pa.Table | pa.RecordBatch) -> None:
        """Counts more rows; a column that is not among them is not counted."""
        self.rows += rows.num_rows
        names = rows.schema.names
        self.strange.update(set(names) - self._known)
        for counter in self._counters:
            if names.count(counter.name) == 1:
                column = rows.column(counter.name)
                for chunk in column.chunks if isinstance(column, pa.ChunkedArray) else [column]:
                    for start in range(0, len(chunk), SLICE):
                        self._count(counter, chunk.slice(start, SLICE))

    def _count(self, counter: "_Numeric | _Category | _Moment | _Presence", values: pa.Array) -> None:
        """Values that cannot even be read, such as text that is not UTF-8, are unfit."""
        seen = self.columns[counter.name]
        before = seen.rows, seen.nulls, seen.unfit
        try:
            counter.add(values)
        except (pa.ArrowException, ValueError, TypeError, OverflowError):
            seen.rows, seen.nulls, seen.unfit = before
            seen.rows += len(values)
            seen.nulls += values.null_count
            seen.unfit += len(values) - values.null_count


class _Numeric:
    def __init__(self, column: Column, seen: ColumnStats, grid: Mapping[str, Any] | None) -> None:
        self.name, self._seen, self._boolean = column.name, seen, column.kind == "boolean"
        self._low = -LARGEST if column.min is None else column.min
        self._high = LARGEST if column.max is None else column.max
        self._numbers = None
        if grid is not None:
            self._grid_low, self._grid_high = grid["low"], grid["high"]
            self._cells = len(grid["cells"])
            self._per_unit = self._cells / (self._grid_high - self._grid_low)
            self._numbers = seen.numbers = Numbers(np.zeros(self._cells, dtype=np.int64))
        self._reader = column.reader
        self._na = [float(text) for text in column.format.na_values if not math.isnan(parse_number(text))]
        self._room = np.empty(SLICE)

    def add(self, values: pa.Array) -> None:
        self._seen.rows += len(values)
        self._count(self._read(values))

    def _read(self, values: pa.Array) -> np.ndarray:
        kind = values.type
        if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind):
            self._seen.nulls += values.null_count
            if values.null_count:
                values = values.drop_null()
            floats = buffer_to_numpy(values.cast(pa.float64(), safe=False))
            return np.where(np.isin(floats, self._na), np.nan, floats) if self._na else floats
        indices, given = _distinct(values, self._seen)
        if not given:
            return np.empty(0)
        empty = np.array([self._reader.is_null(value) for value in given])
        means = np.array([self._reader.read(value) for value in given])
        self._seen.nulls += int(np.count_nonzero(empty[indices]))
        read: np.ndarray = means[indices[~empty[indices]]]
        unfit = np.isnan(read)
        self._seen.unfit += int(np.count_nonzero(unfit))
        fitting: np.ndarray = read[~unfit]
        return fitting

    def _count(self, values: np.ndarray) -> None:
        with np.errstate(over="ignore", invalid="ignore"):
            given, total = len(values), float(values.sum())
        if total != total:  # noqa: PLR0124 - NaN is among them, or both infinities
            missing = np.isnan(values)
            self._seen.nulls += int(missing.sum())
            values = values[~missing]
        if self._boolean:
            values = self._fitting(values, (values == 0.0) | (values == 1.0))
        if self._numbers is None:
            self._fitting(values, np.abs(values) <= LARGEST)
            return
        place = self._room[: len(values)]
        with np.errstate(over="ignore", invalid="ignore"):
            np.subtract(values, self._grid_low, out=place)
            np.multiply(place, self._per_unit, out=place)
        np.clip(place, -1.0, self._cells, out=place)
        np.add(place, 1.0, out=place)
        counts = np.bincount(place.astype(np.intp), minlength=self._cells + 2)
        if counts[0] or counts[-1]:
            self._beyond(values, counts)
        else:
            self._numbers.total += total if len(values) == given else float(values.sum())
        self._numbers.cells += counts[1:-1]

    def _beyond(self, values: np.ndarray, counts: np.ndarray) -> None:
        assert self._numbers is not None  # noqa: S101 - there is a grid
        numbers = self._numbers
        values = self._fitting(values, np.abs(values) <= LARGEST)
        below, above = values[values < self._grid_low], values[values > self._grid_high]
        # what stands on the last edge is of the last cell
        counts[-2] += np.count_nonzero(values == self._grid_high)
        numbers.below += len(below)
        numbers.above += len(above)
        numbers.below_sum += float(below.sum())
        numbers.above_sum += float(above.sum())
        numbers.total += float(values.sum())
        numbers.out_of_range += int((below < self._low).sum() + (above > self._high).sum())

    def _fitting(self, values: np.ndarray, fits: np.ndarray) -> np.ndarray:
        self._seen.unfit += len(values) - int(np.count_nonzero(fits))
        return values if fits.all() else values[fits]


class _Category:
    def __init__(self, column: Column, seen: ColumnStats, facts: Mapping[str, Any]) -> None:
        self.name, self._seen, self._reader = column.name, seen, column.reader
        self._named = frozenset(facts["counts"])
        self._trained = None if column.categories is None else frozenset(column.categories)
        self._levels = seen.levels = Levels()

    def add(self, values: pa.Array) -> None:
        self._seen.rows += len(values)
        indices, given = _distinct(values, self._seen)
        counts = np.bincount(indices, minlength=len(given))
        for value, count in zip(given, counts.tolist(), strict=True):
            if count:
                self._take(value, count)

    def _take(self, value: Any, count: int) -> None:
        text = self._reader.read(value)
        if text is None:
            if self._reader.is_null(value):
                self._seen.nulls += count
            else:
                self._seen.unfit += count
        elif text in self._named:
            self._levels.counts[text] += count
        else:
            self._levels.other += count
            if self._trained is not None and text not in self._trained:
                self._levels.unseen += count
                if len(self._levels.examples) < 5 and text not in self._levels.examples:
                    self._levels.examples.append(text)


class _Moment:
    """Times are only counted: they go on, which is no drift."""

    def __init__(self, column: Column, seen: ColumnStats) -> None:
        self.name, self._seen, self._reader = column.name, seen, column.reader

    def add(self, values: pa.Array) -> None:
        self._seen.rows += len(values)
        self._seen.nulls += values.null_count
        if not pa.types.is_temporal(values.type):
            for value, count in Counter(values.drop_null().to_pylist()).items():
                if self._reader.read(value) is None:
                    if self._reader.is_null(value):
                        self._seen.nulls += count
                    else:
                        self._seen.unfit += count


class _Presence:
    """Categories of personal data: whether there is a value, and no more."""

    def __init__(self, column: Column, seen: ColumnStats) -> None:
        self.name, self._seen, self._reader = column.name, seen, column.reader

    def add(self, values: pa.Array) -> None:
        self._seen.rows += len(values)
        indices, given = _distinct(values, self._seen)
        empty = np.array([self._reader.read(value) is None for value in given], dtype=bool)
        self._seen.nulls += int(np.count_nonzero(empty[indices])) if given else 0


def _distinct(values: pa.Array, seen: ColumnStats) -> tuple[np.ndarray, list[Any]]:
    """Where each value stands among the distinct ones; counts nulls, and as unfit what has no equality (lists)."""
    if pa.types.is_nested(values.type):
        seen.nulls += values.null_count
        seen.unfit += len(values) - values.null_count
        return np.empty(0, dtype=np.intp), []
    encoded = values if pa.types.is_dictionary(values.type) else values.dictionary_encode()
    seen.nulls += encoded.null_count
    present = encoded.indices.drop_null() if encoded.null_count else encoded.indices
    return buffer_to_numpy(present), encoded.dictionary.to_pylist()


def buffer_to_numpy(values: pa.Array) -> np.ndarray:
    """The numbers of an array without nulls. ``to_numpy`` would import pandas to ask whether it is wanted."""
    kind, buffer = values.type, values.buffers()[1]
    letter = "f" if pa.types.is_floating(kind) else "i" if pa.types.is_signed_integer(kind) else "u"
    if buffer is None:
        return np.empty(0, dtype=f"{letter}{kind.bit_width // 8}")
    width = kind.bit_width // 8
    return np.frombuffer(buffer, f"{letter}{width}", len(values), values.offset * width)
