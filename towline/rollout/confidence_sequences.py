"""Confidence sequences: limits that are valid at all times together, so results may be read after every observation.

A fixed-sample interval that is read repeatedly is wrong far more often than stated. Here the probability that a
limit is *ever* on the wrong side of the true value is at most ``alpha``.

**Ratio of two means, by betting.** A bettor bets against a hypothesis at fair odds. If it is true, the wealth is a
nonnegative supermartingale that starts at 1, and ever reaches ``1 / alpha`` with a probability of at most ``alpha``
(Ville, 1939). A limit of the confidence sequence is the last value of the hypothesis that the wealth has not rejected.
Wealth is split evenly over a grid of bets, so that no bet must be guessed (the mixture of Waudby-Smith & Ramdas,
Estimating means of bounded random variables by betting, JRSS B 86, 2024). Betting on the difference of the losses of
two predictors follows Choe & Ramdas (Comparing sequential forecasters, Operations Research 72, 2024). The hypothesis
"the challenger's mean loss is at least ``ratio`` times the champion's" is bet on with the gains

    gain = (ratio * champion - challenger) / bound

It is at least -1 because losses lie between 0 and ``bound``, and its mean is at most 0 under the hypothesis. The
variance need not be known: with small differences the wealth grows by larger bets.

The hypothesis is about the mean of each row, given the rows before it. If one arm is better for many rows in succession
and the other arm for the next ones, wrong verdicts are more frequent than ``alpha``: runs of 20 rows do no harm,
runs of 100 do (``benchmarks/rollout.py``).

**Rates.** For the probability of an event, the wealth is the likelihood ratio of a Beta(1/2, 1/2) mixture (Robbins,
1970). It depends on the counts alone.

**Sample ratio.** The same with a prior around the expected share (Lindon & Malek, Anytime-valid inference for
multinomial count data, NeurIPS 2022).
"""

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

BETS = np.geomspace(0.02, 0.98, 10)  # shares of the largest bet that cannot lose more than all
PRIOR_ASSIGNMENTS = 100.0  # weight of the prior of the sample ratio
_BLOCK = 30  # factors whose product stays within the range of a float
_STEPS = 12  # of bisection: the limits are exact to 1/4096 of the first bracket


class Limits(NamedTuple):
    """Confidence limits of one value, valid at all times together."""

    lower: float
    upper: float


class BettingProcess:
    """The wealth of bets against a hypothesis, updated with each batch of observations.

    Attributes:
        observations: how many gains there were.
        log_wealth: the present log-wealth.
        highest: the highest log-wealth so far; the hypothesis is rejected once it reaches ``log(1 / alpha)``.

    Example:
        >>> process = BettingProcess()
        >>> path = process.update(np.full(100, 0.2))
        >>> process.highest > math.log(1 / 0.05)
        True
    """

    def __init__(self) -> None:
        self.observations = 0
        self.log_wealth = 0.0
        self.highest = 0.0
        self._by_bet = np.zeros(len(BETS))

    def update(self, gains: np.ndarray) -> np.ndarray:
        """Adds gains, in their order, and returns the log-wealth after each.

        Args:
            gains: at least -1 each, with a mean of at most 0 under the hypothesis.
        """
        if not len(gains):
            return np.empty(0)
        by_bet = np.cumsum(np.log1p(np.outer(BETS, gains)), axis=1) + self._by_bet[:, None]
        path = _mix(by_bet)
        self.highest = max(self.highest, float(path.max()))
        self._by_bet = by_bet[:, -1].copy()
        self.log_wealth = float(path[-1])
        self.observations += len(gains)
        return path

    @property
    def growth(self) -> float:
        """The log-wealth that the best of the bets gained for each observation; at least 0."""
        return max(float(self._by_bet.max()) / self.observations, 0.0) if self.observations else 0.0


class RatioTest:
    """A sequential test of the ratio of two mean losses, and its confidence sequence.

    Args:
        numerator, denominator: losses between 0 and ``bound``, of equal length, in the order of arrival.
        bound: the largest possible loss.
        ratio: the accepted ratio of their means.

    Attributes:
        ratio: the accepted ratio.
        below: bets that the ratio is below ``ratio``.
        above: bets that the ratio is above ``ratio``.
        estimate: ratio of the means; NaN if it is not defined.

    Example:
        >>> losses = np.random.default_rng(1).random((2, 2000))
        >>> test = RatioTest(losses[0], 2 * losses[1], bound=2.0, ratio=1.0)
        >>> limits = test.limits(0.05, 0.05)
        >>> limits.lower < 0.5 < limits.upper < 1
        True
    """

    def __init__(self, numerator: np.ndarray, denominator: np.ndarray, bound: float, ratio: float) -> None:
        self._numerator, self._denominator = numerator / bound, denominator / bound
        self.ratio = ratio
        self.below, self.above = BettingProcess(), BettingProcess()
        self.below.update(self._gains_below(ratio))
        self.above.update(self._gains_above(ratio))
        total = float(self._denominator.sum())
        self.estimate = float(self._numerator.sum()) / total if total > 0 else math.nan

    def limits(self, alpha_lower: float, alpha_upper: float) -> Limits:
        """The confidence limits of the ratio.

        They are the present ones. A value of ``ratio`` that was rejected earlier stays rejected.

        Args:
            alpha_lower: probability that the lower limit is ever too high.
            alpha_upper: probability that the upper limit is ever too low.
        """
        start = self.estimate if math.isfinite(self.estimate) and self.estimate > 0 else 1.0
        upper = self._search(self._gains_below, math.log(1 / alpha_upper), start, 2.0)
        lower = self._search(self._gains_above, math.log(1 / alpha_lower), start, 0.5)
        if self.below.highest >= math.log(1 / alpha_upper):
            upper = min(upper, self.ratio)
        if self.above.highest >= math.log(1 / alpha_lower):
            lower = max(lower, self.ratio)
        return Limits(lower, upper)

    def _gains_below(self, ratio: float) -> np.ndarray:
        gains: np.ndarray = ratio * self._denominator - self._numerator
        return gains

    def _gains_above(self, ratio: float) -> np.ndarray:
        gains: np.ndarray = self._numerator / ratio - self._denominator
        return gains

    @staticmethod
    def _search(gains_at: Callable[[float], np.ndarray], needed: float, start: float, factor: float) -> float:
        """The ratio nearest to ``start`` that is rejected now, in the direction of ``factor``; else 0 or infinity."""
        accepted, rejected = start, start * factor
        while _final_log_wealth(gains_at(rejected)) < needed:
            accepted, rejected = rejected, rejected * factor
            if not 1e-6 < rejected < 1e6:
                return math.inf if factor > 1 else 0.0
        for _ in range(_STEPS):
            middle = (accepted + rejected) / 2
            if _final_log_wealth(gains_at(middle)) >= needed:
                rejected = middle
            else:
                accepted = middle
        return rejected


def rate_limits(events: int, trials: int, alpha: float) -> Limits:
    """The confidence sequence of the probability of an event, at the present counts.

    Args:
        events: how often it happened, 0 to ``trials``.
        trials: how often it could have happened.
        alpha: probability that either limit is ever wrong.

    Example:
        >>> rate_limits(0, 0, 0.05)
        Limits(lower=0.0, upper=1.0)
        >>> limits = rate_limits(0, 2000, 0.05)
        >>> limits.lower == 0 and limits.upper < 0.005
        True
    """
    misses = trials - events
    mixture = _log_beta(events + 0.5, misses + 0.5) - _log_beta(0.5, 0.5)

    def is_rejected(rate: float) -> bool:
        return mixture - _log_power(rate, events) - _log_power(1 - rate, misses) >= math.log(1 / alpha)

    def search(accepted: float, rejected: float) -> float:
        for _ in range(40):
            middle = (accepted + rejected) / 2
            accepted, rejected = (accepted, middle) if is_rejected(middle) else (middle, rejected)
        return rejected

    estimate = events / trials if trials else 0.5
    return Limits(search(estimate, 0.0) if events else 0.0, search(estimate, 1.0) if misses else 1.0)


def rate_difference_limits(first: tuple[int, int], second: tuple[int, int], alpha: float) -> Limits:
    """The confidence sequence of the probability of an event in ``second`` minus that in ``first``.

    The two may depend on each other in any way, as two models do that answer the same requests.

    Args:
        first: number of events, and number of trials.
        second: the same of the other arm.
        alpha: probability that either limit is ever wrong.
    """
    first_limits, second_limits = rate_limits(*first, alpha / 2), rate_limits(*second, alpha / 2)
    return Limits(second_limits.lower - first_limits.upper, second_limits.upper - first_limits.lower)


def sample_ratio_evidence(periods: Iterable[tuple[float, int, int]]) -> float:
    """The evidence, a natural logarithm, that assignments do not have the expected shares.

    It ever exceeds ``log(1 / alpha)`` with a probability of at most ``alpha`` if they have. Periods in which all
    assignments go to one arm are not counted.

    Args:
        periods: expected share of the second arm, 0 to 1; assignments to the first and to the second arm.

    Example:
        >>> sample_ratio_evidence([(0.5, 1000, 1010)]) < 0 < sample_ratio_evidence([(0.5, 1000, 1300)])
        True
    """
    evidence = 0.0
    for share, first, second in periods:
        if 0 < share < 1:
            prior = PRIOR_ASSIGNMENTS * share, PRIOR_ASSIGNMENTS * (1 - share)
            evidence += _log_beta(second + prior[0], first + prior[1]) - _log_beta(*prior)
            evidence -= second * math.log(share) + first * math.log1p(-share)
    return evidence


def _mix(by_bet: np.ndarray) -> np.ndarray:
    """The log of the mean wealth over the bets, which are the first axis."""
    highest = by_bet.max(axis=0)
    mixed: np.ndarray = highest + np.log(np.exp(by_bet - highest).mean(axis=0))
    return mixed


def _final_log_wealth(gains: np.ndarray) -> float:
    """The log-wealth after all gains: products of blocks, which take fewer logarithms than ``BettingProcess``."""
    padded = np.zeros((-(-len(gains) // _BLOCK), _BLOCK))
    padded.ravel()[: len(gains)] = gains
    by_bet = np.array([np.log(np.multiply.reduce(1 + bet * padded, axis=1)).sum() for bet in BETS])
    return float(_mix(by_bet))


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def _log_power(base: float, exponent: int) -> float:
    if not exponent:
        return 0.0
    return exponent * math.log(base) if base > 0 else -math.inf
