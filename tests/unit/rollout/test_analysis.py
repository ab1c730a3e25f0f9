"""The analysis of a rollout: when it promotes, aborts or waits."""

import math
from typing import Any

import numpy as np
import pytest

from tests.support.checks import at_least_one
from towline.rollout.analysis import (
    ArmCounts,
    Criteria,
    RolloutCheckResult,
    RolloutEvidence,
    RolloutVerdict,
    WeightPeriod,
    analyse,
)

ROWS = 3000


def losses(rows: int = ROWS, seed: int = 1, factor: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Losses of a champion, and of a challenger whose mean loss is ``factor`` times as high."""
    common, champion, challenger = np.random.default_rng(seed).normal(size=(3, rows))
    return np.abs(common + 0.3 * champion), factor * np.abs(common + 0.3 * challenger)


def evidence(*arms: np.ndarray, **parts: Any) -> RolloutEvidence:
    """Evidence without errors, with a fixed bound, 100 labels a day, and the losses of two arms."""
    defaults: dict[str, Any] = {"champion": ArmCounts(ROWS), "challenger": ArmCounts(ROWS), "loss_bound": 4.0}
    defaults |= {"labels_per_day": 100.0} | dict(zip(("champion_loss", "challenger_loss"), arms, strict=False))
    return RolloutEvidence(**(defaults | parts))


def check(verdict: RolloutVerdict, name: str) -> RolloutCheckResult:
    return next(check for check in verdict.checks if check.name == name)


class TestMissingObservations:
    """Missing observations are no evidence."""

    @pytest.mark.parametrize("promote_if", ["better", "not_worse", "healthy"])
    def test_no_traffic(self, promote_if: Any) -> None:
        """A challenger without requests waits, whatever the condition of the promotion."""
        no_requests = evidence(champion=ArmCounts(), challenger=ArmCounts(), labels_per_day=0.0)
        verdict = analyse(no_requests, Criteria(promote_if=promote_if, max_disagreement=0.1))
        assert verdict.verdict == "waiting"
        assert {check.verdict for check in verdict.checks} == {"waiting"}
        assert "no requests yet" in verdict.text

    def test_losses_without_requests_do_not_promote(self) -> None:
        """Labels without requests are an error in the data."""
        verdict = analyse(evidence(*losses(factor=0.5), challenger=ArmCounts()), Criteria())
        assert verdict.verdict == "waiting"

    def test_no_labels(self) -> None:
        """The forecast has the number of labels that are needed, and the time until then."""
        verdict = analyse(evidence(), Criteria())
        assert verdict.verdict == "waiting"
        assert verdict.labels_needed is not None
        assert 100 < verdict.labels_needed < 2000
        assert verdict.days_needed == pytest.approx(verdict.labels_needed / 100)
        assert f"about {verdict.labels_needed:,} more labels are needed" in verdict.text

    @pytest.mark.parametrize(("rows", "left"), [(0, 100), (40, 60), (99, 1)])
    def test_labels_that_only_choose_the_bound_are_needed_too(self, rows: int, left: int) -> None:
        """The forecast is that of a fixed bound, and the labels that are still missing for the bound."""
        champion, challenger = losses(rows)
        fixed = analyse(evidence(), Criteria()).labels_needed
        chosen = analyse(evidence(champion, challenger, loss_bound=None), Criteria()).labels_needed
        assert fixed is not None
        assert chosen == fixed + left

    def test_a_champion_without_loss_has_no_ratio(self) -> None:
        """The text has no NaN or infinity."""
        verdict = analyse(evidence(np.zeros(300), np.ones(300)), Criteria())
        assert verdict.verdict == "abort"
        assert verdict.text.startswith("loss: the champion's is 0, limits ")
        assert "to any value, 300 comparisons" in verdict.text

    def test_unpaired_arms_need_more_labels(self) -> None:
        """The forecast without labels depends on the design."""
        paired, unpaired = (analyse(evidence(paired=paired), Criteria()).labels_needed or 0 for paired in (True, False))
        assert unpaired > 3 * paired

    def test_traffic_stops(self) -> None:
        """An open comparison remains open without new labels, however often it is analysed."""
        stopped = evidence(*losses(200), labels_per_day=0.0)
        verdicts = [analyse(stopped, Criteria()) for _ in range(3)]
        assert {verdict.verdict for verdict in verdicts} == {"waiting"}
        assert verdicts[0].days_needed is None
        assert "none arrive" in verdicts[0].text

    def test_an_unknown_rate_of_labels(self) -> None:
        """Without a rate the forecast has no number of days."""
        assert analyse(evidence(labels_per_day=math.nan), Criteria()).days_needed is None

    def test_only_nan(self) -> None:
        """A metric without values is neither better nor worse."""
        champion, _ = losses()
        for arm in at_least_one([(champion, np.full(ROWS, np.nan)), (np.full(ROWS, np.nan), champion)]):
            for paired in (True, False):
                verdict = analyse(evidence(*arm, paired=paired), Criteria(promote_if="not_worse", margin=0.5))
                assert verdict.verdict == "waiting"
                assert "100% of the labelled rows have no loss" in verdict.text

    def test_nan_is_not_zero(self) -> None:
        """A challenger without losses on a fifth of its rows is not promoted by its other rows."""
        champion, challenger = losses(factor=0.7)
        challenger[::5] = np.nan
        verdict = analyse(evidence(champion, challenger), Criteria())
        assert verdict.verdict == "waiting"
        assert check(verdict, "loss").estimate == pytest.approx(-0.3, abs=0.05)
        assert "20.0% of the labelled rows have no loss" in verdict.text

    def test_few_nan_do_not_matter(self) -> None:
        """One label in fifty without a loss does not stop a rollout."""
        champion, challenger = losses(factor=0.7)
        challenger[::50] = np.nan
        assert analyse(evidence(champion, challenger), Criteria()).verdict == "promote"

    def test_an_infinite_loss_counts_against_the_challenger(self) -> None:
        """It counts as the bound, not as missing."""
        champion, challenger = losses()
        challenger[::5] = np.inf
        assert analyse(evidence(champion, challenger), Criteria()).verdict == "abort"

    def test_an_empty_slice(self) -> None:
        """A slice without rows remains open and does not prevent the promotion."""
        slices = {"region=north": np.zeros(ROWS, dtype=bool)}
        verdict = analyse(evidence(*losses(factor=0.7), slices=slices), Criteria())
        assert check(verdict, "loss in region=north").verdict == "waiting"
        assert verdict.verdict == "promote"


class TestBrokenAnalysis:
    """An analysis that is not possible waits and has the reason."""

    @pytest.mark.parametrize(
        ("parts", "message"),
        [
            ({"challenger_loss": np.ones(5)}, "3000 losses of the champion and 5 of the challenger"),
            ({"challenger_loss": -np.ones(ROWS)}, "negative"),
            ({"challenger_loss": np.array(["a"] * ROWS, dtype=object)}, "could not convert"),
            ({"challenger_loss": None}, "cannot be compared"),
            ({"loss_bound": math.nan}, "bound of the losses is nan"),
        ],
    )
    def test_losses_that_cannot_be_compared(self, parts: dict[str, Any], message: str) -> None:
        champion, challenger = losses()
        arrays = {"champion_loss": champion, "challenger_loss": challenger}
        verdict = analyse(evidence(**(arrays | parts)), Criteria())
        assert verdict.verdict == "waiting"
        assert (verdict.labels_needed, verdict.days_needed) == (None, None)
        assert message in verdict.text

    def test_a_slice_that_does_not_fit(self) -> None:
        """It cannot abort, and the other checks are made."""
        verdict = analyse(evidence(*losses(factor=0.7), slices={"a": np.ones(7, dtype=bool)}), Criteria())
        assert check(verdict, "loss in a").verdict == "waiting"
        assert check(verdict, "loss").verdict == "promote"

    def test_counts_that_cannot_be_right(self) -> None:
        """A count of more errors than requests decides nothing."""
        counts = evidence(challenger=ArmCounts(10, 90, -1), disagreements=5, weight_history=(WeightPeriod(0.5, -1, 9),))
        verdict = analyse(counts, Criteria(promote_if="healthy", max_disagreement=0.1))
        assert verdict.verdict == "waiting"
        assert {check.verdict for check in verdict.checks} == {"waiting"}


class TestLoss:
    """The comparison of the mean losses."""

    def test_identical_arms_are_not_decided(self) -> None:
        """The version is neither promoted nor aborted, for many numbers of labels."""
        champion, challenger = losses()
        for labels in range(100, ROWS + 1, 100):
            verdict = analyse(evidence(champion[:labels], challenger[:labels]), Criteria())
            assert verdict.verdict == "waiting"

    def test_one_model_in_both_arms(self) -> None:
        """Equal losses in every row promote a challenger only if it merely must not be worse."""
        champion, _ = losses()
        assert analyse(evidence(champion, champion), Criteria()).verdict == "waiting"
        not_worse = Criteria(promote_if="not_worse", margin=0.02)
        assert analyse(evidence(champion, champion), not_worse).verdict == "promote"

    def test_identical_arms_are_promoted_if_not_worse(self) -> None:
        """Within a margin of 10 %."""
        verdict = analyse(evidence(*losses()), Criteria(promote_if="not_worse", margin=0.1))
        assert verdict.verdict == "promote"
        assert check(verdict, "loss").upper <= 0.1

    @pytest.mark.parametrize(("factor", "expected"), [(1.15, "abort"), (0.85, "promote")])
    @pytest.mark.parametrize("bound", [4.0, None])
    def test_a_worse_challenger_is_aborted_and_a_better_one_promoted(
        self, factor: float, expected: str, bound: float | None
    ) -> None:
        """The limits are on one side of 0 and hold the true difference."""
        verdict = analyse(evidence(*losses(factor=factor), loss_bound=bound), Criteria())
        loss = check(verdict, "loss")
        assert verdict.verdict == loss.verdict == expected
        assert loss.lower < factor - 1 < loss.upper
        assert (loss.lower > 0) == (expected == "abort")
        assert loss.observations == (ROWS if bound else ROWS - 100)

    def test_a_verdict_stays_when_more_labels_arrive(self) -> None:
        """Later analyses do not change the first verdict."""
        champion, challenger = losses(factor=1.15)
        verdicts = [
            analyse(evidence(champion[:labels], challenger[:labels]), Criteria()).verdict
            for labels in range(0, ROWS + 1, 150)
        ]
        first = verdicts.index("abort")
        assert set(verdicts[:first]) == {"waiting"}
        assert set(verdicts[first:]) == {"abort"}

    def test_the_forecast_is_of_the_right_size(self) -> None:
        """After 150 labels it is within a factor of five of the number of labels that the verdict needed."""
        champion, challenger = losses(factor=0.88)
        taken = next(
            labels
            for labels in range(150, ROWS, 25)
            if analyse(evidence(champion[:labels], challenger[:labels]), Criteria()).verdict == "promote"
        )
        forecast = 150 + (analyse(evidence(champion[:150], challenger[:150]), Criteria()).labels_needed or 0)
        assert taken / 5 < forecast < taken * 5

    def test_two_arms_are_compared_without_pairs(self) -> None:
        """The same verdict needs more labels."""
        champion, _ = losses(20_000, seed=1)
        _, challenger = losses(20_000, seed=2, factor=0.85)
        two_arms = evidence(champion, challenger[:18_000], paired=False)
        assert analyse(two_arms, Criteria()).verdict == "promote"
        assert analyse(evidence(champion[:400], challenger[:400], paired=False), Criteria()).verdict == "waiting"

    def test_a_small_arm_is_compared_with_a_large_one(self) -> None:
        """A challenger with one row in ten and half the loss."""
        champion, _ = losses(9000, seed=1)
        _, challenger = losses(1000, seed=2, factor=1.5)
        history = (WeightPeriod(0.1, 9000, 1000),)
        verdict = analyse(evidence(champion, challenger, paired=False, weight_history=history), Criteria())
        assert verdict.verdict == "abort"
        assert check(verdict, "loss").observations == 1000


class TestSlices:
    """The comparison within slices."""

    def test_a_slice_that_is_worse_aborts_a_better_challenger(self) -> None:
        """The verdict names the slice."""
        champion, challenger = losses(factor=0.7)
        north = np.arange(ROWS) % 5 == 0
        challenger[north] *= 2.5
        verdict = analyse(evidence(champion, challenger, slices={"north": north, "south": ~north}), Criteria())
        assert verdict.verdict == "abort"
        assert [check.name for check in verdict.checks if check.verdict == "abort"] == ["loss in north"]
        assert "loss in north" in verdict.text

    def test_many_slices_of_identical_arms(self) -> None:
        """Forty slices without a margin: none is aborted."""
        groups = np.random.default_rng(3).integers(0, 40, ROWS)
        slices = {f"group={number}": groups == number for number in range(40)}
        verdict = analyse(evidence(*losses(), slices=slices), Criteria(slice_margin=0.0))
        assert verdict.verdict == "waiting"
        assert len([check for check in verdict.checks if check.name.startswith("loss in")]) == 40


class TestCounts:
    """Errors, non-finite answers, disagreement, sample ratio."""

    @pytest.mark.parametrize("counts", [ArmCounts(400, errors=40), ArmCounts(400, nonfinite=40)])
    def test_a_challenger_that_fails_is_aborted(self, counts: ArmCounts) -> None:
        """A lower loss does not change the verdict."""
        verdict = analyse(evidence(*losses(factor=0.7), challenger=counts), Criteria())
        assert verdict.verdict == "abort"
        assert "40 of 400 requests" in verdict.text

    def test_two_arms_that_fail_equally_often(self) -> None:
        """An outage of both is not the challenger's fault."""
        both = {"champion": ArmCounts(1000, 100), "challenger": ArmCounts(1000, 100)}
        assert analyse(evidence(**both), Criteria()).verdict == "waiting"

    def test_one_error_is_no_reason(self) -> None:
        """A single failed request among few does not abort."""
        assert analyse(evidence(challenger=ArmCounts(20, 1)), Criteria()).verdict == "waiting"

    def test_a_champion_without_requests(self) -> None:
        """All requests go to the challenger: its errors are compared with none."""
        failing = evidence(champion=ArmCounts(), challenger=ArmCounts(400, 40))
        assert analyse(failing, Criteria()).verdict == "abort"

    def test_healthy_needs_no_labels(self) -> None:
        """A version is promoted once its excess of errors is known to be acceptable, and never if it is worse."""
        healthy = Criteria(promote_if="healthy")
        few, many = ({"champion": ArmCounts(rows), "challenger": ArmCounts(rows)} for rows in (100, 2000))
        assert analyse(evidence(**few), healthy).verdict == "waiting"
        assert analyse(evidence(**many), healthy).verdict == "promote"
        assert analyse(evidence(*losses(factor=1.2), **many), healthy).verdict == "abort"

    def test_disagreement(self) -> None:
        """More than the accepted share aborts; without a limit there is no check."""
        different = evidence(disagreements=300, compared=1000)
        assert analyse(different, Criteria(max_disagreement=0.2)).verdict == "abort"
        assert analyse(different, Criteria(max_disagreement=0.29)).verdict == "waiting"
        assert "disagreement" not in {check.name for check in analyse(different, Criteria()).checks}

    def test_requests_of_an_arm_are_lost(self) -> None:
        """A quarter of the challenger's requests is missing: the arms cannot be compared."""
        lost = evidence(*losses(factor=0.7), weight_history=(WeightPeriod(0.0, 90, 0), WeightPeriod(0.5, 2000, 1500)))
        verdict = analyse(lost, Criteria())
        assert verdict.verdict == "abort"
        assert "expected 50.00%" in verdict.text

    def test_correct_shares(self) -> None:
        """Deviations of the shares by chance are no reason to abort."""
        fair = evidence(weight_history=(WeightPeriod(0.05, 955, 45), WeightPeriod(0.5, 980, 1020)))
        assert check(analyse(fair, Criteria()), "sample ratio").verdict == "promote"
