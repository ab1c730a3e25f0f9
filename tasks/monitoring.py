"""The tasks of the monitoring flows: measure, report, decide, act."""

import datetime as dt

from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound

from tasks import artifacts, retrying_task
from towline import helper_process
from towline.config import PipelineConfig, Settings
from towline.errors import TransientError
from towline.formatting import escape_markdown
from towline.manifest import verify_release
from towline.monitoring import monitoring_run
from towline.monitoring.alerts import notifications
from towline.monitoring.journal import Journal
from towline.monitoring.policy import Decision
from towline.monitoring.reporting import evidently_report
from towline.monitoring.results import DriftResult, GainResult, QualityResult
from towline.operations import up_state
from towline.registry.ledger import Entry, actor, open_ledger
from towline.registry.mlflow import mirror, synchronization
from towline.steps import step

MAX_CHECKS = 200  # in the artifact


@retrying_task("detect drift")
def detect_drift(config: PipelineConfig, settings: Settings, champion: Entry, now: dt.datetime) -> DriftResult:
    """Detects drift and adds the result to the journal."""
    with step("detect drift") as progress:
        drift = monitoring_run.detect_drift(settings, config, champion, now)
        Journal.of(settings, config.name).add(drift, now)
        progress.note = f"{drift.state}, {drift.rows:,} rows: {drift.reason}"
    checks = [check.model_dump() for check in drift.checks[:MAX_CHECKS]]
    artifacts.table(checks, key=f"{config.name}-drift", description=progress.note)
    return drift


@retrying_task("report drift")
def report_drift(
    config: PipelineConfig, settings: Settings, champion: Entry, drift: DriftResult, now: dt.datetime
) -> str:
    """Writes an Evidently report, also into Evidently's workspace and MLflow; returns its path."""
    with step("report drift") as progress:
        path, progress.helper_cpu_s = helper_process.call_in_helper(
            evidently_report.write_report, settings, config, champion, drift, now
        )
        progress.note = str(path)
        try:
            helper_process.call_in_helper(synchronization.synchronize, settings, config.name)
            helper_process.call_in_helper(mirror.attach, settings, config.name, champion.run_key, path, "drift")
        except TransientError as error:
            progress.note += f"; not in MLflow: {error.what}"
    artifacts.link(path.as_uri(), key=f"{config.name}-drift-report", description=progress.note)
    return str(path)


@retrying_task("measure quality")
def measure_quality(config: PipelineConfig, settings: Settings, champion: Entry, now: dt.datetime) -> QualityResult:
    """Measures quality and adds the result to the journal."""
    with step("measure quality") as progress:
        quality = monitoring_run.measure_quality_window(settings, config, champion, now)
        Journal.of(settings, config.name).add(quality, now)
        progress.note = f"{quality.state}: {quality.reason}"
    slices = [part.model_dump() for part in quality.slices]
    artifacts.table(slices, key=f"{config.name}-quality", description=progress.note)
    return quality


@retrying_task("measure gain")
def measure_gain(
    config: PipelineConfig, settings: Settings, champion: Entry, now: dt.datetime, *, at_once: bool = False
) -> GainResult | None:
    """Compares the champion with a refit of its recipe, and adds the result to the journal."""
    with step("measure gain") as progress:
        gain = monitoring_run.measure_gain_window(settings, config, champion, now, at_once=at_once)
        if gain is not None:
            Journal.of(settings, config.name).add(gain, now)
        progress.note = f"{gain.state}: {gain.reason}" if gain else "no window is complete"
    return gain


@retrying_task("decide")
def decide(config: PipelineConfig, settings: Settings, champion: Entry, now: dt.datetime, breach: str = "") -> Decision:
    """Applies the policy and records the decision in the ledger."""
    with step("decide") as progress:
        evidence = monitoring_run.gather_evidence(settings, config, champion, now, breach)
        comparison = monitoring_run.compare_champions(settings, config, champion, evidence)
        evidence = evidence.model_copy(update={"comparison": comparison})
        decision = monitoring_run.record_decision(settings, config, champion, evidence)
        progress.note = f"{decision.action}: {decision.reason}"
    text = f"**{decision.action}**: {escape_markdown(decision.reason)}"
    artifacts.markdown(text, key=f"{config.name}-decision", description=progress.note)
    return decision


@retrying_task("roll back")
def roll_back(config: PipelineConfig, settings: Settings, champion: Entry, reason: str) -> str:
    """Promotes the previous champion, unless another version already serves, as after a retry."""
    with step("roll back") as progress:
        ledger = open_ledger(settings)
        current = ledger.champion(config.name)
        if current and current.version == champion.version:
            verify_release(settings.layout.release(ledger.rollback_target(config.name).release))
            current = ledger.rollback(config.name, actor(), reason)
        progress.note = f"version {current.version} serves" if current else "no version serves"
        try:
            helper_process.call_in_helper(synchronization.synchronize, settings, config.name)
        except TransientError as error:
            progress.note += f"; {synchronization.unsynchronized_note(error)}"
    return progress.note


@retrying_task("notify")
def notify(
    config: PipelineConfig, settings: Settings, result: DriftResult | QualityResult | None, decision: Decision
) -> str:
    """Opens or resolves alerts."""
    with step("notify") as progress:
        progress.note = notifications.notify_decision(settings, config, result, decision)
    return progress.note


def is_deployed(name: str) -> bool:
    """Whether Prefect has a deployment ``flow/name``, and ``towline up`` or a worker can run it."""
    context = FlowRunContext.get()
    pooled = context is not None and context.flow_run is not None and context.flow_run.work_pool_name
    if not pooled and up_state.find_running(Settings.from_environment()) is None:
        return False
    with get_client(sync_client=True) as client:
        try:
            client.read_deployment_by_name(name)
        except ObjectNotFound:
            return False
        return True


def start_deployment(name: str, config: PipelineConfig, trigger: str, cause: str) -> str:
    """Starts a deployment as a child of the current flow run, once for each cause, without waiting for it."""
    run = run_deployment(
        name,
        parameters={"config": config.model_dump(mode="json"), "trigger": trigger},
        idempotency_key=f"{config.name}-{cause}",  # Prefect's keys are unique per flow, not per deployment
        timeout=0,
    )
    return f"{getattr(run, 'name', '')} ({name})"  # in a synchronous flow it is not a coroutine
