"""Tasks on the registry: register a version, decide its promotion, update MLflow."""

from tasks import artifacts, retrying_task
from towline import helper_process, steps
from towline.config import PipelineConfig, Settings
from towline.data.workspace import Workspace
from towline.errors import TransientError
from towline.formatting import escape_markdown
from towline.promotion import outcome
from towline.promotion.gate import Verdict
from towline.provenance import Provenance
from towline.registry.ledger import Entry, open_ledger
from towline.registry.mlflow import synchronization, tracking
from towline.release.packaging import Release
from towline.training.result import TrainingResult


@retrying_task("register")
def register(
    work: Workspace, config: PipelineConfig, settings: Settings, result: TrainingResult, provenance: Provenance
) -> tracking.RegisteredVersion:
    """Not cached: ledger and MLflow find a run by its key.

    Versions that MLflow has lost are restored first, so that its numbers continue from there.
    """
    with steps.step("register", work.path) as progress:
        number = outcome.register_version(settings, config.name, work.dataset.digest, provenance).version
        helper_process.call_in_helper(synchronization.synchronize, settings, config.name)
        version, progress.helper_cpu_s = helper_process.call_in_helper(
            tracking.register, settings, work, config, number, result, provenance
        )
        progress.note = f"{version.name} version {version.version}"
    return version


@retrying_task("decide promotion")
def decide_promotion(
    config: PipelineConfig,
    settings: Settings,
    version: tracking.RegisteredVersion,
    release: Release,
    verdict: Verdict,
    provenance: Provenance,
) -> Entry:
    """Promotes the version, or records that it passed or was rejected; repeated, it finds its entry in the ledger."""
    with steps.step("decide promotion") as progress:
        ledger = open_ledger(settings)
        entry = outcome.decide_promotion(ledger, config, version.version, release, verdict, provenance)
        progress.note = f"{entry.event}: {entry.reason}"
    lines = [f"- **{check.outcome}** {check.name}: {escape_markdown(check.detail)}" for check in verdict.checks]
    artifacts.markdown(
        "\n".join([f"## {entry.event}: {escape_markdown(entry.reason)}", *lines]),
        key=f"{config.name}-verdict",
        description=progress.note,
    )
    return entry


@retrying_task("update MLflow")
def update_mlflow(
    work: Workspace, settings: Settings, version: tracking.RegisteredVersion, release: Release, verdict: Verdict
) -> str:
    """Updates MLflow with the decision and with missing versions of the model; returns a note if that fails."""
    with steps.step("update MLflow", work.path) as progress:
        progress.note = "MLflow is up to date"
        folder, costs = settings.layout.release(release.path), steps.costs(work.path)
        note = ""
        try:
            helper_process.call_in_helper(tracking.close, settings, version, folder, verdict.outcome, costs)
        except TransientError as error:  # MLflow may have lost the run, which the next call restores
            note = synchronization.unsynchronized_note(error)
        try:
            helper_process.call_in_helper(synchronization.synchronize, settings, version.name)
        except TransientError as error:
            note = progress.note = synchronization.unsynchronized_note(error)
    return note
