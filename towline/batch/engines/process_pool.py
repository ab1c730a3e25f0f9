"""The engine of one machine: one worker scores the shards in this process, several workers in separate processes."""

import contextlib
import multiprocessing
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import forkserver

from towline.batch.input.shards import Shard
from towline.batch.job_options import ShardTask
from towline.batch.output.direct_text import FAILED, AppendedText, PlacedText, ShardPlaces, known_lengths
from towline.batch.shard_scoring import Report, score_shard
from towline.batch.work_folder import ShardResult, WorkFolder
from towline.errors import TransientError
from towline.processes import PRIVATE_UMASK

_PRELOADED = ["towline.batch.shard_scoring", "pandas"]  # Arrow imports pandas with the first array
Handle = Future[ShardResult] | partial[ShardResult]


class ProcessEngine:
    """Scores shards in processes of this machine.

    The processes are forked from a server process, which imports their modules while the source is read.

    Args:
        workers: number of processes.
    """

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._pool: ProcessPoolExecutor | None = None
        self._places: ShardPlaces | None = None
        if workers > 1:
            multiprocessing.set_forkserver_preload(_PRELOADED)
            forkserver.ensure_running()

    def prepare(self, shards: Sequence[Shard], task: ShardTask) -> None:
        workers = min(self._workers, len(shards))
        if workers > 1:
            if task.is_text:
                work = WorkFolder(path=task.work)
                begin = work.assembled.stat().st_size
                self._places = ShardPlaces.create(work.places, known_lengths(work, shards), begin)
            self._pool = ProcessPoolExecutor(
                workers,
                mp_context=multiprocessing.get_context("forkserver"),
                initializer=_start_worker,
                initargs=(dict(os.environ),),
            )

    def slots(self) -> int:
        return self._workers

    def submit(self, shard: Shard, task: ShardTask, report: Report) -> Handle:
        if self._pool is None:
            return partial(score_shard, shard, task, report, AppendedText())
        with _lost_process():
            return self._pool.submit(_score_in_worker, shard, task)

    def result(self, handle: Handle) -> ShardResult:
        if isinstance(handle, partial):
            return handle()
        with _lost_process():
            return handle.result()

    def close(self) -> None:
        if self._places is not None:
            self._places.cancel()
        if self._pool is not None:
            with contextlib.suppress(BrokenProcessPool):
                self._pool.shutdown(wait=True, cancel_futures=True)


def _start_worker(environment: Mapping[str, str]) -> None:
    """Gives a worker the environment of its job, because the server may be older; it ends with the job's process."""
    os.environ.update(environment)
    os.umask(PRIVATE_UMASK)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _score_in_worker(shard: Shard, task: ShardTask) -> ShardResult:
    if not task.is_text:
        return score_shard(shard, task)
    work = WorkFolder(path=task.work)
    places = ShardPlaces(work.places)
    try:
        result = score_shard(shard, task, direct=PlacedText(places))
        if result.end is None:  # a run on a cluster, of an earlier command, has written the piece in the meantime
            places.record(shard.number, work.piece(shard.number).stat().st_size)
    except BaseException:
        places.record(shard.number, FAILED)
        raise
    return result


def _end_with_parent() -> None:
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)


@contextlib.contextmanager
def _lost_process() -> Iterator[None]:
    try:
        yield
    except BrokenProcessPool:
        raise TransientError(
            "a worker process ended, perhaps because the memory is full",
            where="--workers",
            remedy="run the same command again: finished parts are not scored again; use fewer workers",
        ) from None
