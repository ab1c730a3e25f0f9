"""Checks of a config that need no data: tasks, metrics, estimators, parameters, search spaces, schedules."""

from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from towline.config import METRICS, Candidate, PipelineConfig, Task, suggest
from towline.config.messages import cron_error
from towline.data.schema.contract import Contract
from towline.errors import ConfigError
from towline.training import estimators
from towline.training.evaluation.definitions import Metric, metric_error
from towline.training.model_selection.tuning import check_space
from towline.training.user_code import import_function

TASKS: tuple[Task, ...] = ("regression", "binary", "multiclass")
#: key → error and remedy if it does not fit the task
_UNSUITABLE_KEYS: Mapping[str, tuple[str, str]] = {
    "data.detrend": (
        "the target of a {task} task has no trend", "remove data.detrend; data.half_life weights old rows less"
    ),
    "calibrate": (
        "a {task} has no probabilities to calibrate",
        "remove calibrate; if the target is a class written as a number, set task: binary or task: multiclass",
    ),
}  # fmt: skip


def check_config(config: PipelineConfig, task: Task | None = None) -> None:
    """Checks a config before any data is loaded.

    If neither the config nor the caller names the task, there must be one task that everything in the config fits.

    Args:
        config: of the run.
        task: of the contract, if it is known; default: that of the config.

    Raises:
        ConfigError: an unknown or unsuitable estimator, a missing package, an invalid parameter, search space or
            schedule, or a metric of another task.
    """
    task = task or config.task
    tasks = _tasks_of_keys(config, (task,) if task else TASKS, known=task is not None)
    for candidate in config.single_candidates:
        tasks = _tasks_of_candidate(candidate, tasks, config)
    estimators.create_transformer(config)
    for metric in config.evaluation.custom:
        Metric.custom(metric, config.package.trusted)
    for check in config.gate.custom:
        import_function(check.function, f"gate.custom.{check.name}", config.package.trusted)
    _check_schedule(config)


def check_columns(config: PipelineConfig, contract: Contract) -> None:
    """Checks keys that name columns of the table and are read only after the fits, by monitoring or by a rollout.

    Raises:
        ConfigError: a column does not exist.
    """
    columns = [column.name for column in contract.columns]
    inputs = [column.name for column in contract.columns if column.role != "target"]
    predicted = ("prediction", "probability")
    key_column = config.rollout.key if config.rollout else None
    for key, names, known in (
        ("evaluation.slices", config.evaluation.slices or (), columns),
        ("drift.ignore", config.drift.ignore, [*inputs, *config.data.drop, *predicted]),
        ("rollout.key", (key_column,) if key_column else (), inputs),
    ):
        for name in names:
            if name not in known:
                raise ConfigError(f"no column {name!r} in the table", where=key, remedy=suggest(name, known))


def _tasks_of_keys(config: PipelineConfig, tasks: Sequence[Task], *, known: bool) -> tuple[Task, ...]:
    """The tasks that fit all metrics and keys of the config."""
    tasks, limiting_key = tuple(tasks), ""
    for where, metric, suitable in _task_specific_keys(config):
        remaining = tuple(task for task in tasks if task in suitable)
        if not remaining and known:
            if metric:
                raise metric_error(where, metric, tasks[0])
            what, remedy = _UNSUITABLE_KEYS[where]
            raise ConfigError(what.format(task=tasks[0]), where=where, remedy=remedy)
        if not remaining:
            what = f"{where} is for {' or '.join(suitable)}, and {limiting_key} is for {' or '.join(tasks)}"
            raise ConfigError(what, where=where, remedy="change one of them")
        if len(remaining) < len(tasks):
            limiting_key = where
        tasks = remaining
    return tasks


def _task_specific_keys(config: PipelineConfig) -> Iterator[tuple[str, str, tuple[Task, ...]]]:
    """Each key that fits some tasks only, with its metric, if it is one, and these tasks."""
    metrics = {"evaluation.metric": config.evaluation.metric} if config.evaluation.metric else {}
    metrics |= {f"gate.{side}.{metric}": metric for side in ("max", "min") for metric in getattr(config.gate, side)}
    custom = {metric.name for metric in config.evaluation.custom}
    for where, metric in metrics.items():
        if metric not in custom:
            yield where, metric, tuple(task for task in TASKS if metric in METRICS[task])
    if config.data.detrend:
        yield "data.detrend", "", ("regression",)
    if config.calibrate is not None:
        yield "calibrate", "", ("binary", "multiclass")


def _tasks_of_candidate(candidate: Candidate, tasks: Sequence[Task], config: PipelineConfig) -> tuple[Task, ...]:
    suitable, errors = [], []
    for task in tasks:
        try:
            _check_candidate(candidate, task, config)
            suitable.append(task)
        except ConfigError as error:
            errors.append(error)
    if not suitable:
        raise errors[0]
    return tuple(suitable)


def _check_candidate(candidate: Candidate, task: Task, config: PipelineConfig) -> None:
    seed, trusted = config.seed, config.package.trusted
    estimators.check_candidate(candidate, task, seed, {}, trusted)
    if candidate.search is None:
        return
    where = f"candidates.{candidate.name}.search.space"
    space: Mapping[str, Any] = candidate.search.space or estimators.default_search_space(candidate, task)
    estimators.check_candidate(candidate, task, seed, check_space(space, where), trusted)


def _check_schedule(config: PipelineConfig) -> None:
    """Checks the cron lines, if the package that parses them is installed; without it nothing is scheduled."""
    if find_spec("cronsim") is None:
        return
    import datetime as dt

    from cronsim import CronSim, CronSimError

    for key in ("train", "drift", "quality", "rollout"):
        line = getattr(config.schedule, key)
        try:
            if line:
                CronSim(line, dt.datetime(2026, 1, 1, tzinfo=dt.UTC))
        except CronSimError as error:
            raise cron_error(line, f"schedule.{key}", error) from None
