"""The engine of one machine: shards are scored in this process with one worker, else in processes of their own."""

import contextlib
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial

from towline.batch.input.shards import Shard
from towline.batch.job_options import ShardTask
from towline.batch.shard_scoring import Report, score_shard
from towline.batch.work_folder import ShardResult
from towline.errors import TransientError

Handle = Future[ShardResult] | partial[ShardResult]


class ProcessEngine:
    """Scores shards in processes of this machine.

    Args:
        workers: number of processes.
    """

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._pool: ProcessPoolExecutor | None = None

    def prepare(self, shards: int) -> None:
        if min(self._workers, shards) > 1:
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(min(self._workers, shards), mp_context=context)

    def slots(self) -> int:
        return self._workers

    def submit(self, shard: Shard, task: ShardTask, report: Report) -> Handle:
        if self._pool is None:
            return partial(score_shard, shard, task, report)
        with _lost_process():
            return self._pool.submit(score_shard, shard, task)

    def result(self, handle: Handle) -> ShardResult:
        if isinstance(handle, partial):
            return handle()
        with _lost_process():
            return handle.result()

    def close(self) -> None:
        if self._pool is not None:
            with contextlib.suppress(BrokenProcessPool):
                self._pool.shutdown(wait=True, cancel_futures=True)


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
