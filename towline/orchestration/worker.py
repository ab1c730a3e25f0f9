"""A worker runs the flows of a work pool, on one machine or on several; a run of a lost worker is run again.

It is Prefect's process worker. Prefect 3.8.8 lacks what this module adds (tests/e2e/test_pool.py): a run that lost its
worker is run again, once, by the first worker of the pool that detects it; and a stop signal ends the active runs as
Crashed, so that another worker runs them again.
"""

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Callable
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
from towline.orchestration import scheduler
from towline.orchestration.crash_detection import DEPLOYMENT_TAG, HEARTBEAT_S, crash_run
from towline.orchestration.process_setup import SCHEDULER_PID

_LOG = logging.getLogger("towline.pool")


def create_pool(client: SyncPrefectClient, name: str) -> None:
    """Creates a work pool of processes; an existing pool with the name, of any type, is not changed."""
    try:
        client.read_work_pool(name)
    except ObjectNotFound:
        template = ProcessWorker.get_default_base_job_template()
        with contextlib.suppress(ObjectAlreadyExists):  # another worker was faster
            client.create_work_pool(WorkPoolCreate(name=name, type="process", base_job_template=template))


def serve(pool: str, settings: Settings, redeploy: Callable[[], object], limit: int | None = None) -> None:
    """Executes the runs that are due in a pool, until SIGTERM or SIGINT; active runs are then ended as Crashed.

    Args:
        pool: name of the pool.
        settings: of the runs.
        redeploy: reads the configs and deploys them again; called in a thread on SIGHUP.
        limit: number of runs at the same time; None: any number.
    """
    os.environ.update(_run_environment(settings))
    os.environ[SCHEDULER_PID] = str(os.getpid())
    with temporary_settings({PREFECT_WORKER_QUERY_SECONDS: scheduler.POLL_S, PREFECT_WORKER_ENABLE_CANCELLATION: True}):
        asyncio.run(_serve(pool, redeploy, limit))


def _run_environment(settings: Settings) -> dict[str, str]:
    """The environment of runs: the project, the settings, and a place for task results that later runs find too."""
    path = [str(settings.project), *filter(None, [os.environ.get("PYTHONPATH")])]
    defaults = {
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_S),
        "PREFECT_LOCAL_STORAGE_PATH": str(settings.layout.prefect_results),
        "PREFECT_LOGGING_EXTRA_LOGGERS": "towline",
        "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
    }
    unset = {name: value for name, value in defaults.items() if name not in os.environ}
    return {**unset, **settings.environment(), "PYTHONPATH": os.pathsep.join(path)}


class _ChildProcessConfiguration(ProcessJobConfiguration):
    """Starts a run as a direct child of the worker, so that it can end with the worker."""

    def prepare_for_flow_run(self, *args: Any, **kwargs: Any) -> None:
        self.command = self.command or command_to_string([get_sys_executable(), "-m", "prefect.engine"])
        super().prepare_for_flow_run(*args, **kwargs)


class _Worker(ProcessWorker):
    """A process worker with a record of its active runs."""

    job_configuration = _ChildProcessConfiguration

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.under_way: set[UUID] = set()

    @classmethod
    def __dispatch_key__(cls) -> str:
        """Leaves Prefect's own class the worker of the type ``process``."""
        return "towline"

    async def run(self, flow_run: FlowRun, *args: Any, **kwargs: Any) -> ProcessWorkerResult:
        self.under_way.add(flow_run.id)
        try:
            return await super().run(flow_run, *args, **kwargs)
        finally:
            self.under_way.discard(flow_run.id)


async def _serve(pool: str, redeploy: Callable[[], object], limit: int | None) -> None:
    await asyncio.to_thread(_catch_up, pool)
    name = f"{socket.gethostname()}-{os.getpid()}"
    worker = _Worker(work_pool_name=pool, name=name, prefetch_seconds=0, limit=limit)

    def end_runs() -> None:
        flow_run_ids = frozenset(worker.under_way)
        scheduler.kill_children()
        with get_client(sync_client=True) as client:
            for flow_run_id in flow_run_ids:
                run = client.read_flow_run(flow_run_id)
                if run.state is None or not run.state.is_final() or run.state.is_crashed():
                    crash_run(client, run)

    await scheduler.serve_until_signal(
        worker.start(printer=_LOG.info),
        lambda: worker.is_setup,
        sweep=lambda: _catch_up(pool),
        redeploy=redeploy,
        end_runs=end_runs,
    )


def _catch_up(pool: str) -> None:
    """Catches up on every deployment of towline in the pool."""
    in_pool = WorkPoolFilter.model_validate({"name": {"any_": [pool]}})
    of_towline = DeploymentFilter.model_validate({"tags": {"all_": [DEPLOYMENT_TAG]}})
    with get_client(sync_client=True) as client:
        for deployment in client.read_deployments(deployment_filter=of_towline, work_pool_filter=in_pool, limit=200):
            scheduler.catch_up(client, deployment.id, shared=True)
