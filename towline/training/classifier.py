"""Classes as positions: what every classifier is fitted on, and how its answers become the contract's labels again."""

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.pipeline import Pipeline
from sklearn.utils.metaestimators import available_if

from towline.training.evaluation.predictions import Predictions, decode_labels, encode_labels


class Classifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A pipeline that learns positions 0 … k - 1 and answers with the labels of the contract.

    Libraries differ in the labels they take (XGBoost takes positions only), in the types they answer with (1 for True)
    and in the shape of an answer (CatBoost's is (n, 1)). Positions are what all of them can learn.

    Args:
        pipeline: unfitted; its last step is a classifier.
        classes: the labels, in the contract's order.
        positive: binary: the class that ``threshold`` is about.
        threshold: binary: from this probability on a row is called positive; None is the last step's own rule.
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
        """Fits the pipeline; classes that do not occur in ``labels`` get no position, and probability 0."""
        places = encode_labels(labels, tuple(self.classes))
        if (places < 0).any():
            raise ValueError(f"labels that are no class: {sorted({str(one) for one in labels[places < 0]})[:5]}")
        self.places_, targets = np.unique(places, return_inverse=True)
        self.pipeline.fit(features, targets, **params)
        return self

    @property
    def classes_(self) -> np.ndarray:
        """(k,) labels that occurred in the fit, in the order of the pipeline's probabilities."""
        return decode_labels(self.places_, tuple(self.classes))

    def answer(self, features: pd.DataFrame) -> Predictions:
        """Labels, and probabilities (n, classes) if the last step gives any.

        The preparation, which costs more than most estimators, is done once for both.
        """
        rows, last = self.pipeline[:-1].transform(features), self.pipeline[-1]
        probabilities = None
        if hasattr(last, "predict_proba"):
            given = np.asarray(last.predict_proba(rows), dtype=np.float64)
            if given.shape != (len(features), len(self.places_)):
                expected = f"{len(features)} x {len(self.places_)}"
                raise ValueError(f"probabilities have the shape {given.shape}, {expected} was expected")
            probabilities = np.zeros((len(features), len(self.classes)))
            probabilities[:, self.places_] = given / given.sum(axis=1, keepdims=True)
        if self.threshold is None:
            found = np.asarray(last.predict(rows)).reshape(len(features)).astype(np.int64)
        else:
            if probabilities is None:
                raise ValueError("a threshold needs probabilities")
            positive = int(np.flatnonzero(self.places_ == tuple(self.classes).index(self.positive))[0])
            found = np.where(given[:, positive] >= self.threshold, positive, 1 - positive)
        return Predictions(decode_labels(self.places_[found], tuple(self.classes)), probabilities)

    def predict(self, features: pd.DataFrame) -> np.ndarray:
        """(n,) labels; object."""
        return self.answer(features).labels

    @available_if(lambda self: hasattr(self.pipeline[-1], "predict_proba"))  # type: ignore[untyped-decorator]
    def predict_proba(self, features: pd.DataFrame) -> np.ndarray:
        """(n, classes) probabilities in the order of ``classes``."""
        probabilities = self.answer(features).probabilities
        assert probabilities is not None  # noqa: S101 - available_if has seen to it
        return probabilities
