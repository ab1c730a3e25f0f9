"""A search over an estimator's parameters that a killed run takes up where it stopped."""

import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from towline import files
from towline.config import GREATER_IS_BETTER, Candidate, Metric, SearchConfig
from towline.errors import ConfigError, TowlineError

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
    """The parameters with the best objective, and how many trials were made.

    The first trial is the candidate as it stands, so a search cannot end worse than none; the others are drawn by the
    Tree-structured Parzen Estimator (Bergstra et al., 2011). Each trial is seeded by its place, so that a search taken
    up again draws what an uninterrupted one would; a trial cut short by a kill is made again. The timeout counts the
    seconds spent in trials; it lets no further trial begin and stops none.

    Args:
        trials_file: JSON file to which each trial is written when it ends.
        candidate: with the search to make and the parameters it varies on.
        default: the space when the search gives none.
        metric: what the objective measures, which says whether more is better.
        seed: of the first trial.
        objective: parameters → score; a trial whose score is not finite, or which raises, counts as worst.

    Raises:
        ConfigError: a bad space, or none. What every trial raised, if none could be finished.
    """
    import optuna
    from optuna.trial import TrialState, create_trial

    search = candidate.search or SearchConfig()
    specs = search.space or default
    space = _space(specs, f"candidates.{candidate.name}.search.space")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="maximize" if GREATER_IS_BETTER[metric] else "minimize")
    ended: list[dict[str, Any]] = json.loads(trials_file.read_bytes()) if trials_file.exists() else []
    for one in ended:
        state = TrialState.PRUNED if one["score"] is None else TrialState.COMPLETE
        used = {name: space[name] for name in one["drawn"]}
        study.add_trial(create_trial(state=state, value=one["score"], params=one["drawn"], distributions=used))

    def params(drawn: Mapping[str, Any]) -> dict[str, Any]:
        return {**candidate.params, **{name: _value(specs[name], value) for name, value in drawn.items()}}

    raised: Exception | None = None
    while len(ended) < search.trials and sum(one["seconds"] for one in ended) < (search.timeout or math.inf):
        study.sampler = optuna.samplers.TPESampler(seed=(seed + len(ended)) % 2**32)
        trial = study.ask(space if ended else None)
        started = time.perf_counter()
        try:
            score = objective(params(trial.params))
        except TowlineError:
            raise
        except Exception as error:  # noqa: BLE001 - some parameters cannot be fitted; the next ones may
            score, raised = math.nan, error
        able = math.isfinite(score)
        study.tell(trial, score if able else None, state=TrialState.COMPLETE if able else TrialState.PRUNED)
        seconds = round(time.perf_counter() - started, 3)
        ended.append({"drawn": trial.params, "score": score if able else None, "seconds": seconds})
        files.write(trials_file, json.dumps(ended, indent=1))
    if all(one["score"] is None for one in ended):
        raise raised or ValueError(f"{metric} is undefined in each of {len(ended)} trials")
    return params(study.best_trial.params), len(ended)


def check_space(specs: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Checks a search space; returns one value that each parameter can take.

    Raises:
        ConfigError: there is no parameter to search, or one that is no range and no choice.
    """
    return {name: _value(specs[name], _lowest(drawn)) for name, drawn in _space(specs, where).items()}


def _lowest(distribution: "BaseDistribution") -> Any:
    return getattr(distribution, "low", 0)  # a choice is drawn by its position


def _space(specs: Mapping[str, Any], where: str) -> "dict[str, BaseDistribution]":
    if not specs:
        remedy = "name the parameters to search, e.g. space: {alpha: {low: 0.01, high: 100, log: true}}"
        raise ConfigError("this estimator has no search space of its own", where=where, remedy=remedy)
    return {name: _distribution(spec, f"{where}.{name}") for name, spec in specs.items()}


def _value(spec: Any, drawn: Any) -> Any:
    return spec["choices"][drawn] if isinstance(spec, dict) and "choices" in spec else drawn


def _distribution(spec: Any, where: str) -> "BaseDistribution":
    """One parameter of a space: ``[low, high]``, ``{low, high, log}`` or ``{choices: [...]}``, drawn by position."""
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
