"""Scoring: predictions for files of rows, by the champion."""

from datetime import datetime

from prefect import flow

from tasks.scoring import score
from towline.batch.addresses import default_name
from towline.batch.batch_summary import BatchResult
from towline.config import ConfigOrPath, Settings
from towline.monitoring import monitoring_run
from towline.orchestration.end_states import scoring_end_state


@flow(name="scoring", flow_run_name="{config.name}")
@scoring_end_state
def scoring_flow(config: ConfigOrPath, source: str, output: str = "", as_of: datetime | None = None) -> BatchResult:
    """Writes the rows of files with their predictions; the champion is looked up once, before the first row.

    Args:
        config: the model's config, or its path in the project.
        source: a file, a folder or a glob pattern, whose relative path starts at the project; the URL of one; or
            ``URL#TABLE``.
        output: a file or folder, whose relative path starts at the store; a URL; or ``URL#TABLE``. Default:
            scored/<model>/<name of source>, of a table as Parquet.
        as_of: use the champion of this time; default: now.

    Raises:
        PromotionRejectedError: no version serves yet.
        DataError: the file cannot be read, or does not fit the model's contract.
        TransientError: a store was unavailable during all retries, or the output cannot be written.
    """
    settings = Settings.from_environment()
    serving = monitoring_run.champion_at(settings, config.name, monitoring_run.resolve_time(as_of))
    return score(config, settings, serving, source, output or f"scored/{config.name}/{default_name(source)}")
