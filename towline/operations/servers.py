"""Background servers of a store, on loopback: Prefect, MLflow, Evidently and the status page.

A server is started when a command needs it and is used by later commands as long as it runs. Prefect 3.8.8 can start
its own server in the background too, but on one port for all stores of a machine.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Literal, cast, get_args
from urllib.parse import urlsplit

from towline import files
from towline.config import Settings
from towline.errors import TransientError
from towline.http_request import HttpRequestError, send_request
from towline.operations.process_record import ProcessRecord
from towline.processes import process_start_time

Kind = Literal["prefect", "mlflow", "evidently", "status"]

_MODULES: dict[Kind, str] = {
    "evidently": "towline.monitoring.reporting.evidently_server",
    "status": "towline.cli.status_server",
}
PORTS: dict[Kind, int] = {"prefect": 4200, "mlflow": 5000, "evidently": 5100, "status": 5200}  # if they are free

TELEMETRY_OFF = {
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
}

# starts the server after a line on stdin: if its starter is killed before it has recorded the process, none is started
_START_ON_LINE = ("sh", "-c", 'read -r _ && exec "$@" </dev/null', "towline")


class Server(ProcessRecord):
    """A server that was started; ``url`` is its address in a browser."""

    kind: Kind
    url: str

    @property
    def health_url(self) -> str:
        return self.url + {"prefect": "/api/health", "evidently": "/api/version"}.get(self.kind, "/health")


def find_named_server(settings: Settings, kind: Kind) -> str:
    """The page of a server that the settings name, without its password; empty if the store starts its own."""
    addresses = {"prefect": os.environ.get("PREFECT_API_URL", ""), "mlflow": settings.tracking_uri}
    parts = urlsplit(addresses.get(kind, "").rstrip("/"))
    if parts.scheme not in ("http", "https"):
        return ""
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], path=parts.path.removesuffix("/api")).geturl()


def list_own_servers(settings: Settings) -> list[Kind]:
    """The servers that the store starts itself; without MLflow if none is set."""
    return [
        kind
        for kind in get_args(Kind)
        if not find_named_server(settings, kind) and (kind != "mlflow" or settings.tracking_uri)
    ]


def find_server(settings: Settings, kind: Kind) -> Server | None:
    """The store's server of this kind, if it runs."""
    try:
        server = Server.model_validate_json(_record_path(settings, kind).read_bytes())
    except (OSError, ValueError):
        return None
    return server if server.is_running else None


def start(settings: Settings, kind: Kind) -> Server:
    """Starts a server unless it runs; does not wait until it answers (see ``wait``).

    Raises:
        TransientError: the store cannot be written.
    """
    record = _record_path(settings, kind)
    with files.exclusive_lock(record.with_suffix(".lock")):
        if running := find_server(settings, kind):
            return running
        port, claim = _port(PORTS[kind])
        command, environment = _command(settings, kind, port)
        log = settings.layout.log(kind)
        with claim, files.disk(log):
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("ab") as output:
                process = subprocess.Popen(
                    [*_START_ON_LINE, sys.executable, "-m", *command],
                    env={**os.environ, **TELEMETRY_OFF, **environment},
                    stdin=subprocess.PIPE,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                    pass_fds=[claim.fileno()],
                    cwd=settings.store,
                )
        server = Server(
            kind=kind, pid=process.pid, start_time=process_start_time(process.pid), url=f"http://127.0.0.1:{port}"
        )
        with cast("IO[bytes]", process.stdin) as gate:
            files.write(record, server.model_dump_json())
            gate.write(b"go\n")
        return server


def wait(settings: Settings, server: Server, timeout: float = 180) -> Server:
    """Returns once the server answers.

    Raises:
        TransientError: it ended or did not answer within ``timeout`` seconds; names its log.
    """
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if not server.is_running:
            break
        with contextlib.suppress(HttpRequestError):
            if send_request(server.health_url, 2).status == 200:
                return server
        time.sleep(0.1)
    raise TransientError(
        f"the {server.kind} server does not answer",
        where=str(settings.layout.log(server.kind)),
        remedy="read the end of that log; then `towline ui --stop`, and run the same command again",
    )


def stop(settings: Settings, kinds: Iterable[Kind] = get_args(Kind)) -> list[Server]:
    """Stops the store's servers of these kinds with their child processes; returns those that ran."""
    stopped = []
    for kind in kinds:
        if server := find_server(settings, kind):
            with contextlib.suppress(OSError):
                os.killpg(server.pid, signal.SIGTERM)
            for _ in range(100):
                if not find_server(settings, kind):
                    break
                time.sleep(0.1)
            else:
                with contextlib.suppress(OSError):
                    os.killpg(server.pid, signal.SIGKILL)
            stopped.append(server)
        _record_path(settings, kind).unlink(missing_ok=True)
    return stopped


def prefect_environment(settings: Settings) -> dict[str, str]:
    """The environment variables that Prefect's client reads when it is imported."""
    return {
        **TELEMETRY_OFF,
        "PREFECT_HOME": str(settings.layout.prefect),
        "PREFECT_LOGGING_EXTRA_LOGGERS": "towline",
        "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
        "PREFECT_LOGGING_INTERNAL_LEVEL": "CRITICAL",
    }


def _command(settings: Settings, kind: Kind, port: int) -> tuple[list[str], Mapping[str, str]]:
    if kind == "prefect":
        return ["prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)], {
            **prefect_environment(settings),
            "PREFECT_UI_API_URL": "/api",
            "PREFECT_SERVER_API_PORT": str(port),
            # a restarted server still has the run that holds a deployment's concurrency slot
            "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
            # bursts of task runs otherwise lock SQLite for seconds
            "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "50",
            "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_READ_BATCH_SIZE": "50",
            "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
            "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_BATCH_SIZE": "200",
            "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_READ_BATCH_SIZE": "50",
        }
    if module := _MODULES.get(kind):
        return [module, str(port)], settings.environment()
    address = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    return ["mlflow", "server", *address, "--artifacts-destination", str(settings.layout.mlflow_artifacts)], {
        "MLFLOW_BACKEND_STORE_URI": settings.tracking_uri,  # every user can read command lines: it may hold a password
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_ENABLE_AI_GATEWAY": "false",
    }


def _record_path(settings: Settings, kind: Kind) -> Path:
    return settings.layout.servers / f"{kind}.json"


def _port(preferred: int) -> tuple[int, socket.socket]:
    """A free port and its claim: a socket name that is taken while the server that inherits the socket runs.

    A server needs seconds until it listens. Without the claim, two stores that start at the same time could get the
    same port, and one of them the server of the other.
    """
    for port in (preferred, *[0] * 10):
        claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(("127.0.0.1", port))
                free = int(probe.getsockname()[1])
            claim.bind(f"\0towline:{free}")  # an abstract name: of the same network namespace as the port
        except OSError:
            claim.close()
        else:
            return free, claim
    raise TransientError("no free port on 127.0.0.1", remedy="stop a program that listens on one")
