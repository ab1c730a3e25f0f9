"""A table of a database as output: it is loaded from a Parquet file and replaced in one transaction."""

import hashlib
import io
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from towline.config import Frozen
from towline.config.passwords import hide_passwords, mask_passwords
from towline.data.schema.arrow_types import readable_rows
from towline.data.source import sql_source
from towline.errors import ConfigError, DataError, TransientError

if TYPE_CHECKING:
    from sqlalchemy import Connection

_BATCH_ROWS = 50_000
_POSTGRES = "postgresql"
#: the first test that holds names the type: of PostgreSQL, of SQLite
_TYPES: tuple[tuple[Callable[[pa.DataType], bool], str, str], ...] = (
    (pa.types.is_boolean, "BOOLEAN", "INTEGER"),
    (lambda kind: kind == pa.uint64(), "NUMERIC", "INTEGER"),
    (pa.types.is_integer, "BIGINT", "INTEGER"),
    (pa.types.is_floating, "DOUBLE PRECISION", "REAL"),
    (pa.types.is_decimal, "NUMERIC", "NUMERIC"),
    (pa.types.is_date, "DATE", "TEXT"),
    (lambda kind: pa.types.is_timestamp(kind) and kind.tz is not None, "TIMESTAMPTZ", "TEXT"),
    (pa.types.is_timestamp, "TIMESTAMP", "TEXT"),
    (pa.types.is_time, "TIME", "TEXT"),
)


class TableOutput(Frozen):
    """A table of a database.

    Attributes:
        url: SQLAlchemy URL; passwords are moved to the environment.
        schema_name: of the table; empty for the default one.
        table: its name.
    """

    url: str
    schema_name: str
    table: str

    @classmethod
    def parse(cls, address: str) -> "TableOutput":
        """Reads ``URL#TABLE`` or ``URL#SCHEMA.TABLE``.

        Raises:
            ConfigError: the table is not named.

        Example:
            >>> TableOutput.parse("sqlite:///shop.db#scored").table
            'scored'
        """
        url, _, name = address.rpartition("#") if "#" in address else (address, "", "")
        schema, _, table = name.rpartition(".")
        if not table:
            remedy = "name the table after #, as in postgresql://user:${PW}@host/name#scored"
            raise ConfigError("the output names no table", where=mask_passwords(address), remedy=remedy)
        return cls(url=hide_passwords(url), schema_name=schema, table=table)

    @property
    def is_postgres(self) -> bool:
        return self.url.startswith(_POSTGRES)

    def __str__(self) -> str:
        return f"{mask_passwords(self.url)}#{f'{self.schema_name}.' if self.schema_name else ''}{self.table}"

    def name(self) -> str:
        """The quoted name of the table."""
        return ".".join(_quote(part) for part in (self.schema_name, self.table) if part)

    def check(self, folder: Path, *, overwrite: bool) -> None:
        """Checks that the database answers, and that the table does not exist or may be replaced.

        Raises:
            ConfigError: the database is neither PostgreSQL nor SQLite; or the table exists.
            TransientError: the database cannot be reached.
        """
        from sqlalchemy import inspect

        if not self.is_postgres and not self.url.startswith("sqlite"):
            remedy = "give a PostgreSQL or SQLite URL, or write a file and load it"
            raise ConfigError("tables can be written to PostgreSQL and SQLite", where=str(self), remedy=remedy)
        with self._connect(folder) as connection:
            exists = inspect(connection).has_table(self.table, schema=self.schema_name or None)
        if exists and not overwrite:
            remedy = "give OUT another name, or add --overwrite"
            raise ConfigError("the table exists", where=str(self), remedy=remedy)

    def load(self, source: Path, folder: Path) -> int:
        """Replaces the table by the rows of a Parquet file, in one transaction; returns the number of rows.

        A table with the same columns gets the new rows, so that its grants, indexes and views stay.

        Raises:
            ConfigError: SQLite does not distinguish two of the columns.
            TransientError: the database cannot be reached or ended the connection; an earlier table is unchanged.
        """
        try:
            with pq.ParquetFile(source) as file, self._connect(folder) as connection:
                schema = file.schema_arrow
                self._check_names(schema.names)
                digest = hashlib.sha256(self.table.encode()).hexdigest()[:16]
                staged = self.model_copy(update={"table": f"towline_staging_{digest}"})
                staging = staged.name()
                if not self.is_postgres:
                    _execute(connection, "BEGIN")  # Python's driver begins a transaction at the first INSERT only
                _execute(connection, f"DROP TABLE IF EXISTS {staging}")
                _execute(connection, f"CREATE TABLE {staging} ({self._columns(schema)})")
                copy = self._copy_to_postgres if self.is_postgres else self._insert_into_sqlite
                copy(connection, staging, map(readable_rows, file.iter_batches(_BATCH_ROWS)))
                if self._read_columns(connection) == staged._read_columns(connection):
                    _execute(connection, f"DELETE FROM {self.name()}")  # noqa: S608 - the names are quoted
                    _execute(connection, f"INSERT INTO {self.name()} SELECT * FROM {staging}")  # noqa: S608
                    _execute(connection, f"DROP TABLE {staging}")
                else:
                    _execute(connection, f"DROP TABLE IF EXISTS {self.name()}")
                    _execute(connection, f"ALTER TABLE {staging} RENAME TO {_quote(self.table)}")
                connection.commit()
                return int(file.metadata.num_rows)
        except DataError as error:
            raise self._not_written(error.what) from None

    def _connect(self, folder: Path) -> "AbstractContextManager[Connection]":
        return sql_source.connect(self.url, folder, create=True, setting="OUT")

    def _not_written(self, reason: str) -> TransientError:
        what = f"the table was not written: {mask_passwords(reason)}"
        again = "run the same command again: the rows are scored, only the table is written again"
        is_needed = "depend on it" in reason
        remedy = f"its columns changed: drop the views that use it, then {again}" if is_needed else again
        return TransientError(what, where=str(self), remedy=remedy)

    def _read_columns(self, connection: "Connection") -> list[tuple[str, str]]:
        """Names and types of the columns of the table; empty if it does not exist."""
        from sqlalchemy import inspect

        database = inspect(connection)
        if not database.has_table(self.table, schema=self.schema_name or None):
            return []
        columns = database.get_columns(self.table, schema=self.schema_name or None)
        return [(column["name"], str(column["type"])) for column in columns]

    def _check_names(self, names: Sequence[str]) -> None:
        same = {name.lower(): name for name in names}
        twice = [name for name in names if same[name.lower()] != name]
        if twice and not self.is_postgres:
            what = f"SQLite does not distinguish the columns {twice[0]!r} and {same[twice[0].lower()]!r}"
            remedy = "leave one out with --keep, or write to PostgreSQL or a file"
            raise ConfigError(what, where=str(self), remedy=remedy)

    def _columns(self, schema: pa.Schema) -> str:
        at = 1 if self.is_postgres else 2
        kinds = [next((row[at] for row in _TYPES if row[0](field.type)), "TEXT") for field in schema]
        return ", ".join(f"{_quote(field.name)} {kind}" for field, kind in zip(schema, kinds, strict=True))

    def _copy_to_postgres(self, connection: "Connection", staging: str, batches: Iterator[pa.RecordBatch]) -> None:
        import psycopg

        driver: Any = connection.connection.driver_connection
        try:
            with driver.cursor() as cursor, cursor.copy(f"COPY {staging} FROM STDIN WITH (FORMAT csv)") as copy:
                for batch in batches:
                    copy.write(_as_csv(batch))
        except psycopg.Error as error:
            raise self._not_written(str(error).split("\n")[0][:200]) from None

    def _insert_into_sqlite(self, connection: "Connection", staging: str, batches: Iterator[pa.RecordBatch]) -> None:
        for batch in batches:
            marks = ", ".join("?" * batch.num_columns)
            columns = [[_sqlite_value(value) for value in column.to_pylist()] for column in batch.columns]
            statement = f"INSERT INTO {staging} VALUES ({marks})"  # noqa: S608 - the name is quoted
            _execute(connection, statement, list(zip(*columns, strict=True)))


def is_database(address: str) -> bool:
    """Whether an address is the URL of a PostgreSQL or SQLite database."""
    return bool(re.match(r"(postgresql|sqlite)(\+\w+)?://", address))


def _execute(connection: "Connection", statement: str, rows: list[tuple[Any, ...]] | None = None) -> None:
    connection.exec_driver_sql(statement, rows) if rows else connection.exec_driver_sql(statement)


def _quote(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _as_csv(batch: pa.RecordBatch) -> bytes:
    """CSV for COPY: null is an empty field without quotes, an empty text has quotes."""
    text = io.BytesIO()
    writable = [
        column if _is_plain(column.type) else pa.array([_text(value) for value in column.to_pylist()], pa.string())
        for column in batch.columns
    ]
    table = pa.Table.from_arrays(writable, [str(place) for place in range(len(writable))])
    options = pyarrow.csv.WriteOptions(include_header=False, quoting_style="all_valid")
    pyarrow.csv.write_csv(table, text, options)
    return text.getvalue()


def _is_plain(kind: pa.DataType) -> bool:
    """Whether Arrow writes a value of this type as COPY reads it; floats are written with all their digits."""
    checks = (pa.types.is_string, pa.types.is_large_string, pa.types.is_integer, pa.types.is_boolean)
    return any(check(kind) for check in checks)


def _text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return repr(value) if isinstance(value, float) else str(value)


def _sqlite_value(value: Any) -> Any:
    is_stored = value is None or isinstance(value, (float, str, bytes))
    return value if is_stored or (isinstance(value, int) and abs(value) < 2**63) else _text(value)
