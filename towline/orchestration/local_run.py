"""Runs a flow in this very process, against whichever Prefect server the environment names."""

import os
from collections.abc import Mapping
from typing import Any, cast

import httpx
from prefect import Flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, TaskRunFilter
from prefect.client.schemas.objects import FlowRun, State
from prefect.exceptions import PrefectHTTPStatusError
from prefect.flow_engine import run_flow
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_CLIENT_MAX_RETRIES,
    PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
    temporary_settings,
)
from prefect.states import Crashed, Pending
from prefect.utilities.callables import get_call_parameters

from towline.errors import TransientError
from towline.orchestration.end_states import value_of
from towline.orchestration.process_setup import whose
from towline.processes import lives

OPEN = {"state": {"type": {"any_": ["PENDING", "RUNNING", "SCHEDULED"]}}}


def run_here(flow: Flow[..., Any], parameters: Mapping[str, Any]) -> Any:
    """Runs the flow and returns its result; errors of its tasks come out as they were raised.

    Runs that a kill left open are told Crashed first. No heartbeat: ending its thread costs a second a flow, and the
    process itself is what is looked for when the next run starts. The process is a tag of the flow run alone: for each
    tag of a task the server is asked for a slot.

    Raises:
        TransientError: the Prefect server went away.
    """
    host, process = whose(os.getpid())
    given = get_call_parameters(flow.fn, (), dict(parameters))
    brief = {PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None, PREFECT_CLIENT_MAX_RETRIES: 2}
    try:
        with temporary_settings(brief), get_client(sync_client=True) as client:
            _reap(client, host)
            run = client.create_flow_run(flow, parameters=given, tags=[host, process], state=Pending())
            return value_of(cast("State[Any]", run_flow(flow, run, given, return_type="state")))
    except (httpx.TransportError, PrefectHTTPStatusError) as error:
        raise TransientError(
            f"the Prefect server went away: {str(error).splitlines()[0] or type(error).__name__}",
            where=str(PREFECT_API_URL.value()),
            remedy="run the same command again: finished steps are kept",
        ) from error


def _reap(client: SyncPrefectClient, host: str) -> None:
    ours = FlowRunFilter.model_validate(OPEN | {"tags": {"all_": [host]}})
    for run in client.read_flow_runs(flow_run_filter=ours):
        if orphaned(run):
            crash(client, run)


def orphaned(run: FlowRun) -> bool:
    """Whether the process is gone that a run says does it; not so of one that says none."""
    _, pid, birth = next((tag for tag in run.tags if tag.startswith("process:")), "::").split(":")
    return pid.isdigit() and not lives(int(pid), birth)


def crash(client: SyncPrefectClient, run: FlowRun) -> None:
    """Tells the server that a run's process is gone, and so its tasks and the flows that ran within it."""
    close(client, run)
    client.set_flow_run_state(run.id, _gone(), force=True)


def close(client: SyncPrefectClient, run: FlowRun) -> None:
    """Tells the server that the tasks of a run whose process is gone, and the flows within it, are gone too."""
    mine = FlowRunFilter.model_validate({"id": {"any_": [run.id]}})
    for task in client.read_task_runs(flow_run_filter=mine, task_run_filter=TaskRunFilter.model_validate(OPEN)):
        client.set_task_run_state(task.id, _gone(), force=True)
    within = FlowRunFilter.model_validate(OPEN | {"parent_flow_run_id": {"any_": [run.id]}})
    for inner in client.read_flow_runs(flow_run_filter=within):
        if inner.deployment_id is None:  # one of a deployment has a process of its own
            crash(client, inner)


def _gone() -> State[Any]:
    return Crashed(message="its process is gone")
