"""The steps of the flows: each is one Prefect task and one call into towline."""

from collections.abc import Callable
from typing import Any, ParamSpec, Protocol, TypeVar

from prefect import Task, task
from prefect.cache_policies import INPUTS, CachePolicy
from prefect.client.schemas.objects import State, TaskRun
from prefect.context import TaskRunContext
from prefect.tasks import exponential_backoff

from towline.errors import TransientError

P = ParamSpec("P")
R = TypeVar("R")


class TaskDecorator(Protocol):
    """Turns a function into a Prefect task."""

    def __call__(self, function: Callable[P, R], /) -> Task[P, R]: ...


def retrying_task(name: str, **options: Any) -> TaskDecorator:
    """A task that is run again, twice at most, after a ``TransientError``; other errors are final."""
    return task(
        name=name,
        retries=2,
        retry_delay_seconds=exponential_backoff(2),
        retry_jitter_factor=0.5,
        retry_condition_fn=_is_transient,
        **options,
    )


def cached_task(name: str, *, ignored_input: str = "", **options: Any) -> TaskDecorator:
    """A retrying task whose result is stored: with equal inputs, the stored result is used instead of running it again.

    The name of the task is a part of the key, since several tasks have the same inputs.

    The workspace is one of the inputs. Its token is drawn when its folder is created, so results of a removed workspace
    are never used.

    Args:
        name: of the task.
        ignored_input: name of a parameter that is left out of the comparison.
        options: of Prefect's ``task``.
    """
    inputs = INPUTS - ignored_input if ignored_input else INPUTS
    policy = inputs + CachePolicy.from_cache_key_fn(_name_of)
    return retrying_task(name, persist_result=True, result_serializer="json", cache_policy=policy, **options)


def _name_of(context: TaskRunContext, _inputs: dict[str, Any]) -> str:
    return context.task.name


def _is_transient(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    return isinstance(state.result(raise_on_failure=False), TransientError)
