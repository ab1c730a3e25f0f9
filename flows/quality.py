"""Quality, daily: predictions whose labels have come, against what the model reached on its holdout."""

from datetime import datetime

from prefect import flow

from flows.reaction import react
from tasks.monitoring import measure
from towline.config import ConfigOrPath, Settings
from towline.monitoring import monitoring_run
from towline.monitoring.policy import MonitoringRun
from towline.orchestration.end_states import watched


@flow(name="quality", flow_run_name="{config.name}")
@watched
def quality_flow(config: ConfigOrPath, as_of: datetime | None = None) -> MonitoringRun:
    """Measures the champion on the labels that are there, estimates where they are not, and reacts.

    Args:
        config: of the model; or the path of one in the project.
        as_of: predictions and labels from then on do not exist for this run; default: now.

    Raises:
        PromotionRejectedError: no version serves yet.
        DataError: a part of the log cannot be read.
        TransientError: a store stayed away through the retries.
    """
    settings, now = Settings.from_environment(), monitoring_run.resolve_time(as_of)
    serving = monitoring_run.champion_at(settings, config.name, now)
    found = measure(config, settings, serving, now)
    seen = MonitoringRun(model=config.name, version=serving.version, at=now, quality=found)
    return react(config, settings, serving, seen)
