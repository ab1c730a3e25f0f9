"""Fixtures: a small trained run of each task, packaged once for the tests of a folder."""

import shutil
from pathlib import Path

import pytest

from tests.support.releases import TrainedRun, train_binary, train_regression
from towline.release.packaging import Release


@pytest.fixture(scope="session")
def regression(tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    return train_regression(tmp_path_factory.mktemp("regression"))


@pytest.fixture(scope="session")
def binary(tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    return train_binary(tmp_path_factory.mktemp("binary"))


@pytest.fixture(scope="session")
def packed(regression: TrainedRun) -> Release:
    return regression.package()


@pytest.fixture
def release(regression: TrainedRun, packed: Release, tmp_path: Path) -> Path:
    """A copy of the release, which a test may damage."""
    original = regression.settings.store / packed.path
    return Path(shutil.copytree(original, tmp_path / original.name))
