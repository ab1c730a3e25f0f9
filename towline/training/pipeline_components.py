"""Pipeline components that scikit-learn lacks: calendar features, and a classifier with the contract's labels."""

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator, ClassifierMixin, TransformerMixin
from sklearn.pipeline import Pipeline
from sklearn.utils.metaestimators import available_if

from towline.training.evaluation.predictions import Predictions, decode_labels, encode_labels


class CalendarParts(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Transforms datetime columns to their calendar parts, as float64; NaN for null.

    Args:
        parts: for each column, in order: which of month (1–12), weekday (Monday is 0), day (1–31) and hour (0–23).
    """

    def __init__(self, parts: tuple[tuple[str, ...], ...]) -> None:
        self.parts = parts

    def fit(self, times: pd.DataFrame, y: object = None) -> Self:  # noqa: ARG002 - scikit-learn passes it
        self.n_features_in_ = times.shape[1]
        return self

    def transform(self, times: pd.DataFrame) -> np.ndarray:
        columns = [
            getattr(times.iloc[:, position].dt, part).to_numpy(dtype=np.float64)
            for position, names in enumerate(self.parts)
            for part in names
        ]
        return np.column_stack(columns)

    def get_feature_names_out(self, input_features: Sequence[str]) -> np.ndarray:
        names = [f"{column}_{part}" for column, parts in zip(input_features, self.parts, strict=True) for part in parts]
        return np.array(names, dtype=object)


class Classifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A pipeline that is fitted on class positions 0 … k - 1 and predicts the labels of the contract.

    Libraries differ in the labels that they accept (XGBoost accepts positions only), in the types that they return (1
    for True) and in the shape of predictions (CatBoost returns (n, 1)). Positions work with all of them.

    Args:
        pipeline: not fitted; its last step is a classifier.
        classes: the labels, in the contract's order.
        positive: binary: the class that ``threshold`` applies to.
        threshold: binary: a row is positive from this probability on; None: the rule of the last step.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        classes: Sequence[str | int | bool | float],
        positive: str | int | bool | float | None = None,
        threshold: float | None = None,
    ) -> None:
        self.pipeline, self.classes, self.positive, self.threshold = pipeline, classes, positive, threshold

    def fit(self, features: pd.DataFrame, labels: np.ndarray, **params: Any) -> Self:
        """Fits the pipeline; a class that does not occur in ``labels`` gets the probability 0."""
        positions = encode_labels(labels, tuple(self.classes))
        if (positions < 0).any():
            unknown = sorted({str(label) for label in labels[positions < 0]})[:5]
            raise ValueError(f"labels that are no class: {unknown}")
        self.positions_, targets = np.unique(positions, return_inverse=True)
        self.pipeline.fit(features, targets, **params)
        return self

    @property
    def classes_(self) -> np.ndarray:
        """(k,) labels that occurred in ``fit``, in the order of the pipeline's probabilities."""
        return decode_labels(self.positions_, tuple(self.classes))

    def predictions(self, features: pd.DataFrame) -> Predictions:
        """Labels, and probabilities (n, classes) if the last step gives any.

        The preprocessing, which costs more than most estimators, runs once for both.
        """
        rows, last = self.pipeline[:-1].transform(features), self.pipeline[-1]
        probabilities = None
        if hasattr(last, "predict_proba"):
            raw = np.asarray(last.predict_proba(rows), dtype=np.float64)
            if raw.shape != (len(features), len(self.positions_)):
                expected = f"{len(features)} x {len(self.positions_)}"
                raise ValueError(f"probabilities have the shape {raw.shape}, {expected} was expected")
            probabilities = np.zeros((len(features), len(self.classes)))
            probabilities[:, self.positions_] = raw / raw.sum(axis=1, keepdims=True)
        if self.threshold is None:
            codes = np.asarray(last.predict(rows)).reshape(len(features)).astype(np.int64)
        else:
            if probabilities is None:
                raise ValueError("a threshold needs probabilities")
            positive = int(np.flatnonzero(self.positions_ == tuple(self.classes).index(self.positive))[0])
            codes = np.where(raw[:, positive] >= self.threshold, positive, 1 - positive)
        return Predictions(decode_labels(self.positions_[codes], tuple(self.classes)), probabilities)

    def predict(self, features: pd.DataFrame) -> np.ndarray:
        """(n,) labels; object."""
        return self.predictions(features).labels

    @available_if(lambda self: hasattr(self.pipeline[-1], "predict_proba"))  # type: ignore[untyped-decorator]
    def predict_proba(self, features: pd.DataFrame) -> np.ndarray:
        """(n, classes) probabilities in the order of ``classes``."""
        probabilities = self.predictions(features).probabilities
        assert probabilities is not None  # noqa: S101 - available_if has checked it
        return probabilities
