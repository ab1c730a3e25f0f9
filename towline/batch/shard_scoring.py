"""Scores one shard. It is idempotent: a finished shard is not scored again, and its piece is always the same."""

import contextlib
import json
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np
import pyarrow as pa

from towline import files
from towline.batch.drift_counts import DriftCounts
from towline.batch.input.records import IrregularTextError
from towline.batch.input.row_batch import RejectedRow, RowBatch, select_rows
from towline.batch.input.shards import Shard
from towline.batch.job_options import ReleaseReference, ShardTask
from towline.batch.output.direct_text import DirectText, PlacedText
from towline.batch.output.pieces import AddedColumns, PieceWriter, added_columns, open_piece
from towline.batch.row_scoring import score_batch
from towline.batch.work_folder import ShardResult, WorkFolder
from towline.inference.predictor import Model, open_release
from towline.inference.scorer import to_row_predictions

if TYPE_CHECKING:
    from towline.prediction_log.batch_parts import BatchPart

MAX_LEFT_OUT = 100  # names that are recorded: an object may have a key for each row
Report = Callable[[int], None]


def score_shard(
    shard: Shard, task: ShardTask, report: Report | None = None, direct: DirectText | None = None
) -> ShardResult:
    """Scores the rows of a shard, and writes its piece, its quarantine and its result into the work folder.

    The result of a shard whose text a worker has placed in the output is recorded by the assembly: a worker whose job
    was killed may end after the next start of the job, and must not record anything then.

    Args:
        shard: of the source.
        task: of the job.
        report: receives the number of rows of each batch.
        direct: writes text into the output; None: the shard gets a piece.

    Raises:
        DataError: the input cannot be read.
        ReleaseError: the release differs from its digest.
        TransientError: the disk is full.
    """
    work = WorkFolder(path=task.work)
    if result := work.result(shard.number):
        return result
    model = _open_model(task.release)
    direct = direct if task.is_text else None
    copied = task.copied_columns
    try:
        batches = task.source.read(shard, model.contract, copied, as_text=task.output == "csv")
        result = _score(shard, task, model, batches, report, direct)
    except IrregularTextError:
        columns = task.source.columns if copied is None else copied
        batches = task.source.read_general(shard, model.contract, columns)
        result = _score(shard, task, model, batches, report, direct)
    if not isinstance(direct, PlacedText):
        work.finish(shard.number, result)
    return result


def _score(
    shard: Shard,
    task: ShardTask,
    model: Model,
    batches: Iterator[RowBatch],
    report: Report | None,
    direct: DirectText | None,
) -> ShardResult:
    work = WorkFolder(path=task.work)
    counts = DriftCounts.of(model)
    scored, quarantined, left_out = 0, 0, set[str]()
    log = _open_log(shard, task, model)
    with (
        contextlib.closing(log) if log else contextlib.nullcontext(),
        files.replacing(work.quarantine(shard.number)) as quarantine,
        open_piece(task, shard.number, direct) as piece,
    ):
        for batch in batches:
            done = score_batch(model, batch)
            _write(piece, batch, done.good, added_columns(model, task, done.predictions))
            _write_quarantine(quarantine, done.rejected)
            if counts:
                counts.add(done.inputs, done.predictions)
            if log:
                log.add(select_rows(batch, done.good), to_row_predictions(done.predictions))
            scored += len(done.predictions.labels)
            quarantined += len(done.rejected)
            left_out |= batch.left_out
            if report:
                report(len(batch) + len(batch.rejected))
    rows = scored + quarantined
    return ShardResult(
        rows=rows,
        scored=scored,
        quarantined=quarantined,
        end=direct.end if direct else None,
        counts=counts.document() if counts else None,
        left_out=tuple(sorted(left_out)[:MAX_LEFT_OUT]),
    )


def _open_log(shard: Shard, task: ShardTask, model: Model) -> "BatchPart | None":
    if task.log is None:
        return None
    from towline.prediction_log.batch_parts import BatchPart

    work = WorkFolder(path=task.work)
    request_id = f"batch-{task.work.name[-16:]}-{shard.number}"
    return BatchPart(work.log_part(shard.number), task.log.folder, model, request_id, task.at)


def _write(piece: PieceWriter, batch: RowBatch, good: np.ndarray, added: AddedColumns) -> None:
    every = bool(good.all())
    copied, records = batch.copied, None
    if copied is not None and copied.num_columns and not every:  # without columns it has no rows
        copied = copied.filter(pa.array(good))
    if copied is None and batch.records is not None and batch.places is not None:
        complete = every and len(batch.places) == len(batch.records)
        records = batch.records.take(None if complete else batch.places[good])
    piece.write(records, copied, added, int(np.count_nonzero(good)))


def _write_quarantine(file: IO[bytes], rejected: list[RejectedRow]) -> None:
    for row in rejected:
        file.write(json.dumps(row._asdict(), ensure_ascii=False).encode(errors="replace") + b"\n")


@lru_cache(maxsize=1)
def _open_model(release: ReleaseReference) -> Model:
    return open_release(Path(release.directory), release.trusted, release.digest)
