"""The task of the scoring flow."""

from tasks import retrying_task
from towline.config import PipelineConfig, Settings
from towline.inference import batch
from towline.inference.predictor import open_release
from towline.registry.ledger import Entry, open_ledger
from towline.steps import step


@retrying_task("score")
def score(config: PipelineConfig, settings: Settings, serving: Entry, source: str, output: str) -> batch.BatchResult:
    """Writes the predictions for a file; a repeated call replaces the output."""
    with step("score") as progress:
        digest = open_ledger(settings).digest(serving)
        model = open_release(settings.layout.release(serving.release), digest=digest)
        result = batch.score_file(model, settings.project / source, settings.store / output, config.data.separator)
        progress.note = f"{result.rows:,} rows by version {result.version}: {result.output}"
    return result
