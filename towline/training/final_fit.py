"""The chosen candidate fitted: on the train part, to be measured; then on all rows, to be released."""

import numpy as np
import pandas as pd

from towline import files
from towline.config import Frozen, PipelineConfig
from towline.data.schema.contract import Contract
from towline.data.workspace import Workspace
from towline.errors import FitError, TowlineError
from towline.training import model_io
from towline.training.cross_validation import Scores, baseline
from towline.training.detrend import Level
from towline.training.estimator_import import brief
from towline.training.estimators import build
from towline.training.evaluation.metrics import predict
from towline.training.evaluation.predictions import Predictions, encode, labelled
from towline.training.history import History, choose_history, fitted, given

MEASURED = "holdout-predictions.npz"
REFITTED = "refitted-predictions.npz"


class Fitted(Frozen):
    """A model, fitted on ``rows`` rows and stored in the workspace under ``file``.

    Attributes:
        history: which rows of those it was given it learnt from, and how that was chosen.
        start, end: the times (ISO) of the rows it learnt from; None where rows have no time.
        measured_end: of a model that was fitted again on all rows: where the one that was measured ends.
        measured: the same: the history of that one.
        refitted: whether it was fitted again after the measurement.
        level: that its targets were brought to, if they were.
        answers: the file with its answers to the holdout.
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
    level: Level | None = None
    answers: str = MEASURED


def fit(work: Workspace, config: PipelineConfig, chosen: Scores, history: History | None = None) -> Fitted:
    """Fits the chosen candidate on the train part, as far as the history takes it, and the baseline on all of it.

    Files: ``model.skops``, ``baseline.skops``.

    Raises:
        FitError: it cannot be fitted on all rows, or not be stored.
    """
    features, labels, rows = work.part("train")
    one = _fitted(work, config, chosen, history or History(), (features, labels, rows), "model.skops")
    where = "candidates.baseline"
    dummy = build(baseline(config), work.contract(), config.seed).fit(features, labels)
    model_io.save(dummy, work.file("baseline.skops"), where)
    return one


def refit(work: Workspace, config: PipelineConfig, chosen: Scores, measured: Fitted) -> Fitted:
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
    one = _fitted(work, config, chosen, history, given(work, config, whole=True), "refitted.skops")
    update = {"refitted": True, "measured_end": measured.end, "answers": REFITTED, "measured": measured.history}
    return one.model_copy(update=update)


def learnt(work: Workspace, config: PipelineConfig, model: Fitted) -> pd.DataFrame:
    """The raw rows that a model learnt from."""
    contract, time = work.contract(), config.data.time
    rows = work.table() if model.refitted else work.part("train")[2]
    places = model.history.learnt(rows[time] if time else None, contract.labels(rows))
    return rows.iloc[places].reset_index(drop=True)


def answers(work: Workspace, model: Fitted) -> Predictions:
    """What a model says of the holdout rows, as it was saved."""
    contract = work.contract()
    with np.load(work.file(model.answers), allow_pickle=False) as saved:
        labels = saved["labels"]
        probabilities = saved["probabilities"] if "probabilities" in saved.files else None
    return Predictions(labelled(labels, contract.classes) if contract.classes else labels, probabilities)


def _fitted(
    work: Workspace,
    config: PipelineConfig,
    chosen: Scores,
    history: History,
    part: tuple[pd.DataFrame, np.ndarray, pd.DataFrame],
    file: str,
) -> Fitted:
    features, labels, rows = part
    contract, where = work.contract(), f"candidates.{chosen.candidate}"
    times = rows[config.data.time] if config.data.time else None
    try:
        model, places, level = fitted(config, contract, chosen, history, features, labels, times)
    except TowlineError:
        raise
    except Exception as error:  # an estimator may raise anything
        what = f"{chosen.candidate} could not be fitted on all rows: {brief(error)}"
        raise FitError(what, where=where, remedy="mend its params, or leave it out") from error
    model_io.save(model, work.file(file), where)
    if file != "model.skops":
        _save(work, predict(model, work.part("holdout")[0], contract), contract)
    own = None if times is None else times.iloc[places]
    return Fitted(
        candidate=chosen.candidate,
        params=chosen.params,
        file=file,
        sha256=files.sha256(work.file(file)),
        rows=len(places),
        threshold=chosen.threshold,
        history=history,
        start=None if own is None else own.min().isoformat(),
        end=None if own is None else own.max().isoformat(),
        level=level,
    )


def _save(work: Workspace, found: Predictions, contract: Contract) -> None:
    content = {"labels": encode(found.labels, contract.classes) if contract.classes else found.labels}
    if found.probabilities is not None:
        content["probabilities"] = found.probabilities
    with files.replacing(work.file(REFITTED)) as file:
        np.savez(file, allow_pickle=False, **content)
