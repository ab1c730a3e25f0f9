"""Histograms of current rows on the grid of a release's reference profile.

A profile holds a histogram (numbers) or the counts of each category for every column of the training rows. The
accumulator counts current rows into the same cells. It needs one pass over the rows and memory that does not grow with
them.
"""

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from towline.data.schema.contract import Column, Contract
from towline.data.schema.values import LARGEST, parse_number
from towline.data.text_features import text_lengths

CHUNK_ROWS = 65_536  # a chunk of this size stays in the CPU cache
MAX_EXAMPLES = 5  # of unseen categories


@dataclass
class NumericHistogram:
    """Counts of numbers on the grid of a profile.

    Attributes:
        cells: (cells,) int64.
        below, above: number of values outside the grid.
        below_sum, above_sum: sums of these values.
        total: sum of all values.
        out_of_range: number of values outside the range of the training rows.
    """

    cells: np.ndarray
    below: int = 0
    above: int = 0
    below_sum: float = 0.0
    above_sum: float = 0.0
    total: float = 0.0
    out_of_range: int = 0


@dataclass
class CategoryCounts:
    """Counts of categories: ``counts`` of those named in the profile, ``other`` of the rest, ``unseen`` in training."""

    counts: Counter[str] = field(default_factory=Counter)
    other: int = 0
    unseen: int = 0
    examples: list[str] = field(default_factory=list)


@dataclass
class ColumnStats:
    """Statistics of one column of the current rows.

    Attributes:
        kind: the column's kind in the contract.
        rows: number of rows that have the column.
        nulls: number of these rows without a value.
        wrong_type: number of values of another kind, or too large to be summed. They are in no other count.
        histogram: of a numeric or boolean column whose profile has a grid.
        categories: of a categorical column.
    """

    kind: str
    rows: int = 0
    nulls: int = 0
    wrong_type: int = 0
    histogram: NumericHistogram | None = None
    categories: CategoryCounts | None = None

    @property
    def count(self) -> int:
        """Number of valid values."""
        return self.rows - self.nulls - self.wrong_type

    def merge(self, other: Mapping[str, Any]) -> None:
        """Adds the statistics of other rows, as ``asdict`` gives them."""
        self.rows += other["rows"]
        self.nulls += other["nulls"]
        self.wrong_type += other["wrong_type"]
        if self.histogram is not None:
            for name, value in other["histogram"].items():
                added = np.asarray(value, dtype=np.int64) if name == "cells" else value
                setattr(self.histogram, name, getattr(self.histogram, name) + added)
        if self.categories is not None:
            levels = other["categories"]
            self.categories.counts.update(levels["counts"])
            self.categories.other += levels["other"]
            self.categories.unseen += levels["unseen"]
            examples = dict.fromkeys([*self.categories.examples, *levels["examples"]])
            self.categories.examples = list(examples)[:MAX_EXAMPLES]


class HistogramAccumulator:
    """Counts rows on the grid of a profile, batch by batch.

    Args:
        profile: ``profile.json`` of a release.
        contract: the contract of the same release.

    Attributes:
        rows: number of rows counted so far.
        columns: the statistics of each feature.
        unknown_columns: columns of the rows that the contract does not have.
    """

    def __init__(self, profile: Mapping[str, Any], contract: Contract) -> None:
        self.rows = 0
        self.columns: dict[str, ColumnStats] = {}
        self.unknown_columns: set[str] = set()
        self._contract_columns = {column.name for column in contract.columns}
        self._counters: list[_Counter] = []
        for column in contract.input_columns:
            column_profile = profile["columns"][column.name]
            stats = self.columns[column.name] = ColumnStats(column.kind)
            counter = _COUNTERS.get(column.kind, _NumericCounter)
            counter = _NullCounter if column.pii and column.kind == "category" else counter
            self._counters.append(counter(column, stats, column_profile))

    def add(self, rows: pa.Table | pa.RecordBatch) -> None:
        """Counts more rows. A column that is missing or duplicated in them is not counted."""
        self.rows += rows.num_rows
        names = rows.schema.names
        self.unknown_columns.update(set(names) - self._contract_columns)
        for counter in self._counters:
            if names.count(counter.name) == 1:
                column = rows.column(counter.name)
                for chunk in column.chunks if isinstance(column, pa.ChunkedArray) else [column]:
                    for start in range(0, len(chunk), CHUNK_ROWS):
                        counter.add(chunk.slice(start, CHUNK_ROWS))

    def document(self) -> dict[str, Any]:
        """The counts as JSON, for ``merge``."""
        columns = {}
        for name, stats in self.columns.items():
            column = asdict(stats)
            if stats.histogram is not None:
                column["histogram"]["cells"] = stats.histogram.cells.tolist()
            if stats.categories is not None:
                column["categories"]["counts"] = dict(stats.categories.counts)  # asdict() counts the items
            columns[name] = column
        return {"rows": self.rows, "columns": columns}

    def merge(self, document: Mapping[str, Any]) -> None:
        """Adds the counts of other rows, as ``document`` gives them."""
        self.rows += document["rows"]
        for name, stats in self.columns.items():
            stats.merge(document["columns"][name])


class _Counter(ABC):
    """Counts the values of one column into its statistics."""

    def __init__(self, column: Column, stats: ColumnStats, column_profile: Mapping[str, Any]) -> None:  # noqa: ARG002
        self.name, self._stats, self._reader = column.name, stats, column.reader

    def add(self, values: pa.Array) -> None:
        """Counts a chunk. Values that cannot be read at all, such as invalid UTF-8, have the wrong type."""
        stats = self._stats
        stats.rows += len(values)
        before = stats.nulls, stats.wrong_type
        try:
            self._count(values)
        except (pa.ArrowException, ValueError, TypeError, OverflowError):
            stats.nulls, stats.wrong_type = before
            self._count_null_or_wrong(values)

    @abstractmethod
    def _count(self, values: pa.Array) -> None: ...

    def _count_null_or_wrong(self, values: pa.Array) -> None:
        self._stats.nulls += values.null_count
        self._stats.wrong_type += len(values) - values.null_count

    def _count_unreadable(self, value: Any, count: int) -> None:
        """Counts a value that the reader reads as None."""
        if self._reader.is_null(value):
            self._stats.nulls += count
        else:
            self._stats.wrong_type += count

    def _distinct_values(self, values: pa.Array) -> tuple[np.ndarray, list[Any]]:
        """Indices into the distinct values, and these. Counts nulls; nested values (lists) have the wrong type."""
        if pa.types.is_nested(values.type):
            self._count_null_or_wrong(values)
            return np.empty(0, dtype=np.intp), []
        encoded = values if pa.types.is_dictionary(values.type) else values.dictionary_encode()
        self._stats.nulls += encoded.null_count
        indices = encoded.indices.drop_null() if encoded.null_count else encoded.indices
        return buffer_to_numpy(indices), encoded.dictionary.to_pylist()


class _NumericCounter(_Counter):
    def __init__(self, column: Column, stats: ColumnStats, column_profile: Mapping[str, Any]) -> None:
        super().__init__(column, stats, column_profile)
        self._boolean, grid = column.kind == "boolean", column_profile.get("grid")
        self._low = -LARGEST if column.min is None else column.min
        self._high = LARGEST if column.max is None else column.max
        self._histogram = None
        if grid is not None:
            self._grid_low, self._grid_high = grid["low"], grid["high"]
            self._cells = len(grid["cells"])
            self._cells_per_unit = self._cells / (self._grid_high - self._grid_low)
            self._histogram = stats.histogram = NumericHistogram(np.zeros(self._cells, dtype=np.int64))
        markers = (parse_number(text) for text in column.format.na_values)
        self._na_numbers = [number for number in markers if not math.isnan(number)]
        self._buffer = np.empty(CHUNK_ROWS)

    def _count(self, values: pa.Array) -> None:
        self._count_numbers(self._read(values))

    def _read(self, values: pa.Array) -> np.ndarray:
        kind = values.type
        if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind):
            self._stats.nulls += values.null_count
            if values.null_count:
                values = values.drop_null()
            floats = buffer_to_numpy(values.cast(pa.float64(), safe=False))
            return np.where(np.isin(floats, self._na_numbers), np.nan, floats) if self._na_numbers else floats
        indices, distinct = self._distinct_values(values)
        if not distinct:
            return np.empty(0)
        null = np.array([self._reader.is_null(value) for value in distinct])
        distinct_numbers = np.array([self._reader.read(value) for value in distinct])
        self._stats.nulls += int(np.count_nonzero(null[indices]))
        numbers: np.ndarray = distinct_numbers[indices[~null[indices]]]
        unreadable = np.isnan(numbers)
        self._stats.wrong_type += int(np.count_nonzero(unreadable))
        readable: np.ndarray = numbers[~unreadable]
        return readable

    def _count_numbers(self, values: np.ndarray) -> None:
        with np.errstate(over="ignore", invalid="ignore"):
            length, total = len(values), float(values.sum())
        if total != total:  # noqa: PLR0124 - the values hold NaN, or both infinities
            missing = np.isnan(values)
            self._stats.nulls += int(missing.sum())
            values = values[~missing]
        if self._boolean:
            values = self._keep_valid(values, (values == 0.0) | (values == 1.0))
        if self._histogram is None:
            self._keep_valid(values, np.abs(values) <= LARGEST)
            return
        positions = self._buffer[: len(values)]
        with np.errstate(over="ignore", invalid="ignore"):
            np.subtract(values, self._grid_low, out=positions)
            np.multiply(positions, self._cells_per_unit, out=positions)
        np.clip(positions, -1.0, self._cells, out=positions)
        np.add(positions, 1.0, out=positions)
        counts = np.bincount(positions.astype(np.intp), minlength=self._cells + 2)
        if counts[0] or counts[-1]:
            self._count_outside_grid(self._histogram, values, counts)
        else:
            self._histogram.total += total if len(values) == length else float(values.sum())
        self._histogram.cells += counts[1:-1]

    def _count_outside_grid(self, histogram: NumericHistogram, values: np.ndarray, counts: np.ndarray) -> None:
        values = self._keep_valid(values, np.abs(values) <= LARGEST)
        below, above = values[values < self._grid_low], values[values > self._grid_high]
        counts[-2] += np.count_nonzero(values == self._grid_high)  # the last cell includes its upper edge
        histogram.below += len(below)
        histogram.above += len(above)
        histogram.below_sum += float(below.sum())
        histogram.above_sum += float(above.sum())
        histogram.total += float(values.sum())
        histogram.out_of_range += int((below < self._low).sum() + (above > self._high).sum())

    def _keep_valid(self, values: np.ndarray, valid: np.ndarray) -> np.ndarray:
        self._stats.wrong_type += len(values) - int(np.count_nonzero(valid))
        return values if valid.all() else values[valid]


class _TextCounter(_NumericCounter):
    """Counts the lengths of texts."""

    def _read(self, values: pa.Array) -> np.ndarray:
        indices, distinct = self._distinct_values(values)
        if not distinct:
            return np.empty(0)
        lengths = text_lengths(map(self._reader.read, distinct))[indices]
        unreadable = np.isnan(lengths)
        self._stats.nulls += int(np.count_nonzero(unreadable))
        present: np.ndarray = lengths[~unreadable]
        return present


class _CategoryCounter(_Counter):
    def __init__(self, column: Column, stats: ColumnStats, column_profile: Mapping[str, Any]) -> None:
        super().__init__(column, stats, column_profile)
        self._profiled = frozenset(column_profile["counts"])
        self._trained = None if column.categories is None else frozenset(column.categories)
        self._categories = stats.categories = CategoryCounts()

    def _count(self, values: pa.Array) -> None:
        indices, distinct = self._distinct_values(values)
        counts = np.bincount(indices, minlength=len(distinct))
        for value, count in zip(distinct, counts.tolist(), strict=True):
            if count:
                self._add_value(value, count)

    def _add_value(self, value: Any, count: int) -> None:
        category = self._reader.read(value)
        if category is None:
            self._count_unreadable(value, count)
        elif category in self._profiled:
            self._categories.counts[category] += count
        else:
            self._categories.other += count
            if self._trained is not None and category not in self._trained:
                self._categories.unseen += count
                if len(self._categories.examples) < MAX_EXAMPLES and category not in self._categories.examples:
                    self._categories.examples.append(category)


class _DatetimeCounter(_Counter):
    """Counts nulls and wrong types only: times always move on, which is not drift."""

    def _count(self, values: pa.Array) -> None:
        self._stats.nulls += values.null_count
        if not pa.types.is_temporal(values.type):
            for value, count in Counter(values.drop_null().to_pylist()).items():
                if self._reader.read(value) is None:
                    self._count_unreadable(value, count)


class _NullCounter(_Counter):
    """Counts nulls only, for categories that are personal data."""

    def _count(self, values: pa.Array) -> None:
        indices, distinct = self._distinct_values(values)
        null = np.array([self._reader.read(value) is None for value in distinct], dtype=bool)
        self._stats.nulls += int(np.count_nonzero(null[indices])) if distinct else 0


_COUNTERS: Mapping[str, type[_Counter]] = {
    "category": _CategoryCounter, "text": _TextCounter, "datetime": _DatetimeCounter,
}  # fmt: skip


def buffer_to_numpy(values: pa.Array) -> np.ndarray:
    """The numbers of an array as a view of its buffer; nulls are ignored.

    ``pa.Array.to_numpy`` does the same but imports pandas, which takes longer than most monitoring runs.
    """
    kind, buffer = values.type, values.buffers()[1]
    letter = "f" if pa.types.is_floating(kind) else "i" if pa.types.is_signed_integer(kind) else "u"
    width = kind.bit_width // 8
    if buffer is None:
        return np.empty(0, dtype=f"{letter}{width}")
    return np.frombuffer(buffer, f"{letter}{width}", len(values), values.offset * width)
