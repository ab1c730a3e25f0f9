"""A round of the watch: look, report, decide, act."""

import datetime as dt

from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound

from tasks import artifacts, patient
from towline import sidecar
from towline.config import PipelineConfig, Settings
from towline.errors import TransientError
from towline.manifest import verify_release
from towline.markdown import escape
from towline.monitoring import monitoring_run
from towline.monitoring.alerts import notifications
from towline.monitoring.journal import Journal
from towline.monitoring.policy import Decision
from towline.monitoring.reporting import evidently_report
from towline.monitoring.results import DriftResult, QualityResult
from towline.operations import up_state
from towline.registry.ledger import Entry, actor, open_ledger
from towline.registry.mlflow import mirror, synchronization
from towline.steps import step


@patient("detect drift")
def detect(config: PipelineConfig, settings: Settings, serving: Entry, now: dt.datetime) -> DriftResult:
    with step("detect drift") as told:
        found = monitoring_run.detect_drift(settings, config, serving, now)
        Journal.of(settings, config.name).add(found, now)
        told.note = f"{found.state}, {found.rows:,} rows: {found.reason}"
    rows = [check.model_dump() for check in found.checks[:200]]
    artifacts.table(rows, key=f"{config.name}-drift", description=told.note)
    return found


@patient("report drift")
def report_drift(
    config: PipelineConfig, settings: Settings, serving: Entry, found: DriftResult, now: dt.datetime
) -> str:
    """Evidently's report of a night that alarmed: kept in its workspace, here and in MLflow. Other nights have none."""
    with step("report drift") as told:
        path, told.elsewhere_cpu_s = sidecar.call(evidently_report.write, settings, config, serving, found, now)
        told.note = str(path)
        try:
            sidecar.call(synchronization.mend, settings, config.name)
            sidecar.call(mirror.attach, settings, config.name, serving.run_key, path, "drift")
        except TransientError as error:
            told.note += f"; not in MLflow: {error.what}"
    artifacts.link(path.as_uri(), key=f"{config.name}-drift-report", description=told.note)
    return str(path)


@patient("measure quality")
def measure(config: PipelineConfig, settings: Settings, serving: Entry, now: dt.datetime) -> QualityResult:
    with step("measure quality") as told:
        found = monitoring_run.measure_window(settings, config, serving, now)
        Journal.of(settings, config.name).add(found, now)
        told.note = f"{found.state}: {found.reason}"
    rows = [one.model_dump() for one in found.slices]
    artifacts.table(rows, key=f"{config.name}-quality", description=told.note)
    return found


@patient("decide")
def decide(config: PipelineConfig, settings: Settings, serving: Entry, now: dt.datetime, breach: str = "") -> Decision:
    with step("decide") as told:
        seen = monitoring_run.gather_evidence(settings, config, serving, now, breach)
        seen = seen.model_copy(update={"triage": monitoring_run.compare_champions(settings, config, serving, seen)})
        decision = monitoring_run.record_decision(settings, config, serving, seen)
        told.note = f"{decision.action}: {decision.reason}"
    artifacts.markdown(
        f"**{decision.action}**: {escape(decision.reason)}", key=f"{config.name}-decision", description=told.note
    )
    return decision


@patient("roll back")
def roll_back(config: PipelineConfig, settings: Settings, serving: Entry, reason: str) -> str:
    """To the champion before; done again after a kill it finds that another version serves and leaves it so."""
    with step("roll back") as told:
        ledger = open_ledger(settings)
        now = ledger.champion(config.name)
        if now and now.version == serving.version:
            verify_release(settings.layout.release(ledger.rollback_target(config.name).release))
            now = ledger.rollback(config.name, actor(), reason)
        told.note = f"version {now.version} serves" if now else "no version serves"
        try:
            sidecar.call(synchronization.mend, settings, config.name)
        except TransientError as error:
            told.note += f"; {synchronization.note(error)}"
    return told.note


@patient("tell")
def tell(
    config: PipelineConfig, settings: Settings, found: DriftResult | QualityResult | None, decision: Decision
) -> str:
    with step("tell") as told:
        told.note = notifications.tell(settings, config, found, decision)
    return told.note


def deployed(name: str) -> bool:
    """Whether Prefect knows a deployment ``flow/name``, and ``towline up`` or a worker of a pool is there to run it."""
    context = FlowRunContext.get()
    pooled = context is not None and context.flow_run is not None and context.flow_run.work_pool_name
    if not pooled and up_state.find(Settings.from_environment()) is None:
        return False
    with get_client(sync_client=True) as client:
        try:
            client.read_deployment_by_name(name)
        except ObjectNotFound:
            return False
        return True


def begin(name: str, config: PipelineConfig, trigger: str, cause: str) -> str:
    """Starts a deployment as a child of the flow under way, once for a cause; does not wait for it."""
    run = run_deployment(
        name,
        parameters={"config": config.model_dump(mode="json"), "trigger": trigger},
        idempotency_key=f"{config.name}-{cause}",  # Prefect knows a key by its flow, whatever the deployment
        timeout=0,
    )
    return f"{getattr(run, 'name', '')} ({name})"  # in a flow that is not async it is no coroutine
