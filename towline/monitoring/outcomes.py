"""Logged predictions and their labels as a model's own types: what quality, estimate and triage read."""

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

from towline.data.contract import Contract
from towline.data.values import level, number
from towline.serving.parts import INPUT
from towline.training.predictions import Predictions


class Outcomes(NamedTuple):
    """Predictions of one version, by time.

    Attributes:
        inputs: the features that were logged as they are, under their names.
        predictions: as logged.
        truth: (n,) float64, or object of the classes; NaN or None where there is no label, or none of a known class.
        strange: labels of classes that the model never saw.
        times: (n,) datetime64[us], UTC.
    """

    inputs: pd.DataFrame
    predictions: Predictions
    truth: np.ndarray
    strange: tuple[str, ...]
    times: np.ndarray

    @property
    def labelled(self) -> np.ndarray:
        """(n,) where the truth is known."""
        return np.asarray(~pd.isna(self.truth))

    def take(self, rows: np.ndarray) -> "Outcomes":
        """Some of the rows (a mask or positions)."""
        places = np.flatnonzero(rows) if rows.dtype == bool else rows
        inputs = self.inputs.iloc[places].reset_index(drop=True)
        return Outcomes(inputs, self.predictions.take(places), self.truth[places], self.strange, self.times[places])


def read(table: pa.Table, contract: Contract, version: int) -> Outcomes:
    """The rows of ``labels.read`` that a version answered, each once; those without a usable answer are left out."""
    frame = table.to_pandas()
    frame = frame[frame["version"] == version].drop_duplicates(["request_id", "row"]).sort_values("time", kind="stable")
    classes = {level(label): place for place, label in enumerate(contract.classes)}
    answers = _typed(frame["prediction"], contract, classes)
    frame, answers = frame[~pd.isna(answers)].reset_index(drop=True), answers[~pd.isna(answers)]
    truth = _typed(frame["label"], contract, classes)
    odd = frame["label"][pd.isna(truth) & frame["label"].notna()]
    inputs = frame[[name for name in frame.columns if name.startswith(INPUT)]].rename(
        columns=lambda name: name.removeprefix(INPUT)
    )
    times = frame["time"].dt.tz_convert(None).to_numpy()
    strange = tuple(sorted(map(str, odd.unique())))[:5]
    return Outcomes(inputs, Predictions(answers, _probabilities(frame, contract)), truth, strange, times)


def _typed(values: "pd.Series[Any]", contract: Contract, classes: dict[str | None, int]) -> np.ndarray:
    if contract.task == "regression":
        numbers = np.array([number(value) for value in values], dtype=np.float64)
        return np.where(np.isfinite(numbers), numbers, np.nan)
    found = np.full(len(values), None, dtype=object)
    for at, value in enumerate(values):
        place = classes.get(level(value))
        if place is not None:
            found[at] = contract.classes[place]
    return found


def _probabilities(frame: pd.DataFrame, contract: Contract) -> np.ndarray | None:
    if "probabilities" not in frame.columns or not contract.classes or frame["probabilities"].isna().any():
        return None
    wide = [len(row) == len(contract.classes) for row in frame["probabilities"]]
    if not wide or not all(wide):
        return None
    given = np.array(frame["probabilities"].tolist(), dtype=np.float64)
    return given if np.isfinite(given).all() else None
