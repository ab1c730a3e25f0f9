"""From a candidate's name to a scikit-learn pipeline: preprocessing by column kind, then the estimator."""

import difflib
import importlib
import inspect
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
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
from towline.data.contract import Contract
from towline.errors import ConfigError, FitError
from towline.training.features import CalendarParts

ONE_HOT_LEVELS = 20


class _Choice(NamedTuple):
    estimator: type[BaseEstimator]
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
_REGRESSORS: Mapping[str, _Choice] = {
    "baseline": _Choice(DummyRegressor, {"strategy": "median"}),
    "linear": _Choice(Ridge, {}, {"alpha": {"low": 1e-3, "high": 1e3, "log": True}}),
    "forest": _Choice(
        RandomForestRegressor, {**_LEAVES, "min_samples_leaf": 3, "max_features": 1 / 3}, _FOREST, scaled=False
    ),
    "boosting": _Choice(HistGradientBoostingRegressor, _ROUNDS, _BOOSTING, scaled=False),
}
_CLASSIFIERS: Mapping[str, _Choice] = {
    "baseline": _Choice(DummyClassifier, {"strategy": "prior"}),
    "linear": _Choice(LogisticRegression, {"max_iter": 1000}, {"C": {"low": 1e-3, "high": 1e2, "log": True}}),
    "forest": _Choice(RandomForestClassifier, {**_LEAVES, "min_samples_leaf": 5}, _FOREST, scaled=False),
    "boosting": _Choice(HistGradientBoostingClassifier, _ROUNDS, _BOOSTING, scaled=False),
}


def build(candidate: Candidate, contract: Contract, seed: int, params: Mapping[str, Any] | None = None) -> Pipeline:
    """An unfitted pipeline: ``prepare`` (a ColumnTransformer, float64 out) and ``estimate``.

    Numbers and booleans are imputed with their median and an indicator; categories are one-hot up to 20 levels, beyond
    that target-encoded with cross-fitting; datetimes become calendar parts. Trees get them as they are, other
    estimators scaled and one-hot. Everything runs in one thread: the folds are what runs in parallel.

    Args:
        candidate: a name of ours or an importable class, with its parameters.
        contract: says which columns there are, their kinds and the task.
        seed: for every part that draws.
        params: what a search found; goes before the candidate's own.

    Raises:
        ConfigError: an unknown name, class or parameter, or a class of the wrong kind.
        FitError: no column to learn from.
    """
    choice = _choice(candidate, contract.task)
    estimate = _estimate(candidate, choice, contract.task, seed, {**candidate.params, **(params or {})})
    return Pipeline([("prepare", _prepare(contract, choice, seed)), ("estimate", estimate)])


def check(candidate: Candidate, task: Task, seed: int, params: Mapping[str, Any]) -> None:
    """Makes a candidate's estimator for a task and throws it away; ``params`` are those that a search would set.

    Raises:
        ConfigError: as ``build``.
    """
    _estimate(candidate, _choice(candidate, task), task, seed, {**candidate.params, **params})


def space(candidate: Candidate, task: Task) -> dict[str, Any]:
    """What a search goes through by default, as it would stand in ``search.space``; empty for an imported class."""
    return dict(_choice(candidate, task).space)


def trainable(labels: np.ndarray) -> np.ndarray:
    """Labels as scikit-learn takes them: it refuses object arrays of integers or booleans, not of strings."""
    return labels if labels.dtype != object or isinstance(labels[0], str) else np.array(labels.tolist())


def _prepare(contract: Contract, choice: _Choice, seed: int) -> ColumnTransformer:
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


def _choice(candidate: Candidate, task: Task) -> _Choice:
    name, where = candidate.estimator, f"candidates.{candidate.name}.estimator"
    named = _REGRESSORS if task == "regression" else _CLASSIFIERS
    if "." not in name:
        if name not in named:
            remedy = f"{_nearest(name, named)} (or an importable class such as sklearn.svm.SVR)"
            raise ConfigError(f"unknown estimator {name!r}", where=where, remedy=remedy)
        return named[name]

    module_name, _, attribute = name.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # an imported module may raise anything
        what, package = f"cannot import {module_name!r}: {brief(error)}", module_name.partition(".")[0]
        absent = isinstance(error, ModuleNotFoundError) and error.name == package
        remedy = f"pip install {package}, or " if absent else ""
        remedy += "check the spelling, and that its package is installed"
        raise ConfigError(what, where=where, remedy=remedy) from error
    found = getattr(module, attribute, None)
    if not isinstance(found, type):
        classes = [key for key in dir(module) if key[0].isupper()]
        raise ConfigError(f"{module_name} has no class {attribute!r}", where=where, remedy=_nearest(attribute, classes))
    return _Choice(found)


def _estimate(candidate: Candidate, choice: _Choice, task: Task, seed: int, params: Mapping[str, Any]) -> BaseEstimator:
    name, where = candidate.estimator, f"candidates.{candidate.name}"
    known = inspect.signature(choice.estimator).parameters
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values()):
        for key in params:
            if key not in known:
                what = f"{name} has no parameter {key!r}"
                raise ConfigError(what, where=f"{where}.params", remedy=_nearest(key, known))
    fixed: dict[str, Any] = {key: value for key, value in (("random_state", seed), ("n_jobs", 1)) if key in known}
    if issubclass(choice.estimator, LogisticRegression):
        fixed.pop("n_jobs", None)  # without effect there, and it warns
    if candidate.weights:
        if task == "regression" or "class_weight" not in known:
            reason = "the task is regression" if task == "regression" else f"{name} takes none"
            remedy = "leave weights out, or give linear, forest or boosting a classification task"
            raise ConfigError(f"class weights cannot be used: {reason}", where=f"{where}.weights", remedy=remedy)
        fixed["class_weight"] = candidate.weights
    try:
        estimator = choice.estimator(**{**choice.defaults, **fixed, **params})
    except Exception as error:  # whatever a constructor raises, its parameters are the cause
        what = f"{name} cannot be made: {brief(error)}"
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


def brief(error: BaseException) -> str:
    """An error in one line: its class and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:160]}" if lines else type(error).__name__


def _nearest(name: str, known: Iterable[str]) -> str:
    names = sorted(known)
    near = difflib.get_close_matches(name, names, 1, 0.5)
    return f"did you mean {near[0]}?" if near else "known: " + ", ".join(names[:30])
