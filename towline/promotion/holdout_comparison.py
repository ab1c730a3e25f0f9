"""The gate's case put together: challenger, baseline and champion on the same holdout rows."""

import numpy as np
import pandas as pd

from towline.config import PipelineConfig
from towline.data.schema.contract import Contract
from towline.data.splits import hash_rows, is_held_out
from towline.data.workspace import Workspace
from towline.errors import DataError, ReleaseError
from towline.inference.predictor import Model, open_release
from towline.manifest import HOLDOUT, ReleaseLocation
from towline.promotion.gate import MIN_UNSEEN, Check, Verdict, apply_gate
from towline.release.smoke_test import SmokeTestResult
from towline.training.evaluation.holdout import Evaluation, load_evaluation_predictions
from towline.training.evaluation.predictions import Predictions


def judge_release(
    work: Workspace,
    config: PipelineConfig,
    evaluation: Evaluation,
    smoke: SmokeTestResult,
    champion: tuple[int, ReleaseLocation] | None,
) -> Verdict:
    """Decides whether a release may serve; saved as ``verdict.json`` beside the run, for a release never changes.

    The champion answers the same rows through its own contract and is judged only by rows it was not trained on. Where
    those are few, because it was fitted again on all rows up to its day, what its recipe had said of its own holdout
    counts too: two recipes on rows that neither was fitted on. A champion that cannot answer these rows cannot serve
    them either, so it does not stand in the way. One that is damaged, or predicts something else, leaves the verdict
    inconclusive.

    Args:
        work: the run's folder.
        config: holds the bounds and margins.
        evaluation: what the challenger reached on the holdout.
        smoke: what came of the smoke test.
        champion: version and release of what serves now; None if there is none.
    """
    contract, rows = work.contract(), work.part("holdout")[2]
    truth, challenger, baseline = load_evaluation_predictions(
        work
    )  # of the model that was measured, not of one fitted again
    asked, unasked = None, None
    if champion:
        try:
            asked = _predict_with_champion(
                open_release(champion[1].directory, digest=champion[1].digest), contract, rows
            )
        except ReleaseError as error:
            unasked = Check(name="champion", outcome="inconclusive", detail=f"{error.what}; {error.remedy}")
        except DataError as error:
            told = "; ".join((f"version {champion[0]} cannot answer these rows: {error.what}", *error.details))
            unasked = Check(name="champion", outcome="pass", detail=told)
    verdict = apply_gate(config, contract, evaluation, smoke, truth, challenger, baseline, asked, rows)
    if champion and unasked:
        outcome = "inconclusive" if (verdict.outcome, unasked.outcome) == ("pass", "inconclusive") else verdict.outcome
        checks = (*verdict.checks, unasked)
        verdict = verdict.model_copy(update={"checks": checks, "outcome": outcome, "champion": champion[0]})
    work.save("verdict.json", verdict)
    return verdict


def _predict_with_champion(model: Model, contract: Contract, rows: pd.DataFrame) -> tuple[int, Predictions, np.ndarray]:
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
    found, unseen = model.predict_frame(model.to_features(rows)), _find_unseen_rows(model, rows)
    if int(unseen.sum()) < MIN_UNSEEN:
        found, kept = _use_saved_predictions(model, rows, found, unseen)
        unseen = unseen | kept
    if found.probabilities is not None:
        aligned = np.zeros((len(rows), len(contract.classes)))
        aligned[:, [contract.classes.index(label) for label in own.classes]] = found.probabilities
        found = Predictions(labels=found.labels, probabilities=aligned)
    return model.version, found, unseen


def _use_saved_predictions(
    model: Model, rows: pd.DataFrame, found: Predictions, unseen: np.ndarray
) -> tuple[Predictions, np.ndarray]:
    """Its predictions, for rows of its own holdout what its measured model said; and which rows (n,) these are."""
    path, columns = model.directory / HOLDOUT, [column.name for column in model.contract.columns]
    none = np.zeros(len(rows), dtype=bool)
    if not path.exists() or not set(columns) <= set(rows.columns):
        return found, none
    with np.load(path, allow_pickle=False) as saved:
        content = {name: saved[name] for name in saved.files}
    if (found.probabilities is None) != ("probabilities" not in content):
        return found, none
    order = np.argsort(content["rows"], kind="stable")
    own = hash_rows(rows[columns], model.metadata.seeds["run"])
    at = order[np.searchsorted(content["rows"], own, sorter=order).clip(max=len(order) - 1)]
    kept = (content["rows"][at] == own) & ~unseen
    labels, given = found.labels.copy(), content["labels"][at[kept]]
    if model.contract.classes:
        classes = np.empty(len(model.contract.classes), dtype=object)
        classes[:] = model.contract.classes
        labels, given = labels.astype(object), classes[given]
    labels[kept] = given
    probabilities = found.probabilities
    if probabilities is not None:
        probabilities = probabilities.copy()
        probabilities[kept] = content["probabilities"][at[kept]]
    return Predictions(labels, probabilities), kept


def _find_unseen_rows(model: Model, rows: pd.DataFrame) -> np.ndarray:
    """Which of the holdout rows (n,) the champion was not trained on, by its own split; none where that is unknown."""
    split = model.metadata.dataset["split"]
    if split["by"] != "time" and split.get("refitted"):
        return np.zeros(len(rows), dtype=bool)
    columns = [split["time"]] if split["by"] == "time" else [column.name for column in model.contract.columns]
    if not set(columns) <= set(rows.columns):
        return np.zeros(len(rows), dtype=bool)
    if split["by"] == "time":
        later: np.ndarray = (pd.to_datetime(rows[split["time"]]) > pd.Timestamp(split["train_end"])).to_numpy(
            dtype=bool
        )
        return later
    return is_held_out(rows[columns], split["group"], split["seed"], split["holdout"])
