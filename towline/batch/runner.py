"""Runs the shards of a job: in this process with one worker, else in processes of their own."""

import contextlib
import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import NamedTuple

from towline.batch.job_options import ShardTask
from towline.batch.shard_scoring import score_shard
from towline.batch.shards import Shard
from towline.batch.work_folder import ShardResult
from towline.errors import TransientError

AHEAD = 4  # shards per worker that may wait for the assembly


class Progress(NamedTuple):
    """The progress of a job.

    Attributes:
        rows: scored or quarantined in this run.
        share: of the input that is done, from 0 to 1.
        seconds: since the first shard was started.
        done: share of the input that was done before this run.
    """

    rows: int
    share: float
    seconds: float
    done: float

    def text(self) -> str:
        """Rows, rows a second and the time left."""
        rate = self.rows / self.seconds if self.seconds else 0.0
        gained = self.share - self.done
        left = self.seconds * (1 - self.share) / gained if gained > 0 else None
        ending = "" if left is None else f", {_duration(left)} left"
        return f"{self.share:4.0%}  {self.rows:,} rows, {rate:,.0f} rows/s{ending}"


Show = Callable[[Progress], None]


def run_shards(
    shards: Sequence[Shard], task: ShardTask, workers: int, show: Show | None = None
) -> Iterator[tuple[Shard, ShardResult]]:
    """Scores shards and yields their results in the order of the shards.

    Args:
        shards: of the source.
        task: of the job.
        workers: number of processes.
        show: receives the progress.

    Raises:
        TowlineError: as ``score_shard``.
        TransientError: a worker process ended.
    """
    meter = _Meter(sum(shard.size for shard in shards), show)
    if workers == 1 or len(shards) < 2:
        for shard in shards:
            result = score_shard(shard, task, meter.add_rows)
            meter.finish(shard, 0)
            yield shard, result
        return
    yield from _run_in_processes(shards, task, workers, meter)


def _run_in_processes(
    shards: Sequence[Shard], task: ShardTask, workers: int, meter: "_Meter"
) -> Iterator[tuple[Shard, ShardResult]]:
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, len(shards)), mp_context=context, max_tasks_per_child=None)
    futures: dict[int, Future[ShardResult]] = {}
    try:
        for place, shard in enumerate(shards):
            for following in range(place, min(len(shards), place + AHEAD * workers)):
                if following not in futures:
                    futures[following] = pool.submit(score_shard, shards[following], task)
            result = futures.pop(place).result()
            meter.finish(shard, result.rows)
            yield shard, result
    except BrokenProcessPool:
        raise TransientError(
            "a worker process ended, perhaps because the memory is full",
            where="--workers",
            remedy="run the same command again: finished parts are not scored again; use fewer workers",
        ) from None
    finally:
        with contextlib.suppress(BrokenProcessPool):
            pool.shutdown(wait=True, cancel_futures=True)


class _Meter:
    def __init__(self, total: int, show: Show | None) -> None:
        self._total, self._show = max(1, total), show
        self._begin, self._rows, self._bytes = time.monotonic(), 0, 0

    def add_rows(self, rows: int) -> None:
        self._rows += rows
        if self._show:
            seconds = time.monotonic() - self._begin
            self._show(Progress(self._rows, self._bytes / self._total, seconds, 0.0))

    def finish(self, shard: Shard, rows: int) -> None:
        self._bytes += shard.size
        self.add_rows(rows)


def _duration(seconds: float) -> str:
    whole = round(seconds)
    if whole < 90:
        return f"{whole} s"
    return f"{whole // 60} min" if whole < 5400 else f"{whole / 3600:.1f} h"
