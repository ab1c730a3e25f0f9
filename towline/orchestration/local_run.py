"""A local run is a flow run in this process, against the Prefect server that the environment names."""

import os
from collections.abc import Mapping
from typing import Any, cast

import httpx
from prefect import Flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.flow_engine import run_flow
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_CLIENT_MAX_RETRIES,
    PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
    temporary_settings,
)
from prefect.states import Pending
from prefect.utilities.callables import get_call_parameters

from towline.errors import TransientError
from towline.orchestration.crash_detection import crash_orphaned_runs, process_tags
from towline.orchestration.end_states import state_value


def run_local(flow: Flow[..., Any], parameters: Mapping[str, Any]) -> Any:
    """Runs a flow and returns its result; an error of a task is raised as the task raised it.

    First, unfinished runs of killed processes on this machine are set to Crashed. The run sends no heartbeat, because
    ending the heartbeat's thread takes a second; its process tag serves the same purpose. Only the flow run has the
    tag: for each tag of a task run, Prefect asks the server for a concurrency slot.

    Raises:
        TransientError: the connection to the Prefect server was lost.
    """
    arguments = get_call_parameters(flow.fn, (), dict(parameters))
    prefect_settings = {PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None, PREFECT_CLIENT_MAX_RETRIES: 2}
    try:
        with temporary_settings(prefect_settings), get_client(sync_client=True) as client:
            crash_orphaned_runs(client)
            run = client.create_flow_run(flow, parameters=arguments, tags=process_tags(os.getpid()), state=Pending())
            return state_value(cast("State[Any]", run_flow(flow, run, arguments, return_type="state")))
    except (httpx.TransportError, PrefectHTTPStatusError, ObjectNotFound) as error:
        if isinstance(error, ObjectNotFound):  # e.g. the server ended and that of another store got its port
            reason = "the server that answers now does not know this run"
        else:
            reason = str(error).splitlines()[0] or type(error).__name__
        raise TransientError(
            f"the connection to the Prefect server was lost: {reason}",
            where=str(PREFECT_API_URL.value()),
            remedy="run the same command again: it resumes from the last completed step",
        ) from error
