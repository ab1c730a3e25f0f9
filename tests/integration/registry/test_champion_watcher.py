import sqlite3
from pathlib import Path
from typing import Any

import pytest

from tests.support.sql import execute_sql
from towline.errors import ConfigError, ReleaseError, TransientError
from towline.registry.champion_watcher import ChampionWatcher, RecordedRelease
from towline.registry.ledger import JudgedVersion, Ledger

PASS = {"verdict": "pass"}


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    on_file = f"sqlite:///{tmp_path}/ledger.db"
    return on_file if request.param == "sqlite" else request.getfixturevalue("postgres")


def train(ledger: Ledger, version: int, model: str = "bikes") -> None:
    assert ledger.register(model, "ann", "", {}, f"key{version}").version == version


def promote(
    ledger: Ledger, version: int, expected: int | None, model: str = "bikes", evidence: dict[str, str] | None = None
) -> None:
    recorded = evidence or PASS | {"release": f"{version}" * 64}
    ledger.promote(
        model, JudgedVersion(version, f"key{version}", f"releases/{model}/v{version}", recorded), expected, "ann", ""
    )


def test_the_watcher_returns_the_current_champion(url: str) -> None:
    """It has the recorded digest; rows of other models do not matter."""
    ledger, watcher = Ledger(url), ChampionWatcher(url, "bikes")
    assert watcher.champion() is None
    train(ledger, 1)
    assert watcher.champion() is None
    promote(ledger, 1, None)
    assert watcher.champion() == RecordedRelease(1, "releases/bikes/v1", "1" * 64)
    train(ledger, 2)
    assert watcher.version(2) is None  # it has a number but no release yet
    promote(ledger, 2, 1)
    train(ledger, 1, "cars")
    promote(ledger, 1, None, "cars")
    assert watcher.champion() == RecordedRelease(2, "releases/bikes/v2", "2" * 64)
    assert watcher.version(1) == RecordedRelease(1, "releases/bikes/v1", "1" * 64)
    assert watcher.version(3) is None
    ledger.rollback("bikes", "ann", "")
    assert watcher.champion() == RecordedRelease(1, "releases/bikes/v1", "1" * 64)
    assert ChampionWatcher(url, "bikes").champion() == watcher.champion()


def test_a_version_without_a_recorded_digest_has_an_empty_one(url: str) -> None:
    ledger = Ledger(url)
    train(ledger, 1)
    promote(ledger, 1, None, evidence=PASS)
    assert ChampionWatcher(url, "bikes").champion() == RecordedRelease(1, "releases/bikes/v1", "")


def test_a_changed_row_is_an_error(url: str) -> None:
    ledger = Ledger(url)
    train(ledger, 1)
    promote(ledger, 1, None)
    execute_sql(ledger, "UPDATE ledger SET release = 'releases/bikes/v9' WHERE seq = 2")
    with pytest.raises(ReleaseError, match="row 2 of bikes"):
        ChampionWatcher(url, "bikes").champion()


def test_the_watcher_creates_no_file(tmp_path: Path) -> None:
    """It finds a ledger that is created later."""
    url = f"sqlite:///{tmp_path}/ledger.db"
    watcher = ChampionWatcher(url, "bikes")
    assert watcher.champion() is None
    assert list(tmp_path.iterdir()) == []
    train(Ledger(url), 1)
    promote(Ledger(url), 1, None)
    assert watcher.champion() is not None


def test_a_ledger_in_wal_mode_is_followed(tmp_path: Path) -> None:
    """In WAL mode a commit changes another file than the database file."""
    ledger, watcher = (
        Ledger(f"sqlite:///{tmp_path}/ledger.db"),
        ChampionWatcher(f"sqlite:///{tmp_path}/ledger.db", "bikes"),
    )
    train(ledger, 1)
    promote(ledger, 1, None)
    holder = sqlite3.connect(tmp_path / "ledger.db")
    holder.execute("PRAGMA journal_mode=WAL")
    holder.execute("SELECT * FROM ledger").fetchall()
    for version in (2, 3):
        train(ledger, version)
        promote(ledger, version, version - 1)
        champion = watcher.champion()
        assert champion is not None
        assert champion.version == version
    holder.close()


def test_the_error_describes_a_damaged_or_unavailable_ledger(tmp_path: Path) -> None:
    """The URL may also be invalid."""
    (tmp_path / "ledger.db").write_bytes(b"not a database, but long enough to be looked at" * 50)
    for url, kind in (
        (f"sqlite:///{tmp_path}/ledger.db", TransientError),
        ("postgresql+psycopg://ann:s3cret@127.0.0.1:1/towline", TransientError),
        ("nonsense", ConfigError),
    ):
        with pytest.raises(kind) as error:
            ChampionWatcher(url, "bikes").champion()
        assert "s3cret" not in str(error.value)
