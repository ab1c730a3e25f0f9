"""The real application with a made-up model, as a pod's probes ask it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.serving import FakeKeys, FakeModel, ServiceClient, make_contract
from towline.config import Settings
from towline.serving.app import create
from towline.serving.model_reloader import Live
from towline.serving.options import Options


@pytest.fixture
def live(tmp_path: Path) -> Live:
    (tmp_path / "manifest.json").touch()
    live = Live(Options(name=str(tmp_path), settings=Settings.from_environment({"TOWLINE_STORE": str(tmp_path)})))
    live.model, live.ready = FakeModel(make_contract(), tmp_path), True
    return live


@pytest.fixture
def client(live: Live) -> Iterator[ServiceClient]:
    options = Options(name="", settings=Settings.from_environment({}))
    client = ServiceClient(create(options, live, FakeKeys({"key": frozenset({"predict"})}), None), "http://pod")
    yield client
    client.close()
