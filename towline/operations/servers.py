"""The servers of the embedded default, in the background on loopback: started when needed, reused while they live."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Literal, cast, get_args

from towline import files
from towline.config import Frozen, Settings
from towline.errors import TransientError
from towline.processes import born, lives

Kind = Literal["prefect", "mlflow", "evidently", "status"]

PORTS: dict[Kind, int] = {"prefect": 4200, "mlflow": 5000, "evidently": 5100, "status": 5200}  # if they are free

QUIET = {
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
}

# becomes the server once it is told to: one whose starter is killed before it is written down never begins
_WHEN_TOLD = ("sh", "-c", 'read -r _ && exec "$@" </dev/null', "towline")


class Server(Frozen):
    """A server under way: ``url`` is what a browser opens."""

    kind: Kind
    pid: int
    born: str
    url: str

    @property
    def health(self) -> str:
        return self.url + {"prefect": "/api/health", "evidently": "/api/version"}.get(self.kind, "/health")


def find(settings: Settings, kind: Kind) -> Server | None:
    """The store's server of this kind, if its process lives."""
    try:
        server = Server.model_validate_json(_state(settings, kind).read_bytes())
    except (OSError, ValueError):
        return None
    return server if lives(server.pid, server.born) else None


def start(settings: Settings, kind: Kind) -> Server:
    """Starts it unless it runs; does not wait until it answers (see ``wait``).

    Raises:
        TransientError: the store cannot be written.
    """
    state = _state(settings, kind)
    with files.locked(state.with_suffix(".lock")):
        if running := find(settings, kind):
            return running
        port, claim = _port(PORTS[kind])
        command, environ = _command(settings, kind, port)
        log = settings.layout.log(kind)
        with claim, files.disk(log):
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("ab") as output:
                process = subprocess.Popen(
                    [*_WHEN_TOLD, sys.executable, "-m", *command],
                    env={**os.environ, **QUIET, **environ},
                    stdin=subprocess.PIPE,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                    pass_fds=[claim.fileno()],
                    cwd=settings.store,
                )
        server = Server(kind=kind, pid=process.pid, born=born(process.pid), url=f"http://127.0.0.1:{port}")
        with cast("IO[bytes]", process.stdin) as gate:
            files.write(state, server.model_dump_json())
            gate.write(b"go\n")
        return server


def wait(settings: Settings, server: Server, timeout: float = 180) -> Server:
    """Returns once the server answers.

    Raises:
        TransientError: it ended or did not answer within ``timeout`` seconds; names its log.
    """
    deadline = time.monotonic() + timeout
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while time.monotonic() < deadline:
        if not lives(server.pid, server.born):
            break
        with contextlib.suppress(OSError), opener.open(server.health, timeout=2) as answer:
            if answer.status == 200:
                return server
        time.sleep(0.1)
    raise TransientError(
        f"the {server.kind} server does not answer",
        where=str(settings.layout.log(server.kind)),
        remedy="read the end of that log; `towline ui --stop` clears what is left of it",
    )


def stop(settings: Settings, kinds: Iterable[Kind] = get_args(Kind)) -> list[Server]:
    """Ends the store's servers of these kinds and everything they started; returns those that ran."""
    stopped = []
    for kind in kinds:
        if server := find(settings, kind):
            with contextlib.suppress(OSError):
                os.killpg(server.pid, signal.SIGTERM)
            for _ in range(100):
                if not find(settings, kind):
                    break
                time.sleep(0.1)
            else:
                with contextlib.suppress(OSError):
                    os.killpg(server.pid, signal.SIGKILL)
            stopped.append(server)
        _state(settings, kind).unlink(missing_ok=True)
    return stopped


def prefect_environment(settings: Settings) -> dict[str, str]:
    """What Prefect's client needs to know before it is imported."""
    return {
        **QUIET,
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
            # who holds a deployment's one place is known after a restart too
            "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
            # bursts of task runs otherwise lock SQLite for seconds
            "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "50",
            "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_READ_BATCH_SIZE": "50",
            "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
            "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_BATCH_SIZE": "200",
            "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_READ_BATCH_SIZE": "50",
        }
    if kind in ("evidently", "status"):
        return [f"towline.cli.{kind}_server", str(port)], settings.environment()
    address = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    artifacts = str(settings.layout.mlflow_artifacts)
    stores = ["--backend-store-uri", settings.tracking_uri, "--artifacts-destination", artifacts]
    return ["mlflow", "server", *address, *stores], {
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_ENABLE_AI_GATEWAY": "false",
    }


def _state(settings: Settings, kind: Kind) -> Path:
    return settings.layout.servers / f"{kind}.json"


def _port(preferred: int) -> tuple[int, socket.socket]:
    """A free port, and its claim: a name that nobody else gets while a server that inherited it lives.

    A server takes seconds until it listens. Were its port free for so long, two stores started together would get the
    same, and one of them the other's server.
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
    raise TransientError("no free port on 127.0.0.1", remedy="end some program that listens")
