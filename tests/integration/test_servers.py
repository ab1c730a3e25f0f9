"""The servers of stores on one machine."""

from pathlib import Path

import pytest

from tests.support.checks import at_least_one
from tests.support.paths import REPOSITORY
from towline.cli.status import read_links
from towline.config import Settings
from towline.operations import servers
from towline.processes import is_running


def test_servers_of_stores_started_together_have_different_ports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A port is reserved as soon as it is chosen, although the server listens on it only seconds later."""
    with servers._port(0)[1] as claim:  # a port that is probably free
        monkeypatch.setitem(servers.PORTS, "status", int(claim.getsockname().decode().partition(":")[2]))
    stores = [
        Settings.from_environment({"TOWLINE_STORE": str(tmp_path / name)}, cwd=REPOSITORY) for name in ("one", "two")
    ]
    try:
        started = [servers.start(store, "status") for store in stores]
        assert started[0].url == f"http://127.0.0.1:{servers.PORTS['status']}"
        assert started[1].url != started[0].url
        for store, server in at_least_one(zip(stores, started, strict=True)):
            assert servers.wait(store, server) == server
            assert is_running(server.pid, server.start_time)
    finally:
        for store in stores:
            servers.stop(store)
    port, claim = servers._port(servers.PORTS["status"])
    claim.close()
    assert port == servers.PORTS["status"]  # free again


def test_a_server_that_the_settings_name_is_linked_and_not_started(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store whose MLflow and Prefect run elsewhere starts neither; links to them hold no password."""
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setenv("TOWLINE_TRACKING_URI", f"sqlite:///{store}/mlflow.db")
    own = Settings.from_environment()
    assert set(servers.list_own_servers(own)) == {"prefect", "mlflow", "evidently", "status"}
    assert servers.find_named_server(own, "mlflow") == ""
    monkeypatch.setenv("TOWLINE_TRACKING_URI", "https://ann:hush@mlflow.example:5000/base/")
    monkeypatch.setenv("PREFECT_API_URL", "http://prefect:4200/api")
    settings = Settings.from_environment()
    assert servers.list_own_servers(settings) == ["evidently", "status"]
    links = read_links(settings, [])
    assert (links.mlflow, links.prefect) == ("https://mlflow.example:5000/base", "http://prefect:4200")
    monkeypatch.setenv("TOWLINE_TRACKING_URI", "")
    assert servers.list_own_servers(Settings.from_environment()) == ["evidently", "status"]


def test_the_database_of_mlflow_is_not_on_a_command_line(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every user of a machine can read the command lines of its processes."""
    monkeypatch.setenv("TOWLINE_TRACKING_URI", "postgresql://ann:hush@db/mlflow")
    command, environment = servers._command(Settings.from_environment(), "mlflow", 5000)
    assert "hush" not in " ".join(command)
    assert "postgresql://ann:hush@db/mlflow" in environment.values()
