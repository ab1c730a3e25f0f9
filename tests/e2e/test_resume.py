"""Runs that are killed, interrupted or started twice: the same command completes them."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.checks import at_least_one
from tests.support.store_commands import MODEL, StoreCommands, wait_for_orphans, write_bike_config
from towline.operations import servers

NOTHING = {
    "second versions": [],
    "champions without a pass": [],
    "aliases that differ": [],
    "runs left open": [],
    "leftovers": [],
    "unreadable files": [],
}


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StoreCommands]:
    """A store whose path has spaces and accents, and one Prefect server for the tests of this file."""
    folder = tmp_path_factory.mktemp("spaces and áccents")
    commands = StoreCommands(folder / "the störe", write_bike_config(folder))
    try:
        yield commands
    finally:
        servers.stop(commands.settings)


def test_run_killed_at_each_step_completes_with_one_version(commands: StoreCommands) -> None:
    """Killed eight times, at the start and end of steps and between them: one version, no leftover files.

    Add a test here for each fault that benchmarks/kill.py finds, which kills at random times.
    """
    work, releases = commands.store / "work", commands.store / "releases"
    moments = [
        (commands.store / "servers" / "prefect.json").exists,
        "validate …",
        lambda: (commands.store / ".mlflow.db.new").exists() or (commands.store / "mlflow.db").exists(),
        "register …",
        lambda: any(releases.glob("*/.draft-*")),
        "smoke test …",
        lambda: any(row.event == "promoted" for row in commands.ledger.history(MODEL)),
        lambda: any(work.glob(".gone-*")),
    ]
    kills = sum(
        commands.kill_run_when(commands.log_gained(when) if isinstance(when, str) else when) for when in moments
    )
    code, out, err = commands.run("--json")
    assert code == 0, err
    assert kills >= 6
    outcome = json.loads(out)
    assert (outcome["version"], outcome["event"]) == (1, "promoted")
    assert commands.find_faults() == NOTHING
    states = {run["state_name"] for run in commands.query_prefect("flow_runs")}
    assert {"Crashed"} < states <= {"Completed", "Crashed", "Unchanged"}


def test_a_run_that_is_stopped_three_times_is_resumed_each_time(commands: StoreCommands) -> None:
    """Ctrl-C, a killed Prefect server and a killed process: completed steps have the state Cached.

    Each time all processes of the run end, and the output is a line or an error, without output of libraries. With
    --force, the four commands create one more version of an unchanged config.
    """
    if not commands.ledger.versions(MODEL):
        assert commands.run()[0] == 0
    before = len(commands.ledger.versions(MODEL))
    arguments = ("--force",)
    process = start_until(commands, "fit …", *arguments)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 130
    assert out == ""
    assert [line for line in err.splitlines() if line[0] not in "✓✗"] == [
        "interrupted; run the same command again: it resumes from the last completed step"
    ]
    assert wait_for_orphans(commands) == []

    process = start_until(commands, "evaluate …", *arguments)
    server = servers.find_server(commands.settings, "prefect")
    assert server
    os.killpg(server.pid, signal.SIGKILL)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 5
    lines = [text for text in err.splitlines() if text[0] not in "✓✗"]
    assert [text.split()[0] for text in lines] == ["error", "where:", "remedy:"]
    assert "the connection to the Prefect server was lost" in lines[0]

    assert commands.kill_run_when(commands.log_gained("plot …"), *arguments, group=False)
    assert wait_for_orphans(commands) == []
    code, out, err = commands.run(*arguments, "--json")
    assert code == 0, err
    assert "✓ load" in err
    assert "✓ plot" in err
    assert "cross-validate" not in err
    assert commands.count_task_states()["Cached"] == 11  # load is never cached, and plot was not complete
    assert not json.loads(out)["repeated"]
    assert len(commands.ledger.versions(MODEL)) == before + 1
    assert commands.find_faults() == NOTHING


def start_until(commands: StoreCommands, text: str, *arguments: str) -> "subprocess.Popen[str]":
    """Starts a run and returns its process as soon as a text is in its log."""
    has_gained, process = commands.log_gained(text), commands.start(*arguments)
    while not has_gained():
        assert process.poll() is None
        time.sleep(0.01)
    return process


def test_two_configs_of_one_model_and_a_second_run_of_one(commands: StoreCommands) -> None:
    """Each run promotes its version, or reports that the champion has changed and its version is evaluated again later.

    A second run of the first config during the first one ends with exit code 5.
    """
    both = [("--set", f"seed={seed}") for seed in (7, 8)]
    running = [start_until(commands, "validate …", *both[0]), commands.start(*both[1])]
    code, _, err = commands.run(*both[0])
    assert code == 5
    assert "under way in another process" in err
    for arguments, process in at_least_one(zip(both, running, strict=True)):
        _, err = process.communicate(timeout=600)
        assert process.returncode in (0, 4), err
        if process.returncode == 4:
            assert "the champion has changed meanwhile" in err
            assert commands.run(*arguments)[0] == 0
    assert commands.find_faults() == NOTHING


def test_server_record_of_another_process_is_ignored(commands: StoreCommands) -> None:
    """After a reboot the recorded pid may be that of another process: it is neither waited for nor ended."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, start_new_session=True)
    stale = commands.settings.model_copy(update={"store": commands.store / "stale"})
    record = {"kind": "prefect", "pid": process.pid, "start_time": "1", "url": "http://127.0.0.1:1"}
    Path(stale.store / "servers").mkdir(parents=True)
    (stale.store / "servers" / "prefect.json").write_text(json.dumps(record))
    try:
        assert servers.find_server(stale, "prefect") is None
        assert servers.stop(stale) == []
        assert process.poll() is None
    finally:
        process.communicate(b"\n")
