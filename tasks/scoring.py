"""The tasks of the scoring flows."""

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from tasks import retrying_task
from towline.batch.addresses import parse_source
from towline.batch.addresses import score as score_job
from towline.batch.batch_summary import BatchResult, ShardCounts
from towline.batch.engines import shard_list
from towline.batch.engines.worker_check import check_this_worker
from towline.batch.job_options import BatchOptions, BatchRequest, LogTarget
from towline.config import PipelineConfig, Settings
from towline.inference.predictor import open_release
from towline.orchestration.pool_engine import pool_engine
from towline.registry.ledger import Entry, actor, open_ledger
from towline.remote_files import is_url
from towline.steps import step


@retrying_task("score")
def score(config: PipelineConfig, settings: Settings, serving: Entry, source: str, output: str) -> BatchResult:
    """Writes the predictions for files and replaces an earlier output; a repeated call with the same input keeps it."""
    with step("score") as progress:
        ledger = open_ledger(settings)
        model = open_release(settings.layout.release(serving.release), digest=ledger.digest(serving))
        folder, chosen = settings.layout.predictions(config.name), config.scoring.engine
        request = partial(
            BatchRequest,
            options=BatchOptions(separator=config.data.separator, bad_rows=config.scoring.bad_rows),
            workers=config.scoring.workers,
            engine=pool_engine(config.name, None, logging.getLogger("towline").info) if chosen == "prefect" else chosen,
            scheduler=config.scoring.scheduler,
            overwrite=True,
            drift=config.drift,
            folder=settings.project,
            log=LogTarget(folder=folder, join_on=config.privacy.join_on) if config.scoring.log else None,
        )
        result = score_job(
            model,
            parse_source(source, None),
            output if is_url(output) else str(settings.store / output),
            request,
            settings.layout,
            record=lambda done: ledger.record_batch(model.name, model.version, actor(), done.evidence, done.job),
        )
        progress.note = f"{result.rows:,} rows by version {result.version}: {result.output}"
    return result


@retrying_task("check worker")
def check_worker(paths: Sequence[str], version: str) -> None:
    """Checks that this machine has a version of towline and sees these paths."""
    check_this_worker(paths, version)


@retrying_task("score shards")
def score_shards(work: str, numbers: Sequence[int]) -> ShardCounts:
    """Scores shards of a job into its work folder."""
    with step("score shards") as progress:
        counts = shard_list.score_shards(Path(work), numbers)
        progress.note = f"{counts.shards:,} shards, {counts.rows:,} rows"
    return counts
