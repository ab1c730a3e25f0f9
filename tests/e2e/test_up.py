"""The whole watch as one command: it trains, serves, is killed, makes up for what it missed, and ends in order."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from benchmarks.kill import MODEL, Line, write_config
from towline.cli import servers
from towline.monitoring import running
from towline.processes import lives

KINDS: tuple[servers.Kind, ...] = get_args(servers.Kind)


class Whole:
    """A `towline up` on a store; ``said`` is what it tells people."""

    def __init__(self, folder: Path) -> None:
        self.line = Line(folder / "store", write_config(folder, schedule={"timezone": "Europe/Berlin"}))
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
        """SIGKILL to all there is, servers too."""
        assert self.process is not None
        found = [server for kind in KINDS if (server := servers.find(self.line.settings, kind))]
        for group in (self.process.pid, *(server.pid for server in found)):
            os.killpg(group, signal.SIGKILL)
        self.process.wait()
        self.process = None

    def left(self) -> list[str]:
        """Processes on the store, servers too."""
        wanted, found = f"TOWLINE_STORE={self.line.store}".encode(), []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and wanted in (entry / "environ").read_bytes().split(b"\0"):
                    found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        return found


def _free() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def whole(tmp_path: Path) -> Iterator[Whole]:
    whole = Whole(tmp_path)
    try:
        yield whole
    finally:
        if whole.process is not None and whole.process.poll() is None:
            os.killpg(whole.process.pid, signal.SIGKILL)
            whole.process.wait()
        servers.stop(whole.line.settings)


def test_up_survives_what_may_come(whole: Whole) -> None:
    """Killed in its first training with all servers, then away for three nights: one training, one night, a service."""
    whole.start()
    whole.until(lambda: "Running" in whole.states("training"))
    whole.until(lambda: len(whole.runs("drift")) >= 3)
    whole.kill()
    whole.until(lambda: [one for one in whole.left() if "prefect server" not in one] == [], 30)

    server = servers.start(whole.line.settings, "prefect")
    servers.wait(whole.line.settings, server)
    for days, run in enumerate(whole.runs("drift")[:3], 1):
        then = (datetime.now(UTC) - timedelta(days=days)).isoformat()
        state = {"type": "SCHEDULED", "name": "Late", "state_details": {"scheduled_time": then}}
        whole.post(f"flow_runs/{run['id']}/set_state", {"state": state, "force": True})

    whole.start()
    whole.until(whole.answers)
    assert whole.states("training") == ["Completed", "Crashed"]
    assert [entry.version for entry in whole.line.ledger.versions(MODEL)] == [1]
    done = whole.until(lambda: len(found := whole.states("drift")) == 3 and "Running" not in found and found)
    assert done.count("Missed") == 2

    up = running.find(whole.line.settings)
    assert up is not None
    assert {part.name: part.state for part in up.parts} == {"schedules": "runs", f"service of {MODEL}": "runs"}
    code, _, err = whole.line.run(str(whole.line.config), "--port", str(whole.port), command="up")
    assert code == 2
    assert f"towline up runs already on this store, process {up.pid}" in err

    service = next(part for part in up.parts if part.url)
    os.kill(service.pid, signal.SIGKILL)
    whole.until(lambda: f"service of {MODEL}: ended (exit code -9, 1 in a row)" in whole.said)
    whole.until(whole.answers)

    edited = yaml.safe_load(whole.line.config.read_text()) | {"schedule": {"drift": "15 5 * * *", "timezone": "UTC"}}
    whole.line.config.write_text(yaml.safe_dump(edited))
    whole.until(lambda: {r["expected_start_time"][11:16] for r in _coming(whole.runs("drift"))} == {"05:15"})
    whole.line.config.write_text("name: [")
    whole.until(lambda: "the configs go on as they were" in whole.said)

    assert whole.process is not None
    whole.process.send_signal(signal.SIGTERM)
    assert whole.process.wait(timeout=90) == 0
    assert running.left(whole.line.settings) is None
    assert [kind for kind in KINDS if servers.find(whole.line.settings, kind)] == ["prefect"]  # it was there before
    assert [one for one in whole.left() if "prefect server" not in one] == []
    assert not lives(up.pid, up.born)


def _coming(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [run for run in runs if run["state_type"] == "SCHEDULED"]
