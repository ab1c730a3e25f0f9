"""Histogram gradient boosting that can stop early by rows of another fold."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.base import is_classifier
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.preprocessing import FunctionTransformer


class EarlyStoppingBoosting:
    """Histogram gradient boosting that stops early by given rows, or by a tenth of its own.

    With ``early_stopping``, scikit-learn sets a tenth of the rows aside, with rows of each class; where that is
    impossible, classes of one row are only trained on. In a small table a tenth is too few to stop by, and these rows
    are missing in the model. There, cross-validation gives the test rows of a fold (``validation``), and later fits
    use all rows and the number of iterations that is best over the folds.

    Attributes:
        validation: gives the (m, features) rows and (m,) targets to stop by; called after the features are prepared.
    """

    validation: Callable[[], tuple[np.ndarray, np.ndarray]] | None = None
    early_stopping: bool | str
    random_state: int | None
    validation_score_: np.ndarray
    _predictors: list[Any]

    def fit(self, X: np.ndarray, y: np.ndarray, sample_weight: np.ndarray | None = None) -> Any:
        """Fits on (n, features) values and (n,) targets; ``sample_weight`` is (n,)."""
        rows = {"X": X, "y": y, "sample_weight": sample_weight}
        super().fit(**rows | self._choose_validation(X, y, sample_weight))  # type: ignore[misc]
        self.validation = None
        return self._without_input_checks()

    @property
    def stops_early(self) -> bool:
        """Whether the number of iterations depends on validation rows."""
        return self.early_stopping is True

    @property
    def best_iterations(self) -> int:
        """The number of iterations with the best score on the validation rows, at least 1."""
        return max(1, int(np.argmax(self.validation_score_)))

    def remove_iterations(self, count: int) -> None:
        """Removes the iterations after the first ``count``: the model is as if it had been fitted with so many."""
        self._predictors = self._predictors[:count]

    def _without_input_checks(self) -> Any:
        """Removes a function that a model file cannot hold; with native categories, it checks the numbers."""
        if preprocessor := getattr(self, "_preprocessor", None):
            for _, transformer, _ in (*preprocessor.transformers, *preprocessor.transformers_):
                if isinstance(transformer, FunctionTransformer):
                    transformer.func = None
        return self

    def _choose_validation(self, X: np.ndarray, y: np.ndarray, weights: np.ndarray | None) -> dict[str, Any]:
        """Arguments of ``fit`` with the validation rows; none if scikit-learn draws them, or without early stopping."""
        if not self.stops_early:
            return {}
        if self.validation is not None:
            features, targets = self.validation()
            if len(targets):
                return {"X_val": features, "y_val": targets}
        if not is_classifier(self):
            return {}
        classes, codes, counts = np.unique(y, return_inverse=True, return_counts=True)
        size = math.ceil(len(y) / 10)
        if counts.min() >= 2 and len(classes) <= size:
            return {}
        order = np.random.default_rng(self.random_state).permutation(len(y))
        _, one_of_each_class = np.unique(codes[order], return_index=True)
        test = np.delete(order, one_of_each_class)[:size]
        train = np.setdiff1d(np.arange(len(y)), test)
        arguments = {"X": X[train], "y": y[train], "X_val": X[test], "y_val": y[test]}
        if weights is not None:
            arguments |= {"sample_weight": weights[train], "sample_weight_val": weights[test]}
        return arguments


class BoostingRegressor(EarlyStoppingBoosting, HistGradientBoostingRegressor):  # type: ignore[misc]
    """``HistGradientBoostingRegressor`` that can stop early by rows of another fold."""


class BoostingClassifier(EarlyStoppingBoosting, HistGradientBoostingClassifier):  # type: ignore[misc]
    """``HistGradientBoostingClassifier`` that can stop early by rows of another fold."""
