"""The verdict of a rollout on labels of the table: between equal versions, and between versions of known loss.

A trial draws rows of the holdout with replacement. Both versions answer each row, as in shadow.
"""

import numpy as np

from towline.config import PipelineConfig, RolloutConfig
from towline.monitoring.rollout_evaluation import criteria_of
from towline.promotion.gate import Holdout
from towline.rollout.analysis import ArmCounts, Criteria, RolloutEvidence, analyse
from towline.selftest.rates import MeasuredRate, measure_rate, smallest_detected
from towline.training.evaluation.definitions import primary_metric
from towline.training.evaluation.predictions import Predictions
from towline.training.evaluation.row_losses import choose_loss, row_losses

LABELS = 2_000
EQUAL_TRIALS, TRIALS = 100, 25
LOSSES = (0.05, 0.1, 0.25, 0.5)  # by which a version is worse, relative


def measure_rollout(
    config: PipelineConfig, holdout: Holdout, other: Predictions
) -> tuple[list[MeasuredRate], list[str]]:
    """Measures how often a rollout promotes or aborts versions that are equal, worse or better by a known loss.

    Args:
        config: ``rollout`` has the criteria; without it, the defaults count.
        holdout: rows and truth; its challenger is the champion of the self-test.
        other: predictions of another model for the same rows. In each row, chance decides which of the two models is
            the champion, so the mean losses of both versions are equal.

    Returns:
        The rates, and the smallest detected loss as a note.
    """
    rng, criteria = np.random.default_rng(config.seed), criteria_of(config.rollout or RolloutConfig())
    loss = choose_loss(primary_metric(config, holdout.contract.task), holdout.contract, holdout.challenger)
    own, second, shuffled = (
        row_losses(holdout.truth, predictions, holdout.contract, loss)
        for predictions in (holdout.challenger, other, holdout.challenger.take(rng.permutation(len(holdout.truth))))
    )
    expected = f"at most {100 * criteria.alpha:g} %"
    verdicts = [_judge(own, second, criteria, rng, swap=True) for _ in range(EQUAL_TRIALS)]
    case = f"versions with equal {loss}"
    rates = [
        _rate(case, verdicts, "promote", expected if criteria.promote_if == "better" else ""),
        _rate(case, verdicts, "abort", expected),
    ]
    stopped = []
    for effect in LOSSES:
        worse = _make_worse(own, shuffled, effect, rng)
        if worse is None:
            break
        verdicts = [_judge(own, worse, criteria, rng) for _ in range(TRIALS)]
        case = f"{loss} higher by {effect:.0%}"
        rates.append(_rate(case, verdicts, "promote", expected if effect > criteria.margin else ""))
        stopped.append(_rate(case, verdicts, "abort", "", effect))
        verdicts = [_judge(worse, own, criteria, rng) for _ in range(TRIALS)]
        rates.append(_rate(f"champion's {loss} higher by {effect:.0%}", verdicts, "promote"))
    smallest = smallest_detected(stopped)
    labels = f"within {LABELS:,} labels"
    finding = (
        f"a challenger is stopped {labels} if its {loss} is {smallest:.0%} higher or more"
        if smallest is not None
        else f"no simulated loss is stopped in at least 80 % of trials {labels}"
    )
    return [*rates, *stopped], [f"rollout: {finding}"]


def _judge(
    first: np.ndarray, second: np.ndarray, criteria: Criteria, rng: np.random.Generator, *, swap: bool = False
) -> str:
    """The verdict after ``LABELS`` labels; a verdict on fewer labels is final.

    Args:
        first: losses of the champion.
        second: losses of the challenger.
        criteria: of the rollout.
        rng: draws the rows.
        swap: whether chance decides in each drawn row which of the losses is the champion's.
    """
    rows, arm = rng.integers(0, len(first), LABELS), ArmCounts(LABELS)
    swapped = rng.random(LABELS) < 0.5 if swap else np.zeros(LABELS, dtype=bool)
    champion, challenger = np.where(swapped, (second[rows], first[rows]), (first[rows], second[rows]))
    return analyse(RolloutEvidence(arm, arm, champion_loss=champion, challenger_loss=challenger), criteria).verdict


def _rate(
    case: str, verdicts: list[str], verdict: str, expected: str = "", effect: float | None = None
) -> MeasuredRate:
    event = {"promote": "is promoted", "abort": "is stopped"}[verdict]
    return measure_rate(
        "rollout", case, event, [each == verdict for each in verdicts], expected=expected, effect=effect
    )


def _make_worse(own: np.ndarray, shuffled: np.ndarray, effect: float, rng: np.random.Generator) -> np.ndarray | None:
    """The losses with those of other rows' predictions in a share of rows, so that the mean is higher by ``effect``.

    None if it cannot be so high.
    """
    order = rng.permutation(len(own))
    means = np.nanmean(own) + np.nancumsum((shuffled - own)[order]) / np.isfinite(own).sum()
    (higher,) = np.nonzero(means >= (1 + effect) * np.nanmean(own))
    if not len(higher):
        return None
    worse = own.copy()
    chosen = order[: int(higher[0]) + 1]
    worse[chosen] = shuffled[chosen]
    return worse
