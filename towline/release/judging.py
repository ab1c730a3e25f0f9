"""The gate's case put together: challenger, baseline and champion on the same holdout rows."""

from pathlib import Path

import numpy as np
import pandas as pd

from towline.config import PipelineConfig
from towline.data.contract import Contract
from towline.data.workspace import Workspace
from towline.errors import DataError, ReleaseError
from towline.release.predictor import Model, open_release
from towline.training import stored
from towline.training.evaluation import Evaluation, saved_predictions
from towline.training.gate import Check, Smoke, Verdict, decide
from towline.training.metrics import Predictions


def judge(
    work: Workspace,
    config: PipelineConfig,
    evaluation: Evaluation,
    smoke: Smoke,
    champion_release: Path | None,
) -> Verdict:
    """Decides whether a release may serve; saved as ``verdict.json`` beside the run, for a release never changes.

    The champion answers the same rows through its own contract and is judged only by rows it was not trained on. One
    that cannot be asked, because its release is damaged or the rows are no longer ones it can take, leaves the verdict
    inconclusive: a person has to say.

    Args:
        work: the run's folder.
        config: holds the bounds and margins.
        evaluation: what the challenger reached on the holdout.
        smoke: what came of the smoke test.
        champion_release: the directory of the release that serves now; None if there is none.
    """
    contract, rows = work.contract(), work.part("holdout")[2]
    truth, challenger, baseline = saved_predictions(work)  # what the release answers too, or the smoke test failed
    champion, unasked = None, None
    if champion_release is not None:
        try:
            model = open_release(champion_release, stored.packages(config))
            champion = (model.version, _answers(model, contract, rows), _unseen(model, config, rows))
        except (ReleaseError, DataError) as error:
            told = "; ".join((error.what, *error.details))
            unasked = Check(name="champion", outcome="inconclusive", detail=told, value=None, bound=None)
    verdict = decide(config, contract, evaluation, smoke, truth, challenger, baseline, champion, rows)
    if unasked:
        verdict = verdict.model_copy(
            update={
                "checks": (*verdict.checks, unasked),
                "outcome": "fail" if verdict.outcome == "fail" else "inconclusive",
            }
        )
    work.save("verdict.json", verdict)
    return verdict


def _answers(model: Model, contract: Contract, rows: pd.DataFrame) -> Predictions:
    """The champion's predictions, its probabilities in the order of this run's classes.

    Raises:
        DataError: it solves another task, or a class it knows is no more.
    """
    own = model.contract
    gone = set(own.classes) - set(contract.classes)
    if (own.target, own.task) != (contract.target, contract.task) or gone:
        raise DataError(
            f"the champion, version {model.version}, predicts something else: {own.task} of {own.target}"
            + (f", classes {', '.join(sorted(map(str, gone)))} are no more" if gone else ""),
            where=str(model.directory),
            remedy="give the pipeline a new name if the change is wanted",
        )
    found = model.predictions(model.features(rows))
    if found.probabilities is None:
        return found
    aligned = np.zeros((len(rows), len(contract.classes)))
    aligned[:, [contract.classes.index(label) for label in own.classes]] = found.probabilities
    return Predictions(labels=found.labels, probabilities=aligned)


def _unseen(model: Model, config: PipelineConfig, rows: pd.DataFrame) -> np.ndarray:
    """Which of the holdout rows (n,) the champion was not trained on.

    By time those after its training's end. A random split goes by a hash of the row's content, so that a row stands on
    the same side in every run.
    """
    end = model.metadata.dataset.get("train_end")
    if end is None or config.data.time is None:
        return np.ones(len(rows), dtype=bool)
    return (pd.to_datetime(rows[config.data.time]) > pd.Timestamp(end)).to_numpy(dtype=bool)
