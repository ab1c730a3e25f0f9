"""A remote run is a flow run on a worker of a work pool, which this process creates and waits for.

Its steps are logged, its result is returned and its error is raised as if the flow ran in this process.
"""

import datetime as dt
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import ArtifactFilter
from prefect.client.schemas.objects import FlowRun
from prefect.deployments.runner import RunnerDeployment
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.settings import (
    PREFECT_API_AUTH_STRING,
    PREFECT_API_URL,
    PREFECT_CLIENT_MAX_RETRIES,
    temporary_settings,
)

from towline.errors import ConfigError, TowlineError, TransientError, restored
from towline.monitoring.policy import MonitoringRun
from towline.orchestration.end_states import decode_result, result_artifact_key
from towline.orchestration.scheduler import deploy
from towline.orchestration.step_table import StepTableReader
from towline.promotion.outcome import Outcome

_POLL_S = 1.0
_SERVER_TIMEOUT_S = 300.0  # how long the server may be down before the wait ends with an error
_UNCLAIMED_NOTICE_S = 20.0  # after which the user gets the reason why no worker has started the run
_POOL_TIMEOUT_S = 120.0  # for the first worker of a pool to start


class RemoteTarget(NamedTuple):
    """Where to run: the URL of Prefect's API, ``user:password`` or nothing, and the work pool."""

    url: str
    auth: str
    pool: str


def run_remote(
    name: str,
    target: RemoteTarget,
    parameters: Mapping[str, Any],
    deployments: Callable[[], Sequence[RunnerDeployment]],
    notify: Callable[[str], object],
) -> tuple[Outcome | MonitoringRun, str]:
    """Runs a flow on a worker; returns its result and the URL of its page.

    Args:
        name: training, drift or quality.
        target: where to run.
        parameters: of the flow; ``config`` is the config as read here.
        deployments: builds the deployments of the config, for a flow that has none yet.
        notify: receives messages for the user, besides the steps.

    Raises:
        ConfigError: there is no such pool, or the server refuses the password.
        TransientError: the server is down, the run lost its process, or it was cancelled.
        KeyboardInterrupt: raised while waiting; the run continues, and ``notify`` has received its URL.
        TowlineError: the error that the flow raised.
    """
    prefect_settings = {
        PREFECT_API_URL: target.url,
        PREFECT_API_AUTH_STRING: target.auth or None,
        PREFECT_CLIENT_MAX_RETRIES: 2,
    }
    with temporary_settings(prefect_settings), _translate_errors(target), get_client(sync_client=True) as client:
        _wait_for_pool(client, target, notify)
        deployment_id = _find_or_create_deployment(client, f"{name}/{parameters['config'].name}", deployments)
        run = client.create_flow_run_from_deployment(deployment_id, parameters=_as_json(parameters))
        page = f"{target.url.removesuffix('/api')}/runs/flow-run/{run.id}"
        notify(f"run {page}")
        try:
            run = _wait_for_end(client, name, run.id, target, notify)
        except KeyboardInterrupt:
            notify(f"the run continues; see or cancel it at {page}")
            raise
        return _read_result(client, name, run, page), page


def _as_json(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters as JSON; those that are None or False are left to the deployment."""
    values = {key: value for key, value in parameters.items() if value not in (None, False)}
    times = {key: value.isoformat() for key, value in values.items() if isinstance(value, dt.datetime)}
    return {**values, **times, "config": values["config"].model_dump(mode="json")}


def _wait_for_pool(client: SyncPrefectClient, target: RemoteTarget, notify: Callable[[str], object]) -> None:
    """Waits for the first worker of a new pool: ``docker compose up -d`` returns before its worker has started."""
    if _pool_exists(client, target.pool):
        return
    others = ", ".join(sorted(pool.name for pool in client.read_work_pools()))
    remedy = f"start a worker, which creates it: python -m flows.deployments --pool {target.pool}"
    notify(
        f"waits up to {_POOL_TIMEOUT_S:.0f} s: no work pool {target.pool!r} yet"
        f"{f', only {others}' if others else ''}; {remedy}"
    )
    deadline = time.monotonic() + _POOL_TIMEOUT_S
    while not _pool_has_worker(client, target.pool):
        if time.monotonic() > deadline:
            if _pool_exists(client, target.pool):
                return
            raise ConfigError(f"no work pool {target.pool!r}", where=target.url, remedy=remedy)
        time.sleep(_POLL_S)


def _pool_exists(client: SyncPrefectClient, pool: str) -> bool:
    try:
        return bool(client.read_work_pool(pool))
    except ObjectNotFound:
        return False


def _pool_has_worker(client: SyncPrefectClient, pool: str) -> bool:
    workers = client.read_workers_for_work_pool(pool) if _pool_exists(client, pool) else []
    return any(worker.status == "ONLINE" for worker in workers)


def _find_or_create_deployment(
    client: SyncPrefectClient, full_name: str, deployments: Callable[[], Sequence[RunnerDeployment]]
) -> UUID:
    """A deployment that exists stays as it is; a new one has no schedule."""
    try:
        return client.read_deployment_by_name(full_name).id
    except ObjectNotFound:
        matching = [item for item in deployments() if f"{item.flow_name}/{item.name}" == full_name]
        return deploy([item.model_copy(update={"schedules": []}) for item in matching], None)[0]


def _wait_for_end(
    client: SyncPrefectClient, name: str, flow_run_id: UUID, target: RemoteTarget, notify: Callable[[str], object]
) -> FlowRun:
    step_table, start, notified = StepTableReader(client, name, flow_run_id), time.monotonic(), False
    last_answer = start
    while True:
        try:
            run = client.read_flow_run(flow_run_id)
            step_table.log_new_steps()
            last_answer = time.monotonic()
            if run.state is not None and run.state.is_final():
                return run
            is_waiting = run.state is not None and run.state.is_scheduled()
            if is_waiting and not notified and time.monotonic() > start + _UNCLAIMED_NOTICE_S:
                notified = True
                notify(_waiting_reason(client, run, target.pool))
        except (httpx.TransportError, PrefectHTTPStatusError) as error:
            is_transient = isinstance(error, httpx.TransportError) or error.response.status_code >= 500
            if not is_transient or time.monotonic() > last_answer + _SERVER_TIMEOUT_S:
                raise
        time.sleep(_POLL_S)


def _waiting_reason(client: SyncPrefectClient, run: FlowRun, pool: str) -> str:
    if run.state is not None and run.state.name == "AwaitingConcurrencySlot":
        return "waits: another run of this model is under way"
    if not _pool_has_worker(client, pool):
        return f"waits: pool {pool!r} has no worker; start one: python -m flows.deployments --pool {pool}"
    return "waits for a worker to start it"


def _read_result(client: SyncPrefectClient, name: str, run: FlowRun, page: str) -> Outcome | MonitoringRun:
    state = run.state
    assert state is not None  # noqa: S101 - it is final
    message = state.message or ""
    if state.is_crashed():
        raise TransientError(
            f"the run lost its process: {message}",
            where=page,
            remedy="a worker retries the run once; the same command again resumes from the last completed step",
        )
    if state.is_cancelled():
        raise TransientError("the run was cancelled", where=page, remedy="run the same command again")
    of_run = {"flow_run_id": {"any_": [run.id]}, "key": {"any_": [result_artifact_key(name)]}}
    artifacts = client.read_artifacts(artifact_filter=ArtifactFilter.model_validate(of_run))
    if not artifacts:
        reason = message.splitlines()[0] if message else "no reason given"
        raise TowlineError(
            f"the run ended as {state.name} and left no result: {reason}",
            where=page,
            remedy="read its log there; the worker may have another version of towline",
        )
    document = decode_result(str(artifacts[0].data))
    if "error" in document:
        raise restored(document)
    return (Outcome if name == "training" else MonitoringRun).model_validate(document)


@contextmanager
def _translate_errors(target: RemoteTarget) -> Iterator[None]:
    try:
        yield
    except PrefectHTTPStatusError as error:
        if error.response.status_code in (401, 403):
            raise ConfigError(
                "the Prefect server does not accept this user and password",
                where=target.url,
                remedy="set PREFECT_API_AUTH_STRING of the profile to the value that the server was started with",
            ) from None
        raise _unreachable(target, error) from error
    except (httpx.TransportError, RuntimeError) as error:  # Prefect raises RuntimeError for a server that is down
        raise _unreachable(target, error) from error


def _unreachable(target: RemoteTarget, error: Exception) -> TransientError:
    logging.getLogger("towline").debug("the Prefect server does not answer", exc_info=error)
    return TransientError(
        f"the Prefect server does not answer: {str(error).splitlines()[0] if str(error) else type(error).__name__}",
        where=target.url,
        remedy="check that it runs, and the address in the profile; a run that has started continues",
    )
