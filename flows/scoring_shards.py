"""Scoring of shards: a part of a batch job, on a worker; the job itself runs elsewhere and waits for it."""

from collections.abc import Sequence

from prefect import flow

from tasks.scoring import check_worker, score_shards
from towline.batch.batch_summary import ShardCounts
from towline.orchestration.end_states import shards_end_state
from towline.orchestration.process_setup import SHARDS_FLOW


@flow(name=SHARDS_FLOW)
@shards_end_state
def scoring_shards_flow(work: str, shards: Sequence[int], paths: Sequence[str], version: str) -> ShardCounts:
    """Scores shards of a job into its work folder; finished ones are not scored again.

    Args:
        work: the work folder.
        shards: numbers of the shards; without any, the worker is only checked.
        paths: that this machine must see.
        version: of towline that the job has.

    Raises:
        ConfigError: this machine has another version of towline, or does not see a file of the job.
        DataError: the input cannot be read.
        ReleaseError: the release differs from its digest.
        TransientError: the disk was full during all retries.
    """
    check_worker(paths, version)
    return score_shards(work, shards) if shards else ShardCounts(shards=0, rows=0, quarantined=0)
