"""The steps of the flows: one Prefect task each, and one call into towline."""

from collections.abc import Callable
from functools import partial
from typing import Any

from prefect import Task, task
from prefect.cache_policies import INPUTS
from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import exponential_backoff

from towline.errors import Unavailable


def _may_pass(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    """Only a store or a server that is away is worth another try."""
    return isinstance(state.result(raise_on_failure=False), Unavailable)  # type: ignore[call-overload]


patient: Callable[..., Any] = partial(
    task, retries=2, retry_delay_seconds=exponential_backoff(2), retry_jitter_factor=0.5, retry_condition_fn=_may_pass
)

# A finished step is remembered by what it was given. Workspaces carry a token of their own, so what is remembered of a
# folder that is gone is never used again.
remembered: Callable[..., Any] = partial(
    patient, persist_result=True, result_serializer="json", cache_policy=INPUTS
)
