"""The comparison on the holdout: challenger, baseline and champion predict the same rows, then the gate decides.

The champion predicts through its own contract, and only the rows that it was not trained on count. It was usually
fitted again on all rows up to its release, so there may be few of them. Then the predictions count that its recipe made
for its own holdout before that fit: neither recipe was trained on these rows.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from towline import files
from towline.config import PipelineConfig
from towline.data.schema.contract import Contract
from towline.data.snapshot import Table, take_rows
from towline.data.splits import hash_rows, is_held_out
from towline.data.workspace import Workspace
from towline.errors import DataError, ReleaseError
from towline.inference.predictor import Model, open_release
from towline.manifest import HOLDOUT, ReleaseLocation
from towline.promotion.gate import (
    MAX_OUT_OF_FOLD_ROWS,
    MIN_UNSEEN_ROWS,
    ChampionPredictions,
    ComparedRows,
    GateCheck,
    Holdout,
    Verdict,
    apply_gate,
)
from towline.promotion.gate_self_test import check_gate
from towline.release.smoke_test import SmokeTestResult
from towline.training.behaviour.results import BehaviourCheck
from towline.training.evaluation.holdout import Evaluation, load_evaluation_predictions
from towline.training.evaluation.predictions import Predictions
from towline.training.model_selection.cross_validation import load_out_of_fold_predictions


class Champion(NamedTuple):
    """The version that serves, and its release."""

    version: int
    release: ReleaseLocation


def judge_release(
    work: Workspace,
    config: PipelineConfig,
    evaluation: Evaluation,
    smoke: SmokeTestResult,
    champion: Champion | None,
    behaviour: Sequence[BehaviourCheck] = (),
) -> Verdict:
    """Decides whether a release may serve.

    A champion that cannot predict the holdout rows cannot serve them either: it does not block the challenger. A
    champion that is damaged or predicts another target makes the verdict inconclusive.

    Args:
        work: the run's workspace.
        config: ``gate`` sets bounds and margins.
        evaluation: of the challenger on the holdout.
        smoke: result of the smoke test of its release.
        champion: what serves now; None if no version serves.
        behaviour: results of the behaviour tests.
    """
    holdout = work.subset("holdout")
    truth, challenger, baseline = load_evaluation_predictions(work)  # of the evaluated model, not of a refitted one
    compared = Holdout(work.contract(), holdout.rows, truth, challenger, baseline)
    failed_check: GateCheck | None = None
    if not champion:
        compared = compared._replace(out_of_fold=_load_out_of_fold_rows(work, evaluation.candidate, baseline))
    if champion:
        try:
            model = open_release(champion.release.directory, digest=champion.release.digest)
            classes = config.data.classes
            merged = classes.other if classes.rare == "merge" else None
            predicted = _predict_with_champion(
                model, compared.contract, work.columns(), work.split_positions()["holdout"], merged
            )
            compared = compared._replace(champion=predicted)
        except ReleaseError as error:
            failed_check = GateCheck(name="champion", outcome="inconclusive", detail=f"{error.what}; {error.remedy}")
        except DataError as error:
            reasons = (f"version {champion.version} cannot predict these rows: {error.what}", *error.details)
            failed_check = GateCheck(name="champion", outcome="pass", detail="; ".join(reasons))
    verdict = apply_gate(config, evaluation, smoke, compared, behaviour)
    verdict = verdict.with_check(check_gate(config, evaluation, compared))
    if champion and failed_check:
        verdict = verdict.with_check(failed_check).model_copy(update={"champion": champion.version})
    return verdict


def _load_out_of_fold_rows(work: Workspace, candidate: str, baseline: Predictions) -> ComparedRows | None:
    """Rows of the train part with the predictions of cross-validation; None if there are none or too many.

    The baseline predicts one constant. It is that of the whole train part: constants of single folds would go against
    the labels of the rows that each fold leaves out.
    """
    saved = load_out_of_fold_predictions(work, candidate)
    if saved is None or not len(saved.rows) or len(saved.rows) > MAX_OUT_OF_FOLD_ROWS:
        return None
    train = work.subset("train")
    constant = baseline.take(np.zeros(len(saved.rows), dtype=int))
    rows = train.rows.iloc[saved.rows].reset_index(drop=True)
    return ComparedRows(rows, train.labels[saved.rows], saved.predictions, constant)


def _predict_with_champion(
    model: Model, contract: Contract, table: Table, holdout: np.ndarray, merged: str | None = None
) -> ChampionPredictions:
    """The champion's predictions for the rows of the holdout (n,).

    Args:
        model: the champion.
        contract: of the challenger.
        table: rows of the run.
        holdout: positions in the table.
        merged: the class of the rare classes, which exists only while a class is rare; None: there is none.

    Raises:
        DataError: the rows do not fit the champion's contract.
        ReleaseError: it has another task, or a class that no longer exists.
    """
    old = model.contract
    removed = set(old.classes) - set(contract.classes) - {merged}
    if (old.target, old.task) != (contract.target, contract.task) or removed:
        raise ReleaseError(
            f"the champion, version {model.version}, has another target, task or classes: {old.task} of {old.target}"
            + (f", classes {', '.join(sorted(map(str, removed)))} no longer exist" if removed else ""),
            where=str(model.directory),
            remedy="give the pipeline a new name if the change is intended",
        )
    rows = take_rows(table, holdout)
    predictions, unseen = model.predict_frame(model.to_features(rows)), _find_unseen_rows(model, table, holdout)
    if int(unseen.sum()) < MIN_UNSEEN_ROWS:
        predictions, replaced = _use_saved_predictions(model, rows, predictions, unseen)
        unseen = unseen | replaced
    if contract.task != "regression":
        predictions = predictions.align(old.classes, contract.classes)
    return ChampionPredictions(model.version, predictions, unseen)


def _use_saved_predictions(
    model: Model, rows: pd.DataFrame, predictions: Predictions, unseen: np.ndarray
) -> tuple[Predictions, np.ndarray]:
    """Predictions for rows of the champion's own holdout replaced by the saved ones; and a mask (n,) of these rows."""
    path, columns = model.directory / HOLDOUT, [column.name for column in model.contract.columns]
    none = np.zeros(len(rows), dtype=bool)
    if not path.exists() or not set(columns) <= set(rows.columns):
        return predictions, none
    arrays = files.read_arrays(path)
    saved = Predictions.from_arrays(arrays, model.contract.classes)
    if (predictions.probabilities is None) != (saved.probabilities is None):
        return predictions, none
    order = np.argsort(arrays["rows"], kind="stable")
    hashes = hash_rows(rows[columns], model.metadata.seeds["run"])
    positions = order[np.searchsorted(arrays["rows"], hashes, sorter=order).clip(max=len(order) - 1)]
    replaced, saved = (arrays["rows"][positions] == hashes) & ~unseen, saved.take(positions)
    labels, probabilities = np.where(replaced, saved.labels, predictions.labels), None
    if predictions.probabilities is not None and saved.probabilities is not None:
        probabilities = np.where(replaced[:, None], saved.probabilities, predictions.probabilities)
    return Predictions(labels, probabilities), replaced


def _find_unseen_rows(model: Model, table: Table, holdout: np.ndarray) -> np.ndarray:
    """(n,) bool: holdout rows that the champion was not trained on, by its own split; all False if that is unknown."""
    split = model.metadata.dataset["split"]
    by_time = split["by"] == "time"
    features = [column.name for column in model.contract.columns if column.role != "target"]
    group: str | None = None if by_time else split["group"]
    if group is not None and group in table.columns and not table[group].iloc[holdout].isna().any():
        features = [group]  # rows without a group were drawn by all their features
    columns = [split["time"]] if by_time else features
    if (split.get("refitted") and not by_time) or not set(columns) <= set(table.columns):
        return np.zeros(len(holdout), dtype=bool)
    if by_time:
        later = pd.to_datetime(table[split["time"]].iloc[holdout]) > pd.Timestamp(split["train_end"])
        return np.asarray(later.to_numpy(dtype=bool))
    if split["copies"] == "together":
        return is_held_out(take_rows(table, holdout, columns), split["seed"], split["holdout"], group=group)
    held_out = is_held_out(table, split["seed"], split["holdout"], split["copies"], columns)
    return np.asarray(held_out[holdout])
