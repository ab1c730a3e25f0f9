"""Score a file of rows."""

from tasks import retrying_task
from towline.config import PipelineConfig, Settings
from towline.inference import batch
from towline.inference.predictor import open_release
from towline.registry.ledger import Entry, open_ledger
from towline.steps import step


@retrying_task("score")
def score(config: PipelineConfig, settings: Settings, serving: Entry, source: str, output: str) -> batch.BatchResult:
    """Done again after a kill it writes the same file anew, whole."""
    with step("score") as progress:
        digest = open_ledger(settings).digest(serving)
        model = open_release(settings.layout.release(serving.release), digest=digest)
        done = batch.score_file(model, settings.project / source, settings.store / output, config.data.separator)
        progress.note = f"{done.rows:,} rows by version {done.version}: {done.output}"
    return done
