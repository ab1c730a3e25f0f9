"""Runs that are killed, interrupted or doubled: the same command again ends as if nothing had been."""

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


def test_a_run_killed_at_each_step_ends_as_one_that_was_not(commands: StoreCommands) -> None:
    """Killed eight times, at the begin and the end of its steps and between them: one version, nothing left over.

    A fault that benchmarks/kill.py finds, which kills at moments nobody chose, belongs here.
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


def test_what_was_finished_is_skipped(commands: StoreCommands) -> None:
    """Killed alone, as a machine short of memory does, its helpers end by themselves; finished steps are Cached."""
    words = ("--set", "seed=2")
    assert commands.kill_run_when(commands.log_gained("plot …"), *words, group=False)
    assert wait_for_orphans(commands) == []
    code, _, err = commands.run(*words)
    assert code == 0, err
    assert "✓ load" in err
    assert "✓ plot" in err
    assert "cross-validate" not in err
    assert commands.count_task_states()["Cached"] == 9  # load is never, and plot was not done
    assert commands.find_faults() == NOTHING


@pytest.mark.slow
def test_a_forced_run_that_is_killed_is_resumed_not_begun_anew(commands: StoreCommands) -> None:
    """--force makes one more version; killed and given again it goes on with that one."""
    if not commands.ledger.versions(MODEL):
        assert commands.run()[0] == 0
    before = len(commands.ledger.versions(MODEL))
    words = ("--force",)
    assert commands.kill_run_when(commands.log_gained("package …"), *words)
    code, out, err = commands.run(*words, "--json")
    assert code == 0, err
    assert not json.loads(out)["repeated"]
    assert len(commands.ledger.versions(MODEL)) == before + 1
    assert commands.find_faults() == NOTHING


def test_an_interrupt_is_one_line_and_the_run_goes_on_later(commands: StoreCommands) -> None:
    """Ctrl-C ends every process of the run with exit code 130."""
    words = ("--set", "seed=5")
    found, process = commands.log_gained("fit …"), commands.start(*words)
    while not found():
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 130
    assert out == ""
    assert [told for told in err.splitlines() if told[0] not in "✓✗"] == [
        "interrupted; run the same command again: it resumes from the last completed step"
    ]
    assert wait_for_orphans(commands) == []
    assert commands.run(*words)[0] == 0
    assert commands.find_faults() == NOTHING


def test_of_two_identical_runs_the_second_says_so(commands: StoreCommands) -> None:
    """The first goes on undisturbed; the second ends with exit code 5."""
    words = ("--set", "seed=6")
    found, first = commands.log_gained("validate …"), commands.start(*words)
    while not found():
        assert first.poll() is None
        time.sleep(0.01)
    code, _, err = commands.run(*words)
    _, told = first.communicate(timeout=600)
    assert first.returncode == 0, told
    assert code == 5
    assert "under way in another process" in err
    assert commands.find_faults() == NOTHING


@pytest.mark.slow
def test_two_configs_of_one_model_race_to_promote(commands: StoreCommands) -> None:
    """Each wins, or is told that the other was quicker and is judged anew when run again."""
    both = [("--set", f"seed={seed}") for seed in (7, 8)]
    running = [commands.start(*words) for words in both]
    for words, process in at_least_one(zip(both, running, strict=True)):
        _, err = process.communicate(timeout=600)
        assert process.returncode in (0, 4), err
        if process.returncode == 4:
            assert "the champion has changed meanwhile" in err
            assert commands.run(*words)[0] == 0
    assert commands.find_faults() == NOTHING


def test_a_server_file_that_names_another_process_is_not_believed(commands: StoreCommands) -> None:
    """After a reboot its pid may be anyone's: it is neither waited for nor ended."""
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, start_new_session=True)
    stale = commands.settings.model_copy(update={"store": commands.store / "stale"})
    told = {"kind": "prefect", "pid": other.pid, "start_time": "1", "url": "http://127.0.0.1:1"}
    Path(stale.store / "servers").mkdir(parents=True)
    (stale.store / "servers" / "prefect.json").write_text(json.dumps(told))
    try:
        assert servers.find(stale, "prefect") is None
        assert servers.stop(stale) == []
        assert other.poll() is None
    finally:
        other.communicate(b"\n")


@pytest.mark.slow
def test_a_prefect_server_that_dies_is_named_and_the_next_run_starts_another(commands: StoreCommands) -> None:
    """One error with exit code 5 and no noise of libraries; the same command again goes on."""
    words = ("--set", "seed=9")
    found, process = commands.log_gained("fit …"), commands.start(*words)
    while not found():
        assert process.poll() is None
        time.sleep(0.01)
    server = servers.find(commands.settings, "prefect")
    assert server
    os.killpg(server.pid, signal.SIGKILL)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 5
    told = [text for text in err.splitlines() if text[0] not in "✓✗"]
    assert [text.split()[0] for text in told] == ["error", "where:", "remedy:"]
    assert "the Prefect server went away" in told[0]
    assert commands.run(*words)[0] == 0
    assert commands.find_faults() == NOTHING
