"""Package a release and judge it."""

from collections.abc import Mapping, Sequence
from subprocess import Popen

from tasks import artifacts, cached_task, retrying_task
from towline.config import PipelineConfig, Settings
from towline.data.validation.suite import Validation
from towline.data.workspace import Workspace
from towline.manifest import ReleaseLocation
from towline.markdown import escape
from towline.promotion import holdout_comparison, outcome
from towline.promotion.gate import Verdict
from towline.registry.ledger import open_ledger
from towline.registry.mlflow.tracking import RegisteredVersion
from towline.release import packaging
from towline.release.smoke_test import SmokeTestResult, finish_smoke_test
from towline.steps import step
from towline.training.cross_validation import CrossValidationResult
from towline.training.evaluation.holdout import Evaluation
from towline.training.final_fit import FittedModel


@cached_task("package")
def package(
    work: Workspace,
    config: PipelineConfig,
    settings: Settings,
    version: RegisteredVersion,
    scores: Sequence[CrossValidationResult],
    fitted: FittedModel,
    evaluation: Evaluation,
    validation: Validation,
    facts: Mapping[str, str],
) -> packaging.Release:
    with step("package", work.path) as told:
        packed = packaging.package_release(
            work, config, settings, version, fitted, evaluation, scores, validation, facts
        )
        told.note = f"{packed.path}, {packed.bytes / 1e6:.1f} MB"
    card = (settings.layout.release(packed.path) / "card.md").read_text(encoding="utf-8")
    artifacts.markdown(card, key=f"{config.name}-card", description=f"the model card of version {version.version}")
    return packed


@cached_task("smoke test", ignored_input="tester")
def smoke_test(work: Workspace, packed: packaging.Release, tester: "Popen[str]") -> SmokeTestResult:
    """``tester`` was started earlier: it takes seconds to import what a release needs."""
    with step("smoke test", work.path) as told:
        tried = finish_smoke_test(tester, work, packed)
        told.note = tried.detail
    return tried


@retrying_task("judge")
def judge(
    work: Workspace, config: PipelineConfig, settings: Settings, evaluation: Evaluation, tried: SmokeTestResult
) -> Verdict:
    """Never cached: the champion it compares with may have changed since."""
    with step("judge", work.path) as told:
        ledger = open_ledger(settings)
        if ledger.finished(config.name, work.key):  # killed after it was decided: not to be judged against itself
            verdict = Verdict.model_validate_json(work.file("verdict.json").read_bytes())
        else:
            champion = ledger.champion(config.name)
            serving = None
            if champion:
                recorded = ReleaseLocation(settings.layout.release(champion.release), ledger.digest(champion))
                serving = champion.version, recorded
            verdict = holdout_comparison.judge_release(work, config, evaluation, tried, serving)
        told.note = f"{verdict.outcome}, {len(verdict.checks)} checks"
    artifacts.table([check.model_dump() for check in verdict.checks], key=f"{config.name}-gate", description=told.note)
    return verdict


@retrying_task("image")
def build_image(
    work: Workspace,
    config: PipelineConfig,
    settings: Settings,
    version: RegisteredVersion,
    packed: packaging.Release,
    verdict: Verdict,
    facts: Mapping[str, str],
) -> Verdict:
    """The verdict with one check more: whether a container of the release's image answers as the release does."""
    with step("image", work.path) as told:
        verdict, built = outcome.build_image(settings, work, config, version.version, packed, verdict, facts)
        told.note = verdict.checks[-1].detail
        if built:
            card = (settings.layout.release(packed.path) / "card.md").read_text(encoding="utf-8")
            artifacts.markdown(
                f"{card}\n## Container image\n\n`{built.tag}`\n\n`{built.id}`\n\n{escape(built.text())}\n",
                key=f"{config.name}-card",
                description=f"the model card of version {version.version}, with its image",
            )
    return verdict
