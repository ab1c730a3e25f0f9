"""A hash chain is an append-only table in which each row holds the digest of the row before it.

It is stored in SQLite or PostgreSQL. A model's rows are numbered from 1 and (model, seq) is unique: if two writers
read the same state, only one can add the next row. Every read checks the rows that it returns. A row that was checked
before is looked up in a cache by its values, which is faster than computing its digest. Seals (``seals.py``) are in a
table of their own.
"""

import datetime as dt
import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic_core import to_json

from towline import files
from towline.config import Frozen
from towline.config.passwords import mask_passwords
from towline.errors import ConfigError, ReleaseError, TransientError
from towline.registry.seals import LedgerKey, Seal, SealedRow, Seals, check_anchor

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine, Table

Event = Literal[
    "registered", "passed", "promoted", "refused", "rolled_back", "decided", "packaged",
    "rollout_started", "rollout_changed", "rollout_ended", "approved", "accepted", "scored",
]  # fmt: skip

_BUSY_SECONDS = 10
_ATTEMPTS = 100


class Entry(Frozen):
    """One row.

    ``version`` is the version that the event is about: after ``rolled_back`` the version that serves again, in
    ``decided`` the champion at that time, in ``packaged`` the version whose container image was built, in
    ``rollout_…`` the challenger. ``passed`` is a version that is promoted later, if at all; ``approved`` is one
    approval of it. ``accepted`` is the decision of a person to trust the current rows again, about the champion at
    that time. ``release`` is empty in ``registered``, since a version gets its number before it has a release.
    """

    seq: int
    time: str
    model: str
    event: Event
    version: int
    previous: int | None
    actor: str
    reason: str
    evidence: dict[str, Any]
    run_key: str
    release: str
    prev_hash: str
    hash: str

    def digest(self) -> str:
        """The expected ``hash``: sha256 over the canonical JSON of all other fields."""
        content = self.model_dump(exclude={"hash"})
        return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


_FIELDS = tuple(Entry.model_fields)


class NewRow(Frozen):
    """A row to be added; its number, time and digests are set when it is added."""

    event: Event
    version: int
    previous: int | None
    actor: str
    reason: str
    evidence: Mapping[str, Any]
    run_key: str
    release: str


class Chain:
    """The rows at an SQLAlchemy URL; the table is created at the first write.

    Every method raises TransientError when the database is locked, down, full, read-only or not a database, and
    ConfigError when the URL is not valid. Reading a database or table that does not exist returns nothing and creates
    nothing.
    """

    def __init__(self, url: str, seals: Seals | None = None) -> None:
        self._url, self._seals = url, seals

    def read(self, model: str | None = None) -> list[Entry]:
        """Rows of one model, or of all models by name, oldest first.

        Raises:
            ReleaseError: a row was changed.
        """
        with self._connect() as connection:
            return _select(connection, model) if connection else []

    def models(self) -> list[str]:
        """Names of the models that have rows; the rows are not read."""
        with self._connect() as connection:
            query = _table().select().with_only_columns(_table().c.model).distinct()
            return sorted(connection.execute(query).scalars()) if connection else []

    def head(self, model: str) -> str:
        """The digest of a model's last row, empty where it has none: it changes with every row added."""
        with self._connect() as connection:
            table = _table()
            last = table.select().where(table.c.model == model).order_by(table.c.seq.desc()).limit(1)
            row = connection.execute(last).mappings().first() if connection else None
            return str(row["hash"]) if row else ""

    def append(self, model: str, decide: Callable[[Sequence[Entry]], Entry | NewRow]) -> Entry:
        """Adds the row that ``decide`` returns for the model's rows; an existing row is returned unchanged.

        Raises:
            ReleaseError: a row was changed or removed; nothing is added.
            ConfigError: the rows are sealed with a key that is not here; nothing is added.
        """
        from sqlalchemy.exc import IntegrityError

        with self._writable() as engine:
            for _ in range(_ATTEMPTS):
                anchor = self._seals.anchor(model) if self._seals else None  # before the rows, which only become more
                try:
                    with engine.begin() as connection:
                        rows = _select(connection, model)
                        check_anchor(model, anchor, [row.hash for row in rows])
                        decision = decide(rows)
                        if isinstance(decision, Entry):
                            return decision
                        entry = _insert(connection, _entry(model, rows, decision))
                        sealed_with = _sealed_with(connection, model)
                        key = self._seals.signing_key(model, {*sealed_with}) if self._seals else None
                        if key:
                            _insert_seals(connection, [entry], key)
                        is_anchored = anchor is not None or model not in sealed_with.values()
                        if self._seals and key and not anchor and is_anchored:
                            # before the first seal is committed: a sealed row never lacks its anchor
                            row_before = SealedRow(model, entry.seq - 1, entry.prev_hash)
                            self._seals.advance(row_before, key, since=entry.seq)
                except IntegrityError:
                    continue  # another writer took this number: read again, decide again
                if self._seals and key and is_anchored:
                    self._seals.advance(sealed_row(entry), key, since=entry.seq)
                return entry
        raise TransientError(
            "too many concurrent writers", where=mask_passwords(self._url), remedy="run the same command again"
        )

    def accept(self, model: str, decide: Callable[[Sequence[Entry]], NewRow]) -> Entry:
        """Adds a row, then seals and anchors all rows of a model as they are.

        Raises:
            ReleaseError: a row does not follow from the row before it.
            TransientError: another process has added a row in the meantime.
        """
        from sqlalchemy.exc import IntegrityError

        if self._seals is None:
            raise ConfigError("this ledger has no seals", where=mask_passwords(self._url), remedy="use open_ledger")
        key, busy = self._seals.key() or self._seals.create_key(), "run the same command again"
        with self._writable() as engine:
            try:
                with engine.begin() as connection:
                    rows = _select(connection, model)
                    entry = _insert(connection, _entry(model, rows, decide(rows)))
                    connection.execute(_seal_table().delete().where(_seal_table().c.model == model))
                    _insert_seals(connection, [*rows, entry], key)
            except IntegrityError:
                raise TransientError("another process writes to the ledger", where=model, remedy=busy) from None
        self._seals.advance(sealed_row(entry), key, since=1, reset=True)
        return entry

    def seals(self, model: str) -> dict[int, Seal]:
        """The seals of a model's rows, by number."""
        with self._connect() as connection:
            if connection is None or not connection.dialect.has_table(connection, "ledger_seals"):
                return {}
            rows = connection.execute(_seal_table().select().where(_seal_table().c.model == model)).mappings()
            return {row["seq"]: Seal(row["key_id"], row["mac"]) for row in rows}

    @contextmanager
    def _writable(self) -> Iterator["Engine"]:
        """The database, with its folder and tables."""
        with self._database() as (engine, file):
            if file:
                with files.disk(file):
                    file.parent.mkdir(parents=True, exist_ok=True)
            for table in (_table(), _seal_table()):
                _create(engine, table)
            yield engine

    @contextmanager
    def _connect(self) -> Iterator["Connection | None"]:
        """A connection for reading; None if there is no database or no table yet."""
        with self._database() as (engine, file):
            if file and not file.exists():
                yield None
                return
            with engine.connect() as connection:
                yield connection if engine.dialect.has_table(connection, "ledger") else None

    @contextmanager
    def _database(self) -> Iterator[tuple["Engine", Path | None]]:
        from sqlalchemy import create_engine, make_url
        from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError
        from sqlalchemy.pool import NullPool

        try:
            url = make_url(self._url)
            # each write begins with BEGIN IMMEDIATE: it waits for its turn instead of failing midway
            sqlite = {"timeout": _BUSY_SECONDS, "isolation_level": "IMMEDIATE"}
            is_sqlite = url.get_backend_name() == "sqlite"
            options = f"-c lock_timeout={_BUSY_SECONDS}s"
            connect = sqlite if is_sqlite else {"connect_timeout": _BUSY_SECONDS, "options": options}
            engine = create_engine(url, connect_args=connect, poolclass=NullPool)
        except (ArgumentError, NoSuchModuleError, ImportError) as error:
            raise ConfigError(
                f"not a ledger URL: {error}",
                where="TOWLINE_LEDGER_URL",
                remedy="write sqlite:////path/ledger.db or postgresql+psycopg://user@host/database",
            ) from None
        plain = is_sqlite and url.database and not url.database.startswith(("file:", ":"))
        try:
            yield engine, Path(url.database) if plain and url.database else None
        except SQLAlchemyError as error:
            reason = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
            raise TransientError(
                f"the ledger cannot be used: {reason}", where=mask_passwords(self._url), remedy=_remedy(reason)
            ) from error


@functools.cache
def _table() -> "Table":
    from sqlalchemy import Column, Integer, MetaData, String, Table, Text

    def text(name: str) -> "Column[str]":
        return Column(name, Text, nullable=False)

    return Table(
        "ledger",
        MetaData(),
        Column("model", String(63), primary_key=True),
        Column("seq", Integer, primary_key=True, autoincrement=False),
        Column("version", Integer, nullable=False),
        Column("previous", Integer),
        *map(text, ("time", "event", "actor", "reason", "evidence", "run_key", "release", "prev_hash", "hash")),
    )


@functools.cache
def _seal_table() -> "Table":
    from sqlalchemy import Column, Integer, MetaData, String, Table, Text

    return Table(
        "ledger_seals",
        MetaData(),
        Column("model", String(63), primary_key=True),
        Column("seq", Integer, primary_key=True, autoincrement=False),
        Column("key_id", Text, nullable=False),
        Column("mac", Text, nullable=False),
    )


def _create(engine: "Engine", table: "Table") -> None:
    from sqlalchemy.exc import DBAPIError
    from sqlalchemy.schema import CreateTable

    with engine.connect() as connection:
        if engine.dialect.has_table(connection, table.name):
            return
    try:
        with engine.begin() as connection:
            connection.execute(CreateTable(table, if_not_exists=True))
    except DBAPIError:  # PostgreSQL raises one of several errors when two processes create it at the same time
        with engine.connect() as connection:
            if not engine.dialect.has_table(connection, table.name):
                raise


def _insert(connection: "Connection", entry: Entry) -> Entry:
    values = entry.model_dump() | {"evidence": json.dumps(entry.evidence)}
    connection.execute(_table().insert().values(values))
    return entry


def sealed_row(entry: Entry) -> SealedRow:
    """The part of a row that a seal signs."""
    return SealedRow(entry.model, entry.seq, entry.hash)


def _insert_seals(connection: "Connection", entries: Iterable[Entry], key: LedgerKey) -> None:
    rows = [sealed_row(entry) for entry in entries]
    values = [{"model": row.model, "seq": row.seq, "key_id": key.id, "mac": key.seal(row).mac} for row in rows]
    connection.execute(_seal_table().insert(), values)


def _sealed_with(connection: "Connection", model: str) -> dict[str, str]:
    """The key of the model's newest seal → the model; if it has no seal, the keys of other models → another model."""
    seals = _seal_table()
    newest = seals.select().where(seals.c.model == model).order_by(seals.c.seq.desc()).limit(1)
    if (row := connection.execute(newest).mappings().first()) is not None:
        return {row["key_id"]: model}
    others = seals.select().with_only_columns(seals.c.key_id, seals.c.model).distinct()
    return {row["key_id"]: row["model"] for row in connection.execute(others).mappings()}


def _select(connection: "Connection", model: str | None) -> list[Entry]:
    table = _table()
    query = table.select().order_by(table.c.model, table.c.seq)
    if model is not None:
        query = query.where(table.c.model == model)
    return rows_of(dict(row) for row in connection.execute(query).mappings())


def rows_of(stored: Iterable[Mapping[str, Any]]) -> list[Entry]:
    """Parses and checks rows as the database holds them, ordered by model and seq, with ``evidence`` as text.

    Raises:
        ReleaseError: names the first row that was changed.
    """
    entries: list[Entry] = []
    before: Entry | None = None
    for row in stored:
        try:
            entry = _read_entry(*(row[name] for name in _FIELDS))
        except ValueError:  # from pydantic, json and _read_entry
            raise _changed_row_error(row["model"], row["seq"]) from None
        follows = before is not None and before.model == entry.model
        expected = (before.seq + 1, before.hash) if before is not None and follows else (1, "")
        if (entry.seq, entry.prev_hash) != expected:
            raise _changed_row_error(entry.model, entry.seq)
        entries.append(entry)
        before = entry
    return entries


@functools.lru_cache(maxsize=4096, typed=True)
def _read_entry(*values: Any) -> Entry:
    """One row from its stored fields; ValueError if its digest is wrong."""
    row = dict(zip(_FIELDS, values, strict=True))
    entry = Entry.model_validate({**row, "evidence": json.loads(row["evidence"])})
    if entry.digest() != entry.hash:
        raise ValueError("wrong digest")
    return entry


def _entry(model: str, rows: Sequence[Entry], draft: NewRow) -> Entry:
    entry = Entry(
        seq=len(rows) + 1,
        time=dt.datetime.now(dt.UTC).isoformat(),
        model=model,
        prev_hash=rows[-1].hash if rows else "",
        hash="",
        **json.loads(to_json(draft, inf_nan_mode="null")),
    )
    return entry.model_copy(update={"hash": entry.digest()})


def _changed_row_error(model: str, seq: int) -> ReleaseError:
    return ReleaseError(
        f"ledger row {seq} of {model} was changed after it was written",
        where=f"{model}, row {seq}",
        remedy="restore the ledger from a backup taken before the row was changed",
    )


def _remedy(reason: str) -> str:
    for part, remedy in (
        ("locked", "another process locks the ledger: wait for it to end, then run the same command again"),
        ("lock timeout", "another process locks the ledger: wait for it to end, then run the same command again"),
        ("readonly", "make the ledger's file and folder writable, or point TOWLINE_LEDGER_URL at one that is"),
        ("unable to open", "make the ledger's folder writable, or point TOWLINE_LEDGER_URL at one that is"),
        ("not a database", "the file is damaged: restore it from a backup, or move it away to start a new ledger"),
        ("malformed", "the file is damaged: restore it from a backup, or move it away to start a new ledger"),
        ("full", "free some disk space and run the same command again"),
    ):
        if part in reason:
            return remedy
    return "check that the database at TOWLINE_LEDGER_URL runs and accepts the user, then run the same command again"
