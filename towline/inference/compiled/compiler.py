"""The compiler turns a fitted pipeline into a plan.

It fills the tables of the plan by calling each transformer of the preprocessing with every value that matters.
"""

import dataclasses
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.sparse import issparse
from sklearn.ensemble import (
    ExtraTreesClassifier,
    ExtraTreesRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.linear_model import ElasticNet, Lasso, LinearRegression, LogisticRegression, Ridge
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OneHotEncoder

from towline.data.schema.contract import Contract
from towline.inference.compiled.booster_trees import NotCompiledError, Tree, list_codes, read_trees
from towline.inference.compiled.feature_lookups import (
    CALENDAR_VALUES,
    CalendarLookup,
    CategoryLookup,
    FeatureLookup,
    NumericLookup,
)
from towline.inference.compiled.plan import (
    NARROW_LEAVES,
    AgeColumn,
    BitmaskForest,
    DesignColumns,
    LinearSum,
    LinearTerm,
    LinkFunction,
    OutputTransform,
    Plan,
    RawScorer,
    TextColumns,
    TraversedForest,
    TreeNodes,
    WeightedMean,
)  # fmt: skip
from towline.training.boosting.histogram import BoostingClassifier, BoostingRegressor
from towline.training.boosting.libraries import Booster
from towline.training.evaluation.predictions import Threshold
from towline.training.pipeline_components import (
    CalendarParts,
    Classifier,
    DateAges,
    EnsembleClassifier,
    EnsembleRegressor,
    TextEncoder,
    TransformedColumns,
)

_LINEAR = (Ridge, LinearRegression, Lasso, ElasticNet, LogisticRegression)
_FORESTS = (RandomForestRegressor, RandomForestClassifier, ExtraTreesRegressor, ExtraTreesClassifier)
_BOOSTED = (
    HistGradientBoostingRegressor, HistGradientBoostingClassifier, BoostingRegressor, BoostingClassifier,
)  # fmt: skip
_LINKS: dict[str, LinkFunction] = {
    "IdentityLink": "identity",
    "LogLink": "exp",
    "LogitLink": "expit",
    "MultinomialLogit": "softmax",
}
MAX_MASK_BYTES = 64 * 2**20  # bytes of masks; larger ensembles become a TraversedForest


def compile_plan(model: Any, contract: Contract) -> Plan:
    """Compiles a fitted model to a plan.

    Args:
        model: a fitted model, as ``estimators.build`` creates it.
        contract: the contract of its features.

    Raises:
        NotCompiledError: a part of the pipeline cannot be compiled.
    """
    if isinstance(model, EnsembleRegressor | EnsembleClassifier):
        return _compile_ensemble(model, contract)
    pipeline = model.pipeline if isinstance(model, Classifier) else model
    if not isinstance(pipeline, Pipeline) or list(pipeline.named_steps) != ["prepare", "estimate"]:
        raise NotCompiledError(f"a {type(pipeline).__name__} is not one of the known pipelines")
    estimator = pipeline.named_steps["estimate"]
    prepare = pipeline.named_steps["prepare"]
    if isinstance(prepare, TransformedColumns):
        raise NotCompiledError("its features are prepared by code of the project")
    names = [column.name for column in contract.canonical_columns]
    blocks, derived = _encode_blocks(prepare, names)
    scorer, link = _compile_scorer(estimator, blocks)
    return Plan(scorer, _output_transform(model, estimator, contract, link), derived)


def _compile_ensemble(model: EnsembleRegressor | EnsembleClassifier, contract: Contract) -> Plan:
    parts = []
    for name, part in model.parts:
        try:
            parts.append(compile_plan(part, contract))
        except NotCompiledError as error:
            raise NotCompiledError(f"its part {name}: {error}") from None
    scorer, classes = WeightedMean(parts, model.weights), contract.classes
    if isinstance(model, EnsembleRegressor):
        return Plan(scorer, OutputTransform("identity"))
    threshold = model.threshold
    positive = classes.index(contract.positive) if contract.positive is not None else 1
    order = tuple(range(len(classes)))
    output = OutputTransform("probability", order, len(classes), threshold, positive, calibration=model.calibration)
    return Plan(scorer, output)


def _compile_scorer(estimator: Any, blocks: Sequence[DesignColumns]) -> tuple[RawScorer, LinkFunction]:
    width = sum(len(block.at) for block in blocks)
    if type(estimator) in _LINEAR:
        return _compile_linear(estimator, blocks), "identity"
    if type(estimator) in _FORESTS:
        trees = [_sklearn_tree(fitted.tree_) for fitted in estimator.estimators_]
        start = np.zeros(trees[0].values.shape[1])
        return _compile_traversal(start, blocks, width, trees, single=True), "mean"
    if type(estimator) in _BOOSTED:
        blocks = _encode_native(estimator, blocks)
        link = _LINKS.get(type(estimator._loss.link).__name__)
        if link is None:
            raise NotCompiledError(f"the loss {estimator.loss!r}")
        trees = [_boosted_tree(predictor) for iteration in estimator._predictors for predictor in iteration]
        start = np.asarray(estimator._baseline_prediction, dtype=np.float64).ravel()
        return _compile_boosted(start, blocks, width, trees), link
    if isinstance(estimator, Booster):
        if estimator.link is None:
            raise NotCompiledError(f"the objective {estimator.objective_!r}")
        start, trees = read_trees(estimator)
        return _compile_boosted(start, blocks, width, trees), estimator.link
    raise NotCompiledError(f"{type(estimator).__name__} is not one of the estimators that are compiled")


def _encode_native(estimator: Any, blocks: Sequence[DesignColumns]) -> list[DesignColumns]:
    """The design columns with the codes of categories that the trees split natively; NaN for unknown levels."""
    if estimator.is_categorical_ is None or not np.any(estimator.is_categorical_):
        return list(blocks)
    encoder = estimator._preprocessor.named_transformers_["encoder"]
    count = len(encoder.categories_)
    if not estimator.is_categorical_[:count].all():
        raise NotCompiledError("its native categories are not the first features")

    def encode(block: DesignColumns) -> DesignColumns:
        if (position := int(block.at[0])) >= count:
            return block
        cells = np.full((len(block.rows), count), np.nan)
        cells[:, position] = block.rows[:, 0]
        return block._replace(rows=encoder.transform(cells)[:, [position]])

    return [encode(block) for block in blocks]


def _output_transform(model: Any, estimator: Any, contract: Contract, link: LinkFunction) -> OutputTransform:
    trees = len(estimator.estimators_) if link == "mean" else 1
    if not contract.classes:
        return OutputTransform(link=link, trees=trees)
    linear = isinstance(estimator, LogisticRegression)
    if linear:
        link = "expit" if len(estimator.classes_) == 2 else "softmax"
    threshold: Threshold | None = None
    positive = 1
    order = tuple(model.positions_.tolist())
    if isinstance(model.threshold, tuple):
        threshold = model.threshold
    elif model.threshold is not None:
        threshold, positive = float(model.threshold), order.index(contract.classes.index(contract.positive))
    return OutputTransform(link, order, len(contract.classes), threshold, positive, linear, trees, model.calibration)


def _encode_blocks(
    prepare: Any, names: Sequence[str]
) -> tuple[list[DesignColumns], tuple[AgeColumn | TextColumns, ...]]:
    """The design columns of all transformers, and the derived columns, which follow the input columns."""
    blocks: list[DesignColumns] = []
    derived: list[AgeColumn | TextColumns] = []
    first = len(names)  # of the next derived columns
    for name, transformer, columns in prepare.transformers_:
        if name == "remainder" or not len(columns):
            continue
        begin = prepare.output_indices_[name].start
        at = [names.index(column) for column in columns]
        if name == "number":
            imputed = isinstance(transformer, Pipeline)
            blocks += _encode_numbers(transformer, at, begin, columns) if imputed else _pass_numbers(at, begin)
        elif name in ("category", "levels", "native"):
            blocks += _encode_categories(transformer, columns, at, begin)
        elif name == "text" and isinstance(transformer[0], TextEncoder):
            added = _encode_texts(transformer, first, begin)
            derived += map(TextColumns, at, transformer[0].projections)
            blocks, first = blocks + added, first + len(added)
        elif name in ("age", "trend") and isinstance(transformer[0], DateAges):
            time = at.pop() if transformer[0].has_time else None
            derived += [AgeColumn(column, time, transformer[0].latest_) for column in at]
            ages = range(first, first + len(at))
            imputed = len(transformer) > 1
            blocks += _encode_numbers(transformer[1:], ages, begin) if imputed else _pass_numbers(ages, begin)
            first += len(at)
        elif name == "calendar" and isinstance(transformer[0], CalendarParts):
            blocks += _encode_calendar(transformer, at, begin)
        else:
            raise NotCompiledError(f"the preprocessing block {name!r}")
    return blocks, tuple(derived)


def _pass_numbers(columns: Sequence[int], begin: int) -> Iterator[DesignColumns]:
    """Numbers as they are, also if they are missing."""
    for position, column in enumerate(columns, begin):
        yield DesignColumns(NumericLookup(column), np.array([position]), np.array([[0.0], [np.nan]]), number=True)


def _encode_numbers(
    transformer: Pipeline, columns: Sequence[int], begin: int, names: Sequence[str] | None = None
) -> Iterator[DesignColumns]:
    impute, *scale = transformer
    scaler = scale[0] if scale else None
    indicated = list(impute.indicator_.features_)
    cells = np.array([[0.0] * len(columns), [np.nan] * len(columns)])
    present, missing = transformer.transform(cells if names is None else pd.DataFrame(cells, columns=list(names)))
    for position, column in enumerate(columns):
        lookup = NumericLookup(column)
        if scaler is not None:
            lookup = NumericLookup(column, float(scaler.mean_[position]), float(scaler.scale_[position]))
        at = _with_indicator(position, len(columns), indicated)
        yield DesignColumns(lookup, begin + at, np.stack([present[at], missing[at]]), number=True)


def _encode_categories(
    transformer: Any, names: Sequence[str], columns: Sequence[int], begin: int
) -> Iterator[DesignColumns]:
    encoder = transformer[0] if isinstance(transformer, Pipeline) else transformer
    known = [[level for level in levels if isinstance(level, str)] for levels in encoder.categories_]
    widths = [len(levels) for levels in encoder.categories_]
    usual = [levels[0] if levels else np.nan for levels in known]
    for position, column in enumerate(columns):
        unseen = "?"
        while unseen in known[position]:
            unseen += "?"
        keys = [np.nan, unseen, *known[position]]
        frame = pd.DataFrame([usual] * len(keys), columns=list(names), dtype=object)
        frame[names[position]] = pd.Series(keys, dtype=object)
        table = _to_dense(transformer.transform(frame))
        if not isinstance(encoder, OneHotEncoder):
            widths = [table.shape[1] // len(columns)] * len(columns)
        at = sum(widths[:position]) + np.arange(widths[position])
        rows: dict[str | None, int] = {None: 0} | {key: row for row, key in enumerate(known[position], 2)}
        yield DesignColumns(CategoryLookup(column, rows), begin + at, table[:, at])


def _to_dense(table: Any) -> np.ndarray:
    return np.asarray(table.toarray() if issparse(table) else table, dtype=np.float64)


def _encode_texts(transformer: Pipeline, first: int, begin: int) -> list[DesignColumns]:
    """The features of texts, which are never null."""
    encoder, *scale = transformer
    width = sum(components.shape[1] for components in encoder.components_)
    lookups = [NumericLookup(first + position) for position in range(width)]
    if scale:
        scales = zip(lookups, scale[0].mean_.tolist(), scale[0].scale_.tolist(), strict=True)
        lookups = [NumericLookup(lookup.column, mean, width) for lookup, mean, width in scales]
    return [
        DesignColumns(lookup, np.array([begin + position]), np.zeros((2, 1)), number=True)
        for position, lookup in enumerate(lookups)
    ]


def _encode_calendar(transformer: Pipeline, columns: Sequence[int], begin: int) -> Iterator[DesignColumns]:
    pairs = [(column, part) for column, parts in zip(columns, transformer[0].parts, strict=True) for part in parts]
    encoder = transformer[1] if len(transformer) > 1 else None
    one_hot = isinstance(encoder, OneHotEncoder)
    usual = [float(CALENDAR_VALUES[part][0]) for _, part in pairs]
    for position, (column, part) in enumerate(pairs):
        values = [np.nan, *map(float, CALENDAR_VALUES[part])]
        cells = np.array([usual] * len(values))
        cells[:, position] = values
        table = _to_dense(cells if encoder is None else encoder.transform(cells))
        if encoder is None:
            at = np.array([position])
        elif one_hot:
            widths = [len(levels) for levels in encoder.categories_]
            at = sum(widths[:position]) + np.arange(widths[position])
        else:
            at = _with_indicator(position, len(pairs), list(encoder.indicator_.features_))
        yield DesignColumns(CalendarLookup(column, part), begin + at, table[:, at])


def _with_indicator(position: int, columns: int, indicated: list[int]) -> np.ndarray:
    """The position of an imputed column, and that of its missing-value indicator if it has one."""
    return np.array([position, *(columns + at for at, column in enumerate(indicated) if column == position)])


def _compile_linear(estimator: Any, blocks: Sequence[DesignColumns]) -> LinearSum:
    weights = np.atleast_2d(np.asarray(estimator.coef_, dtype=np.float64))  # (outputs, design columns)
    start = np.zeros(len(weights)) + np.asarray(estimator.intercept_, dtype=np.float64)
    terms = []
    for block in blocks:
        of = weights[:, block.at].T
        if block.number:  # the slope covers the value, so row 0 holds 0 in its column
            rest = block.rows.copy()
            rest[0, 0] = 0.0
            terms.append(LinearTerm(block.lookup, rest @ of, of[0]))
        else:
            terms.append(LinearTerm(block.lookup, block.rows @ of, None))
    return LinearSum(start, terms)


def _compile_boosted(
    start: np.ndarray, blocks: Sequence[DesignColumns], width: int, trees: Sequence[Tree]
) -> BitmaskForest | TraversedForest:
    """Boosted trees, as bitmasks if each tree has at most 64 leaves and the masks are small enough.

    Raises:
        NotCompiledError: the trees are larger, and some of them split categories natively.
    """
    leaves = max(int(tree.leaf.sum()) for tree in trees)
    cuts = {
        cut
        for tree in trees
        for cut in zip(tree.feature[~tree.leaf].tolist(), tree.threshold[~tree.leaf].tolist(), strict=True)
    }
    rows = len(cuts) + sum(len(block.rows) for block in blocks)
    if leaves <= 64 and len(trees) * rows * (4 if leaves <= NARROW_LEAVES else 8) <= MAX_MASK_BYTES:
        return _compile_bitmasks(start, blocks, trees)
    if any(tree.codes for tree in trees):
        raise NotCompiledError("its large trees split categories natively")
    return _compile_traversal(start, blocks, width, trees, single=False)


def _compile_traversal(
    start: np.ndarray, blocks: Sequence[DesignColumns], width: int, trees: Sequence[Tree], *, single: bool
) -> TraversedForest:
    sizes = [len(tree.leaf) for tree in trees]
    roots = np.cumsum([0, *sizes[:-1]])
    self_ = np.arange(sum(sizes))
    leaf = np.concatenate([tree.leaf for tree in trees])
    shift = np.repeat(roots, sizes)
    left, right = (
        np.where(leaf, self_, np.concatenate([getattr(tree, side) for tree in trees]) + shift)
        for side in ("left", "right")
    )
    nodes = TreeNodes(
        feature=np.where(leaf, 0, np.concatenate([tree.feature for tree in trees])).astype(np.intp),
        threshold=np.concatenate([tree.threshold for tree in trees]),
        missing_left=np.concatenate([tree.missing_left for tree in trees]),
        children=np.stack([right, left], axis=1).ravel(),
        values=np.concatenate([tree.values for tree in trees]),
        roots=roots,
    )
    return TraversedForest(start, blocks, width, nodes, max(map(_tree_depth, trees)), single)


class _Cut(NamedTuple):
    """A split: ``keep`` are the leaves of its tree that are still reachable if a value goes to the right."""

    threshold: float
    tree: int
    keep: np.uint64
    missing_left: bool
    codes: frozenset[int] | None

    def goes_left(self, value: float) -> bool:
        if np.isnan(value):
            return self.missing_left
        return bool(value <= self.threshold) if self.codes is None else int(value) in self.codes


def _compile_bitmasks(start: np.ndarray, blocks: Sequence[DesignColumns], trees: Sequence[Tree]) -> BitmaskForest:
    leaves = np.zeros((len(trees), 64), dtype=start.dtype)
    cuts: dict[int, list[_Cut]] = {}
    for number, tree in enumerate(trees):
        count = 0
        spans: dict[int, tuple[int, int]] = {}  # node → range of the leaves below it
        for node in _postorder(tree):
            if tree.leaf[node]:
                leaves[number, count] = tree.values[node, 0]
                spans[node] = (count, count + 1)
                count += 1
            else:
                begin, end = spans[int(tree.left[node])]
                spans[node] = (begin, spans[int(tree.right[node])][1])
                keep = np.uint64(~((1 << end) - (1 << begin)) & (2**64 - 1))
                codes = tree.codes[node] if tree.codes else None
                cut = _Cut(float(tree.threshold[node]), number, keep, bool(tree.missing_left[node]), codes)
                cuts.setdefault(int(tree.feature[node]), []).append(cut)
    masks = [
        _lookup_masks(block, cuts, len(trees)) for block in blocks if any(int(column) in cuts for column in block.at)
    ]
    if max(int(tree.leaf.sum()) for tree in trees) <= NARROW_LEAVES:
        return BitmaskForest(
            start, [(lookup, table.astype(np.uint32)) for lookup, table in masks], leaves[:, :NARROW_LEAVES]
        )
    return BitmaskForest(start, masks, leaves)


def _lookup_masks(block: DesignColumns, cuts: dict[int, list[_Cut]], trees: int) -> tuple[FeatureLookup, np.ndarray]:
    """The masks of one lookup: for each row of its table, the leaves of each tree that are still reachable."""
    lookup = block.lookup
    if isinstance(lookup, NumericLookup):
        column_cuts = cuts.get(int(block.at[0]), [])
        steps = sorted({cut.threshold for cut in column_cuts})
        lookup = dataclasses.replace(lookup, cuts=tuple(steps))
        table = np.full((len(steps) + 2, trees), ~np.uint64(0))
        for cut in column_cuts:
            table[bisect_left(steps, cut.threshold) + 1, cut.tree] &= cut.keep
        np.bitwise_and.accumulate(table[:-1], axis=0, out=table[:-1])
        design = np.stack([block.rows[0]] * (len(steps) + 1) + [block.rows[1]])
        first = 1  # column 0 of the block is the number itself, which the cuts above cover
        for cut in column_cuts:
            if not cut.goes_left(block.rows[1, 0]):
                table[-1, cut.tree] &= cut.keep
    else:
        table = np.full((len(block.rows), trees), ~np.uint64(0))
        design = block.rows
        first = 0
    for position, column in enumerate(block.at[first:], first):
        for cut in cuts.get(int(column), []):
            right = np.array([not cut.goes_left(value) for value in design[:, position]])
            table[right, cut.tree] &= cut.keep
    return lookup, table


def _postorder(tree: Tree) -> Iterator[int]:
    """The nodes, children before their parent and left before right."""
    pending = [(0, False)]
    while pending:
        node, expanded = pending.pop()
        if expanded or tree.leaf[node]:
            yield node
        else:
            pending += [(node, True), (int(tree.right[node]), False), (int(tree.left[node]), False)]


def _tree_depth(tree: Tree) -> int:
    depth, level = 0, np.array([0])
    while len(level := level[~tree.leaf[level]]):
        level = np.concatenate([tree.left[level], tree.right[level]])
        depth += 1
    return depth


def _boosted_tree(predictor: Any) -> Tree:
    nodes = predictor.nodes
    leaf = nodes["is_leaf"].astype(bool)
    codes: list[frozenset[int] | None] = [None] * len(nodes)
    for node in np.flatnonzero(nodes["is_categorical"] & ~leaf):
        codes[node] = list_codes(predictor.raw_left_cat_bitsets[nodes["bitset_idx"][node]])
    return Tree(
        feature=nodes["feature_idx"].astype(np.intp),
        threshold=nodes["num_threshold"].astype(np.float64),
        left=np.where(leaf, -1, nodes["left"].astype(np.int64)),
        right=np.where(leaf, -1, nodes["right"].astype(np.int64)),
        missing_left=nodes["missing_go_to_left"].astype(bool),
        values=nodes["value"].astype(np.float64)[:, None],
        codes=codes if any(code is not None for code in codes) else (),
    )


def _sklearn_tree(tree: Any) -> Tree:
    if tree.value.shape[1] != 1:
        raise NotCompiledError("it has several targets")
    return Tree(
        feature=np.asarray(tree.feature, dtype=np.intp),
        threshold=np.asarray(tree.threshold, dtype=np.float64),
        left=np.asarray(tree.children_left, dtype=np.int64),
        right=np.asarray(tree.children_right, dtype=np.int64),
        missing_left=np.asarray(tree.missing_go_to_left, dtype=bool),
        values=np.asarray(tree.value, dtype=np.float64)[:, 0, :],
    )
