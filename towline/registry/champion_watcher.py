"""A champion watcher polls the ledger for a model's champion; a poll without changes is cheap.

A service polls twice a second. It must not read the whole history each time, nor import SQLAlchemy for an SQLite file.
"""

import contextlib
import os
import re
import sqlite3
from pathlib import Path
from typing import NamedTuple

from towline.errors import TransientError
from towline.registry.hash_chain import Chain, Entry, rows_of
from towline.registry.ledger import champion_of, digest_of
from towline.registry.rollouts import Rollout, active_rollout

_BUSY_SECONDS = 1.0
_CHANGE_COUNTER = 24  # offset of the transaction counter in an SQLite file, 4 bytes


class RecordedRelease(NamedTuple):
    """A version's release: its folder relative to the store, and its manifest's sha256 (empty if never recorded)."""

    version: int
    path: str
    digest: str


class ChampionWatcher:
    """Polls one model's rows in the ledger at a URL.

    Every method raises TransientError when the ledger is down, locked or not a database, ConfigError when the URL is
    not valid, and ReleaseError when a row was changed.
    """

    def __init__(self, url: str, model: str) -> None:
        self._url, self._model = url, model
        match = re.fullmatch(r"sqlite(?:\+pysqlite)?:///([^?]+)", url)
        self._file = Path(match[1]) if match and not match[1].startswith(("file:", ":")) else None
        self._last_stamp: object = None
        self._rows: list[Entry] = []

    def champion(self) -> RecordedRelease | None:
        """The champion's release; None before the first promotion."""
        self._read()
        return self._release(champion_of(self._rows))

    def rollout(self) -> Rollout | None:
        """The current rollout; None without one."""
        self._read()
        return active_rollout(self._rows)

    def version(self, version: int) -> RecordedRelease | None:
        """The release of a version; None if it has none yet."""
        self._read()
        return self._release(next((row for row in self._rows[::-1] if row.version == version and row.release), None))

    def _release(self, row: Entry | None) -> RecordedRelease | None:
        if row is None:
            return None
        return RecordedRelease(row.version, row.release, digest_of(self._rows, row.release))

    def _read(self) -> None:
        """Reads the rows if they have changed since the last read."""
        stamp = self._stamp()
        if stamp == self._last_stamp:
            return
        self._rows = Chain(self._url).read(self._model) if self._file is None else self._read_sqlite(self._file)
        self._last_stamp = stamp

    def _stamp(self) -> object:
        if self._file is None:
            return Chain(self._url).head(self._model)
        try:
            if not self._file.exists():
                return ()
            with self._file.open("rb") as file:
                changes = os.pread(file.fileno(), 4, _CHANGE_COUNTER)
            status = [path.stat() for path in (self._file, Path(f"{self._file}-wal")) if path.exists()]
        except OSError as error:
            raise self._unavailable(f"cannot be read: {error.strerror}") from None
        return changes, *((file.st_ino, file.st_mtime_ns, file.st_size) for file in status)

    def _read_sqlite(self, file: Path) -> list[Entry]:
        if not file.exists():
            return []
        try:
            uri = f"{file.absolute().as_uri()}?mode=rw"  # recovers the changes of a killed writer, never creates a file
            with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=_BUSY_SECONDS)) as connection:
                connection.row_factory = sqlite3.Row
                if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'ledger'").fetchone():
                    return []
                query = "SELECT * FROM ledger WHERE model = ? ORDER BY seq"
                return rows_of(dict(row) for row in connection.execute(query, (self._model,)))
        except sqlite3.Error as error:
            raise self._unavailable(f"cannot be used: {error}") from None

    def _unavailable(self, problem: str) -> TransientError:
        return TransientError(
            f"the ledger {problem}",
            where=str(self._file),
            remedy="make the file readable, restore it from a backup, or set TOWLINE_LEDGER_URL",
        )
