"""A flow run has crashed when its process ended without setting a final state.

On one machine each run has tags that name its host and its process (``process_tags``): a later process detects that
it has ended (``is_orphaned``) and sets the run to Crashed (``crash_run``). Across machines two automations of Prefect's
server do so when a run's heartbeat stops, as Prefect's documentation proposes for zombie runs
(``create_crash_automations``).

Prefect 3.8.8 lacks two things that this module adds. An automation changes the flow run alone and leaves its task runs
and child runs Running (``crash_children``). Without a heartbeat nothing ends the runs of a killed process
(tests/flows/test_deployments.py::test_a_run_whose_process_was_killed_is_run_again_once).
"""

import datetime as dt
import socket
from typing import Any

from prefect.automations import AutomationCore, ChangeFlowRunState, EventTrigger, Posture
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowRunFilter, TaskRunFilter
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.states import Crashed

from towline.processes import is_running, process_start_time

DEPLOYMENT_TAG = "towline"  # of every deployment that towline makes
HEARTBEAT_S = 30  # Prefect takes no shorter interval
SILENCE_LIMIT = dt.timedelta(minutes=5)  # ten heartbeats: a server that is down for a while is not a crash
PENDING_LIMIT = dt.timedelta(minutes=8)  # enough to start a machine for the run and to pull its image
_UNFINISHED = {"state": {"type": {"any_": ["PENDING", "RUNNING", "SCHEDULED"]}}}


def process_tags(pid: int) -> tuple[str, str]:
    """Tags that name a run's host and process; the start time tells the process from a later one with the same pid."""
    return f"host:{socket.gethostname()}", f"process:{pid}:{process_start_time(pid)}"


def is_on_this_host(run: FlowRun) -> bool:
    """Whether the run's host tag is that of this machine; True for a run without one."""
    hosts = [tag for tag in run.tags if tag.startswith("host:")]
    return not hosts or f"host:{socket.gethostname()}" in hosts


def has_process(run: FlowRun) -> bool:
    return any(tag.startswith("process:") for tag in run.tags)


def is_orphaned(run: FlowRun) -> bool:
    """Whether the process in the run's tag has ended; False for a run without such a tag."""
    _, pid, start_time = next((tag for tag in run.tags if tag.startswith("process:")), "::").split(":")
    return pid.isdigit() and not is_running(int(pid), start_time)


def crash_orphaned_runs(client: SyncPrefectClient) -> None:
    """Sets every unfinished run of this host whose process has ended to Crashed."""
    host, _ = process_tags(1)
    unfinished = FlowRunFilter.model_validate(_UNFINISHED | {"tags": {"all_": [host]}})
    for run in client.read_flow_runs(flow_run_filter=unfinished):
        if is_orphaned(run):
            crash_run(client, run)


def crash_run(client: SyncPrefectClient, run: FlowRun) -> None:
    """Sets a run whose process has ended to Crashed, after its task runs and child runs."""
    crash_children(client, run)
    client.set_flow_run_state(run.id, _crashed(), force=True)


def crash_children(client: SyncPrefectClient, run: FlowRun) -> None:
    """Sets the unfinished task runs and child runs of a run whose process has ended to Crashed."""
    this_run = FlowRunFilter.model_validate({"id": {"any_": [run.id]}})
    unfinished = TaskRunFilter.model_validate(_UNFINISHED)
    for task_run in client.read_task_runs(flow_run_filter=this_run, task_run_filter=unfinished):
        client.set_task_run_state(task_run.id, _crashed(), force=True)
    children = FlowRunFilter.model_validate(_UNFINISHED | {"parent_flow_run_id": {"any_": [run.id]}})
    for child in client.read_flow_runs(flow_run_filter=children):
        if child.deployment_id is None:  # a child run of a deployment has its own process
            crash_run(client, child)


def _crashed() -> State[Any]:
    return Crashed(message="its process has ended")


def create_crash_automations(
    client: SyncPrefectClient, silence_limit: dt.timedelta = SILENCE_LIMIT, pending_limit: dt.timedelta = PENDING_LIMIT
) -> None:
    """Creates the automations that set silent runs, and runs that never start, to Crashed.

    They match runs of deployments with ``DEPLOYMENT_TAG``. An automation with the name is not changed, so
    that its time limit can be edited in Prefect.

    Args:
        client: of the server.
        silence_limit: after a run's last heartbeat.
        pending_limit: after a worker has taken a run that does not start.
    """
    _create_automation(
        client,
        "towline: run without a heartbeat",
        {"after": {"prefect.flow-run.heartbeat"}, "within": silence_limit},
        f"no heartbeat for {silence_limit.total_seconds():.0f} s: its worker is lost",
    )
    _create_automation(
        client,
        "towline: run not started",
        {"after": {"prefect.flow-run.Pending", "prefect.flow-run.Submitting"}, "within": pending_limit},
        f"taken by a worker, but not started within {pending_limit.total_seconds():.0f} s",
    )


def _create_automation(client: SyncPrefectClient, name: str, condition: dict[str, Any], message: str) -> None:
    if not client.read_automations_by_name(name):
        trigger = EventTrigger(
            expect={"prefect.flow-run.*"},  # any state change: a run that has ended is not expected to send heartbeats
            match={"prefect.resource.id": "prefect.flow-run.*"},
            match_related={"prefect.resource.role": "tag", "prefect.resource.id": f"prefect.tag.{DEPLOYMENT_TAG}"},
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            **condition,
        )
        action = ChangeFlowRunState(state=StateType.CRASHED, message=message)
        client.create_automation(AutomationCore(name=name, trigger=trigger, actions=[action]))
    for duplicate in client.read_automations_by_name(name)[1:]:  # of two workers that started at the same time
        client.delete_automation(duplicate.id)
