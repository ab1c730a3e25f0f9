"""Databases as dump files: SQLite by its backup interface, PostgreSQL by ``pg_dump`` and ``pg_restore``.

A dump shows one moment of a database, while others write to it. PostgreSQL's programs get a password through the
environment, since every user of a machine can read command lines.
"""

import contextlib
import os
import shutil
import sqlite3
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

from sqlalchemy import create_engine, make_url, text
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from towline.config import Settings
from towline.errors import ConfigError, TransientError

LEDGER, TRACKING = "ledger", "tracking"
ENVIRONMENT = "TOWLINE_BACKUP_DATABASES"
_TIMEOUT_S = 10
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
        name: on the command line.
        member: its dump in an archive.
        password: of the URL, or empty.
        kind: ``sqlite`` or ``postgresql``.
        file: of an SQLite database.

    Raises:
        ConfigError: the URL is of neither kind.
    """

    def __init__(self, name: str, url: str) -> None:
        try:
            self.url = make_url(url)
        except (ArgumentError, ValueError):
            raise self._unsupported(name, "this is not a URL") from None
        self.name = name
        self.password = str(self.url.password or self.url.query.get("password") or "")
        backend, path = self.url.get_backend_name(), self.url.database or ""
        is_file = backend == "sqlite" and path and not path.startswith((":", "file:"))
        self.file = Path(path).absolute() if is_file else None
        self.kind = "sqlite" if is_file else "postgresql"
        if self.kind != backend:
            raise self._unsupported(name, f"{self.url.render_as_string(hide_password=True)} is neither")
        self.member = f"databases/{name}.{self.kind}"

    def __str__(self) -> str:
        return str(self.file or self.url.render_as_string(hide_password=True))

    def dump(self, target: Path) -> bool:
        """Writes the database into a new file; False if it does not exist yet.

        Raises:
            TransientError: it is damaged, down, or refuses the user; the disk is full.
            ConfigError: PostgreSQL's programs are not installed.
        """
        if self.file is not None:
            return copy_sqlite(self.file, target)
        # not compressed: the archive is
        self._run(
            "pg_dump", "--format=custom", "--compress=0", f"--lock-wait-timeout={_TIMEOUT_S}s", f"--file={target}"
        )
        return True

    def restore(self, dump: Path, *, replace: bool) -> None:
        """Fills the PostgreSQL database from its dump in one transaction; ``replace`` drops the present tables first.

        Raises:
            TransientError, ConfigError: as ``dump``; the database is unchanged.
        """
        clean = ("--clean", "--if-exists") if replace else ()
        # only the owner of an extension may write its comment
        self._run("pg_restore", "--single-transaction", "--exit-on-error", "--no-comments", *clean, str(dump))

    def describe_contents(self) -> str:
        """A short description of the content of the database; empty if it has none.

        Raises:
            TransientError, ConfigError: as ``dump``.
        """
        if self.file is not None:
            size = self.file.stat().st_size if self.file.is_file() else 0
            return f"{size:,} bytes" if size else ""
        _find_program("pg_restore")
        tables = self._query(_TABLES)
        more = ", …" if len(tables) > 3 else ""
        return f"{len(tables)} tables ({', '.join(tables[:3])}{more})" if tables else ""

    def connected_programs(self) -> list[str]:
        """The programs that use a PostgreSQL database: a restore would wait for them.

        Raises:
            TransientError: as ``dump``.
        """
        return [] if self.file is not None else self._query(_SESSIONS)

    def _query(self, statement: str) -> list[str]:
        url = self.url.set(drivername="postgresql+psycopg")
        engine = create_engine(url, connect_args={"connect_timeout": _TIMEOUT_S})
        try:
            with engine.connect() as connection:
                return list(connection.execute(text(statement)).scalars())
        except SQLAlchemyError as error:
            raise self._failed("PostgreSQL", str(getattr(error, "orig", None) or error).splitlines()) from None
        finally:
            engine.dispose()

    def _run(self, program: str, *options: str) -> None:
        url = self.url._replace(drivername="postgresql", password=None).difference_update_query(["password"])
        address = url.render_as_string().replace("+", "%20")  # libpq reads no + as a space
        line = [_find_program(program), "--no-password", f"--dbname={address}", "--no-owner", "--no-privileges"]
        environment = {**os.environ, "PGCONNECT_TIMEOUT": str(_TIMEOUT_S)}
        if self.password:
            environment["PGPASSWORD"] = self.password
        result = subprocess.run(
            [*line, *options], env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
        if result.returncode:
            lines = [line for line in result.stderr.splitlines() if line.strip()]
            raise self._failed(program, [line.removeprefix(f"{program}: ").removeprefix("error: ") for line in lines])

    def _failed(self, program: str, lines: Sequence[str]) -> TransientError:
        remedy = f"check that the database runs and accepts the user; its URL is that of {_setting(self.name)}"
        if "version mismatch" in " ".join(lines):
            remedy = "apt install postgresql-client-N, where N is the server's version"
        elif program == "pg_restore":
            remedy = "the database is unchanged; correct what the message names, then run the same command again"
        return TransientError(
            f"{program} failed on the database {self.name}: {lines[0] if lines else 'it gives no reason'}",
            where=str(self),
            remedy=remedy,
            details=tuple(lines[1:6]),
        )

    @staticmethod
    def _unsupported(name: str, reason: str) -> ConfigError:
        remedy = "write sqlite:////path/file.db or postgresql://user@host/database"
        problem = f"not a database that can be backed up: {name}, {reason}"
        return ConfigError(problem, where=_setting(name), remedy=remedy)


def select_databases(settings: Settings, urls: Iterable[tuple[str, str]]) -> dict[str, Database]:
    """The databases of a backup, by name: the ledger, MLflow's database if it can be dumped, and further ones.

    Args:
        settings: with the URLs of the first two.
        urls: names and URLs of the others.

    Raises:
        ConfigError: a name is used twice.
    """
    databases = {LEDGER: Database(LEDGER, settings.ledger_url)}
    if settings.tracking_uri.startswith(("sqlite:", "sqlite+", "postgresql:", "postgresql+")):
        databases[TRACKING] = Database(TRACKING, settings.tracking_uri)
    for name, url in urls:
        if name in databases:
            raise ConfigError(f"two databases are called {name}", where="--database", remedy="give each its own name")
        databases[name] = Database(name, url)
    return databases


def is_sqlite(path: Path) -> bool:
    with contextlib.suppress(OSError), path.open("rb") as file:
        return file.read(16) == b"SQLite format 3\0"
    return False


def copy_sqlite(source: Path, target: Path) -> bool:
    """Copies an SQLite file in its state between two transactions; False if it does not exist.

    Raises:
        TransientError: it is damaged, locked for long, or cannot be read or written.
    """
    if not source.is_file():
        return False
    try:
        uri = f"{source.as_uri()}?mode=rw"  # recovers the changes of a killed writer, never creates a file
        with (
            contextlib.closing(sqlite3.connect(uri, uri=True, timeout=_TIMEOUT_S)) as original,
            contextlib.closing(sqlite3.connect(target)) as copy,
        ):
            original.backup(copy)
            copy.execute("PRAGMA journal_mode=DELETE")  # one file, without a log file
            problem = copy.execute("PRAGMA quick_check(1)").fetchone()[0]
    except sqlite3.Error as error:
        problem = f"cannot be copied: {error}"
    if problem != "ok":
        remedy = "make the file readable; if it is damaged, restore an earlier backup"
        raise TransientError(f"a database has a problem: {problem.splitlines()[0]}", where=str(source), remedy=remedy)
    return True


def _find_program(name: str) -> str:
    """Debian's newest version, which is not on the PATH, else that on the PATH."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: path.parent.name.zfill(4))
    path = os.pathsep.join([*map(str, reversed(folders)), os.environ.get("PATH", os.defpath)])
    program = shutil.which(name, path=path)
    if program is None:
        raise ConfigError(
            f"{name} is not installed",
            where="PATH and /usr/lib/postgresql",
            remedy="apt install postgresql-client, of the server's version or a later one",
        )
    return program


def _setting(name: str) -> str:
    settings = {LEDGER: "TOWLINE_LEDGER_URL", TRACKING: "TOWLINE_TRACKING_URI"}
    return settings.get(name, f"{ENVIRONMENT} or --database")
