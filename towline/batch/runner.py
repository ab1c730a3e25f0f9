"""Runs the shards of a job on an engine, in the order of the rows."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from towline.batch.engines.engine import Engine
from towline.batch.input.shards import Shard
from towline.batch.job_options import ShardTask
from towline.batch.work_folder import ShardResult, WorkFolder

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
    shards: Sequence[Shard], task: ShardTask, engine: Engine, show: Show | None = None
) -> Iterator[tuple[Shard, ShardResult]]:
    """Scores shards and yields their results in the order of the shards.

    Args:
        shards: of the source.
        task: of the job.
        engine: that scores them.
        show: receives the progress.

    Raises:
        TowlineError: as ``score_shard``.
        TransientError: a worker was lost.
    """
    meter = _Meter(shards, task, show)
    engine.prepare(shards, task)
    handles = dict[int, Any]()
    for place, shard in enumerate(shards):
        for following in range(place, min(len(shards), place + AHEAD * engine.slots())):
            if following not in handles:
                handles[following] = engine.submit(shards[following], task, meter.add_rows)
        result = engine.result(handles.pop(place))
        meter.finish(shard, result.rows)
        yield shard, result


class _Meter:
    def __init__(self, shards: Sequence[Shard], task: ShardTask, show: Show | None) -> None:
        work = WorkFolder(path=task.work)
        self._earlier = {shard.number: shard.size for shard in shards if work.is_finished(shard.number)}
        self._total, self._show = max(1, sum(shard.size for shard in shards)), show
        self._begin, self._rows, self._bytes = time.monotonic(), 0, sum(self._earlier.values())
        self._done = self._bytes / self._total
        self._reported = 0  # rows of the current shard that are in self._rows

    def add_rows(self, rows: int) -> None:
        self._rows += rows
        self._reported += rows
        if self._show:
            seconds = time.monotonic() - self._begin
            self._show(Progress(self._rows, self._bytes / self._total, seconds, self._done))

    def finish(self, shard: Shard, rows: int) -> None:
        if shard.number in self._earlier:
            return
        self._bytes += shard.size
        self.add_rows(rows - self._reported)
        self._reported = 0


def _duration(seconds: float) -> str:
    whole = round(seconds)
    if whole < 90:
        return f"{whole} s"
    return f"{whole // 60} min" if whole < 5400 else f"{whole / 3600:.1f} h"
