"""What tests share: servers for the session, a store or database of its own for each test, and the commands."""

import json
import os
import secrets
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from tests.postgres import programs, running
from towline import sidecar
from towline.cli import main
from towline.config import Settings
from towline.operations import servers

if TYPE_CHECKING:
    from tests.shelf import Shelf

REPOSITORY = Path(__file__).parents[1]
# before Prefect is imported by any test
os.environ.update(servers.TELEMETRY_OFF)
for name in [name for name in os.environ if name.startswith("TOWLINE_")]:
    del os.environ[name]


@pytest.fixture(scope="session")
def prefect(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a Prefect server that every flow of the session runs against."""
    store = tmp_path_factory.mktemp("prefect")
    settings = Settings.from_environment({"TOWLINE_STORE": str(store)}, cwd=REPOSITORY)
    server = servers.start(settings, "prefect")
    environment = servers.prefect_environment(settings) | {"PREFECT_API_URL": f"{server.url}/api"}
    os.environ.update(environment)
    try:
        servers.wait(settings, server)
        yield server.url
    finally:
        servers.stop(settings)
        for name in environment.keys() - servers.TELEMETRY_OFF.keys():
            os.environ.pop(name, None)


@pytest.fixture(scope="session")
def cluster() -> Iterator[str]:
    """The address of a PostgreSQL server: the one that LEDGER_TEST_URL names, or the session's own."""
    named, installed = os.environ.get("LEDGER_TEST_URL"), programs()
    if named:
        yield named
    elif installed:
        with running(installed) as url:
            yield url
    else:
        pytest.skip("PostgreSQL is not installed, nor does LEDGER_TEST_URL name one")


@pytest.fixture
def postgres(cluster: str) -> Iterator[str]:
    """The URL of an empty PostgreSQL database that goes when the test ends."""
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


@dataclass
class Done:
    """How a command ended. ``out`` is what a script reads, ``err`` what a person sees besides."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty store that commands of this test work on, in the repository's own project."""
    monkeypatch.setenv("TOWLINE_PROJECT", str(REPOSITORY))
    monkeypatch.setenv("TOWLINE_STORE", str(tmp_path / "store"))
    return tmp_path / "store"


@pytest.fixture
def command(store: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Done]:
    """Runs a command that needs no server in this process: ``command("keys", "list").code``."""

    def run(*words: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["towline", *map(str, words)])  # where an error looks for --json
        result = CliRunner().invoke(main, sys.argv[1:], prog_name="towline")
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Done(result.exit_code, result.stdout, result.stderr)

    return run


@pytest.fixture
def towline(command: Callable[..., Done], prefect: str, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Done]:
    """Runs any command in this process: ``towline("run", "configs/bike_demand.yaml").code``."""
    monkeypatch.setattr(sidecar, "start", lambda _: None)  # the imports are paid once, here
    return command


@pytest.fixture(scope="session")
def made_shelf(tmp_path_factory: pytest.TempPathFactory) -> "Shelf":
    from tests.shelf import make_shelf

    return make_shelf(tmp_path_factory.mktemp("shelf"))


@pytest.fixture
def shelf(made_shelf: "Shelf", tmp_path: Path) -> "Shelf":
    """A store of the test's own: versions 1 and 2 of a model, 1 is champion."""
    return made_shelf.copy(tmp_path / "store")
