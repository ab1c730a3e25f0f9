"""Performance estimates for windows without labels, and whether they can be trusted.

The estimator itself is ``towline.training.performance_estimation``. It uses the inputs and the model's predictions
only. It cannot see concept drift, where the same inputs lead to other labels. That shows only when labels arrive and
past estimates are compared with them.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pyarrow as pa

from towline.config import PipelineConfig
from towline.data.schema.contract import Contract
from towline.errors import DataError
from towline.manifest import read_manifest
from towline.monitoring.performance.logged_predictions import (
    logged_features,
    select_predictions,
    unmodified_features,
)
from towline.monitoring.performance.quality import PerformanceBound, performance_bound
from towline.monitoring.results import DriftResult, PerformanceEstimate, QualityResult
from towline.training import performance_estimation
from towline.training.evaluation.predictions import Interval
from towline.training.performance_estimation import EstimatorState

COMPARED_WINDOWS = 3
MATERIAL_SHARE = 0.5  # of the acceptable loss: smaller errors of an estimate do not matter


def estimate_performance(
    rows: pa.Table, release: Path, config: PipelineConfig, drift: DriftResult | None, past: Sequence[QualityResult]
) -> PerformanceEstimate:
    """Estimates the primary metric of a version's predictions without using their labels.

    The estimate is not trusted if the inputs have drifted, if there are few predictions, or if earlier estimates were
    wrong by much: on the model's own past, or compared with labels that came later. There is no estimate if the release
    cannot make one, or needs columns that are not logged unmodified.

    Args:
        rows: as ``labels.read`` returns them; those of other versions are left out.
        release: directory of the version's release.
        config: for the metric and its bound.
        drift: the last drift result; None if there is none.
        past: quality results of this version, oldest first.

    Raises:
        ConfigError: the metric does not fit the task.
        ReleaseError: the release cannot be read.
    """
    contract = Contract.read(release)
    bound = performance_bound(release, config, contract)
    loaded = performance_estimation.load_estimator(release)
    if loaded is None:
        return _no_estimate("the release has no performance estimator; the next training creates one")
    state, loss_model = loaded
    if state.metric != bound.metric:
        return _no_estimate(f"the release estimates {state.metric}, not {bound.metric}; the next training changes that")
    if state.unavailable:
        return _no_estimate(state.unavailable)
    logged = select_predictions(rows, read_manifest(release).version, contract, bound.metric)
    usable, predictions = logged.rows.filter(pa.array(logged.usable)), logged.predictions.take(logged.usable)
    if not len(usable):
        return _no_estimate("there are no predictions to estimate it for")
    features: pd.DataFrame | None = None
    if contract.task == "regression":
        names = [column.name for column in contract.input_columns]
        if missing := sorted(set(names) - unmodified_features(release, contract)):
            return _no_estimate(f"the log does not have {', '.join(missing[:5])} unmodified")
        try:
            features = contract.features(logged_features(usable, names))
        except DataError as error:
            return _no_estimate(f"the logged rows cannot be read: {error.what}")
    value = performance_estimation.estimate_metric(state, loss_model, predictions, features, contract, config.seed)
    if value.value is None:
        return _no_estimate(f"{bound.metric} is undefined on these {len(usable):,} predictions")
    doubts = _find_reasons_for_distrust(state, bound, len(usable), config, drift, past)
    why = "; ".join(doubts) or f"learned from {state.rows:,} rows; {compare_past_estimates(past).reason}"
    return PerformanceEstimate(value=value.value, low=value.low, high=value.high, trusted=not doubts, why=why)


class PastEstimates(NamedTuple):
    """Whether past estimates agreed with the labels that came later, and the reason."""

    agree: bool
    reason: str


def compare_past_estimates(past: Sequence[QualityResult]) -> PastEstimates:
    """Compares estimates with measured values in the last three windows where both are known.

    They disagree if their intervals do not overlap and the values differ by more than half of the acceptable loss.

    Args:
        past: quality results of one version, oldest first.
    """
    compared = [
        (window, estimate, measured)
        for window in past
        if (estimate := _known(window.expected or window.estimate)) and (measured := _known(window.value))
    ][-COMPARED_WINDOWS:]
    if not compared:
        return PastEstimates(True, "not compared with labels yet")
    for window, estimate, measured in reversed(compared):
        tolerance = 0.0 if window.holdout is None else abs(window.bound - window.holdout)
        disjoint = estimate.low > measured.high or estimate.high < measured.low
        if disjoint and abs(estimate.value - measured.value) > MATERIAL_SHARE * tolerance:
            day = f" of {window.end:%Y-%m-%d}" if window.end else ""
            reason = (
                f"{window.metric} was estimated as {estimate.value:.4g} and measured as {window.value.text()} in the "
                f"window{day}: the relation of inputs and labels has changed, which no estimate can see"
            )
            return PastEstimates(False, reason)
    count = len(compared)
    return PastEstimates(True, f"it agreed with labels in the last {f'{count} windows' if count > 1 else 'window'}")


class _KnownInterval(NamedTuple):
    value: float
    low: float
    high: float


def _known(value: Interval | PerformanceEstimate | None) -> _KnownInterval | None:
    if value is None or value.value is None or value.low is None or value.high is None:
        return None
    return _KnownInterval(value.value, value.low, value.high)


def _find_reasons_for_distrust(
    state: EstimatorState,
    bound: PerformanceBound,
    rows: int,
    config: PipelineConfig,
    drift: DriftResult | None,
    past: Sequence[QualityResult],
) -> list[str]:
    doubts = []
    if rows < config.quality.min_labels:
        doubts.append(f"{rows:,} predictions are few, {config.quality.min_labels} are needed")
    if drift is not None and drift.is_alarm:
        names = list(dict.fromkeys(check.column for check in drift.checks if check.alarm or check.invalid))
        problem = "the inputs are invalid" if drift.state == "invalid_schema" else "the inputs have drifted"
        doubts.append(f"{problem}: {', '.join(names[:5]) or drift.reason}")
    if state.error is not None and state.error > MATERIAL_SHARE * bound.tolerance:
        doubts.append(f"its error on the model's own past is {state.error:.3g}, more than half of the acceptable loss")
    agreement = compare_past_estimates(past)
    return doubts if agreement.agree else [*doubts, agreement.reason]


def _no_estimate(why: str) -> PerformanceEstimate:
    return PerformanceEstimate(value=None, trusted=False, why=why)
