"""A worker of a work pool: one of several, on one machine or many, each of which may be lost at any time."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Iterable
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import DeploymentFilter, WorkPoolFilter
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.settings import PREFECT_WORKER_ENABLE_CANCELLATION, PREFECT_WORKER_QUERY_SECONDS, temporary_settings
from prefect.utilities.processutils import command_to_string, get_sys_executable
from prefect.workers.process import ProcessJobConfiguration, ProcessWorker, ProcessWorkerResult

from towline.config import Settings
from towline.operations.up_state import TAG
from towline.orchestration import scheduler
from towline.orchestration.crash_detection import HEARTBEAT
from towline.orchestration.local_run import crash
from towline.orchestration.process_setup import SCHEDULER
from towline.processes import children

_LOG = logging.getLogger("towline.pool")
_GRACE = 5.0  # seconds for runs to end once they are killed


def make(client: SyncPrefectClient, name: str) -> None:
    """A pool of processes of this name; one that is there, of whatever kind, is left as it is."""
    try:
        client.read_work_pool(name)
    except ObjectNotFound:
        template = ProcessWorker.get_default_base_job_template()
        with contextlib.suppress(ObjectAlreadyExists):  # another worker was quicker
            client.create_work_pool(WorkPoolCreate(name=name, type="process", base_job_template=template))


def serve(name: str, settings: Settings, again: Callable[[], object]) -> None:
    """Runs what is due in the pool until SIGTERM or SIGINT; runs under way then are ended, and told so.

    A run that lost its worker is run again, once, by whichever worker of the pool sees it first.

    Args:
        name: the pool's.
        settings: of the runs, whatever machine asked for them.
        again: called on SIGHUP, in a thread: reads the configs and deploys anew.
    """
    os.environ.update(_environment(settings))
    os.environ[SCHEDULER] = str(os.getpid())
    with temporary_settings({PREFECT_WORKER_QUERY_SECONDS: scheduler.POLL, PREFECT_WORKER_ENABLE_CANCELLATION: True}):
        asyncio.run(_serve(name, again))


def _environment(settings: Settings) -> dict[str, str]:
    """What runs are to find: the project, and Prefect's memory of finished steps where a later run finds it too."""
    path = [str(settings.project), *filter(None, [os.environ.get("PYTHONPATH")])]
    given = {
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT),
        "PREFECT_LOCAL_STORAGE_PATH": str(settings.layout.prefect_results),
        "PREFECT_LOGGING_EXTRA_LOGGERS": "towline",
        "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
    }
    unset = {key: value for key, value in given.items() if key not in os.environ}
    return {**unset, **settings.environment(), "PYTHONPATH": os.pathsep.join(path)}


class _Direct(ProcessJobConfiguration):
    """The run is a child of the worker itself, which is what it ties its life to."""

    def prepare_for_flow_run(self, *args: Any, **kwargs: Any) -> None:
        self.command = self.command or command_to_string([get_sys_executable(), "-m", "prefect.engine"])
        super().prepare_for_flow_run(*args, **kwargs)


class _Worker(ProcessWorker):
    """Knows which runs are under way in it."""

    job_configuration = _Direct

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.under_way: set[UUID] = set()

    @classmethod
    def __dispatch_key__(cls) -> str:
        """Prefect's own stays the worker of its type."""
        return "towline"

    async def run(self, flow_run: FlowRun, *args: Any, **kwargs: Any) -> ProcessWorkerResult:
        self.under_way.add(flow_run.id)
        try:
            return await super().run(flow_run, *args, **kwargs)
        finally:
            self.under_way.discard(flow_run.id)


async def _serve(name: str, again: Callable[[], object]) -> None:
    ended, loop = asyncio.Event(), asyncio.get_running_loop()
    await asyncio.to_thread(_catch_up, name)
    worker = _Worker(work_pool_name=name, name=f"{socket.gethostname()}-{os.getpid()}", prefetch_seconds=0)
    going = asyncio.create_task(worker.start(printer=_LOG.info))
    while not worker.is_setup and not going.done():
        await asyncio.sleep(0.05)
    for sign in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(sign, ended.set)
    jobs: set[asyncio.Task[None]] = set()

    def anew() -> None:
        job = asyncio.create_task(scheduler.told(asyncio.to_thread(again)))
        jobs.add(job)
        job.add_done_callback(jobs.discard)

    loop.add_signal_handler(signal.SIGHUP, anew)
    sweeping, ending = asyncio.create_task(_sweep(name)), asyncio.create_task(ended.wait())
    await asyncio.wait({going, sweeping, ending}, return_when=asyncio.FIRST_COMPLETED)
    sweeping.cancel()
    if not ended.is_set():
        await going  # raises what ended it
        return
    await asyncio.to_thread(_end_runs, frozenset(worker.under_way))
    going.cancel()
    with contextlib.suppress(asyncio.CancelledError, TimeoutError):
        await asyncio.wait_for(going, 10)


async def _sweep(name: str) -> None:
    while True:
        await asyncio.sleep(scheduler.SWEEP)
        await scheduler.told(asyncio.to_thread(_catch_up, name))


def _catch_up(name: str) -> None:
    """Of all that the pool runs for us, whoever deployed it."""
    pools = WorkPoolFilter.model_validate({"name": {"any_": [name]}})
    ours = DeploymentFilter.model_validate({"tags": {"all_": [TAG]}})
    with get_client(sync_client=True) as client:
        for deployment in client.read_deployments(deployment_filter=ours, work_pool_filter=pools, limit=200):
            scheduler.catch_up(client, deployment.id, shared=True)


def _end_runs(numbers: Iterable[UUID]) -> None:
    for pid in children(os.getpid()):
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + _GRACE
    while children(os.getpid()) and time.monotonic() < deadline:
        time.sleep(0.05)
    with get_client(sync_client=True) as client:
        for number in numbers:
            run = client.read_flow_run(number)
            if run.state is None or not run.state.is_final() or run.state.is_crashed():
                crash(client, run)
