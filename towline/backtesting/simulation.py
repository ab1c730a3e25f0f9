"""Simulation of retraining policies on historical data.

The history is divided into steps. In each step a model predicts the rows; at its end a monitoring run measures them,
the policy decides, and a training may follow.
"""

import datetime as dt
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import pandas as pd

from towline.backtesting.monitoring_simulation import PredictedRows, SimulatedMonitoring
from towline.backtesting.results import (
    POLICIES,
    BacktestResult,
    BacktestStep,
    PolicyName,
    PolicyResult,
    find_best,
    to_aware,
    to_naive,
)
from towline.backtesting.trainer import TrainedModel, Trainer, TrainingFailure
from towline.config import PipelineConfig, finite_or_none
from towline.config.monitoring import RetrainTrigger
from towline.data.schema.inference import infer_contract
from towline.errors import ConfigError, DataError
from towline.monitoring.policy import Decision, Evidence, decide
from towline.monitoring.results import DriftResult, GainResult, QualityResult
from towline.steps import step
from towline.training.evaluation.definitions import primary_metric
from towline.training.evaluation.metrics import compute_metrics

Result = TypeVar("Result", DriftResult, QualityResult, GainResult)
MAX_STEPS = 2_000
MAX_EMPTY_SHARE = 0.5
_UNITS: dict[str, pd.DateOffset] = {
    "mo": pd.DateOffset(months=1),
    "w": pd.DateOffset(weeks=1),
    "d": pd.DateOffset(days=1),
    "h": pd.DateOffset(hours=1),
}


def run_backtest(
    config: PipelineConfig,
    project: Path,
    start: dt.datetime,
    end: dt.datetime,
    step_length: str = "1mo",
    policies: Sequence[PolicyName] = POLICIES,
    delay: dt.timedelta | None = None,
) -> BacktestResult:
    """Simulates each policy from ``start`` until ``end``.

    Every policy starts with the same model, trained as of ``start``. Trainings run in a temporary folder; the user's
    store is not changed.

    Args:
        config: the user's config.
        project: folder that relative paths start from.
        start: start of the first step.
        end: end of the last step, not included.
        step_length: length of a step: 1mo, 2w, 1d, 12h.
        policies: never; schedule (a training in each step); drift, quality, both or gain, as in ``config.retrain``
            but with these triggers.
        delay: time until a label is known; default: ``config.quality.delay``.

    Raises:
        ConfigError: the data have no time, or the steps are not possible.
        DataError: the source cannot be read, or has too few rows before ``start``.
    """
    if not config.data.time:
        raise ConfigError("a backtest needs the time of each row", where="data.time", remedy="name the time column")
    delay = config.quality.delay if delay is None else delay
    known_after = max(delay, dt.timedelta(microseconds=1))  # a row of this moment is predicted in the next step
    config = config.model_copy(update={"quality": config.quality.model_copy(update={"delay": known_after})})
    bounds = divide_period(to_naive(start), to_naive(end), step_length)
    with tempfile.TemporaryDirectory(prefix="towline-backtest-") as scratch:
        trainer = Trainer(config, project, Path(scratch))
        rows = trainer.rows()
        _check_period(rows[config.data.time], bounds, known_after, config, step_length)
        first = trainer.train(bounds[0] - known_after)
        if isinstance(first, TrainingFailure):
            where = f"as of {bounds[0] - known_after}"
            raise DataError(f"no first model: {first.reason}", where=where, remedy="start with a later --from")
        context = BacktestContext(config, trainer, rows, bounds, first)
        results = []
        for policy in policies:
            with step(f"simulate {policy}") as progress:
                results.append(context.simulate(policy))
                value = results[-1].value or float("nan")
                progress.note = f"{context.metric} {value:.4g}, {results[-1].retrainings} trainings"
        verdict = trainer.judge(first, None).outcome
    notes = (
        () if verdict == "pass" else (f"the first model did not pass its gate ({verdict}) and was used all the same",)
    )
    return BacktestResult(
        model=config.name,
        metric=context.metric,
        start=to_aware(bounds[0]),
        end=to_aware(bounds[-1]),
        step=step_length,
        delay=delay,
        first_cpu_s=round(first.cpu_s, 1),
        policies=tuple(results),
        best=find_best(results, context.metric),
        notes=notes,
    )


def divide_period(start: pd.Timestamp, end: pd.Timestamp, step_length: str) -> list[pd.Timestamp]:
    """The bounds of the steps; the last step may be shorter.

    Raises:
        ConfigError: the step or the period is invalid.
    """
    match = re.fullmatch(r"\s*([1-9]\d{0,3})\s*(mo|w|d|h)\s*", step_length)
    if not match:
        raise ConfigError(f"{step_length!r} is not a step", where="--step", remedy="write 1mo, 2w, 1d or 12h")
    if start >= end:
        raise ConfigError(f"{start} is not before {end}", where="--from", remedy="give a later --to")
    offset, bounds = _UNITS[match[2]] * int(match[1]), [start]
    while bounds[-1] < end:
        bounds.append(min(start + offset * len(bounds), end))
        if len(bounds) > MAX_STEPS:
            what = f"more than {MAX_STEPS:,} steps of {step_length}"
            raise ConfigError(what, where="--step", remedy="use longer steps")
    return bounds


def _check_period(
    times: pd.Series, bounds: list[pd.Timestamp], delay: dt.timedelta, config: PipelineConfig, step_length: str
) -> None:
    """Refuses periods without enough rows."""
    span = f"rows range from {times.iloc[0]:%Y-%m-%d} to {times.iloc[-1]:%Y-%m-%d}"
    before, minimum = int((times <= bounds[0] - delay).sum()), config.validation.min_rows
    if not before:
        raise DataError(f"no rows before {bounds[0]:%Y-%m-%d}", where="--from", remedy=f"{span}: start later")
    if before < minimum:
        enough = f"row {minimum:,} is of {times.iloc[minimum - 1]:%Y-%m-%d}" if minimum <= len(times) else span
        what = f"{before:,} rows before {bounds[0]:%Y-%m-%d}, validation.min_rows is {minimum:,}"
        raise DataError(what, where="--from", remedy=f"{enough}: start later")
    counts = np.diff(np.searchsorted(times.to_numpy(), np.array(bounds, dtype="datetime64[us]")))
    if not counts.any():
        raise DataError(f"no rows from {bounds[0]} to {bounds[-1]}", where="--from, --to", remedy=span)
    if (counts == 0).mean() > MAX_EMPTY_SHARE:
        what = f"{int((counts == 0).sum())} of {len(counts)} steps of {step_length} have no rows"
        raise ConfigError(what, where="--step", remedy="use longer steps")


@dataclass
class _Champion:
    """The champion of a simulated policy, and its monitoring results since it serves."""

    trained: TrainedModel
    since: pd.Timestamp
    previous: TrainedModel | None = None
    drift: list[DriftResult] = field(default_factory=list)
    quality: list[QualityResult] = field(default_factory=list)
    gain: list[GainResult] = field(default_factory=list)

    def window_start(self, results: Sequence[DriftResult | QualityResult | GainResult]) -> pd.Timestamp:
        """Where the next window starts: a window with an unknown state stays open."""
        closed = [result.end for result in results if result.state != "unknown" and result.end]
        return to_naive(closed[-1]) if closed else self.since


class _Retraining(NamedTuple):
    champion: _Champion
    outcome: str
    cpu_s: float


class BacktestContext:
    """Everything that the policies share: the rows, the trainings, and each version's predictions.

    Args:
        config: the user's config, with the delay of this backtest.
        trainer: trains and judges versions.
        rows: all rows of the source, oldest first.
        bounds: bounds of the steps.
        first: the model that every policy starts with.
    """

    def __init__(
        self,
        config: PipelineConfig,
        trainer: Trainer,
        rows: pd.DataFrame,
        bounds: list[pd.Timestamp],
        first: TrainedModel,
    ) -> None:
        self._config, self._trainer, self._bounds, self._first = config, trainer, bounds, first
        self._delay = config.quality.delay
        self._monitoring = SimulatedMonitoring(config, self._delay)
        self._contract = infer_contract(rows, config, lookups=first.work.lookups(config))
        self.metric = primary_metric(config, self._contract.task)
        self._all_rows, self._all_times = rows, rows[config.data.time]
        inside = ((self._all_times >= bounds[0]) & (self._all_times < bounds[-1])).to_numpy()
        self._rows = rows[inside].reset_index(drop=True)
        self._times = self._all_times[inside].reset_index(drop=True)
        self._truth = pd.Series(self._contract.labels(self._rows))
        self._predicted: dict[int, PredictedRows] = {}

    def simulate(self, policy: PolicyName) -> PolicyResult:
        """Simulates one policy from the first step to the last."""
        champion, steps = _Champion(self._first, self._bounds[0]), list[BacktestStep]()
        last_training: pd.Timestamp | None = None
        for start, end in zip(self._bounds, self._bounds[1:], strict=False):
            evidence = self._monitor(champion, end, policy, last_training)
            decision = self._decide(evidence, policy)
            finished = self._describe_step(champion, start, end, decision)
            if end < self._bounds[-1] and decision.action == "retrain":
                last_training = end
                champion, outcome, cpu_s = self._retrain(champion, end)
                finished = finished.model_copy(update={"outcome": outcome, "cpu_s": cpu_s})
            elif end < self._bounds[-1] and decision.action == "roll back" and champion.previous:
                outcome = f"rolled back to version {champion.previous.version}"
                champion = _Champion(champion.previous, end)
                finished = finished.model_copy(update={"outcome": outcome})
            steps.append(finished)
        return PolicyResult.of(policy, steps)

    def _describe_step(
        self, champion: _Champion, start: pd.Timestamp, end: pd.Timestamp, decision: Decision
    ) -> BacktestStep:
        trained, predicted = champion.trained, self._predict(champion.trained).between(start, end)
        drift = champion.drift[-1]
        quality = champion.quality[-1] if champion.quality else None
        gain = champion.gain[-1] if champion.gain else None
        return BacktestStep(
            start=to_aware(start),
            end=to_aware(end),
            rows=len(predicted.rows),
            value=self._compute_metric(predicted, trained),
            version=trained.version,
            trained_until=to_aware(trained.trained_until),
            drift=drift.state,
            alarms=tuple(dict.fromkeys(check.column for check in drift.checks if check.alarm)),
            quality=quality.state if quality else "unknown",
            measured=quality.value.value if quality else None,
            gain=1 - gain.refit / gain.champion if gain and gain.refit is not None and gain.champion else None,
            refit_cpu_s=gain.cpu_s if gain else 0.0,
            action=decision.action,
            trigger=decision.trigger,
            reason=decision.reason,
        )

    def _monitor(
        self, champion: _Champion, now: pd.Timestamp, policy: PolicyName, last_training: pd.Timestamp | None
    ) -> Evidence:
        """One monitoring run, and the evidence after it."""
        trained, predicted, comparison = champion.trained, self._predict(champion.trained), None
        start = champion.window_start(champion.drift)
        champion.drift.append(self._monitoring.detect_drift(trained, predicted, start, now))
        start = champion.window_start(champion.quality)
        if now - self._delay > start:
            window = self._monitoring.measure_quality(trained, predicted, start, now)
            champion.quality.append(window)
            if window.state == "degraded" and policy in ("quality", "both"):
                previous = champion.previous.location if champion.previous else None
                comparison = self._monitoring.compare_champions(
                    trained, previous, predicted, window, champion.drift[-1]
                )
        if policy == "gain":
            self._measure_gain(champion, now)
        new = (self._all_times > trained.trained_until) & (self._all_times <= now - self._delay)
        return Evidence(
            now=to_aware(now),
            champion=trained.version,
            since=to_aware(champion.since),
            previous=champion.previous.version if champion.previous else None,
            drift=self._recent(champion.drift),
            quality=self._recent(champion.quality),
            gain=tuple(
                window
                for window in champion.gain
                if last_training is None or (window.end and to_naive(window.end) > last_training)
            ),
            labels_arrive=True,
            comparison=comparison,
            new_rows=int(new.sum()),
            last_training=None if last_training is None else to_aware(last_training),
        )

    def _measure_gain(self, champion: _Champion, now: pd.Timestamp) -> None:
        """Adds the open window of the champion."""
        start = champion.window_start(champion.gain)
        if now - self._delay <= start:
            return
        history = self._all_rows[(self._all_times <= now - self._delay).to_numpy()]
        predicted = self._predict(champion.trained)
        champion.gain.append(self._monitoring.measure_gain(champion.trained, predicted, history, start, now))

    def _recent(self, windows: Sequence[Result]) -> tuple[Result, ...]:
        closed = [window for window in windows if window.state != "unknown"]
        return tuple(closed[-self._config.retrain.recent_windows :])

    def _decide(self, evidence: Evidence, policy: PolicyName) -> Decision:
        if policy == "never":
            return Decision(action="nothing", trigger=None, reason="never", cause="")
        if policy == "schedule":
            return Decision(action="retrain", trigger="schedule", reason="every step", cause="")
        triggers: tuple[RetrainTrigger, ...] = ("drift", "quality") if policy == "both" else (policy,)
        return decide(evidence, self._config.retrain.model_copy(update={"triggers": triggers}))

    def _retrain(self, champion: _Champion, now: pd.Timestamp) -> _Retraining:
        trained = self._trainer.train(now - self._delay)
        if isinstance(trained, TrainingFailure):
            return _Retraining(champion, f"no model: {trained.reason}", max(trained.cpu_s, 1e-3))
        verdict = self._trainer.judge(trained, champion.trained)
        if verdict.outcome == "pass":
            promoted = _Champion(trained, now, champion.trained)
            return _Retraining(promoted, f"promoted version {trained.version}", trained.cpu_s)
        check = next(check for check in verdict.checks if check.outcome == verdict.outcome)
        return _Retraining(champion, f"refused, {check.name} {check.outcome}: {check.detail}", trained.cpu_s)

    def _predict(self, trained: TrainedModel) -> PredictedRows:
        """A version's predictions for all rows of the period, computed once."""
        if trained.version not in self._predicted:
            predictions = trained.model.predict_frame(trained.model.to_features(self._rows))
            self._predicted[trained.version] = PredictedRows(self._rows, self._times, self._truth, predictions)
        return self._predicted[trained.version]

    def _compute_metric(self, predicted: PredictedRows, trained: TrainedModel) -> float | None:
        if not len(predicted.rows):
            return None
        predictions, known = predicted.predictions, trained.model.contract.classes
        # a version may know a class that the whole table does not have: that of the classes that were rare then
        classes = tuple(dict.fromkeys((*self._contract.classes, *known)))
        contract = self._contract.model_copy(update={"classes": classes})
        if classes:
            predictions = predictions.align(known, classes)
        values = compute_metrics(predicted.truth.to_numpy(), predictions, contract, metrics=[self.metric])
        return finite_or_none(values[self.metric])
