"""Fusion: features of one column are looked up together with the column, so that a request does not compute them.

The trees need only the row of a feature's table. If a feature depends on one column of texts, or is a step
function of one column of numbers, this row follows from the row of the column: the masks of the column and of its
features become one table, by the levels or the steps. A text that is not a known level has no row there; then the
features are computed.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from towline.data.schema.contract import Contract
from towline.inference.compiled.feature_lookups import NULL, CategoryLookup, FeatureLookup, NumericLookup
from towline.inference.compiled.plan import BitmaskForest, Plan, TextColumns

MAX_ROWS = 1000  # of a fused table
NO_ROW = 1 << 40  # of an unknown level: beyond all tables
Feature = Callable[[Sequence[Any]], Any]


class OneColumnFeature(NamedTuple):
    """A feature that depends on one column: the positions of both, its function of a row, and its steps if any."""

    place: int
    column: int
    evaluate: Feature
    steps: frozenset[float] | None


class FusedForest:
    """Bitmask forest whose rows need not hold some of the features.

    Args:
        forest: with a lookup for each column and feature.
        masks: the tables of ``forest`` after fusion.
        features: functions of the features that rows need not hold, by their positions.
    """

    def __init__(
        self,
        forest: BitmaskForest,
        masks: Sequence[tuple[FeatureLookup, np.ndarray]],
        features: Mapping[int, Feature],
    ) -> None:
        self.forest, self.features = forest, dict(features)
        self._fused = BitmaskForest(forest.start, masks, forest.leaves)

    def score_rows(self, rows: Sequence[Sequence[Any]]) -> list[list[float]]:
        try:
            return self._fused.score_rows(rows)
        except IndexError:  # an unknown level
            return self.forest.score_rows([self._add_features(row) for row in rows])

    def score_columns(self, columns: Sequence[np.ndarray]) -> np.ndarray:
        """Columns hold all features."""
        return self.forest.score_columns(columns)

    def _add_features(self, row: Sequence[Any]) -> list[Any]:
        complete = list(row)
        for place, evaluate in self.features.items():
            complete[place] = evaluate(row)
        return complete


def fuse_features(plan: Plan, contract: Contract) -> Plan:
    """A plan whose rows need not hold the features that depend on one column, with equal predictions.

    Personal data are replaced by pseudonyms after features are computed, so features of them are not fused.
    """
    forest = plan.scorer
    if not isinstance(forest, BitmaskForest):
        return plan
    by_column: dict[int, list[OneColumnFeature]] = defaultdict(list)
    lookups: dict[int, list[tuple[FeatureLookup, np.ndarray]]] = defaultdict(list)
    for lookup, table in forest.masks:
        lookups[lookup.column].append((lookup, table))
    read = {column for part in plan.derived for column in _columns_of(part)}
    for feature in _list_features(contract):
        if feature.place in lookups and feature.place not in read:
            by_column[feature.column].append(feature)
    fused: dict[int, tuple[FeatureLookup, np.ndarray]] = {}
    features: dict[int, Feature] = {}
    for column, group in by_column.items():
        fused_column = _fuse_column(contract, column, group, lookups)
        if fused_column is not None:
            fused[column] = fused_column
            features |= {feature.place: feature.evaluate for feature in group}
    if not fused:
        return plan
    rest = [mask for mask in forest.masks if mask[0].column not in fused and mask[0].column not in features]
    return replace(plan, scorer=FusedForest(forest, [*rest, *fused.values()], features))


def _columns_of(part: Any) -> tuple[int | None, ...]:
    return (part.column,) if isinstance(part, TextColumns) else (part.column, part.time)


def _list_features(contract: Contract) -> list[OneColumnFeature]:
    """The features of one column of texts, and the step functions of one column of numbers."""
    inputs = {column.name: (place, column) for place, column in enumerate(contract.input_columns)}
    places = {column.name: place for place, column in enumerate(contract.canonical_columns)}
    features = []
    for name, expression in contract.compile_features().items():
        if len(expression.inputs) != 1 or expression.inputs[0] not in inputs:
            continue
        place, column = inputs[expression.inputs[0]]
        steps = expression.find_steps() if column.kind == "numeric" else None
        if not column.pii and (column.kind in ("category", "text") or steps is not None):
            features.append(OneColumnFeature(places[name], place, expression.evaluate, steps))
    return features


def _fuse_column(
    contract: Contract,
    column: int,
    features: Sequence[OneColumnFeature],
    lookups: Mapping[int, Sequence[tuple[FeatureLookup, np.ndarray]]],
) -> tuple[FeatureLookup, np.ndarray] | None:
    """The lookup of a column with the masks of the column and its features; None if it cannot be fused."""
    own = [lookup for lookup, _ in lookups.get(column, ())]
    values: list[Any]
    lookup: FeatureLookup
    if contract.canonical_columns[column].kind == "numeric":
        if any(not isinstance(lookup, NumericLookup) or lookup.scale is not None for lookup in own):
            return None
        steps = {step for feature in features for step in feature.steps or ()}
        edges = {edge for step in steps for edge in (math.nextafter(step, -math.inf), step)}
        cuts = sorted(edges.union(*(lookup.cuts for lookup in own)))  # type: ignore[attr-defined]
        last = math.nextafter(cuts[-1], math.inf) if cuts else 0.0
        lookup, values = NumericLookup(column, cuts=tuple(cuts)), [*cuts, last, math.nan]
    else:
        if any(not isinstance(lookup, CategoryLookup) for lookup in own):
            return None
        known = {key for lookup in own for key in lookup.keys} - {None}  # type: ignore[attr-defined]
        levels = sorted(known) if own else list(contract.canonical_columns[column].categories or ())
        if not levels:
            return None
        keys = {None: NULL} | {level: row for row, level in enumerate(levels, 1)}
        lookup, values = CategoryLookup(column, keys, NO_ROW), [None, *levels]
    if len(values) > MAX_ROWS:
        return None
    return lookup, _combine(contract, column, features, lookups, values)


def _combine(
    contract: Contract,
    column: int,
    features: Sequence[OneColumnFeature],
    lookups: Mapping[int, Sequence[tuple[FeatureLookup, np.ndarray]]],
    values: Sequence[Any],
) -> np.ndarray:
    """(values, trees) masks: for each value of the column the leaves that it and its features leave reachable."""
    row = [None] * len(contract.canonical_columns)
    combined = []
    for value in values:
        row[column] = value
        masks = [table[lookup.index(value)] for lookup, table in lookups.get(column, ())]
        for feature in features:
            result = feature.evaluate(row)
            masks += [table[lookup.index(result)] for lookup, table in lookups[feature.place]]
        combined.append(np.bitwise_and.reduce(masks, axis=0))
    return np.array(combined)
