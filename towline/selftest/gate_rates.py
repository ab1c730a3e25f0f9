"""The gate on many holdouts: how often it passes models whose loss is known.

A holdout is drawn with replacement from the rows of the real one, by resampling units, so that the rows of a group or
of neighbouring times stay together. The loss of a model is known, because it is measured on all rows.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd

from towline.config import PipelineConfig, finite_or_none
from towline.promotion.gate import ChampionPredictions, Holdout, VerdictOutcome, decide, judge_predictions
from towline.selftest.rates import MeasuredRate, measure_rate, smallest_detected
from towline.training.evaluation.bootstrap import resample_metric, resampling_units, rows_by_unit
from towline.training.evaluation.definitions import Metric, metrics_of, primary_metric
from towline.training.evaluation.holdout import Evaluation
from towline.training.evaluation.metrics import compute_metrics
from towline.training.evaluation.predictions import Interval, Predictions

MARGINS = (1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0)  # losses of known-worse models, in margins
SMALLEST_MARGIN = 0.01  # in place of a margin of 0
TRIAL_CELLS = 200_000  # rows of all holdouts of a case
MAX_RESAMPLES = 100  # of a trial; the standard error needs no more
MIN_TRIALS, MAX_TRIALS = 20, 100


class NoisyModel(NamedTuple):
    """The predictions of a model that was fitted on wrong labels."""

    share: float
    predictions: Predictions


def measure_gate(
    config: PipelineConfig, evaluation: Evaluation, holdout: Holdout, noisy: list[NoisyModel], constant: Predictions
) -> tuple[list[MeasuredRate], list[str]]:
    """Measures how often the gate passes and rejects models of known quality.

    Args:
        config: of the pipeline.
        evaluation: of the champion; task and primary metric are used.
        holdout: rows and truth; its challenger is the champion.
        noisy: models fitted on wrong labels.
        constant: of the baseline.

    Returns:
        The rates, and the smallest detected loss as a note.
    """
    metric, champion = primary_metric(config, holdout.contract.task), holdout.challenger
    trials = int(np.clip(TRIAL_CELLS // len(holdout.truth), MIN_TRIALS, MAX_TRIALS))

    def passes(challenger: Predictions) -> list[VerdictOutcome]:
        return list(_judge_repeatedly(config, evaluation, holdout, challenger, trials))

    def rate(case: str, outcomes: list[VerdictOutcome], event: VerdictOutcome, expected: str = "") -> MeasuredRate:
        names = {"pass": "passes", "fail": "fails", "inconclusive": "is inconclusive"}
        return measure_rate("gate", case, names[event], [outcome == event for outcome in outcomes], expected=expected)

    rates = [rate("the champion against itself", passes(champion), "pass", "100 %")]
    rates.append(rate("a constant", passes(constant), "pass", "0 %"))
    for model in noisy:
        loss = _relative_loss(holdout, champion, model.predictions, metric)
        case = f"fitted with {model.share:.0%} wrong labels, {metric} worse by {loss:.1%}"
        expected = "at most 5 %" if loss > config.gate.champion_margin else ""
        rates.append(rate(case, passes(model.predictions), "pass", expected))
    margin, failing = config.gate.champion_margin or SMALLEST_MARGIN, list[MeasuredRate]()
    for multiple in MARGINS:
        worse = _make_worse(holdout, multiple * margin, metric, config.seed)
        if worse is None:
            break
        outcomes = passes(worse)
        case = f"{metric} worse by {multiple * margin:.1%}"
        rates.append(rate(case, outcomes, "pass", "at most 5 %"))
        refused = [outcome == "fail" for outcome in outcomes]
        failing.append(measure_rate("gate", case, "fails", refused, effect=multiple * margin))
        if all(refused):
            break
    smallest = smallest_detected(failing)
    size = f"{len(holdout.truth):,} holdout rows"
    finding = (
        f"the smallest loss that fails in at least 80 % of trials is {smallest:.1%} of {metric}, with {size}"
        if smallest is not None
        else f"no simulated loss of {metric} fails in at least 80 % of trials, with {size}; more rows are needed"
    )
    return [*rates, *failing], [f"gate: {finding}"]


def _judge_repeatedly(
    config: PipelineConfig, evaluation: Evaluation, holdout: Holdout, challenger: Predictions, trials: int
) -> Iterator[VerdictOutcome]:
    metrics = metrics_of(config, holdout.contract.task)
    resamples = min(MAX_RESAMPLES, config.evaluation.resamples)
    config = config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"resamples": resamples})})
    rng = np.random.default_rng(config.seed)
    members = rows_by_unit(resampling_units(holdout.rows, config))
    for _ in range(trials):
        drawn = [members[unit] for unit in rng.integers(0, len(members), len(members))]
        rows = np.concatenate(drawn)
        frame = holdout.rows.iloc[rows].reset_index(drop=True)
        if config.data.group:  # a group that is drawn twice counts as two
            frame[config.data.group] = np.repeat(np.arange(len(drawn)), [len(part) for part in drawn])
        elif config.by_time:  # each drawn block keeps its rows together
            frame[config.data.time] = pd.date_range("2000-01-01", periods=len(rows), freq="s")
        predictions, champion = challenger.take(rows), holdout.challenger.take(rows)
        trial = Holdout(
            holdout.contract, frame, holdout.truth[rows], predictions, holdout.baseline.take(rows),
            ChampionPredictions(1, champion, np.ones(len(rows), dtype=bool)),
        )  # fmt: skip
        values = compute_metrics(trial.truth, predictions, holdout.contract, metrics=metrics)
        intervals = {name: Interval(value=finite_or_none(value)) for name, value in values.items()}
        measured = evaluation.model_copy(update={"metrics": intervals})
        yield decide(judge_predictions(config, measured, trial), config.gate)


def _relative_loss(holdout: Holdout, champion: Predictions, model: Predictions, metric: Metric) -> float:
    weights = np.ones((1, len(holdout.truth)))
    before, after = (
        float(resample_metric(holdout.truth, each, holdout.contract, metric, weights)[0]) for each in (champion, model)
    )
    return (before - after if metric.greater_is_better else after - before) / max(abs(before), 1e-300)


def _make_worse(holdout: Holdout, loss: float, metric: Metric, seed: int) -> Predictions | None:
    """The champion with the predictions of other rows on a share of rows, worse by ``loss``; None if it cannot be."""
    rng, n = np.random.default_rng(seed), len(holdout.truth)
    order, other = rng.random(n), rng.permutation(n)

    def replace(share: float) -> Predictions:
        return holdout.challenger.take(np.where(order < share, other, np.arange(n)))

    low, high = 0.0, 1.0
    if not _relative_loss(holdout, holdout.challenger, replace(high), metric) > loss:
        return None
    for _ in range(14):
        middle = (low + high) / 2
        if _relative_loss(holdout, holdout.challenger, replace(middle), metric) > loss:
            high = middle
        else:
            low = middle
    return replace(high)
