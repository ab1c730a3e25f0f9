"""The drift reference of a release: the distributions of its training rows and of its holdout predictions.

Drift checks compare later rows and predictions with it.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from towline.config import Kind, PipelineConfig
from towline.data import blocks
from towline.data.blocks import Blocks
from towline.data.schema.contract import Contract
from towline.data.schema.values import category_name
from towline.training.evaluation.predictions import Predictions

if TYPE_CHECKING:  # drift detection does not import them
    import pandas as pd

    from towline.data.workspace import Workspace

PROFILE, BLOCKS = "profile.json", "blocks.npz"
PREDICTION, PROBABILITY = "prediction", "probability"


class Reference(NamedTuple):
    """A drift reference.

    Attributes:
        profile: profile of the training rows.
        answers: profile of the holdout predictions.
        blocks: both by block of time or group: ``inputs`` and ``answers``.
    """

    profile: dict[str, Any]
    answers: dict[str, Any]
    blocks: dict[str, Blocks]


def build_reference(work: "Workspace", config: PipelineConfig, training_rows: "pd.DataFrame") -> dict[str, str | bytes]:
    """The files of the reference: name → content.

    Args:
        work: the workspace of the run.
        config: names the time column and the group column.
        training_rows: the raw rows that the model was fitted on. The reference of the predictions comes from the
            holdout, because predictions for training rows are overconfident.
    """
    from towline.data.profile import describe_columns, duplicate_share, profile_features
    from towline.training.evaluation.holdout import load_evaluation_predictions

    contract = work.contract()
    features = contract.features(training_rows)
    holdout = work.subset("holdout").rows
    table = prediction_columns(load_evaluation_predictions(work)[1], contract)
    inputs = profile_features(features, contract)
    predictions = describe_columns(table, prediction_kinds(contract))
    counts = {}
    for name, frame, profile, rows in (
        ("inputs", features, inputs, training_rows),
        ("answers", table, predictions, holdout),
    ):
        times, groups = (rows[column] if column else None for column in (config.data.time, config.data.group))
        kind, unit = blocks.assign_blocks(times, groups, len(profile["columns"]))
        counts[name] = blocks.count_blocks(frame, profile["columns"], kind, unit)
    repeated = duplicate_share(features[list(inputs["columns"])])
    text = json.dumps({**inputs, "repeated": repeated, "answers": predictions}, ensure_ascii=False)
    return {PROFILE: text, BLOCKS: blocks.serialize_blocks(counts)}


def prediction_columns(predictions: Predictions, contract: Contract) -> "pd.DataFrame":
    """Predictions as a table: ``prediction``, and in a binary task ``probability`` of the positive class."""
    import pandas as pd

    names = [category_name(label) for label in predictions.labels] if contract.task != "regression" else None
    labels = predictions.labels if names is None else names
    table = pd.DataFrame({PREDICTION: pd.Series(labels, dtype=np.float64 if contract.task == "regression" else object)})
    if contract.task == "binary" and predictions.probabilities is not None:
        table[PROBABILITY] = predictions.probabilities[:, contract.classes.index(contract.positive)]
    return table


def prediction_kinds(contract: Contract) -> dict[str, Kind]:
    """The kinds of the columns of ``prediction_columns``."""
    kind: Kind = "numeric" if contract.task == "regression" else "category"
    return {PREDICTION: kind, **({PROBABILITY: "numeric"} if contract.task == "binary" else {})}


def read_reference(release: Path) -> Reference:
    """The reference of a verified release."""
    profile = json.loads((release / PROFILE).read_bytes())
    predictions = profile.pop("answers", {"rows": 0, "columns": {}})
    file = release / BLOCKS
    return Reference(profile, predictions, blocks.deserialize_blocks(file.read_bytes()) if file.exists() else {})
