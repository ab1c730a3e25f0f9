"""The gate's case put together: challenger, baseline and champion on the same holdout rows."""

from pathlib import Path

import numpy as np
import pandas as pd

from towline.config import PipelineConfig
from towline.data.contract import Contract
from towline.data.splits import held_out
from towline.data.workspace import Workspace
from towline.errors import DataError, ReleaseError
from towline.release.predictor import Model, open_release
from towline.training import stored
from towline.training.evaluation import Evaluation, saved_predictions
from towline.training.gate import Check, Smoke, Verdict, decide
from towline.training.predictions import Predictions


def judge(
    work: Workspace,
    config: PipelineConfig,
    evaluation: Evaluation,
    smoke: Smoke,
    champion: tuple[int, Path] | None,
) -> Verdict:
    """Decides whether a release may serve; saved as ``verdict.json`` beside the run, for a release never changes.

    The champion answers the same rows through its own contract and is judged only by rows it was not trained on. One
    that cannot answer these rows cannot serve them either, so it does not stand in the way. One that is damaged, or
    predicts something else, leaves the verdict inconclusive.

    Args:
        work: the run's folder.
        config: holds the bounds and margins.
        evaluation: what the challenger reached on the holdout.
        smoke: what came of the smoke test.
        champion: version and release directory of what serves now; None if there is none.
    """
    contract, rows = work.contract(), work.part("holdout")[2]
    truth, challenger, baseline = saved_predictions(work)  # what the release answers too, or the smoke test failed
    asked, unasked = None, None
    if champion:
        try:
            asked = _ask(open_release(champion[1], stored.packages(config)), contract, rows)
        except ReleaseError as error:
            unasked = Check(name="champion", outcome="inconclusive", detail=f"{error.what}; {error.remedy}")
        except DataError as error:
            told = "; ".join((f"version {champion[0]} cannot answer these rows: {error.what}", *error.details))
            unasked = Check(name="champion", outcome="pass", detail=told)
    verdict = decide(config, contract, evaluation, smoke, truth, challenger, baseline, asked, rows)
    if champion and unasked:
        outcome = "inconclusive" if (verdict.outcome, unasked.outcome) == ("pass", "inconclusive") else verdict.outcome
        checks = (*verdict.checks, unasked)
        verdict = verdict.model_copy(update={"checks": checks, "outcome": outcome, "champion": champion[0]})
    work.save("verdict.json", verdict)
    return verdict


def _ask(model: Model, contract: Contract, rows: pd.DataFrame) -> tuple[int, Predictions, np.ndarray]:
    """The champion's version, its predictions, and which rows (n,) it was not trained on.

    Raises:
        DataError: it cannot take the rows.
        ReleaseError: it solves another task, or a class it knows is no more.
    """
    own = model.contract
    gone = set(own.classes) - set(contract.classes)
    if (own.target, own.task) != (contract.target, contract.task) or gone:
        raise ReleaseError(
            f"the champion, version {model.version}, predicts something else: {own.task} of {own.target}"
            + (f", classes {', '.join(sorted(map(str, gone)))} are no more" if gone else ""),
            where=str(model.directory),
            remedy="give the pipeline a new name if the change is wanted",
        )
    found = model.predictions(model.features(rows))
    if found.probabilities is not None:
        aligned = np.zeros((len(rows), len(contract.classes)))
        aligned[:, [contract.classes.index(label) for label in own.classes]] = found.probabilities
        found = Predictions(labels=found.labels, probabilities=aligned)
    return model.version, found, _unseen(model, rows)


def _unseen(model: Model, rows: pd.DataFrame) -> np.ndarray:
    """Which of the holdout rows (n,) the champion was not trained on, by its own split; none where that is unknown."""
    split = model.metadata.dataset["split"]
    columns = [split["time"]] if split["by"] == "time" else [column.name for column in model.contract.columns]
    if not set(columns) <= set(rows.columns):
        return np.zeros(len(rows), dtype=bool)
    if split["by"] == "time":
        later: np.ndarray = (pd.to_datetime(rows[split["time"]]) > pd.Timestamp(split["train_end"])).to_numpy(
            dtype=bool
        )
        return later
    return held_out(rows[columns], split["group"], split["seed"], split["holdout"])
