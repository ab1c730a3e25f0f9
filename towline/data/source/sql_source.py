"""Databases as a source: connects, and reads the result of a query in blocks, so that memory is bounded.

A column gets the type that all of its values have, although each block is converted on its own.
"""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from towline.config import SqlSource
from towline.config.passwords import expand_variables, mask_passwords
from towline.data.schema.columns import MAX_EXAMPLES, list_examples
from towline.data.source.formats import missing_file
from towline.errors import ConfigError, DataError, TransientError

if TYPE_CHECKING:
    from sqlalchemy import Connection, CursorResult, Row

MIN_SAMPLE_ROWS = 2_000  # however wide the table is
BLOCK_ROWS, BLOCK_CELLS = 50_000, 2_000_000  # that are fetched together


def read_query(source: SqlSource, project: Path, cells: int, make_folder: Callable[[], Path]) -> pa.Table | Path:
    """The rows of one SELECT: a table, or a Parquet file if it has too many cells; they are fetched in blocks.

    Args:
        source: ``${NAME}`` in its URL is replaced from the environment; user and password need no URL encoding there.
        project: a relative path of a SQLite file starts here.
        cells: the maximum rows × columns of a table.
        make_folder: makes an empty folder for the file.

    Raises:
        ConfigError: the URL is invalid, a variable is not set, or the driver is not installed.
        DataError: the query fails, or returns no rows or a column of mixed types.
        TransientError: the database cannot be reached, is locked, or ended the connection.
    """
    where, folder = mask_passwords(source.url), None
    with execute_query(source, project) as result:
        rows = QueryRows(column_names(result), where)
        for block in fetch_blocks(result):
            rows.add(block)
            if folder is None and rows.number * len(rows.names) > cells:
                folder = make_folder()
                rows.spill(folder)
    if not rows.number:
        raise DataError("the query returned no rows", where=where, remedy="correct data.source.query")
    if folder is None:
        return rows.table()
    rows.write(folder / "query.parquet")
    return folder / "query.parquet"


def sample_query(source: SqlSource, project: Path, cells: int, seed: int = 42) -> tuple[pa.Table, int]:
    """A random sample of the rows of one SELECT, in their order, and the number of all rows.

    Args:
        source: as in ``read_query``.
        project: as in ``read_query``.
        cells: the maximum number of values of the sample, which has at least ``MIN_SAMPLE_ROWS`` rows.
        seed: draws the rows.

    Raises:
        ConfigError, DataError, TransientError: as ``read_query``.
    """
    with execute_query(source, project) as result:
        names = column_names(result)
        drawn, number = _draw_rows(result, cells, seed) if names else ([], 0)
    where = mask_passwords(source.url)
    if not drawn:
        raise DataError("the query returned no rows", where=where, remedy="correct data.source.query")
    rows = QueryRows(names, where)
    rows.add(drawn)
    return rows.table(), number


@contextlib.contextmanager
def execute_query(source: SqlSource, project: Path, setting: str = "data.source") -> "Iterator[CursorResult[Any]]":
    """The result of one SELECT; its rows stay in the database until they are fetched (a server-side cursor).

    Args:
        source: as in ``read_query``.
        project: as in ``read_query``.
        setting: where the user gave the query, for errors.

    Raises:
        ConfigError, DataError, TransientError: as ``read_query``.
    """
    with connect(source.url, project, setting=setting) as connection:
        # sent to the driver unchanged: a colon or a percent sign in the query is not a parameter
        options: dict[str, Any] = {"no_parameters": True, "stream_results": True}
        yield connection.execution_options(**options).exec_driver_sql(source.query)


def column_names(result: "CursorResult[Any]") -> list[str]:
    """The names of the columns of a result; none if the statement returns no rows."""
    return list(result.keys()) if result.returns_rows else []


def fetch_blocks(result: "CursorResult[Any]") -> "Iterator[Sequence[Row[Any]]]":
    """The rows of a result, in blocks."""
    if names := column_names(result):
        yield from result.partitions(min(BLOCK_ROWS, max(500, BLOCK_CELLS // len(names))))


@contextlib.contextmanager
def connect(
    address: str, project: Path, *, create: bool = False, setting: str = "data.source"
) -> "Iterator[Connection]":
    """A connection to a database, with a transaction that the caller commits.

    Args:
        address: SQLAlchemy URL; ``${NAME}`` in it is replaced from the environment.
        project: a relative path of a SQLite file starts here.
        create: whether a SQLite file that does not exist is made.
        setting: where the user gave the address, for errors.

    Raises:
        ConfigError: the URL is invalid, a variable is not set, or the driver is not installed.
        DataError: a statement fails.
        TransientError: the database cannot be reached, is locked, or ended the connection.
    """
    from sqlalchemy import create_engine, exc, make_url

    where = mask_passwords(address)
    try:
        url = make_url(expand_variables(address))
    except (exc.ArgumentError, ValueError):
        remedy = "write postgresql://user:${PW}@host/name"
        raise ConfigError("not a database URL", where=f"{setting}: {where}", remedy=remedy) from None
    if url.drivername == "postgresql":
        url = url.set(drivername="postgresql+psycopg")
    if url.get_backend_name() == "sqlite" and url.database and not url.database.startswith((":", "file:")):
        if not create and not (project / url.database).is_file():
            raise missing_file(project / url.database)  # SQLite would create an empty file
        url = url.set(database=str(project / url.database))
    try:
        engine = create_engine(url)
    except (exc.NoSuchModuleError, ImportError) as error:
        raise ConfigError(f"no driver for the database: {error}", where=where, remedy="install the driver") from None
    connected = False
    try:
        with engine.connect() as connection:
            connected = True
            yield connection
    except exc.DBAPIError as error:
        reason = str(error.orig).split("\n")[0][:300]
        for secret in (url.password, url.query.get("password")):
            reason = reason.replace(str(secret or "\0"), "***")
        if not connected or error.connection_invalidated or "locked" in reason:
            what, remedy = f"the database does not answer: {reason}", "check that it runs and can be reached from here"
            raise TransientError(what, where=where, remedy=remedy) from None
        raise DataError(f"the query failed: {reason}", where=where, remedy=f"correct the query of {setting}") from None
    finally:
        engine.dispose()


class QueryRows:
    """The rows of a query result, which are added in blocks.

    Args:
        names: of the columns.
        where: the database, for errors.
    """

    def __init__(self, names: Sequence[str], where: str) -> None:
        self.names, self.number, self._where = list(names), 0, where
        self._columns = [_ColumnValues() for _ in names]
        self._folder: Path | None = None
        self._blocks = list[pa.Table | Path]()

    def add(self, rows: "Sequence[Row[Any]]") -> None:
        """Adds rows."""
        values = zip(*rows, strict=True)
        arrays = [column.add(each, self.number) for column, each in zip(self._columns, values, strict=True)]
        self.number += len(rows)
        table = pa.Table.from_arrays(arrays, self.names)
        self._blocks.append(table if self._folder is None else _store(table, self._folder, len(self._blocks)))

    def spill(self, folder: Path) -> None:
        """Moves the rows, and those that are added later, from memory to files in a folder."""
        self._folder = folder
        for number, block in enumerate(self._blocks):
            if isinstance(block, pa.Table):
                self._blocks[number] = _store(block, folder, number)

    def table(self) -> pa.Table:
        """All rows.

        Raises:
            DataError: a column mixes types.
        """
        schema = self._schema()
        return pa.concat_tables([self._convert(block, schema) for block in self._blocks])

    def write(self, target: Path | IO[bytes]) -> None:
        """Writes all rows to a Parquet file, and removes the files of the blocks.

        Raises:
            DataError: a column mixes types, or has a type that is not stored.
        """
        schema = self._schema()
        try:
            with pq.ParquetWriter(target, schema, compression="zstd", compression_level=1) as writer:
                for block in self._blocks:
                    writer.write_table(self._convert(block, schema))
                    if isinstance(block, Path):
                        block.unlink()
        except pa.ArrowNotImplementedError as error:
            what, remedy = str(error).split("\n")[0][:200], "leave the column out of the query, or CAST it to text"
            raise DataError(f"a column cannot be read: {what}", where=self._where, remedy=remedy) from None

    def _schema(self) -> pa.Schema:
        named = zip(self.names, self._columns, strict=True)
        return pa.schema([pa.field(name, column.common_type(name, self._where)) for name, column in named])

    def _convert(self, block: pa.Table | Path, schema: pa.Schema) -> pa.Table:
        """A block with the types that the columns of all blocks have."""
        if isinstance(block, Path):
            with pa.memory_map(str(block)) as mapped, pa.ipc.open_stream(mapped) as reader:
                block = reader.read_all()
        columns = zip(block.columns, schema, strict=True)
        return pa.Table.from_arrays([_convert(column, field.type) for column, field in columns], schema=schema)


def _store(table: pa.Table, folder: Path, number: int) -> Path:
    path = folder / f"{number:06d}.arrow"
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    return path


class _ColumnValues:
    """The values of a column so far: the types of its blocks, and the kinds of its values."""

    def __init__(self) -> None:
        self._types = set[pa.DataType]()
        self._counts = Counter[str]()
        self._examples = dict[str, dict[int, Any]]()  # by kind: the first ones, by row

    def add(self, values: Sequence[Any], start: int) -> pa.Array:
        """The next values as an array; nulls if they mix kinds. ``start`` is the row of the first one."""
        array = _to_array(values)
        if array is not None:
            present = np.flatnonzero(array.is_valid().to_numpy(zero_copy_only=False))
            if len(present):
                self._note(_kind(values[present[0]]), present, values, start)
        else:
            kinds = np.array([_kind(value) for value in values], dtype=object)
            distinct = sorted(set(kinds) - {""})
            for kind in distinct:
                self._note(kind, np.flatnonzero(kinds == kind), values, start)
            array = _to_one_kind(values, distinct[0]) if len(distinct) == 1 else pa.nulls(len(values))
        self._types.add(array.type)
        return array

    def common_type(self, name: str, where: str) -> pa.DataType:
        """The type of the column.

        Raises:
            DataError: its values are of several kinds.
        """
        kinds = sorted(self._counts)
        if len(kinds) > 1 and kinds != ["bytes", "str"]:
            rarest = min(kinds, key=self._counts.__getitem__)
            examples = self._examples[rarest]
            raise DataError(
                f"column {name!r} mixes {' and '.join(kinds)}",
                where=where,
                remedy="make it one type in the query, e.g. CAST",
                details=(list_examples(examples, list(examples), total=self._counts[rarest]),),
            )
        if kinds == ["number"] and pa.float64() in self._types:
            return pa.float64()
        try:
            schemas = [pa.schema([pa.field("value", kind)]) for kind in self._types]
            return pa.unify_schemas(schemas, promote_options="permissive").field(0).type
        except pa.ArrowException:
            return pa.float64() if kinds == ["number"] else pa.string()

    def _note(self, kind: str, positions: np.ndarray, values: Sequence[Any], start: int) -> None:
        """Counts the values at these positions, which are of one kind."""
        self._counts[kind] += len(positions)
        examples = self._examples.setdefault(kind, {})
        for position in positions[: MAX_EXAMPLES - len(examples)].tolist():
            examples[start + position] = values[position]


def _to_array(values: Sequence[Any]) -> pa.Array | None:
    """The values with the type that Arrow finds; None if there is none."""
    try:
        array = pa.array(values)
    except (pa.ArrowException, OverflowError, TypeError):  # TypeError: an infinite Decimal
        return None
    return None if isinstance(array.type, pa.BaseExtensionType) else array


def _to_one_kind(values: Sequence[Any], kind: str) -> pa.Array:
    """Values of one kind as numbers or as text, e.g. whole numbers beyond 64 bits, network addresses, UUIDs."""
    convert = float if kind == "number" else str
    return pa.array([None if value is None else convert(value) for value in values])


def _convert(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    if column.type in (kind, pa.null()):
        return column.cast(kind)
    if kind == pa.string() or (pa.types.is_decimal(column.type) and kind == pa.float64()):
        values = _to_one_kind(column.to_pylist(), "number" if kind == pa.float64() else "")
        return pa.chunked_array([values.cast(kind)])
    return column.cast(kind, safe=False)


def _draw_rows(result: "CursorResult[Any]", cells: int, seed: int) -> tuple[Sequence["Row[Any]"], int]:
    """A sample of the rows of a result (those with the smallest random keys), and the number of all rows."""
    limit = max(MIN_SAMPLE_ROWS, cells // len(result.keys()))
    draw, number, threshold = np.random.default_rng(seed), 0, 1.0
    keyed: list[tuple[float, Row[Any]]] = []
    for block in result.partitions(10_000):
        number += len(block)
        keyed += [pair for pair in zip(draw.random(len(block)).tolist(), block, strict=True) if pair[0] < threshold]
        if len(keyed) > 2 * limit:
            threshold = _nth_key(keyed, limit)
            keyed = [pair for pair in keyed if pair[0] < threshold]
    threshold = _nth_key(keyed, limit) if len(keyed) > limit else 1.0
    return [row for key, row in keyed if key < threshold], number


def _nth_key(keyed: "Sequence[tuple[float, Row[Any]]]", position: int) -> float:
    return sorted(key for key, _ in keyed)[position]


def _kind(value: object) -> str:
    if isinstance(value, (int, float, Decimal)) and not isinstance(value, bool):
        return "number"
    return "" if value is None else type(value).__name__
