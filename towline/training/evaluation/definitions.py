"""The metrics of a config: the built-in ones of its task, and functions of the user.

A custom metric has the interface of scikit-learn's: ``f(y_true, y_pred) -> float``, with ``sample_weight`` as an
optional third parameter.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, Literal

from towline.config import DEFAULT_METRIC, GREATER_IS_BETTER, METRICS, CustomMetric, Task, TrainingConfig
from towline.errors import ConfigError
from towline.training.user_code import import_function


class Metric(str):
    """The name of a metric, with its direction and, for a custom one, its function.

    Attributes:
        greater_is_better: whether a greater value is better.
        function: of a custom metric; None for a built-in one.
        response: the argument ``y_pred`` of the function.
        weighted: whether the function takes ``sample_weight``.

    Example:
        >>> Metric.built_in("mae").greater_is_better
        False
    """

    __slots__ = ("function", "greater_is_better", "response", "weighted")
    greater_is_better: bool
    function: Callable[..., Any] | None
    response: Literal["labels", "probabilities"]
    weighted: bool

    @classmethod
    def built_in(cls, name: str) -> "Metric":
        return cls._create(name, GREATER_IS_BETTER[name], None, "labels")

    @classmethod
    def custom(cls, metric: CustomMetric, trusted: Sequence[str] = ()) -> "Metric":
        """Imports the function of a custom metric.

        Raises:
            ConfigError: there is no such function, or the config may not use it.
        """
        function = import_function(metric.function, f"evaluation.custom.{metric.name}", trusted)
        return cls._create(metric.name, metric.higher_is_better, function, metric.response)

    @classmethod
    def _create(
        cls,
        name: str,
        greater_is_better: bool,
        function: Callable[..., Any] | None,
        response: Literal["labels", "probabilities"],
    ) -> "Metric":
        metric = cls(name)
        metric.greater_is_better, metric.function, metric.response = greater_is_better, function, response
        metric.weighted = function is not None and "sample_weight" in inspect.signature(function).parameters
        return metric

    @property
    def needs_probabilities(self) -> bool:
        return self.response == "probabilities" or self in ("roc_auc", "average_precision", "log_loss", "brier")


def metrics_of(config: TrainingConfig, task: Task) -> tuple[Metric, ...]:
    """The built-in metrics of a task, then the custom ones.

    Raises:
        ConfigError: as ``Metric.custom``.
    """
    custom = (Metric.custom(metric, config.package.trusted) for metric in config.evaluation.custom)
    return (*map(Metric.built_in, METRICS[task]), *custom)


def primary_metric(config: TrainingConfig, task: Task) -> Metric:
    """The metric that decides between candidates and in the gate.

    Raises:
        ConfigError: the configured metric is not one of the task, or as ``Metric.custom``.
    """
    name = config.evaluation.metric or DEFAULT_METRIC[task]
    for metric in config.evaluation.custom:
        if metric.name == name:
            return Metric.custom(metric, config.package.trusted)
    if name not in METRICS[task]:
        raise metric_error("evaluation.metric", name, task)
    return Metric.built_in(name)


def metric_error(where: str, metric: str, task: Task) -> ConfigError:
    """The error for a metric of another task."""
    remedy = f"the task is {task}: use one of {', '.join(METRICS[task])}"
    return ConfigError(f"{metric} is not a metric of this task", where=where, remedy=remedy)
