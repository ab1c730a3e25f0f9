"""A prediction log, and releases whose predictions it stores."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.prediction_log import FakeRelease, make_fake_release
from tests.support.prediction_log_fixtures import folder, log, release

__all__ = ["folder", "log", "release"]


@pytest.fixture
def releases(tmp_path: Path) -> Callable[..., FakeRelease]:
    def make(privacy: dict[str, Any] | None = None, classes: tuple[Any, ...] = (), version: int = 1) -> FakeRelease:
        return make_fake_release(tmp_path / f"release-{version}", privacy or {}, classes, version)

    return make
