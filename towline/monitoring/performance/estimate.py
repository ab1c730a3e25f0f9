"""Performance estimates for windows without labels, and whether past estimates were right.

The estimator itself is ``towline.training.performance_estimation``.

An estimate knows the inputs and what the model says of them. It cannot know that the same inputs have come to lead to
other labels: that shows only once labels are there, when estimates of the past are held against them.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pyarrow as pa

from towline.config import PipelineConfig
from towline.data.schema.contract import Contract
from towline.errors import DataError
from towline.manifest import read
from towline.monitoring.performance.logged_predictions import answered, frame, plain
from towline.monitoring.performance.quality import PerformanceBound, accepted
from towline.monitoring.results import DriftResult, PerformanceEstimate, QualityResult
from towline.training import performance_estimation
from towline.training.performance_estimation import EstimatorState

COMPARED = 3  # windows with labels that an estimate is held against
MATERIAL = 0.5  # of what is accepted: smaller misses do not matter, however sure


def estimate(
    table: pa.Table, release: Path, config: PipelineConfig, drift: DriftResult | None, past: Sequence[QualityResult]
) -> PerformanceEstimate:
    """What the deciding metric probably is on a version's predictions, whether they have labels or not.

    It is not to be trusted where the inputs have drifted from what it was learnt on, where estimates missed by much on
    the model's own past or against labels that came since, and where there are few predictions. There is none where the
    release cannot make one, or needs columns that the log does not keep as they are.

    Args:
        table: as ``labels.read`` gives it, labels are not looked at; rows of other versions are left out.
        release: of the version in question.
        config: says the metric, and what is accepted of it.
        drift: the last night that was looked at; None if there was none.
        past: windows of this version, oldest first.

    Raises:
        ConfigError: the metric is not one of the task.
        ReleaseError: the release cannot be read.
    """
    contract = Contract.read(release)
    goal = accepted(release, config, contract)
    loaded = performance_estimation.load(release)
    if loaded is None:
        return _none("the release was packaged without what an estimate needs; the next training makes it")
    basis, model = loaded
    if basis.metric != goal.metric:
        return _none(f"the release can estimate {basis.metric}, not {goal.metric}; the next training changes that")
    if basis.why_not:
        return _none(basis.why_not)
    found = answered(table, read(release).version, contract, goal.metric)
    rows, predictions = found.table.filter(pa.array(found.usable)), found.predictions.take(found.usable)
    if not len(rows):
        return _none("there are no predictions to estimate it for")
    features: pd.DataFrame | None = None
    if contract.task == "regression":
        needed = [column.name for column in contract.feature_columns]
        if lacking := sorted(set(needed) - plain(release, contract)):
            return _none(f"the log does not keep {', '.join(lacking[:5])} as they are")
        try:
            features = contract.features(frame(rows, needed))
        except DataError as error:
            return _none(f"the logged rows cannot be read: {error.what}")
    guess = performance_estimation.estimate(basis, model, predictions, features, contract, config.seed)
    if guess.value is None:
        return _none(f"{goal.metric} is undefined on these {len(rows):,} predictions")
    doubts = _doubts(basis, goal, len(rows), config, drift, past)
    why = "; ".join(doubts) or f"learnt from {basis.rows:,} rows; {reliable(past)[1]}"
    return PerformanceEstimate(value=guess.value, low=guess.low, high=guess.high, trusted=not doubts, why=why)


def reliable(past: Sequence[QualityResult]) -> tuple[bool, str]:
    """Whether estimates agreed with what came true, in the last three windows where both are known.

    They disagree where their intervals lie apart and the values differ by more than half of what the bound accepts.

    Args:
        past: windows of one version, oldest first.
    """
    compared = [pair for window in past if (pair := _pair(window))]
    if not compared:
        return True, "not held against labels yet"
    for window, guess, true in reversed(compared[-COMPARED:]):
        slack = 0.0 if window.holdout is None else abs(window.bound - window.holdout)
        apart = guess.low > true.high or guess.high < true.low
        if apart and abs(guess.value - true.value) > MATERIAL * slack:
            day = f" of {window.end:%Y-%m-%d}" if window.end else ""
            told = f"{window.metric} was estimated as {guess.value:.4g} and turned out {window.value.text()}"
            return False, f"{told} in the window{day}: what inputs lead to has changed, which no estimate can see"
    count = len(compared[-COMPARED:])
    return True, f"it agreed with labels in the last {f'{count} windows' if count > 1 else 'window'}"


class _Known(NamedTuple):
    value: float
    low: float
    high: float


def _pair(window: QualityResult) -> tuple[QualityResult, _Known, _Known] | None:
    """A window's estimate and what came true; None where one of them lacks."""
    guess, true = window.expected or window.estimate, window.value
    sides = [
        _Known(side.value, side.low, side.high)
        for side in (guess, true)
        if side is not None and side.value is not None and side.low is not None and side.high is not None
    ]
    return (window, sides[0], sides[1]) if len(sides) == 2 else None


def _doubts(
    basis: EstimatorState,
    goal: PerformanceBound,
    rows: int,
    config: PipelineConfig,
    drift: DriftResult | None,
    past: Sequence[QualityResult],
) -> list[str]:
    doubts = []
    if rows < config.quality.min_labels:
        doubts.append(f"{rows:,} predictions are few, {config.quality.min_labels} are asked for")
    if drift is not None and drift.state in ("drift", "invalid_schema"):
        names = list(dict.fromkeys(check.column for check in drift.checks if check.alarm or check.invalid))
        what = (
            "the inputs are broken" if drift.state == "invalid_schema" else "the inputs are not those it was learnt on"
        )
        doubts.append(f"{what}: {', '.join(names[:5]) or drift.reason}")
    slack = abs(goal.bound - goal.holdout) if goal.holdout is not None else 0.0
    if basis.error is not None and basis.error > MATERIAL * slack:
        doubts.append(f"it missed by {basis.error:.3g} on the training rows' own past, beyond half of what is accepted")
    agreed, told = reliable(past)
    return doubts if agreed else [*doubts, told]


def _none(why: str) -> PerformanceEstimate:
    return PerformanceEstimate(value=None, trusted=False, why=why)
