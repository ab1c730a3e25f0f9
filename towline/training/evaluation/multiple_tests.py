"""Several tests together: Holm's procedure keeps the probability of any false rejection below the significance."""

import numpy as np


def reject_by_holm(p_values: np.ndarray, significance: float) -> np.ndarray:
    """Which of m hypotheses are rejected (Holm, 1979); more than by Bonferroni's correction, at the same error rate.

    Args:
        p_values: (m,) NaN is never rejected.
        significance: the accepted probability that any true hypothesis is rejected.

    Returns:
        (m,) bool.

    Example:
        >>> reject_by_holm(np.array([0.04, 0.02, 0.001]), 0.05).tolist()
        [True, True, True]
    """
    rejected = np.zeros(len(p_values), dtype=bool)
    for place, index in enumerate(np.argsort(p_values, kind="stable")):
        if not p_values[index] <= significance / (len(p_values) - place):
            break
        rejected[index] = True
    return rejected
