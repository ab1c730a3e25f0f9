"""The servers of stores on one machine."""

from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from towline.config import Settings
from towline.operations import servers
from towline.processes import is_running


def test_stores_started_together_have_ports_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A port is taken from the moment on that it is given, though its server takes seconds until it listens."""
    with servers._port(0)[1] as claim:  # a port that is free in all likelihood
        monkeypatch.setitem(servers.PORTS, "status", int(claim.getsockname().decode().partition(":")[2]))
    stores = [
        Settings.from_environment({"TOWLINE_STORE": str(tmp_path / name)}, cwd=REPOSITORY) for name in ("one", "two")
    ]
    try:
        started = [servers.start(store, "status") for store in stores]
        assert started[0].url == f"http://127.0.0.1:{servers.PORTS['status']}"
        assert started[1].url != started[0].url
        for store, server in zip(stores, started, strict=True):
            assert servers.wait(store, server) == server
            assert is_running(server.pid, server.start_time)
    finally:
        for store in stores:
            servers.stop(store)
    port, claim = servers._port(servers.PORTS["status"])
    claim.close()
    assert port == servers.PORTS["status"]  # free again
