"""Runs a flow in this very process, against whichever Prefect server the environment names."""

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefect import Flow, tags
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
from prefect.states import Crashed


def run_here(flow: Flow[..., Any], parameters: Mapping[str, Any]) -> Any:
    """Runs the flow and returns its result; errors of its tasks come out as they were raised.

    Runs that a kill left in state Running are told Crashed first. No heartbeat: ending its thread costs a second a
    flow, and the process itself is what is looked for when the next run starts.
    """
    _reap()
    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}), tags(f"host:{socket.gethostname()}", _process()):
        return flow(**parameters)


def _process() -> str:
    return f"process:{os.getpid()}:{_started(os.getpid())}"


def _started(pid: int) -> str:
    """A process's start in clock ticks since boot: a pid alone may be another's by now."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""


def _reap() -> None:
    running = FlowRunFilter.model_validate(
        {"state": {"type": {"any_": ["RUNNING"]}}, "tags": {"all_": [f"host:{socket.gethostname()}"]}}
    )
    with get_client(sync_client=True) as client:
        for run in client.read_flow_runs(flow_run_filter=running):
            owner = next((tag for tag in run.tags if tag.startswith("process:")), "")
            _, _, rest = owner.partition(":")
            pid, _, started = rest.partition(":")
            if pid.isdigit() and _started(int(pid)) != started:
                client.set_flow_run_state(run.id, Crashed(message="its process is gone"), force=True)

