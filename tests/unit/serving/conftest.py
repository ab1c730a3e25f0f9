from pathlib import Path

import pytest

from tests.shelf import Shelf, make_shelf


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    return make_shelf(tmp_path_factory.mktemp("shelf"))


@pytest.fixture
def shelf(made: Shelf, tmp_path: Path) -> Shelf:
    """A store of the test's own: versions 1 and 2 of a model, 1 is champion."""
    return made.copy(tmp_path / "store")
