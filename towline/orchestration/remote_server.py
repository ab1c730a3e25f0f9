"""A connection to the Prefect server of a profile, and how the end of a run on its workers is read.

Prefect's errors become errors for the user. A server that does not answer for a while does not end a wait.
"""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import ArtifactFilter
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.settings import (
    PREFECT_API_AUTH_STRING,
    PREFECT_API_URL,
    PREFECT_CLIENT_MAX_RETRIES,
    temporary_settings,
)

from towline.errors import ConfigError, TowlineError, TransientError, restored
from towline.orchestration.end_states import decode_result, result_artifact_key

POLL_S = 1.0
UNCLAIMED_NOTICE_S = 20.0  # after which the user gets the reason why no worker has started the run
_SERVER_TIMEOUT_S = 300.0  # how long the server may be down before the wait ends with an error


class RemoteTarget(NamedTuple):
    """Where to run: the URL of Prefect's API, ``user:password`` or an empty text, and the work pool."""

    url: str
    auth: str
    pool: str

    def page(self, run: FlowRun) -> str:
        """The URL of a run's page."""
        return f"{self.url.removesuffix('/api')}/runs/flow-run/{run.id}"


@contextmanager
def connect(target: RemoteTarget) -> Iterator[SyncPrefectClient]:
    """A client of the server, which Prefect's own functions use too while the block runs.

    Raises:
        ConfigError: the server refuses the password.
        TransientError: the server is down.
    """
    prefect_settings = {
        PREFECT_API_URL: target.url,
        PREFECT_API_AUTH_STRING: target.auth or None,
        PREFECT_CLIENT_MAX_RETRIES: 2,
    }
    with temporary_settings(prefect_settings), translate_errors(target), get_client(sync_client=True) as client:
        yield client


@contextmanager
def translate_errors(target: RemoteTarget) -> Iterator[None]:
    """Turns errors of Prefect's client into errors for the user."""
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


class OutageTolerance:
    """Tolerates that a server does not answer for up to five minutes."""

    def __init__(self) -> None:
        self._last_answer = time.monotonic()

    @contextmanager
    def tolerate(self) -> Iterator[None]:
        """Suppresses errors of a server that is down; other errors, and the error after the time limit, are raised."""
        try:
            yield
        except (httpx.TransportError, PrefectHTTPStatusError) as error:
            is_transient = isinstance(error, httpx.TransportError) or error.response.status_code >= 500
            if not is_transient or time.monotonic() > self._last_answer + _SERVER_TIMEOUT_S:
                raise
        else:
            self._last_answer = time.monotonic()


def pool_exists(client: SyncPrefectClient, pool: str) -> bool:
    """Whether the server has this work pool."""
    try:
        return bool(client.read_work_pool(pool))
    except ObjectNotFound:
        return False


def pool_has_worker(client: SyncPrefectClient, pool: str) -> bool:
    """Whether a worker of this pool has sent a heartbeat lately."""
    workers = client.read_workers_for_work_pool(pool) if pool_exists(client, pool) else []
    return any(worker.status == "ONLINE" for worker in workers)


def waiting_reason(client: SyncPrefectClient, run: FlowRun, pool: str) -> str:
    """Why no worker has started a run, for the user."""
    if run.state is not None and run.state.name == "AwaitingConcurrencySlot":
        return "waits: another run of this model is under way"
    if not pool_has_worker(client, pool):
        return f"waits: pool {pool!r} has no worker; start one: python -m flows.deployments --pool {pool}"
    return "waits for a worker to start it"


def read_result(client: SyncPrefectClient, flow_name: str, run: FlowRun, page: str) -> dict[str, Any]:
    """The result of a run that has ended, as a JSON document.

    Raises:
        TransientError: the process of the run has ended unexpectedly, or the run was cancelled.
        TowlineError: the error that the flow raised, or the run left no result.
    """
    state = run.state
    assert state is not None  # noqa: S101 - it is final
    message = state.message or ""
    if state.is_crashed():
        raise TransientError(
            f"the process of the run has ended unexpectedly: {message}",
            where=page,
            remedy="run the same command again; it resumes from the last completed step",
        )
    if state.is_cancelled():
        raise TransientError("the run was cancelled", where=page, remedy="run the same command again")
    of_run = {"flow_run_id": {"any_": [run.id]}, "key": {"any_": [result_artifact_key(flow_name)]}}
    artifacts = client.read_artifacts(artifact_filter=ArtifactFilter.model_validate(of_run))
    if not artifacts:
        reason = message.splitlines()[0] if message else "no reason given"
        raise TowlineError(
            f"the run ended as {state.name} and left no result: {reason}",
            where=page,
            remedy="read its log there; the worker may have another version of towline",
        )
    document: dict[str, Any] = decode_result(str(artifacts[0].data))
    if "error" in document:
        raise restored(document)
    return document
