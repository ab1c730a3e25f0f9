"""Parts of models that scikit-learn lacks: features of dates and texts, a classifier of the contract's labels, and
ensembles.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Self, TypeAlias

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix, issparse
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin, TransformerMixin, clone
from sklearn.compose import ColumnTransformer
from sklearn.decomposition import TruncatedSVD
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
from sklearn.linear_model import Ridge
from sklearn.model_selection import KFold
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import TargetEncoder
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import has_fit_parameter

from towline.config import Task
from towline.data.date_features import compute_ages
from towline.data.text_features import Analyzer, TextProjection, choose_analyzer, list_ngrams
from towline.errors import FitError
from towline.training.calibration import Calibration
from towline.training.evaluation.predictions import (
    Label,
    Predictions,
    Threshold,
    decide_classes,
    decode_labels,
    encode_labels,
)


class DenseColumns(ColumnTransformer):  # type: ignore[misc]
    """A ColumnTransformer that returns a dense matrix, without a dense copy of its one-hot columns."""

    ROWS = 65_536  # that are made dense together

    def _hstack(self, Xs: Sequence[Any], *, n_samples: int) -> np.ndarray:  # scikit-learn names it for subclasses
        blocks: list[Any] = [block if issparse(block) else np.asarray(block) for block in Xs]
        ends = np.cumsum([block.shape[1] for block in blocks])
        matrix = np.empty((n_samples, ends[-1]), np.result_type(*(block.dtype for block in blocks)))
        for block, end in zip(blocks, ends, strict=True):
            columns = matrix[:, end - block.shape[1] : end]
            for start in range(0, n_samples, self.ROWS):
                rows = slice(start, start + self.ROWS)
                columns[rows] = block[rows].toarray() if issparse(block) else block[rows]
        return matrix


class NamedColumns(DenseColumns):
    """A ColumnTransformer that returns a DataFrame with the name of each feature, e.g. ``number__price``."""

    def fit_transform(self, X: pd.DataFrame, y: object = None, **params: Any) -> pd.DataFrame:
        return pd.DataFrame(super().fit_transform(X, y, **params), columns=self.get_feature_names_out())

    def transform(self, X: pd.DataFrame, **params: Any) -> pd.DataFrame:
        return pd.DataFrame(super().transform(X, **params), columns=self.get_feature_names_out())


class TransformedColumns(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """The preprocessing behind a transformer of the user.

    A column of the transformer's output that is also a column of the input keeps its kind. Another one is a number or
    a category, by its type.

    Args:
        transformer: gets and returns a DataFrame of n rows.
        columns: the ColumnTransformer for the columns of the input.
        blocks: unfitted transformers for new columns: ``number``, ``category`` (few levels) and ``levels``.
        few_levels: the largest number of levels of ``category``.
    """

    def __init__(self, transformer: Any, columns: ColumnTransformer, blocks: dict[str, Any], few_levels: int) -> None:
        self.transformer, self.columns, self.blocks, self.few_levels = transformer, columns, blocks, few_levels

    def fit(self, X: pd.DataFrame, y: object = None) -> Self:
        self.fit_transform(X, y)
        return self

    def fit_transform(self, X: pd.DataFrame, y: object = None, **_: Any) -> Any:
        """Fits both on n rows.

        Raises:
            FitError: the transformer's output is not a DataFrame of n rows.
        """
        self.transformer_ = clone(self.transformer)
        if hasattr(self.transformer_, "fit_transform"):
            output = self._check(self.transformer_.fit_transform(X, y), X)
        else:
            output = self._check(self.transformer_.fit(X, y).transform(X), X)
        self.names_ = list(output.columns)
        self.columns_ = self._create_columns(X, output)
        return self.columns_.fit_transform(output, y)

    def transform(self, X: pd.DataFrame) -> Any:
        output = self._check(self.transformer_.transform(X), X)
        if list(output.columns) != self.names_:
            what = f"{type(self.transformer).__name__}.transform returned columns that differ from those in training"
            raise FitError(what, where="prepare", remedy="return the same columns in the same order for any rows")
        return self.columns_.transform(output)

    def get_feature_names_out(self, _: object = None) -> np.ndarray:
        return np.asarray(self.columns_.get_feature_names_out())

    def _check(self, output: object, rows: pd.DataFrame) -> pd.DataFrame:
        name = type(self.transformer).__name__
        if not isinstance(output, pd.DataFrame) and hasattr(self.transformer_, "get_feature_names_out"):
            output = pd.DataFrame(np.asarray(output), columns=self.transformer_.get_feature_names_out())
        if not isinstance(output, pd.DataFrame):
            what, remedy = f"{name} returned {type(output).__name__}", "return a DataFrame with named columns"
            raise FitError(what, where="prepare", remedy=remedy)
        if len(output) != len(rows):
            what = f"{name} returned {len(output):,} rows for {len(rows):,}"
            raise FitError(what, where="prepare", remedy="return one row for each row")
        return output.reset_index(drop=True)

    def _create_columns(self, rows: pd.DataFrame, output: pd.DataFrame) -> ColumnTransformer:
        unchanged = {name for name in output.columns if name in rows and output[name].dtype == rows[name].dtype}
        blocks: dict[str, tuple[Any, list[str]]] = {}
        for kind, block, names in self.columns.transformers:
            if kind in ("age", "trend", "calendar"):  # they need all their columns
                if unchanged >= set(names):
                    blocks[kind] = block, list(names)
            elif remaining := [name for name in names if name in unchanged]:
                blocks[kind] = block, remaining
        for name in output.columns:
            if name in unchanged:
                continue
            if pd.api.types.is_numeric_dtype(output[name]):
                kind = "number"
            elif pd.api.types.is_datetime64_any_dtype(output[name]):
                what, remedy = f"the new column {name!r} has dates", "return numbers or texts, such as days or months"
                raise FitError(what, where="prepare", remedy=remedy)
            else:
                kind = "category" if output[name].nunique() <= self.few_levels else "levels"
            blocks.setdefault(kind, (self.blocks[kind], []))[1].append(name)
        return type(self.columns)([(kind, clone(block, safe=False), names) for kind, (block, names) in blocks.items()])


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


class DateAges(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Transforms datetime columns to ages in days, as float64; NaN for null.

    Args:
        has_time: the last column is the time of the row, up to which ages are counted; else they are counted from 1970.
        horizon: share of the period of ``fit`` that a date may be later than it; later dates count as that one. 0: no
            model extrapolates a trend.
    """

    def __init__(self, has_time: bool, horizon: float = math.inf) -> None:
        self.has_time, self.horizon = has_time, horizon

    def fit(self, times: pd.DataFrame, y: object = None) -> Self:  # noqa: ARG002 - scikit-learn passes it
        self.n_features_in_ = times.shape[1]
        self.latest_ = math.inf
        ages = self.transform(times)
        if not (math.isinf(self.horizon) or np.isnan(ages).all()):
            latest = float(np.nanmax(ages))
            self.latest_ = latest + self.horizon * (latest - float(np.nanmin(ages)))
        return self

    def transform(self, times: pd.DataFrame) -> np.ndarray:
        columns = [times.iloc[:, at].to_numpy("datetime64[us]") for at in range(times.shape[1])]
        end = columns.pop() if self.has_time else None
        ages: np.ndarray = np.minimum(np.column_stack([compute_ages(column, end) for column in columns]), self.latest_)
        return ages

    def get_feature_names_out(self, input_features: Sequence[str]) -> np.ndarray:
        columns = input_features[:-1] if self.has_time else input_features
        return np.array([f"{column}_{'age' if self.has_time else 'days'}" for column in columns], dtype=object)


class TextEncoder(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Transforms columns of text to numbers, as float64: components of TF-IDF weights, and linear scores of the target.

    The components (``text_features``) describe the subject of a text. The scores come from a ridge regression of the
    target, or of the indicator of each class, on the TF-IDF weights. As in scikit-learn's ``TargetEncoder``, the scores
    of rows that the regression has learned from are cross-fitted in ``fit_transform``, so that they are not
    overconfident. A null text has zeros.

    Args:
        task: of the contract; the targets are numbers or class positions.
        components: largest number of components of a column; one for 200 rows.
        terms: largest number of n-grams of a column: the most frequent ones that occur in at least two texts.
        rows: largest number of rows to learn from; they are selected evenly over the table.
        random_state: seed of the truncated SVD and of the folds.
    """

    FOLDS = 5
    ROWS_PER_COMPONENT = 200  # in small tables more components are noise
    LEAST_COMPONENT = 1e-7  # singular value, relative to the largest
    MAX_SCORES = 30  # the most frequent classes

    def __init__(
        self,
        task: Task,
        components: int = 30,
        terms: int = 10_000,
        rows: int = 20_000,
        random_state: int | None = None,
    ) -> None:
        self.task, self.components, self.terms, self.rows = task, components, terms, rows
        self.random_state = random_state

    def fit(self, texts: pd.DataFrame, y: np.ndarray) -> Self:
        self.fit_transform(texts, y)
        return self

    def fit_transform(self, texts: pd.DataFrame, y: np.ndarray) -> np.ndarray:
        self.n_features_in_ = texts.shape[1]
        # plain types, which skops stores, instead of projections
        self.analyzers_: list[Analyzer] = []
        self.vocabularies_: list[list[str]] = []
        self.weights_: list[np.ndarray] = []
        self.components_: list[np.ndarray] = []
        targets = self._targets(np.asarray(y))
        return np.hstack([self._fit_column(texts.iloc[:, at].tolist(), targets) for at in range(texts.shape[1])])

    @property
    def projections(self) -> list[TextProjection]:
        """The fitted projection of each column."""
        columns = zip(self.analyzers_, self.vocabularies_, self.weights_, self.components_, strict=True)
        return [
            TextProjection(analyzer, {term: row for row, term in enumerate(terms)}, weights, components)
            for analyzer, terms, weights, components in columns
        ]

    def transform(self, texts: pd.DataFrame) -> np.ndarray:
        return np.hstack(
            [projection.encode_column(texts.iloc[:, at].tolist()) for at, projection in enumerate(self.projections)]
        )

    def get_feature_names_out(self, input_features: Sequence[str]) -> np.ndarray:
        widths = [components.shape[1] for components in self.components_]
        names = [f"{name}_{at}" for name, width in zip(input_features, widths, strict=True) for at in range(width)]
        return np.array(names, dtype=object)

    def _targets(self, y: np.ndarray) -> np.ndarray:
        """(n, scores): the numbers, or for each class whether the row has it; one class of two is enough."""
        if self.task == "regression":
            return y.astype(np.float64)[:, None]
        frequent = _frequent_classes(y, self.MAX_SCORES)
        frequent = frequent[:1] if len(frequent) <= 2 else frequent
        return np.asarray(y[:, None] == frequent, dtype=np.float64)

    def _fit_column(self, texts: list[object], targets: np.ndarray) -> np.ndarray:
        chosen = np.linspace(0, len(texts) - 1, min(len(texts), self.rows)).astype(int)
        sample = [texts[row] for row in chosen]
        analyzer = choose_analyzer(sample)
        documents = Counter(term for text in sample for term in set(list_ngrams(text, analyzer)))
        ranked = sorted((-count, term) for term, count in documents.items() if count > 1)[: self.terms]
        counts = np.array([-count for count, _ in ranked], dtype=np.float64)
        weights = np.log((1 + len(sample)) / (1 + counts)) + 1
        vocabulary = {term: row for row, (_, term) in enumerate(ranked)}
        projection = TextProjection(analyzer, vocabulary, weights, np.zeros((len(ranked), 1)))
        if ranked:
            matrix = self._matrix(projection, sample)
            components = min(self.components, max(1, len(sample) // self.ROWS_PER_COMPONENT), *matrix.shape)
            svd = TruncatedSVD(components, random_state=self.random_state).fit(matrix)
            # beyond the rank, a component is 0 in these texts but for rounding errors, and arbitrary in others
            present = svd.singular_values_ > self.LEAST_COMPONENT * svd.singular_values_.max()
            coefficients = self._regress(matrix, targets[chosen])
            projection = replace(projection, components=np.column_stack([svd.components_[present].T, coefficients]))
        self.analyzers_.append(analyzer)
        self.vocabularies_.append(list(vocabulary))
        self.weights_.append(weights)
        self.components_.append(projection.components)
        features = projection.encode_column(texts)
        if ranked and len(chosen) >= self.FOLDS:
            for train, test in KFold(self.FOLDS, shuffle=True, random_state=self.random_state).split(chosen):
                scores = matrix[test] @ self._regress(matrix[train], targets[chosen[train]])
                features[chosen[test], -targets.shape[1] :] = scores
        return features

    def _matrix(self, projection: TextProjection, texts: list[object]) -> csr_matrix:
        """(n, terms) TF-IDF weights."""
        terms, values = zip(*map(projection.weigh, texts), strict=True)
        starts = np.cumsum([0, *map(len, terms)])
        return csr_matrix(
            (np.concatenate(values), np.concatenate(terms), starts), (len(texts), len(projection.weights))
        )

    def _regress(self, matrix: csr_matrix, targets: np.ndarray) -> np.ndarray:
        """(terms, scores) coefficients; the intercept is the same for all rows and is left out."""
        ridge = Ridge(alpha=1.0, solver="sparse_cg").fit(matrix, targets)
        return np.asarray(ridge.coef_, dtype=np.float64).reshape(targets.shape[1], -1).T


def _frequent_classes(y: np.ndarray, limit: int) -> np.ndarray:
    """At most ``limit`` classes of (n,) class positions, the most frequent first."""
    classes, counts = np.unique(y, return_counts=True)
    return np.asarray(classes[np.argsort(-counts, kind="stable")[:limit]])


class CappedTargetEncoder(TargetEncoder):  # type: ignore[misc]
    """scikit-learn's ``TargetEncoder`` with a column for each of the most frequent classes, and one for all others.

    Without the limit, a column of categories becomes as many columns as there are classes, and the time of a linear
    model grows with the square of their number.
    """

    MAX_CLASSES = 100

    def fit(self, X: pd.DataFrame, y: np.ndarray) -> Self:
        fitted: Self = super().fit(X, self._merge_rare(y))
        return fitted

    def fit_transform(self, X: pd.DataFrame, y: np.ndarray, **params: Any) -> np.ndarray:
        return np.asarray(super().fit_transform(X, self._merge_rare(y), **params))

    def _merge_rare(self, y: np.ndarray) -> np.ndarray:
        """(n,) class positions with -1 for those that are not among the most frequent; numbers are unchanged."""
        if self.target_type == "continuous":
            return y
        frequent = _frequent_classes(y, self.MAX_CLASSES)
        return np.where(np.isin(y, frequent), y, -1) if len(frequent) == self.MAX_CLASSES else y


class Classifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A pipeline that is fitted on class positions 0 … k - 1 and predicts the labels of the contract.

    Libraries differ in the labels that they accept (XGBoost accepts positions only), in the types that they return (1
    for True) and in the shape of predictions (CatBoost returns (n, 1)). Positions work with all of them.

    Args:
        pipeline: not fitted; its last step is a classifier.
        classes: the labels, in the contract's order.
        positive: binary: the class that ``threshold`` applies to.
        threshold: of the decision; None: the rule of the last step, or with a calibration the class with the largest
            probability.
        calibration: of the probabilities; None: they stay as they are.
    """

    calibration: Calibration | None = None  # of models that were stored before there was any

    def __init__(
        self,
        pipeline: Pipeline,
        classes: Sequence[str | int | bool | float],
        positive: str | int | bool | float | None = None,
        threshold: Threshold | None = None,
        calibration: Calibration | None = None,
    ) -> None:
        self.pipeline, self.classes, self.positive = pipeline, classes, positive
        self.threshold, self.calibration = threshold, calibration

    def fit(self, features: pd.DataFrame, labels: np.ndarray, **params: Any) -> Self:
        """Fits the pipeline; a class that does not occur in ``labels`` gets the probability 0."""
        positions = encode_labels(labels, tuple(self.classes))
        if (positions < 0).any():
            unknown = sorted({str(label) for label in labels[positions < 0]})[:5]
            raise ValueError(f"labels that are not classes: {unknown}")
        self.positions_, targets = np.unique(positions, return_inverse=True)
        self.pipeline.fit(features, targets, **params)
        return self

    @property
    def classes_(self) -> np.ndarray:
        """(k,) labels that occurred in ``fit``, in the order of the pipeline's probabilities."""
        return decode_labels(self.positions_, tuple(self.classes))

    def predictions(self, features: pd.DataFrame) -> Predictions:
        """Labels, and probabilities (n, classes) if the last step gives any; the preprocessing runs once for both."""
        rows, last = self.pipeline[:-1].transform(features), self.pipeline[-1]
        raw, probabilities = (
            self._probabilities(rows, len(features)) if hasattr(last, "predict_proba") else (None, None)
        )
        if self.calibration is not None:
            if probabilities is None:
                raise ValueError("a calibration needs probabilities")
            return _calibrate(self, probabilities)
        if isinstance(self.threshold, tuple):
            if probabilities is None:
                raise ValueError("thresholds need probabilities")
            return _decide(self, probabilities)
        if self.threshold is None:
            codes = np.asarray(last.predict(rows)).reshape(len(features)).astype(np.int64)
        else:
            if raw is None:
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
        _, probabilities = self._probabilities(self.pipeline[:-1].transform(features), len(features))
        return probabilities if self.calibration is None else self.calibration.calibrate_rows(probabilities)

    def _probabilities(self, rows: Any, number: int) -> tuple[np.ndarray, np.ndarray]:
        """The probabilities that the last step gives, and those in the order of ``classes``; of prepared rows."""
        raw = np.asarray(self.pipeline[-1].predict_proba(rows), dtype=np.float64)
        if raw.shape != (number, len(self.positions_)):
            raise ValueError(f"probabilities of {raw.shape}, expected {number} x {len(self.positions_)}")
        probabilities = np.zeros((number, len(self.classes)))
        probabilities[:, self.positions_] = raw / raw.cumsum(axis=1)[:, -1:]  # added in the order of the plan
        return raw, probabilities


class EnsembleRegressor(RegressorMixin, BaseEstimator):  # type: ignore[misc]
    """The weighted mean of the predictions of several pipelines, its *parts*.

    Args:
        parts: the name of each part and its pipeline, which ``fit`` fits.
        weights: of the parts; they sum to 1.
    """

    def __init__(self, parts: Sequence[tuple[str, Pipeline]], weights: Sequence[float]) -> None:
        self.parts, self.weights = parts, weights

    def fit(self, features: pd.DataFrame, labels: np.ndarray, sample_weights: np.ndarray | None = None) -> Self:
        """Fits each part on the same rows."""
        for _, pipeline in self.parts:
            fit_model(pipeline, features, labels, sample_weights)
        return self

    def predict(self, features: pd.DataFrame) -> np.ndarray:
        """(n,) values."""
        values = [np.asarray(part.predict(features), dtype=np.float64).reshape(-1) for _, part in self.parts]
        return weighted_mean(values, self.weights)


class EnsembleClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """The weighted mean of the probabilities of several classifiers, its *parts*.

    Args:
        parts: the name of each part and its classifier, which ``fit`` fits; all have the same classes.
        weights: of the parts; they sum to 1.
        classes: the labels, in the contract's order.
        positive: binary: the class that ``threshold`` applies to.
        threshold: of the decision; None: the class with the largest probability.
        calibration: of the mean probabilities; None: they stay as they are.
    """

    calibration: Calibration | None = None  # of models that were stored before there was any

    def __init__(
        self,
        parts: Sequence[tuple[str, Classifier]],
        weights: Sequence[float],
        classes: Sequence[Label],
        positive: Label | None = None,
        threshold: Threshold | None = None,
        calibration: Calibration | None = None,
    ) -> None:
        self.parts, self.weights = parts, weights
        self.classes, self.positive, self.threshold, self.calibration = classes, positive, threshold, calibration

    def fit(self, features: pd.DataFrame, labels: np.ndarray, sample_weights: np.ndarray | None = None) -> Self:
        """Fits each part on the same rows."""
        for _, classifier in self.parts:
            fit_model(classifier, features, labels, sample_weights)
        return self

    @property
    def classes_(self) -> np.ndarray:
        """(classes,) labels in the order of the probabilities."""
        return decode_labels(np.arange(len(self.classes)), tuple(self.classes))

    def predictions(self, features: pd.DataFrame) -> Predictions:
        """Labels and probabilities (n, classes)."""
        shares = weighted_mean([part.predict_proba(features) for _, part in self.parts], self.weights)
        return _calibrate(self, shares) if self.calibration is not None else _decide(self, shares)

    def predict(self, features: pd.DataFrame) -> np.ndarray:
        """(n,) labels; object."""
        return self.predictions(features).labels

    def predict_proba(self, features: pd.DataFrame) -> np.ndarray:
        """(n, classes) probabilities in the order of ``classes``."""
        probabilities = self.predictions(features).probabilities
        assert probabilities is not None  # noqa: S101 - an ensemble of classifiers has probabilities
        return probabilities


def _calibrate(model: Classifier | EnsembleClassifier, probabilities: np.ndarray) -> Predictions:
    """Predictions with the model's calibration of probabilities (n, classes)."""
    assert model.calibration is not None  # noqa: S101 - the callers have checked it
    return _decide(model, model.calibration.calibrate_rows(probabilities))


def _decide(model: Classifier | EnsembleClassifier, probabilities: np.ndarray) -> Predictions:
    """The labels by the model's threshold; without one the class with the largest probability, the first on a tie."""
    classes = tuple(model.classes)
    positive = classes.index(model.positive) if model.positive is not None else 1
    positions = decide_classes(probabilities, model.threshold, positive)
    return Predictions(decode_labels(positions, classes), probabilities)


Model: TypeAlias = Pipeline | Classifier | EnsembleRegressor | EnsembleClassifier


def fit_model(
    model: Model, features: pd.DataFrame, labels: np.ndarray, sample_weights: np.ndarray | None = None
) -> Model:
    """Fits a model; an estimator that takes no sample weights is fitted without them.

    A random forest is fitted on all processors: its trees do not depend on their number.

    Args:
        model: not fitted.
        features: n rows.
        labels: (n,).
        sample_weights: (n,); default: all rows have the same weight.
    """
    if isinstance(model, EnsembleRegressor | EnsembleClassifier):
        return model.fit(features, labels, sample_weights)
    pipeline = model.pipeline if isinstance(model, Classifier) else model
    estimate, options = pipeline.named_steps["estimate"], {}
    if sample_weights is not None and has_fit_parameter(estimate, "sample_weight"):
        options = {"estimate__sample_weight": sample_weights}
    if not isinstance(estimate, RandomForestClassifier | RandomForestRegressor):
        return model.fit(features, labels, **options)
    configured, estimate.n_jobs = estimate.n_jobs, -1
    try:
        return model.fit(features, labels, **options)
    finally:
        estimate.n_jobs = configured


def weighted_mean(arrays: Sequence[np.ndarray], weights: Sequence[float]) -> np.ndarray:
    """The weighted mean of arrays of one shape, added in their order; the weights sum to 1."""
    products = (weight * array for array, weight in zip(arrays, weights, strict=True))
    return sum(products, start=np.zeros(arrays[0].shape))
