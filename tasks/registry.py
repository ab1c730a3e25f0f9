"""Register a version; conclude with a promotion or a refusal."""

from collections.abc import Mapping, Sequence

from tasks import artifacts, patient, remembered
from towline import outcome, sidecar, steps
from towline.config import PipelineConfig, Settings
from towline.data.validation import Validation
from towline.data.workspace import Workspace
from towline.markdown import escaped
from towline.registry import tracking
from towline.registry.ledger import Entry, Ledger
from towline.release.packaging import Package
from towline.training.evaluation import Evaluation
from towline.training.final import Fitted
from towline.training.fitting import Scores
from towline.training.gate import Verdict


@remembered("register")
def register(
    work: Workspace,
    config: PipelineConfig,
    settings: Settings,
    scores: Sequence[Scores],
    chosen: Scores,
    fitted: Fitted,
    evaluation: Evaluation,
    validation: Validation,
    facts: Mapping[str, str],
) -> tracking.Version:
    with steps.step("register", work.path) as told:
        version, told.elsewhere_cpu_s = sidecar.call(
            tracking.register, settings, work, config, scores, chosen, fitted, evaluation, validation, facts
        )
        told.note = f"{version.name} version {version.version}"
    return version


@patient("conclude")
def conclude(
    work: Workspace,
    config: PipelineConfig,
    settings: Settings,
    version: tracking.Version,
    package: Package,
    verdict: Verdict,
    facts: Mapping[str, str],
) -> Entry:
    """Promotes or refuses; done again after a kill, it finds its own ledger row and finishes what mirrors it."""
    with steps.step("conclude", work.path) as told:
        ledger = Ledger(settings.ledger_url)
        entry = outcome.conclude(ledger, work, config.name, version.version, package, verdict, facts)
        told.note = f"{entry.event}: {entry.reason}"
        _, told.elsewhere_cpu_s = sidecar.call(
            tracking.close,
            settings,
            version,
            settings.store / package.path,
            verdict,
            ledger.aliases(config.name),
            steps.costs(work.path),
        )
    lines = [f"- **{check.outcome}** {check.name}: {escaped(check.detail)}" for check in verdict.checks]
    artifacts.markdown(
        "\n".join([f"## {entry.event}: {escaped(entry.reason)}", *lines]),
        key=f"{config.name}-verdict",
        description=told.note,
    )
    return entry
