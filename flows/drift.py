"""Drift, nightly: what production saw against what the champion was trained on, and the right reaction."""

from datetime import datetime

from prefect import flow

from flows.reaction import react
from tasks.monitoring import detect, report_drift
from towline.config import ConfigOrPath, Settings
from towline.monitoring import monitoring_run
from towline.monitoring.policy import MonitoringRun
from towline.orchestration.end_states import watched


@flow(name="drift", flow_run_name="{config.name}")
@watched
def drift_flow(config: ConfigOrPath, as_of: datetime | None = None) -> MonitoringRun:
    """Looks at the predictions since the last night; an alarm is reported, and leads to what the policy says.

    Args:
        config: of the model; or the path of one in the project.
        as_of: predictions from then on do not exist for this run; default: now.

    Raises:
        PromotionRejectedError: no version serves yet.
        DataError: a part of the log cannot be read.
        TransientError: a store stayed away through the retries.
    """
    settings, now = Settings.from_environment(), monitoring_run.resolve_time(as_of)
    serving = monitoring_run.champion_at(settings, config.name, now)
    found = detect(config, settings, serving, now)
    page = report_drift(config, settings, serving, found, now) if found.state in ("drift", "invalid_schema") else ""
    seen = MonitoringRun(model=config.name, version=serving.version, at=now, drift=found, report=page)
    return react(config, settings, serving, seen)
