"""Fixtures of all tests: servers for the session, a store or database for each test, and the commands.

A test gets the marker and the time limit of its folder; the last line of a run names the tests that were left out.
"""

import gc
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.commands import CommandResult, run_command
from tests.support.databases import copy_databases
from tests.support.paths import REPOSITORY
from tests.support.postgres import find_postgres, run_postgres
from tests.support.prefect_server import run_prefect
from tests.support.report import LeftOut, folder_of
from towline import helper_process
from towline.config import Settings
from towline.operations import servers

if TYPE_CHECKING:
    from tests.support.sample_store import SampleStore

# before Prefect is imported by any test
os.environ.update(servers.TELEMETRY_OFF)
for name in [name for name in os.environ if name.startswith("TOWLINE_")]:
    del os.environ[name]


# seconds for one test with its fixtures; @pytest.mark.timeout sets another limit
TIMEOUTS = {"unit": 120, "integration": 300, "flows": 600, "e2e": 1800, "docker": 2400}


def pytest_configure(config: pytest.Config) -> None:
    gc.set_threshold(50_000, 20, 20)  # imports and collection create many objects that are not freed
    config.pluginmanager.register(LeftOut(config))
    memory = Path("/dev/shm")
    if os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 4 * 2**30:  # towline syncs each file it writes
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(memory))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        folder = folder_of(item)
        if folder not in TIMEOUTS:  # tests/test_architecture.py
            continue
        item.add_marker(folder)
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(TIMEOUTS[folder]))


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Bytes get the argument's name: compressed files contain their time, but all workers must collect the same ids."""
    return argname if isinstance(val, bytes) else None


@pytest.fixture(scope="session")
def prefect_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the database of the session's Prefect server."""
    return tmp_path_factory.mktemp("prefect") / "store"


@pytest.fixture(scope="session")
def prefect(prefect_store: Path) -> Iterator[str]:
    """The address of the Prefect server for all flows of the session."""
    with run_prefect(prefect_store) as url:
        yield url


@pytest.fixture(scope="session")
def cluster() -> Iterator[str]:
    """The address of a PostgreSQL server: that of LEDGER_TEST_URL, else one for the session."""
    named, installed = os.environ.get("LEDGER_TEST_URL"), find_postgres()
    if named:
        yield named
    elif installed:
        with run_postgres(installed) as url:
            yield url
    else:
        pytest.skip("PostgreSQL is not installed, nor does LEDGER_TEST_URL name one")


@pytest.fixture
def postgres(cluster: str) -> Iterator[str]:
    """The URL of an empty PostgreSQL database, which is dropped when the test ends."""
    from sqlalchemy import create_engine, make_url

    name = f"test_{secrets.token_hex(8)}"
    server = create_engine(cluster, isolation_level="AUTOCOMMIT")
    try:
        with server.connect() as connection:
            connection.exec_driver_sql(f"CREATE DATABASE {name}")
            yield make_url(cluster).set(database=name).render_as_string(hide_password=False)
            connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")
    finally:
        server.dispose()


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The store for the commands of this test, which does not exist yet, in the repository as the project."""
    monkeypatch.setenv("TOWLINE_PROJECT", str(REPOSITORY))
    monkeypatch.setenv("TOWLINE_STORE", str(tmp_path / "store"))
    return tmp_path / "store"


@pytest.fixture
def command(store: Path) -> Callable[..., CommandResult]:
    """Runs a command that needs no server in this process: ``command("keys", "list").code``."""
    return run_command


@pytest.fixture
def databases(store: Path) -> None:
    """Copies empty databases into the store, since their migrations take seconds."""
    copy_databases(Settings.from_environment())


@pytest.fixture
def towline(
    command: Callable[..., CommandResult], prefect: str, databases: None, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., CommandResult]:
    """Runs any command in this process: ``towline("run", "configs/bike_demand.yaml").code``."""
    monkeypatch.setattr(helper_process, "start", lambda _: None)  # the modules are imported once, in this process
    return command


@pytest.fixture(scope="session")
def sample_store_template(tmp_path_factory: pytest.TempPathFactory) -> "SampleStore":
    from tests.support.sample_store import make_sample_store

    return make_sample_store(tmp_path_factory.mktemp("sample_store"))


@pytest.fixture
def sample_store(sample_store_template: "SampleStore", tmp_path: Path) -> "SampleStore":
    """A copy of the sample store for one test: versions 1 and 2 of a model, 1 is champion."""
    return sample_store_template.copy(tmp_path / "store")
