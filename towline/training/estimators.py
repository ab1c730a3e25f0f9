"""From a candidate's name to a scikit-learn pipeline: preprocessing by column kind, then the estimator."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

from sklearn.base import BaseEstimator, is_classifier, is_regressor
from sklearn.compose import ColumnTransformer
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.ensemble import (
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import KFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler, TargetEncoder

from towline.config import Candidate, Task
from towline.data.schema.contract import Contract
from towline.errors import ConfigError, FitError
from towline.training.estimator_import import describe_error, import_estimator, nearest
from towline.training.pipeline_components import CalendarParts, Classifier

Model: TypeAlias = Pipeline | Classifier
ONE_HOT_LEVELS = 20


class _EstimatorSpec(NamedTuple):
    estimator: Callable[..., BaseEstimator]
    defaults: Mapping[str, Any] = MappingProxyType({})
    space: Mapping[str, Any] = MappingProxyType({})
    scaled: bool = True


_FOREST = {"min_samples_leaf": [1, 20], "max_features": [0.1, 1.0]}
_BOOSTING = {
    "learning_rate": {"low": 0.02, "high": 0.3, "log": True},
    "max_leaf_nodes": [8, 64],
    "min_samples_leaf": [5, 60],
    "l2_regularization": {"low": 1e-3, "high": 10.0, "log": True},
}
_ROUNDS = {"max_iter": 200, "early_stopping": False}
_LEAVES = {"max_leaf_nodes": 4000}  # bounds the stored forest, about 13 MB, however long the table
_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "lightgbm": {"verbose": -1},
    "xgboost": {},
    "catboost": {"verbose": False, "allow_writing_files": False},
}
"""Of the boosting libraries: they print and leave files nowhere. Like our own trees they take columns as they are."""
_SYNONYMS = (
    {"verbose", "verbose_eval", "silent", "logging_level"},
    {"random_state", "random_seed", "seed"},
    {"n_jobs", "nthread", "num_threads", "thread_count"},
)
_REGRESSORS: Mapping[str, _EstimatorSpec] = {
    "baseline": _EstimatorSpec(DummyRegressor, {"strategy": "median"}),
    "linear": _EstimatorSpec(Ridge, {}, {"alpha": {"low": 1e-3, "high": 1e3, "log": True}}),
    "forest": _EstimatorSpec(
        RandomForestRegressor, {**_LEAVES, "min_samples_leaf": 3, "max_features": 1 / 3}, _FOREST, scaled=False
    ),
    "boosting": _EstimatorSpec(HistGradientBoostingRegressor, _ROUNDS, _BOOSTING, scaled=False),
}
_CLASSIFIERS: Mapping[str, _EstimatorSpec] = {
    "baseline": _EstimatorSpec(DummyClassifier, {"strategy": "prior"}),
    "linear": _EstimatorSpec(LogisticRegression, {"max_iter": 1000}, {"C": {"low": 1e-3, "high": 1e2, "log": True}}),
    "forest": _EstimatorSpec(RandomForestClassifier, {**_LEAVES, "min_samples_leaf": 5}, _FOREST, scaled=False),
    "boosting": _EstimatorSpec(HistGradientBoostingClassifier, _ROUNDS, _BOOSTING, scaled=False),
}


def build_model(
    candidate: Candidate,
    contract: Contract,
    seed: int,
    params: Mapping[str, Any] | None = None,
    trusted: Sequence[str] = (),
) -> Model:
    """An unfitted pipeline: ``prepare`` (a ColumnTransformer, float64 out) and ``estimate``; of classes a Classifier.

    Numbers and booleans are imputed with their median and an indicator; categories are one-hot up to 20 levels, beyond
    that target-encoded with cross-fitting; datetimes become calendar parts. Trees get them as they are, other
    estimators scaled and one-hot. Everything runs in one thread: the folds are what runs in parallel.

    Args:
        candidate: a name of ours or the path of a class, with its parameters.
        contract: says which columns there are, their kinds and the task.
        seed: for every part that draws.
        params: what a search found; goes before the candidate's own.
        trusted: ``package.trusted`` of the config.

    Raises:
        ConfigError: an unknown name, class or parameter, a class of the wrong kind, or one that may not be used.
        FitError: no column to learn from.
    """
    choice = _find_estimator(candidate, contract.task, trusted)
    estimate = _make_estimator(candidate, choice, contract.task, seed, {**candidate.params, **(params or {})})
    pipeline = Pipeline([("prepare", _make_preprocessor(contract, choice, seed)), ("estimate", estimate)])
    return Classifier(pipeline, contract.classes, contract.positive) if contract.classes else pipeline


def pipeline_of(model: Model) -> Pipeline:
    """``prepare`` and ``estimate`` of a model."""
    return model.pipeline if isinstance(model, Classifier) else model


def check_candidate(
    candidate: Candidate, task: Task, seed: int, params: Mapping[str, Any], trusted: Sequence[str] = ()
) -> None:
    """Makes a candidate's estimator for a task and throws it away; ``params`` are those that a search would set.

    Raises:
        ConfigError: as ``build``.
    """
    _make_estimator(candidate, _find_estimator(candidate, task, trusted), task, seed, {**candidate.params, **params})


def default_search_space(candidate: Candidate, task: Task) -> dict[str, Any]:
    """What a search goes through by default, as it would stand in ``search.space``; empty for a class by its path."""
    return {} if "." in candidate.estimator else dict(_find_estimator(candidate, task).space)


def _make_preprocessor(contract: Contract, choice: _EstimatorSpec, seed: int) -> ColumnTransformer:
    kinds: dict[str, list[str]] = {"number": [], "category": [], "levels": [], "calendar": []}
    parts = []
    for column in contract.feature_columns:
        if column.kind in ("numeric", "boolean"):
            kinds["number"].append(column.name)
        elif column.kind == "category":
            kinds["category" if column.levels <= ONE_HOT_LEVELS else "levels"].append(column.name)
        elif column.kind == "datetime" and column.derive:
            kinds["calendar"].append(column.name)
            parts.append(column.derive)
    if not any(kinds.values()):
        ignored = tuple(f"{c.name}: {c.note}" for c in contract.columns if c.role == "ignored")
        raise FitError(
            "no column is left to learn from", where="data", remedy="add columns, or set data.columns", details=ignored
        )
    if choice.estimator in (DummyRegressor, DummyClassifier):
        return ColumnTransformer([])

    scale = [StandardScaler()] if choice.scaled else []
    impute = SimpleImputer(strategy="median", add_indicator=True, keep_empty_features=True)
    one_hot = OneHotEncoder(handle_unknown="ignore", sparse_output=False)
    target: Task | str = "continuous" if contract.task == "regression" else contract.task
    encode = TargetEncoder(target_type=target, cv=KFold(5, shuffle=True, random_state=seed))
    blocks = {
        "number": make_pipeline(impute, *scale),
        "category": one_hot,
        "levels": make_pipeline(encode, *scale),
        "calendar": make_pipeline(CalendarParts(tuple(parts)), one_hot if choice.scaled else impute),
    }
    return ColumnTransformer([(kind, blocks[kind], names) for kind, names in kinds.items() if names])


def _find_estimator(candidate: Candidate, task: Task, trusted: Sequence[str] = ()) -> _EstimatorSpec:
    name, where = candidate.estimator, f"candidates.{candidate.name}.estimator"
    ours = _REGRESSORS if task == "regression" else _CLASSIFIERS
    if "." not in name:
        if name not in ours:
            remedy = f"{nearest(name, ours)} (or a class such as sklearn.svm.SVR or lightgbm.LGBMRegressor)"
            raise ConfigError(f"unknown estimator {name!r}", where=where, remedy=remedy)
        return ours[name]

    estimator = import_estimator(name, where, trusted)
    library = estimator.__module__.partition(".")[0]
    return _EstimatorSpec(estimator, _DEFAULTS.get(library, {}), scaled=library not in _DEFAULTS)


def _make_estimator(
    candidate: Candidate, choice: _EstimatorSpec, task: Task, seed: int, params: Mapping[str, Any]
) -> BaseEstimator:
    name, where = candidate.estimator, f"candidates.{candidate.name}"
    known, more = _constructor_parameters(choice.estimator)
    if not more:
        for key in params:
            if key not in known:
                what = f"{name} has no parameter {key!r}"
                raise ConfigError(what, where=f"{where}.params", remedy=nearest(key, known))
    given = {"random_state": seed, "n_jobs": 1, "thread_count": 1}
    fixed: dict[str, Any] = {key: value for key, value in given.items() if key in known}
    if isinstance(choice.estimator, type) and issubclass(choice.estimator, LogisticRegression):
        fixed.pop("n_jobs", None)  # without effect there, and it warns
    if candidate.weights:
        if task == "regression" or "class_weight" not in known:
            reason = "the task is regression" if task == "regression" else f"{name} takes none"
            remedy = "leave weights out, or give linear, forest or boosting a classification task"
            raise ConfigError(f"class weights cannot be used: {reason}", where=f"{where}.weights", remedy=remedy)
        fixed["class_weight"] = candidate.weights
    ours = {key: value for key, value in {**choice.defaults, **fixed}.items() if not _synonyms(key) & params.keys()}
    try:
        estimator = choice.estimator(**ours, **params)
    except Exception as error:  # whatever a constructor raises, its parameters are the cause
        what = f"{name} cannot be made: {describe_error(error)}"
        raise ConfigError(what, where=f"{where}.params", remedy="give the parameters its constructor needs") from error
    kind, suits = ("regressor", is_regressor) if task == "regression" else ("classifier", is_classifier)
    try:
        suitable = suits(estimator)
    except Exception:  # noqa: BLE001 - what is no estimator has no tags to ask for
        suitable = False
    if not suitable:
        remedy = f"the task is {task}: give a {kind}, or set task"
        raise ConfigError(f"{name} is not a scikit-learn {kind}", where=f"{where}.estimator", remedy=remedy)
    return estimator


def _constructor_parameters(estimator: Callable[..., Any]) -> tuple[set[str], bool]:
    """The parameters of a constructor or function, and whether it takes others; XGBoost names its own in a base."""
    own = [one for one in estimator.__mro__ if "__init__" in vars(one)] if isinstance(estimator, type) else [estimator]
    known: set[str] = set()
    for one in own:
        try:
            parameters = inspect.signature(one).parameters.values()
        except (TypeError, ValueError):  # written in C
            break
        known |= {each.name for each in parameters if each.kind is not each.VAR_KEYWORD}
        if not any(each.kind is each.VAR_KEYWORD for each in parameters):
            return known, False
    return known, True


def _synonyms(parameter: str) -> set[str]:
    """Under which names a parameter is given: CatBoost refuses one that is given under two."""
    return next((names for names in _SYNONYMS if parameter in names), {parameter})
