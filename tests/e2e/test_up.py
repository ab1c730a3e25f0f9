"""`towline up`: it trains, serves, is killed, catches up on missed runs, and shuts down in order."""

import os
import re
import signal
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.store_commands import MODEL
from tests.support.up_process import SERVER_KINDS, UpProcess
from towline.operations import servers, up_state
from towline.processes import is_running


@pytest.fixture
def up(tmp_path: Path) -> Iterator[UpProcess]:
    up = UpProcess(tmp_path, schedule={"timezone": "Europe/Berlin"})
    try:
        yield up
    finally:
        up.stop()


def test_up_catches_up_after_a_kill_and_three_missed_windows(up: UpProcess) -> None:
    """Killed in its first training, with all servers, for three windows: then one training and one monitoring run."""
    up.start()
    up.wait_until(lambda: "Running" in up.states("training"))
    up.wait_until(lambda: len(up.runs("drift")) >= 3)
    up.kill_all()
    up.wait_until(lambda: [command for command in up.find_processes() if "prefect server" not in command] == [])

    server = servers.start(up.commands.settings, "prefect")
    servers.wait(up.commands.settings, server)
    for days, run in enumerate(up.runs("drift")[:3], 1):
        then = (datetime.now(UTC) - timedelta(days=days)).isoformat()
        state = {"type": "SCHEDULED", "name": "Late", "state_details": {"scheduled_time": then}}
        up.call_prefect(f"flow_runs/{run['id']}/set_state", {"state": state, "force": True})

    up.start()
    up.wait_until(up.is_ready)
    # the service starts before the run has ended
    up.wait_until(lambda: up.states("training") == ["Completed", "Crashed"])
    assert [entry.version for entry in up.commands.ledger.versions(MODEL)] == [1]
    states = up.wait_until(lambda: len(states := up.states("drift")) == 3 and "Running" not in states and states)
    assert states.count("Missed") == 2

    record = up_state.find_running(up.commands.settings)
    assert record is not None
    assert {process.name: process.status for process in record.processes} == {
        "schedules": "runs",
        f"service of {MODEL}": "runs",
    }
    code, _, err = up.commands.run(str(up.commands.config), "--port", str(up.port), command="up")
    assert code == 2
    assert f"towline up already runs on this store, process {record.pid}" in err

    service = next(process for process in record.processes if process.url)
    os.kill(service.pid, signal.SIGKILL)
    up.wait_until(lambda: f"service of {MODEL}: ended (exit code -9, 1 in a row)" in up.output)
    up.wait_until(up.is_ready)

    config = up.commands.config
    edited = yaml.safe_load(config.read_text()) | {"schedule": {"drift": "15 5 * * *", "timezone": "UTC"}}
    config.write_text(yaml.safe_dump(edited))
    up.wait_until(lambda: {r["expected_start_time"][11:16] for r in _coming(up.runs("drift"))} == {"05:15"})
    config.write_text("name: [")
    up.wait_until(lambda: "the edited configs are not used" in up.output)

    assert up.process is not None
    up.process.send_signal(signal.SIGTERM)
    assert up.process.wait(timeout=300) == 0
    assert up_state.read(up.commands.settings) is None
    servers_left = [kind for kind in SERVER_KINDS if servers.find_server(up.commands.settings, kind)]
    assert servers_left == ["prefect"]  # it ran before `up` was started
    assert [command for command in up.find_processes() if "prefect server" not in command] == []
    assert not is_running(record.pid, record.start_time)


def _coming(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [run for run in runs if run["state_type"] == "SCHEDULED"]


def test_up_after_one_of_its_processes_is_killed(up: UpProcess) -> None:
    """If its scheduler is killed, the training is run again; if `up` is killed, all its processes end."""
    up.start()
    up.wait_until(lambda: "Running" in up.states("training"))
    record = up_state.find_running(up.commands.settings)
    assert record is not None
    os.kill(next(process.pid for process in record.processes if process.name == "schedules"), signal.SIGKILL)
    up.wait_until(up.is_ready)
    # the service starts before the run has ended
    up.wait_until(lambda: up.states("training") == ["Completed", "Crashed"])
    assert "schedules: ended (exit code -9, 1 in a row)" in up.output

    assert up.process is not None
    up.process.kill()
    up.process.wait()
    up.process = None
    up.wait_until(lambda: not re.search(r" serve |flows\.deployments", "\n".join(up.find_processes())))
    up.start()
    up.wait_until(up.is_ready)
    assert up.process.poll() is None
    up.process.send_signal(signal.SIGTERM)
    assert up.process.wait(timeout=300) == 0
    assert up.find_processes() == []  # the servers, too, which an earlier `up` has started
