"""`towline up`: checks before the start, the systemd unit, and restarts of its processes."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.support.commands import CommandResult
from towline import files
from towline.config import Settings
from towline.operations import up_state
from towline.operations.supervisor import ManagedProcess
from towline.processes import child_pids, is_running, process_start_time


@pytest.fixture
def config(tmp_path: Path) -> Path:
    raw = {"name": "bikes", "data": {"source": "bikes.csv", "target": "rentals"}}
    (tmp_path / "bikes.yaml").write_text(yaml.safe_dump(raw))
    return tmp_path / "bikes.yaml"


def test_two_configs_of_one_model_are_refused(command: Callable[..., CommandResult], config: Path) -> None:
    """Otherwise it would be undefined which config a run uses."""
    result = command("up", config, config)
    assert result.code == 2
    assert "two configs are called 'bikes'" in result.err


def test_a_second_up_on_the_same_store_is_refused(
    command: Callable[..., CommandResult], store: Path, config: Path
) -> None:
    """The error says that towline up already runs on the store; no server is started."""
    with files.exclusive_lock(store / "monitoring" / "up.lock"):
        result = command("up", config)
    assert result.code == 2
    assert "towline up already runs on this store" in result.err
    assert not (store / "servers").exists()


def test_a_port_in_use_is_reported_before_any_process_starts(
    command: Callable[..., CommandResult], store: Path, config: Path
) -> None:
    """Neither a server nor the state file of `towline up` is left."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        result = command("up", config, "--port", port)
    assert result.code == 2
    assert f"port {port} is taken" in result.err
    assert not (store / "servers").exists()
    assert up_state.read(Settings.from_environment()) is None


def test_ports_that_do_not_exist_are_refused(command: Callable[..., CommandResult], config: Path) -> None:
    """The second of two services would need port 65536."""
    other = config.with_name("other.yaml")
    other.write_text(config.read_text().replace("name: bikes", "name: other"))
    result = command("up", config, other, "--port", 65535)
    assert result.code == 2
    assert "choose 65534 or a lower one" in result.err


def test_the_unit_file_runs_the_same_command(command: Callable[..., CommandResult], store: Path, config: Path) -> None:
    """It has absolute paths and the environment variables of the shell that wrote it."""
    unit = command("up", config, "--port", "9000", "--systemd").out
    assert f"ExecStart={Path(sys.executable).with_name('towline')} up {config} --port 9000\n" in unit
    assert f'Environment="TOWLINE_STORE={store}"' in unit


def test_the_unit_file_holds_no_password(
    command: Callable[..., CommandResult], store: Path, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The unit reads variables with passwords from a file; a note names the file and the variables."""
    monkeypatch.setenv("PREFECT_API_URL", "http://prefect:4200/api")
    monkeypatch.setenv("TOWLINE_API_KEY", "hidden-key")
    monkeypatch.setenv("TOWLINE_LEDGER_URL", "postgresql://towline:hidden-word@127.0.0.1:9/ledger")
    result = command("up", config, "--systemd")
    assert "hidden" not in result.out + result.err
    assert 'Environment="PREFECT_API_URL=http://prefect:4200/api"' in result.out
    file = Settings.from_environment().project / "towline.env"
    assert f"\nEnvironmentFile={file}\n" in result.out
    assert f"to {file} (mode 600): TOWLINE_LEDGER_URL, TOWLINE_API_KEY" in result.err


def test_a_state_file_of_a_killed_process_does_not_count_as_running(store: Path) -> None:
    """After a kill the state file remains, but no process has its pid and start time."""
    settings = Settings.from_environment()
    state = up_state.UpState(
        pid=os.getpid(), start_time="1", since="2026-01-01T00:00:00Z", configs=(), models=("bikes",)
    )
    up_state.write(settings, state)
    assert up_state.find_running(settings) is None
    up_state.write(settings, state.model_copy(update={"start_time": process_start_time(os.getpid())}))
    running = up_state.find_running(settings)
    assert running is not None
    assert running.models == ("bikes",)


def test_restarts_back_off_exponentially(store: Path, tmp_path: Path) -> None:
    """A failing process is restarted after 1, 2 and 4 seconds; its record holds the last line of its log."""
    store.mkdir()
    child = ManagedProcess("broken", ["no_such_module"], tmp_path / "broken.log")
    waits = []
    for _ in range(3):
        child.start(Settings.from_environment(), dict(os.environ))
        assert child.process is not None
        child.process.wait(timeout=60)
        assert child.poll() == 1
        assert child.poll() is None
        assert not child.is_due()
        started = child.started
        while not child.is_due():
            child.started -= 0.125
        waits.append(round(started - child.started))
    assert waits == [1, 2, 4]
    record = child.record()
    assert (record.status, record.failures, record.pid) == ("restarts", 3, 0)
    assert "no_such_module" in record.error


def test_a_process_with_a_parent_death_signal_ends_with_its_parent() -> None:
    """The parent may end by SIGKILL."""
    sleeper = "import time; print('started', flush=True); time.sleep(60)"
    code = f"""
import os, subprocess, sys
subprocess.Popen([sys.executable, "-m", "towline.processes", str(os.getpid()), "timeit", "-n1", "-r1", {sleeper!r}])
input()
"""
    parent = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert parent.stdout
    assert parent.stdout.readline() == b"started\n"
    (child,) = (pid for pid in child_pids(parent.pid) if b"timeit" in _command_line(pid))
    start_time = process_start_time(child)
    parent.send_signal(signal.SIGKILL)
    parent.communicate()
    deadline = time.monotonic() + 60
    while is_running(child, start_time):
        assert time.monotonic() < deadline, "the process outlived its parent"
        time.sleep(0.05)


def _command_line(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()
