"""Hyperparameter search with Optuna, which an interrupted run continues after its last complete trial."""

import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from towline import files
from towline.config import Candidate, SearchConfig
from towline.errors import ConfigError, TowlineError
from towline.training.evaluation.definitions import Metric

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution


def search_parameters(
    trials_file: Path,
    candidate: Candidate,
    default: Mapping[str, Any],
    metric: Metric,
    seed: int,
    objective: Callable[[dict[str, Any]], float],
) -> tuple[dict[str, Any], int]:
    """The parameters with the best score, and the number of trials.

    The first trial has the candidate's own parameters, so the result is never worse than without a search. The others
    are drawn by the Tree-structured Parzen Estimator (Bergstra et al., 2011). The seed of a trial depends on its
    number: an interrupted search draws the same trials as an uninterrupted one, and repeats an incomplete trial. The
    timeout limits the seconds of all trials; a running trial is completed.

    Args:
        trials_file: JSON file; each trial is written to it when it is complete.
        candidate: its ``search`` and its parameters.
        default: the search space if ``search.space`` is empty.
        metric: of the objective; decides whether a greater score is better.
        seed: of the first trial.
        objective: parameters → score; a trial fails if its score is not finite or an error is raised.

    Raises:
        ConfigError: the search space is invalid or empty.
        Exception: of the last trial, if all trials failed.
    """
    import optuna
    from optuna.trial import TrialState, create_trial

    search = candidate.search or SearchConfig()
    specs = search.space or default
    space = _space(specs, f"candidates.{candidate.name}.search.space")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="maximize" if metric.greater_is_better else "minimize")
    trials: list[dict[str, Any]] = json.loads(trials_file.read_bytes()) if trials_file.exists() else []
    for saved in trials:
        state = TrialState.PRUNED if saved["score"] is None else TrialState.COMPLETE
        distributions = {name: space[name] for name in saved["drawn"]}
        trial = create_trial(state=state, value=saved["score"], params=saved["drawn"], distributions=distributions)
        study.add_trial(trial)

    def params(drawn: Mapping[str, Any]) -> dict[str, Any]:
        return {**candidate.params, **{name: _value(specs[name], value) for name, value in drawn.items()}}

    last_error: Exception | None = None
    while len(trials) < search.trials and sum(trial["seconds"] for trial in trials) < (search.timeout or math.inf):
        study.sampler = optuna.samplers.TPESampler(seed=(seed + len(trials)) % 2**32)
        running, started, score = study.ask(space if trials else None), time.perf_counter(), None
        try:
            value = objective(params(running.params))
            score = value if math.isfinite(value) else None
        except TowlineError:
            raise
        except Exception as error:  # noqa: BLE001 - other parameters may succeed
            last_error = error
        study.tell(running, score, state=TrialState.PRUNED if score is None else TrialState.COMPLETE)
        seconds = round(time.perf_counter() - started, 3)
        trials.append({"drawn": running.params, "score": score, "seconds": seconds})
        files.write(trials_file, json.dumps(trials, indent=1))
    if all(trial["score"] is None for trial in trials):
        raise last_error or ValueError(f"{metric} is undefined in each of {len(trials)} trials")
    return params(study.best_trial.params), len(trials)


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
