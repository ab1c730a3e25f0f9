"""The chosen candidate fitted: on the train part, to be measured; then on all rows, to be released."""

import numpy as np
import pandas as pd

from towline import files
from towline.config import Frozen, PipelineConfig
from towline.data.schema.contract import Contract
from towline.data.workspace import Workspace
from towline.errors import FitError, TowlineError
from towline.training import model_io
from towline.training.cross_validation import CrossValidationResult, baseline_candidate
from towline.training.detrend import Trend
from towline.training.estimator_import import describe_error
from towline.training.estimators import build_model
from towline.training.evaluation.metrics import predict
from towline.training.evaluation.predictions import Predictions, decode_labels, encode_labels
from towline.training.history import History, choose_history, fit_history, load_rows

EVALUATION_PREDICTIONS = "holdout-predictions.npz"
REFITTED_PREDICTIONS = "refitted-predictions.npz"


class FittedModel(Frozen):
    """A model, fitted on ``rows`` rows and stored in the workspace under ``file``.

    Attributes:
        history: which rows of those it was given it learnt from, and how that was chosen.
        start, end: the times (ISO) of the rows it learnt from; None where rows have no time.
        measured_end: of a model that was fitted again on all rows: where the one that was measured ends.
        measured: the same: the history of that one.
        refitted: whether it was fitted again after the measurement.
        trend: that was removed from its targets, if any.
        predictions_file: the file with its predictions for the holdout.
    """

    candidate: str
    params: dict[str, object]
    file: str
    sha256: str
    rows: int
    threshold: float | None
    history: History = History()
    start: str | None = None
    end: str | None = None
    measured_end: str | None = None
    measured: History | None = None
    refitted: bool = False
    trend: Trend | None = None
    predictions_file: str = EVALUATION_PREDICTIONS


def fit(
    work: Workspace, config: PipelineConfig, chosen: CrossValidationResult, history: History | None = None
) -> FittedModel:
    """Fits the chosen candidate on the train part, as far as the history takes it, and the baseline on all of it.

    Files: ``model.skops``, ``baseline.skops``.

    Raises:
        FitError: it cannot be fitted on all rows, or not be stored.
    """
    features, labels, rows = work.part("train")
    one = _fit_rows(work, config, chosen, history or History(), (features, labels, rows), "model.skops")
    where = "candidates.baseline"
    dummy = build_model(baseline_candidate(config), work.contract(), config.seed).fit(features, labels)
    model_io.save_model(dummy, work.file("baseline.skops"), where)
    return one


def refit(work: Workspace, config: PipelineConfig, chosen: CrossValidationResult, measured: FittedModel) -> FittedModel:
    """Does what was measured once more, on all rows up to the newest; else hands back what was measured.

    Estimator, parameters and threshold stay as they were chosen. Of several histories one is chosen in the same way as
    before, now on the newest rows there are: the choice is part of what was measured. Files: ``refitted.skops`` and
    ``refitted-predictions.npz``, its answers to the holdout, which it has seen: they prove a release, and tell
    nothing of how good it is.

    Raises:
        FitError: as ``fit``.
    """
    if not config.refits:
        return measured
    history = choose_history(work, config, chosen, whole=True)
    one = _fit_rows(work, config, chosen, history, load_rows(work, config, whole=True), "refitted.skops")
    update = {
        "refitted": True,
        "measured_end": measured.end,
        "predictions_file": REFITTED_PREDICTIONS,
        "measured": measured.history,
    }
    return one.model_copy(update=update)


def training_rows(work: Workspace, config: PipelineConfig, model: FittedModel) -> pd.DataFrame:
    """The raw rows that a model learnt from."""
    contract, time = work.contract(), config.data.time
    rows = work.table() if model.refitted else work.part("train")[2]
    places = model.history.learnt(rows[time] if time else None, contract.labels(rows))
    return rows.iloc[places].reset_index(drop=True)


def holdout_predictions(work: Workspace, model: FittedModel) -> Predictions:
    """What a model says of the holdout rows, as it was saved."""
    contract = work.contract()
    with np.load(work.file(model.predictions_file), allow_pickle=False) as saved:
        labels = saved["labels"]
        probabilities = saved["probabilities"] if "probabilities" in saved.files else None
    return Predictions(decode_labels(labels, contract.classes) if contract.classes else labels, probabilities)


def _fit_rows(
    work: Workspace,
    config: PipelineConfig,
    chosen: CrossValidationResult,
    history: History,
    part: tuple[pd.DataFrame, np.ndarray, pd.DataFrame],
    file: str,
) -> FittedModel:
    features, labels, rows = part
    contract, where = work.contract(), f"candidates.{chosen.candidate}"
    times = rows[config.data.time] if config.data.time else None
    try:
        model, places, trend = fit_history(config, contract, chosen, history, features, labels, times)
    except TowlineError:
        raise
    except Exception as error:  # an estimator may raise anything
        what = f"{chosen.candidate} could not be fitted on all rows: {describe_error(error)}"
        raise FitError(what, where=where, remedy="mend its params, or leave it out") from error
    model_io.save_model(model, work.file(file), where)
    if file != "model.skops":
        _save_predictions(work, predict(model, work.part("holdout")[0], contract), contract)
    own = None if times is None else times.iloc[places]
    return FittedModel(
        candidate=chosen.candidate,
        params=chosen.params,
        file=file,
        sha256=files.sha256(work.file(file)),
        rows=len(places),
        threshold=chosen.threshold,
        history=history,
        start=None if own is None else own.min().isoformat(),
        end=None if own is None else own.max().isoformat(),
        trend=trend,
    )


def _save_predictions(work: Workspace, found: Predictions, contract: Contract) -> None:
    content = {"labels": encode_labels(found.labels, contract.classes) if contract.classes else found.labels}
    if found.probabilities is not None:
        content["probabilities"] = found.probabilities
    with files.replacing(work.file(REFITTED_PREDICTIONS)) as file:
        np.savez(file, allow_pickle=False, **content)
