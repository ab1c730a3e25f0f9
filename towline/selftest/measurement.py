"""The measurement of a pipeline: one model is fitted as the champion, then each part that decides is measured.

The parts are the gate, the drift alarm, the quality verdict and the verdict of a rollout.

Everything happens in a temporary folder: no run, version or release is left behind.
"""

import tempfile
from pathlib import Path

import numpy as np

from towline import files
from towline.config import PipelineConfig, Settings
from towline.data import splits
from towline.data.schema.contract import Contract
from towline.data.schema.inference import infer_contract
from towline.data.source import sources
from towline.data.workspace import Workspace, open_workspace
from towline.errors import FitError
from towline.promotion.gate import Holdout
from towline.release.reference import build_reference
from towline.selftest.drift_rates import measure_drift
from towline.selftest.gate_rates import NoisyModel, measure_gate
from towline.selftest.quality_rates import measure_quality_verdict
from towline.selftest.rates import SelftestResult
from towline.selftest.rollout_rates import measure_rollout
from towline.steps import step
from towline.training.evaluation.holdout import Evaluation, evaluate, load_evaluation_predictions
from towline.training.evaluation.metrics import predict
from towline.training.final_fit import FittedModel, fit, training_rows
from towline.training.history import fit_history
from towline.training.model_selection.budget import BudgetLimits
from towline.training.model_selection.config_checks import check_config
from towline.training.model_selection.cross_validation import (
    CrossValidationResult,
    check_candidates,
    cross_validate,
)

NOISE = (0.1, 0.3)  # shares of wrong labels


def run_selftest(config: PipelineConfig, project: Path) -> SelftestResult:
    """Measures the gate, the drift alarm, the quality verdict and the rollouts of a pipeline on its own table.

    The last candidate that is not an ensemble is fitted, without a search: its errors are those of the table.

    Args:
        config: of the pipeline.
        project: folder that relative paths start from.

    Raises:
        ConfigError: the config cannot be used.
        DataError: the table cannot be read.
        FitError: the candidate cannot be fitted.
    """
    check_config(config)
    with tempfile.TemporaryDirectory(prefix="towline-selftest-") as scratch:
        settings = Settings(project=project, store=Path(scratch), tracking_uri="", ledger_url="")
        with step("load") as progress:
            work = _prepare(config, settings)
            progress.note = f"{work.dataset.rows:,} rows"
        with step("fit") as progress:
            chosen, fitted, evaluation = _fit_champion(work, config)
            progress.note = f"{chosen.candidate}: {evaluation.primary} {evaluation.metrics[evaluation.primary].text()}"
        with step("measure gate") as progress:
            holdout, noisy = _load_holdout(work), _fit_noisy(work, config, chosen, fitted)
            rates, notes = measure_gate(config, evaluation, holdout, noisy, holdout.baseline)
            progress.note = f"{len(rates)} rates"
        with step("measure quality verdict") as progress:
            quality_rates, quality_notes = measure_quality_verdict(
                config, evaluation, holdout, Path(scratch) / "quality"
            )
            progress.note = f"{len(quality_rates)} rates"
        with step("measure rollouts") as progress:
            rollout_rates, rollout_notes = measure_rollout(config, holdout, noisy[0].predictions)
            progress.note = f"{len(rollout_rates)} rates"
        with step("measure drift alarm") as progress:
            release = _write_reference(work, config, fitted, Path(scratch) / "reference")
            like_reference = work.subset("train" if config.by_time else "holdout").rows
            drift_rates, drift_notes = measure_drift(config, release, work.contract(), like_reference)
            progress.note = f"{len(drift_rates)} rates"
    return SelftestResult(
        model=config.name,
        candidate=chosen.candidate,
        rates=(*rates, *drift_rates, *quality_rates, *rollout_rates),
        notes=(
            *notes,
            *drift_notes,
            "drift: the inputs are measured, without the predictions",
            *quality_notes,
            *rollout_notes,
        ),
    )


def _prepare(config: PipelineConfig, settings: Settings) -> Workspace:
    dataset = sources.load_dataset(config.data, settings.project, settings.store, None, config.privacy.pii)
    work = open_workspace(config, dataset, settings.project, settings.store, None)
    contract = infer_contract(work.columns(), config, work.dataset.formats, work.lookups(config))
    work.save(Contract.FILE, contract)
    check_candidates(config, contract)
    splits.split_table(work, config)
    return work


def _fit_champion(work: Workspace, config: PipelineConfig) -> tuple[CrossValidationResult, FittedModel, Evaluation]:
    candidate = config.single_candidates[-1].model_copy(update={"search": None})
    single = config.model_copy(update={"candidates": (candidate,)})
    chosen = cross_validate(work, single, candidate, BudgetLimits())
    if chosen.failed:
        raise FitError(chosen.failed, where=f"candidates.{candidate.name}", remedy="correct its params")
    fitted = fit(work, single, chosen)
    return chosen, fitted, evaluate(work, single, fitted)


def _load_holdout(work: Workspace) -> Holdout:
    """The holdout; its challenger is the champion of the self-test."""
    truth, champion, baseline = load_evaluation_predictions(work)
    return Holdout(work.contract(), work.subset("holdout").rows, truth, champion, baseline)


def _fit_noisy(
    work: Workspace, config: PipelineConfig, chosen: CrossValidationResult, fitted: FittedModel
) -> list[NoisyModel]:
    """The champion's recipe, fitted on labels of which a share is wrong."""
    holdout, train = work.subset("holdout"), work.subset("train")
    rng, noisy = np.random.default_rng(config.seed), []
    for share in NOISE:
        labels = train.labels.copy()
        wrong = rng.permutation(len(labels))[: round(share * len(labels))]
        labels[wrong] = labels[rng.permutation(wrong)]  # the labels of other rows
        model = fit_history(config, work.contract(), chosen, fitted.history, train._replace(labels=labels)).model
        noisy.append(NoisyModel(share, predict(model, holdout.features, work.contract())))
    return noisy


def _write_reference(work: Workspace, config: PipelineConfig, fitted: FittedModel, folder: Path) -> Path:
    """The files that the drift detector reads."""
    files.write(folder / Contract.FILE, work.contract().model_dump_json())
    for name, content in build_reference(work, config, training_rows(work, config, fitted)).items():
        files.write(folder / name, content)
    return folder
