"""A `towline up` as a user runs it, in a process of its own."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

from benchmarks.kill import MODEL, Line, write_config
from towline.operations import servers
from towline.processes import is_running

KINDS: tuple[servers.Kind, ...] = get_args(servers.Kind)


class Whole:
    """A `towline up` on a store; ``said`` is what it tells people."""

    def __init__(self, folder: Path, **config: Any) -> None:
        self.line = Line(folder / "store", write_config(folder, **config))
        self.log = folder / "up.log"
        self.port = _free()
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [str(Path(sys.executable).with_name("towline")), "up", str(self.line.config), "--port", str(self.port)],
                env=self.line.environment, stdout=log, stderr=log, text=True, start_new_session=True,
            )  # fmt: skip

    @property
    def said(self) -> str:
        return self.log.read_text()

    def until(self, holds: Callable[[], Any], seconds: float = 240) -> Any:
        deadline = time.monotonic() + seconds
        while True:
            with contextlib.suppress(OSError):
                if found := holds():
                    return found
            assert self.process is None or self.process.poll() is None, f"it ended:\n{self.said}"
            assert time.monotonic() < deadline, f"it did not come about:\n{self.said}"
            time.sleep(0.2)

    def runs(self, flow: str) -> list[dict[str, Any]]:
        """Of the deployment, oldest first."""
        named = {"deployments": {"name": {"any_": [MODEL]}}, "flows": {"name": {"any_": [flow]}}}
        return self.line.api("flow_runs", **named)[::-1]

    def states(self, flow: str) -> list[str]:
        """Of runs that began or were called off."""
        return sorted(run["state_name"] for run in self.runs(flow) if run["state_type"] != "SCHEDULED")

    def post(self, path: str, body: Any) -> Any:
        server = servers.find(self.line.settings, "prefect")
        assert server is not None
        content, head = json.dumps(body).encode(), {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{server.url}/api/{path}", content, head)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)

    def answers(self) -> bool:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/readyz", timeout=5) as answer:
            return bool(answer.status == 200)

    def kill(self) -> None:
        """SIGKILL to all there is, servers too; returns when they have ended."""
        assert self.process is not None
        found = [server for kind in KINDS if (server := servers.find(self.line.settings, kind))]
        for group in (self.process.pid, *(server.pid for server in found)):
            os.killpg(group, signal.SIGKILL)
        self.process.wait()
        self.process = None
        self.until(lambda: not any(is_running(server.pid, server.start_time) for server in found), 30)

    def left(self) -> list[str]:
        """Processes on the store, servers too."""
        wanted, found = f"TOWLINE_STORE={self.line.store}".encode(), []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and wanted in (entry / "environ").read_bytes().split(b"\0"):
                    found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        return found

    def end(self) -> None:
        """All of it, however far it came."""
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        servers.stop(self.line.settings)


def _free() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
