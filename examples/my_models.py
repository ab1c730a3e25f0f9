"""Estimators of one's own, as a module of the project."""

from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.linear_model import Ridge
from sklearn.neighbors import KNeighborsRegressor
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import QuantileTransformer


class ClippedRidge(RegressorMixin, BaseEstimator):
    """Ridge regression whose predictions are never negative.

    Args:
        alpha: strength of the regularization.
    """

    def __init__(self, alpha: float = 1.0) -> None:
        self.alpha = alpha

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> "ClippedRidge":
        self.model_ = Ridge(alpha=self.alpha).fit(X, y, sample_weight=sample_weight)
        self.n_features_in_ = self.model_.n_features_in_
        return self

    def predict(self, X: Any) -> np.ndarray:
        return np.clip(self.model_.predict(X), 0.0, None)


def nearest_hours(hours: int = 20) -> Pipeline:
    """The mean of the most similar hours: a function that returns an estimator, with its parameters.

    Args:
        hours: how many of them.
    """
    return make_pipeline(QuantileTransformer(n_quantiles=100), KNeighborsRegressor(hours))
