"""The reaction to what the watch saw: nothing, a warning, a training, a rollback, or a block."""

from datetime import datetime

from prefect import flow

from flows.training import training_flow
from tasks.monitoring import begin, decide, deployed, roll_back, tell
from towline.config import ConfigOrPath, PipelineConfig, Settings
from towline.monitoring import monitoring_run
from towline.monitoring.policy import MonitoringRun
from towline.orchestration.end_states import value_of, watched
from towline.promotion.outcome import Outcome
from towline.registry.ledger import Entry


@flow(name="reaction", flow_run_name="{config.name}")
@watched
def reaction_flow(config: ConfigOrPath, breach: str = "", as_of: datetime | None = None) -> MonitoringRun:
    """Reacts to an SLO whose budget burns too fast, with all that the last rounds of the watch have seen.

    Raises:
        PromotionRejectedError: no version serves.
        TransientError: a store stayed away through the retries.
    """
    settings, now = Settings.from_environment(), monitoring_run.resolve_time(as_of)
    serving = monitoring_run.champion_at(settings, config.name, now)
    return react(config, settings, serving, MonitoringRun(model=config.name, version=serving.version, at=now), breach)


def react(
    config: PipelineConfig, settings: Settings, serving: Entry, seen: MonitoringRun, breach: str = ""
) -> MonitoringRun:
    """Decides and acts within the flow under way. A training is its child, and is started once for a cause."""
    decision = decide(config, settings, serving, seen.at, breach)
    tell(config, settings, seen.drift or seen.quality, decision)
    done = ""
    if decision.action == "roll back":
        done = roll_back(config, settings, serving, decision.reason)
    elif decision.action == "retrain" and decision.trigger:
        name = f"training/{config.name}"
        if deployed(name):
            done = begin(name, config, decision.trigger, decision.cause)
        else:
            state = training_flow(config, trigger=decision.trigger, return_state=True)
            outcome = Outcome.model_validate(value_of(state))
            done = f"version {outcome.version}, {outcome.event}: {outcome.reason}"
    return seen.model_copy(update={"decision": decision, "done": done})
