"""A team's store: the ledger and other databases in PostgreSQL."""

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
def make(cluster: str) -> Iterator[Callable[[], str]]:
    """Makes empty databases."""
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
def team(
    sample_store: SampleStore, command: Command, make: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> Ledger:
    """The sample store's ledger in PostgreSQL, and a database beside it."""
    ledger, prefect = Ledger(make()), make()
    url = ledger._chain._url
    for version in (1, 2):
        facts = {"verdict": "pass"}
        path = f"releases/{MODEL}/{sample_store.release(version).name}"
        ledger.register(MODEL, "ann", "trained", {}, f"key{version}")
        ledger.promote(
            MODEL, JudgedVersion(version, f"key{version}", path, facts), version - 1 or None, "ann", "better"
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
    monkeypatch.setenv("TOWLINE_BACKUP_DATABASES", f"prefect={plain(prefect).replace('+psycopg', '+asyncpg')}")
    return ledger


def plain(url: str) -> str:
    """As it is written where spaces part one URL from the next."""
    return url.replace(" ", "%20")


def runs(url: str) -> list[str]:
    engine = create_engine(url)
    with engine.connect() as connection:
        found = [row[0] for row in connection.exec_driver_sql("SELECT name FROM flow_run")]
    engine.dispose()
    return found


def test_databases_come_back_with_the_store(
    team: Ledger, command: Command, make: Callable[[], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Into empty databases as they are, into full ones only with --force; the ledger is the same, row by row."""
    archive = tmp_path / "a.tar.zst"
    done = command("backup", archive, "--json")
    assert done.code == 0, done.err
    assert done.json["databases"] == ["ledger", "prefect"]
    assert "MLflow is at http://mlflow:5000" in done.json["notes"][0]

    ledger, prefect = make(), make()
    monkeypatch.setenv("TOWLINE_LEDGER_URL", ledger)
    monkeypatch.setenv("TOWLINE_BACKUP_DATABASES", f"prefect={plain(prefect)}")
    back = command("restore", archive, "--into", tmp_path / "other", "--json")
    assert back.code == 0, back.err
    assert back.json["models"][MODEL]["version"] == 2
    assert back.json["ledger_rows"] == 4
    assert Ledger(ledger).history() == team.history()
    assert runs(prefect) == ["brave-otter"]

    Ledger(ledger).rollback(MODEL, "ann", "worse")
    again = command("restore", archive, "--into", tmp_path / "third")
    assert again.code == 2
    assert all(word in again.err for word in ("ledger", "public.ledger", "public.flow_run"))
    assert not (tmp_path / "third").exists()
    assert command("restore", archive, "--into", tmp_path / "third", "--force").code == 0
    assert Ledger(ledger).history() == team.history()


def test_a_database_that_does_not_take_it_leaves_the_store_empty(
    team: Ledger, command: Command, make: Callable[[], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is read-only refuses; what was put in place before it is taken away again."""
    archive = tmp_path / "a.tar.zst"
    assert command("backup", archive).code == 0
    ledger, prefect = make(), make()
    engine = create_engine(ledger, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(f"ALTER DATABASE {make_url(ledger).database} SET default_transaction_read_only = on")
    engine.dispose()
    monkeypatch.setenv("TOWLINE_LEDGER_URL", ledger)
    monkeypatch.setenv("TOWLINE_BACKUP_DATABASES", f"prefect={plain(prefect)}")
    done = command("restore", archive, "--into", tmp_path / "other")
    assert done.code == 5
    assert "read-only" in done.err
    assert not (tmp_path / "other" / "releases").exists()


def test_a_restore_is_refused_while_a_server_uses_the_database(
    team: Ledger, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The restore does not wait for the connection to close and does not drop tables that are in use."""
    archive = tmp_path / "a.tar.zst"
    assert command("backup", archive).code == 0
    engine = create_engine(team._chain._url)
    with engine.begin() as connection:
        connection.exec_driver_sql("SELECT * FROM ledger")
        done = command("restore", archive, "--into", tmp_path / "other", "--force")
    engine.dispose()
    assert done.code == 2
    assert "1 connections work on the database ledger" in done.err
    assert not (tmp_path / "other").exists()
    assert len(team.history()) == 4


def test_no_password_is_on_a_command_line(
    team: Ledger, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every user of a machine can read its command lines."""
    password = make_url(team._chain._url).password
    assert password
    lines = list[list[str]]()

    def run(line: list[str], **given: Any) -> subprocess.CompletedProcess[str]:
        lines.append(line)
        return subprocess.run(line, **given)  # noqa: PLW1510 - as it was given

    monkeypatch.setattr(
        databases, "subprocess", type("", (), {"run": staticmethod(run), "DEVNULL": subprocess.DEVNULL})
    )
    assert command("backup", tmp_path / "a.tar.zst").code == 0
    assert len(lines) == 2
    assert not [word for line in lines for word in line if password in word]


def test_missing_programs_and_a_server_that_is_away_are_told(
    team: Ledger, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The package to install is named; so is the database, without its password."""
    monkeypatch.setenv("TOWLINE_BACKUP_DATABASES", "prefect=postgresql://me:hush@127.0.0.1:1/prefect")
    away = command("backup", tmp_path / "a.tar.zst")
    assert away.code == 5
    assert "prefect" in away.err
    assert "hush" not in away.err
    monkeypatch.setattr(databases.Path, "glob", lambda *_: iter(()))
    monkeypatch.setattr(databases.shutil, "which", lambda _: None)
    missing = command("backup", tmp_path / "a.tar.zst")
    assert missing.code == 2
    assert "apt install postgresql-client" in missing.err
    assert not (tmp_path / "a.tar.zst").exists()
