"""The final fits: the chosen candidate on the train part, for evaluation; then on all rows, for the release.

Both fits use the same candidate, hyperparameters, calibration and threshold. The second one is the *refit*: what was
evaluated is a recipe, and the released model is the same recipe on all rows.
"""

import pandas as pd

from towline import files
from towline.config import Frozen, TrainingConfig
from towline.data.splits import SplitSummary
from towline.data.workspace import Subset, Workspace
from towline.errors import FitError, TowlineError
from towline.training import model_io
from towline.training.calibration import Calibration
from towline.training.detrend import Trend
from towline.training.estimators import build_model
from towline.training.evaluation.metrics import predict
from towline.training.evaluation.predictions import Threshold
from towline.training.history import History, choose_history, fit_history, load_rows
from towline.training.model_selection.cross_validation import CrossValidationResult, baseline_candidate
from towline.training.user_code import describe_error

EVALUATED_MODEL = "model.skops"
REFITTED_MODEL = "refitted.skops"
BASELINE_MODEL = "baseline.skops"
EVALUATION_PREDICTIONS = "holdout-predictions.npz"
REFITTED_PREDICTIONS = "refitted-predictions.npz"


class FittedModel(Frozen):
    """A fitted model in the workspace.

    Attributes:
        candidate, params, threshold, calibration: of the fitted model.
        file, sha256: the model's file and its digest.
        untrusted_types: types in the file that skops does not trust.
        rows: number of rows that it was fitted on.
        rows_available: number of rows before ``data.train_rows``.
        history: how these rows were selected.
        start, end: times (ISO) of these rows; None without a time column.
        measured_end: of a refitted model: ``end`` of the evaluated model.
        measured: of a refitted model: ``history`` of the evaluated model.
        refitted: whether it was fitted on all rows after the evaluation.
        trend: that was removed from its targets; None if none was.
        predictions_file: its predictions for the holdout.
    """

    candidate: str
    params: dict[str, object]
    file: str
    sha256: str
    untrusted_types: tuple[str, ...]
    rows: int
    rows_available: int | None = None
    threshold: Threshold | None
    calibration: Calibration | None = None
    history: History = History()
    start: str | None = None
    end: str | None = None
    measured_end: str | None = None
    measured: History | None = None
    refitted: bool = False
    trend: Trend | None = None
    predictions_file: str = EVALUATION_PREDICTIONS


def fit(
    work: Workspace, config: TrainingConfig, chosen: CrossValidationResult, history: History | None = None
) -> FittedModel:
    """Fits the chosen candidate on the history of the train part, and the baseline on the train part.

    Writes ``model.skops`` and ``baseline.skops``.

    Args:
        work: the run's workspace.
        config: of the training.
        chosen: the selected candidate.
        history: selects the rows; default: all rows of the train part.

    Raises:
        FitError: the candidate cannot be fitted on these rows, or the model cannot be stored.
    """
    train = work.subset("train")
    history = history or History(sample=chosen.final_rows)
    model = _fit_rows(work, config, chosen, history, train, EVALUATED_MODEL)
    baseline = build_model(baseline_candidate(config), work.contract(), config.seed).fit(train.features, train.labels)
    model_io.save_model(baseline, work.file(BASELINE_MODEL), "candidates.baseline")
    return model


def refit(
    work: Workspace, config: TrainingConfig, chosen: CrossValidationResult, evaluated: FittedModel
) -> FittedModel:
    """Fits the evaluated recipe again on all rows; returns ``evaluated`` if ``split.refit`` is off.

    If there are several histories, one is selected again on the newest rows: the selection is a part of the recipe.
    Writes ``refitted.skops`` and ``refitted-predictions.npz``, its predictions for the holdout. The model has seen
    these rows: the predictions prove that the release works, not how good it is.

    Raises:
        FitError: as ``fit``.
    """
    if not config.refits:
        return evaluated
    history = choose_history(work, config, chosen, all_rows=True)
    model = _fit_rows(work, config, chosen, history, load_rows(work, config, all_rows=True), REFITTED_MODEL)
    return model.model_copy(
        update={
            "refitted": True,
            "measured_end": evaluated.end,
            "measured": evaluated.history,
            "predictions_file": REFITTED_PREDICTIONS,
        }
    )


def training_rows(work: Workspace, config: TrainingConfig, model: FittedModel) -> pd.DataFrame:
    """The raw rows that a model was fitted on."""
    contract, time = work.contract(), config.data.time
    rows = load_rows(work, config, all_rows=model.refitted).rows
    positions = model.history.select_rows(rows[time] if time else None, contract.labels(rows))
    return rows.iloc[positions].reset_index(drop=True)


def _fit_rows(
    work: Workspace,
    config: TrainingConfig,
    chosen: CrossValidationResult,
    history: History,
    subset: Subset,
    file: str,
) -> FittedModel:
    contract, where = work.contract(), f"candidates.{chosen.candidate}"
    try:
        trained = fit_history(config, contract, chosen, history, subset)
    except TowlineError:
        raise
    except Exception as error:  # an estimator may raise anything
        what = f"{chosen.candidate} could not be fitted on all rows: {describe_error(error)}"
        raise FitError(what, where=where, remedy="correct its params, or remove it from candidates") from error
    model_io.save_model(trained.model, work.file(file), where)
    if file == REFITTED_MODEL:
        predictions = predict(trained.model, work.subset("holdout").features, contract)
        files.write_arrays(work.file(REFITTED_PREDICTIONS), **predictions.to_arrays(contract.classes))
    split = SplitSummary.model_validate_json(work.file("split.json").read_bytes())
    available = work.dataset.rows if file == REFITTED_MODEL else split.train_available
    times = subset.rows[config.data.time].iloc[trained.positions] if config.data.time else None
    return FittedModel(
        candidate=chosen.candidate,
        params=chosen.params,
        file=file,
        sha256=files.sha256(work.file(file)),
        untrusted_types=model_io.skops_untrusted_types(work.file(file)),
        rows=len(trained.positions),
        rows_available=available,
        threshold=chosen.threshold,
        calibration=chosen.calibration,
        history=history,
        start=None if times is None else times.min().isoformat(),
        end=None if times is None else times.max().isoformat(),
        trend=trained.trend,
    )
