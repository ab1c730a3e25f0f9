"""Runs deployments when they are due, in processes of their own, and makes up for the time in which nobody did."""

import asyncio
import contextlib
import datetime as dt
import logging
import os
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import DeploymentFilter, FlowRunFilter
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.sorting import FlowRunSort
from prefect.deployments.runner import RunnerDeployment
from prefect.runner import Runner
from prefect.states import Cancelled, Scheduled

from towline.orchestration.local_run import close, crash, orphaned
from towline.orchestration.process_setup import SCHEDULER
from towline.processes import children

AGAIN = "again"  # tag of a run that takes the place of one whose process was lost
_LOG = logging.getLogger("towline.schedules")
POLL = 5.0  # seconds between two looks for runs that are due
SWEEP = 60.0  # seconds between two looks for runs that have piled up
OPEN = ("PENDING", "RUNNING", "CANCELLING")
_PAGE = 200


def deploy(deployments: Sequence[RunnerDeployment], mark: str | None) -> list[UUID]:
    """Makes or changes the deployments; others with the tag ``mark``, if one is given, are paused: nobody runs them."""
    found = []
    with get_client(sync_client=True) as client:
        for deployment in deployments:
            number = deployment.apply()
            if not isinstance(number, UUID):
                raise TypeError("deploy is not for coroutines")
            found.append(number)
            if not deployment.schedules:  # apply leaves the old ones where there are no new ones
                for schedule in client.read_deployment_schedules(number):
                    client.delete_deployment_schedule(number, schedule.id)
        if mark is None:
            return found
        marked = DeploymentFilter.model_validate({"tags": {"all_": [mark]}})
        for other in client.read_deployments(deployment_filter=marked, limit=_PAGE):
            if other.id not in found and not other.paused:
                client.pause_deployment(other.id)
    return found


def catch_up(client: SyncPrefectClient, number: UUID, *, shared: bool = False) -> None:
    """Before anything of a deployment is run: what is left of the time before is closed, and made up for once.

    A run whose process is gone is told so, and is run again, unless it was such a run itself. Of the slots that passed
    without a run the newest is run, with the config of today.

    Args:
        client: of the server.
        number: the deployment's.
        shared: others run it too, so a run that names no process of this machine may be one of theirs, and one that
            was asked for has a config of its own.
    """
    deployment = client.read_deployment(number)
    for run in _runs(client, number, OPEN):
        nameless = not any(tag.startswith("process:") for tag in run.tags)
        if _ours(run) and (orphaned(run) or (nameless and not shared)):
            crash(client, run)
    kept = thin_out(client, number)
    if kept is not None:
        client.update_flow_run(kept.id, parameters={**kept.parameters, **deployment.parameters})
    last = _last(client, number)
    if last is None or last.state_type != StateType.CRASHED:
        return
    if shared:  # the server, when it missed the run's heartbeat, said so of the run alone
        close(client, last)
    if AGAIN not in last.tags and (kept is None or not last.auto_scheduled):
        own = shared and not last.auto_scheduled
        client.create_flow_run_from_deployment(
            number,
            parameters={**last.parameters, **({} if own else deployment.parameters)},
            tags=[AGAIN],
            idempotency_key=f"{AGAIN}-{last.id}",
            parent_task_run_id=last.parent_task_run_id,
        )
        _LOG.info("%s: its last run lost its process; it is run again", deployment.name)


def thin_out(client: SyncPrefectClient, number: UUID) -> FlowRun | None:
    """Of a deployment's slots that have passed and wait, the newest; the others are called off."""
    now = dt.datetime.now(dt.UTC)
    waiting = [run for run in _runs(client, number, ("SCHEDULED",)) if run.auto_scheduled and _slot(run) < now]
    waiting.sort(key=_slot)
    for run in waiting[:-1]:
        why = f"its time passed while nothing ran; the slot of {_slot(waiting[-1]):%Y-%m-%d %H:%M} UTC is run"
        client.set_flow_run_state(run.id, Cancelled(name="Missed", message=why), force=True)
    return waiting[-1] if waiting else None


def begin(client: SyncPrefectClient, deployment: DeploymentResponse) -> None:
    """A run now, unless one is under way or waits."""
    now = dt.datetime.now(dt.UTC)
    if not any(_slot(run) <= now for run in _runs(client, deployment.id, (*OPEN, "SCHEDULED"))):
        client.create_flow_run_from_deployment(deployment.id, state=Scheduled())


def serve(deployments: Sequence[RunnerDeployment], again: Callable[[], object]) -> None:
    """Runs what is due until SIGTERM or SIGINT; runs under way then are ended, and told so.

    Args:
        deployments: those that are run.
        again: called on SIGHUP, in a thread: reads the configs and deploys anew.
    """
    os.environ[SCHEDULER] = str(os.getpid())
    asyncio.run(_serve(deployments, again))


async def _serve(deployments: Sequence[RunnerDeployment], again: Callable[[], object]) -> None:
    ended, loop = asyncio.Event(), asyncio.get_running_loop()
    runner = Runner(name="towline", query_seconds=POLL, pause_on_shutdown=False, limit=None)
    numbers = [await runner.aadd_deployment(deployment) for deployment in deployments]
    going = asyncio.create_task(runner.start())
    while not runner.started and not going.done():
        await asyncio.sleep(0.05)
    for name in (signal.SIGTERM, signal.SIGINT):  # Prefect's own handler would say Cancelled of what runs
        loop.add_signal_handler(name, ended.set)
    jobs: set[asyncio.Task[None]] = set()

    def anew() -> None:
        job = asyncio.create_task(told(asyncio.to_thread(again)))
        jobs.add(job)
        job.add_done_callback(jobs.discard)

    loop.add_signal_handler(signal.SIGHUP, anew)
    sweeping, ending = asyncio.create_task(_sweep(numbers)), asyncio.create_task(ended.wait())
    await asyncio.wait({going, sweeping, ending}, return_when=asyncio.FIRST_COMPLETED)
    sweeping.cancel()
    if not ended.is_set():
        await going  # raises what ended it
        return
    await asyncio.to_thread(_end_runs, numbers)
    going.cancel()
    with contextlib.suppress(asyncio.CancelledError, TimeoutError):
        await asyncio.wait_for(going, 10)


async def _sweep(numbers: Sequence[UUID]) -> None:
    """A machine that slept, or a run that takes longer than its interval, piles slots up."""
    while True:
        await asyncio.sleep(SWEEP)
        await told(asyncio.to_thread(_thin_all, numbers))


def _thin_all(numbers: Sequence[UUID]) -> None:
    with get_client(sync_client=True) as client:
        for number in numbers:
            thin_out(client, number)


async def told(job: Awaitable[object]) -> None:
    try:
        await job
    except Exception:  # noqa: BLE001 - a server away, a config that is none: what went before goes on
        _LOG.exception("it is tried again later")


def _end_runs(numbers: Sequence[UUID]) -> None:
    for pid in children(os.getpid()):
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 5
    while children(os.getpid()) and time.monotonic() < deadline:
        time.sleep(0.05)
    with get_client(sync_client=True) as client:
        for number in numbers:
            for run in _runs(client, number, OPEN):
                if _ours(run):
                    crash(client, run)


def _runs(client: SyncPrefectClient, number: UUID, states: Sequence[str]) -> list[FlowRun]:
    """All runs of a deployment in these states, but for slots that are further away than a page."""
    wanted = {"deployment_id": {"any_": [number]}, "state": {"type": {"any_": list(states)}}}
    chosen = FlowRunFilter.model_validate(wanted)
    return client.read_flow_runs(flow_run_filter=chosen, sort=FlowRunSort.EXPECTED_START_TIME_ASC, limit=_PAGE)


def _last(client: SyncPrefectClient, number: UUID) -> FlowRun | None:
    begun = {"deployment_id": {"any_": [number]}, "state": {"type": {"not_any_": ["SCHEDULED", "CANCELLED"]}}}
    chosen = FlowRunFilter.model_validate(begun)
    found = client.read_flow_runs(flow_run_filter=chosen, sort=FlowRunSort.EXPECTED_START_TIME_DESC, limit=1)
    return found[0] if found else None


def _slot(run: FlowRun) -> dt.datetime:
    """When its time came: the slot itself where it waits for its turn, or a moment that was asked for since."""
    times = [time.timestamp() for time in (run.expected_start_time, run.next_scheduled_start_time) if time]
    return dt.datetime.fromtimestamp(min(times), dt.UTC) if times else dt.datetime.now(dt.UTC)


def _ours(run: FlowRun) -> bool:
    hosts = [tag for tag in run.tags if tag.startswith("host:")]
    return not hosts or f"host:{socket.gethostname()}" in hosts
