"""A small trained run of each task, packaged once for the tests of this folder."""

from collections.abc import Callable

import pytest

from tests.support.release_fixtures import binary, packed, regression, release
from tests.support.releases import TrainedRun, train_run

__all__ = ["binary", "packed", "regression", "release"]


@pytest.fixture(scope="session")
def build() -> Callable[..., TrainedRun]:
    return train_run
