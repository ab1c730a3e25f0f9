"""The task of the scoring flow."""

from tasks import retrying_task
from towline.batch.batch_summary import BatchResult
from towline.batch.job import score_source
from towline.batch.job_options import BatchOptions, BatchRequest
from towline.config import PipelineConfig, Settings
from towline.inference.predictor import open_release
from towline.registry.ledger import Entry, open_ledger
from towline.steps import step


@retrying_task("score")
def score(config: PipelineConfig, settings: Settings, serving: Entry, source: str, output: str) -> BatchResult:
    """Writes the predictions for files and replaces an earlier output; a repeated call with the same input keeps it."""
    with step("score") as progress:
        digest = open_ledger(settings).digest(serving)
        model = open_release(settings.layout.release(serving.release), digest=digest)
        request = BatchRequest(
            source=source,
            output=settings.store / output,
            options=BatchOptions(separator=config.data.separator),
            overwrite=True,
            drift=config.drift,
            folder=settings.project,
        )
        result = score_source(model, request)
        progress.note = f"{result.rows:,} rows by version {result.version}: {result.output}"
    return result
