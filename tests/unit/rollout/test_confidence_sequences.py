"""Confidence sequences: their error rates if they are read after every observation."""

import math

import numpy as np
import pytest

from tests.support.checks import at_least_one
from towline.rollout.confidence_sequences import (
    BettingProcess,
    RatioTest,
    rate_difference_limits,
    rate_limits,
    sample_ratio_evidence,
)

ALPHA = 0.05
NEEDED = math.log(1 / ALPHA)


def heavy_losses(rng: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Correlated losses of two equally good models, with heavy tails, clipped at 5."""
    common, first, second = rng.standard_t(3, size=rows), *rng.normal(size=(2, rows))
    return np.minimum(np.abs(common + 0.4 * first), 5), np.minimum(np.abs(common + 0.4 * second), 5)


def test_a_true_ratio_is_rejected_in_few_of_many_sequences() -> None:
    """Read after each of 1,000 rows, the test of equal arms errs with a probability of at most alpha."""
    rng = np.random.default_rng(1)
    wrong = 0
    for _ in range(300):
        test = RatioTest(*heavy_losses(rng, 1000), bound=5.0, ratio=1.0)
        wrong += test.below.highest >= NEEDED
    assert wrong <= 300 * ALPHA


def test_a_wrong_ratio_is_rejected() -> None:
    """A ratio of 0.8 is found to be below 1, and not above 1."""
    champion, challenger = heavy_losses(np.random.default_rng(2), 2000)
    test = RatioTest(0.8 * challenger, champion, bound=5.0, ratio=1.0)
    assert test.below.highest >= NEEDED > test.above.highest


def test_limits_agree_with_the_test() -> None:
    """At the upper limit, the wealth is exactly the required one."""
    champion, challenger = heavy_losses(np.random.default_rng(3), 2000)
    limits = RatioTest(challenger, champion, bound=5.0, ratio=3.0).limits(ALPHA, ALPHA)
    at_upper = RatioTest(challenger, champion, bound=5.0, ratio=limits.upper)
    at_lower = RatioTest(challenger, champion, bound=5.0, ratio=limits.lower)
    assert at_upper.below.log_wealth == pytest.approx(NEEDED, abs=0.1)
    assert at_lower.above.log_wealth == pytest.approx(NEEDED, abs=0.1)
    assert limits.lower < at_upper.estimate < limits.upper


def test_limits_narrow_with_more_rows() -> None:
    """The width falls with the number of rows, and with the correlation of the arms."""
    champion, challenger = heavy_losses(np.random.default_rng(4), 8000)
    other = np.random.default_rng(5).permutation(challenger)

    def width(first: np.ndarray, rows: int) -> float:
        limits = RatioTest(first[:rows], champion[:rows], bound=5.0, ratio=1.0).limits(ALPHA, ALPHA)
        return limits.upper - limits.lower

    assert width(challenger, 8000) < width(challenger, 2000) < width(challenger, 500)
    assert width(challenger, 8000) < width(other, 8000)


def test_batches_give_the_same_wealth_as_all_at_once() -> None:
    """The process may be updated with each batch of labels."""
    gains = np.random.default_rng(6).uniform(-1, 1.1, size=500)
    whole, parts = BettingProcess(), BettingProcess()
    path = whole.update(gains)
    pieces = [parts.update(piece) for piece in np.split(gains, [1, 7, 7, 200])]
    assert np.concatenate(pieces) == pytest.approx(path)
    assert (parts.highest, parts.log_wealth) == pytest.approx((whole.highest, whole.log_wealth))
    assert parts.highest == pytest.approx(max(0.0, path.max()))


def test_without_rows_nothing_is_known() -> None:
    """Empty arrays leave the widest limits and no estimate."""
    test = RatioTest(np.empty(0), np.empty(0), bound=1.0, ratio=1.0)
    assert math.isnan(test.estimate)
    assert test.limits(ALPHA, ALPHA) == (0.0, math.inf)


def test_two_models_without_any_loss() -> None:
    """Losses that are all 0 decide nothing."""
    test = RatioTest(np.zeros(100), np.zeros(100), bound=1.0, ratio=1.0)
    assert math.isnan(test.estimate)
    assert test.limits(ALPHA, ALPHA) == (0.0, math.inf)
    assert test.below.highest == test.above.highest == 0


def test_one_row_cannot_decide() -> None:
    """The largest possible difference of a single row is no evidence."""
    test = RatioTest(np.array([0.0]), np.array([5.0]), bound=5.0, ratio=1.0)
    assert test.below.highest < NEEDED


@pytest.mark.parametrize("rate", [0.002, 0.05, 0.5])
def test_a_true_rate_is_outside_the_limits_in_few_of_many_sequences(rate: float) -> None:
    """Read after every tenth of 1,500 trials, the limits of a rate err with a probability of at most alpha."""
    rng = np.random.default_rng(7)
    wrong = 0
    for _ in range(30):
        events = np.cumsum(rng.random(1500) < rate)
        limits = [rate_limits(int(count), trial, ALPHA) for trial, count in enumerate(events, 1) if trial % 10 == 0]
        wrong += any(not lower <= rate <= upper for lower, upper in limits)
    assert wrong <= 30 * ALPHA


def test_limits_of_extreme_rates() -> None:
    """Without events, or with events only, one side is open; without trials both are."""
    assert rate_limits(0, 0, ALPHA) == (0, 1)
    none, every = rate_limits(0, 500, ALPHA), rate_limits(500, 500, ALPHA)
    assert none.lower == 0 < none.upper < 0.03
    assert every.upper == 1 > every.lower > 0.97


def test_limits_of_a_difference_hold_the_true_one_whatever_the_dependence() -> None:
    """Two arms that fail on the same requests, and two that never do."""
    for second in at_least_one([(30, 1000), (0, 1000), (90, 1000)]):
        limits = rate_difference_limits((30, 1000), second, ALPHA)
        assert limits.lower < second[0] / 1000 - 0.03 < limits.upper


def test_lost_assignments_are_found_and_correct_ones_are_not() -> None:
    """Read after every assignment, in two periods; a loss of one in five rows of an arm is found."""
    rng = np.random.default_rng(8)
    wrong = 0
    for _ in range(100):
        first = np.cumsum(rng.random(300) < 0.1)
        second = np.cumsum(rng.random(300) < 0.5)
        period = (0.1, 300 - int(first[-1]), int(first[-1]))
        looks = [sample_ratio_evidence([(0.1, n - int(k), int(k))]) for n, k in enumerate(first, 1)]
        looks += [sample_ratio_evidence([period, (0.5, n - int(k), int(k))]) for n, k in enumerate(second, 1)]
        wrong += max(looks) >= NEEDED
    assert wrong <= 100 * ALPHA
    assert sample_ratio_evidence([(0.5, 2000, 1600)]) >= NEEDED


def test_a_period_with_one_arm_is_no_evidence() -> None:
    """With weights of 0 or 1 the assignment is not random."""
    assert sample_ratio_evidence([(0.0, 500, 0), (1.0, 0, 500)]) == 0
