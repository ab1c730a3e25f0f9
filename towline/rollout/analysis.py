"""The analysis of a rollout: it decides whether a challenger is promoted, aborted, or needs more labels."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np

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
    """A period of constant weight, and the assignments in it.

    Attributes:
        weight: the challenger's share of assignments, 0 to 1.
        champion, challenger: independent assignments to each arm: requests, or distinct keys if ``rollout.key`` is
            set (all requests of a key have the same arm, so they are not independent).
    """

    weight: float
    champion: int
    challenger: int


@dataclass(frozen=True, eq=False)
class RolloutEvidence:
    """All observations of a rollout until now.

    Attributes:
        champion, challenger: counts of the two arms.
        weight_history: periods of constant weight, oldest first, for the check of the sample ratio.
        disagreements: rows that the two arms answered differently.
        compared: rows that both arms answered.
        champion_loss, challenger_loss: losses of labelled rows, in the order in which the labels arrived, at least 0;
            NaN: the loss is missing. Paired: both arrays are of the same rows. Unpaired: each array is of the rows that
            its arm answered, and the lengths may differ.
        slices: name of a slice → whether a labelled row belongs to it. Unpaired: of the champion's rows, then of the
            challenger's.
        loss_bound: larger losses count as this value, see ``choose_loss_bound``; None: it is chosen from the
            champion's first labelled rows, which are not compared then.
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
    """What a challenger must fulfil.

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


class CheckResult(NamedTuple):
    """The result of one check.

    Attributes:
        name: errors, nonfinite, disagreement, sample ratio, loss, or ``loss in`` a slice.
        verdict: promote: the condition is fulfilled; abort: it is violated; waiting: neither is established.
        estimate: the present value: a difference of rates, a rate, or the relative difference of the mean losses
            (0.1: the challenger's is 10 % higher); NaN: there is none.
        lower, upper: confidence limits of the true value, valid at all times together; NaN: there are none.
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
    checks: tuple[CheckResult, ...]
    labels_needed: int | None
    days_needed: float | None
    text: str
