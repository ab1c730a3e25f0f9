"""The reference model: the built-in boosting with its defaults, which the selected candidate is compared with.

If no candidate is a boosting of trees, all candidates may be far below what the table allows. The comparison is cheap:
both are fitted on a sample of the same folds. It gives a note, and never changes the selection.
"""

import numpy as np

from towline.config import GREATER_IS_BETTER, Candidate, TrainingConfig
from towline.data.workspace import Workspace
from towline.training.cross_validation import (
    CrossValidationResult,
    baseline_candidate,
    primary_metric,
    score_candidates,
)

MAX_ROWS = 10_000
MAX_CELLS = 2_000_000
SMALL_ROWS = 5_000  # of a smaller table all folds are used: one fold has too few rows to judge by
MARGIN = 0.1  # of the distance between the baseline and the reference
_BOOSTING = ("boost", "lightgbm", "lgbm")


def lacks_boosting(config: TrainingConfig) -> bool:
    """Whether no candidate is a boosting of trees: built-in, or of scikit-learn, LightGBM, XGBoost or CatBoost."""
    return not any(name in candidate.estimator.lower() for candidate in config.candidates for name in _BOOSTING)


def compare_with_reference(work: Workspace, config: TrainingConfig, chosen: CrossValidationResult) -> str:
    """Compares the selected candidate with the reference model.

    Args:
        work: the run's workspace.
        config: of the training.
        chosen: the selected candidate.

    Returns:
        A note if the reference is better by more than a tenth of its distance from the baseline; else empty.
    """
    contract = work.contract()
    metric, columns = primary_metric(config, contract.task), max(1, len(contract.feature_columns))
    candidate = next(each for each in config.candidates if each.name == chosen.candidate)
    candidate = candidate.model_copy(update={"params": chosen.params, "search": None})
    reference = Candidate(estimator="boosting", weights=candidate.weights)
    rows = max(1_000, min(MAX_ROWS, MAX_CELLS // columns))
    folds = config.cross_validation.folds if work.dataset.rows <= SMALL_ROWS else 1
    try:
        compared = [baseline_candidate(config), candidate, reference]
        scores = np.array(score_candidates(work, config, compared, rows, folds))
    except Exception:  # noqa: BLE001 - the comparison is only advice
        return ""
    baseline, own, best = scores if GREATER_IS_BETTER[metric] else -scores
    if not is_far_below(baseline, own, best):
        return ""
    own_value, best_value = np.nanmean(scores[1]), np.nanmean(scores[2])
    where = "the same fold" if scores.shape[1] == 1 else "the same folds"
    return (
        f"boosting reaches {metric} {best_value:.4g} on {where}, {candidate.name} {own_value:.4g}: "
        "add boosting to candidates"
    )


def is_far_below(baseline: np.ndarray, own: np.ndarray, reference: np.ndarray) -> bool:
    """Whether a candidate is far below the reference, in each array a value per fold, where greater is better.

    It is if the mean of the reference is better by more than a tenth of its distance from the baseline, and the
    difference is greater than twice its standard error over the folds.
    """
    difference = reference - own
    if not np.isfinite(difference).any() or not np.isfinite(baseline).any():
        return False
    mean = float(np.nanmean(difference))
    error = float(np.nanstd(difference, ddof=1) / np.sqrt(len(difference))) if len(difference) > 1 else 0.0
    return mean > max(MARGIN * float(np.nanmean(reference - baseline)), 2 * error, 0.0)
