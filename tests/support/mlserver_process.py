"""MLServer in a separate process, in the environment that `make .venv/.mlserver` creates."""

import os
import socket
import subprocess
import time
from pathlib import Path

import requests

from tests.support.paths import REPOSITORY

PROGRAM = REPOSITORY / ".venv" / "mlserver" / "bin" / "mlserver"


class MlserverProcess:
    """A running `mlserver start FOLDER`; as a context manager it is ended at the end of the block.

    Args:
        folder: with one model, or with a folder for each of several models.
        log: file for MLServer's output.

    Attributes:
        rest: the address of its REST interface.
        grpc: host and port of its gRPC interface.
    """

    def __init__(self, folder: Path, log: Path) -> None:
        rest, grpc, metrics = _free_ports(3)
        self.log, self.rest, self.grpc = log, f"http://127.0.0.1:{rest}", f"127.0.0.1:{grpc}"
        environment = mlserver_environment() | {
            "MLSERVER_HOST": "127.0.0.1",
            "MLSERVER_HTTP_PORT": str(rest),
            "MLSERVER_GRPC_PORT": str(grpc),
            "MLSERVER_METRICS_PORT": str(metrics),
        }
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [PROGRAM, "start", folder], env=environment, stdout=output, stderr=subprocess.STDOUT, cwd=folder
            )

    def __enter__(self) -> "MlserverProcess":
        while not self._is_ready():
            if self.process.poll() is not None:
                raise RuntimeError(f"MLServer ended:\n{self.log.read_text()}")
            time.sleep(0.2)
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        try:
            self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _is_ready(self) -> bool:
        try:
            return requests.get(f"{self.rest}/v2/health/ready", timeout=10).status_code == 200
        except requests.RequestException:
            return False


def mlserver_environment() -> dict[str, str]:
    """The environment of MLServer's process: towline is imported from this repository."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("TOWLINE_", "MLSERVER_"))}
    return inherited | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [listening.getsockname()[1] for listening in sockets]
    for listening in sockets:
        listening.close()
    return ports
