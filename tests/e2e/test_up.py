"""The whole watch as one command: it trains, serves, is killed, makes up for what it missed, and ends in order."""

import os
import signal
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.kill import MODEL
from tests.whole import KINDS, Whole
from towline.operations import servers, up_state
from towline.processes import is_running


@pytest.fixture
def whole(tmp_path: Path) -> Iterator[Whole]:
    whole = Whole(tmp_path, schedule={"timezone": "Europe/Berlin"})
    try:
        yield whole
    finally:
        whole.end()


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

    up = up_state.find_running(whole.line.settings)
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
    assert up_state.read(whole.line.settings) is None
    assert [kind for kind in KINDS if servers.find(whole.line.settings, kind)] == ["prefect"]  # it was there before
    assert [one for one in whole.left() if "prefect server" not in one] == []
    assert not is_running(up.pid, up.start_time)


def _coming(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [run for run in runs if run["state_type"] == "SCHEDULED"]


def test_what_is_killed_alone_takes_nothing_along_and_leaves_nothing(whole: Whole) -> None:
    """Without its scheduler a training ends, and the next one runs it again; without `up` all it started ends."""
    whole.start()
    whole.until(lambda: "Running" in whole.states("training"))
    up = up_state.find_running(whole.line.settings)
    assert up is not None
    os.kill(next(part.pid for part in up.parts if part.name == "schedules"), signal.SIGKILL)
    whole.until(whole.answers)
    assert whole.states("training") == ["Completed", "Crashed"]
    assert "schedules: ended (exit code -9, 1 in a row)" in whole.said

    assert whole.process is not None
    whole.process.kill()
    whole.process.wait()
    whole.process = None
    whole.until(lambda: not [one for one in whole.left() if " serve " in one or "flows.deployments" in one], 60)
    whole.start()
    whole.until(whole.answers)
    assert whole.process.poll() is None
    whole.process.send_signal(signal.SIGTERM)
    assert whole.process.wait(timeout=90) == 0
    assert whole.left() == []  # the servers too: an `up` before had started them
