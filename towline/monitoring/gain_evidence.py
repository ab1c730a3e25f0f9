"""The evidence that a training pays: paired losses of champion and refit, gathered over windows.

The evidence is evaluated after each window. A test at a fixed level would then raise false alarms, so it is an
e-value: if a training does not lower the loss, the probability that it ever reaches 1/alpha is at most alpha.

- Rows that follow each other have correlated losses, so the unit is the mean difference of a block of consecutive rows.
- The e-value of some windows is the t-test of Wang and Ramdas (Anytime-valid t-tests and confidence sequences for
  Gaussian means with unknown variance, 2024). The prior of the effect is the positive half of a normal distribution:
  only a lower loss is evidence. The variance is unknown, which counts if there are few blocks.
- The first refit of a champion is often fitted on the champion's own rows and makes equal predictions. Such a window is
  left out: it is neither evidence for a training nor against it.
- The world may change long after a promotion. One e-value starts at each window, and their weighted mean is an e-value
  as well. The weights 1/(j (j + 1)) have the sum 1.
"""

import datetime as dt
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from towline.monitoring.results import GainResult
from towline.registry.ledger import Entry

ALPHA = 0.05  # probability of a training that does not help, in the life of a champion
_PRIOR_VARIANCE = 0.5  # of the effect of a block, in its standard deviations
_MIN_BLOCKS = 5
_MAX_LOG = 700.0  # its exponential is a float


class GainVerdict(NamedTuple):
    """Whether a training pays.

    Attributes:
        pays: the evidence is sufficient, and the gain is at least the required one.
        gain: share of the champion's loss that the refit avoids, over the newest windows with the strongest evidence.
        e_value: evidence that the gain is not 0; ``1 / ALPHA`` is sufficient.
        reason: the verdict in words.
    """

    pays: bool
    gain: float
    e_value: float
    reason: str


def judge_gain(windows: Sequence[GainResult], min_gain: float) -> GainVerdict | None:
    """Judges the windows of one champion.

    Args:
        windows: the measured windows, oldest first.
        min_gain: share of the loss that a training has to avoid.

    Returns:
        The verdict; None without a measured window.
    """
    measured = [window for window in windows if window.state == "measured"]
    if not measured:
        return None
    measured = [window for window in measured if not _is_refit_equal(window)] or measured[-1:]
    logs, gains = list[float](), list[float]()
    for first in range(len(measured)):
        blocks = np.concatenate([np.array(window.blocks) for window in measured[first:]])
        champion, refit = blocks.mean(axis=0)
        gains.append(float(1 - refit / champion) if champion > 0 else 0.0)
        logs.append(_log_e_value(blocks[:, 0] - blocks[:, 1]) - math.log((first + 1) * (first + 2)))
    e_value = float(np.exp(min(_MAX_LOG, np.logaddexp.reduce(logs))))
    strongest = int(np.argmax(logs))
    gain, last = gains[strongest], measured[-1]
    pays = e_value >= 1 / ALPHA and gain >= min_gain
    effect = f"{'lower' if gain >= 0 else 'raise'} the {last.loss} by {abs(gain):.1%}"
    span = f"the last {len(measured) - strongest} of {len(measured)} windows"
    reason = f"a training would {effect} on {span} (e-value {e_value:.3g}, {1 / ALPHA:g} is sufficient"
    return GainVerdict(pays, gain, e_value, f"{reason}; {min_gain:.0%} is required)")


def select_windows(
    windows: Sequence[GainResult], since: dt.datetime, last_training: dt.datetime | None
) -> tuple[GainResult, ...]:
    """The windows that count for the next training: closed, since the champion serves and since the last training.

    Args:
        windows: of the champion, oldest first.
        since: time from which it serves.
        last_training: time of the last training that a decision started; None without one.
    """
    start = max(since, last_training or since)
    return tuple(window for window in windows if window.state != "unknown" and window.end and window.end > start)


def find_last_training(decisions: Iterable[Entry], before: dt.datetime) -> dt.datetime | None:
    """The time of the last training that a decision started, from the rows of decisions in the ledger."""
    evidence = (decision.evidence for decision in decisions)
    times = (dt.datetime.fromisoformat(each["at"]) for each in evidence if each.get("action") == "retrain")
    return max((time for time in times if time < before), default=None)


def _is_refit_equal(window: GainResult) -> bool:
    """Whether champion and refit have the same losses, up to rounding."""
    losses = np.array(window.blocks).reshape(-1, 2)
    return bool(np.allclose(losses[:, 0], losses[:, 1], rtol=1e-9))


def _log_e_value(differences: np.ndarray) -> float:
    """Logarithm of the e-value against "the mean difference is not above 0", for (k,) differences of blocks."""
    from scipy.special import stdtr

    count, total = len(differences), float(differences.sum())
    squares = float((differences**2).sum())
    if count < _MIN_BLOCKS or squares == 0:
        return -_MAX_LOG
    precision = count + 1 / _PRIOR_VARIANCE
    rest = max(squares - total**2 / precision, 1e-12 * squares)
    two_sided = (count * math.log(squares / rest) - math.log(count * _PRIOR_VARIANCE + 1)) / 2
    positive = float(stdtr(count, total / math.sqrt(precision * rest / count)))  # probability of a positive effect
    return two_sided + math.log(2 * positive) if positive > 0 else -_MAX_LOG
