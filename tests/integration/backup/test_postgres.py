"""Backup of a store whose ledger and other databases are in PostgreSQL."""

import secrets
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, make_url

from tests.support.commands import CommandResult
from tests.support.sample_store import MODEL, SampleStore
from towline.operations.backup import databases
from towline.registry.ledger import JudgedVersion, Ledger

Command = Callable[..., CommandResult]


@pytest.fixture
def make_database(cluster: str) -> Iterator[Callable[[], str]]:
    """Creates empty databases."""
    server, names = create_engine(cluster, isolation_level="AUTOCOMMIT"), list[str]()

    def new() -> str:
        names.append(f"test_{secrets.token_hex(8)}")
        with server.connect() as connection:
            connection.exec_driver_sql(f"CREATE DATABASE {names[-1]}")
        return make_url(cluster).set(database=names[-1]).render_as_string(hide_password=False)

    yield new
    with server.connect() as connection:
        for name in names:
            connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")
    server.dispose()


@pytest.fixture
def team_ledger(
    sample_store: SampleStore, command: Command, make_database: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> Ledger:
    """The sample store's ledger in PostgreSQL, and another database."""
    ledger, prefect = Ledger(make_database()), make_database()
    url = ledger._chain._url
    for version in (1, 2):
        evidence = {"verdict": "pass"}
        path = f"releases/{MODEL}/{sample_store.release(version).name}"
        ledger.register(MODEL, "ann", "trained", {}, f"key{version}")
        ledger.promote(
            MODEL, JudgedVersion(version, f"key{version}", path, evidence), version - 1 or None, "ann", "better"
        )
    sample_store.ledger_file.unlink()
    engine = create_engine(prefect)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE EXTENSION IF NOT EXISTS plpgsql")
        connection.exec_driver_sql("CREATE TABLE flow_run (name TEXT)")
        connection.exec_driver_sql("INSERT INTO flow_run VALUES ('brave-otter')")
    engine.dispose()
    monkeypatch.setenv("TOWLINE_STORE", str(sample_store.settings.store))
    monkeypatch.setenv("TOWLINE_LEDGER_URL", url)
    monkeypatch.setenv("TOWLINE_TRACKING_URI", "http://mlflow:5000")
    monkeypatch.setenv("TOWLINE_BACKUP_DATABASES", f"prefect={escape_spaces(prefect).replace('+psycopg', '+asyncpg')}")
    return ledger


def escape_spaces(url: str) -> str:
    """The URL with its spaces escaped, since spaces separate URLs in the variable."""
    return url.replace(" ", "%20")


def read_flow_runs(url: str) -> list[str]:
    engine = create_engine(url)
    with engine.connect() as connection:
        names = [row[0] for row in connection.exec_driver_sql("SELECT name FROM flow_run")]
    engine.dispose()
    return names


@pytest.mark.slow
def test_databases_are_restored_with_the_store(
    team_ledger: Ledger,
    command: Command,
    make_database: Callable[[], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Empty databases are filled, other databases only with --force; the ledger has the same rows."""
    archive = tmp_path / "a.tar.zst"
    result = command("backup", archive, "--json")
    assert result.code == 0, result.err
    assert result.json["databases"] == ["ledger", "prefect"]
    assert "MLflow is at http://mlflow:5000" in result.json["notes"][0]

    ledger, prefect = make_database(), make_database()
    monkeypatch.setenv("TOWLINE_LEDGER_URL", ledger)
    monkeypatch.setenv("TOWLINE_BACKUP_DATABASES", f"prefect={escape_spaces(prefect)}")
    restored = command("restore", archive, "--into", tmp_path / "other", "--json")
    assert restored.code == 0, restored.err
    assert restored.json["models"][MODEL]["version"] == 2
    assert restored.json["ledger_rows"] == 4
    assert Ledger(ledger).history() == team_ledger.history()
    assert read_flow_runs(prefect) == ["brave-otter"]

    Ledger(ledger).rollback(MODEL, "ann", "worse")
    refused = command("restore", archive, "--into", tmp_path / "third")
    assert refused.code == 2
    assert all(word in refused.err for word in ("ledger", "public.ledger", "public.flow_run"))
    assert not (tmp_path / "third").exists()
    assert command("restore", archive, "--into", tmp_path / "third", "--force").code == 0
    assert Ledger(ledger).history() == team_ledger.history()


def test_error_of_a_database_undoes_the_restore(
    team_ledger: Ledger,
    command: Command,
    make_database: Callable[[], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The restore into a read-only database fails, and files that were moved into place are removed again."""
    archive = tmp_path / "a.tar.zst"
    assert command("backup", archive).code == 0
    ledger, prefect = make_database(), make_database()
    engine = create_engine(ledger, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(f"ALTER DATABASE {make_url(ledger).database} SET default_transaction_read_only = on")
    engine.dispose()
    monkeypatch.setenv("TOWLINE_LEDGER_URL", ledger)
    monkeypatch.setenv("TOWLINE_BACKUP_DATABASES", f"prefect={escape_spaces(prefect)}")
    result = command("restore", archive, "--into", tmp_path / "other")
    assert result.code == 5
    assert "read-only" in result.err
    assert not (tmp_path / "other" / "releases").exists()


def test_a_restore_is_refused_while_a_server_uses_the_database(
    team_ledger: Ledger, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The restore does not wait for the connection to close and does not drop tables that are in use."""
    archive = tmp_path / "a.tar.zst"
    assert command("backup", archive).code == 0
    engine = create_engine(team_ledger._chain._url)
    with engine.begin() as connection:
        connection.exec_driver_sql("SELECT * FROM ledger")
        result = command("restore", archive, "--into", tmp_path / "other", "--force")
    engine.dispose()
    assert result.code == 2
    assert "1 connections work on the database ledger" in result.err
    assert not (tmp_path / "other").exists()
    assert len(team_ledger.history()) == 4


def test_no_password_is_on_a_command_line(
    team_ledger: Ledger, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every user of a machine can read its command lines."""
    password = make_url(team_ledger._chain._url).password
    assert password
    lines = list[list[str]]()

    def run(line: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        lines.append(line)
        return subprocess.run(line, **options)  # noqa: PLW1510 - the caller decides

    monkeypatch.setattr(
        databases, "subprocess", type("", (), {"run": staticmethod(run), "DEVNULL": subprocess.DEVNULL})
    )
    assert command("backup", tmp_path / "a.tar.zst").code == 0
    assert len(lines) == 2
    assert not [word for line in lines for word in line if password in word]


def test_missing_programs_and_a_server_that_is_down_are_reported(
    team_ledger: Ledger, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names the package to install, or the database without its password."""
    monkeypatch.setenv("TOWLINE_BACKUP_DATABASES", "prefect=postgresql://me:hush@127.0.0.1:1/prefect")
    unreachable = command("backup", tmp_path / "a.tar.zst")
    assert unreachable.code == 5
    assert "prefect" in unreachable.err
    assert "hush" not in unreachable.err
    monkeypatch.setattr(databases.Path, "glob", lambda *_: iter(()))
    monkeypatch.setattr(databases.shutil, "which", lambda _, path: None)
    missing = command("backup", tmp_path / "a.tar.zst")
    assert missing.code == 2
    assert "apt install postgresql-client" in missing.err
    assert not (tmp_path / "a.tar.zst").exists()
