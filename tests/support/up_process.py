"""`towline up` in a separate process."""

import contextlib
import json
import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

from tests.support.paths import TOWLINE
from tests.support.store_commands import MODEL, StoreCommands, write_bike_config
from tests.support.waiting import free_port
from towline.operations import servers
from towline.processes import is_running

SERVER_KINDS: tuple[servers.Kind, ...] = get_args(servers.Kind)


class UpProcess:
    """`towline up` on a new store, or on the store of other commands.

    Args:
        folder: for the log file; for a new store also for the config and the store.
        commands: of an existing store.
        config: sections of the config to change.
    """

    def __init__(self, folder: Path, commands: StoreCommands | None = None, **config: Any) -> None:
        self.commands = commands or StoreCommands(folder / "store", write_bike_config(folder, **config))
        self.log = folder / "up.log"
        self.port = free_port()
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        words = [TOWLINE, "up", str(self.commands.config), "--port", str(self.port)]
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                words, env=self.commands.environment, stdout=log, stderr=log, text=True, start_new_session=True
            )

    @property
    def output(self) -> str:
        """The printed text, over all starts."""
        return self.log.read_text()

    def wait_until(self, condition: Callable[[], Any], seconds: float = 600) -> Any:
        """Waits for a condition while the process runs, and returns its value."""
        deadline = time.monotonic() + seconds
        while True:
            with contextlib.suppress(OSError):
                if value := condition():
                    return value
            assert self.process is None or self.process.poll() is None, f"`towline up` ended:\n{self.output}"
            assert time.monotonic() < deadline, f"not within {seconds:.0f} s:\n{self.output}"
            time.sleep(0.2)

    def runs(self, flow: str) -> list[dict[str, Any]]:
        """The deployment's runs of a flow in Prefect, oldest first."""
        filters = {"deployments": {"name": {"any_": [MODEL]}}, "flows": {"name": {"any_": [flow]}}}
        return self.commands.query_prefect("flow_runs", **filters)[::-1]

    def states(self, flow: str) -> list[str]:
        """The states of a flow's runs, except runs that are still scheduled."""
        return sorted(run["state_name"] for run in self.runs(flow) if run["state_type"] != "SCHEDULED")

    def start_run(self, flow: str) -> str:
        """Starts a run of the deployment immediately; returns the id of the run."""
        deployment = self.call_prefect(f"deployments/name/{flow}/{MODEL}")
        state = {"state": {"type": "SCHEDULED"}}
        return str(self.call_prefect(f"deployments/{deployment['id']}/create_flow_run", state)["id"])

    def call_prefect(self, path: str, body: Any = None) -> Any:
        """Sends a GET request, or a POST request with a body; repeats it while the server is busy (status 503)."""
        server = servers.find_server(self.commands.settings, "prefect")
        assert server is not None
        content = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{server.url}/api/{path}", content, {"Content-Type": "application/json"})
        deadline = time.monotonic() + 120
        while True:
            try:
                with urllib.request.urlopen(request, timeout=30) as response:
                    return json.load(response)
            except urllib.error.HTTPError as error:
                if error.code != 503 or time.monotonic() > deadline:
                    raise
            time.sleep(0.5)

    def is_ready(self) -> bool:
        """Whether the service answers /readyz with 200."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/readyz", timeout=5) as response:
            return bool(response.status == 200)

    def kill_all(self) -> None:
        """Sends SIGKILL to the process and its servers, and waits until they have ended."""
        assert self.process is not None
        running = [server for kind in SERVER_KINDS if (server := servers.find_server(self.commands.settings, kind))]
        for group in (self.process.pid, *(server.pid for server in running)):
            os.killpg(group, signal.SIGKILL)
        self.process.wait()
        self.process = None
        self.wait_until(lambda: not any(is_running(server.pid, server.start_time) for server in running))

    def find_processes(self) -> list[str]:
        """The command lines of all processes on the store, including servers."""
        variable, lines = f"TOWLINE_STORE={self.commands.store}".encode(), []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and variable in (entry / "environ").read_bytes().split(b"\0"):
                    lines.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        return lines

    def stop(self) -> None:
        """Ends the process and the servers, whatever their state is."""
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        servers.stop(self.commands.settings)
