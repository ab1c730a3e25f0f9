"""The real application with a fake model, for the probes of a pod."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.serving import FakeKeys, FakeModel, ServiceClient, make_contract
from towline.config import Settings
from towline.serving.app import create_app
from towline.serving.model_reloader import ModelReloader
from towline.serving.options import ServeOptions


@pytest.fixture
def reloader(tmp_path: Path) -> ModelReloader:
    (tmp_path / "manifest.json").touch()
    reloader = ModelReloader(
        ServeOptions(name=str(tmp_path), settings=Settings.from_environment({"TOWLINE_STORE": str(tmp_path)}))
    )
    reloader.model, reloader.ready = FakeModel(make_contract(), tmp_path), True
    return reloader


@pytest.fixture
def client(reloader: ModelReloader) -> Iterator[ServiceClient]:
    options = ServeOptions(name="", settings=Settings.from_environment({}))
    client = ServiceClient(create_app(options, reloader, FakeKeys({"key": frozenset({"predict"})}), None), "http://pod")
    yield client
    client.close()
