"""Databases as files, and back: SQLite through its backup interface, PostgreSQL through its own programs.

Both copies are of one moment, while others write. A password goes to PostgreSQL's programs through the environment,
never on a command line, which every user of the machine can read.
"""

import contextlib
import os
import re
import shutil
import sqlite3
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from towline import files
from towline.config import Settings
from towline.errors import ConfigError, TransientError

LEDGER, TRACKING = "ledger", "tracking"
ENVIRONMENT = "TOWLINE_BACKUP_DATABASES"
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
_WAIT = 10  # seconds
_TABLES = (
    "SELECT schemaname || '.' || tablename FROM pg_catalog.pg_tables"
    " WHERE schemaname NOT IN ('pg_catalog', 'information_schema') ORDER BY 1"
)
_SESSIONS = (
    "SELECT coalesce(nullif(application_name, ''), usename) FROM pg_catalog.pg_stat_activity"
    " WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
)


class Database:
    """A database at an SQLAlchemy URL.

    Attributes:
        name: what it is called in an archive.
        kind: ``sqlite`` or ``postgresql``.
        file: an SQLite database's file.

    Raises:
        ConfigError: the URL is of neither kind.
    """

    def __init__(self, name: str, url: str) -> None:
        try:
            self.url = make_url(url)
        except (ArgumentError, ValueError):
            raise _unknown(name, "this is no URL") from None
        self.name = name
        self.kind = self.url.get_backend_name()
        path = self.url.database or ""
        plain = self.kind == "sqlite" and path and not path.startswith((":", "file:"))
        self.file = Path(path).absolute() if plain else None
        if self.file is None and self.kind != "postgresql":
            raise _unknown(name, f"{self.url.render_as_string(hide_password=True)} is neither")

    def __str__(self) -> str:
        return str(self.file or self.url.render_as_string(hide_password=True))

    def dump(self, target: Path) -> bool:
        """Writes the database into a new file; False where there is none yet.

        Raises:
            TransientError: it is damaged, away, or does not let in; the disk is full.
            ConfigError: PostgreSQL's programs are not installed.
        """
        if self.file is not None:
            return copy(self.file, target)
        # it is compressed with all else
        _run(self, "pg_dump", "--format=custom", "--compress=0", "--no-owner", "--no-privileges",
             f"--lock-wait-timeout={_WAIT}s", f"--file={target}")  # fmt: skip
        return True

    def contents(self) -> str:
        """What there is already, in a few words; empty when nothing is.

        Raises:
            TransientError, ConfigError: as ``dump``.
        """
        if self.file is not None:
            size = self.file.stat().st_size if self.file.is_file() else 0
            return f"{size:,} bytes" if size else ""
        _program("pg_restore")
        tables = _ask(self, _TABLES)
        more = ", …" if len(tables) > 3 else ""
        return f"{len(tables)} tables ({', '.join(tables[:3])}{more})" if tables else ""

    def users(self) -> list[str]:
        """Programs that are connected to a PostgreSQL database: a restore would wait for them, and they for it.

        Raises:
            TransientError, ConfigError: as ``dump``.
        """
        return [] if self.file is not None else _ask(self, _SESSIONS)

    def restore(self, dump: Path, *, replace: bool) -> None:
        """Fills the PostgreSQL database from its dump, in one transaction; with ``replace`` what is there goes first.

        Raises:
            TransientError, ConfigError: as ``dump``; the database is then what it was.
        """
        clean = ("--clean", "--if-exists") if replace else ()
        # a comment on an extension may be written by its owner alone
        _run(self, "pg_restore", "--single-transaction", "--exit-on-error", "--no-owner", "--no-privileges",
             "--no-comments", *clean, last=str(dump))  # fmt: skip


def named(settings: Settings, given: Sequence[str]) -> dict[str, Database]:
    """The ledger, MLflow's database where that is one of the two kinds, and those given as ``NAME=URL``.

    Raises:
        ConfigError: a name stands twice, or what is given is no name or no URL.
    """
    found = {LEDGER: Database(LEDGER, settings.ledger_url)}
    if settings.tracking_uri.startswith(("sqlite:", "sqlite+", "postgresql:", "postgresql+")):
        found[TRACKING] = Database(TRACKING, settings.tracking_uri)
    for name, url in pairs(given, "--database", f"{ENVIRONMENT} or --database prefect=postgresql://…"):
        if name in found:
            raise ConfigError(f"two databases are called {name}", where="--database", remedy="give each its own name")
        found[name] = Database(name, url)
    return found


def pairs(given: Iterable[str], where: str, example: str) -> list[tuple[str, str]]:
    """``NAME=VALUE``, each taken apart; ConfigError where one is not."""
    found = []
    for number, text in enumerate(given, 1):
        name, equals, value = text.partition("=")
        if not (equals and value and _NAME.fullmatch(name)):
            # it is not shown: it may be a piece of a password
            raise ConfigError(f"value {number} is not NAME=…", where=where, remedy=f"write {example}; %20 for a space")
        found.append((name, value))
    return found


def secret(given: Sequence[str]) -> bool:
    """Whether one of the URLs holds a password."""
    urls = [Database(name, url).url for name, url in pairs(given, "--database", "--database prefect=postgresql://…")]
    return any(url.password or "password" in url.query for url in urls)


def is_sqlite(path: Path) -> bool:
    with contextlib.suppress(OSError), path.open("rb") as file:
        return file.read(16) == b"SQLite format 3\0"
    return False


def copy(source: Path, target: Path) -> bool:
    """An SQLite file as it is between two transactions; False where there is none.

    Raises:
        TransientError: it is damaged, locked for long, or cannot be read or written.
    """
    if not source.is_file():
        return False
    try:
        uri = f"{source.as_uri()}?mode=rw"  # mends what a killed writer left, never makes a file
        with (
            contextlib.closing(sqlite3.connect(uri, uri=True, timeout=_WAIT)) as old,
            contextlib.closing(sqlite3.connect(target)) as new,
        ):
            old.backup(new)
            new.execute("PRAGMA journal_mode=DELETE")  # one file, without a log beside it
            said = new.execute("PRAGMA quick_check(1)").fetchone()[0]
    except sqlite3.Error as error:
        raise _away(str(source), f"cannot be copied: {error}") from None
    if said != "ok":
        raise _away(str(source), f"is damaged: {said.splitlines()[0]}")
    return True


def siblings(file: Path) -> list[Path]:
    """What SQLite keeps beside a database: never to meet another one."""
    return [beside for end in ("-wal", "-shm", "-journal") if (beside := file.with_name(file.name + end)).exists()]


def _ask(database: Database, query: str) -> list[str]:
    said = _run(database, "psql", "--no-psqlrc", "--tuples-only", "--no-align", f"--command={query}")
    return [line for line in said.splitlines() if line]


def _run(database: Database, program: str, *options: str, last: str = "") -> str:
    url = database.url
    line = [str(_program(program)), "--no-password", f"--dbname={_conninfo(url)}", *options, *([last] if last else [])]
    password = url.password or url.query.get("password")
    environment = {**os.environ, "PGCONNECT_TIMEOUT": str(_WAIT), **({"PGPASSWORD": str(password)} if password else {})}
    done = subprocess.run(line, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        said = [text for text in done.stderr.splitlines() if text.strip()]
        raise _failed(database, program, [text.removeprefix(f"{program}: ").removeprefix("error: ") for text in said])
    return done.stdout


def _conninfo(url: URL) -> str:
    """As libpq reads it, without the password."""
    words: Mapping[str, object] = {
        "host": url.host, "port": url.port, "user": url.username, "dbname": url.database,
        **{name: value for name, value in url.query.items() if name != "password"},
    }  # fmt: skip
    quoted = {name: re.sub(r"(['\\])", r"\\\1", str(value)) for name, value in words.items() if value is not None}
    return " ".join(f"{name}='{value}'" for name, value in quoted.items())


def _program(name: str) -> Path:
    """Debian's newest, which is not on the path, or the path's."""
    versions = [path for path in Path("/usr/lib/postgresql").glob(f"*/bin/{name}") if path.parts[-3].isdecimal()]
    found = max(versions, key=lambda path: int(path.parts[-3]), default=None) or shutil.which(name)
    if found is None:
        raise ConfigError(
            f"{name} is not installed",
            where="PATH and /usr/lib/postgresql",
            remedy="apt install postgresql-client, of the server's version or a later one",
        )
    return Path(found)


def _failed(database: Database, program: str, said: Sequence[str]) -> TransientError:
    text = " ".join(said)
    remedy = f"check that the database runs and lets you in; its URL is that of {_where(database.name)}"
    if "version mismatch" in text:
        remedy = "apt install postgresql-client-N, N being the server's version"
    elif program == "pg_restore":
        remedy = "nothing was changed in it; mend what it says, then run the same command again"
    return TransientError(
        f"{program} failed on the database {database.name}: {said[0] if said else 'it says nothing'}",
        where=str(database),
        remedy=remedy,
        details=tuple(said[1:6]),
    )


def _where(name: str) -> str:
    return {LEDGER: "TOWLINE_LEDGER_URL", TRACKING: "TOWLINE_TRACKING_URI"}.get(name, f"{ENVIRONMENT} or --database")


def _unknown(name: str, finding: str) -> ConfigError:
    remedy = "write sqlite:////path/file.db or postgresql://user@host/database"
    return ConfigError(f"not a database that can be backed up: {name}, {finding}", where=_where(name), remedy=remedy)


def _away(where: str, finding: str) -> TransientError:
    remedy = "make the file readable; if it is damaged, restore an earlier backup"
    return TransientError(f"a database {finding}", where=where, remedy=remedy)


def place(dump: Path, target: Path, mode: int = 0o600) -> None:
    """Puts an SQLite file where it belongs, in one rename."""
    with dump.open("rb") as source, files.replacing(target, mode) as file:
        shutil.copyfileobj(source, file, 2**20)
