"""The analysis of a rollout: it decides whether a challenger is promoted, aborted, or needs more labels.

It may be made after every request and every label. The probability that it ever gives a wrong verdict is at most
``Criteria.alpha``, over all checks, slices and times together: each check has a share of alpha (``_SHARES``), slices
divide theirs equally (Bonferroni), and all limits are confidence sequences (see ``confidence_sequences``). The slices
must be the same from the beginning.

Checks:

* **error_rate**, **non_finite_predictions**: the challenger's share of requests, against the champion's. If the
  champion answers no requests, its share counts as 0.
* **disagreement**: the share of rows that both arms answered, but differently.
* **sample ratio**: the arms have the shares of assignments that the weights say. If not, requests or log entries of
  one arm are lost, and no comparison of the arms is valid.
* **loss**: the ratio of the mean losses, on labelled rows. Paired, the losses of the same row are compared, which takes
  a fraction of the labels: most of the loss of a row is common to both arms. Unpaired, each row of the smaller arm is
  compared with one row of the larger arm, or the mean of several, in their order.
* **loss in** a slice: the same within a slice. It can only abort.

Losses of a regression and log losses are not bounded. Without a bound one row can change a mean by any amount, so no
test of a mean is valid in small samples. A loss above ``RolloutEvidence.loss_bound`` therefore counts as the bound. The
bound is fixed before the first compared row, from the champion's losses, and is the same for both arms: two equal arms
stay equal. The comparison is of the means of these clipped losses. One row that is wrong by a hundred times the bound
counts as the bound; a challenger with more such rows still has a higher clipped mean.

Missing observations are no evidence: without requests, without labels, with losses that are NaN, or with arrays
that do not fit each other, a check is waiting.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np

from towline.rollout.confidence_sequences import (
    RatioTest,
    rate_difference_limits,
    rate_limits,
    sample_ratio_evidence,
)
from towline.rollout.loss_series import WARM_UP_ROWS, LossSeries, align_losses

MAX_MISSING = 0.05  # a promotion needs the losses of all other labelled rows
_MIN_FORECAST = 30  # compared rows; with fewer, the forecast assumes the numbers below
_ASSUMED_DIFFERENCE = 0.1  # of the mean losses, relative
_ASSUMED_SPREAD = {True: 0.7, False: 1.9}  # standard deviation of a difference / mean loss, paired and unpaired
#: of alpha, for each family of checks; the sum is 1
_SHARES = {
    "better": 0.35, "worse": 0.25, "slices": 0.2,
    "error_rate": 0.05, "non_finite_predictions": 0.05, "disagreement": 0.05, "sample ratio": 0.05,
}  # fmt: skip

CheckVerdict = Literal["promote", "abort", "waiting"]


class ArmCounts(NamedTuple):
    """Counts of one arm, champion or challenger, since the start of the rollout.

    Attributes:
        requests: requests that the arm was asked to answer, also in shadow.
        errors: those of them that ended in a 5xx answer or an exception.
        nonfinite: those of them with an answer that is NaN or infinite.
    """

    requests: int = 0
    errors: int = 0
    nonfinite: int = 0


class WeightPeriod(NamedTuple):
    """The assignments at one weight.

    Attributes:
        weight: the challenger's share of assignments, 0 to 1.
        champion, challenger: independent assignments to each arm: requests. None if ``rollout.key`` is set: all
            requests of a key have the same arm, so they are not independent.
    """

    weight: float
    champion: int
    challenger: int


@dataclass(frozen=True, eq=False)
class RolloutEvidence:
    """All observations of a rollout until now.

    Attributes:
        champion, challenger: counts of the two arms.
        weight_history: assignments by weight, for the check of the sample ratio; in an A/B test there is one weight.
        disagreements: rows that the two arms answered differently.
        compared: rows that both arms answered.
        champion_loss, challenger_loss: losses of labelled rows, in the order in which the labels arrived, at least 0;
            NaN: the loss is missing. Paired: both arrays are of the same rows. Unpaired: each array is of the rows that
            its arm answered, and the lengths may differ.
        slices: name of a slice → whether a labelled row belongs to it. Unpaired: of the champion's rows, then of the
            challenger's.
        loss_bound: larger losses count as this value, see ``loss_series.choose_loss_bound``; None: it
            is chosen from the champion's first labelled rows, which are not compared then.
        labels_per_day: labelled rows of both arms that arrive in a day, for the forecast.
        paired: whether both arms predicted each labelled row.
    """

    champion: ArmCounts
    challenger: ArmCounts
    weight_history: tuple[WeightPeriod, ...] = ()
    disagreements: int = 0
    compared: int = 0
    champion_loss: np.ndarray = field(default_factory=lambda: np.empty(0))
    challenger_loss: np.ndarray = field(default_factory=lambda: np.empty(0))
    slices: Mapping[str, np.ndarray] = field(default_factory=dict)
    loss_bound: float | None = None
    labels_per_day: float = 0.0
    paired: bool = True


@dataclass(frozen=True)
class Criteria:
    """The criteria for a challenger.

    Attributes:
        alpha: probability of a wrong verdict, over all checks and all times at which they are made.
        promote_if: better: its mean loss is lower than the champion's; not_worse: it is at most ``1 + margin`` times
            the champion's; healthy: labels do not count for a promotion, only the other checks.
        margin: of not_worse: accepted relative excess of the mean loss, over all rows.
        slice_margin: the same within a slice, for every ``promote_if``.
        max_disagreement: accepted share of rows with another answer than the champion's; None: any.
        max_error_rate_increase: accepted excess of the challenger's share of errors, and of non-finite answers, over
            the champion's.
    """

    alpha: float = 0.05
    promote_if: Literal["better", "not_worse", "healthy"] = "better"
    margin: float = 0.0
    slice_margin: float = 0.25
    max_disagreement: float | None = None
    max_error_rate_increase: float = 0.01


class RolloutCheckResult(NamedTuple):
    """The result of one check.

    Attributes:
        name: error_rate, non_finite_predictions, disagreement, sample ratio, loss, or ``loss in`` a slice.
        verdict: promote: the condition is fulfilled; abort: it is violated; waiting: neither is established.
        estimate: the present value: a difference of rates, a rate, or the relative difference of the mean losses
            (0.1: the challenger's is 10 % higher); NaN: it has no value.
        lower, upper: confidence limits of the true value, valid at all times together; NaN: it has no limits.
        observations: how many requests, rows or labels the value comes from.
        text: one sentence with the numbers.
    """

    name: str
    verdict: CheckVerdict
    estimate: float
    lower: float
    upper: float
    observations: int
    text: str


class RolloutVerdict(NamedTuple):
    """The result of the analysis.

    Attributes:
        verdict: abort if a check says so; promote if all necessary checks say so; else waiting.
        checks: all of them.
        labels_needed: forecast of further labelled rows until a decision; None: there is no forecast, or none are
            needed.
        days_needed: the same in days; None: no forecast, or no labels arrive.
        text: one sentence with the reason.
    """

    verdict: CheckVerdict
    checks: tuple[RolloutCheckResult, ...]
    labels_needed: int | None
    days_needed: float | None
    text: str


def analyse(evidence: RolloutEvidence, criteria: Criteria) -> RolloutVerdict:
    """Decides about a challenger from all observations until now.

    Args:
        evidence: the observations; those of an earlier analysis come first in it.
        criteria: for the challenger; the same at each analysis.

    Returns:
        The verdict with its checks. It is waiting if the evidence is empty or cannot be analysed.

    Example:
        >>> losses = np.random.default_rng(1).exponential(size=3000)
        >>> evidence = RolloutEvidence(
        ...     ArmCounts(3000), ArmCounts(3000), champion_loss=losses, challenger_loss=0.8 * losses, loss_bound=6.0
        ... )
        >>> analyse(evidence, Criteria()).verdict
        'promote'
    """
    guardrails = [
        _check_rate("error_rate", evidence.champion.errors, evidence.challenger.errors, evidence, criteria),
        _check_rate(
            "non_finite_predictions", evidence.champion.nonfinite, evidence.challenger.nonfinite, evidence, criteria
        ),
        *_check_disagreement(evidence, criteria),
    ]
    ratio = _check_sample_ratio(evidence, criteria)
    loss, labels_needed = _check_loss(evidence, criteria)
    checks = (*guardrails, *ratio, loss, *_check_slices(evidence, criteria))
    aborting = [check for check in checks if check.verdict == "abort"]
    if aborting:
        return RolloutVerdict("abort", checks, None, None, "; ".join(check.text for check in aborting))
    necessary = guardrails if criteria.promote_if == "healthy" else [loss]
    waiting = [check for check in necessary if check.verdict == "waiting"]
    if evidence.challenger.requests <= 0:
        text = "the challenger has answered no requests yet"
    elif waiting:
        text = "; ".join(check.text for check in waiting)
    else:
        return RolloutVerdict("promote", checks, None, None, "; ".join(check.text for check in necessary))
    if criteria.promote_if == "healthy":
        return RolloutVerdict("waiting", checks, None, None, text)
    return _forecast(checks, text, labels_needed, evidence.labels_per_day)


def _forecast(
    checks: tuple[RolloutCheckResult, ...], text: str, labels_needed: int | None, labels_per_day: float
) -> RolloutVerdict:
    if labels_needed is None:
        return RolloutVerdict("waiting", checks, None, None, text)
    if not (math.isfinite(labels_per_day) and labels_per_day > 0):
        text = f"{text}; about {labels_needed:,} more labels are needed, and none arrive"
        return RolloutVerdict("waiting", checks, labels_needed, None, text)
    days = labels_needed / labels_per_day
    text = f"{text}; about {labels_needed:,} more labels are needed, which takes {days:,.1f} days"
    return RolloutVerdict("waiting", checks, labels_needed, days, text)


def _check_rate(
    name: str, champion_events: int, events: int, evidence: RolloutEvidence, criteria: Criteria
) -> RolloutCheckResult:
    champion = champion_events, evidence.champion.requests
    challenger = events, evidence.challenger.requests
    title, trials = name.replace("_", " "), evidence.challenger.requests
    if not (0 <= champion[0] <= champion[1] and 0 <= events <= trials):
        return _no_result(name, f"the counts of {title} cannot be right: {champion} and {challenger}")
    if trials == 0:
        return _no_result(name, f"{title}: no requests yet")
    alpha = criteria.alpha * _SHARES[name]
    if champion[1]:
        lower, upper = rate_difference_limits(champion, challenger, alpha)
        estimate, reference = events / trials - champion[0] / champion[1], f"{champion[0]} of {champion[1]:,}"
    else:
        lower, upper = rate_limits(events, trials, alpha)
        estimate, reference = events / trials, "no requests"
    text = f"{title}: {events} of {trials:,} requests, the champion {reference}; accepted excess "
    text += f"{criteria.max_error_rate_increase:.2%}, limits {lower:+.2%} to {upper:+.2%}"
    return RolloutCheckResult(
        name, _judge(lower, upper, criteria.max_error_rate_increase), estimate, lower, upper, trials, text
    )


def _check_disagreement(evidence: RolloutEvidence, criteria: Criteria) -> Iterator[RolloutCheckResult]:
    name, events, trials, accepted = (
        "disagreement",
        evidence.disagreements,
        evidence.compared,
        criteria.max_disagreement,
    )
    if accepted is None:
        return
    if not 0 <= events <= trials:
        yield _no_result(name, f"the counts of disagreements cannot be right: {events} of {trials}")
    elif trials == 0:
        yield _no_result(name, "disagreement: no rows were answered by both arms yet")
    else:
        lower, upper = rate_limits(events, trials, criteria.alpha * _SHARES[name])
        text = (
            f"disagreement: {events:,} of {trials:,} rows, accepted {accepted:.2%}, limits {lower:.2%} to {upper:.2%}"
        )
        yield RolloutCheckResult(name, _judge(lower, upper, accepted), events / trials, lower, upper, trials, text)


def _check_sample_ratio(evidence: RolloutEvidence, criteria: Criteria) -> Iterator[RolloutCheckResult]:
    name = "sample ratio"
    periods = [period for period in evidence.weight_history if 0 < period.weight < 1]
    if any(min(period.champion, period.challenger) < 0 for period in periods):
        yield _no_result(name, "the counts of assignments cannot be right: one of them is negative")
        return
    total = sum(period.champion + period.challenger for period in periods)
    if total == 0:
        return
    share = sum(period.challenger for period in periods) / total
    expected = sum((period.champion + period.challenger) * period.weight for period in periods) / total
    is_wrong = sample_ratio_evidence(periods) >= math.log(1 / (criteria.alpha * _SHARES[name]))
    text = f"sample ratio: {share:.2%} of {total:,} assignments went to the challenger, expected {expected:.2%}"
    verdict: CheckVerdict = "abort" if is_wrong else "promote"
    yield RolloutCheckResult(name, verdict, share - expected, math.nan, math.nan, total, text)


def _check_loss(evidence: RolloutEvidence, criteria: Criteria) -> tuple[RolloutCheckResult, int | None]:
    """The check of the mean loss, and how many more labelled rows it needs."""
    try:
        series = _align(evidence)
    except (TypeError, ValueError) as error:
        return _no_result("loss", f"loss: it cannot be compared: {error}"), None
    alphas = criteria.alpha * _SHARES["worse"], criteria.alpha * _SHARES["better"]
    margin = criteria.margin if criteria.promote_if == "not_worse" else 0.0
    test = RatioTest(series.challenger, series.champion, series.bound, 1 + margin)
    needed = _comparisons_needed(test, alphas, paired=evidence.paired) * series.rows
    if evidence.loss_bound is None:
        needed += max(0, WARM_UP_ROWS - int(np.isfinite(evidence.champion_loss).sum()))
    if not len(series.champion):
        reason = f"{series.missing:.0%} of the labelled rows have no loss" if series.missing else "no labelled rows yet"
        if evidence.loss_bound is None and len(evidence.champion_loss) and not series.missing:
            reason = f"the first {WARM_UP_ROWS} labelled rows only choose the largest loss that counts"
        return _no_result("loss", f"loss: it cannot be compared: {reason}"), needed
    check = _judge_loss("loss", test, alphas)
    if series.missing > MAX_MISSING and check.verdict == "promote":
        text = f"{check.text}; but {series.missing:.1%} of the labelled rows have no loss, accepted {MAX_MISSING:.0%}"
        check = check._replace(verdict="waiting", text=text)
    return check, needed


def _check_slices(evidence: RolloutEvidence, criteria: Criteria) -> Iterator[RolloutCheckResult]:
    for slice_name, members in evidence.slices.items():
        name = f"loss in {slice_name}"
        try:
            series = _align(evidence, np.asarray(members))
        except (TypeError, ValueError) as error:
            yield _no_result(name, f"{name}: it cannot be compared: {error}")
            continue
        if len(series.champion):
            test = RatioTest(series.challenger, series.champion, series.bound, 1 + criteria.slice_margin)
            alpha = criteria.alpha * _SHARES["slices"] / len(evidence.slices)
            yield _judge_loss(name, test, (alpha, alpha))
        else:
            yield _no_result(name, f"{name}: it cannot be compared: no labelled rows yet")


def _judge_loss(name: str, test: RatioTest, alphas: tuple[float, float]) -> RolloutCheckResult:
    verdict: CheckVerdict = "waiting"
    if test.above.highest >= math.log(1 / alphas[0]):
        verdict = "abort"
    elif test.below.highest >= math.log(1 / alphas[1]):
        verdict = "promote"
    limits, rows = test.limits(*alphas), test.below.observations
    lower, upper, estimate = limits.lower - 1, limits.upper - 1, test.estimate - 1
    accepted = f", accepted {test.ratio - 1:+.0%}" if test.ratio != 1 else ""
    limits_text = f"limits {lower:+.1%} to {f'{upper:+.1%}' if math.isfinite(upper) else 'any value'}"
    against = f"{estimate:+.1%} against the champion" if math.isfinite(estimate) else "the champion's is 0"
    text = f"{name}: {against}{accepted}, {limits_text}, {rows:,} comparisons"
    return RolloutCheckResult(name, verdict, estimate, lower, upper, rows, text)


def _comparisons_needed(test: RatioTest, alphas: tuple[float, float], *, paired: bool) -> int:
    """The forecast of further comparisons until a verdict, if the losses stay as they are.

    A difference within one standard error counts as one standard error, so the forecast is then a lower bound.
    """
    rows = test.below.observations
    needed = []
    for process, alpha in ((test.above, alphas[0]), (test.below, alphas[1])):
        growth = max(process.growth, 1 / (2 * rows)) if rows else 0.0
        if rows < _MIN_FORECAST:
            growth = 0.5 * (_ASSUMED_DIFFERENCE / _ASSUMED_SPREAD[paired]) ** 2
        needed.append((math.log(1 / alpha) - process.log_wealth) / growth)
    return max(math.ceil(min(needed)), 1)


def _align(evidence: RolloutEvidence, members: np.ndarray | None = None) -> LossSeries:
    return align_losses(
        evidence.champion_loss,
        evidence.challenger_loss,
        paired=evidence.paired,
        bound=evidence.loss_bound,
        share=next((period.weight for period in evidence.weight_history if 0 < period.weight < 1), 0.5),
        members=members,
    )


def _judge(lower: float, upper: float, accepted: float) -> CheckVerdict:
    if lower > accepted:
        return "abort"
    return "promote" if upper <= accepted else "waiting"


def _no_result(name: str, text: str) -> RolloutCheckResult:
    return RolloutCheckResult(name, "waiting", math.nan, math.nan, math.nan, 0, text)
