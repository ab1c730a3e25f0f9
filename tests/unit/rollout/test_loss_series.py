"""Loss series: which rows are compared, and the bound of their losses."""

import numpy as np
import pytest

from towline.rollout.loss_series import WARM_UP_ROWS, align_losses, choose_loss_bound

EMPTY = np.empty(0)


def test_rows_without_a_loss_are_left_out_and_counted() -> None:
    """A NaN is not 0: the row is left out of both arms."""
    champion, challenger = np.array([1.0, 2.0, np.nan, 4.0]), np.array([np.nan, 2.0, 3.0, 4.0])
    series = align_losses(champion, challenger, paired=True, bound=10.0)
    assert (series.champion.tolist(), series.challenger.tolist(), series.missing) == ([2.0, 4.0], [2.0, 4.0], 0.25)


def test_larger_losses_count_as_the_bound() -> None:
    """In both arms; an infinite loss, too."""
    series = align_losses(np.array([1.0, 50.0]), np.array([np.inf, 3.0]), paired=True, bound=10.0)
    assert (series.champion.tolist(), series.challenger.tolist()) == ([1.0, 10.0], [10.0, 3.0])


def test_the_bound_comes_from_rows_before_the_first_compared_one() -> None:
    """Later losses do not change it."""
    losses = np.random.default_rng(1).exponential(size=300)
    losses[3] = np.nan
    later = np.concatenate([losses[:200], 100 * losses[200:]])
    series, changed = (align_losses(values, values, paired=True, bound=None) for values in (losses, later))
    assert len(series.champion) == 300 - WARM_UP_ROWS - 1
    assert series.bound == changed.bound == np.nanmax(losses[: WARM_UP_ROWS + 1])


def test_losses_of_zero_do_not_choose_the_bound() -> None:
    """The comparison starts after a loss that tells how large one is, or after a thousand rows without any."""
    champion = np.where(np.arange(3000) % 400 == 399, 1e6, 0.0)
    series = align_losses(champion, np.full(3000, 2.0), paired=True, bound=None)
    assert (series.bound, len(series.champion)) == (1e6, 2600)
    exact = align_losses(np.zeros(3000), np.full(3000, 2.0), paired=True, bound=None)
    assert (exact.bound, len(exact.champion)) == (1.0, 1999)


def test_too_few_rows_for_a_bound_are_not_compared() -> None:
    """The comparison starts after the rows that determine the bound."""
    losses = np.ones(WARM_UP_ROWS - 1)
    assert len(align_losses(losses, losses, paired=True, bound=None).champion) == 0


@pytest.mark.parametrize("losses", [[0.0] * 1000 + [1.0], [0.0], []])
def test_a_champion_without_losses_has_a_bound(losses: list[float]) -> None:
    """Nearly all losses of a good classifier are 0, but its bound is not."""
    assert choose_loss_bound(np.array(losses)) == 1.0


def test_arms_of_different_size_are_compared_by_blocks() -> None:
    """With a weight of 25 %, a row of the challenger is compared with the mean of three of the champion's."""
    champion, challenger = np.arange(10.0), np.array([5.0, 6.0])
    series = align_losses(champion, challenger, paired=False, bound=100.0, share=0.25)
    assert (series.champion.tolist(), series.challenger.tolist(), series.rows) == ([1.0, 4.0], [5.0, 6.0], 4)


def test_slices_of_two_arms() -> None:
    """Membership is given for the champion's rows, then the challenger's."""
    members = np.array([True, False, True, False, True, True])
    series = align_losses(np.arange(3.0), np.arange(3.0), paired=False, bound=9.0, members=members)
    assert (series.champion.tolist(), series.challenger.tolist()) == ([0.0, 2.0], [1.0, 2.0])


def test_a_slice_of_pairs_after_the_warm_up() -> None:
    """Rows that choose the bound are in no slice."""
    losses, members = np.arange(300.0), np.zeros(300, dtype=bool)
    members[[5, 150, 250]] = True
    series = align_losses(losses, losses, paired=True, bound=None, members=members)
    assert len(series.champion) == 2


@pytest.mark.parametrize(
    ("champion", "challenger", "bound", "members", "message"),
    [
        ([1.0], [1.0, 2.0], 5.0, None, "1 losses of the champion and 2 of the challenger"),
        ([-1.0], [1.0], 5.0, None, "negative"),
        ([1.0], [1.0], float("nan"), None, "bound of the losses is nan"),
        ([1.0], [1.0], 0.0, None, "bound of the losses is 0"),
        ([1.0], [1.0], 5.0, [True, False], "2 values of type bool for 1 labelled rows"),
        ([1.0], [1.0], 5.0, [1], "type int64"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(
    champion: list[float], challenger: list[float], bound: float, members: list[bool] | None, message: str
) -> None:
    """The error names the problem."""
    belongs = None if members is None else np.array(members)
    with pytest.raises(ValueError, match=message):
        align_losses(np.array(champion), np.array(challenger), paired=True, bound=bound, members=belongs)
