"""The reaction to monitoring results: nothing, a warning, a training, a rollback, or a block."""

from datetime import datetime

from prefect import flow

from flows.training import training_flow
from tasks.monitoring import decide, is_deployed, notify, roll_back, start_deployment
from tasks.rollout import abort_rollout
from towline.config import ConfigOrPath, PipelineConfig, Settings
from towline.monitoring import monitoring_run
from towline.monitoring.policy import MonitoringRun
from towline.monitoring.rollout_evaluation import find_rollout
from towline.orchestration.end_states import monitoring_end_state, state_value
from towline.promotion.outcome import Outcome
from towline.registry.ledger import Entry


@flow(name="reaction", flow_run_name="{config.name}")
@monitoring_end_state
def reaction_flow(config: ConfigOrPath, breach: str = "", as_of: datetime | None = None) -> MonitoringRun:
    """Reacts to an SLO breach: aborts the rollout that is under way, else applies the policy.

    Args:
        config: the model's config, or its path in the project.
        breach: description of the breach.
        as_of: time of the reaction; default: now.

    Raises:
        PromotionRejectedError: the model has no champion.
        TransientError: a store or server was unavailable during all retries.
    """
    settings, now = Settings.from_environment(), monitoring_run.resolve_time(as_of)
    champion = monitoring_run.champion_at(settings, config.name, now)
    if breach and (rollout := find_rollout(settings, config.name)):
        done = abort_rollout(config, settings, rollout, breach)
        return MonitoringRun(model=config.name, version=champion.version, at=now, done=done)
    return react(config, settings, champion, MonitoringRun(model=config.name, version=champion.version, at=now), breach)


def react(
    config: PipelineConfig, settings: Settings, champion: Entry, run: MonitoringRun, breach: str = ""
) -> MonitoringRun:
    """Decides and acts within the current flow run. A training is its child, and is started once for each cause."""
    decision = decide(config, settings, champion, run.at, breach)
    notify(config, settings, run.drift or run.quality, decision)
    done = ""
    if decision.action == "roll back":
        done = roll_back(config, settings, champion, decision.reason)
    elif decision.action == "retrain" and decision.trigger:
        deployment = f"training/{config.name}"
        if is_deployed(deployment):
            done = start_deployment(deployment, config, decision.trigger, decision.cause)
        else:
            state = training_flow(config, trigger=decision.trigger, return_state=True)
            outcome = Outcome.model_validate(state_value(state))
            done = f"version {outcome.version}, {outcome.event}: {outcome.reason}"
    return run.model_copy(update={"decision": decision, "done": done})
