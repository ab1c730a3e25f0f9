"""A plan is a fitted pipeline in the form of lookup tables, which NumPy evaluates without scikit-learn.

Columns are arrays; those of a category or text may also be a ``CodedColumn``.

Each input column of the model has a *lookup*: from the column's value to a row of a table. What the rows hold
depends on the scorer:

- ``LinearSum``: the term that the column adds to the weighted sum.
- ``BitmaskForest``: for each tree, a bitmask of the leaves that are still reachable given the column's value. The AND
  of the masks of all columns leaves one leaf per tree. This is QuickScorer (Lucchese et al., SIGIR 2015) with
  precomputed comparisons, for trees of at most 64 leaves.
- ``TraversedForest``: the column's values in the design matrix. All trees are then traversed together, level by level.
- ``WeightedMean``: an ensemble; it has no lookups, but a plan for each of its parts.

Trees are summed in the order and precision of their library, so the sums are equal to the last bit. One row and many
rows go through the same operations, so their predictions are equal too.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from towline.data.coded_column import CodedColumn
from towline.data.date_features import compute_age, compute_ages
from towline.data.text_features import TextProjection
from towline.errors import DataError
from towline.inference.compiled.feature_lookups import CategoryLookup, FeatureLookup, NumericLookup
from towline.training.calibration import Calibration
from towline.training.evaluation.predictions import Threshold, decide_classes
from towline.training.link_functions import (
    add,
    add_columns,
    expit,
    exponential,
    exponentials,
    softmax,
    softmax_rows,
)

LinkFunction = Literal["identity", "exp", "expit", "softmax", "mean", "probability"]
CHUNK_CELLS = 1 << 16  # masks (rows × trees) per step, which fit into the CPU cache
CHUNK_ROWS = 64  # rows per step of a traversal
NARROW_LEAVES = 32  # trees with at most this many leaves need masks of 32 bits only


class AgeColumn(NamedTuple):
    """The age in days of the date in column ``column`` at the time in column ``time``; None: its days since 1970.

    It is at most ``latest``.
    """

    column: int
    time: int | None
    latest: float = math.inf

    def values(self, row: Sequence[Any]) -> list[float]:
        time = None if self.time is None else row[self.time]
        age = compute_age(row[self.column], time, has_time=self.time is not None)
        return [min(age, self.latest)]  # NaN stays NaN

    def arrays(self, columns: Sequence[np.ndarray]) -> Iterable[np.ndarray]:
        ages = compute_ages(columns[self.column], None if self.time is None else columns[self.time])
        return [np.minimum(ages, self.latest)]


class TextColumns(NamedTuple):
    """The features of the text in input column ``column``."""

    column: int
    projection: TextProjection

    def values(self, row: Sequence[Any]) -> list[float]:
        features: list[float] = self.projection.encode(row[self.column]).tolist()
        return features

    def arrays(self, columns: Sequence[Any]) -> Iterable[np.ndarray]:
        column = columns[self.column]
        if isinstance(column, CodedColumn):
            features: np.ndarray = self.projection.encode_column(column.levels.tolist())[column.codes].T
            return features
        return self.projection.encode_column(column.tolist()).T


class RawScorer(Protocol):
    """Computes raw scores, (n, outputs), of canonical rows or of canonical columns."""

    def score_rows(self, rows: Sequence[Sequence[Any]]) -> list[list[float]]: ...
    def score_columns(self, columns: Sequence[Any]) -> np.ndarray: ...


class LinearTerm(NamedTuple):
    """What a lookup adds to the sum: a row of its table; for numbers ``slope × value + rows[0]``, null ``rows[1]``."""

    lookup: FeatureLookup
    rows: np.ndarray
    slope: np.ndarray | None


class LinearSum:
    """A linear model: a weighted sum over the columns, added in their order."""

    def __init__(self, start: np.ndarray, terms: Sequence[LinearTerm]) -> None:
        self.start, self.terms = start, tuple(terms)
        self._start = start.tolist()
        self._row_terms = [
            (term.lookup, term.rows.tolist(), None if term.slope is None else term.slope.tolist()) for term in terms
        ]
        self._outputs = range(len(start))

    def score_rows(self, rows: Sequence[Sequence[Any]]) -> list[list[float]]:
        return [self._score_row(row) for row in rows]

    def _score_row(self, row: Sequence[Any]) -> list[float]:
        total: list[float] = self._start.copy()
        for lookup, rows, slope in self._row_terms:
            value = row[lookup.column]
            if slope is None:
                term = rows[lookup.index(value)]
            elif value != value:  # noqa: PLR0124 - NaN
                term = rows[1]
            else:
                scaled = lookup.scaled(value)  # type: ignore[attr-defined]
                term = [scaled * slope[k] + rows[0][k] for k in self._outputs]
            for k in self._outputs:
                total[k] += term[k]
        return total

    def score_columns(self, columns: Sequence[Any]) -> np.ndarray:
        total = np.repeat(self.start[None, :], len(columns[0]), axis=0)
        for term in self._column_terms(columns):
            total += term
        return total

    def sum_of_absolute_terms(self, columns: Sequence[Any]) -> np.ndarray:
        """(n, outputs) sums of the terms' absolute values, to which rounding errors are relative."""
        total = np.repeat(np.abs(self.start)[None, :], len(columns[0]), axis=0)
        for term in self._column_terms(columns):
            total += np.abs(term)
        return total

    def _column_terms(self, columns: Sequence[Any]) -> Iterator[np.ndarray]:
        for lookup, rows, slope in self.terms:
            values = columns[lookup.column]
            if slope is None:
                yield rows[lookup.indices(values)]
            else:
                term = lookup.scaled(values)[:, None] * slope + rows[0]  # type: ignore[attr-defined]
                term[np.isnan(values)] = rows[1]
                yield term


def _index_from(lookup: FeatureLookup, begin: int) -> Callable[[Any], int]:
    """``begin + lookup.index(value)`` as a function without attributes, because a request calls it for each column."""
    if isinstance(lookup, NumericLookup) and lookup.scale is None:
        cuts, null = lookup.cuts, begin + len(lookup.cuts) + 1
        if len(cuts) == 1:
            (cut,), above = cuts, begin + 1
            return lambda value: begin if value <= cut else above if value > cut else null
        return lambda value: null if value != value else begin + bisect_left(cuts, value)  # noqa: PLR0124 - NaN
    if isinstance(lookup, CategoryLookup):
        places, unknown = {key: begin + row for key, row in lookup.keys.items()}, begin + lookup.unknown
        return lambda value: places.get(value, unknown)
    index = lookup.index
    return lambda value: begin + index(value)


class BitmaskForest:
    """Trees of at most 32 or 64 leaves, scored with bitmasks of leaves; leaves are numbered from the left.

    Args:
        start: (outputs,) initial values of the sums.
        masks: for each lookup (rows of its table, trees) uint32 or uint64: the leaves that are still reachable.
        leaves: (trees, 32 or 64) values; tree t adds to output t mod outputs.
    """

    def __init__(
        self, start: np.ndarray, masks: Sequence[tuple[FeatureLookup, np.ndarray]], leaves: np.ndarray
    ) -> None:
        self.start, self.leaves = start, leaves
        outputs, width = len(start), leaves.shape[1]
        kind = np.uint32 if width == NARROW_LEAVES else np.uint64
        # the initial values are added as trees of one leaf each, which is always reachable
        self._flat = np.concatenate([np.pad(start[:, None], ((0, 0), (0, width - 1))), leaves]).ravel()
        self._tree = np.arange(outputs + len(leaves)) * width
        begins = np.cumsum([0, *(len(table) for _, table in masks)]).tolist()
        self._rows = np.ones((begins[-1], len(self._tree)), dtype=kind)
        self._lookups = [(lookup, at) for (lookup, _), at in zip(masks, begins[:-1], strict=True)]
        self._indexes = [(_index_from(lookup, at), lookup.column) for lookup, at in self._lookups]
        self.masks = [
            (lookup, self._rows[at : at + len(table), outputs:])
            for (lookup, table), at in zip(masks, begins[:-1], strict=True)
        ]
        self._rows[:, outputs:] = np.concatenate([self._rows[:0, outputs:], *(table for _, table in masks)])

    def score_rows(self, rows: Sequence[Sequence[Any]]) -> list[list[float]]:
        at = [[index(row[column]) for index, column in self._indexes] for row in rows]
        masks = self._rows.take(np.array(at, np.intp), axis=0)
        raw: list[list[float]] = self._sum(np.bitwise_and.reduce(masks, axis=1)).tolist()
        return raw

    def score_columns(self, columns: Sequence[Any]) -> np.ndarray:
        count, trees = len(columns[0]), len(self._tree)
        total = np.empty((count, len(self.start)))
        places = [begin + lookup.indices(columns[lookup.column]) for lookup, begin in self._lookups]
        step = max(1, CHUNK_CELLS // trees)
        masks, others = np.empty((2, step, trees), dtype=self._rows.dtype)
        for begin in range(0, count, step):
            rows = slice(begin, min(count, begin + step))
            mask, other = masks[: rows.stop - begin], others[: rows.stop - begin]
            mask.fill(~self._rows.dtype.type(0))
            for at in places:  # mode="clip" writes into ``out`` without a buffer; all places are within the table
                np.bitwise_and(mask, self._rows.take(at[rows], axis=0, out=other, mode="clip"), out=mask)
            total[rows] = self._sum_columns(mask)
        return total

    def _sum(self, mask: np.ndarray) -> np.ndarray:
        steps = self._flat.take(self._tree + _lowest_bits(mask)).reshape(len(mask), -1, len(self.start))
        total: np.ndarray = steps.cumsum(axis=1)[:, -1]  # sum() adds pairwise, in another order
        return total

    def _sum_columns(self, mask: np.ndarray) -> np.ndarray:
        """The same for many rows: adds the values of one tree to the sums of all rows."""
        leaves = np.ascontiguousarray(_lowest_bits(mask).T)
        values = self._flat.take(self._tree[:, None] + leaves).reshape(-1, len(self.start), len(mask))
        total: np.ndarray = values[0]
        for step in values[1:]:
            total += step
        return total.T


def _lowest_bits(mask: np.ndarray) -> np.ndarray:
    """The number of zeros below the lowest reachable leaf."""
    counts: np.ndarray = np.bitwise_count((mask & -mask) - 1)
    return counts


class DesignColumns(NamedTuple):
    """The columns ``at`` of the design matrix that one lookup fills with a row of its table.

    A number fills the first of them with its scaled value; its table has a row for present and one for null values.
    """

    lookup: FeatureLookup
    at: np.ndarray
    rows: np.ndarray
    number: bool = False


class TreeNodes(NamedTuple):
    """The nodes of all trees, concatenated; the children of a leaf are the leaf itself.

    ``children`` holds (right, left) of each node, ``values`` (nodes, width).
    """

    feature: np.ndarray
    threshold: np.ndarray
    missing_left: np.ndarray
    children: np.ndarray
    values: np.ndarray
    roots: np.ndarray


class TraversedForest:
    """Trees of any size; all trees are traversed together, level by level.

    Args:
        start: (outputs,) initial values of the sums.
        design_columns: the parts of the design matrix.
        width: number of columns of the design matrix.
        nodes: the trees. A tree of a random forest adds a whole row of ``values``; a boosted tree t adds to output
            t mod outputs.
        depth: depth of the deepest tree.
        single: whether features are rounded to float32 first, as scikit-learn's forests do.
    """

    def __init__(
        self,
        start: np.ndarray,
        design_columns: Sequence[DesignColumns],
        width: int,
        nodes: TreeNodes,
        depth: int,
        single: bool,
    ) -> None:
        self.start, self.design_columns, self.width = start, tuple(design_columns), width
        self.nodes, self.depth, self.single = nodes, depth, single

    def score_rows(self, rows: Sequence[Sequence[Any]]) -> list[list[float]]:
        design = np.zeros((len(rows), self.width))
        for line, row in zip(design, rows, strict=True):
            for lookup, at, table, number in self.design_columns:
                value = row[lookup.column]
                if not number:
                    line[at] = table[lookup.index(value)]
                elif value != value:  # noqa: PLR0124 - NaN
                    line[at] = table[1]
                else:
                    line[at] = table[0]
                    line[at[0]] = lookup.scaled(value)  # type: ignore[attr-defined]
        raw: list[list[float]] = self._sum(design).tolist()
        return raw

    def score_columns(self, columns: Sequence[Any]) -> np.ndarray:
        design = np.zeros((len(columns[0]), self.width))
        for lookup, at, rows, number in self.design_columns:
            values = columns[lookup.column]
            if number:
                missing = np.isnan(values)
                design[:, at] = rows[missing.astype(np.intp)]
                design[~missing, at[0]] = lookup.scaled(values[~missing])  # type: ignore[attr-defined]
            else:
                design[:, at] = rows[lookup.indices(values)]
        total = np.empty((len(design), len(self.start)))
        for begin in range(0, len(design), CHUNK_ROWS):
            total[begin : begin + CHUNK_ROWS] = self._sum(design[begin : begin + CHUNK_ROWS])
        return total

    def _sum(self, design: np.ndarray) -> np.ndarray:
        feature, threshold, missing_left, children, values, roots = self.nodes
        if self.single:
            with np.errstate(over="ignore"):
                design = design.astype(np.float32)
            if np.isinf(design).any():
                raise DataError("a number is too large for this model", where="rows", remedy="correct the value")
        flat, rows = design.ravel(), np.arange(len(design))[:, None] * self.width
        holes = bool(np.isnan(flat).any())
        at = np.repeat(roots[None, :], len(design), axis=0)
        for _ in range(self.depth):  # take() takes half the time of indexing
            value = flat.take(rows + feature.take(at))
            left = value <= threshold.take(at)
            if holes:
                left |= np.isnan(value) & missing_left.take(at)
            at = children.take(2 * at + left)
        shape = (len(design), 1 + values.shape[1] * len(roots) // len(self.start), len(self.start))
        steps = np.empty(shape, dtype=values.dtype)
        steps[:, 0] = self.start
        steps[:, 1:] = values.take(at, axis=0).reshape(len(design), -1, len(self.start))
        total: np.ndarray = np.cumsum(steps, axis=1)[:, -1]
        return total


@dataclass(frozen=True)
class OutputTransform:
    """Turns raw scores into a value, or into a class and its probabilities.

    Attributes:
        link: function from scores to values or probabilities; ``mean`` divides by ``trees``, ``probability`` is for
            scores that are probabilities.
        order: for each class of the model, its position among the classes of the contract.
        classes: number of classes of the contract; 0 for a regression.
        threshold: of the decision; of a binary model on the probability of its class ``positive``, of more classes in
            the contract's order; None: the class with the largest probability.
        by_score: whether the class is decided by the largest score instead of the largest probability, as in
            scikit-learn's linear models.
        trees: number of trees of a random forest.
        calibration: of the probabilities; then the class is decided by the calibrated ones.
    """

    link: LinkFunction
    order: tuple[int, ...] = ()
    classes: int = 0
    threshold: Threshold | None = None
    positive: int = 1
    by_score: bool = False
    trees: int = 1
    calibration: Calibration | None = None

    def value(self, raw: float) -> float:
        if self.link == "exp":
            return exponential(raw)
        return raw / self.trees if self.link == "mean" else raw

    def values(self, raw: np.ndarray) -> np.ndarray:
        """(n,) the values of raw scores, each as ``value`` gives it."""
        if self.link == "exp":
            return exponentials(raw)
        return raw / self.trees if self.link == "mean" else raw

    def label(self, raw: Sequence[float]) -> tuple[int, list[float]]:
        """Position of the class in the contract, and the probabilities in the contract's order."""
        shares = self._probabilities(raw)
        if self.calibration is not None:
            return self._decide(self.calibration.calibrate(self._in_contract_order(shares)))
        if isinstance(self.threshold, tuple):
            return self._decide(self._in_contract_order(shares))
        if self.threshold is not None:
            best = self.positive if shares[self.positive] >= self.threshold else 1 - self.positive
        elif self.by_score and len(raw) == 1:
            best = int(raw[0] > 0)
        else:
            best = _argmax(raw if self.by_score else shares)
        return self.order[best], self._in_contract_order(shares)

    def labels(self, raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Positions (n,) int64 and probabilities (n, classes) of raw scores (n, outputs), each row as by ``label``."""
        if not np.isfinite(raw).all():  # how Python compares NaN depends on the order
            rows = [self.label(scores) for scores in raw.tolist()]
            positions = np.array([position for position, _ in rows], dtype=np.int64)
            return positions, np.array([shares for _, shares in rows]).reshape(len(rows), self.classes)
        shares = self._all_probabilities(raw)
        ordered = np.zeros((len(raw), self.classes))
        ordered[:, self.order] = shares / add_columns(shares)[:, None]
        if self.calibration is not None:
            ordered = self.calibration.calibrate_rows(ordered)
        if self.calibration is not None or isinstance(self.threshold, tuple):
            positive = self.order[self.positive] if self.positive < len(self.order) else 1
            return decide_classes(ordered, self.threshold, positive), ordered
        if self.threshold is not None:
            best = np.where(shares[:, self.positive] >= self.threshold, self.positive, 1 - self.positive)
        elif self.by_score and raw.shape[1] == 1:
            best = (raw[:, 0] > 0).astype(np.int64)
        else:
            best = (raw if self.by_score else shares).argmax(axis=1)
        return np.asarray(self.order, dtype=np.int64)[best], ordered

    def _decide(self, probabilities: list[float]) -> tuple[int, list[float]]:
        """The class of probabilities in the contract's order, which are calibrated if there is a calibration."""
        if self.threshold is None:
            return _argmax(probabilities), probabilities
        if isinstance(self.threshold, tuple):
            ratios = [share / limit for share, limit in zip(probabilities, self.threshold, strict=True)]
            return _argmax(ratios), probabilities
        positive = self.order[self.positive]
        return (positive if probabilities[positive] >= self.threshold else 1 - positive), probabilities

    def _in_contract_order(self, shares: Sequence[float]) -> list[float]:
        """Probabilities in the contract's order, from those in the model's order."""
        total = add(shares)
        if self.classes == len(shares):
            return [share / total for share in shares]
        ordered = [0.0] * self.classes
        for at, share in zip(self.order, shares, strict=True):
            ordered[at] = share / total
        return ordered

    def _probabilities(self, raw: Sequence[float]) -> list[float]:
        if self.link == "expit":
            return expit(raw[0])
        if self.link == "probability":
            return list(raw)
        return [score / self.trees for score in raw] if self.link == "mean" else softmax(raw)

    def _all_probabilities(self, raw: np.ndarray) -> np.ndarray:
        """(n, classes of the model) as ``_probabilities`` of each row."""
        if self.link == "expit":
            positive = 1 / (1 + exponentials(-raw[:, 0]))
            return np.column_stack([1 - positive, positive])
        if self.link == "probability":
            return raw
        return raw / self.trees if self.link == "mean" else softmax_rows(raw)


@dataclass(frozen=True)
class Plan:
    """A compiled model: maps canonical rows or columns to values, or to class positions and probabilities.

    Attributes:
        scorer: of the input columns, followed by the derived ones.
        output: from raw scores to values or classes.
        derived: ages of dates and features of texts.
    """

    scorer: RawScorer
    output: OutputTransform
    derived: tuple[AgeColumn | TextColumns, ...] = ()

    @property
    def used_columns(self) -> frozenset[int]:
        """The positions of the input columns that a prediction depends on."""
        scorer, columns = self.scorer, set()
        if isinstance(scorer, LinearSum):
            columns = {term.lookup.column for term in scorer.terms}
        elif isinstance(scorer, BitmaskForest):
            columns = {lookup.column for lookup, _ in scorer.masks}
        elif isinstance(scorer, TraversedForest):
            columns = {part.lookup.column for part in scorer.design_columns}
        elif isinstance(scorer, WeightedMean):
            columns = {column for part in scorer.parts for column in part.used_columns}
        for part in self.derived:
            columns |= {part.column} if isinstance(part, TextColumns) or part.time is None else {part.column, part.time}
        return frozenset(columns)

    def predict_rows(self, rows: Sequence[Sequence[Any]]) -> list[tuple[float | int, list[float] | None]]:
        """For each canonical row the value, or the position of the class and the probabilities."""
        if self.derived:
            rows = [[*row, *(value for part in self.derived for value in part.values(row))] for row in rows]
        raw = self.scorer.score_rows(rows)
        if not self.output.classes:
            return [(self.output.value(scores[0]), None) for scores in raw]
        return [self.output.label(scores) for scores in raw]

    def derive(self, columns: Sequence[Any]) -> list[Any]:
        """The input columns, followed by the derived ones."""
        return [*columns, *(array for part in self.derived for array in part.arrays(columns))]

    def predict_columns(self, columns: Sequence[Any]) -> tuple[np.ndarray, np.ndarray | None]:
        """Predictions of n rows: values (n,) float64, or positions (n,) int64 and probabilities (n, classes)."""
        raw = self.scorer.score_columns(self.derive(columns))
        return self.output.labels(raw) if self.output.classes else (self.output.values(raw[:, 0]), None)


class WeightedMean:
    """An ensemble: the weighted mean of the values or probabilities of several plans, added in their order.

    The raw scores are the mean itself: one value, or the probabilities in the contract's order.

    Args:
        parts: the plans; each has its own derived columns.
        weights: of the parts; they sum to 1.
    """

    def __init__(self, parts: Sequence[Plan], weights: Sequence[float]) -> None:
        self.parts, self.weights = tuple(parts), tuple(weights)
        self._outputs = range(parts[0].output.classes or 1)

    def score_rows(self, rows: Sequence[Sequence[Any]]) -> list[list[float]]:
        totals = [[0.0 for _ in self._outputs] for _ in rows]
        for part, weight in zip(self.parts, self.weights, strict=True):
            for total, (value, shares) in zip(totals, part.predict_rows(rows), strict=True):
                scores = (value,) if shares is None else shares
                for k in self._outputs:
                    total[k] += weight * scores[k]
        return totals

    def score_columns(self, columns: Sequence[Any]) -> np.ndarray:
        total = np.zeros((len(columns[0]), len(self._outputs)))
        for part, weight in zip(self.parts, self.weights, strict=True):
            values, shares = part.predict_columns(columns)
            total += weight * (values[:, None] if shares is None else shares)
        return total


def _argmax(shares: Sequence[float]) -> int:
    return max(range(len(shares)), key=shares.__getitem__)
