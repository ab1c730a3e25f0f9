"""Histogram gradient boosting that stops early by cross-validation in a small table."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.base import is_classifier
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.model_selection import KFold, StratifiedKFold
from sklearn.preprocessing import FunctionTransformer


class _FoldStopping:
    """Histogram gradient boosting that stops early by cross-validation in a small table.

    With ``early_stopping``, scikit-learn sets a tenth of the rows aside. In a small table this is too few to stop by,
    and these rows are missing in the model. Instead, the number of iterations is the mean of the best ones of four
    folds, and the model is fitted on all rows. If ``min_samples_leaf`` is None, the same folds decide whether
    leaves may be small: ``SMALL_LEAF`` must be better by half a standard error of the differences. scikit-learn's
    tenth has rows of each class; where that is impossible, classes of one row are only trained on.

    Attributes:
        min_samples_leaf_: of the fitted trees.
    """

    FOLDS = 4
    DEFAULT_LEAF, SMALL_LEAF = 20, 5
    max_fold_rows = 5_000  # of a larger table, a tenth of the rows is enough
    early_stopping: bool | str
    max_iter: int
    min_samples_leaf: int | None
    random_state: int | None
    get_params: Callable[[], dict[str, Any]]

    def fit(self, X: np.ndarray, y: np.ndarray, sample_weight: np.ndarray | None = None) -> Any:
        """Fits on (n, features) values and (n,) targets; ``sample_weight`` is (n,)."""
        configured = self.max_iter, self.min_samples_leaf, self.early_stopping
        iterations, leaf = self.max_iter, self.min_samples_leaf or self.DEFAULT_LEAF
        counts = np.unique(y, return_counts=True)[1] if is_classifier(self) else np.array([len(y)])
        by_folds = self.early_stopping is True and len(y) <= self.max_fold_rows and counts.min() >= 2 * self.FOLDS
        if by_folds:
            iterations, scores = self._choose_iterations(X, y, sample_weight, leaf)
            if self.min_samples_leaf is None:
                more_iterations, small_scores = self._choose_iterations(X, y, sample_weight, self.SMALL_LEAF)
                gains = small_scores - scores
                if gains.mean() > 0.5 * gains.std(ddof=1) / math.sqrt(self.FOLDS):
                    iterations, leaf = more_iterations, self.SMALL_LEAF
        self.max_iter, self.min_samples_leaf, self.min_samples_leaf_ = iterations, leaf, leaf
        validation = {} if by_folds else self._set_validation_rows_aside(X, y, sample_weight)
        self.early_stopping = False if by_folds else self.early_stopping
        try:
            super().fit(**({"X": X, "y": y, "sample_weight": sample_weight} | validation))  # type: ignore[misc]
            return self._without_input_checks()
        finally:
            self.max_iter, self.min_samples_leaf, self.early_stopping = configured

    def _without_input_checks(self) -> Any:
        """Removes a function that a model file cannot hold; with native categories, it checks the numbers."""
        if preprocessor := getattr(self, "_preprocessor", None):
            for _, transformer, _ in (*preprocessor.transformers, *preprocessor.transformers_):
                if isinstance(transformer, FunctionTransformer):
                    transformer.func = None
        return self

    def _set_validation_rows_aside(self, X: np.ndarray, y: np.ndarray, weights: np.ndarray | None) -> dict[str, Any]:
        """Arguments of ``fit`` with a tenth of the rows for validation if scikit-learn cannot draw it; else nothing."""
        if not (self.early_stopping is True and is_classifier(self)):
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

    def _choose_iterations(
        self, X: np.ndarray, y: np.ndarray, weights: np.ndarray | None, min_samples_leaf: int
    ) -> tuple[int, np.ndarray]:
        """The number of iterations, and the best score of each fold; higher is better."""
        folds = StratifiedKFold if is_classifier(self) else KFold
        params = self.get_params() | {"min_samples_leaf": min_samples_leaf}
        best_iterations, scores = [], []
        for train, test in folds(self.FOLDS, shuffle=True, random_state=self.random_state).split(X, y):
            model = _BASES[is_classifier(self)](**params)
            weight_options = (
                {} if weights is None else {"sample_weight": weights[train], "sample_weight_val": weights[test]}
            )
            model.fit(X[train], y[train], X_val=X[test], y_val=y[test], **weight_options)
            best_iterations.append(int(np.argmax(model.validation_score_)))
            scores.append(float(np.max(model.validation_score_)))
        return max(1, round(float(np.mean(best_iterations)))), np.array(scores)


class BoostingRegressor(_FoldStopping, HistGradientBoostingRegressor):  # type: ignore[misc]
    """``HistGradientBoostingRegressor`` with early stopping and size of leaves by cross-validation in a small table."""


class BoostingClassifier(_FoldStopping, HistGradientBoostingClassifier):  # type: ignore[misc]
    """``HistGradientBoostingClassifier`` with early stopping by cross-validation in a small table."""


def stop_without_folds(estimate: object, rows: int) -> None:
    """Makes boosting stop early as in a table of ``rows`` rows: in a large one, by a tenth of the rows, not by folds.

    Args:
        estimate: of a model that is fitted on some of these rows; other estimators than boosting are not changed.
        rows: of the table.
    """
    if isinstance(estimate, _FoldStopping) and rows > estimate.max_fold_rows:
        estimate.max_fold_rows = 0


_BASES = {False: HistGradientBoostingRegressor, True: HistGradientBoostingClassifier}
