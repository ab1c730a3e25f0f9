"""What `towline doctor` reports of a setup; its remedies work."""

import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.commands import CommandResult
from towline import extras
from towline.project import doctor, template

Command = Callable[..., CommandResult]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command) -> Path:
    """An empty folder without a store."""
    monkeypatch.delenv("TOWLINE_PROJECT")
    monkeypatch.delenv("TOWLINE_STORE")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def states(result: CommandResult) -> dict[str, str]:
    return {check["name"]: check["state"] for check in result.json}


def test_a_new_project_is_in_order(command: Command, folder: Path) -> None:
    """After `towline init` the exit code is 0, and no check is an error."""
    template.write_project(folder, "demo", "demo.yaml")
    result = command("doctor", "--json")
    assert result.code == 0, result.out
    assert states(result)["project"] == "ok"
    assert "error" not in states(result).values()


def test_a_folder_without_a_project_names_the_command_that_makes_one(command: Command) -> None:
    """The remedy is a command."""
    (check,) = [check for check in command("doctor", "--json").json if check["name"] == "project"]
    assert check["state"] == "warning"
    assert "towline init" in check["remedy"]


def test_flows_that_are_older_than_the_library(command: Command, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A flow that was written by an older version is named, and its remedy repairs it."""
    template.write_project(folder, "demo", "demo.yaml")
    newer = {
        path: f"{text}# newer\n" if path == "flows/drift.py" else text
        for path, text in template.read_template("demo", "demo.yaml")
    }
    monkeypatch.setattr(template, "read_template", lambda _name, _config: iter(newer.items()))
    (check,) = [check for check in command("doctor", "--json").json if check["name"] == "project"]
    assert check["state"] == "warning"
    assert "flows/drift.py" in check["detail"]
    assert command(*check["remedy"].split()[1:]).code == 0
    assert states(command("doctor", "--json"))["project"] == "ok"


def test_a_missing_extra_names_its_installation(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that is not installed is a warning with the command that installs it."""
    real = extras.find_spec
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name == "mlflow" else real(name))
    (check,) = [check for check in command("doctor", "--json").json if check["name"] == "extra pipeline"]
    assert check["detail"] == "missing: mlflow"
    assert check["remedy"] == "pip install 'towline[pipeline]'"


def test_an_extra_for_one_platform_is_not_required(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLServer needs a separate environment with other versions, so its absence is no warning."""
    real = extras.find_spec
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name == "mlserver" else real(name))
    checks = {check["name"]: check for check in command("doctor", "--json").json}
    assert checks["extra mlserver"] | {"name": ""} == {
        "name": "", "state": "ok", "detail": "missing: mlserver", "remedy": "",
    }  # fmt: skip
    assert checks["versions"]["state"] == "ok"


def test_a_full_disk_is_an_error(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """With less than a gigabyte the exit code is 2."""
    usage = doctor.shutil._ntuple_diskusage(100, 100, 2**20)  # type: ignore[attr-defined]
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _path: usage)
    result = command("doctor")
    assert result.code == 2
    assert "free disk space" in result.out


def test_a_server_that_does_not_answer(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is down is named with its setting, without its password."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    monkeypatch.setattr(doctor, "send_request", _refuse)
    for name, variable in (("mlflow", "TOWLINE_TRACKING_URI"), ("prefect", "PREFECT_API_URL")):
        monkeypatch.setenv(variable, f"http://ann:hush@127.0.0.1:{port}")
        (check,) = [check for check in command("doctor", "--json").json if check["name"] == name]
        assert (check["state"], variable in check["remedy"]) == ("error", True)
        assert f"http://ann:***@127.0.0.1:{port} does not answer" in check["detail"]


def _refuse(*_: object) -> None:
    raise doctor.HttpRequestError("connection refused")


def test_a_clock_that_was_set_back(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that differs from that of the store's disk is an error."""
    now = doctor.time.time()
    monkeypatch.setattr(doctor.time, "time", lambda: now - 3600)
    (check,) = [check for check in command("doctor", "--json").json if check["name"] == "clock"]
    assert check["state"] == "error"
    assert "synchronize" in check["remedy"]
