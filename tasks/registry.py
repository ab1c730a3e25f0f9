"""Register a version; conclude with a promotion or a refusal; have MLflow show it."""

from collections.abc import Mapping, Sequence

from tasks import artifacts, retrying_task
from towline import sidecar, steps
from towline.config import PipelineConfig, Settings
from towline.data.validation.suite import Validation
from towline.data.workspace import Workspace
from towline.errors import TransientError
from towline.markdown import escape
from towline.promotion import outcome
from towline.promotion.gate import Verdict
from towline.registry.ledger import Entry, open_ledger
from towline.registry.mlflow import synchronization, tracking
from towline.release.packaging import Release
from towline.training.cross_validation import CrossValidationResult
from towline.training.evaluation.holdout import Evaluation
from towline.training.final_fit import FittedModel


@retrying_task("register")
def register(
    work: Workspace,
    config: PipelineConfig,
    settings: Settings,
    scores: Sequence[CrossValidationResult],
    chosen: CrossValidationResult,
    fitted: FittedModel,
    evaluation: Evaluation,
    validation: Validation,
    facts: Mapping[str, str],
) -> tracking.RegisteredVersion:
    """Never cached: ledger and MLflow are asked again; they know a run by its key.

    What MLflow has lost is put back before, so that it counts on from there.
    """
    with steps.step("register", work.path) as told:
        number = outcome.register(settings, work, config.name, facts).version
        sidecar.call(synchronization.synchronize, settings, config.name)
        version, told.sidecar_cpu_s = sidecar.call(
            tracking.register, settings, work, config, number, scores, chosen, fitted, evaluation, validation, facts
        )
        told.note = f"{version.name} version {version.version}"
    return version


@retrying_task("conclude")
def conclude(
    work: Workspace,
    config: PipelineConfig,
    settings: Settings,
    version: tracking.RegisteredVersion,
    package: Release,
    verdict: Verdict,
    facts: Mapping[str, str],
) -> Entry:
    """Promotes or refuses; done again after a kill, it finds its own ledger row."""
    with steps.step("conclude", work.path) as told:
        ledger = open_ledger(settings)
        entry = outcome.conclude(ledger, work, config.name, version.version, package, verdict, facts)
        told.note = f"{entry.event}: {entry.reason}"
    lines = [f"- **{check.outcome}** {check.name}: {escape(check.detail)}" for check in verdict.checks]
    artifacts.markdown(
        "\n".join([f"## {entry.event}: {escape(entry.reason)}", *lines]),
        key=f"{config.name}-verdict",
        description=told.note,
    )
    return entry


@retrying_task("mirror")
def mirror(
    work: Workspace,
    settings: Settings,
    version: tracking.RegisteredVersion,
    package: Release,
    verdict: Verdict,
) -> str:
    """Has MLflow show what was decided, and whatever else it lacks of the model; says so where it cannot."""
    with steps.step("mirror", work.path) as told:
        told.note = "MLflow shows it"
        release, costs = settings.layout.release(package.path), steps.costs(work.path)
        note = ""
        try:
            sidecar.call(tracking.close, settings, version, release, verdict.outcome, costs)
        except TransientError as error:  # the run may be gone from MLflow: what follows puts it back
            note = synchronization.unsynchronized_note(error)
        try:
            sidecar.call(synchronization.synchronize, settings, version.name)
        except TransientError as error:
            note = told.note = synchronization.unsynchronized_note(error)
    return note
