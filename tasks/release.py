"""Tasks on a release: package it, test it, apply the gate, build its image."""

from subprocess import Popen

from tasks import artifacts, cached_task, retrying_task
from towline import files
from towline.config import PipelineConfig, Settings
from towline.data.workspace import Workspace
from towline.formatting import escape_markdown
from towline.manifest import ReleaseLocation
from towline.promotion import image_check
from towline.promotion.gate import Verdict
from towline.promotion.holdout_comparison import Champion, judge_release
from towline.provenance import Provenance
from towline.registry.ledger import open_ledger
from towline.registry.mlflow.tracking import RegisteredVersion
from towline.release import packaging
from towline.release.smoke_test import SmokeTestResult, finish_smoke_test
from towline.steps import step
from towline.store import StoreLayout
from towline.training.result import TrainingResult


@cached_task("package")
def package(
    work: Workspace, config: PipelineConfig, version: int, result: TrainingResult, provenance: Provenance
) -> packaging.Release:
    with step("package", work.path) as progress:
        release = packaging.package_release(work, config, version, result, provenance)
        progress.note = f"{release.path}, {release.bytes / 1e6:.1f} MB"
    card = _read_card(work, release)
    artifacts.markdown(card, key=f"{config.name}-card", description=f"the model card of version {version}")
    return release


@cached_task("smoke test", ignored_input="tester")
def smoke_test(work: Workspace, release: packaging.Release, tester: "Popen[str]") -> SmokeTestResult:
    """``tester`` was started earlier: it needs seconds to import the libraries."""
    with step("smoke test", work.path) as progress:
        result = finish_smoke_test(tester, work, release)
        progress.note = result.detail
    return result


@retrying_task("gate")
def apply_gate(
    work: Workspace,
    config: PipelineConfig,
    settings: Settings,
    result: TrainingResult,
    smoke: SmokeTestResult,
    run_key: str,
) -> Verdict:
    """Not cached: another version may serve now. A run that was decided keeps its verdict."""
    with step("gate", work.path) as progress:
        ledger = open_ledger(settings)
        if ledger.finished(config.name, run_key):
            verdict = Verdict.model_validate_json(work.verdict_file(run_key).read_bytes())
        else:
            serving, champion = ledger.champion(config.name), None
            if serving:
                location = ReleaseLocation(settings.layout.release(serving.release), ledger.digest(serving))
                champion = Champion(serving.version, location)
            verdict = judge_release(work, config, result.evaluation, smoke, champion, result.behaviour)
            files.write(work.verdict_file(run_key), verdict.model_dump_json(indent=1))
        progress.note = f"{verdict.outcome}, {len(verdict.checks)} checks"
    rows = [check.model_dump() for check in verdict.checks]
    artifacts.table(rows, key=f"{config.name}-gate", description=progress.note)
    return verdict


@retrying_task("build image")
def build_image(
    work: Workspace,
    config: PipelineConfig,
    settings: Settings,
    version: RegisteredVersion,
    release: packaging.Release,
    verdict: Verdict,
    provenance: Provenance,
) -> Verdict:
    """Returns the verdict with the check of the container image."""
    if any(check.name == "image" for check in verdict.checks):  # interrupted after the decision
        return verdict
    with step("build image", work.path) as progress:
        check, image = image_check.build_image(work.store, release, config.package.repository)
        progress.note = check.detail
        verdict = verdict.with_check(check)
        if image:
            ledger, name = open_ledger(settings), config.name
            image_check.record_image(ledger, name, version.version, image, actor=provenance.actor, release=release.path)
            artifacts.markdown(
                f"{_read_card(work, release)}\n## Container image\n\n`{image.tag}`\n\n`{image.id}`\n\n"
                f"{escape_markdown(image.text())}\n",
                key=f"{name}-card",
                description=f"the model card of version {version.version}, with its image",
            )
        files.write(work.verdict_file(provenance.run_key), verdict.model_dump_json(indent=1))
    return verdict


def _read_card(work: Workspace, release: packaging.Release) -> str:
    return (StoreLayout(work.store).release(release.path) / "card.md").read_text(encoding="utf-8")
