"""Lookups: each maps the values of an input column to rows of a table."""

from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from operator import attrgetter
from typing import Any, Protocol

import numpy as np

from towline.data.coded_column import CodedColumn

NULL, UNKNOWN_LEVEL = 0, 1  # rows of a category's table; in a calendar table row 0 is null too
GRID_CELLS = 4096
MIN_CUTS, MAX_CUTS_IN_CELL = 8, 4  # else a binary search is as fast

_CALENDAR_PARTS: Mapping[str, Callable[[datetime], int]] = {
    "month": attrgetter("month"), "weekday": datetime.weekday, "day": attrgetter("day"), "hour": attrgetter("hour"),
}  # fmt: skip
CALENDAR_VALUES: Mapping[str, range] = {
    "month": range(1, 13), "weekday": range(7), "day": range(1, 32), "hour": range(24),
}  # fmt: skip


class FeatureLookup(Protocol):
    """Maps canonical values of the input column ``column`` to row numbers of a table."""

    @property
    def column(self) -> int: ...
    def index(self, value: Any) -> int: ...
    def indices(self, values: Any) -> np.ndarray: ...


class CutGrid:
    """Counts the cuts below values, as a binary search does, about four times faster.

    The cell of a value on a uniform grid never decreases with the value, so cuts in lower cells are below it, and only
    the cuts in its own cell are compared.

    Args:
        cuts: (n,) float64, ascending.
    """

    def __init__(self, cuts: np.ndarray) -> None:
        self._cuts, self._most = cuts, 0
        if len(cuts) < MIN_CUTS:
            return
        with np.errstate(over="ignore", divide="ignore"):
            self._low, self._cells_per_unit = cuts[0], GRID_CELLS / (cuts[-1] - cuts[0])
        if 0 < self._cells_per_unit < np.inf:
            counts = np.bincount(self._cells(cuts), minlength=GRID_CELLS)
            if counts.max() <= MAX_CUTS_IN_CELL:
                self._most, self._ahead = int(counts.max()), np.append(cuts, np.inf)
                self._below = np.cumsum(counts) - counts

    def count_below(self, values: np.ndarray) -> np.ndarray:
        """(n,) the number of cuts below each value; unspecified for NaN."""
        counts: np.ndarray
        if not self._most:
            counts = np.searchsorted(self._cuts, values, "left")
            return counts
        counts = self._below.take(self._cells(values), mode="clip")
        for _ in range(self._most):
            counts += self._ahead.take(counts) < values
        return counts

    def _cells(self, values: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore", invalid="ignore"):  # NaN becomes a whole number below 0
            places = (values - self._low) * self._cells_per_unit
            cells: np.ndarray = np.clip(places, 0, GRID_CELLS - 1, out=places).astype(np.intp)
        return cells


@dataclass(frozen=True)
class NumericLookup:
    """A number: row k of the table is for values above exactly k of the ascending ``cuts``; the last is for null."""

    column: int
    mean: float = 0.0
    scale: float | None = None
    cuts: tuple[float, ...] = ()

    def scaled(self, value: Any) -> Any:
        """The value or array, scaled as by StandardScaler."""
        return value if self.scale is None else (value - self.mean) / self.scale

    def unscaled(self, value: Any) -> Any:
        return value if self.scale is None else value * self.scale + self.mean

    def index(self, value: float) -> int:
        if value != value:  # noqa: PLR0124 - NaN
            return len(self.cuts) + 1
        return bisect_left(self.cuts, value if self.scale is None else self.scaled(value))

    def indices(self, values: np.ndarray) -> np.ndarray:
        rows = self._grid.count_below(self.scaled(values))
        rows[np.isnan(values)] = len(self.cuts) + 1
        return rows

    @cached_property
    def _grid(self) -> "CutGrid":
        return CutGrid(np.asarray(self.cuts, dtype=np.float64))


@dataclass(frozen=True)
class CategoryLookup:
    """A category: row 0 is for null, row ``unknown`` for unknown levels, the others for the known levels."""

    column: int
    keys: Mapping[str | None, int]
    unknown: int = UNKNOWN_LEVEL

    def index(self, value: str | None) -> int:
        return self.keys.get(value, self.unknown)

    def indices(self, values: Any) -> np.ndarray:
        levels = values.levels if isinstance(values, CodedColumn) else values
        rows = [self.keys.get(value, self.unknown) if isinstance(value, str) else NULL for value in levels]
        indices = np.array(rows, dtype=np.intp)
        return indices[values.codes] if isinstance(values, CodedColumn) else indices


@dataclass(frozen=True)
class CalendarLookup:
    """A calendar part of a date: row 0 is for null, the others for the part's values in order."""

    column: int
    part: str

    def index(self, value: datetime | None) -> int:
        return NULL if value is None else _CALENDAR_PARTS[self.part](value) - CALENDAR_VALUES[self.part].start + 1

    def indices(self, values: np.ndarray) -> np.ndarray:
        missing = np.isnat(values)
        if self.part == "month":
            rows = values.astype("datetime64[M]").astype(np.int64) % 12
        elif self.part == "hour":
            rows = values.astype("datetime64[h]").astype(np.int64) % 24
        elif self.part == "weekday":
            rows = (values.astype("datetime64[D]").astype(np.int64) + 3) % 7  # 1970-01-01 was a Thursday
        else:
            rows = (values.astype("datetime64[D]") - values.astype("datetime64[M]")).astype(np.int64)
        return np.where(missing, NULL, rows + 1)
