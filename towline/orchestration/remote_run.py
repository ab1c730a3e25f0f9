"""A remote run is a flow run on a worker of a work pool, which this process creates and waits for.

Its steps are logged, its result is returned and its error is raised as if the flow ran in this process.
"""

import datetime as dt
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun
from prefect.deployments.runner import RunnerDeployment
from prefect.exceptions import ObjectNotFound

from towline.errors import ConfigError
from towline.monitoring.policy import MonitoringRun
from towline.orchestration.remote_server import (
    POLL_S,
    UNCLAIMED_NOTICE_S,
    OutageTolerance,
    RemoteTarget,
    connect,
    pool_exists,
    pool_has_worker,
    read_result,
    waiting_reason,
)
from towline.orchestration.scheduler import deploy
from towline.orchestration.step_table import StepTableReader
from towline.promotion.outcome import Outcome

_POOL_TIMEOUT_S = 120.0  # for the first worker of a pool to start


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
        TransientError: the server is down, the process of the run has ended unexpectedly, or it was cancelled.
        KeyboardInterrupt: raised while waiting; the run continues, and ``notify`` has received its URL.
        TowlineError: the error that the flow raised.
    """
    with connect(target) as client:
        _wait_for_pool(client, target, notify)
        deployment_id = _find_or_create_deployment(client, f"{name}/{parameters['config'].name}", deployments)
        run = client.create_flow_run_from_deployment(deployment_id, parameters=_as_json(parameters))
        page = target.page(run)
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
    if pool_exists(client, target.pool):
        return
    others = ", ".join(sorted(pool.name for pool in client.read_work_pools()))
    remedy = f"start a worker, which creates it: python -m flows.deployments --pool {target.pool}"
    notify(
        f"waits up to {_POOL_TIMEOUT_S:.0f} s: no work pool {target.pool!r} yet"
        f"{f', only {others}' if others else ''}; {remedy}"
    )
    deadline = time.monotonic() + _POOL_TIMEOUT_S
    while not pool_has_worker(client, target.pool):
        if time.monotonic() > deadline:
            if pool_exists(client, target.pool):
                return
            raise ConfigError(f"no work pool {target.pool!r}", where=target.url, remedy=remedy)
        time.sleep(POLL_S)


def _find_or_create_deployment(
    client: SyncPrefectClient, full_name: str, deployments: Callable[[], Sequence[RunnerDeployment]]
) -> UUID:
    """An existing deployment is not changed; a new one has no schedule."""
    try:
        return client.read_deployment_by_name(full_name).id
    except ObjectNotFound:
        matching = [item for item in deployments() if f"{item.flow_name}/{item.name}" == full_name]
        return deploy([item.model_copy(update={"schedules": []}) for item in matching], None)[0]


def _wait_for_end(
    client: SyncPrefectClient, name: str, flow_run_id: UUID, target: RemoteTarget, notify: Callable[[str], object]
) -> FlowRun:
    step_table, start, notified = StepTableReader(client, name, flow_run_id), time.monotonic(), False
    outages = OutageTolerance()
    while True:
        with outages.tolerate():
            run = client.read_flow_run(flow_run_id)
            step_table.log_new_steps()
            if run.state is not None and run.state.is_final():
                return run
            is_waiting = run.state is not None and run.state.is_scheduled()
            if is_waiting and not notified and time.monotonic() > start + UNCLAIMED_NOTICE_S:
                notified = True
                notify(waiting_reason(client, run, target.pool))
        time.sleep(POLL_S)


def _read_result(client: SyncPrefectClient, name: str, run: FlowRun, page: str) -> Outcome | MonitoringRun:
    document = read_result(client, name, run, page)
    return (Outcome if name == "training" else MonitoringRun).model_validate(document)
