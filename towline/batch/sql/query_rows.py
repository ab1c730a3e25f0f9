"""The rows of a query are copied to a Parquet file in the folder of the output; this file is then scored.

An interrupted job finds the file again, so that it resumes on the same rows whatever happens in the database meanwhile.
After a day it reads them again.
"""

import datetime as dt
import hashlib
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from towline import files
from towline.batch.input.row_batch import batch_rows
from towline.config import SqlSource
from towline.config.passwords import mask_passwords
from towline.data import formats
from towline.errors import DataError, TowlineError, TransientError

_MARK = ".towline-query-"
_MAX_AGE = dt.timedelta(days=1)  # an older file of an interrupted job is read again


@contextmanager
def copy_of_query(source: SqlSource, output: Path, folder: Path, show: Callable[[int], None]) -> Iterator[Path]:
    """The Parquet file with the rows of a query; it is removed when the block succeeds.

    Args:
        source: the database and the query.
        output: of the job; the copy is in its folder.
        folder: at which a relative path of a SQLite file starts.
        show: receives the number of rows that were read.

    Raises:
        ConfigError: the URL is invalid, a variable is not set, or the driver is not installed.
        DataError: the query fails, returns no rows, or has a column of mixed types.
        TransientError: the database cannot be reached or ended the connection, or the disk is full.
    """
    key = hashlib.sha256(f"{mask_passwords(source.url)}\n{source.query}".encode()).hexdigest()[:16]
    place = output.parent / f".{output.name}{_MARK}{key}"
    rows = place / "query.parquet"
    try:
        if not rows.exists() or files.age(rows) > _MAX_AGE:
            with files.disk(output.parent):
                shutil.rmtree(place, ignore_errors=True)
                place.mkdir(parents=True, mode=0o700)
                _join_blocks(_write_blocks(source, folder, place, show), rows, mask_passwords(source.url))
        yield rows
    except TransientError:
        raise  # the rows stay for the next try
    except TowlineError:  # what is corrected in the database must be read
        shutil.rmtree(place, ignore_errors=True)
        raise
    shutil.rmtree(place, ignore_errors=True)


def _write_blocks(source: SqlSource, folder: Path, place: Path, show: Callable[[int], None]) -> list[Path]:
    """Writes blocks of rows, each with the types of its own values."""
    where, blocks, done = mask_passwords(source.url), list[Path](), 0
    with formats.execute_query(source, folder, stream=True, setting="IN") as result:
        names = list(result.keys()) if result.returns_rows else []
        for number, rows in zip(count(), result.partitions(batch_rows(len(names))) if names else ()):
            block = place / f"{number:06d}.arrow"
            table = pa.Table.from_arrays(formats.to_arrays(names, rows, where), names)
            with pa.OSFile(str(block), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
                writer.write_table(table)
            blocks.append(block)
            done += len(rows)
            show(done)
    if not blocks:
        raise DataError("the query returned no rows", where=where, remedy="correct the query of IN")
    return blocks


def _join_blocks(blocks: list[Path], target: Path, where: str) -> None:
    """Writes one Parquet file with the types that all blocks have in common."""
    schemas = [pa.ipc.open_stream(pa.memory_map(str(block))).schema for block in blocks]
    try:
        schema = pa.unify_schemas(schemas, promote_options="permissive")
    except pa.ArrowException as error:
        reason = str(error).split("\n")[0][:200]
        what = f"a column has values of different types: {reason}"
        raise DataError(what, where=where, remedy="make it one type in the query, e.g. CAST") from None
    with files.replacing(target) as file, pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for block in blocks:
            with pa.memory_map(str(block)) as mapped, pa.ipc.open_stream(mapped) as reader:
                writer.write_table(reader.read_all().cast(schema))
            block.unlink()
