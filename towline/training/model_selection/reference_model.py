"""The reference model: boosting with scikit-learn's defaults, which shows whether all candidates are far too weak.

Its number of iterations is fixed: the comparison needs no optimum.
It is fitted on a sample of the same folds and compared with the selected candidate. The comparison gives a note, and
never changes the selection. If a candidate is the reference model itself, there is nothing to compare.
"""

from collections.abc import Sequence

import numpy as np

from towline.config import Candidate, Frozen, TrainingConfig
from towline.data.workspace import Workspace
from towline.errors import TowlineError
from towline.training.evaluation.definitions import primary_metric
from towline.training.model_selection.cross_validation import CrossValidationResult, score_on_last_folds
from towline.training.user_code import describe_error

REFERENCE = Candidate(estimator="boosting", params={"max_iter": 100, "early_stopping": False})
MAX_ROWS = 10_000
MAX_CELLS = 2_000_000  # rows x columns x classes that a fold is fitted on
SMALL_ROWS = 5_000  # of a smaller table all folds are used: one fold has too few rows to judge by
MARGIN = 0.1  # of the distance between the baseline and the reference


class ReferenceComparison(Frozen):
    """The selected candidate and the reference model on the same folds.

    Attributes:
        candidate: the selected one.
        metric, folds: the primary metric, and the number of folds.
        value, reference: means of the metric; None if there is no comparison.
        far_below: whether the candidate is far below the reference.
        failed: why the reference could not be measured; else empty.
    """

    candidate: str
    metric: str
    folds: int = 0
    value: float | None = None
    reference: float | None = None
    far_below: bool = False
    failed: str = ""

    def __str__(self) -> str:
        if self.failed:
            return f"not measured: {self.failed}"
        folds = "the last fold" if self.folds == 1 else f"{self.folds} folds"
        compared = f"{self.metric} on {folds}: {self.candidate} {self.value:.4g}, default boosting {self.reference:.4g}"
        return f"{self.candidate} is far below default boosting: {compared}" if self.far_below else compared

    @property
    def advice(self) -> str:
        """A note if the candidate is far below the reference; else empty."""
        return f"{self}; add boosting to candidates" if self.far_below else ""


def is_comparison_needed(scores: Sequence[CrossValidationResult], config: TrainingConfig) -> bool:
    """Whether no fitted candidate is the reference model."""
    fitted = {result.candidate for result in scores if not result.failed}
    defaults = [each for each in config.candidates if each.estimator == REFERENCE.estimator and not each.params]
    return not any(each.name in fitted and not each.weights for each in defaults)


def compare_with_reference(
    work: Workspace, config: TrainingConfig, scores: Sequence[CrossValidationResult], chosen: CrossValidationResult
) -> ReferenceComparison:
    """Compares the selected candidate with the reference model.

    The reference is fitted on at most 10,000 rows of each fold, so it has no advantage.

    Args:
        work: the run's workspace.
        config: of the training.
        scores: of the candidates; the baseline is one of them.
        chosen: the selected candidate.

    Returns:
        The comparison. If the reference cannot be fitted, it has the reason.
    """
    contract = work.contract()
    metric = primary_metric(config, contract.task)
    columns, classes = max(1, len(contract.feature_columns)), max(1, len(contract.classes) - 1)
    rows = max(1_000, min(MAX_ROWS, MAX_CELLS // (columns * classes)))
    folds = len(chosen.folds) if work.dataset.rows <= SMALL_ROWS else 1
    try:
        reference = np.array(score_on_last_folds(work, config, REFERENCE, folds, rows))
    except TowlineError:
        raise
    except Exception as error:  # noqa: BLE001 - the comparison must not end the run
        return ReferenceComparison(candidate=chosen.candidate, metric=metric, failed=describe_error(error))
    baseline = next(result for result in scores if result.estimator == "baseline")
    values, lowest = (
        np.array([fold.get(metric, np.nan) for fold in each.folds[-folds:]]) for each in (chosen, baseline)
    )
    if not np.isfinite(reference - values).any():
        return ReferenceComparison(candidate=chosen.candidate, metric=metric, failed=f"{metric} is undefined")
    sign = 1 if metric.greater_is_better else -1
    return ReferenceComparison(
        candidate=chosen.candidate,
        metric=metric,
        folds=folds,
        value=float(np.nanmean(values)),
        reference=float(np.nanmean(reference)),
        far_below=is_far_below(sign * lowest, sign * values, sign * reference),
    )


def is_far_below(baseline: np.ndarray, values: np.ndarray, reference: np.ndarray) -> bool:
    """Whether a candidate is far below the reference, in each array a value per fold, where greater is better.

    It is if the mean of the reference is better by more than a tenth of its distance from the baseline, and the
    difference is greater than twice its standard error over the folds.

    Example:
        >>> is_far_below(np.array([0.5, 0.5]), np.array([0.7, 0.71]), np.array([0.9, 0.92]))
        True
        >>> is_far_below(np.array([0.5, 0.5]), np.array([0.89, 0.9]), np.array([0.9, 0.92]))
        False
    """
    difference = reference - values
    difference = difference[np.isfinite(difference)]
    if not len(difference) or not np.isfinite(baseline).any():
        return False
    mean = float(np.mean(difference))
    error = float(np.std(difference, ddof=1) / np.sqrt(len(difference))) if len(difference) > 1 else 0.0
    return mean > max(MARGIN * float(np.nanmean(reference - baseline)), 2 * error, 0.0)
