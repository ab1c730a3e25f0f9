"""Batch scoring from and to databases: a query becomes a file that is scored, a file of predictions becomes a table."""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from towline.batch.batch_summary import BatchResult
from towline.batch.job import Record, score_source
from towline.batch.job_options import BatchRequest
from towline.batch.runner import Progress, Show
from towline.batch.sql.query_rows import copy_of_query
from towline.batch.sql.table_output import TableOutput, is_database
from towline.config import SqlSource
from towline.config.passwords import mask_passwords
from towline.errors import ConfigError
from towline.inference.predictor import Model


def parse_source(source: str, query: str | None) -> str | SqlSource:
    """The source of a job: files, or a query on a database.

    Args:
        source: a file, a folder, a pattern, the URL of a database, or ``URL#TABLE``.
        query: one SELECT; None: all rows of the table.

    Raises:
        ConfigError: a URL without a table or a query, or a query without a URL.
    """
    if not is_database(source):
        if query is not None:
            remedy = "give the URL of a database as IN, such as postgresql://user:${PW}@host/name"
            raise ConfigError("only a database has queries", where="--query", remedy=remedy)
        return source
    if query is not None:
        return SqlSource(url=source, query=query)
    if "#" not in source:
        remedy = "name a table after #, or add --query 'SELECT ...'"
        raise ConfigError("neither a table nor a query", where=mask_passwords(source), remedy=remedy)
    table = TableOutput.parse(source)
    return SqlSource(url=table.url, query=f"SELECT * FROM {table.name()}")  # noqa: S608 - the name is quoted


def score(
    model: Model,
    source: str | SqlSource,
    output: str,
    make_request: Callable[..., BatchRequest],
    staged: Callable[[str], Path],
    show: Show | None = None,
    record: Record | None = None,
) -> BatchResult:
    """As ``score_source``; the source may be a query, and the output ``URL#TABLE``.

    Args:
        model: that scores.
        source: files or a query.
        output: a file, a folder or a table.
        make_request: makes the request of a job with this ``source`` and ``output``.
        staged: the path of a Parquet file for the rows of a table until they are loaded.
        show: receives the progress.
        record: receives the result when the output is complete.

    Raises:
        ConfigError: as ``score_source``; or a URL is invalid, or a table exists.
        DataError: as ``score_source``; or the query fails.
        TransientError: as ``score_source``; or the database cannot be reached or ended the connection.
    """
    table = TableOutput.parse(output) if is_database(output) else None
    path = staged(str(table)) if table else Path(output)
    request = make_request(source="" if isinstance(source, SqlSource) else source, output=path)
    folder = request.folder or Path.cwd()
    if table:
        table.check(folder, overwrite=request.overwrite)
        request = request.model_copy(update={"overwrite": True})
    with ExitStack() as stack:
        if isinstance(source, SqlSource):
            path.parent.mkdir(parents=True, exist_ok=True)
            rows = stack.enter_context(copy_of_query(source, path.absolute(), folder, _show_rows(show)))
            request = request.model_copy(update={"source": str(rows)})
        result = score_source(model, request, show, None if table else record)
        if table:
            table.load(path, folder)
            result = result.model_copy(update={"output": str(table), "unchanged": False})
            if record:
                record(result)
            path.unlink()
    return result


def _show_rows(show: Show | None) -> Callable[[int], None]:
    """Shows the number of rows that were read from the database."""
    return lambda rows: show(Progress(rows, 0.0, 0.0, 0.0)) if show else None
