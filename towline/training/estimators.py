"""Estimators: builds the scikit-learn pipeline of a candidate, with preprocessing by column kind.

A candidate names a built-in estimator (linear, forest, boosting), a boosting library (lightgbm, xgboost, catboost) or a
class by its dotted path.
"""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence, Set
from types import MappingProxyType
from typing import Any, NamedTuple

from sklearn.base import BaseEstimator, is_classifier, is_regressor
from sklearn.compose import ColumnTransformer
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.ensemble import (
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import KFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler

from towline.config import DEFAULT_METRIC, Candidate, Task, TrainingConfig, suggest
from towline.data.schema.contract import Contract
from towline.errors import ConfigError, FitError
from towline.training.boosting.histogram import BoostingClassifier, BoostingRegressor
from towline.training.boosting.libraries import CLASSIFIERS, NATIVE_LEVELS, REGRESSORS
from towline.training.pipeline_components import (
    CalendarParts,
    CappedTargetEncoder,
    Classifier,
    DateAges,
    DenseColumns,
    EnsembleClassifier,
    EnsembleRegressor,
    Model,
    NamedColumns,
    TextEncoder,
    TransformedColumns,
)
from towline.training.user_code import describe_error, import_estimator, import_transformer

ONE_HOT_LEVELS = 20
TEXT_COMPONENTS = 30  # of one column; many columns of text share MAX_TEXT_COMPONENTS
MAX_TEXT_COMPONENTS = 240
VARIANT_ROWS = 10_000  # that a fold is fitted on to compare variants of a candidate


class _EstimatorSpec(NamedTuple):
    """An estimator with its default parameters and search space.

    Attributes:
        scaled: whether it needs scaled columns, and one-hot columns of calendar parts.
        parameters: of a boosting library's class, to which an estimator of ``boosters`` passes them on.
    """

    estimator: Callable[..., BaseEstimator]
    defaults: Mapping[str, Any] = MappingProxyType({})
    space: Mapping[str, Any] = MappingProxyType({})
    scaled: bool = True
    parameters: frozenset[str] = frozenset()

    @property
    def is_booster(self) -> bool:
        """Whether it is of ``boosters``: it is given missing numbers as NaN, and names of the features."""
        return bool(self.parameters)

    def create(self, class_weight: str | None = None, **params: Any) -> BaseEstimator:
        """The unfitted estimator."""
        if self.is_booster:
            return self.estimator(params, class_weight)
        return self.estimator(**params, **({"class_weight": class_weight} if class_weight else {}))

    def constructor_parameters(self) -> tuple[Set[str], bool]:
        """The parameters that it has, and whether it accepts others."""
        return (self.parameters, False) if self.is_booster else _constructor_parameters(self.estimator)


_MAX_TREES = 10_000  # of boosting by default; with many classes, each iteration fits one tree for each class
TIME_TREND = "time_trend"  # a parameter of every candidate: whether it uses the time's days and clock columns
EXTRAPOLATE = "extrapolate"  # its value for a model that continues the trend after the training
_HORIZON = 0.25  # of the training's period: the holdout, a fifth of the rows, is about as long
SMALL_LEAVES = {"min_samples_leaf": 5}  # of boosting in a small table; the default is 20
SMALL_TREES = ({"max_leaf_nodes": 8}, {"max_leaf_nodes": 4})  # of boosting with few rows; the default is 31
NATIVE_CATEGORIES = "native_categories"  # of boosting and the libraries: whether it also splits sets of levels
_FOREST = {"min_samples_leaf": [1, 20], "max_features": [0.1, 1.0]}
_BOOSTING = {
    "learning_rate": {"low": 0.02, "high": 0.3, "log": True},
    "max_leaf_nodes": [8, 64],
    "min_samples_leaf": [5, 60],
    "l2_regularization": {"low": 1e-3, "high": 10.0, "log": True},
}
# without regularization, boosting diverges on rare classes (benchmarks/defaults.py)
_STOPPED = {"max_iter": 500, "early_stopping": True, "n_iter_no_change": 20, "l2_regularization": 1.0}
_LEAVES = {"max_leaf_nodes": 4000}  # limits the stored forest to about 13 MB
# defaults of the boosting libraries' classes: no output and no files. They need no scaled columns
_BOOSTING_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "lightgbm": {"verbose": -1},
    "xgboost": {},
    "catboost": {"verbose": False, "allow_writing_files": False},
}
_SYNONYMS = (
    {"verbose", "verbose_eval", "verbosity", "silent", "logging_level"},
    {"random_state", "random_seed", "seed"},
    {"n_jobs", "nthread", "num_threads", "thread_count"},
    {"learning_rate", "eta"},
    {"max_depth", "depth"},
    {"reg_lambda", "lambda", "lambda_l2", "l2_leaf_reg"},
)
_ABSOLUTE_ERROR: Mapping[str, Mapping[str, str]] = {
    "boosting": {"loss": "absolute_error"},
    "lightgbm": {"objective": "regression_l1"},
    "xgboost": {"objective": "reg:absoluteerror"},
    "catboost": {"loss_function": "MAE"},
}
_TREE_SIZES = {"max_leaf_nodes", "max_depth"}
_LOSS_PARAMETERS = {"loss", "objective", "loss_function", "application", "app"}
_LEARNING_RATE = {"low": 0.02, "high": 0.3, "log": True}
_L2 = {"low": 1e-3, "high": 10.0, "log": True}
# boosting libraries as candidates: defaults and search space of each
_BOOSTERS: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {
    "lightgbm": (
        {"verbose": -1, "learning_rate": 0.1, "reg_lambda": 1.0, "deterministic": True, "force_col_wise": True},
        {"learning_rate": _LEARNING_RATE, "num_leaves": [8, 64], "min_child_samples": [5, 60], "reg_lambda": _L2},
    ),
    "xgboost": (
        {"verbosity": 0, "learning_rate": 0.1, "max_depth": 6, "reg_lambda": 1.0},
        {
            "learning_rate": _LEARNING_RATE,
            "max_depth": [3, 8],
            "min_child_weight": {"low": 1.0, "high": 30.0, "log": True},
            "reg_lambda": _L2,
        },
    ),
    "catboost": (  # it derives its learning rate from the number of rows and trees
        {"verbose": False, "allow_writing_files": False},
        {"learning_rate": _LEARNING_RATE, "depth": [4, 8], "l2_leaf_reg": {"low": 1.0, "high": 30.0, "log": True}},
    ),
}
_REGRESSORS: Mapping[str, _EstimatorSpec] = {
    "baseline": _EstimatorSpec(DummyRegressor, {"strategy": "median"}),
    "linear": _EstimatorSpec(Ridge, {"copy_X": False}, {"alpha": {"low": 1e-3, "high": 1e3, "log": True}}),
    "forest": _EstimatorSpec(
        RandomForestRegressor, {**_LEAVES, "min_samples_leaf": 3, "max_features": 1 / 3}, _FOREST, scaled=False
    ),
    "boosting": _EstimatorSpec(BoostingRegressor, _STOPPED, _BOOSTING, scaled=False),
}
_CLASSIFIERS: Mapping[str, _EstimatorSpec] = {
    "baseline": _EstimatorSpec(DummyClassifier, {"strategy": "prior"}),
    "linear": _EstimatorSpec(LogisticRegression, {"max_iter": 1000}, {"C": {"low": 1e-3, "high": 1e2, "log": True}}),
    "forest": _EstimatorSpec(RandomForestClassifier, {**_LEAVES, "min_samples_leaf": 5}, _FOREST, scaled=False),
    "boosting": _EstimatorSpec(BoostingClassifier, _STOPPED, _BOOSTING, scaled=False),
}


def build_model(
    candidate: Candidate,
    contract: Contract,
    seed: int,
    params: Mapping[str, Any] | None = None,
    trusted: Sequence[str] = (),
    transformer: Any = None,
) -> Pipeline | Classifier:
    """An unfitted pipeline of ``prepare`` (a ColumnTransformer, float64) and ``estimate``; for classes, a Classifier.

    Missing numbers and booleans are imputed with the median, and an indicator is added. Categories are one-hot encoded
    up to 20 levels, else target-encoded with cross-fitting. Datetimes become calendar parts and ages, texts become
    components and scores of their TF-IDF weights. Linear and other
    estimators get scaled columns, trees do not. lightgbm, xgboost and catboost get missing numbers as NaN, and names of
    the features. The pipeline uses one thread, because folds run in parallel.

    Args:
        candidate: a built-in name or the path of a class, with its parameters.
        contract: the columns, their kinds and the task.
        seed: of everything that is random.
        params: parameters of a search; they override those of the candidate. ``time_trend: false`` leaves out the
            days of the time column and the clock columns, which every candidate uses by default; with ``time_trend:
            extrapolate``, the trend continues after the training for a quarter of its period. Of boosting and the
            boosting libraries, ``native_categories: true`` also splits sets of levels of categories with 21 to 254
            levels.
        trusted: ``package.trusted`` of the config.
        transformer: of the user, which gets the canonical columns before the preprocessing.

    Raises:
        ConfigError: an unknown name, class or parameter, a class of the wrong kind, or one that may not be used.
        FitError: there is no feature column.
    """
    spec = _find_estimator(candidate, contract.task, trusted)
    params = {**candidate.params, **(params or {})}
    time_trend = _pop_option(params, TIME_TREND, candidate, (True, False, EXTRAPOLATE))
    native = _splits_categories(candidate) and _pop_option(params, NATIVE_CATEGORIES, candidate, (False, True))
    _check_constraints(candidate, params, spec, contract)
    estimate = _create_estimator(candidate, spec, contract.task, seed, params)
    if isinstance(estimate, BoostingClassifier) and "max_iter" not in params:
        estimate.set_params(max_iter=min(estimate.max_iter, max(1, _MAX_TREES // len(contract.classes))))
    if spec.is_booster:
        estimate.set_params(stop_on_latest=any(column.role == "time" for column in contract.columns))
    if native and transformer is not None:
        where, remedy = f"candidates.{candidate.name}.params.{NATIVE_CATEGORIES}", "remove it, or prepare"
        raise ConfigError("with prepare, categories cannot be split natively", where=where, remedy=remedy)
    categories = _native_categories(contract) if native else []
    if categories and spec.is_booster:
        estimate.set_params(categories=len(categories))
    elif categories:
        estimate.set_params(categorical_features=list(range(len(categories))))
    preprocessor = _create_preprocessor(contract, spec, seed, transformer, categories, time_trend=time_trend)
    pipeline = Pipeline([("prepare", preprocessor), ("estimate", estimate)])
    return Classifier(pipeline, contract.classes, contract.positive) if contract.classes else pipeline


def _pop_option(params: dict[str, Any], name: str, candidate: Candidate, options: Sequence[bool | str]) -> Any:
    """A parameter of towline's own; the first option is the default."""
    value = params.pop(name, options[0])
    if not any(value is option or (isinstance(option, str) and value == option) for option in options):
        words = [option if isinstance(option, str) else str(option).lower() for option in options]
        text = f"{', '.join(words[:-1])} or {words[-1]}"
        where = f"candidates.{candidate.name}.params.{name}"
        raise ConfigError(f"{value!r} is not {text}", where=where, remedy=f"write {text}")
    return value


def _splits_categories(candidate: Candidate) -> bool:
    """Whether the estimator can split sets of levels of categories."""
    return candidate.estimator in {"boosting", *_BOOSTERS}


def _native_categories(contract: Contract) -> list[str]:
    """The categories with too many levels for one-hot columns, which trees can split natively."""
    categories = [column for column in contract.feature_columns if column.kind == "category"]
    return [column.name for column in categories if ONE_HOT_LEVELS < column.levels <= NATIVE_LEVELS]


def build_candidate(
    candidate: Candidate, contract: Contract, config: TrainingConfig, params: Mapping[str, Any] | None = None
) -> Model:
    """An unfitted model of any candidate of a config, with its seed and trusted packages.

    Args:
        candidate: to build.
        contract: the columns, their kinds and the task.
        config: has the parts of an ensemble.
        params: hyperparameters of cross-validation; they override those of the candidate. Of an ensemble: ``weights``
            by the name of the part, and ``params`` by the name of the part.

    Raises:
        ConfigError, FitError: as ``build_model``.
    """
    seed, trusted, transformer = config.seed, config.package.trusted, create_transformer(config)
    if not candidate.is_ensemble:
        return build_model(candidate, contract, seed, params, trusted, transformer)
    params = {**candidate.params, **(params or {})}
    parts = [part for part in config.parts_of(candidate) if part.name in params["weights"]]
    weights = [params["weights"][part.name] for part in parts]
    part_params = params.get("params", {})
    models = [
        (part.name, build_model(part, contract, seed, part_params.get(part.name), trusted, transformer))
        for part in parts
    ]
    if contract.classes:
        return EnsembleClassifier(models, weights, contract.classes, contract.positive)
    return EnsembleRegressor(models, weights)


def create_transformer(config: TrainingConfig) -> Any:
    """The unfitted transformer of ``prepare``; None if the config has none.

    Raises:
        ConfigError: there is no such class, the config may not use it, or it cannot be created with its parameters.
    """
    if config.prepare is None:
        return None
    transformer = import_transformer(config.prepare.transformer, "prepare.transformer", config.package.trusted)
    try:
        return transformer(**config.prepare.params)
    except Exception as error:  # a constructor may raise anything; its parameters are the cause
        what = f"{config.prepare.transformer} cannot be created: {describe_error(error)}"
        remedy = "give the parameters that its constructor needs"
        raise ConfigError(what, where="prepare.params", remedy=remedy) from error


def pipeline_of(model: Pipeline | Classifier) -> Pipeline:
    """The pipeline with the steps ``prepare`` and ``estimate``."""
    return model.pipeline if isinstance(model, Classifier) else model


def pipelines_of(model: Model) -> dict[str, Pipeline]:
    """The pipelines of the parts of an ensemble by name; of another model its pipeline, with an empty name."""
    if isinstance(model, EnsembleRegressor | EnsembleClassifier):
        return {name: pipeline_of(part) for name, part in model.parts}
    return {"": pipeline_of(model)}


def list_variants(
    candidate: Candidate, contract: Contract, config: TrainingConfig, *, rows: int, is_small: bool
) -> list[tuple[Mapping[str, Any], ...]]:
    """Parameters that cross-validation tries one after the other, and keeps if the score is better with them.

    The second of a tuple is tried only if the score is better with the first. ``rows`` is the number of training rows;
    in a small table, boosting stops by the folds.

    - ``time_trend: false``, if the split is by time: no days of the time and no clock columns. The trend helps if the
      level of the target rises or falls steadily. It misleads a model if the level only differs from period to period.
      In random folds it always seems to help, because a model interpolates between known rows.
    - ``time_trend: extrapolate`` of the linear model, if the split is by time. It follows a target that grows steadily;
      elsewhere its error grows with the time since the training, so the trend ends after a quarter of its period.
    - ``loss: absolute_error`` of a boosting regression, or the same by the name of its library, if mae decides: the
      squared error leads to the mean, and mae is least at the median (benchmarks/defaults.py).
    - ``min_samples_leaf: 5`` of a boosting regression in a small table: few rows may differ from the others.
    - ``max_leaf_nodes: 8``, then ``4``, of boosting with at most ``VARIANT_ROWS`` rows: where features act
      independently of each other, trees of 31 leaves fit noise (benchmarks/defaults.py).
    - ``native_categories: true`` of boosting, lightgbm and xgboost, if a category has 21 to 254 levels: trees also
      split sets of levels. By the target encoding alone they cannot separate levels where other features act
      differently, such as countries. Not of catboost, whose counters of categories are not compiled.

    Parameters that the candidate or its search sets are not varied.
    """
    given = {*candidate.params, *(candidate.search.space if candidate.search else ())}
    variants: list[tuple[Mapping[str, Any], ...]] = []
    clocks = contract.clock_columns
    has_others = any(column.role != "time" and column.name not in clocks for column in contract.feature_columns)
    has_trend = bool(contract.trend_column or clocks) and config.by_time and candidate.estimator != "baseline"
    if has_trend and TIME_TREND not in given:
        extrapolates = contract.trend_column is not None and candidate.estimator == "linear"
        variants += [({TIME_TREND: False},)] * has_others + [({TIME_TREND: EXTRAPOLATE},)] * extrapolates
    is_small = is_small and candidate.estimator == "boosting"
    leaves = [(SMALL_LEAVES,)] * (is_small and contract.task == "regression" and given.isdisjoint(SMALL_LEAVES))
    variants += leaves
    metric = config.evaluation.metric or DEFAULT_METRIC[contract.task]
    if candidate.estimator in _ABSOLUTE_ERROR and metric == "mae" and given.isdisjoint(_LOSS_PARAMETERS):
        variants += [(_ABSOLUTE_ERROR[candidate.estimator],), *leaves]  # the best size depends on the loss
    if is_small and rows <= VARIANT_ROWS and given.isdisjoint(_TREE_SIZES):
        variants.append(SMALL_TREES)
    is_compiled = _splits_categories(candidate) and candidate.estimator != "catboost"
    if is_compiled and config.prepare is None and NATIVE_CATEGORIES not in given and _native_categories(contract):
        variants.append(({NATIVE_CATEGORIES: True},))
    return variants


def check_candidate(
    candidate: Candidate, task: Task, seed: int, params: Mapping[str, Any], trusted: Sequence[str] = ()
) -> None:
    """Checks that the estimator of a candidate can be created for a task.

    Args:
        candidate: to check.
        task: of the contract.
        seed: of the run.
        params: parameters that a search would set.
        trusted: ``package.trusted`` of the config.

    Raises:
        ConfigError: as ``build_model``.
    """
    own = {TIME_TREND, NATIVE_CATEGORIES} if _splits_categories(candidate) else {TIME_TREND}
    params = {name: value for name, value in {**candidate.params, **params}.items() if name not in own}
    _create_estimator(candidate, _find_estimator(candidate, task, trusted), task, seed, params)


def default_search_space(candidate: Candidate, task: Task) -> dict[str, Any]:
    """The default of ``search.space``; empty for a class by its path."""
    return {} if "." in candidate.estimator else dict(_find_estimator(candidate, task).space)


def _create_preprocessor(
    contract: Contract,
    spec: _EstimatorSpec,
    seed: int,
    transformer: Any,
    native: Sequence[str],
    *,
    time_trend: bool | str,
) -> ColumnTransformer | TransformedColumns:
    kinds: dict[str, list[str]] = {"number": [], "category": [], "levels": [], "text": [], "calendar": []}
    parts = []
    for column in contract.feature_columns:
        if not time_trend and column.name in contract.clock_columns:
            continue
        if column.kind in ("numeric", "boolean"):
            kinds["number"].append(column.name)
        elif column.kind == "category":
            kinds["category" if column.levels <= ONE_HOT_LEVELS else "levels"].append(column.name)
        elif column.kind == "text":
            kinds["text"].append(column.name)
        elif column.kind == "datetime" and column.calendar:
            kinds["calendar"].append(column.name)
            parts.append(column.calendar)
    kinds["trend"] = [contract.trend_column] if contract.trend_column and time_trend else []
    if not any(kinds.values()):
        ignored = tuple(f"{c.name}: {c.note}" for c in contract.columns if c.role == "ignored")
        what, remedy = "there is no feature column", "add columns, or set data.columns"
        raise FitError(what, where="data", remedy=remedy, details=ignored)
    if spec.estimator in (DummyRegressor, DummyClassifier):
        return ColumnTransformer([])

    scale = [StandardScaler()] if spec.scaled else []
    median = SimpleImputer(strategy="median", add_indicator=True, keep_empty_features=True)
    impute = [] if spec.is_booster else [median]
    one_hot = OneHotEncoder(handle_unknown="ignore")
    # of classes "auto": rows of a fold may have only two of three
    target = "continuous" if contract.task == "regression" else "auto"
    encode = CappedTargetEncoder(target_type=target, cv=KFold(5, shuffle=True, random_state=seed))
    reference = contract.age_reference
    kinds["age"] = [*(column.name for column in contract.age_columns), *([reference] if reference else [])]
    horizon = _HORIZON if time_trend == EXTRAPOLATE else 0.0
    components = max(4, min(TEXT_COMPONENTS, MAX_TEXT_COMPONENTS // max(1, len(kinds["text"]))))
    blocks = {
        "native": OrdinalEncoder(
            handle_unknown="use_encoded_value", unknown_value=math.nan, encoded_missing_value=math.nan
        ),
        "number": make_pipeline(*impute, *scale) if impute else "passthrough",
        "category": one_hot,
        "levels": make_pipeline(encode, *scale),
        "text": make_pipeline(TextEncoder(contract.task, components, random_state=seed), *scale),
        "age": make_pipeline(DateAges(reference is not None), *impute, *scale),
        "trend": make_pipeline(DateAges(has_time=False, horizon=horizon), *impute, *scale),
        "calendar": make_pipeline(CalendarParts(tuple(parts)), *([one_hot] if spec.scaled else impute)),
    }
    kinds = {"native": [*native], **kinds}  # first, so that the estimator knows their positions
    column_transformer = NamedColumns if spec.is_booster else DenseColumns
    columns = column_transformer([(kind, blocks[kind], names) for kind, names in kinds.items() if names])
    if transformer is None:
        return columns
    new = {kind: blocks[kind] for kind in ("number", "category", "levels")}
    return TransformedColumns(transformer, columns, new, ONE_HOT_LEVELS)


def _check_constraints(
    candidate: Candidate, params: Mapping[str, Any], spec: _EstimatorSpec, contract: Contract
) -> None:
    """Checks that monotone constraints by column name numbers or booleans of the contract."""
    constraints = params.get("monotone_constraints")
    if not spec.is_booster or not isinstance(constraints, dict):
        return
    where = f"candidates.{candidate.name}.params.monotone_constraints"
    numbers = [column.name for column in contract.feature_columns if column.kind in ("numeric", "boolean")]
    for column, sign in constraints.items():
        if column not in numbers:
            what = f"{column!r} is not a feature of numbers or booleans"
            raise ConfigError(what, where=where, remedy=suggest(str(column), numbers))
        if sign not in (-1, 0, 1):
            raise ConfigError(f"{column}: {sign!r} is not a constraint", where=where, remedy="write 1, 0 or -1")


def _find_estimator(candidate: Candidate, task: Task, trusted: Sequence[str] = ()) -> _EstimatorSpec:
    name, where = candidate.estimator, f"candidates.{candidate.name}.estimator"
    built_in = _REGRESSORS if task == "regression" else _CLASSIFIERS
    if name in _BOOSTERS:
        return _find_booster(name, task, where)
    if "." not in name:
        if name not in built_in:
            remedy = f"{suggest(name, [*built_in, *_BOOSTERS])} (or a class such as sklearn.svm.SVR)"
            raise ConfigError(f"unknown estimator {name!r}", where=where, remedy=remedy)
        return built_in[name]

    estimator = import_estimator(name, where, trusted)
    library = estimator.__module__.partition(".")[0]
    return _EstimatorSpec(estimator, _BOOSTING_DEFAULTS.get(library, {}), scaled=library not in _BOOSTING_DEFAULTS)


def _find_booster(name: str, task: Task, where: str) -> _EstimatorSpec:
    booster = (REGRESSORS if task == "regression" else CLASSIFIERS)[name]
    path = f"{name}.{booster.regressor if task == 'regression' else booster.classifier}"
    known, _ = _constructor_parameters(import_estimator(path, where, ()))
    defaults, space = _BOOSTERS[name]
    parameters = frozenset({*known, *booster.other_parameters(), "class_weight"})
    return _EstimatorSpec(booster, defaults, space, scaled=False, parameters=parameters)


def _create_estimator(
    candidate: Candidate, spec: _EstimatorSpec, task: Task, seed: int, params: Mapping[str, Any]
) -> BaseEstimator:
    name, where = candidate.estimator, f"candidates.{candidate.name}"
    known, takes_others = spec.constructor_parameters()
    unknown = [] if takes_others else [key for key in params if key not in known]
    if unknown:
        what = f"{name} has no parameter {unknown[0]!r}"
        raise ConfigError(what, where=f"{where}.params", remedy=suggest(unknown[0], known))
    fixed: dict[str, Any] = {"random_state": seed, "n_jobs": 1, "thread_count": 1}
    if isinstance(spec.estimator, type) and issubclass(spec.estimator, LogisticRegression):
        del fixed["n_jobs"]  # it has no effect there, and scikit-learn warns
    if candidate.weights:
        if task == "regression" or "class_weight" not in known:
            reason = "the task is regression" if task == "regression" else f"{name} has no class_weight"
            remedy = "remove weights, or use linear, forest or boosting for a classification task"
            raise ConfigError(f"class weights cannot be used: {reason}", where=f"{where}.weights", remedy=remedy)
        fixed["class_weight"] = candidate.weights
    defaults = dict(spec.defaults) | {key: value for key, value in fixed.items() if key in known}
    defaults = {key: value for key, value in defaults.items() if not _synonyms(key) & params.keys()}
    try:
        estimator = spec.create(**defaults, **params)
    except Exception as error:  # a constructor may raise anything; its parameters are the cause
        what = f"{name} cannot be created: {describe_error(error)}"
        remedy = "give the parameters that its constructor needs"
        raise ConfigError(what, where=f"{where}.params", remedy=remedy) from error
    kind, has_kind = ("regressor", is_regressor) if task == "regression" else ("classifier", is_classifier)
    try:
        suitable = has_kind(estimator)
    except Exception:  # noqa: BLE001 - an object that is not an estimator has no tags
        suitable = False
    if not suitable:
        remedy = f"the task is {task}: give a {kind}, or set task"
        raise ConfigError(f"{name} is not a scikit-learn {kind}", where=f"{where}.estimator", remedy=remedy)
    return estimator


def _constructor_parameters(estimator: Callable[..., Any]) -> tuple[set[str], bool]:
    """The parameters of a constructor or function, and whether it takes others.

    A constructor with ``**kwargs``, as in XGBoost, has the parameters of its base classes too.
    """
    bases = estimator.__mro__ if isinstance(estimator, type) else (estimator,)
    known: set[str] = set()
    for function in (base for base in bases if not isinstance(base, type) or "__init__" in vars(base)):
        try:
            parameters = inspect.signature(function).parameters.values()
        except (TypeError, ValueError):  # written in C
            break
        known |= {parameter.name for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD}
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            return known, False
    return known, True


def _synonyms(parameter: str) -> set[str]:
    """All names of a parameter: CatBoost rejects a parameter that is given under two names."""
    return next((names for names in _SYNONYMS if parameter in names), {parameter})
