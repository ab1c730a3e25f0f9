"""A list of shards of one job, scored by one process; the job is read from its work folder."""

from collections.abc import Sequence
from pathlib import Path

from towline import files
from towline.batch.batch_summary import ShardCounts
from towline.batch.engines.worker_check import check_this_worker
from towline.batch.job_options import ShardTask
from towline.batch.shard_scoring import score_shard


def task_file(work: Path) -> Path:
    """The file in a work folder that holds what its shards are scored with."""
    return work / "task.json"


def write_task(task: ShardTask) -> None:
    """Writes the model and the options of the shards into the work folder."""
    files.write(task_file(task.work), task.model_dump_json())


def score_shards(work: Path, numbers: Sequence[int]) -> ShardCounts:
    """Scores shards of a job, one after the other; finished ones are not scored again.

    Args:
        work: folder of the job, in which ``write_task`` has written.
        numbers: of the shards.

    Raises:
        ConfigError: this machine does not see the files of the job.
        TowlineError: as ``score_shard``.
    """
    check_this_worker([str(task_file(work))])
    task = ShardTask.model_validate_json(task_file(work).read_bytes())
    shards = [task.source.shards[number] for number in numbers]
    sources = {task.source.files[shard.file].path for shard in shards}
    local = sorted(str(path) for path in sources if isinstance(path, Path))
    check_this_worker([str(task.release.directory), *local])
    results = [score_shard(shard, task) for shard in shards]
    return ShardCounts(
        shards=len(results),
        rows=sum(result.rows for result in results),
        quarantined=sum(result.quarantined for result in results),
    )
