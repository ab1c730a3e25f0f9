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

from benchmarks.kill import MODEL, Line, wait_for_orphans, write_config
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
def line(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Line]:
    """A store whose path has spaces and accents, and one Prefect server for the tests of this file."""
    folder = tmp_path_factory.mktemp("spaces and áccents")
    line = Line(folder / "the störe", write_config(folder))
    try:
        yield line
    finally:
        servers.stop(line.settings)


def test_a_run_killed_at_each_step_ends_as_one_that_was_not(line: Line) -> None:
    """Killed eight times, at the begin and the end of its steps and between them: one version, nothing left over.

    A fault that benchmarks/kill.py finds, which kills at moments nobody chose, belongs here.
    """
    work, releases = line.store / "work", line.store / "releases"
    moments = [
        (line.store / "servers" / "prefect.json").exists,
        "validate …",
        lambda: (line.store / ".mlflow.db.new").exists() or (line.store / "mlflow.db").exists(),
        "register …",
        lambda: any(releases.glob("*/.draft-*")),
        "smoke test …",
        lambda: any(row.event == "promoted" for row in line.ledger.history(MODEL)),
        lambda: any(work.glob(".gone-*")),
    ]
    kills = sum(line.kill(line.told(when) if isinstance(when, str) else when) for when in moments)
    code, out, err = line.run("--json")
    assert code == 0, err
    assert kills >= 6
    outcome = json.loads(out)
    assert (outcome["version"], outcome["event"]) == (1, "promoted")
    assert line.faults() == NOTHING
    states = {run["state_name"] for run in line.api("flow_runs")}
    assert {"Crashed"} < states <= {"Completed", "Crashed", "Unchanged"}


def test_what_was_finished_is_skipped(line: Line) -> None:
    """Killed alone, as a machine short of memory does, its helpers end by themselves; finished steps are Cached."""
    words = ("--set", "seed=2")
    assert line.kill(line.told("plot …"), *words, group=False)
    assert wait_for_orphans(line) == []
    code, _, err = line.run(*words)
    assert code == 0, err
    assert "✓ load" in err
    assert "✓ plot" in err
    assert "cross-validate" not in err
    assert line.tasks()["Cached"] == 9  # load is never, and plot was not done
    assert line.faults() == NOTHING


@pytest.mark.slow
def test_a_forced_run_that_is_killed_is_resumed_not_begun_anew(line: Line) -> None:
    """--force makes one more version; killed and given again it goes on with that one."""
    if not line.ledger.versions(MODEL):
        assert line.run()[0] == 0
    before = len(line.ledger.versions(MODEL))
    words = ("--force",)
    assert line.kill(line.told("package …"), *words)
    code, out, err = line.run(*words, "--json")
    assert code == 0, err
    assert not json.loads(out)["repeated"]
    assert len(line.ledger.versions(MODEL)) == before + 1
    assert line.faults() == NOTHING


def test_an_interrupt_is_one_line_and_the_run_goes_on_later(line: Line) -> None:
    """Ctrl-C ends every process of the run with exit code 130."""
    words = ("--set", "seed=5")
    found, process = line.told("fit …"), line.start(*words)
    while not found():
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out == ""
    assert [told for told in err.splitlines() if told[0] not in "✓✗"] == [
        "interrupted; run the same command again: it resumes from the last completed step"
    ]
    assert wait_for_orphans(line) == []
    assert line.run(*words)[0] == 0
    assert line.faults() == NOTHING


def test_of_two_identical_runs_the_second_says_so(line: Line) -> None:
    """The first goes on undisturbed; the second ends with exit code 5."""
    words = ("--set", "seed=6")
    found, first = line.told("validate …"), line.start(*words)
    while not found():
        assert first.poll() is None
        time.sleep(0.01)
    code, _, err = line.run(*words)
    _, told = first.communicate(timeout=300)
    assert first.returncode == 0, told
    assert code == 5
    assert "under way in another process" in err
    assert line.faults() == NOTHING


@pytest.mark.slow
def test_two_configs_of_one_model_race_to_promote(line: Line) -> None:
    """Each wins, or is told that the other was quicker and is judged anew when run again."""
    both = [("--set", f"seed={seed}") for seed in (7, 8)]
    running = [line.start(*words) for words in both]
    for words, process in zip(both, running, strict=True):
        _, err = process.communicate(timeout=300)
        assert process.returncode in (0, 4), err
        if process.returncode == 4:
            assert "the champion has changed meanwhile" in err
            assert line.run(*words)[0] == 0
    assert line.faults() == NOTHING


def test_a_server_file_that_names_another_process_is_not_believed(line: Line) -> None:
    """After a reboot its pid may be anyone's: it is neither waited for nor ended."""
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, start_new_session=True)
    stale = line.settings.model_copy(update={"store": line.store / "stale"})
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
def test_a_prefect_server_that_dies_is_named_and_the_next_run_starts_another(line: Line) -> None:
    """One error with exit code 5 and no noise of libraries; the same command again goes on."""
    words = ("--set", "seed=9")
    found, process = line.told("fit …"), line.start(*words)
    while not found():
        assert process.poll() is None
        time.sleep(0.01)
    server = servers.find(line.settings, "prefect")
    assert server
    os.killpg(server.pid, signal.SIGKILL)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 5
    told = [text for text in err.splitlines() if text[0] not in "✓✗"]
    assert [text.split()[0] for text in told] == ["error", "where:", "remedy:"]
    assert "the Prefect server went away" in told[0]
    assert line.run(*words)[0] == 0
    assert line.faults() == NOTHING
