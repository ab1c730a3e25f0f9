"""The interface of the engines."""

from collections.abc import Sequence
from typing import Any, Protocol

from towline.batch.input.shards import Shard
from towline.batch.job_options import ShardTask
from towline.batch.shard_scoring import Report
from towline.batch.work_folder import ShardResult


class Engine(Protocol):
    """Runs ``score_shard``, in any order and in any number of processes."""

    def prepare(self, shards: Sequence[Shard], task: ShardTask) -> None:
        """Starts the local workers that these shards need."""

    def slots(self) -> int:
        """The number of shards that are scored at the same time."""

    def submit(self, shard: Shard, task: ShardTask, report: Report) -> Any:
        """Submits a shard.

        Args:
            shard: of the source.
            task: of the job.
            report: receives the number of rows of each batch, if the shard is scored in this process.

        Returns:
            A handle for ``result``.
        """

    def result(self, handle: Any) -> ShardResult:
        """Waits for the result of a shard.

        Raises:
            TowlineError: as ``score_shard``.
            TransientError: the workers were lost.
        """

    def close(self) -> None:
        """Cancels what was submitted and not awaited, and stops the local workers."""
