"""The scheduler starts deployments when they are due, each run in its own process, and replaces missed runs.

Scheduling, processes and concurrency limits are those of Prefect's runner (``prefect.serve``). Prefect 3.8.8 lacks what
this module adds; tests/flows/test_deployments.py shows each:

- ``cancel_missed_runs``: after a downtime Prefect starts every run that it missed. Here only the newest is started.
- ``catch_up``: a run whose process has ended is run again, once.
- A stop signal ends the runs under way as Crashed, so that they are run again; Prefect would set them to Cancelled.
- SIGHUP deploys edited configs without a restart.
"""

import asyncio
import contextlib
import datetime as dt
import logging
import os
import signal
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import DeploymentFilter, FlowRunFilter
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.sorting import FlowRunSort
from prefect.deployments.runner import RunnerDeployment
from prefect.runner import Runner
from prefect.states import Cancelled, Scheduled

from towline.orchestration.crash_detection import crash_children, crash_run, has_process, is_on_this_host, is_orphaned
from towline.orchestration.process_setup import SCHEDULER_PID
from towline.processes import child_pids

RETRY_TAG = "retry"  # of a run that replaces one whose process was lost
WATCHED_TAG = "watched"  # of a run whose caller replaces it if its process is lost
POLL_S = 5.0  # between two queries for runs that are due
_SWEEP_S = 60.0  # between two calls of the sweep
_KILL_GRACE_S = 5.0
_UNDER_WAY = ("PENDING", "RUNNING", "CANCELLING")
_PAGE = 200
_LOG = logging.getLogger("towline.schedules")


def deploy(deployments: Sequence[RunnerDeployment], store_tag: str | None) -> list[UUID]:
    """Creates or updates deployments; returns their ids.

    Other deployments with ``store_tag``, if there is one, are paused: this store no longer runs them.
    """
    deployment_ids = []
    with get_client(sync_client=True) as client:
        for deployment in deployments:
            deployment_id = deployment.apply()
            if not isinstance(deployment_id, UUID):
                raise TypeError("deploy is not for coroutines")
            deployment_ids.append(deployment_id)
            if not deployment.schedules:  # apply keeps the old schedules where there are no new ones
                for schedule in client.read_deployment_schedules(deployment_id):
                    client.delete_deployment_schedule(deployment_id, schedule.id)
        if store_tag is None:
            return deployment_ids
        of_this_store = DeploymentFilter.model_validate({"tags": {"all_": [store_tag]}})
        for other in client.read_deployments(deployment_filter=of_this_store, limit=_PAGE):
            if other.id not in deployment_ids and not other.paused:
                client.pause_deployment(other.id)
    return deployment_ids


def catch_up(client: SyncPrefectClient, deployment_id: UUID, *, shared: bool = False) -> None:
    """Ends the crashed and missed runs of a deployment after a downtime, and replaces them by one run.

    Runs whose process has ended are set to Crashed. The last run is run again if it crashed, unless it replaced a
    crashed run itself or its caller replaces it. Of the missed scheduled runs, the newest is started, with the current
    config of the deployment.

    Args:
        client: of the server.
        deployment_id: of the deployment.
        shared: other machines run the deployment too. A run without a recorded process may then be theirs, and
            a requested run keeps its own config.
    """
    deployment = client.read_deployment(deployment_id)
    for run in _read_runs(client, deployment_id, _UNDER_WAY):
        abandoned = is_orphaned(run) or not (has_process(run) or shared)
        if abandoned and is_on_this_host(run):
            crash_run(client, run)
    missed = cancel_missed_runs(client, deployment_id)
    if missed is not None:
        client.update_flow_run(missed.id, parameters={**missed.parameters, **deployment.parameters})
    last = _last_run(client, deployment_id)
    if last is None or last.state_type != StateType.CRASHED:
        return
    if shared:  # an automation of the server has crashed the flow run alone
        crash_children(client, last)
    if not {RETRY_TAG, WATCHED_TAG} & set(last.tags) and (missed is None or not last.auto_scheduled):
        keeps_config = shared and not last.auto_scheduled
        client.create_flow_run_from_deployment(
            deployment_id,
            parameters={**last.parameters, **({} if keeps_config else deployment.parameters)},
            tags=[RETRY_TAG],
            idempotency_key=f"{RETRY_TAG}-{last.id}",
            parent_task_run_id=last.parent_task_run_id,
        )
        _LOG.info("%s: the process of its last run has ended; it is run again", deployment.name)


def cancel_missed_runs(client: SyncPrefectClient, deployment_id: UUID) -> FlowRun | None:
    """Cancels a deployment's overdue scheduled runs but the newest, which is returned."""
    now = dt.datetime.now(dt.UTC)
    waiting = _read_runs(client, deployment_id, ("SCHEDULED",))
    overdue = sorted((run for run in waiting if run.auto_scheduled and _due_time(run) < now), key=_due_time)
    for run in overdue[:-1]:
        message = f"missed while nothing ran; the run of {_due_time(overdue[-1]):%Y-%m-%d %H:%M} UTC replaces it"
        client.set_flow_run_state(run.id, Cancelled(name="Missed", message=message), force=True)
    return overdue[-1] if overdue else None


def start_run(client: SyncPrefectClient, deployment: DeploymentResponse) -> None:
    """Starts a run now, unless one is under way or due."""
    now = dt.datetime.now(dt.UTC)
    if not any(_due_time(run) <= now for run in _read_runs(client, deployment.id, (*_UNDER_WAY, "SCHEDULED"))):
        client.create_flow_run_from_deployment(deployment.id, state=Scheduled())


def serve(deployments: Sequence[RunnerDeployment], redeploy: Callable[[], object]) -> None:
    """Starts runs when they are due, until SIGTERM or SIGINT; runs under way are then ended as Crashed.

    Args:
        deployments: to run.
        redeploy: reads the configs and deploys them again; called in a thread on SIGHUP.
    """
    os.environ[SCHEDULER_PID] = str(os.getpid())
    asyncio.run(_serve(deployments, redeploy))


async def _serve(deployments: Sequence[RunnerDeployment], redeploy: Callable[[], object]) -> None:
    runner = Runner(name="towline", query_seconds=POLL_S, pause_on_shutdown=False, limit=None)
    deployment_ids = [await runner.aadd_deployment(deployment) for deployment in deployments]

    def cancel_all_missed_runs() -> None:  # after the machine slept, or a run that took longer than its interval
        with get_client(sync_client=True) as client:
            for deployment_id in deployment_ids:
                cancel_missed_runs(client, deployment_id)

    def end_runs() -> None:
        kill_children()
        with get_client(sync_client=True) as client:
            for deployment_id in deployment_ids:
                for run in _read_runs(client, deployment_id, _UNDER_WAY):
                    if is_on_this_host(run):
                        crash_run(client, run)

    await serve_until_signal(
        runner.start(), lambda: runner.started, sweep=cancel_all_missed_runs, redeploy=redeploy, end_runs=end_runs
    )


async def serve_until_signal(
    serving: Awaitable[Any],
    is_ready: Callable[[], bool],
    *,
    sweep: Callable[[], object],
    redeploy: Callable[[], object],
    end_runs: Callable[[], object],
) -> None:
    """Runs a runner or worker of Prefect's until SIGTERM or SIGINT.

    Args:
        serving: its ``start``.
        is_ready: whether it has started. Signal handlers are set after that and replace those of Prefect.
        sweep: called every minute.
        redeploy: called on SIGHUP.
        end_runs: called after the signal, before Prefect's runner or worker is stopped.
    """
    stopped, loop = asyncio.Event(), asyncio.get_running_loop()
    server = asyncio.ensure_future(serving)
    while not is_ready() and not server.done():
        await asyncio.sleep(0.05)
    for stop_signal in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(stop_signal, stopped.set)
    jobs: set[asyncio.Task[None]] = set()

    def start_redeploy() -> None:
        job = asyncio.create_task(_try_in_thread(redeploy))
        jobs.add(job)
        job.add_done_callback(jobs.discard)

    async def sweep_forever() -> None:
        while True:
            await asyncio.sleep(_SWEEP_S)
            await _try_in_thread(sweep)

    loop.add_signal_handler(signal.SIGHUP, start_redeploy)
    sweeper, stop = asyncio.create_task(sweep_forever()), asyncio.create_task(stopped.wait())
    await asyncio.wait({server, sweeper, stop}, return_when=asyncio.FIRST_COMPLETED)
    sweeper.cancel()
    if not stopped.is_set():
        await server  # raises the error that ended it
        return
    await asyncio.to_thread(end_runs)
    server.cancel()
    with contextlib.suppress(asyncio.CancelledError, TimeoutError):
        await asyncio.wait_for(server, 10)


async def _try_in_thread(function: Callable[[], object]) -> None:
    """Logs an error: the server may be down or a config invalid; the next call may succeed."""
    try:
        await asyncio.to_thread(function)
    except Exception:  # noqa: BLE001 - as above
        _LOG.exception("failed; the next attempt follows")


def kill_children() -> None:
    """Kills the processes of the runs under way, and waits until they have ended."""
    for pid in child_pids(os.getpid()):
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + _KILL_GRACE_S
    while child_pids(os.getpid()) and time.monotonic() < deadline:
        time.sleep(0.05)


def _read_runs(client: SyncPrefectClient, deployment_id: UUID, states: Sequence[str]) -> list[FlowRun]:
    """The runs of a deployment in these states, the earliest first, one page."""
    in_states = {"deployment_id": {"any_": [deployment_id]}, "state": {"type": {"any_": list(states)}}}
    run_filter = FlowRunFilter.model_validate(in_states)
    return client.read_flow_runs(flow_run_filter=run_filter, sort=FlowRunSort.EXPECTED_START_TIME_ASC, limit=_PAGE)


def _last_run(client: SyncPrefectClient, deployment_id: UUID) -> FlowRun | None:
    started = {"deployment_id": {"any_": [deployment_id]}, "state": {"type": {"not_any_": ["SCHEDULED", "CANCELLED"]}}}
    run_filter = FlowRunFilter.model_validate(started)
    runs = client.read_flow_runs(flow_run_filter=run_filter, sort=FlowRunSort.EXPECTED_START_TIME_DESC, limit=1)
    return runs[0] if runs else None


def _due_time(run: FlowRun) -> dt.datetime:
    times = [time.timestamp() for time in (run.expected_start_time, run.next_scheduled_start_time) if time]
    return dt.datetime.fromtimestamp(min(times), dt.UTC) if times else dt.datetime.now(dt.UTC)
