"""The tasks of a rollout: begin, evaluate, act."""

import datetime as dt

from tasks import artifacts, retrying_task
from towline import helper_process
from towline.config import PipelineConfig, Settings
from towline.errors import ConfigError, PromotionRejectedError, TransientError
from towline.formatting import escape_markdown
from towline.monitoring import rollout_evaluation
from towline.monitoring.alerts import notifications
from towline.monitoring.rollout_history import RolloutEvaluation, record_evaluation
from towline.promotion import rollout_start
from towline.registry.ledger import Entry, actor, open_ledger
from towline.registry.mlflow import synchronization
from towline.registry.rollouts import Rollout, end_rollout
from towline.steps import step


@retrying_task("begin rollout")
def begin_rollout(config: PipelineConfig, settings: Settings, entry: Entry) -> str:
    """Begins the rollout of a version that has passed; returns what happens next."""
    with step("begin rollout") as progress:
        ledger = open_ledger(settings)
        if config.rollout is None:
            return ""
        try:
            rollout = rollout_start.begin_rollout(
                settings, ledger, config.name, entry.version, config.rollout, entry.actor, entry.reason
            )
            progress.note = f"rollout: {rollout.describe()}"
        except (PromotionRejectedError, ConfigError) as error:
            progress.note = f"no rollout began: {error.what}; {error.remedy}"
    return progress.note


@retrying_task("evaluate rollout")
def evaluate_rollout(
    config: PipelineConfig, settings: Settings, rollout: Rollout, now: dt.datetime
) -> RolloutEvaluation:
    """Measures both versions, decides, and records the evaluation."""
    with step("evaluate rollout") as progress:
        evaluation = rollout_evaluation.evaluate_rollout(settings, config, rollout, now)
        record_evaluation(settings.layout.rollout(rollout.model, rollout.id), evaluation)
        progress.note = f"{evaluation.verdict}: {evaluation.reason}"
    artifacts.table(list(evaluation.checks), key=f"{config.name}-rollout", description=progress.note)
    return evaluation


@retrying_task("act on rollout")
def act_on_rollout(config: PipelineConfig, settings: Settings, rollout: Rollout, evaluation: RolloutEvaluation) -> str:
    """Changes the weight, promotes or aborts, as the evaluation says; returns the change."""
    with step("act on rollout") as progress:
        progress.note = rollout_evaluation.act(open_ledger(settings), rollout, evaluation, actor())
        if progress.note:
            notifications.notify_rollout(settings, config, rollout.challenger, evaluation.action, evaluation.reason)
        if evaluation.action == "promote":
            try:
                helper_process.call_in_helper(synchronization.synchronize, settings, config.name)
            except TransientError as error:
                progress.note += f"; {synchronization.unsynchronized_note(error)}"
    text = f"**{evaluation.action}**: {escape_markdown(evaluation.reason)}"
    artifacts.markdown(text, key=f"{config.name}-rollout-action", description=progress.note)
    return progress.note


@retrying_task("abort rollout")
def abort_rollout(config: PipelineConfig, settings: Settings, rollout: Rollout, breach: str) -> str:
    """Aborts a rollout during which an SLO is breached."""
    with step("abort rollout") as progress:
        reason = f"SLO breach during the rollout: {breach}"
        end_rollout(open_ledger(settings), rollout, "aborted", actor(), reason, {})
        notifications.notify_rollout(settings, config, rollout.challenger, "abort", reason)
        progress.note = f"version {rollout.challenger} aborted: {breach}"
    return progress.note


@retrying_task("start waiting version")
def start_waiting_version(config: PipelineConfig, settings: Settings) -> str:
    """Starts the rollout of the newest version that waits for one; returns its name."""
    with step("start waiting version") as progress:
        version = rollout_evaluation.start_waiting(settings, config, actor())
        progress.note = "" if version is None else f"the rollout of version {version} begins"
    return progress.note
