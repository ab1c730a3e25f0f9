"""The steps of a pipeline of Kubeflow: each calls the tasks of the training flow with the results of earlier steps.

A step runs in its own process, on any machine: ``run_step`` rebuilds the workspace from the artifacts of the
earlier steps. The store of the settings is shared by all machines: it has the ledger's key and the releases.
"""

import logging
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from tasks import data, registry, release, rollout, training
from towline.config import Candidate, Frozen, PipelineConfig, Settings
from towline.data.splits import SplitSummary
from towline.data.validation.suite import Validation
from towline.data.workspace import Workspace
from towline.errors import ConfigError, PromotionRejectedError, TransientError
from towline.platforms import step_artifacts
from towline.platforms.step_artifacts import Record
from towline.promotion.gate import Verdict
from towline.promotion.outcome import Outcome, find_finished, summarize
from towline.registry.mlflow.tracking import RegisteredVersion
from towline.release.packaging import Release
from towline.release.smoke_test import SmokeTestResult, start_tester
from towline.training.behaviour.behaviour_suite import check_files, check_with_contract
from towline.training.evaluation.holdout import Evaluation
from towline.training.final_fit import FittedModel
from towline.training.history import History
from towline.training.model_selection.budget import BudgetLimits
from towline.training.model_selection.config_checks import check_config
from towline.training.model_selection.cross_validation import (
    CrossValidationResult,
    baseline_candidate,
    check_candidates,
    choose_candidate,
)
from towline.training.model_selection.reference_model import ReferenceComparison
from towline.training.result import TrainingResult

ATTEMPTS, DELAY_S = 3, 5.0


class LoadResult(Frozen):
    """The config and the loaded data; ``finished``: the outcome of an identical run, which is not repeated."""

    config: PipelineConfig
    run: data.LoadedRun
    finished: Outcome | None


class SplitResult(Frozen):
    """The parts of the table, and the limits of the time budget."""

    sizes: SplitSummary
    limits: BudgetLimits


class SelectionResult(Frozen):
    """The scores of all candidates, the selected one, and the history that it is fitted on."""

    scores: tuple[CrossValidationResult, ...]
    chosen: CrossValidationResult
    comparison: ReferenceComparison | None
    history: History


class StepInputs:
    """The inputs of a step: the settings, the results of earlier steps by name, and the workspace rebuilt from them.

    Args:
        name: of the step.
        artifacts: of the earlier steps, by name.
        store: where the workspace is; None: in the store of the settings.
    """

    def __init__(self, name: str, artifacts: Mapping[str, Path], store: Path | None) -> None:
        self.name, self.artifacts = name, artifacts
        self.settings = Settings.from_environment()
        self.loaded = self.result("load", LoadResult)
        self.config, self.training = self.loaded.config, self.loaded.config.training
        self.provenance = self.loaded.run.provenance
        self.work: Workspace = self.loaded.run.work.model_copy(update={"store": store or self.settings.store})

    def result(self, name: str, kind: type[Record]) -> Record:
        return step_artifacts.read_result(self.artifacts[name], kind)


def run_step(function: str, name: str, output: str, artifacts: Mapping[str, str], **parameters: Any) -> dict[str, Any]:
    """Runs a step, and writes its result and its new files to its artifact; a transient error is tried again.

    Args:
        function: key of ``STEPS``, or ``load``.
        name: of the step in the pipeline.
        output: folder of its artifact.
        artifacts: folders of earlier artifacts, by the names of their steps.
        parameters: of ``load``.

    Returns:
        The metadata of the artifact: what Kubeflow shows of it.
    """
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
    paths = {step: Path(path) for step, path in artifacts.items()}
    for attempt in range(1, ATTEMPTS + 1):
        try:
            if function == "load":
                return load(Path(output), **parameters)
            return _run_on_workspace(function, name, Path(output), paths)
        except TransientError as error:
            if attempt == ATTEMPTS:
                raise
            logging.getLogger(__name__).warning("%s; attempt %s of %s follows", error, attempt + 1, ATTEMPTS)
            time.sleep(DELAY_S * attempt)
    raise AssertionError


def load(output: Path, config: str, as_of: str, force: bool) -> dict[str, Any]:
    """Loads the table into a workspace of the shared store, and copies both to the artifact."""
    pipeline, settings = PipelineConfig.model_validate_json(config), Settings.from_environment()
    check_config(pipeline)
    check_files(pipeline.behaviour, settings.project)
    run = data.load.fn(pipeline, settings, _read_time(as_of), force, "manual")
    finished = find_finished(settings, pipeline.name, run.work, run.provenance.run_key)
    step_artifacts.write_result(output, LoadResult(config=pipeline, run=run, finished=finished))
    step_artifacts.save_files(output, run.work, {}, run.work.dataset.path)
    return {"rows": run.work.dataset.rows, "digest": run.work.dataset.digest}


def _read_time(text: str) -> datetime | None:
    try:
        return datetime.fromisoformat(text) if text else None
    except ValueError:
        what = f"{text!r} is not a day or a time"
        raise ConfigError(what, where="as_of", remedy="write it as 2026-06-30 or 2026-06-30T13:00") from None


def _run_on_workspace(function: str, name: str, output: Path, artifacts: Mapping[str, Path]) -> dict[str, Any]:
    step, shared = STEPS[function]
    with tempfile.TemporaryDirectory(prefix="towline-step-") as private:
        inputs = StepInputs(name, artifacts, None if shared else Path(private))
        if inputs.loaded.finished:
            step_artifacts.write_result(output, inputs.loaded.finished)
            return {"note": f"an identical run has finished: {inputs.loaded.finished.reason}"}
        for artifact in artifacts.values():
            step_artifacts.restore_files(artifact, inputs.work.store)
        before = step_artifacts.list_files(inputs.work)
        with inputs.work.exclusive_lock():
            result = step(inputs)
            further = (result.path,) if isinstance(result, Release) else ()
            step_artifacts.write_result(output, result)
            step_artifacts.save_files(output, inputs.work, before, *further)
            return _describe(result)


def _describe(result: BaseModel) -> dict[str, Any]:
    """The metadata of an artifact: numbers and short texts."""
    if isinstance(result, Evaluation):
        return {name: interval.value for name, interval in result.metrics.items() if interval.value is not None}
    fields = result.model_dump(mode="json")
    return {key: value for key, value in fields.items() if isinstance(value, int | float | str) and key != "docs"}


def validate(step: StepInputs) -> Validation:
    champion = step.loaded.run.champion_contract
    validation = data.validate.fn(step.work, step.training, step.config.validation, champion, step.settings)
    check_candidates(step.config, step.work.contract())
    check_with_contract(step.config, step.work, step.settings.project)
    return validation


def split(step: StepInputs) -> SplitResult:
    sizes = data.split.fn(step.work, step.training)
    return SplitResult(sizes=sizes, limits=training.plan_fits.fn(step.work, step.training))


def cross_validate(step: StepInputs) -> CrossValidationResult:
    limits = step.result("split", SplitResult).limits
    return training.cross_validate.fn(step.work, step.training, _candidate(step), limits)


def cross_validate_ensemble(step: StepInputs) -> CrossValidationResult:
    limits = step.result("split", SplitResult).limits
    scores = _scores(step)
    return training.cross_validate_ensemble.fn(step.work, step.training, _candidate(step), scores, limits)


def _candidate(step: StepInputs) -> Candidate:
    candidates = (baseline_candidate(step.training), *step.training.candidates)
    return next(each for each in candidates if step.name == f"cross-validate {each.name}")


def _scores(step: StepInputs) -> tuple[CrossValidationResult, ...]:
    """The scores of the earlier steps, in the order of the training flow."""
    ordered = (baseline_candidate(step.training), *step.training.single_candidates, *step.training.ensembles)
    names = (f"cross-validate {candidate.name}" for candidate in ordered)
    return tuple(step.result(name, CrossValidationResult) for name in names if name in step.artifacts)


def choose_history(step: StepInputs) -> SelectionResult:
    scores = _scores(step)
    chosen = choose_candidate(scores, step.training, step.work.contract().task)
    return SelectionResult(
        scores=scores,
        chosen=chosen,
        comparison=training.compare_with_reference.fn(step.work, step.training, scores, chosen),
        history=training.choose_history.fn(step.work, step.training, chosen),
    )


def fit(step: StepInputs) -> FittedModel:
    choice = step.result("choose history", SelectionResult)
    return training.fit.fn(step.work, step.training, choice.chosen, choice.history)


def evaluate(step: StepInputs) -> Evaluation:
    return training.evaluate.fn(step.work, step.training, step.result("fit", FittedModel))


def refit(step: StepInputs) -> FittedModel:
    chosen = step.result("choose history", SelectionResult).chosen
    return training.refit.fn(step.work, step.training, chosen, step.result("fit", FittedModel))


def plot(step: StepInputs) -> TrainingResult:
    """Tests the behaviour of the model and draws the plots."""
    choice, model = step.result("choose history", SelectionResult), step.result("refit", FittedModel)
    result = TrainingResult(
        candidates=choice.scores,
        model=model,
        evaluation=step.result("evaluate", Evaluation),
        validation=step.result("validate", Validation),
        behaviour=training.check_behaviour.fn(step.work, step.config, step.settings, model),
        comparison=choice.comparison,
    )
    training.plot.fn(step.work, step.training, result)
    return result


def register(step: StepInputs) -> RegisteredVersion:
    result = step.result("plot", TrainingResult)
    return registry.register.fn(step.work, step.config, step.settings, result, step.provenance)


def package(step: StepInputs) -> Release:
    version, result = step.result("register", RegisteredVersion), step.result("plot", TrainingResult)
    return release.package.fn(step.work, step.config, version.version, result, step.provenance)


def smoke_test(step: StepInputs) -> SmokeTestResult:
    with start_tester() as tester:
        return release.smoke_test.fn(step.work, step.result("package", Release), tester)


def apply_gate(step: StepInputs) -> Verdict:
    smoke, result = step.result("smoke test", SmokeTestResult), step.result("plot", TrainingResult)
    run_key = step.provenance.run_key
    verdict = release.apply_gate.fn(step.work, step.config, step.settings, result, smoke, run_key)
    if step.config.package.image and verdict.outcome == "pass":
        version, packaged = step.result("register", RegisteredVersion), step.result("package", Release)
        return release.build_image.fn(
            step.work, step.config, step.settings, version, packaged, verdict, step.provenance
        )
    return verdict


def decide_promotion(step: StepInputs) -> Outcome:
    """Decides the promotion, updates MLflow and begins a rollout, as the training flow does.

    Raises:
        PromotionRejectedError: the gate refused the version, so that Kubeflow shows the run as failed.
    """
    version, packaged = step.result("register", RegisteredVersion), step.result("package", Release)
    verdict = step.result("gate", Verdict)
    entry = registry.decide_promotion.fn(step.config, step.settings, version, packaged, verdict, step.provenance)
    note = registry.update_mlflow.fn(step.work, step.settings, version, packaged, verdict)
    if entry.event == "passed" and step.config.approval is None:
        note = " ".join(filter(None, (rollout.begin_rollout.fn(step.config, step.settings, entry), note)))
    outcome = summarize(
        entry,
        step.work,
        step.result("split", SplitResult).sizes,
        step.result("plot", TrainingResult),
        run_key=step.provenance.run_key,
        verdict=verdict,
        link=version.link,
        run_id=version.run_id,
        note=note,
    )
    refused = outcome.event == "refused"
    step.work.end_run(step.provenance.run_key, keep_fits=refused and step.config.data.keep_snapshot)
    if refused:
        raise PromotionRejectedError(
            outcome.reason,
            where=f"{outcome.model}@{outcome.version}",
            remedy="see the checks in the artifact of the gate",
        )
    return outcome


#: name of a step → its function, and whether it writes to the store that all machines share
STEPS: Mapping[str, tuple[Callable[[StepInputs], BaseModel], bool]] = {
    "validate": (validate, False),
    "split": (split, False),
    "cross_validate": (cross_validate, False),
    "cross_validate_ensemble": (cross_validate_ensemble, False),
    "choose_history": (choose_history, False),
    "fit": (fit, False),
    "evaluate": (evaluate, False),
    "refit": (refit, False),
    "plot": (plot, False),
    "register": (register, True),
    "package": (package, True),
    "smoke_test": (smoke_test, True),
    "apply_gate": (apply_gate, True),
    "decide_promotion": (decide_promotion, True),
}
