"""Loss series: the losses of two arms, aligned for their comparison and clipped to a bound fixed beforehand."""

import math
from typing import NamedTuple

import numpy as np

BOUND_QUANTILE = 0.995  # of the champion's losses: larger ones are clipped
WARM_UP_ROWS = 100  # labelled rows that choose the bound, if none is given
_MAX_ZEROS = 1_000  # rows without a loss of the champion after which its bound is 1


class LossSeries(NamedTuple):
    """Losses of the comparisons, in their order.

    Attributes:
        champion, challenger: losses between 0 and ``bound``, of equal length.
        bound: the largest possible loss.
        missing: share of the labelled rows without a loss, of the arm that has more of them.
        rows: labelled rows of one comparison.
    """

    champion: np.ndarray
    challenger: np.ndarray
    bound: float
    missing: float
    rows: int


def choose_loss_bound(champion_loss: np.ndarray) -> float:
    """The bound at which losses are clipped: the 99.5 % quantile of the champion's losses.

    Args:
        champion_loss: losses on rows that are not compared later, such as the holdout.

    Example:
        >>> choose_loss_bound(np.array([0.0, 0.0, 1.0]))
        1.0
    """
    finite = champion_loss[np.isfinite(champion_loss)]
    quantile = float(np.quantile(finite, BOUND_QUANTILE, method="higher")) if len(finite) else 0.0
    return quantile or float(finite.max(initial=0.0)) or 1.0


def align_losses(
    champion_loss: np.ndarray,
    challenger_loss: np.ndarray,
    *,
    paired: bool,
    bound: float | None,
    share: float = 0.5,
    members: np.ndarray | None = None,
) -> LossSeries:
    """Makes comparisons of losses. Rows without a loss (NaN) are left out; an infinite loss counts as the bound.

    Paired, a comparison is a row. Unpaired, it is a row of the arm with fewer rows and the mean of as many rows of the
    other arm as ``share`` says, each in its order. Their number must not depend on the losses.

    Args:
        champion_loss: at least 0, in the order in which the labels arrived.
        challenger_loss: the same, paired of the same rows.
        paired: whether both arrays are of the same rows.
        bound: the largest loss; None: the champion's first ``WARM_UP_ROWS`` losses choose it and are left out.
        share: of the rows that the challenger answers, unpaired; between 0 and 1.
        members: which rows are compared, unpaired the champion's before the challenger's; None: all.

    Raises:
        ValueError: the arrays do not fit each other, a loss is negative, or the bound is not positive.

    Example:
        >>> losses = align_losses(np.array([1.0, np.nan, 9.0]), np.array([2.0, 2.0, np.inf]), paired=True, bound=5.0)
        >>> losses.champion.tolist(), losses.challenger.tolist()
        ([1.0, 5.0], [2.0, 5.0])
    """
    champion, challenger = np.asarray(champion_loss, dtype=float), np.asarray(challenger_loss, dtype=float)
    if paired and len(champion) != len(challenger):
        raise ValueError(f"{len(champion)} losses of the champion and {len(challenger)} of the challenger")
    if (champion < 0).any() or (challenger < 0).any():
        raise ValueError("a loss is negative")
    split, rows = len(champion), len(champion) if paired else len(champion) + len(challenger)
    belongs = np.ones(rows, dtype=bool) if members is None else members
    if belongs.shape != (rows,) or belongs.dtype != bool:
        raise ValueError(f"the slice has {len(belongs)} values of type {belongs.dtype} for {rows} labelled rows")
    start = 0
    if bound is None:
        bound, start = _warm_up(champion)
    if not (math.isfinite(bound) and bound > 0):
        raise ValueError(f"the bound of the losses is {bound}")
    missing = max(_missing(champion[belongs[:split]]), _missing(challenger[belongs[rows - len(challenger) :]]))
    champion = np.minimum(champion[start:], bound)[belongs[start:split]]
    if paired:
        challenger = np.minimum(challenger[start:], bound)[belongs[start:]]
        is_complete = ~(np.isnan(champion) | np.isnan(challenger))
        return LossSeries(champion[is_complete], challenger[is_complete], bound, missing, 1)
    challenger = np.minimum(challenger, bound)[belongs[split:]]
    sizes = max(round((1 - share) / share), 1), max(round(share / (1 - share)), 1)
    champion, challenger = _block_means(champion, sizes[0]), _block_means(challenger, sizes[1])
    comparisons = min(len(champion), len(challenger))
    return LossSeries(champion[:comparisons], challenger[:comparisons], bound, missing, sum(sizes))


def _warm_up(champion: np.ndarray) -> tuple[float, int]:
    """The bound from the first rows, and the number of rows before the first compared one."""
    (positions,) = np.nonzero(np.isfinite(champion))
    if len(positions) < WARM_UP_ROWS:
        return 1.0, len(champion)
    # losses of 0 do not tell how large a loss is; a champion without others is compared all the same
    positive = np.flatnonzero(champion[positions] > 0)
    last = min(max(WARM_UP_ROWS - 1, int(positive[0]) if len(positive) else _MAX_ZEROS), _MAX_ZEROS)
    if last >= len(positions):
        return 1.0, len(champion)
    start = int(positions[last]) + 1
    return choose_loss_bound(champion[:start]), start


def _block_means(losses: np.ndarray, size: int) -> np.ndarray:
    """The means of blocks of losses that are not missing; an incomplete block at the end is left out."""
    present = losses[~np.isnan(losses)]
    means: np.ndarray = present[: len(present) // size * size].reshape(-1, size).mean(axis=1)
    return means


def _missing(losses: np.ndarray) -> float:
    return float(np.isnan(losses).mean()) if len(losses) else 0.0
