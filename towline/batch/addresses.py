"""Batch scoring from and to addresses: files, URLs and databases.

A query becomes a file that is scored. What goes to a table or to a URL is written to a file of the store first.
"""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from towline.batch.batch_summary import BatchResult
from towline.batch.job import Record, score_source
from towline.batch.job_options import BatchRequest
from towline.batch.remote_output import RemoteOutput, remove_local
from towline.batch.runner import Progress, Show
from towline.batch.sql.query_rows import copy_of_query
from towline.batch.sql.table_output import TableOutput, is_database
from towline.config import SqlSource
from towline.config.passwords import mask_passwords
from towline.errors import ConfigError
from towline.inference.predictor import Model
from towline.remote_files import is_url, local_path, name_of
from towline.store import StoreLayout


def parse_source(source: str, query: str | None) -> str | SqlSource:
    """The source of a job: files, or a query on a database.

    Args:
        source: a file, a folder, a pattern, or the URL of one; the URL of a database, or ``URL#TABLE``.
        query: one SELECT; None: all rows of the table.

    Raises:
        ConfigError: a URL without a table or a query, or a query without a URL.
    """
    if not is_database(source):
        if query is not None:
            remedy = "give the URL of a database as IN, such as postgresql://user:${PW}@host/name"
            raise ConfigError("only a database has queries", where="--query", remedy=remedy)
        return local_path(source)
    if query is not None:
        return SqlSource(url=source, query=query)
    if "#" not in source:
        remedy = "name a table after #, or add --query 'SELECT ...'"
        raise ConfigError("neither a table nor a query", where=mask_passwords(source), remedy=remedy)
    return _table_source(TableOutput.parse(source))


def _table_source(table: TableOutput) -> SqlSource:
    return SqlSource(url=table.url, query=f"SELECT * FROM {table.name()}")  # noqa: S608 - the name is quoted


def default_name(source: str) -> str:
    """The name of the output of a source: that of a file, or of a table as Parquet."""
    return f"{source.rpartition('#')[2]}.parquet" if is_database(source) else name_of(source)


def score(
    model: Model,
    source: str | SqlSource,
    output: str,
    make_request: Callable[..., BatchRequest],
    layout: StoreLayout,
    show: Show | None = None,
    record: Record | None = None,
) -> BatchResult:
    """As ``score_source``; the source may be a query, and the output a URL or ``URL#TABLE``.

    Args:
        model: that scores.
        source: files or a query.
        output: a file, a folder or a table.
        make_request: makes the request of a job with this ``source`` and ``output``.
        layout: of the store, in which an output waits for its upload.
        show: receives the progress.
        record: receives the result when the output is complete.

    Raises:
        ConfigError: as ``score_source``; or a URL is invalid, a table exists, or nothing may be written there.
        DataError: as ``score_source``; or the query fails.
        TransientError: as ``score_source``; or the database or the server cannot be reached.
    """
    target = _parse_output(output)
    path = target if isinstance(target, Path) else _staging_path(target, layout)
    request = make_request(source="" if isinstance(source, SqlSource) else source, output=path)
    folder = request.folder or Path.cwd()
    if isinstance(target, TableOutput):
        if isinstance(source, SqlSource) and source == _table_source(target):
            raise _replaces_input(target)
        target.check(folder, overwrite=request.overwrite)
        request = request.model_copy(update={"overwrite": True})
    elif isinstance(target, RemoteOutput):
        _check_distinct(source, target)
        request = request.model_copy(update={"destination": target.inspect(path)})
    with ExitStack() as stack:
        if isinstance(source, SqlSource):
            path.parent.mkdir(parents=True, exist_ok=True)
            rows = stack.enter_context(copy_of_query(source, path.absolute(), folder, _show_rows(show)))
            request = request.model_copy(update={"source": str(rows)})
        result = score_source(model, request, show, record if isinstance(target, Path) else None)
        if not isinstance(target, Path) and path.exists():
            return _deliver(target, path, folder, result, record)
    return result


def _parse_output(output: str) -> Path | TableOutput | RemoteOutput:
    output = local_path(output)
    if is_database(output):
        return TableOutput.parse(output)
    return RemoteOutput.parse(output) if is_url(output) else Path(output)


def _staging_path(target: TableOutput | RemoteOutput, layout: StoreLayout) -> Path:
    """The path of an output until it is loaded or uploaded."""
    if isinstance(target, TableOutput):
        return layout.staged_table(str(target))
    return layout.staged_upload(str(target), target.name or "output")


def _check_distinct(source: str | SqlSource, target: RemoteOutput) -> None:
    if isinstance(source, str) and is_url(source) and RemoteOutput.parse(source) == target:
        raise _replaces_input(target)


def _replaces_input(target: TableOutput | RemoteOutput) -> ConfigError:
    return ConfigError("the output would replace the input", where=str(target), remedy="give OUT another name")


def _deliver(
    target: TableOutput | RemoteOutput, path: Path, folder: Path, result: BatchResult, record: Record | None
) -> BatchResult:
    """Loads or uploads a complete output, and removes it from the store."""
    result = result.model_copy(update={"output": str(target), "unchanged": False})
    if isinstance(target, TableOutput):
        target.load(path, folder)
    else:
        target.upload(path, result)
    if record:
        record(result)
    if isinstance(target, TableOutput):
        path.unlink()
    else:
        remove_local(path)
    return result


def _show_rows(show: Show | None) -> Callable[[int], None]:
    """Shows the number of rows that were read from the database."""
    return lambda rows: show(Progress(rows, 0.0, 0.0, 0.0)) if show else None
