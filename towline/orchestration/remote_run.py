"""Has a worker of a pool run a flow, and waits for it: steps, the result or the error come over as if it ran here."""

import datetime as dt
import json
import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import ArtifactFilter, LogFilter
from prefect.client.schemas.objects import FlowRun
from prefect.deployments.runner import RunnerDeployment
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.settings import (
    PREFECT_API_AUTH_STRING,
    PREFECT_API_URL,
    PREFECT_CLIENT_MAX_RETRIES,
    temporary_settings,
)

from towline import steps
from towline.errors import ConfigError, TowlineError, TransientError, restored
from towline.monitoring.policy import MonitoringRun
from towline.orchestration.end_states import FENCE, end
from towline.orchestration.scheduler import deploy
from towline.promotion.outcome import Outcome

_LOOK = 1.0  # seconds between two looks at the run
_LATE = 2.5  # seconds that lines of a run that has ended may take to arrive
_AWAY = 300.0  # seconds that the server may be away
_NOBODY = 20.0  # seconds after which a run that nobody takes is worth a word
_NEW = 120.0  # seconds that the first worker of a pool may take to start
_LINE = re.compile(  # as towline.steps writes them
    r"(?P<done>.+?) done in (?P<seconds>[\d.]+) s(?:: (?P<note>.*))?"
    r"|(?P<failed>.+?) failed: (?P<why>.*)"
    r"|(?P<begin>.+) …"
)


class There(NamedTuple):
    """Where runs go: Prefect's API, ``user:password`` or nothing, and the work pool."""

    url: str
    auth: str
    pool: str


class Ended(NamedTuple):
    """What a flow returned, and the page of its run."""

    value: Outcome | MonitoringRun
    page: str


def run_there(
    name: str,
    there: There,
    parameters: Mapping[str, Any],
    deployments: Callable[[], Sequence[RunnerDeployment]],
    tell: Callable[[str], object],
) -> Ended:
    """Runs ``flows.<name>`` on a worker and returns what it returned.

    Args:
        name: training, drift or quality.
        there: where.
        parameters: of the flow; ``config`` is the config itself, as read here.
        deployments: gives those of the config, which one that is missing is made of.
        tell: is given what people are to know beside the steps.

    Raises:
        ConfigError: no such pool, nor a worker that made it meanwhile, or the server does not take the password.
        TransientError: the server is away, the run lost its process, or was cancelled.
        KeyboardInterrupt: while it waited; the run goes on, and ``tell`` has been given how to find it.
        TowlineError: whatever the flow raised.
    """
    given = {PREFECT_API_URL: there.url, PREFECT_API_AUTH_STRING: there.auth or None, PREFECT_CLIENT_MAX_RETRIES: 2}
    with temporary_settings(given), _known(there), get_client(sync_client=True) as client:
        _find_pool(client, there, tell)
        number = _deployment(client, f"{name}/{parameters['config'].name}", deployments)
        run = client.create_flow_run_from_deployment(number, parameters=_plain(parameters))
        page = f"{there.url.removesuffix('/api')}/runs/flow-run/{run.id}"
        tell(f"run {page}")
        try:
            run = _wait(client, run.id, there, tell)
        except KeyboardInterrupt:
            tell(f"the run goes on without you: look at it, or cancel it, at {page}")
            raise
        return Ended(_result(client, name, run, page), page)


def _plain(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON has them; what is not given is the deployment's."""
    given = {key: value for key, value in parameters.items() if value not in (None, False)}
    plain = {key: value.isoformat() for key, value in given.items() if isinstance(value, dt.datetime)}
    return {**given, **plain, "config": given["config"].model_dump(mode="json")}


def _find_pool(client: SyncPrefectClient, there: There, tell: Callable[[str], object]) -> None:
    """Waits where there is none yet: ``docker compose up -d`` returns before its worker has made it.

    A worker that is there has registered its configs as well, with their schedules.
    """
    if _is_pool(client, there.pool):
        return
    others = ", ".join(sorted(pool.name for pool in client.read_work_pools()))
    remedy = f"start a worker, which makes it: python -m flows.deployments --pool {there.pool}"
    tell(f"waits up to {_NEW:.0f} s: no work pool {there.pool!r} yet{f', only {others}' if others else ''}; {remedy}")
    deadline = time.monotonic() + _NEW
    while not _is_attended(client, there.pool):
        if time.monotonic() > deadline:
            if _is_pool(client, there.pool):
                return
            raise ConfigError(f"no work pool {there.pool!r}", where=there.url, remedy=remedy)
        time.sleep(_LOOK)


def _is_pool(client: SyncPrefectClient, pool: str) -> bool:
    try:
        return bool(client.read_work_pool(pool))
    except ObjectNotFound:
        return False


def _is_attended(client: SyncPrefectClient, pool: str) -> bool:
    workers = client.read_workers_for_work_pool(pool) if _is_pool(client, pool) else []
    return any(worker.status == "ONLINE" for worker in workers)


def _deployment(client: SyncPrefectClient, name: str, deployments: Callable[[], Sequence[RunnerDeployment]]) -> UUID:
    """As it is; or made, without a schedule, for nobody asked for one."""
    try:
        return client.read_deployment_by_name(name).id
    except ObjectNotFound:
        wanted = [one for one in deployments() if f"{one.flow_name}/{one.name}" == name]
        return deploy([one.model_copy(update={"schedules": []}) for one in wanted], None)[0]


def _wait(client: SyncPrefectClient, number: UUID, there: There, tell: Callable[[str], object]) -> FlowRun:
    lines, began, told = _Lines(number), time.monotonic(), False
    answered = began
    while True:
        try:
            run = client.read_flow_run(number)
            lines.show(client)
            answered = time.monotonic()
            if run.state is not None and run.state.is_final():
                time.sleep(_LATE)
                lines.show(client)
                return run
            waits = run.state is not None and run.state.is_scheduled()
            if waits and not told and time.monotonic() > began + _NOBODY:
                told = True
                tell(_why(client, run, there.pool))
        except (httpx.TransportError, PrefectHTTPStatusError) as error:
            passing = isinstance(error, httpx.TransportError) or error.response.status_code >= 500
            if not passing or time.monotonic() > answered + _AWAY:
                raise
        time.sleep(_LOOK)


def _why(client: SyncPrefectClient, run: FlowRun, pool: str) -> str:
    if run.state is not None and run.state.name == "AwaitingConcurrencySlot":
        return "waits: another run of this model is under way"
    if not _is_attended(client, pool):
        return f"waits: no worker of pool {pool!r} is there; start one: python -m flows.deployments --pool {pool}"
    return "waits for a worker to take it"


class _Lines:
    """The run's steps, told here as the run's own process told them there."""

    def __init__(self, number: UUID) -> None:
        self._number, self._seen, self._since = number, set[UUID](), dt.datetime.fromtimestamp(0, dt.UTC)

    def show(self, client: SyncPrefectClient) -> None:
        wanted = {"flow_run_id": {"any_": [self._number]}, "timestamp": {"after_": self._since}}
        for line in client.read_logs(LogFilter.model_validate(wanted), limit=200):
            if line.id not in self._seen:
                self._seen.add(line.id)
                self._since = max(self._since, line.timestamp - dt.timedelta(seconds=5))  # some arrive late
                if line.name == steps.log.name:
                    _tell(line.message)


def _tell(message: str) -> None:
    if not (found := _LINE.fullmatch(message)):
        return
    extra: dict[str, Any]
    if found["begin"]:
        extra = {"step": found["begin"], "status": "begin"}
    elif found["done"]:
        note, seconds = found["note"] or "", float(found["seconds"])
        extra = {"step": found["done"], "status": "done", "note": note, "seconds": seconds}
    else:
        extra = {"step": found["failed"], "status": "failed", "note": found["why"]}
    steps.log.info("%s", message, extra=extra)


def _result(client: SyncPrefectClient, name: str, run: FlowRun, page: str) -> Outcome | MonitoringRun:
    state = run.state
    assert state is not None  # noqa: S101 - it is final
    told = state.message or ""
    if state.is_crashed():
        raise TransientError(
            f"the run lost its process: {told}",
            where=page,
            remedy="a worker runs it again, once; or give the same command again: finished steps are kept",
        )
    if state.is_cancelled():
        raise TransientError("the run was cancelled", where=page, remedy="run the same command again when it may run")
    kept = {"flow_run_id": {"any_": [run.id]}, "key": {"any_": [end(name)]}}
    left = client.read_artifacts(artifact_filter=ArtifactFilter.model_validate(kept))
    if not left:
        raise TowlineError(
            f"the run ended as {state.name} and left no result: {told.splitlines()[0] if told else 'no reason given'}",
            where=page,
            remedy="read its log there; the worker may be of another version",
        )
    document = json.loads(str(left[0].data).removeprefix(FENCE[0]).removesuffix(FENCE[1]))
    if "error" in document:
        raise restored(document)
    return (Outcome if name == "training" else MonitoringRun).model_validate(document)


@contextmanager
def _known(there: There) -> Iterator[None]:
    try:
        yield
    except PrefectHTTPStatusError as error:
        if error.response.status_code in (401, 403):
            raise ConfigError(
                "the Prefect server does not take this user and password",
                where=there.url,
                remedy="give the profile those that the server was started with",
            ) from None
        raise _gone(there, error) from error
    except (httpx.TransportError, RuntimeError) as error:  # Prefect's own word for a server that cannot be asked
        raise _gone(there, error) from error


def _gone(there: There, error: Exception) -> TransientError:
    logging.getLogger("towline").debug("the server is away", exc_info=error)
    return TransientError(
        f"the Prefect server does not answer: {str(error).splitlines()[0] if str(error) else type(error).__name__}",
        where=there.url,
        remedy="see that it runs and that the profile's address is its own; a run that began goes on",
    )
