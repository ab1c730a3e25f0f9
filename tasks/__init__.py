"""The steps of the flows: one Prefect task each, and one call into towline."""

from collections.abc import Callable
from typing import Any, ParamSpec, Protocol, TypeVar

from prefect import Task, task
from prefect.cache_policies import INPUTS
from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import exponential_backoff

from towline.errors import TransientError

P = ParamSpec("P")
R = TypeVar("R")


class Step(Protocol):
    """Makes a task of a function."""

    def __call__(self, function: Callable[P, R], /) -> Task[P, R]: ...


def patient(name: str, **options: Any) -> Step:
    """A task that is tried again where a store or a server was away, and for no other reason."""
    return task(
        name=name,
        retries=2,
        retry_delay_seconds=exponential_backoff(2),
        retry_jitter_factor=0.5,
        retry_condition_fn=_may_pass,
        **options,
    )


def remembered(name: str, *, without: str = "", **options: Any) -> Step:
    """A patient task that, once done, is not done again for equal inputs (``without`` names one that does not count).

    A workspace carries a token of its own among those inputs, so what is remembered of a folder that is gone is never
    used again.
    """
    policy = INPUTS - without if without else INPUTS
    return patient(name, persist_result=True, result_serializer="json", cache_policy=policy, **options)


def _may_pass(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    return isinstance(state.result(raise_on_failure=False), TransientError)
