"""The parity certificate records whether a compiled scorer gives the same predictions as scikit-learn.

A plan is used only if it agrees with scikit-learn on every row that was compared.
"""

import io
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from pydantic import Field

from towline.config import Frozen
from towline.data.schema.contract import Column, Contract
from towline.data.schema.rows import RowReader
from towline.inference.compiled import codec
from towline.inference.compiled.booster_trees import NotCompiledError
from towline.inference.compiled.compiler import compile_plan
from towline.inference.compiled.feature_lookups import NumericLookup
from towline.inference.compiled.plan import BitmaskForest, LinearSum, Plan, TraversedForest, WeightedMean
from towline.inference.compiled.scorer import CompiledScorer
from towline.inference.scorer import TOLERANCE
from towline.training.estimators import pipelines_of
from towline.training.evaluation.metrics import predict
from towline.training.evaluation.predictions import Predictions

GENERATED_ROWS = 5_000
CHUNK_ROWS = 20_000


class ParityCertificate(Frozen):
    """The result of compiling a model and comparing it with its library.

    Attributes:
        compiled: whether the release holds a plan that agrees with scikit-learn.
        reason: why it holds none; empty if it holds one.
        library: of the estimator: scikit-learn or a boosting library; of an ensemble those of its parts.
        scorer: kind of the plan.
        rows: number of compared rows by source: ``train``, ``holdout``, ``generated``.
        wrong_labels: number of rows with another class.
        largest_difference: largest difference of a probability, relative to the largest of 1 and the steepness of its
            calibration; or of a value, relative to the largest of 1, the value and the sum of a linear model's absolute
            terms.
        identical: share of rows with predictions that are equal to the last bit.
        tolerance: the largest difference allowed.
    """

    compiled: bool
    reason: str = ""
    library: str = "scikit-learn"
    scorer: str = "scikit-learn"
    rows: dict[str, int] = Field(default_factory=dict)
    wrong_labels: int = 0
    largest_difference: float = 0.0
    identical: float = 1.0
    tolerance: float = TOLERANCE

    def __str__(self) -> str:
        if not self.compiled:
            return f"{self.library} itself: {self.reason}"
        apart = "to the last bit" if self.identical == 1 else f"within {self.largest_difference:.1g}"
        return f"compiled ({self.scorer}): {sum(self.rows.values()):,} rows answered as {self.library} does, {apart}"


def certify(
    model: Any, contract: Contract, tables: dict[str, pd.DataFrame], seed: int
) -> tuple[ParityCertificate, bytes]:
    """Compiles a model and compares the plan with the model.

    Args:
        model: the fitted model.
        contract: the contract of its features.
        tables: canonical features by source: ``train``, ``holdout``. Generated rows around the thresholds of the plan
            are compared too.
        seed: seed of the generated rows.

    Returns:
        The certificate, and the content of the plan file; empty if the plan is not used.
    """
    libraries = (getattr(pipeline[-1], "library", "scikit-learn") for pipeline in pipelines_of(model).values())
    library = " and ".join(dict.fromkeys(libraries))
    try:
        plan = compile_plan(model, contract)
    except NotCompiledError as unknown:
        return ParityCertificate(compiled=False, library=library, reason=f"cannot be compiled: {unknown}"), b""
    written = io.BytesIO()
    codec.write_plan(plan, written)
    rows = {**tables, "generated": _generate_rows(plan, contract, tables["train"], seed)}
    scorer = CompiledScorer(plan, contract, RowReader(contract))
    wrong, largest, same, total = 0, 0.0, 0, 0
    for table in rows.values():
        for begin in range(0, len(table), CHUNK_ROWS):
            part = table.iloc[begin : begin + CHUNK_ROWS].reset_index(drop=True)
            scales = _error_scales(plan, part, contract)
            misses, distance = _differences(
                scorer.predict_frame(part), predict(model, part, contract), contract, scales
            )
            wrong += misses
            largest = max(largest, float(distance.max(initial=0.0)))
            same += int((distance == 0).sum())
            total += len(part)
    holds = wrong == 0 and largest <= TOLERANCE
    certificate = ParityCertificate(
        compiled=holds,
        library=library,
        reason="" if holds else f"{wrong:,} rows have another class, values differ by up to {largest:.3g}",
        scorer=codec.describe_scorer(plan) if holds else "scikit-learn",
        rows={name: len(table) for name, table in rows.items()},
        wrong_labels=wrong,
        largest_difference=largest,
        identical=same / total,
    )
    return certificate, written.getvalue() if holds else b""


def _error_scales(plan: Plan, features: pd.DataFrame, contract: Contract) -> np.ndarray:
    """(n,) scales that differences are divided by, at least 1.

    Rounding errors of a linear model are relative to the sum of its absolute terms, which may be far larger than its
    value. A calibration multiplies them by its steepness.
    """
    scales = np.ones(len(features))
    if contract.classes:
        calibration = plan.output.calibration
        return scales if calibration is None else scales * max(1.0, calibration.steepness)
    columns = [features[column.name].to_numpy() for column in contract.canonical_columns]
    for part in plan.scorer.parts if isinstance(plan.scorer, WeightedMean) else (plan,):
        if isinstance(part.scorer, LinearSum):
            scales = np.maximum(scales, part.scorer.sum_of_absolute_terms(part.derive(columns)).max(axis=1))
    return scales


def _differences(
    predictions: Predictions, expected: Predictions, contract: Contract, scales: np.ndarray
) -> tuple[int, np.ndarray]:
    """The number of rows with another class, and the largest difference in each row (n,)."""
    if not contract.classes:
        truth = expected.labels.astype(np.float64)
        equal = (predictions.labels == truth) | (np.isnan(predictions.labels) & np.isnan(truth))
        difference = np.abs(predictions.labels - truth) / np.maximum(scales, np.abs(truth))
        return 0, np.where(equal, 0.0, _nan_as_inf(difference))
    wrong = int((predictions.labels.astype(object) != expected.labels.astype(object)).sum())
    if expected.probabilities is None or predictions.probabilities is None:
        return wrong, np.zeros(len(predictions.labels))
    difference = _nan_as_inf(np.abs(predictions.probabilities - expected.probabilities)).max(axis=1)
    return wrong, np.asarray(difference / scales)


def _nan_as_inf(difference: np.ndarray) -> np.ndarray:
    return np.where(np.isnan(difference), np.inf, difference)


def _generate_rows(plan: Plan, contract: Contract, train: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Random rows; each cell is drawn independently: a training value, null, unseen, extreme or near a threshold."""
    rng = np.random.default_rng(seed)
    cuts: dict[int, list[float]] = {}
    for number, thresholds in _thresholds(plan):
        cuts[number] = [*cuts.get(number, ()), *thresholds]
    columns = {}
    for at, column in enumerate(contract.canonical_columns):
        drawn = train[column.name].to_numpy()[rng.integers(0, len(train), GENERATED_ROWS)].copy()
        pool = _edge_values(column, cuts.get(at, ()))
        chosen = rng.random(GENERATED_ROWS) < 0.5
        drawn[chosen] = pool[rng.integers(0, len(pool), int(chosen.sum()))]
        columns[column.name] = pd.Series(drawn, dtype=object) if drawn.dtype == object else drawn
    return pd.DataFrame(columns)


def _edge_values(column: Column, cuts: Sequence[float]) -> np.ndarray:
    if column.kind == "category":
        pool = np.empty(4, dtype=object)
        pool[:] = [np.nan, "never seen before", "?", column.categories[0] if column.categories else "?"]
        return pool
    if column.kind == "text":
        pool = np.empty(4, dtype=object)
        pool[:] = [np.nan, "?!", "Never seen before", "x" * 200]
        return pool
    if column.kind == "datetime":
        return np.array(["NaT", "0001-01-01", "1969-12-31T23:59:59.999999", "2100-02-28T00:00", "9999-12-31"], "M8[us]")
    if column.kind == "boolean":
        return np.array([np.nan, 0.0, 1.0])
    exact = np.array(cuts, dtype=np.float64)
    span = 1.0 + abs(column.max or 0.0) + abs(column.min or 0.0)
    extremes = [np.nan, np.nan, 0.0, -0.0, 5e-324, span, -span, 1e3 * span, -1e3 * span]
    return np.concatenate([extremes, exact, np.nextafter(exact, np.inf), np.nextafter(exact, -np.inf)])


def _thresholds(plan: Plan) -> Iterator[tuple[int, list[float]]]:
    """The thresholds of each numeric input column, in the units of the column."""
    head = plan.scorer
    if isinstance(head, WeightedMean):
        for part in head.parts:
            yield from _thresholds(part)
    elif isinstance(head, BitmaskForest):
        for lookup, _ in head.masks:
            if isinstance(lookup, NumericLookup):
                yield lookup.column, [lookup.unscaled(cut) for cut in lookup.cuts]
    elif isinstance(head, TraversedForest):
        inner = head.nodes.children[::2] != np.arange(len(head.nodes.feature))
        for block in head.design_columns:
            if isinstance(block.lookup, NumericLookup):
                thresholds = np.unique(head.nodes.threshold[inner & (head.nodes.feature == block.at[0])])
                yield block.lookup.column, block.lookup.unscaled(thresholds).tolist()
