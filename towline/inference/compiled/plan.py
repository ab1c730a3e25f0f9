"""The compiled scorer: a fitted pipeline as tables, answered with numpy alone.

Each input column of a model is a *slot*: its value finds a row in the slot's table. What the tables hold depends on the
head. In ``Linear`` a row holds the column's share of the sum. In ``Bits``, which is QuickScorer (Lucchese et al., SIGIR
2015) with its comparisons made beforehand, a row holds for each tree of at most 64 leaves which of them this column
leaves open; the conjunction over the columns leaves one. ``Walk`` goes down larger trees node by node, all at once.

Trees are summed in scikit-learn's order, so their answers are the same to the last bit. One row and many rows go
through the same operations, so they are the same too.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from towline.errors import DataError

LinkFunction = Literal["identity", "exp", "expit", "softmax", "mean"]
NULL, UNKNOWN_LEVEL = 0, 1  # rows of a level's table; of a part's, the first
CHUNK_ROWS = 64  # rows at once: their masks then stay in the cache
NARROW_LEAVES = 32  # leaves of trees whose masks take half of the room

_CALENDAR_PARTS: Mapping[str, tuple[Callable[[datetime], int], int]] = {
    "month": (lambda moment: moment.month, 1),
    "weekday": (lambda moment: moment.weekday(), 0),
    "day": (lambda moment: moment.day, 1),
    "hour": (lambda moment: moment.hour, 0),
}
CALENDAR_VALUES: Mapping[str, range] = {
    "month": range(1, 13), "weekday": range(7), "day": range(1, 32), "hour": range(24),
}  # fmt: skip


class FeatureLookup(Protocol):
    """Where a canonical value of column ``column`` stands in a table."""

    @property
    def column(self) -> int: ...
    def index(self, value: Any) -> int: ...
    def indices(self, values: np.ndarray) -> np.ndarray: ...


@dataclass(frozen=True)
class NumericLookup:
    """``cuts`` are ascending; place k means that k of them are below the value; null stands last."""

    column: int
    mean: float = 0.0
    scale: float | None = None
    cuts: tuple[float, ...] = ()

    def scaled(self, value: Any) -> Any:
        """As StandardScaler does it, for one value or an array."""
        return value if self.scale is None else (value - self.mean) / self.scale

    def unscaled(self, value: Any) -> Any:
        return value if self.scale is None else value * self.scale + self.mean

    def index(self, value: float) -> int:
        if value != value:  # noqa: PLR0124 - NaN
            return len(self.cuts) + 1
        return bisect_left(self.cuts, value if self.scale is None else self.scaled(value))

    def indices(self, values: np.ndarray) -> np.ndarray:
        found: np.ndarray = np.searchsorted(np.asarray(self.cuts), self.scaled(values), "left")
        found[np.isnan(values)] = len(self.cuts) + 1
        return found


@dataclass(frozen=True)
class CategoryLookup:
    """A category: null, unseen, then the known levels."""

    column: int
    keys: Mapping[str | None, int]

    def index(self, value: str | None) -> int:
        return self.keys.get(value, UNKNOWN_LEVEL)

    def indices(self, values: np.ndarray) -> np.ndarray:
        found = [self.keys.get(value, UNKNOWN_LEVEL) if isinstance(value, str) else NULL for value in values]
        return np.array(found, dtype=np.intp)


@dataclass(frozen=True)
class CalendarLookup:
    """A calendar part: null, then its values in order."""

    column: int
    part: str

    def index(self, value: datetime | None) -> int:
        of, first = _CALENDAR_PARTS[self.part]
        return NULL if value is None else of(value) - first + 1

    def indices(self, values: np.ndarray) -> np.ndarray:
        missing = np.isnat(values)
        if self.part == "month":
            found = values.astype("datetime64[M]").astype(np.int64) % 12
        elif self.part == "hour":
            found = values.astype("datetime64[h]").astype(np.int64) % 24
        elif self.part == "weekday":
            found = (values.astype("datetime64[D]").astype(np.int64) + 3) % 7  # the first of 1970 was a Thursday
        else:
            found = (values.astype("datetime64[D]") - values.astype("datetime64[M]")).astype(np.int64)
        return np.where(missing, NULL, found + 1)


class RawScorer(Protocol):
    """The estimator: raw scores, (n, outputs), of a few canonical rows or of canonical columns."""

    def score_rows(self, rows: Sequence[Sequence[Any]]) -> list[list[float]]: ...
    def score_columns(self, columns: Sequence[np.ndarray]) -> np.ndarray: ...


class LinearTerm(NamedTuple):
    """A slot's share of a sum: a row of the table; of a number ``slope × value + rows[0]``, or ``rows[1]`` if null."""

    slot: FeatureLookup
    rows: np.ndarray
    slope: np.ndarray | None


class LinearSum:
    """A weighted sum over the columns, term by term in their order."""

    def __init__(self, start: np.ndarray, shares: Sequence[LinearTerm]) -> None:
        self.start, self.shares = start, tuple(shares)
        self._start = start.tolist()
        self._shares = [
            (share.slot, share.rows.tolist(), None if share.slope is None else share.slope.tolist()) for share in shares
        ]
        self._outputs = range(len(start))

    def score_rows(self, rows: Sequence[Sequence[Any]]) -> list[list[float]]:
        return [self._one(row) for row in rows]

    def _one(self, row: Sequence[Any]) -> list[float]:
        total: list[float] = self._start.copy()
        for slot, rows, slope in self._shares:
            value = row[slot.column]
            if slope is None:
                share = rows[slot.index(value)]
            elif value != value:  # noqa: PLR0124 - NaN
                share = rows[1]
            else:
                scaled = slot.scaled(value)  # type: ignore[attr-defined]
                share = [scaled * slope[k] + rows[0][k] for k in self._outputs]
            for k in self._outputs:
                total[k] += share[k]
        return total

    def score_columns(self, columns: Sequence[np.ndarray]) -> np.ndarray:
        total = np.repeat(self.start[None, :], len(columns[0]), axis=0)
        for slot, rows, slope in self.shares:
            values = columns[slot.column]
            if slope is None:
                total += rows[slot.indices(values)]
            else:
                share = slot.scaled(values)[:, None] * slope + rows[0]  # type: ignore[attr-defined]
                share[np.isnan(values)] = rows[1]
                total += share
        return total


class BitmaskForest:
    """Trees of at most 32 or 64 leaves, numbered from the left.

    Args:
        start: (outputs,) what the sums begin with.
        masks: for each slot (its places, trees) uint32 or uint64: the leaves that stay open.
        leaves: (trees, 32 or 64) values; tree t adds to output t mod outputs.
    """

    def __init__(
        self, start: np.ndarray, masks: Sequence[tuple[FeatureLookup, np.ndarray]], leaves: np.ndarray
    ) -> None:
        self.start, self.leaves = start, leaves
        outputs, width = len(start), leaves.shape[1]
        kind = np.uint32 if width == NARROW_LEAVES else np.uint64
        # the sums begin with trees of one leaf each, which is always open
        self._flat = np.concatenate([np.pad(start[:, None], ((0, 0), (0, width - 1))), leaves]).ravel()
        self._tree = np.arange(outputs + len(leaves)) * width
        begins = np.cumsum([0, *(len(table) for _, table in masks)]).tolist()
        self._rows = np.ones((begins[-1], len(self._tree)), dtype=kind)
        self._slots = [(slot, slot.index, slot.column, at) for (slot, _), at in zip(masks, begins[:-1], strict=True)]
        self.masks = [
            (slot, self._rows[at : at + len(table), outputs:])
            for (slot, table), at in zip(masks, begins[:-1], strict=True)
        ]
        self._rows[:, outputs:] = np.concatenate([self._rows[:0, outputs:], *(table for _, table in masks)])

    def score_rows(self, rows: Sequence[Sequence[Any]]) -> list[list[float]]:
        at = [[begin + index(row[column]) for _, index, column, begin in self._slots] for row in rows]
        masks = self._rows.take(np.array(at, np.intp), axis=0)
        raw: list[list[float]] = self._sum(np.bitwise_and.reduce(masks, axis=1)).tolist()
        return raw

    def score_columns(self, columns: Sequence[np.ndarray]) -> np.ndarray:
        total = np.empty((len(columns[0]), len(self.start)))
        places = [begin + slot.indices(columns[column]) for slot, _, column, begin in self._slots]
        for begin in range(0, len(total), CHUNK_ROWS):
            rows = slice(begin, begin + CHUNK_ROWS)
            mask = np.full((len(total[rows]), len(self._tree)), ~self._rows.dtype.type(0))
            for at in places:
                mask &= self._rows[at[rows]]
            total[rows] = self._sum(mask)
        return total

    def _sum(self, mask: np.ndarray) -> np.ndarray:
        leaf = np.bitwise_count((mask & -mask) - 1)  # the zeros below the lowest open leaf
        steps = self._flat.take(self._tree + leaf).reshape(len(mask), -1, len(self.start))
        total: np.ndarray = steps.cumsum(axis=1)[:, -1]  # sum() would add in pairs
        return total


class DesignColumns(NamedTuple):
    """A slot's columns ``at`` in the design matrix: the table's rows; a number stands in the first of them."""

    slot: FeatureLookup
    at: np.ndarray
    rows: np.ndarray
    number: bool


class TreeNodes(NamedTuple):
    """The nodes of all trees, one after the other; a leaf leads to itself.

    ``kids`` holds (right, left) of each node, ``values`` (nodes, width).
    """

    feature: np.ndarray
    threshold: np.ndarray
    missing_left: np.ndarray
    kids: np.ndarray
    values: np.ndarray
    roots: np.ndarray


class TraversedForest:
    """Trees of any size, all at once, a level at a time.

    Args:
        start: (outputs,) what the sums begin with.
        vectors: what the design matrix is made of.
        width: its columns.
        nodes: the trees; trees of a forest add a whole row of ``values``, others tree t to output t mod outputs.
        depth: of the deepest.
        single: whether features are rounded to float32 first, as scikit-learn's forests do.
    """

    def __init__(
        self,
        start: np.ndarray,
        vectors: Sequence[DesignColumns],
        width: int,
        nodes: TreeNodes,
        depth: int,
        single: bool,
    ) -> None:
        self.start, self.vectors, self.width = start, tuple(vectors), width
        self.nodes, self.depth, self.single = nodes, depth, single

    def score_rows(self, rows: Sequence[Sequence[Any]]) -> list[list[float]]:
        design = np.zeros((len(rows), self.width))
        for line, row in zip(design, rows, strict=True):
            for slot, at, table, number in self.vectors:
                value = row[slot.column]
                if not number:
                    line[at] = table[slot.index(value)]
                elif value != value:  # noqa: PLR0124 - NaN
                    line[at] = table[1]
                else:
                    line[at] = table[0]
                    line[at[0]] = slot.scaled(value)  # type: ignore[attr-defined]
        raw: list[list[float]] = self._sum(design).tolist()
        return raw

    def score_columns(self, columns: Sequence[np.ndarray]) -> np.ndarray:
        design = np.zeros((len(columns[0]), self.width))
        for slot, at, rows, number in self.vectors:
            values = columns[slot.column]
            if number:
                missing = np.isnan(values)
                design[:, at] = rows[missing.astype(np.intp)]
                design[~missing, at[0]] = slot.scaled(values[~missing])  # type: ignore[attr-defined]
            else:
                design[:, at] = rows[slot.indices(values)]
        total = np.empty((len(design), len(self.start)))
        for begin in range(0, len(design), CHUNK_ROWS):
            total[begin : begin + CHUNK_ROWS] = self._sum(design[begin : begin + CHUNK_ROWS])
        return total

    def _sum(self, design: np.ndarray) -> np.ndarray:
        feature, threshold, missing_left, kids, values, roots = self.nodes
        if self.single:
            with np.errstate(over="ignore"):
                design = design.astype(np.float32)
            if np.isinf(design).any():
                raise DataError("a number is too large for this model", where="rows", remedy="mend the value")
        flat, rows = design.ravel(), np.arange(len(design))[:, None] * self.width
        holes = bool(np.isnan(flat).any())
        at = np.repeat(roots[None, :], len(design), axis=0)
        for _ in range(self.depth):  # take() costs half of what indexing does
            value = flat.take(rows + feature.take(at))
            left = value <= threshold.take(at)
            if holes:
                left |= np.isnan(value) & missing_left.take(at)
            at = kids.take(2 * at + left)
        steps = np.empty((len(design), 1 + values.shape[1] * len(roots) // len(self.start), len(self.start)))
        steps[:, 0] = self.start
        steps[:, 1:] = values.take(at, axis=0).reshape(len(design), -1, len(self.start))
        total: np.ndarray = np.cumsum(steps, axis=1)[:, -1]
        return total


@dataclass(frozen=True)
class OutputTransform:
    """From raw scores to a value, or to a class and its probabilities.

    Attributes:
        link: from scores to values or probabilities; ``mean`` divides by ``trees``.
        order: for each of the model's classes, its position among the contract's.
        classes: how many the contract has; 0 for a regression.
        threshold: of a binary model, on the probability of model class ``positive``; None takes the likelier.
        by_score: whether the likelier class is read off the scores, as linear models do.
        trees: of a forest.
    """

    link: LinkFunction
    order: tuple[int, ...] = ()
    classes: int = 0
    threshold: float | None = None
    positive: int = 1
    by_score: bool = False
    trees: int = 1

    def value(self, raw: float) -> float:
        if self.link == "exp":
            return _exp(raw)
        return raw / self.trees if self.link == "mean" else raw

    def label(self, raw: Sequence[float]) -> tuple[int, list[float]]:
        """Position of the class in the contract, and the probabilities in the contract's order."""
        found = self._probabilities(raw)
        if self.threshold is not None:
            best = self.positive if found[self.positive] >= self.threshold else 1 - self.positive
        elif self.by_score and len(raw) == 1:
            best = int(raw[0] > 0)
        else:
            best = _argmax(raw if self.by_score else found)
        total = sum(found)
        if self.classes == len(found):
            return self.order[best], [share / total for share in found]
        spread = [0.0] * self.classes
        for at, share in zip(self.order, found, strict=True):
            spread[at] = share / total
        return self.order[best], spread

    def _probabilities(self, raw: Sequence[float]) -> list[float]:
        if self.link == "expit":
            chance = 1 / (1 + _exp(-raw[0]))
            return [1 - chance, chance]
        if self.link == "mean":
            return [score / self.trees for score in raw]
        highest = max(raw)
        shares = [_exp(score - highest) for score in raw]
        total = sum(shares)
        return [share / total for share in shares]


@dataclass(frozen=True)
class Plan:
    """A compiled model: canonical rows or columns in, values or class positions and probabilities out."""

    scorer: RawScorer
    output: OutputTransform

    def predict_rows(self, rows: Sequence[Sequence[Any]]) -> list[tuple[float | int, list[float] | None]]:
        """The value, or the class's position and the probabilities, of each canonical row."""
        raw = self.scorer.score_rows(rows)
        if not self.output.classes:
            return [(self.output.value(scores[0]), None) for scores in raw]
        return [self.output.label(scores) for scores in raw]

    def predict_columns(self, columns: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray | None]:
        """The same of n rows: values (n,) float64, or positions (n,) int64 with probabilities (n, classes)."""
        raw = self.scorer.score_columns(columns).tolist()
        if not self.output.classes:
            return np.array([self.output.value(scores[0]) for scores in raw], dtype=np.float64), None
        found = [self.output.label(scores) for scores in raw]
        places = np.array([place for place, _ in found], dtype=np.int64)
        return places, np.array([shares for _, shares in found]).reshape(len(raw), self.output.classes)


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf


def _argmax(shares: Sequence[float]) -> int:
    return max(range(len(shares)), key=shares.__getitem__)
