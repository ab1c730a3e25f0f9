"""Options of batch scoring, and the inputs of a shard."""

import datetime as dt
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from towline.batch.batch_summary import BatchResult
from towline.batch.input.source import ShardedFiles
from towline.config import DriftConfig, Frozen

OutputFormat = Literal["csv", "parquet", "json lines", "folder"]
BadRows = Literal["quarantine", "stop"]


#: opens an engine for a number of workers, and checks that its machines see these paths
OpenEngine = Callable[[int, Sequence[str]], Any]


class BatchOptions(Frozen):
    """Options of batch scoring that change the output.

    Attributes:
        separator: of a CSV; None: it is detected.
        prefix: of the names of the added columns.
        safe_csv: put ' before text in a CSV that a spreadsheet would run as a formula.
        keep: columns of the input that are copied; None: all.
        columns: added columns; None: all.
        bad_rows: write bad rows to the quarantine file, or stop at the first one.
        partition_by: column by which an output folder is partitioned.
    """

    separator: str | None = None
    prefix: str = ""
    safe_csv: bool = False
    keep: tuple[str, ...] | None = None
    columns: tuple[str, ...] | None = None
    bad_rows: BadRows = "quarantine"
    partition_by: str | None = None


class LogTarget(Frozen):
    """Where the predictions enter the prediction log: its folder, and the fields by which labels are joined."""

    folder: Path
    join_on: tuple[str, ...] = ()


class Destination(Frozen):
    """Where an output that is written to this machine first is uploaded to.

    Attributes:
        address: without secrets.
        exists: whether there is a file or folder.
        result: of the job whose output it is, if it is known and unchanged.
    """

    address: str
    exists: bool
    result: BatchResult | None = None


class BatchRequest(Frozen):
    """The request for a job.

    Attributes:
        source: a file, a folder or a glob pattern, or the URL of one.
        output: a file, or a folder for Parquet files; its name decides the format.
        destination: where the output is uploaded to; None: it stays where it is.
        options: of the output.
        trusted: packages whose types the release may contain.
        workers: number of processes on this machine, or of runs on workers of Prefect.
        engine: processes, dask or ray, or a function that opens an engine.
        scheduler: address of a Dask or Ray cluster; None: on this machine.
        overwrite: replace an output of another job.
        drift: how the drift of the batch is judged.
        folder: at which a relative source starts; None: the current folder.
        log: the prediction log that the predictions enter; None: they do not.
    """

    source: str
    output: Path
    destination: Destination | None = None
    options: BatchOptions = BatchOptions()
    trusted: tuple[str, ...] = ()
    workers: int = 1
    engine: str | OpenEngine = "processes"
    scheduler: str | None = None
    overwrite: bool = False
    drift: DriftConfig = DriftConfig()
    folder: Path | None = None
    log: LogTarget | None = None

    @property
    def address(self) -> str:
        """The output as the summary and errors name it."""
        return self.destination.address if self.destination else str(self.output)


class ReleaseReference(Frozen):
    """The release that scores: its folder, the digest of its manifest, and trusted packages."""

    directory: Path
    digest: str
    trusted: tuple[str, ...] = ()


class ShardTask(Frozen):
    """What every shard of a job is scored with; it can be pickled and written as JSON.

    Attributes:
        source: of the rows.
        release: of the model.
        options: of the job.
        output: format of the output.
        compression: of an output of text.
        work: folder of the pieces.
        log: the prediction log that the predictions enter.
        at: time of the predictions in the log.
    """

    source: ShardedFiles
    release: ReleaseReference
    options: BatchOptions
    output: OutputFormat
    compression: Literal["", "gzip", "zstd"] = ""
    work: Path
    log: LogTarget | None = None
    at: dt.datetime

    @property
    def is_text(self) -> bool:
        """Whether the output is text, so that shards can be written into it one by one."""
        return self.output in ("csv", "json lines")

    @property
    def copied_columns(self) -> tuple[str, ...] | None:
        """The columns of the input that are copied one by one; None if the text of the rows is copied as it is."""
        columns = self.source.columns
        if self.options.keep is not None:
            return self.options.keep
        if self.log and self.log.join_on:
            return columns
        is_same_text = self.output == self.source.format != "parquet" and not self.options.safe_csv
        return None if is_same_text else columns
