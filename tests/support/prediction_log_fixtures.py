"""Fixtures: a prediction log and a release whose predictions it stores."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.prediction_log import PRIVACY, FakeRelease, make_fake_release
from towline.prediction_log.writer import PredictionLog


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "predictions" / "demo"


@pytest.fixture
def log(folder: Path) -> Iterator[PredictionLog]:
    log = PredictionLog(folder, "w0", convert=False)
    yield log
    log.close()


@pytest.fixture
def release(tmp_path: Path) -> FakeRelease:
    return make_fake_release(tmp_path / "release", PRIVACY)
