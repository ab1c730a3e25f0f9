"""The engine of a Prefect work pool: the shards of a batch job are split among flow runs on the pool's workers.

The runs are those of the deployment ``scoring-shards/<model>``, linked to the flow that scores if there is one. They
share the work folder of the job with this process, which assembles the output. The shards of a run that lost its
process are split among new runs. A repeated command waits for the runs of an earlier one that have not ended.
"""

import contextlib
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import cast
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.responses import DeploymentResponse
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.states import Cancelling

from towline import __version__
from towline.batch.engines.shard_list import write_task
from towline.batch.input.shards import Shard
from towline.batch.job_options import OpenEngine, ShardTask
from towline.batch.shard_scoring import Report
from towline.batch.work_folder import ShardResult, WorkFolder
from towline.errors import ConfigError, TransientError
from towline.orchestration.crash_detection import crash_children, create_crash_automations
from towline.orchestration.process_setup import SHARDS_FLOW
from towline.orchestration.profiles import Profile
from towline.orchestration.remote_server import (
    POLL_S,
    UNCLAIMED_NOTICE_S,
    OutageTolerance,
    RemoteTarget,
    connect,
    pool_has_worker,
    read_result,
    translate_errors,
    waiting_reason,
)
from towline.orchestration.scheduler import WATCHED_TAG

MAX_CRASHES = 3  # of runs at the same shard
_FILE_POLL_S = 0.1
_VISIBLE_S = 120.0  # after which the files of a completed run must be visible here; NFS caches folders for a minute
_UNDER_WAY = ("SCHEDULED", "PENDING", "RUNNING")


def pool_engine(model: str, profile: Profile | None, notify: Callable[[str], object]) -> OpenEngine:
    """Opens the engine for a model; a function of the number of runs and of paths that all workers must see.

    Args:
        model: its name.
        profile: names the Prefect server; None: the server that PREFECT_API_URL names.
        notify: receives messages for the user.
    """
    return lambda runs, paths: PoolEngine(_find_server(profile), model, runs, paths, notify)


def _find_server(profile: Profile | None) -> RemoteTarget:
    if profile:
        return RemoteTarget(profile.url, profile.auth, profile.pool)
    url = os.environ.get("PREFECT_API_URL", "")
    if not url:
        remedy = "towline --profile NAME score …, or set PREFECT_API_URL to http://HOST:4200/api"
        raise ConfigError("no Prefect server is named", where="--engine prefect", remedy=remedy)
    return RemoteTarget(url, os.environ.get("PREFECT_API_AUTH_STRING", ""), "")


class PoolEngine:
    """Scores shards in flow runs of a deployment; ``result`` reads what they write into the work folder.

    Args:
        target: the Prefect server.
        model: name of the model.
        runs: number of runs at the same time.
        paths: that all workers must see.
        notify: receives messages for the user.

    Raises:
        ConfigError: there is no deployment for the model, or the worker that runs the check is not suitable.
        TransientError: the server does not answer, or its pool is paused or has no worker.
    """

    def __init__(
        self, target: RemoteTarget, model: str, runs: int, paths: Sequence[str], notify: Callable[[str], object]
    ) -> None:
        self._target, self._limit, self._notify = target, runs, notify
        self._task: ShardTask | None = None
        self._runs: dict[UUID, list[int]] = {}  # under way, with their shards
        self._crashes: Counter[int] = Counter()  # by the shard at which the run was
        self._ended: dict[UUID, float] = {}  # completed, but not all of their files are visible here
        self._awaited: set[int] = set()
        self._outages, self._next_poll, self._notice_at = OutageTolerance(), 0.0, 0.0
        self._stack = ExitStack()
        self._client = self._stack.enter_context(connect(target))
        try:
            with translate_errors(target):
                self._deployment = _find_deployment(self._client, target, model)
                create_crash_automations(self._client)
                self._check(paths)
        except BaseException:
            self.close()
            raise

    def prepare(self, shards: Sequence[Shard], task: ShardTask) -> None:
        """Does nothing: the workers already run."""

    def slots(self) -> int:
        return self._limit

    def submit(self, shard: Shard, task: ShardTask, report: Report) -> int:  # noqa: ARG002
        if self._task is None:
            self._task = task
            write_task(task)
            with translate_errors(self._target):
                self._continue_runs()
                self._start_runs()
        return shard.number

    def result(self, handle: int) -> ShardResult:
        while (result := self._work.result(handle)) is None:
            with translate_errors(self._target):
                self._poll_runs()
            time.sleep(_FILE_POLL_S)
        self._awaited.add(handle)
        return result

    def close(self) -> None:
        """Cancels the runs whose results were not awaited."""
        for run_id, shards in self._runs.items():
            if not self._awaited.issuperset(shards):
                with contextlib.suppress(httpx.TransportError, PrefectHTTPStatusError):
                    self._client.set_flow_run_state(run_id, Cancelling())
        self._stack.close()

    @property
    def _work(self) -> WorkFolder:
        assert self._task is not None  # noqa: S101 - shards are submitted first
        return WorkFolder(path=self._task.work)

    def _check(self, paths: Sequence[str]) -> None:
        """Has one worker check its version of towline and the paths, before the source is read."""
        run = self._create_run("check of a worker", [], paths=list(paths))
        self._runs[run.id] = [-1]
        self._notify(f"a worker is checked: {self._target.page(run)}")
        while run.state is None or not run.state.is_final():
            time.sleep(POLL_S)
            with self._outages.tolerate():
                run = self._client.read_flow_run(run.id)
            self._notify_of_waiting([run])
        del self._runs[run.id]
        read_result(self._client, SHARDS_FLOW, run, self._target.page(run))

    def _create_run(self, name: str, shards: Sequence[int], work: str = "", paths: Sequence[str] = ()) -> FlowRun:
        """Creates a run; a flow that scores becomes its parent in Prefect."""
        parameters = {"work": work, "shards": list(shards), "paths": list(paths), "version": __version__}
        self._notice_at = time.monotonic() + UNCLAIMED_NOTICE_S
        run = run_deployment(
            self._deployment.id,
            parameters=parameters,
            flow_run_name=name,
            tags=[WATCHED_TAG, *([self._job_tag] if work else [])],
            timeout=0,
            _sync=True,  # type: ignore[call-arg]  # of Prefect's decorator; else a coroutine in a notebook
        )
        return cast("FlowRun", run)

    @property
    def _job_tag(self) -> str:
        return f"job:{self._work.path.name[-16:]}"

    def _continue_runs(self) -> None:
        """Waits for the runs of an interrupted command, which are still under way."""
        of_job = {"deployment_id": {"any_": [self._deployment.id]}, "tags": {"all_": [self._job_tag]}}
        under_way = FlowRunFilter.model_validate({**of_job, "state": {"type": {"any_": list(_UNDER_WAY)}}})
        for run in self._client.read_flow_runs(flow_run_filter=under_way):
            self._runs[run.id] = list(run.parameters["shards"])

    def _start_runs(self) -> None:
        """Splits the shards that no run has among new runs."""
        assert self._task is not None  # noqa: S101 - shards are submitted first
        taken = {number for shards in self._runs.values() for number in shards}
        numbers = [shard.number for shard in self._task.source.shards if shard.number not in taken]
        rest = [number for number in numbers if not self._work.is_finished(number)]
        free = self._limit - len(self._runs)
        for part in [rest[first::free] for first in range(min(free, len(rest)))]:
            name = f"{len(part)} shards from {part[0]} of {self._work.path.name}"
            self._runs[self._create_run(name, part, str(self._work.path)).id] = part

    def _poll_runs(self) -> None:
        if time.monotonic() < self._next_poll:
            return
        self._next_poll = time.monotonic() + POLL_S
        with self._outages.tolerate():
            ids = FlowRunFilter.model_validate({"id": {"any_": list(self._runs)}})
            runs = self._client.read_flow_runs(flow_run_filter=ids, limit=len(self._runs)) if self._runs else []
            for run in runs:
                if run.state is not None and run.state.is_final():
                    self._end_run(run)
            self._start_runs()
            self._notify_of_waiting(runs)

    def _end_run(self, run: FlowRun) -> None:
        page = self._target.page(run)
        missing = [number for number in self._runs[run.id] if not self._work.is_finished(number)]
        if run.state is not None and run.state.is_crashed():
            del self._runs[run.id]
            crash_children(self._client, run)
            self._count_crash(missing, page)
            return
        read_result(self._client, SHARDS_FLOW, run, page)
        if not missing:
            del self._runs[run.id]
        elif time.monotonic() > self._ended.setdefault(run.id, time.monotonic()) + _VISIBLE_S:
            raise TransientError(
                f"the run has completed, but the result of shard {missing[0]} is not visible here",
                where=f"{self._work.path}; {page}",
                remedy="check that the file system is shared, then run the same command again",
            )

    def _count_crash(self, missing: Sequence[int], page: str) -> None:
        if not missing:
            return
        self._crashes[missing[0]] += 1
        self._notify(
            f"the process of a run has ended unexpectedly; its {len(missing)} shards are given to new runs: {page}"
        )
        if self._crashes[missing[0]] == MAX_CRASHES:
            raise TransientError(
                f"{MAX_CRASHES} runs ended unexpectedly at shard {missing[0]}, perhaps because the memory is full",
                where=page,
                remedy="run the same command again: finished parts are not scored again; give the workers more memory",
            )

    def _notify_of_waiting(self, runs: Sequence[FlowRun]) -> None:
        """Logs once after each start of runs why no worker has started one."""
        waiting = [run for run in runs if run.state is not None and run.state.is_scheduled()]
        if waiting and time.monotonic() > self._notice_at:
            self._notice_at = float("inf")
            with self._outages.tolerate():
                self._notify(waiting_reason(self._client, waiting[0], self._deployment.work_pool_name or ""))


def _find_deployment(client: SyncPrefectClient, target: RemoteTarget, model: str) -> DeploymentResponse:
    """The deployment for a model, whose pool can run it."""
    name, start = f"{SHARDS_FLOW}/{model}", "python -m flows.deployments --pool"
    try:
        deployment = client.read_deployment_by_name(name)
    except ObjectNotFound:
        remedy = f"start a worker with the config of the model: {start} {target.pool or 'towline'} CONFIG"
        raise ConfigError(f"no deployment {name!r}", where=target.url, remedy=remedy) from None
    if deployment.work_pool_name is None:
        remedy = f"start a worker with the config of the model: {start} {target.pool or 'towline'} CONFIG"
        raise ConfigError(f"the deployment {name!r} has no work pool", where=target.url, remedy=remedy)
    pool = client.read_work_pool(deployment.work_pool_name)
    if pool.is_paused:
        remedy = f"prefect work-pool resume {pool.name}"
        raise TransientError(f"the work pool {pool.name!r} is paused", where=target.url, remedy=remedy)
    if not (pool.is_push_pool or pool.is_managed_pool or pool_has_worker(client, pool.name)):
        remedy = f"start one: {start} {pool.name}"
        raise TransientError(f"the work pool {pool.name!r} has no worker", where=target.url, remedy=remedy)
    return deployment
