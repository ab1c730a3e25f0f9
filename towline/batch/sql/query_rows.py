"""The rows of a query are copied to a Parquet file in the folder of the output; this file is then scored.

A resumed job reads the file again, so it has the same rows, even if the database has changed in the meantime.
After a day it reads them again.
"""

import datetime as dt
import hashlib
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from towline import files
from towline.config import SqlSource
from towline.config.passwords import mask_passwords
from towline.data.source import sql_source
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
        DataError: the query fails, is no SELECT, or has a column of mixed types.
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
                _copy_rows(source, folder, place, rows, show)
        yield rows
    except TowlineError as error:
        error.where = error.where.replace(str(rows), mask_passwords(source.url))
        if not isinstance(error, TransientError):  # then the rows stay for the next try
            shutil.rmtree(place, ignore_errors=True)  # rows that were corrected in the database must be read
        raise
    shutil.rmtree(place, ignore_errors=True)


def _copy_rows(source: SqlSource, folder: Path, place: Path, rows: Path, show: Callable[[int], None]) -> None:
    where = mask_passwords(source.url)
    with sql_source.execute_query(source, folder, "IN") as result:
        if not (names := sql_source.column_names(result)):
            raise DataError("the statement returns no rows", where=where, remedy="give one SELECT")
        collected = sql_source.QueryRows(names, where)
        collected.spill(place)
        for block in sql_source.fetch_blocks(result):
            collected.add(block)
            show(collected.number)
    with files.replacing(rows) as file:
        collected.write(file)
