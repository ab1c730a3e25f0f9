"""The quality flow: measures predictions on their ground-truth labels, and reacts."""

from datetime import datetime

from prefect import flow

from flows.reaction import react
from tasks.monitoring import measure_gain, measure_quality
from towline.config import ConfigOrPath, Settings
from towline.monitoring import monitoring_run
from towline.monitoring.policy import MonitoringRun
from towline.orchestration.end_states import monitoring_end_state


@flow(name="quality", flow_run_name="{config.name}")
@monitoring_end_state
def quality_flow(config: ConfigOrPath, as_of: datetime | None = None) -> MonitoringRun:
    """Measures the champion on the labels that are due, estimates the rest, and reacts.

    On labels it also measures whether a training would lower the loss.

    Args:
        config: the model's config, or its path in the project.
        as_of: ignore predictions and labels from this time on; default: now.

    Raises:
        PromotionRejectedError: the model has no champion.
        DataError: a part of the log cannot be read.
        TransientError: a store or server was unavailable during all retries.
    """
    settings, now = Settings.from_environment(), monitoring_run.resolve_time(as_of)
    champion = monitoring_run.champion_at(settings, config.name, now)
    quality = measure_quality(config, settings, champion, now)
    gain = measure_gain(config, settings, champion, now)
    run = MonitoringRun(model=config.name, version=champion.version, at=now, quality=quality, gain=gain)
    return react(config, settings, champion, run)
