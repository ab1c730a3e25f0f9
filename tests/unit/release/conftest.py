"""A small trained run of each task, packaged once for the tests of this folder."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.releases import TrainedRun, make_house_table, train_run
from towline.release.packaging import Package


@pytest.fixture(scope="session")
def regression(tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    frame = make_house_table().drop(columns="sold")
    return train_run(tmp_path_factory.mktemp("regression"), frame, target="value", time="at")


@pytest.fixture(scope="session")
def binary(tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    frame = make_house_table().drop(columns=["value", "at"])
    return train_run(tmp_path_factory.mktemp("binary"), frame, "linear", target="sold")


@pytest.fixture(scope="session")
def packed(regression: TrainedRun) -> Package:
    return regression.package()


@pytest.fixture
def release(regression: TrainedRun, packed: Package, tmp_path: Path) -> Path:
    """A copy of the release to spoil."""
    original = regression.settings.store / packed.path
    return Path(shutil.copytree(original, tmp_path / original.name))


@pytest.fixture(scope="session")
def build() -> Callable[..., TrainedRun]:
    return train_run
