"""The rollout flow: compares champion and challenger, and changes the weight, promotes or aborts."""

from datetime import datetime

from prefect import flow

from tasks.rollout import act_on_rollout, evaluate_rollout, start_waiting_version
from towline.config import ConfigOrPath, Settings
from towline.monitoring.monitoring_run import resolve_time
from towline.monitoring.rollout_evaluation import find_rollout
from towline.monitoring.rollout_history import RolloutRun
from towline.orchestration.end_states import rollout_end_state


@flow(name="rollout", flow_run_name="{config.name}")
@rollout_end_state
def rollout_flow(config: ConfigOrPath, as_of: datetime | None = None) -> RolloutRun:
    """Evaluates the rollout that is under way; without one, starts the version that waits for it.

    Args:
        config: the model's config, or its path in the project.
        as_of: ignore predictions and labels from this time on; default: now.

    Raises:
        DataError: a part of a log cannot be read.
        PromotionRejectedError: the rollout has changed in the meantime.
        TransientError: a store or server was unavailable during all retries.
    """
    settings, now = Settings.from_environment(), resolve_time(as_of)
    rollout = find_rollout(settings, config.name)
    if rollout is None:
        return RolloutRun(model=config.name, done=start_waiting_version(config, settings))
    evaluation = evaluate_rollout(config, settings, rollout, now)
    done = act_on_rollout(config, settings, rollout, evaluation)
    return RolloutRun(model=config.name, evaluation=evaluation, done=done)
