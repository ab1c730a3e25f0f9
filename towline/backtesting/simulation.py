"""Lives through history: in each step a model answers, then the watch looks, the policy decides, and it is trained."""

import datetime as dt
import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd

from towline.backtesting.monitoring_simulation import Answered, Watch
from towline.backtesting.results import POLICIES, BacktestResult, PolicyName, PolicyResult, Step, aware, best, naive
from towline.backtesting.trainer import TrainedModel, Trainer, TrainingFailure
from towline.config import PipelineConfig, RetrainConfig
from towline.config.monitoring import Sign
from towline.data.schema.contract import Contract
from towline.data.schema.inference import infer_contract
from towline.errors import ConfigError, DataError
from towline.monitoring.policy import Decision, Evidence, decide
from towline.monitoring.results import DriftResult, QualityResult
from towline.steps import step
from towline.training.cross_validation import primary_metric
from towline.training.evaluation.metrics import compute_metrics
from towline.training.evaluation.predictions import Predictions

W = TypeVar("W", DriftResult, QualityResult)
MOST_STEPS = 2_000
_UNITS: dict[str, pd.DateOffset] = {
    "mo": pd.DateOffset(months=1),
    "w": pd.DateOffset(weeks=1),
    "d": pd.DateOffset(days=1),
    "h": pd.DateOffset(hours=1),
}


def replay(
    config: PipelineConfig,
    project: Path,
    start: dt.datetime,
    end: dt.datetime,
    every: str = "1mo",
    policies: Sequence[PolicyName] = POLICIES,
    delay: dt.timedelta | None = None,
    watch: Callable[[PipelineConfig, dt.timedelta], Watch] = Watch,
) -> BacktestResult:
    """What each policy would have come to.

    Every life begins with the same model, trained as of ``start``. Nothing is left behind: trainings stand in a folder
    that is thrown away, and the user's store is not touched.

    Args:
        config: the user's own.
        project: where relative paths start.
        start: the first moment.
        end: the one after the last.
        every: how long a step is: 1mo, 2w, 1d, 12h. At the end of each is one round of the watch.
        policies: never; schedule, a training each step; drift, quality or both, as ``config.retrain`` says but with
            these signs.
        delay: after it a label is known; default ``config.quality.delay``.
        watch: what looks at the answered rows.

    Raises:
        ConfigError: no time, or steps that cannot be made.
        DataError: the source cannot be read, or has too few rows before ``start``.
    """
    if not config.data.time:
        raise ConfigError("a replay needs to know when rows happened", where="data.time", remedy="name the time column")
    late = config.quality.delay if delay is None else delay
    config = config.model_copy(update={"quality": config.quality.model_copy(update={"delay": late})})
    bounds = moments(naive(start), naive(end), every)
    with tempfile.TemporaryDirectory(prefix="towline-replay-") as scratch:
        trainer = Trainer(config, project, Path(scratch))
        rows = trainer.rows()
        times = rows[config.data.time]
        _check(times, bounds, late, config, every)
        first = trainer.train(bounds[0] - late)
        if isinstance(first, TrainingFailure):
            raise DataError(
                f"no first model: {first.reason}", where=f"as of {bounds[0] - late}", remedy="begin with a later --from"
            )
        contract = infer_contract(rows, config)
        world = BacktestContext(config, trainer, watch(config, late), rows, times, contract, bounds, late, first)
        lives = []
        for policy in policies:
            with step(f"live by {policy}") as told:
                lives.append(world.live(policy))
                told.note = f"{world.metric} {lives[-1].value or float('nan'):.4g}, {lives[-1].retrainings} trainings"
    passed = world.first_verdict
    notes = () if passed == "pass" else (f"the first model did not pass its gate ({passed}) and served all the same",)
    return BacktestResult(
        model=config.name,
        metric=world.metric,
        start=aware(bounds[0]),
        end=aware(bounds[-1]),
        step=every,
        delay=late,
        first_cpu_s=round(first.cpu_s, 1),
        lives=tuple(lives),
        best=best(lives, world.metric),
        notes=notes,
    )


def moments(start: pd.Timestamp, end: pd.Timestamp, every: str) -> list[pd.Timestamp]:
    """The bounds of the steps; the last step may be shorter.

    Raises:
        ConfigError: the step or the period makes no sense.
    """
    match = re.fullmatch(r"\s*([1-9]\d*)\s*(mo|w|d|h)\s*", every)
    if not match:
        raise ConfigError(f"{every!r} is no step", where="--step", remedy="write 1mo, 2w, 1d or 12h")
    if start >= end:
        raise ConfigError(f"{start} is not before {end}", where="--from", remedy="give a --to that comes later")
    offset, bounds = _UNITS[match[2]] * int(match[1]), [start]
    while bounds[-1] < end:
        bounds.append(min(start + offset * len(bounds), end))
        if len(bounds) > MOST_STEPS:
            raise ConfigError(
                f"more than {MOST_STEPS:,} steps of {every}",
                where="--step",
                remedy="give longer steps",
            )
    return bounds


def _check(
    times: pd.Series, bounds: list[pd.Timestamp], late: dt.timedelta, config: PipelineConfig, every: str
) -> None:
    """What would make a replay of nothing."""
    span = f"rows run from {times.iloc[0]:%Y-%m-%d} to {times.iloc[-1]:%Y-%m-%d}"
    before, least = int((times <= bounds[0] - late).sum()), config.validation.min_rows
    if not before:
        raise DataError(f"no rows before {bounds[0]:%Y-%m-%d}", where="--from", remedy=f"{span}: begin later")
    if before < least:
        enough = f"the {least:,}th row is of {times.iloc[least - 1]:%Y-%m-%d}" if least <= len(times) else span
        raise DataError(
            f"{before:,} rows before {bounds[0]:%Y-%m-%d}, validation.min_rows is {least:,}",
            where="--from",
            remedy=f"{enough}: begin later",
        )
    counts = np.diff(np.searchsorted(times.to_numpy(), np.array(bounds, dtype="datetime64[us]")))
    if not counts.any():
        raise DataError(f"no rows from {bounds[0]} to {bounds[-1]}", where="--from, --to", remedy=span)
    if (counts == 0).mean() > 0.5:
        raise ConfigError(
            f"{int((counts == 0).sum())} of {len(counts)} steps of {every} have no rows",
            where="--step",
            remedy="give longer steps",
        )


@dataclass
class _Serving:
    """The champion of a life, and what the rounds since it serves have found."""

    trained: TrainedModel
    since: pd.Timestamp
    previous: TrainedModel | None = None
    drift: list[DriftResult] = field(default_factory=list)
    quality: list[QualityResult] = field(default_factory=list)

    def open_since(self, windows: Sequence[DriftResult | QualityResult]) -> pd.Timestamp:
        """Where the next window begins: one that said nothing is looked at again together with what came since."""
        closed = [window.end for window in windows if window.state != "unknown" and window.end]
        return naive(closed[-1]) if closed else self.since


class BacktestContext:
    """What all lives share: the rows, the trainings, and each version's answers."""

    def __init__(
        self,
        config: PipelineConfig,
        trainer: Trainer,
        watch: Watch,
        rows: pd.DataFrame,
        times: pd.Series,
        contract: Contract,
        bounds: list[pd.Timestamp],
        late: dt.timedelta,
        first: TrainedModel,
    ) -> None:
        self.metric = primary_metric(config, contract.task)
        self.first_verdict = trainer.judge(first, None).outcome
        self._config, self._trainer, self._watch = config, trainer, watch
        self._contract, self._bounds, self._late, self._first = contract, bounds, late, first
        lived = ((times >= bounds[0]) & (times < bounds[-1])).to_numpy()
        self._all_times = times
        self._rows = rows[lived].reset_index(drop=True)
        self._times = times[lived].reset_index(drop=True)
        self._truth = pd.Series(contract.labels(self._rows))
        self._answers: dict[int, Answered] = {}

    def live(self, policy: PolicyName) -> PolicyResult:
        """One policy from the first step to the last."""
        serving, steps = _Serving(self._first, self._bounds[0]), list[Step]()
        started: pd.Timestamp | None = None
        for start, end in zip(self._bounds, self._bounds[1:], strict=False):
            answered = self._answered(serving.trained)
            seen = self._look(serving, answered, end, policy, started)
            decision = self._decide(seen, policy)
            here = answered.between(start, end)
            one = Step(
                start=aware(start),
                end=aware(end),
                rows=len(here.rows),
                value=self._measured(here, serving.trained),
                version=serving.trained.version,
                learnt_to=aware(serving.trained.learnt_to),
                drift=serving.drift[-1].state if serving.drift else "unknown",
                alarms=_alarms(serving.drift),
                quality=serving.quality[-1].state if serving.quality else "unknown",
                measured=serving.quality[-1].value.value if serving.quality else None,
                action=decision.action,
                trigger=decision.trigger,
                reason=decision.reason,
            )
            if end < self._bounds[-1] and decision.action == "retrain":
                started = end
                serving, outcome, cost = self._retrain(serving, end)
                one = one.model_copy(update={"outcome": outcome, "cpu_s": cost})
            elif end < self._bounds[-1] and decision.action == "roll back" and serving.previous:
                outcome = f"rolled back to version {serving.previous.version}"
                serving = _Serving(serving.previous, end)
                one = one.model_copy(update={"outcome": outcome})
            steps.append(one)
        return PolicyResult.of(policy, steps)

    def _look(
        self, serving: _Serving, answered: Answered, now: pd.Timestamp, policy: PolicyName, started: pd.Timestamp | None
    ) -> Evidence:
        """One round of the watch, and what is known after it."""
        trained = serving.trained
        serving.drift.append(self._watch.drift(trained, answered, serving.open_since(serving.drift), now))
        opened, triage = serving.open_since(serving.quality), None
        if now - self._late > opened:
            serving.quality.append(self._watch.quality(trained, answered, opened, now))
            window, previous = serving.quality[-1], serving.previous
            if window.state == "degraded" and policy in ("quality", "both"):
                release = previous.recorded if previous else None
                triage = self._watch.triage(trained, release, answered, window, serving.drift[-1])
        new = (self._all_times > trained.learnt_to) & (self._all_times <= now - self._late)
        return Evidence(
            now=aware(now),
            champion=trained.version,
            since=aware(serving.since),
            previous=serving.previous.version if serving.previous else None,
            drift=_known(serving.drift, self._config.retrain),
            quality=_known(serving.quality, self._config.retrain),
            triage=triage,
            new_rows=int(new.sum()),
            trained=None if started is None else aware(started),
        )

    def _decide(self, seen: Evidence, policy: PolicyName) -> Decision:
        if policy == "never":
            return Decision(action="nothing", trigger=None, reason="never", cause="")
        if policy == "schedule":
            return Decision(action="retrain", trigger="schedule", reason="every step", cause="")
        signs: tuple[Sign, ...] = ("drift", "quality") if policy == "both" else (policy,)
        return decide(seen, self._config.retrain.model_copy(update={"signs": signs}))

    def _retrain(self, serving: _Serving, now: pd.Timestamp) -> tuple[_Serving, str, float]:
        """The next champion, what came of the training, and its CPU seconds."""
        made = self._trainer.train(now - self._late)
        if isinstance(made, TrainingFailure):
            return serving, f"no model: {made.reason}", max(made.cpu_s, 1e-3)
        verdict = self._trainer.judge(made, serving.trained)
        if verdict.outcome == "pass":
            return _Serving(made, now, serving.trained), f"promoted version {made.version}", made.cpu_s
        told = next(check for check in verdict.checks if check.outcome == verdict.outcome)
        return serving, f"refused, {told.name} {told.outcome}: {told.detail}", made.cpu_s

    def _answered(self, trained: TrainedModel) -> Answered:
        """A version's answers to all rows from the first moment on."""
        if trained.version not in self._answers:
            found = trained.model.predictions(trained.model.features(self._rows))
            self._answers[trained.version] = Answered(self._rows, self._times, self._truth, found)
        return self._answers[trained.version]

    def _measured(self, here: Answered, trained: TrainedModel) -> float | None:
        """The metric on rows that one version answered."""
        if not len(here.rows):
            return None
        found, own = here.found, trained.model.contract.classes
        if found.probabilities is not None:
            aligned = np.zeros((len(found.labels), len(self._contract.classes)))
            aligned[:, [self._contract.classes.index(label) for label in own]] = found.probabilities
            found = Predictions(found.labels, aligned)
        value = compute_metrics(here.truth.to_numpy(), found, self._contract)[self.metric]
        return float(value) if np.isfinite(value) else None


def _known(windows: Sequence[W], config: RetrainConfig) -> tuple[W, ...]:
    return tuple([window for window in windows if window.state != "unknown"][-config.of :])


def _alarms(windows: list[DriftResult]) -> tuple[str, ...]:
    if not windows:
        return ()
    return tuple(dict.fromkeys(check.column for check in windows[-1].checks if check.alarm))
