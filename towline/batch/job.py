"""A job of batch scoring: checks it, scores its shards, and gives the output its name."""

import datetime as dt
import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from towline import __version__, files
from towline.batch.batch_summary import BatchResult, check_columns
from towline.batch.drift_counts import BatchDrift
from towline.batch.engines.choice import open_engine
from towline.batch.engines.engine import Engine
from towline.batch.input.shards import FilePath, Shard
from towline.batch.input.source import ShardedFiles, list_inputs, open_source
from towline.batch.job_options import BatchOptions, BatchRequest, OutputFormat, ReleaseReference, ShardTask
from towline.batch.output.assembly import assemble_quarantine, digest_of, open_assembly, replace_output
from towline.batch.output.pieces import addable_columns, label_type, name_added_columns
from towline.batch.runner import Show, run_shards
from towline.batch.work_folder import ShardResult, WorkFolder, remove_other_folders
from towline.config import suggest
from towline.data.schema import arrow_types
from towline.data.source.formats import TABLES
from towline.errors import ConfigError, DataError
from towline.inference.predictor import Model
from towline.processes import private_files
from towline.remote_files import RemoteFile, naming_originals

_TEXT_OUTPUTS: Mapping[str, OutputFormat] = {
    ".csv": "csv", ".tsv": "csv", ".txt": "csv", ".jsonl": "json lines", ".ndjson": "json lines",
}  # fmt: skip
_COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
MAX_NAME_BYTES = 200  # of OUT: file systems allow 255, and longer names are made from it
QUARANTINE, SUMMARY = ".quarantine.csv", ".summary.json"
Record = Callable[[BatchResult], object]
RunShards = Callable[[Sequence[Shard], ShardTask], Iterable[tuple[Shard, ShardResult]]]


def score_source(
    model: Model, request: BatchRequest, show: Show | None = None, record: Record | None = None
) -> BatchResult:
    """Scores files and writes their rows with the added columns.

    An interrupted job resumes when it is called again with the same arguments; finished shards are not scored again.
    If the output of the same input, version and options is complete, no row is scored.

    Args:
        model: that scores.
        request: input, output and options.
        show: receives the progress.
        record: receives the result when the output is complete.

    Raises:
        ConfigError: the output exists, its format is unknown, an option does not fit, or a worker of the cluster does
            not.
        DataError: the source cannot be read or does not have the model's columns; or a row is bad, and
            ``options.bad_rows`` is stop.
        TransientError: the disk is full, a worker process ended, or the cluster does not answer.
    """
    copies = copies_folder(request.output.absolute())
    with naming_originals(copies.parent), open_engine(request, model.directory.absolute()) as engine:
        return _run(model, request, engine, show, record)


def _run(model: Model, request: BatchRequest, engine: Engine, show: Show | None, record: Record | None) -> BatchResult:
    output, options = request.output.absolute(), request.options
    form, compression = _output_format(output, options)
    folder = request.folder or Path.cwd()
    inputs = list_inputs(request.source, folder)
    _check_output(request, inputs, folder / request.source)
    copies = copies_folder(output)
    opened = open_source(request.source, inputs, options.separator, model.contract, copies)
    job = _job_digest(opened, model, options, log=request.log is not None)
    with files.disk(output.parent):
        output.parent.mkdir(parents=True, exist_ok=True)
    work = WorkFolder.of(output, job)
    place, digest = model.directory.absolute(), model.metadata.digest
    task = ShardTask(
        source=opened,
        release=ReleaseReference(directory=place, digest=digest, trusted=request.trusted),
        options=options,
        output=form,
        compression=compression,
        work=work.path,
        log=request.log,
        at=dt.datetime.now(dt.UTC),
    )
    schema = _check_options(task, model)
    if complete := _complete_result(request, job):
        work.remove()
        shutil.rmtree(copies, ignore_errors=True)
        return complete
    exists = request.destination.exists if request.destination else output.exists()
    if exists and not request.overwrite and work.outcome is None:
        remedy = "give OUT another name, or add --overwrite"
        raise ConfigError("the output exists", where=request.address, remedy=remedy)
    remove_other_folders(output, work)
    with private_files(), work.locked():
        task = task.model_copy(update={"at": work.start()})
        result = _finish(task, job, model, schema, request, lambda shards, task: run_shards(shards, task, engine, show))
        if record:
            record(result)
        files.write(summary_path(output), result.model_dump_json(indent=1) + "\n")
    work.remove()
    shutil.rmtree(copies, ignore_errors=True)
    return result


def summary_path(output: Path) -> Path:
    """The summary next to an output."""
    return output.parent / f"{output.name}{SUMMARY}"


def quarantine_path(output: Path) -> Path:
    """The quarantine next to an output."""
    return output.parent / f"{output.name}{QUARANTINE}"


def copies_folder(output: Path) -> Path:
    """The folder next to an output for the copies of remote files that are read as a whole."""
    return output.parent / f".{output.name}.towline-copies"


def _finish(
    task: ShardTask, job: str, model: Model, schema: pa.Schema, request: BatchRequest, run: RunShards
) -> BatchResult:
    """Completes the output and gives it its name."""
    work, output = WorkFolder(path=task.work), request.output.absolute()
    if outcome := work.outcome:
        result = BatchResult.model_validate(outcome)
    else:
        with files.disk(work.path):
            result = _score(task, job, model, schema, request, run)
        work.record_outcome(result.model_dump(mode="json"))
    with files.disk(output.parent):
        _place_quarantine(work, output)
        replace_output(work, output)
    if task.log:
        from towline.prediction_log.batch_parts import publish_parts

        parts = [work.log_part(shard.number) for shard in task.source.shards]
        publish_parts(task.log.folder, parts, f"batch.{job[:16]}", model.version, task.at)
    return result


def _score(
    task: ShardTask, job: str, model: Model, schema: pa.Schema, request: BatchRequest, run: RunShards
) -> BatchResult:
    """Scores the shards and assembles the output in the work folder."""
    assembly, drift, results = open_assembly(task, schema), BatchDrift(task.release.directory), list[ShardResult]()
    for shard, scored in run(task.source.shards, task):
        results.append(scored.model_copy(update={"counts": None}))
        if scored.counts:
            drift.add(scored.counts)
        if scored.quarantined and task.options.bad_rows == "stop":
            raise _first_bad_row(task, shard.number, results)
        assembly.add(shard, scored)
    digest = assembly.close()
    if quarantined := sum(scored.quarantined for scored in results):
        assemble_quarantine(task, results, WorkFolder(path=task.work).path / "quarantine.csv")
    left_out = {name for scored in results for name in scored.left_out} if task.options.keep is None else set()
    return BatchResult(
        rows=sum(scored.scored for scored in results),
        rows_in=sum(scored.rows for scored in results),
        quarantined=quarantined,
        output=request.address,
        quarantine=request.address + QUARANTINE if quarantined else None,
        columns=tuple(name_added_columns(model, task).values()),
        model=model.name,
        version=model.version,
        job=job,
        input_digest=task.source.digest,
        output_digest=digest,
        drift=drift.judge(request.drift),
        left_out=tuple(sorted(left_out)),
        column_checks=check_columns(model.contract, drift.columns),
    )


def _place_quarantine(work: WorkFolder, output: Path) -> None:
    ready, target = work.path / "quarantine.csv", quarantine_path(output)
    if ready.exists():
        ready.replace(target)
    elif work.assembled.exists():  # of an earlier output
        target.unlink(missing_ok=True)


def _first_bad_row(task: ShardTask, shard: int, results: Sequence[ShardResult]) -> DataError:
    place = task.source.shards[shard].file
    before = sum(
        result.rows for other, result in zip(task.source.shards, results[:-1], strict=False) if other.file == place
    )
    with WorkFolder(path=task.work).quarantine(shard).open("rb") as lines:
        row = json.loads(next(iter(lines)))
    return DataError(
        f"row {before + row['number'] + 1:,}: {row['reason']}",
        where=str(task.source.files[place].path),
        remedy="correct the row, or leave out --bad-rows stop: then bad rows go to a quarantine file",
    )


def _job_digest(source: ShardedFiles, model: Model, options: BatchOptions, *, log: bool) -> str:
    release = (model.metadata.digest, str(model.version))
    parts = [source.digest, *release, options.model_dump_json(), "log" if log else "", __version__]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _complete_result(request: BatchRequest, job: str) -> BatchResult | None:
    """The result of an earlier run of the same job whose output is complete."""
    uploaded = request.destination.result if request.destination else None
    if uploaded and uploaded.job == job:
        return uploaded.model_copy(update={"unchanged": True})
    output = request.output.absolute()
    file = summary_path(output)
    if not output.exists() or not file.exists():
        return None
    try:
        result = BatchResult.model_validate_json(file.read_bytes())
    except ValueError:  # another program's file
        return None
    if result.job != job or digest_of(output) != result.output_digest:
        return None
    return result.model_copy(update={"unchanged": True, "output": request.address})


def _check_output(request: BatchRequest, inputs: Sequence[FilePath], source: Path) -> None:
    """Refuses an output that replaces one of the files that are read, other files, or would be read the next time."""
    output = request.output.absolute()
    if len(output.name.encode()) > MAX_NAME_BYTES:
        what, remedy = f"the name is longer than {MAX_NAME_BYTES} bytes", "give OUT a shorter name"
        raise ConfigError(what, where=request.address, remedy=remedy)
    if request.destination:
        address = f"{request.destination.address}/"
        replaces_input = any(f"{path}/".startswith(address) for path in inputs if isinstance(path, RemoteFile))
    else:
        place = output.resolve()
        places = [path.resolve() for path in inputs if isinstance(path, Path)]
        replaces_input = any(place == path or place in path.parents for path in places)
    if replaces_input:
        raise ConfigError("the output would replace the input", where=request.address, remedy="give OUT another name")
    if output.name.lower().endswith(TABLES) and source.is_dir() and output.parent.resolve() == source.resolve():
        what = "OUT is in the folder IN: the next run would read it"
        raise ConfigError(what, where=request.address, remedy="give OUT a place outside of IN")
    tables = (".parquet", ".pq")
    others = (path for path in output.rglob("*") if path.suffix.lower() not in tables and path.is_file())
    if other := next((path for path in others if not path.name.startswith((".", "_"))), None):  # _SUCCESS of Spark
        remedy = "move it to another place, or give OUT another name"
        raise ConfigError(
            "a folder is replaced as a whole, and this file is no Parquet", where=str(other), remedy=remedy
        )


def _output_format(output: Path, options: BatchOptions) -> tuple[OutputFormat, Any]:
    suffixes = [suffix.lower() for suffix in output.suffixes]
    packed = _COMPRESSIONS.get(suffixes[-1], "") if suffixes else ""
    suffix = (suffixes[-2:] if packed else suffixes[-1:] or [""])[0]
    if suffix in _TEXT_OUTPUTS:
        form: OutputFormat = _TEXT_OUTPUTS[suffix]
    elif suffix in (".parquet", ".pq") and not packed and not output.is_dir() and not options.partition_by:
        form = "parquet"
    elif not suffixes or output.is_dir() or (options.partition_by and not packed):
        form = "folder"
    else:
        raise ConfigError(
            "unknown output format",
            where=str(output),
            remedy="end the name in .parquet, .csv, .csv.gz, .csv.zst or .jsonl; a name without a suffix is a folder "
            "of Parquet files",
        )
    if options.partition_by and form != "folder":
        raise ConfigError("only a folder can be partitioned", where="--partition-by", remedy="give a folder as OUT")
    return form, packed


def _check_options(task: ShardTask, model: Model) -> pa.Schema:
    """Checks the names of columns; returns the schema of the output."""
    options, columns = task.options, task.source.columns
    for option, chosen, known in (
        ("--keep", options.keep, columns),
        ("--columns", options.columns, addable_columns(model)),
    ):
        if unknown := next((name for name in chosen or () if name not in known), None):
            raise ConfigError(f"no column {unknown!r}", where=option, remedy=suggest(unknown, known))
    copied = columns if options.keep is None else options.keep
    added = name_added_columns(model, task)
    if twice := next((name for name in added.values() if name in copied), None):
        raise DataError(
            f"the input already has a column {twice!r}, which scoring would add",
            where=str(task.source.files[0].path),
            remedy="add --prefix, e.g. --prefix scored_",
        )
    if not [*copied, *added.values()]:
        raise ConfigError("no column would be written", where="--columns", remedy="choose at least one column")
    _check_bytes(task, copied)
    types = {"prediction": label_type(model.contract.classes), "model": pa.string(), "version": pa.int64()}
    fields = [(written, types.get(name, pa.float64())) for name, written in added.items()]
    schema = pa.schema([*(task.source.schema.field(name) for name in copied), *(pa.field(*field) for field in fields)])
    if options.partition_by:
        _check_partition(options.partition_by, schema)
        if len(schema) == 1:
            what, remedy = "no column would be written beside that of the folders", "choose more columns"
            raise ConfigError(what, where="--columns", remedy=remedy)
    return schema


def _check_partition(name: str, schema: pa.Schema) -> None:
    if name not in schema.names:
        raise ConfigError(f"no column {name!r}", where="--partition-by", remedy=suggest(name, schema.names))
    if pa.types.is_nested(schema.field(name).type):
        remedy = "name a column of texts, numbers or times"
        raise ConfigError(f"column {name!r} has lists or structs", where="--partition-by", remedy=remedy)


def _check_bytes(task: ShardTask, copied: Sequence[str]) -> None:
    schema = task.source.schema
    binary = next((name for name in copied if arrow_types.is_binary(schema.field(name).type)), None)
    if binary is not None and task.is_text:
        raise DataError(
            f"column {binary!r} holds bytes, and the output is text",
            where=str(task.source.files[0].path),
            remedy="give --keep with the other columns to copy, or give OUT a name that ends in .parquet",
        )
