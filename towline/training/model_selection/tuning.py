"""Hyperparameter search with Optuna, which an interrupted run continues after its last complete trial."""

import itertools
import json
import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from towline import files
from towline.config import Candidate, SearchConfig
from towline.errors import ConfigError, TowlineError
from towline.training.evaluation.definitions import Metric
from towline.training.model_selection.shared_study import Evaluate, SharedStudy, TrialResult
from towline.training.user_code import describe_error

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

POLL_S = 0.5  # seconds between two reads of the trials of other processes
_RANDOM_TRIALS = 10  # that are drawn at random, before the estimator has enough results


class TrialPlan:
    """The trials of a search: which parameters each has, given the results of earlier ones.

    The first trial has the candidate's own parameters, so the result is never worse than without a search. The others
    are drawn by the Tree-structured Parzen Estimator (Bergstra et al., 2011), a batch at a time: a trial depends on the
    results before its batch and on its number, which gives its seed. So the trials are the same whether one process
    evaluates them, or many, or an interrupted search is resumed. The first ten trials are drawn at random; they are one
    batch.

    Args:
        candidate: its ``search`` and its parameters.
        default: the search space if ``search.space`` is empty.
        metric: of the objective; decides whether a greater score is better.
        seed: of the first trial.

    Raises:
        ConfigError: the search space is invalid or empty.
    """

    def __init__(self, candidate: Candidate, default: Mapping[str, Any], metric: Metric, seed: int) -> None:
        self.search = candidate.search or SearchConfig()
        self._candidate, self._metric, self._seed = candidate, metric, seed
        self._specs = self.search.space or default
        self._space = _space(self._specs, f"candidates.{candidate.name}.search.space")

    @property
    def maximize(self) -> bool:
        return self._metric.greater_is_better

    def batch(self, number: int) -> range:
        """The numbers of the trials that are drawn together with one."""
        size = self.search.batch
        start = 0 if number < _RANDOM_TRIALS else _RANDOM_TRIALS + (number - _RANDOM_TRIALS) // size * size
        end = start + (size if start else _RANDOM_TRIALS)
        return range(start, min(end, self.search.trials))

    def draw(self, number: int, results: Sequence[TrialResult]) -> dict[str, Any]:
        """The values of a trial; ``results`` are of the trials before its batch, or of more."""
        import optuna
        from optuna.trial import TrialState, create_trial

        if number == 0:
            return {}
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        sampler = optuna.samplers.TPESampler(n_startup_trials=_RANDOM_TRIALS, seed=(self._seed + number) % 2**32)
        study = optuna.create_study(direction="maximize" if self.maximize else "minimize", sampler=sampler)
        for result in results[: self.batch(number).start]:
            state = TrialState.PRUNED if result.score is None else TrialState.COMPLETE
            distributions = {name: self._space[name] for name in result.drawn}
            trial = create_trial(state=state, value=result.score, params=result.drawn, distributions=distributions)
            study.add_trial(trial)
        drawn: dict[str, Any] = study.ask(self._space).params
        return drawn

    def params(self, drawn: Mapping[str, Any]) -> dict[str, Any]:
        """The parameters of a trial: the candidate's own, replaced by the drawn ones."""
        return {**self._candidate.params, **{name: _value(self._specs[name], value) for name, value in drawn.items()}}

    def evaluate(self, drawn: dict[str, Any], objective: Callable[[dict[str, Any]], float]) -> TrialResult:
        """The result of a trial; it fails if its score is not finite or an error is raised.

        Raises:
            TowlineError: as the objective does; the parameters are not its cause.
        """
        started, score, reason = time.perf_counter(), None, f"{self._metric} is undefined"
        try:
            value = objective(self.params(drawn))
            score, reason = (value, "") if math.isfinite(value) else (None, reason)
        except TowlineError:
            raise
        except Exception as error:  # noqa: BLE001 - other parameters may succeed
            reason = describe_error(error)
        return TrialResult(drawn, score, round(time.perf_counter() - started, 3), reason)

    def is_over(self, results: Collection[TrialResult]) -> bool:
        """Whether all trials are complete, or took as long as the timeout allows."""
        seconds = sum(result.seconds for result in results)
        return len(results) >= self.search.trials or seconds >= (self.search.timeout or math.inf)

    def best(self, results: Sequence[TrialResult]) -> dict[str, Any]:
        """The parameters with the best score; the first ones on a tie.

        Raises:
            ValueError: all trials failed.
        """
        scores = [result.score if result.score is not None else math.nan for result in results]
        if np.isnan(scores).all():
            raise ValueError(f"all {len(results)} trials failed; the last one: {results[-1].error}")
        best = np.nanargmax(scores) if self.maximize else np.nanargmin(scores)
        return self.params(results[int(best)].drawn)


def search_parameters(
    plan: TrialPlan,
    trials_file: Path,
    objective: Callable[[dict[str, Any]], float],
    shared: SharedStudy | None = None,
) -> tuple[dict[str, Any], int]:
    """The parameters with the best score, and the number of trials.

    An interrupted search is resumed. The timeout limits the seconds of all trials; a running trial is completed.

    Args:
        plan: of the trials.
        trials_file: JSON file; each trial is written to it when it is complete.
        objective: parameters → score.
        shared: the study in which other processes evaluate trials, too; default: this process evaluates all.

    Raises:
        ValueError: all trials failed.
    """
    saved = json.loads(trials_file.read_bytes()) if trials_file.exists() else []
    results = [TrialResult(**trial) for trial in saved]

    def save(results: Sequence[TrialResult]) -> None:
        files.write(trials_file, json.dumps([result._asdict() for result in results], indent=1))

    def evaluate(drawn: dict[str, Any]) -> TrialResult:
        return plan.evaluate(drawn, objective)

    if shared is not None:
        results = _run_shared(plan, results, shared, evaluate, save)
    while not plan.is_over(results):
        results.append(evaluate(plan.draw(len(results), results)))
        save(results)
    return plan.best(results), len(results)


def _run_shared(
    plan: TrialPlan,
    results: list[TrialResult],
    shared: SharedStudy,
    evaluate: Evaluate,
    save: Callable[[Sequence[TrialResult]], None],
) -> list[TrialResult]:
    """Adds the trials of one batch after the other, and evaluates trials itself, until the search is over."""
    known = shared.results()
    for number, result in enumerate(results):
        if number not in known:
            shared.add_result(number, result)
    while True:
        open_numbers = shared.open_numbers()  # first: a trial that is completed between both reads is then in both
        complete = shared.results()
        if (count := next(number for number in itertools.count() if number not in complete)) > len(results):
            results = [complete[number] for number in range(count)]
            save(results)
        if plan.is_over(complete.values()):
            shared.close()
            if not shared.has_running_trial():
                return [result for _, result in sorted(shared.results().items())]
            time.sleep(POLL_S)
            continue
        for number in plan.batch(count):
            if number not in complete and number not in open_numbers:
                shared.add(number, plan.draw(number, results))
        if shared.evaluate_waiting_trial(evaluate) is None:
            time.sleep(POLL_S)


def check_space(specs: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Checks a search space; returns one possible value of each parameter.

    Raises:
        ConfigError: the space is empty, or an entry is neither a range nor a choice.
    """
    distributions = _space(specs, where)
    return {name: _value(specs[name], getattr(distributions[name], "low", 0)) for name in distributions}


def _space(specs: Mapping[str, Any], where: str) -> "dict[str, BaseDistribution]":
    if not specs:
        remedy = "name the parameters to search, e.g. space: {alpha: {low: 0.01, high: 100, log: true}}"
        raise ConfigError("this estimator has no default search space", where=where, remedy=remedy)
    return {name: _distribution(spec, f"{where}.{name}") for name, spec in specs.items()}


def _value(spec: Any, drawn: Any) -> Any:
    return spec["choices"][drawn] if isinstance(spec, dict) and "choices" in spec else drawn


def _distribution(spec: Any, where: str) -> "BaseDistribution":
    """The distribution of ``[low, high]``, of ``{low, high, log}``, or of positions in ``{choices: [...]}``."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(spec, list) and len(spec) == 2:
        spec = {"low": spec[0], "high": spec[1]}
    if isinstance(spec, dict) and spec.keys() == {"choices"}:
        choices = spec["choices"]
        if isinstance(choices, list) and choices:
            return CategoricalDistribution(range(len(choices)))
    elif isinstance(spec, dict) and {"low", "high"} <= spec.keys() <= {"low", "high", "log"}:
        low, high, log = spec["low"], spec["high"], spec.get("log", False)
        numbers = all(isinstance(end, int | float) and not isinstance(end, bool) for end in (low, high))
        if numbers and math.isfinite(low) and math.isfinite(high) and low < high and (low > 0 or not log):
            if isinstance(low, int) and isinstance(high, int):
                return IntDistribution(low, high, log=bool(log))
            return FloatDistribution(low, high, log=bool(log))
    remedy = "write [low, high], {low, high, log: true} with 0 < low < high, or {choices: [a, b]}"
    raise ConfigError(f"not a range or a choice: {spec!r}", where=where, remedy=remedy)
