"""Package a release and judge it."""

from collections.abc import Mapping, Sequence
from subprocess import Popen

from tasks import artifacts, patient, remembered
from towline.config import PipelineConfig, Settings
from towline.data.validation.suite import Validation
from towline.data.workspace import Workspace
from towline.manifest import Recorded
from towline.markdown import escaped
from towline.promotion import holdout_comparison, outcome
from towline.promotion.gate import Verdict
from towline.registry.ledger import open_ledger
from towline.registry.mlflow.tracking import Version
from towline.release import packaging
from towline.release.smoke_test import Smoke, finish
from towline.steps import step
from towline.training.cross_validation import Scores
from towline.training.evaluation.holdout import Evaluation
from towline.training.final_fit import Fitted


@remembered("package")
def package(
    work: Workspace,
    config: PipelineConfig,
    settings: Settings,
    version: Version,
    scores: Sequence[Scores],
    fitted: Fitted,
    evaluation: Evaluation,
    validation: Validation,
    facts: Mapping[str, str],
) -> packaging.Package:
    with step("package", work.path) as told:
        packed = packaging.package(work, config, settings, version, fitted, evaluation, scores, validation, facts)
        told.note = f"{packed.path}, {packed.bytes / 1e6:.1f} MB"
    card = (settings.layout.release(packed.path) / "card.md").read_text(encoding="utf-8")
    artifacts.markdown(card, key=f"{config.name}-card", description=f"the model card of version {version.version}")
    return packed


@remembered("smoke test", without="tester")
def smoke_test(work: Workspace, packed: packaging.Package, tester: "Popen[str]") -> Smoke:
    """``tester`` was started earlier: it takes seconds to import what a release needs."""
    with step("smoke test", work.path) as told:
        tried = finish(tester, work, packed)
        told.note = tried.detail
    return tried


@patient("judge")
def judge(work: Workspace, config: PipelineConfig, settings: Settings, evaluation: Evaluation, tried: Smoke) -> Verdict:
    """Never remembered: the champion it compares with may have changed since."""
    with step("judge", work.path) as told:
        ledger = open_ledger(settings)
        if ledger.finished(config.name, work.key):  # killed after it was decided: not to be judged against itself
            verdict = Verdict.model_validate_json(work.file("verdict.json").read_bytes())
        else:
            champion = ledger.champion(config.name)
            serving = None
            if champion:
                recorded = Recorded(settings.layout.release(champion.release), ledger.digest(champion))
                serving = champion.version, recorded
            verdict = holdout_comparison.judge(work, config, evaluation, tried, serving)
        told.note = f"{verdict.outcome}, {len(verdict.checks)} checks"
    artifacts.table([check.model_dump() for check in verdict.checks], key=f"{config.name}-gate", description=told.note)
    return verdict


@patient("image")
def build_image(
    work: Workspace,
    config: PipelineConfig,
    settings: Settings,
    version: Version,
    packed: packaging.Package,
    verdict: Verdict,
    facts: Mapping[str, str],
) -> Verdict:
    """The verdict with one check more: whether a container of the release's image answers as the release does."""
    with step("image", work.path) as told:
        verdict, built = outcome.contain(settings, work, config, version.version, packed, verdict, facts)
        told.note = verdict.checks[-1].detail
        if built:
            card = (settings.layout.release(packed.path) / "card.md").read_text(encoding="utf-8")
            artifacts.markdown(
                f"{card}\n## Container image\n\n`{built.tag}`\n\n`{built.id}`\n\n{escaped(built.text())}\n",
                key=f"{config.name}-card",
                description=f"the model card of version {version.version}, with its image",
            )
    return verdict
