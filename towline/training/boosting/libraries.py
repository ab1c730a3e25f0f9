"""Boosting candidates: LightGBM, XGBoost and CatBoost as scikit-learn estimators that store the library's own format.

A fitted estimator holds the model as the library writes it: the text of LightGBM, the JSON of XGBoost and CatBoost. It
predicts with the model that the library reads from this text, so that a stored model predicts the same as a fitted one.
The library computes raw scores. Probabilities, and values of a log link, are computed from them in float64 by
``link_functions``, as in the compiled plan. (XGBoost itself computes them in float32.)

Training stops early: the loss on a tenth of the training rows is watched, and the trees after the best one are left
out. If the rows have a time, it is the latest tenth: a random one would be predicted from rows of the same days, and
training would stop too late. The newest rows matter most for the next ones, so as many trees are then fitted again, on
all rows. Missing numbers are passed as NaN; each library learns the direction that they take at a split.
"""

import json
import re
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Self

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils.class_weight import compute_sample_weight

from towline.training.link_functions import expit, exponential, softmax

EARLY_STOPPING_ROUNDS = 20
STOPPING_SHARE = 10  # one of this number of training rows is for early stopping
MIN_STOPPING_ROWS = 10  # with fewer rows their loss is too uncertain: training does not stop early
TREES, TREES_WITHOUT_STOPPING = 500, 100  # default numbers of trees
NATIVE_LEVELS = 254  # of a category that trees can split by sets of levels
_TREE_PARAMS = {"n_estimators", "iterations", "num_iterations", "num_boost_round", "num_trees"}
# parameters of XGBoost that its scikit-learn classes take without listing them
_XGBOOST_PARAMS = (
    "alpha", "eta", "huber_slope", "lambda", "max_cached_hist_node", "normalize_type", "nthread", "one_drop",
    "quantile_alpha", "rate_drop", "sample_type", "seed", "skip_drop", "tweedie_variance_power",
)  # fmt: skip
_LARGEST = float(np.finfo(np.float32).max)

Link = Literal["identity", "exp", "expit", "softmax"]


class TrainingRows(NamedTuple):
    """Rows to fit on or to watch: features with names that each library accepts, targets, and weights or None."""

    features: pd.DataFrame
    targets: np.ndarray
    weights: np.ndarray | None

    def split(self, positions: np.ndarray) -> tuple["TrainingRows", "TrainingRows"]:
        """The other rows, and those at the positions."""
        rest = np.setdiff1d(np.arange(len(self.targets)), positions)
        return self._take(rest), self._take(positions)

    def _take(self, rows: np.ndarray) -> "TrainingRows":
        weights = None if self.weights is None else self.weights[rows]
        return TrainingRows(self.features.iloc[rows], self.targets[rows], weights)


class TrainedBooster(NamedTuple):
    """A model in the library's own format, and the parameters that fit as many trees on other rows."""

    content: bytes
    params: dict[str, Any]


class Booster(BaseEstimator, ABC):  # type: ignore[misc]
    """A model of a boosting library.

    Args:
        params: of the library's scikit-learn class, e.g. ``lightgbm.LGBMRegressor``. ``monotone_constraints`` may be
            given by column: ``{"price": -1}``. ``early_stopping_rounds``: default 20; 0 or None fits all trees.
        class_weight: ``balanced`` or None, for a classification.
        stop_on_latest: whether the rows are ordered by time, so that the latest ones are for early stopping.
        categories: how many of the first features are codes of categories, which trees split by sets of codes. Codes
            count from 0; NaN is an unknown category.

    Attributes:
        model_: the fitted model in the library's own format.
        objective_: the objective in the model file.
        feature_names_in_: the names of the features in the model file.
    """

    library: ClassVar[str]
    file: ClassVar[str]  # name of the model file
    regressor: ClassVar[str]
    classifier: ClassVar[str]
    links: ClassVar[Mapping[str, Link]]  # by objective; any other one is transformed by the library
    task_links: ClassVar[frozenset[str]] = frozenset()
    unstoppable: ClassVar[frozenset[str]] = frozenset()  # kinds of boosting whose later trees change earlier ones
    stop_on_latest: bool = False  # of models that were stored before there was any
    categories: int = 0  # likewise

    def __init__(
        self,
        params: Mapping[str, Any] | None = None,
        class_weight: Literal["balanced"] | None = None,
        stop_on_latest: bool = False,
        categories: int = 0,
    ) -> None:
        self.params, self.class_weight = params, class_weight
        self.stop_on_latest, self.categories = stop_on_latest, categories

    def fit(self, X: pd.DataFrame | np.ndarray, y: np.ndarray, sample_weight: np.ndarray | None = None) -> Self:
        features = pd.DataFrame(X)
        params = {**(self.params or {})}
        constraints = params.get("monotone_constraints")
        if isinstance(constraints, Mapping):
            params["monotone_constraints"] = _constraint_list(constraints, features.columns)
        features = pd.DataFrame(_design(features), columns=_model_file_names(features.columns))
        codes = self._encode(np.asarray(y))
        weights = None if sample_weight is None else np.asarray(sample_weight, dtype=np.float64)
        if self.class_weight:
            balanced = compute_sample_weight(self.class_weight, codes)
            weights = balanced if weights is None else weights * balanced
        rounds = params.pop("early_stopping_rounds", EARLY_STOPPING_ROUNDS)
        if not self.unstoppable.isdisjoint(value for value in params.values() if isinstance(value, str)):
            rounds = 0
        classes = isinstance(self, ClassifierMixin)
        if self.stop_on_latest:
            watched = _latest_rows(codes, classes=classes)
        else:
            watched = _random_rows(codes, params, classes=classes)
        rows = TrainingRows(features, codes, weights)
        train, stopping = rows.split(watched) if rounds and len(watched) >= MIN_STOPPING_ROWS else (rows, None)
        if not _TREE_PARAMS & params.keys():
            params["n_estimators"] = TREES if stopping else TREES_WITHOUT_STOPPING
        self.n_features_in_ = features.shape[1]
        self.feature_names_in_ = features.columns.to_numpy(dtype=object)
        trained = self._train(params, train, stopping, rounds)
        if stopping and self.stop_on_latest:
            trained = self._train(trained.params, rows, None, rounds)
        self.model_: bytes = trained.content
        self.objective_ = self._read_objective(self.model_)
        self._model = self._read(self.model_)
        return self

    def raw_scores(self, X: pd.DataFrame | np.ndarray) -> np.ndarray:
        """(n, outputs) sums of the trees, float64; XGBoost adds them in float32."""
        return np.asarray(self._raw_scores(_design(X)), dtype=np.float64).reshape(len(X), -1)

    @property
    def link(self) -> Link | None:
        """From raw scores to values or probabilities; None: only the library can transform them."""
        link = self.links.get(self.objective_)
        return link if link in self.task_links else None

    @classmethod
    def other_parameters(cls) -> Iterable[str]:
        """Parameters that the constructor of the library's class takes without listing them."""
        return ("early_stopping_rounds",)

    def _encode(self, y: np.ndarray) -> np.ndarray:
        return y.astype(np.float64)

    @abstractmethod
    def _train(
        self, params: Mapping[str, Any], train: TrainingRows, stopping: TrainingRows | None, rounds: int
    ) -> TrainedBooster:
        """The fitted model; without ``stopping`` all trees are fitted."""

    @abstractmethod
    def _read(self, content: bytes) -> Any:
        """The library's model."""

    @abstractmethod
    def _read_objective(self, content: bytes) -> str:
        """The objective in a model file."""

    @abstractmethod
    def _raw_scores(self, values: np.ndarray) -> np.ndarray:
        """(n, outputs) or (n,) raw scores of the library."""

    @abstractmethod
    def _transformed(self, values: np.ndarray) -> np.ndarray:
        """Values or probabilities as the library computes them."""

    def _library_class(self) -> Any:
        """The library's scikit-learn class."""
        from importlib import import_module

        name = self.classifier if isinstance(self, ClassifierMixin) else self.regressor
        return getattr(import_module(self.library), name)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__getstate__().items() if name != "_model"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "model_" in state:
            self._model = self._read(self.model_)


class _Regressor(RegressorMixin, Booster):  # type: ignore[misc]
    task_links = frozenset({"identity", "exp"})

    def predict(self, X: pd.DataFrame | np.ndarray) -> np.ndarray:
        """(n,) values."""
        if self.link is None:
            return np.asarray(self._transformed(_design(X)), dtype=np.float64).reshape(len(X))
        scores = self.raw_scores(X)
        if scores.shape[1] > 1:
            raise ValueError(f"the model has {scores.shape[1]} outputs; a regression has one")
        raw = scores[:, 0]
        return raw if self.link == "identity" else np.array([exponential(score) for score in raw.tolist()])


class _Classifier(ClassifierMixin, Booster):  # type: ignore[misc]
    task_links = frozenset({"expit", "softmax"})
    classes_: np.ndarray

    def _encode(self, y: np.ndarray) -> np.ndarray:
        self.classes_, codes = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError("the rows have one class only")
        return codes

    def predict_proba(self, X: pd.DataFrame | np.ndarray) -> np.ndarray:
        """(n, classes) probabilities in the order of ``classes_``."""
        if self.link is None:
            chances = np.asarray(self._transformed(_design(X)), dtype=np.float64)
            return np.column_stack([1 - chances, chances]) if chances.ndim == 1 else chances
        raw = self.raw_scores(X).tolist()
        shares = [expit(scores[0]) if self.link == "expit" else softmax(scores) for scores in raw]
        return np.array(shares).reshape(len(raw), len(self.classes_))

    def predict(self, X: pd.DataFrame | np.ndarray) -> np.ndarray:
        """(n,) the class with the largest probability; the first one on a tie."""
        labels: np.ndarray = self.classes_[self.predict_proba(X).argmax(axis=1)]
        return labels


class LightGBM(Booster):
    library, file = "lightgbm", "booster.txt"
    regressor, classifier = "LGBMRegressor", "LGBMClassifier"
    unstoppable = frozenset({"dart", "rf", "random_forest"})
    links: ClassVar[Mapping[str, Link]] = {
        **dict.fromkeys(("regression", "regression_l1", "huber", "fair", "quantile", "mape"), "identity"),
        **dict.fromkeys(("poisson", "gamma", "tweedie"), "exp"),
        "binary sigmoid:1": "expit",
        "multiclass": "softmax",
    }

    @classmethod
    def other_parameters(cls) -> Iterable[str]:
        from lightgbm.basic import _ConfigAliases

        return {alias for aliases in _ConfigAliases._get_all_param_aliases().values() for alias in aliases}

    def _train(
        self, params: Mapping[str, Any], train: TrainingRows, stopping: TrainingRows | None, rounds: int
    ) -> TrainedBooster:
        import lightgbm

        watch: dict[str, Any] = {"categorical_feature": list(range(self.categories))} if self.categories else {}
        if stopping:
            watch |= {
                "eval_X": stopping.features,
                "eval_y": stopping.targets,
                "eval_sample_weight": None if stopping.weights is None else [stopping.weights],
                "callbacks": [lightgbm.early_stopping(rounds, verbose=False)],
            }
        model = self._library_class()(**params)
        model.fit(train.features, train.targets, sample_weight=train.weights, **watch)
        trees = model.best_iteration_ if stopping and model.best_iteration_ else model.booster_.current_iteration()
        content = str(model.booster_.model_to_string(num_iteration=trees)).encode()
        return TrainedBooster(content, _fix_trees(params, trees))

    def _read(self, content: bytes) -> Any:
        import lightgbm

        return lightgbm.Booster(model_str=content.decode())

    def _read_objective(self, content: bytes) -> str:
        words = re.search(r"^objective=(.*)$", content.decode(), re.MULTILINE)
        return re.sub(r" num_class:\d+$", "", words[1]) if words else ""

    def _raw_scores(self, values: np.ndarray) -> np.ndarray:
        return np.asarray(self._model.predict(values, raw_score=True, num_threads=1, validate_features=False))

    def _transformed(self, values: np.ndarray) -> np.ndarray:
        return np.asarray(self._model.predict(values, num_threads=1, validate_features=False))


class XGBoost(Booster):
    library, file = "xgboost", "booster.json"
    regressor, classifier = "XGBRegressor", "XGBClassifier"
    unstoppable = frozenset({"dart", "gblinear"})
    links: ClassVar[Mapping[str, Link]] = {
        **{
            f"reg:{name}": "identity" for name in ("squarederror", "absoluteerror", "pseudohubererror", "quantileerror")
        },
        **dict.fromkeys(("count:poisson", "reg:gamma", "reg:tweedie"), "exp"),
        "binary:logistic": "expit",
        "multi:softprob": "softmax",
    }

    @classmethod
    def other_parameters(cls) -> Iterable[str]:
        return _XGBOOST_PARAMS

    def _train(
        self, params: Mapping[str, Any], train: TrainingRows, stopping: TrainingRows | None, rounds: int
    ) -> TrainedBooster:
        watch: dict[str, Any] = {}
        options = dict(params)
        if isinstance(params.get("monotone_constraints"), list):
            options["monotone_constraints"] = tuple(params["monotone_constraints"])
        if self.categories:
            numbers = train.features.shape[1] - self.categories
            options |= {"enable_categorical": True, "feature_types": ["c"] * self.categories + ["q"] * numbers}
        if stopping:
            options["early_stopping_rounds"] = rounds
            watch = {
                "eval_set": [(stopping.features, stopping.targets)],
                "sample_weight_eval_set": None if stopping.weights is None else [stopping.weights],
            }
        model = self._library_class()(**options)
        model.fit(train.features, train.targets, sample_weight=train.weights, verbose=False, **watch)
        booster = model.get_booster()
        if stopping:
            booster = booster[: model.best_iteration + 1]
        return TrainedBooster(bytes(booster.save_raw("json")), _fix_trees(params, booster.num_boosted_rounds()))

    def _read(self, content: bytes) -> Any:
        import xgboost

        model = xgboost.Booster({"nthread": 1})
        model.load_model(bytearray(content))
        return model

    def _read_objective(self, content: bytes) -> str:
        return str(json.loads(content)["learner"]["objective"]["name"])

    def base_margins(self) -> np.ndarray:
        """(outputs,) float32: the raw scores before the first tree, which depend on the objective and ``base_score``.

        They are the raw scores of this model with one tree of a single leaf with the value 0 for each output.
        """
        document = json.loads(self.model_)
        booster = document["learner"]["gradient_booster"]["model"]
        outputs = max(1, int(document["learner"]["learner_model_param"]["num_class"]))
        booster["trees"] = [_zero_tree(booster["trees"][0], at) for at in range(outputs)]
        booster["tree_info"] = list(range(outputs))
        booster["iteration_indptr"] = [0, outputs]
        booster["gbtree_model_param"] |= {"num_trees": str(outputs), "num_parallel_tree": "1"}
        scores = _xgboost_scores(self._read(json.dumps(document).encode()), np.zeros((1, self.n_features_in_)))
        return np.asarray(scores, dtype=np.float32).ravel()

    def _raw_scores(self, values: np.ndarray) -> np.ndarray:
        return _xgboost_scores(self._model, values)

    def _transformed(self, values: np.ndarray) -> np.ndarray:
        return _xgboost_scores(self._model, values, raw=False)


class CatBoost(Booster):
    library, file = "catboost", "booster.json"
    regressor, classifier = "CatBoostRegressor", "CatBoostClassifier"
    links: ClassVar[Mapping[str, Link]] = {
        **dict.fromkeys(("RMSE", "MAE", "Quantile", "MAPE", "Huber", "LogCosh", "Lq", "Expectile"), "identity"),
        **dict.fromkeys(("Poisson", "Tweedie"), "exp"),
        "Logloss": "expit",
        "MultiClass": "softmax",
    }

    def _train(
        self, params: Mapping[str, Any], train: TrainingRows, stopping: TrainingRows | None, rounds: int
    ) -> TrainedBooster:
        import catboost

        positions = list(range(self.categories)) or None
        watch: dict[str, Any] = {"cat_features": positions}
        if stopping:
            features = self._with_integer_codes(stopping.features)
            pool = catboost.Pool(features, stopping.targets, positions, weight=stopping.weights)
            watch |= {"eval_set": pool, "early_stopping_rounds": rounds, "use_best_model": True}
        model = self._library_class()(**params)
        features = self._with_integer_codes(train.features)
        model.fit(features, train.targets, sample_weight=train.weights, **watch)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / self.file
            model.save_model(str(path), format="json")
            content = path.read_bytes()
        fixed = _fix_trees(params, model.tree_count_)
        if "eta" not in params:  # by default it depends on the number of trees
            fixed["learning_rate"] = model.learning_rate_
        return TrainedBooster(content, fixed)

    def _read(self, content: bytes) -> Any:
        """CatBoost parses the numbers of its JSON inexactly, in the last bit; the exact numbers are set afterwards."""
        model = self._library_class()()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / self.file
            path.write_bytes(content)
            model.load_model(str(path), format="json")
        document = json.loads(content)
        if trees := document.get("oblivious_trees"):
            model.set_leaf_values(np.concatenate([tree["leaf_values"] for tree in trees]))
            model.set_scale_and_bias(*document["scale_and_bias"])
        return model

    def _read_objective(self, content: bytes) -> str:
        return str(json.loads(content)["model_info"]["params"]["loss_function"]["type"])

    def _raw_scores(self, values: np.ndarray) -> np.ndarray:
        rows = self._with_integer_codes(values)
        return np.asarray(self._model.predict(rows, prediction_type="RawFormulaVal", thread_count=1))

    def _transformed(self, values: np.ndarray) -> np.ndarray:
        predict = self._model.predict_proba if isinstance(self, ClassifierMixin) else self._model.predict
        return np.asarray(predict(self._with_integer_codes(values), thread_count=1))

    def _with_integer_codes(self, features: pd.DataFrame | np.ndarray) -> pd.DataFrame | np.ndarray:
        """CatBoost accepts no fractions and no NaN as categories."""
        if not self.categories:
            return features
        frame = pd.DataFrame(np.asarray(features), columns=self.feature_names_in_)
        codes = self.feature_names_in_[: self.categories]
        return frame.fillna(dict.fromkeys(codes, -1)).astype(dict.fromkeys(codes, int))


class LightGBMRegressor(_Regressor, LightGBM):
    """LightGBM for a regression."""


class LightGBMClassifier(_Classifier, LightGBM):
    """LightGBM for a classification."""


class XGBoostRegressor(_Regressor, XGBoost):
    """XGBoost for a regression."""


class XGBoostClassifier(_Classifier, XGBoost):
    """XGBoost for a classification."""


class CatBoostRegressor(_Regressor, CatBoost):
    """CatBoost for a regression."""


class CatBoostClassifier(_Classifier, CatBoost):
    """CatBoost for a classification."""


REGRESSORS: Mapping[str, type[Booster]] = {
    booster.library: booster for booster in (LightGBMRegressor, XGBoostRegressor, CatBoostRegressor)
}
CLASSIFIERS: Mapping[str, type[Booster]] = {
    booster.library: booster for booster in (LightGBMClassifier, XGBoostClassifier, CatBoostClassifier)
}


def _design(X: pd.DataFrame | np.ndarray) -> np.ndarray:
    """The features, limited to the range of float32, in which XGBoost and CatBoost compare them."""
    values: np.ndarray = np.asarray(X, dtype=np.float64).clip(-_LARGEST, _LARGEST)
    return values


def _model_file_names(columns: Iterable[Any]) -> pd.Index:
    """Different names of letters, digits and underscores: LightGBM and XGBoost accept no brackets and quotes."""
    names: dict[str, None] = {}
    for column in columns:
        name = plain = re.sub(r"\W+", "_", str(column))
        number = 2
        while name in names:
            name, number = f"{plain}_{number}", number + 1
        names[name] = None
    return pd.Index(list(names), dtype=object)


def _constraint_list(constraints: Mapping[str, int], columns: Iterable[Any]) -> list[int]:
    """The constraint of each column; a column of the table is the feature ``number__<column>``."""
    by_feature = {f"number__{column}": int(sign) for column, sign in constraints.items()}
    return [by_feature.get(str(column), 0) for column in columns]


def _random_rows(codes: np.ndarray, params: Mapping[str, Any], *, classes: bool) -> np.ndarray:
    """Positions of a seeded tenth of the rows, of each class if there are classes."""
    seed = next((params[name] for name in ("random_state", "random_seed", "seed") if name in params), 0)
    order = np.random.default_rng(seed).permutation(len(codes))
    groups = [order[codes[order] == code] for code in np.unique(codes)] if classes else [order]
    return np.sort(np.concatenate([group[: len(group) // STOPPING_SHARE] for group in groups]))


def _latest_rows(codes: np.ndarray, *, classes: bool) -> np.ndarray:
    """Positions of the latest tenth of the rows; of each class, if the older or the latest rows would lack a class."""
    start = len(codes) - len(codes) // STOPPING_SHARE
    present = np.unique(codes) if classes else codes[:0]
    if all(np.isin(present, part).all() for part in (codes[:start], codes[start:])):
        return np.arange(start, len(codes))
    groups = [np.flatnonzero(codes == code) for code in present]
    return np.sort(np.concatenate([group[len(group) - len(group) // STOPPING_SHARE :] for group in groups]))


def _fix_trees(params: Mapping[str, Any], trees: int) -> dict[str, Any]:
    """The parameters with another number of trees."""
    return {name: value for name, value in params.items() if name not in _TREE_PARAMS} | {"n_estimators": trees}


def _xgboost_scores(model: Any, values: np.ndarray, *, raw: bool = True) -> np.ndarray:
    import xgboost

    rows = xgboost.DMatrix(values.astype(np.float32), nthread=1)
    return np.asarray(model.predict(rows, output_margin=raw, validate_features=False))


def _zero_tree(tree: Mapping[str, Any], number: int) -> dict[str, Any]:
    """An XGBoost tree of one leaf with the value 0."""
    lists = {
        name: [type(value[0])(0)] if value and not name.startswith("categories") else []
        for name, value in tree.items()
        if isinstance(value, list)
    }
    leaf = {"id": number, "left_children": [-1], "right_children": [-1], "parents": [2147483647]}
    return {**lists, **leaf, "tree_param": {**tree["tree_param"], "num_nodes": "1"}}
