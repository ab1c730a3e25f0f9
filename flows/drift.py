"""The drift flow: compares the champion's current rows with its training rows, and reacts."""

from datetime import datetime

from prefect import flow

from flows.reaction import react
from tasks.monitoring import detect_drift, measure_gain, report_drift
from towline.config import ConfigOrPath, Settings
from towline.monitoring import monitoring_run
from towline.monitoring.policy import MonitoringRun
from towline.orchestration.end_states import monitoring_end_state


@flow(name="drift", flow_run_name="{config.name}")
@monitoring_end_state
def drift_flow(config: ConfigOrPath, as_of: datetime | None = None) -> MonitoringRun:
    """Detects drift in the rows since the last window.

    An alarm gets a report, and the gain of a training is measured immediately. The policy decides what to do.

    Args:
        config: the model's config, or its path in the project.
        as_of: ignore predictions from this time on; default: now.

    Raises:
        PromotionRejectedError: the model has no champion.
        DataError: a part of the log cannot be read.
        TransientError: a store or server was unavailable during all retries.
    """
    settings, now = Settings.from_environment(), monitoring_run.resolve_time(as_of)
    champion = monitoring_run.champion_at(settings, config.name, now)
    drift = detect_drift(config, settings, champion, now)
    report = report_drift(config, settings, champion, drift, now) if drift.is_alarm else ""
    gain = measure_gain(config, settings, champion, now, at_once=True) if drift.state == "drift" else None
    run = MonitoringRun(model=config.name, version=champion.version, at=now, drift=drift, gain=gain, report=report)
    return react(config, settings, champion, run)
