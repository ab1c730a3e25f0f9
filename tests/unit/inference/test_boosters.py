"""LightGBM, XGBoost and CatBoost as candidates: the compiled plan equals the library's predictions to the last bit."""

import json
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import pandas as pd
import pytest
import xgboost

from tests.support.odd_table import fitted, odd_table
from towline.config import Candidate, build_config
from towline.data.schema.contract import Contract
from towline.data.schema.inference import infer_contract
from towline.data.schema.rows import RowReader
from towline.errors import ConfigError, ReleaseError
from towline.extras import BOOSTING_LIBRARIES
from towline.inference.compiled import codec, parity
from towline.inference.compiled.parity import certify
from towline.inference.compiled.scorer import CompiledScorer
from towline.training import model_io
from towline.training.boosting.libraries import Booster
from towline.training.estimators import build_model, default_search_space, pipeline_of
from towline.training.model_selection.tuning import check_space

DEEP = {"lightgbm": {"num_leaves": 200, "min_child_samples": 2}, "xgboost": {"max_depth": 9}, "catboost": {"depth": 7}}
TARGETS = ("value", "sold", "grade")
NAMES = ["a[b]<c", "größe", "x y", "1", '{"q":1}', "x_y", "x,y"]


def booster_of(model: Any) -> Booster:
    booster = pipeline_of(model)[-1]
    assert isinstance(booster, Booster)
    return booster


def numbers_table(rows: int = 400) -> pd.DataFrame:
    """Columns with names that the libraries refuse; the target depends on the first two."""
    rng = np.random.default_rng(4)
    values = rng.normal(size=(rows, len(NAMES)))
    values[rng.random(values.shape) < 0.1] = np.nan
    table = pd.DataFrame(values, columns=NAMES)
    present = table.fillna(0.0)
    return table.assign(y=present["a[b]<c"] - present["größe"] ** 3 + rng.normal(0, 1, rows))


def fit_numbers(
    table: pd.DataFrame, library: str, time: str | None = None, **candidate: Any
) -> tuple[Any, Contract, pd.DataFrame]:
    data = {"source": "x", "target": "y", **({"time": time, "columns": {time: "ignore"}} if time else {})}
    raw = {"name": "odd", "data": data, "candidates": [{"estimator": library, **candidate}]}
    config = build_config(raw, "test")
    contract = infer_contract(table, config)
    features = contract.features(table)
    model = build_model(config.candidates[0], contract, 7)
    return model.fit(features, contract.labels(table)), contract, features


@pytest.mark.parametrize(
    ("target", "size"),
    [("value", "default"), *((target, "small") for target in TARGETS), ("value", "deep"), ("grade", "deep")],
)
@pytest.mark.parametrize("library", BOOSTING_LIBRARIES)
def test_the_plan_is_equal_to_the_library(
    library: str, target: str, size: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params: dict[str, Any] = {} if size == "default" else {"n_estimators": 12}
    params |= DEEP[library] if size == "deep" else {}
    check_plan(library, target, params, tmp_path, monkeypatch)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("library", ["lightgbm", "xgboost"])
def test_the_plan_with_native_categories_is_equal_to_the_library(
    library: str, target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_plan(library, target, {"n_estimators": 30, "native_categories": True}, tmp_path, monkeypatch)


def check_plan(
    library: str, target: str, params: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compares training rows and rows around the thresholds; single rows and many rows must get equal predictions."""
    monkeypatch.setattr(parity, "GENERATED_ROWS", 1_000)
    model, contract, features = fitted(target, library, 0.4 if target == "sold" else None, **params)
    certificate, file = certify(model, contract, {"train": features}, seed=1)
    assert certificate.compiled, certificate.reason
    assert certificate.identical == 1.0
    assert f"as {library} does, to the last bit" in str(certificate)

    (tmp_path / "plan.npz").write_bytes(file)
    reader = RowReader(contract)
    scorer = CompiledScorer(codec.read_plan(tmp_path / "plan.npz"), contract, reader)
    rows = reader.read(odd_table().head(40).astype(object).to_dict("records"))
    single = [scorer.predict_rows([row]) for row in rows]
    frame = scorer.predict_frame(features.head(40))
    assert [answer.predictions[0] for answer in single] == frame.labels.tolist()
    if frame.probabilities is not None:
        assert [(answer.probabilities or [])[0] for answer in single] == frame.probabilities.tolist()


def towns_table() -> pd.DataFrame:
    """The slope of ``x`` differs by town, independently of the towns' means; 5 % of the towns are null."""
    rng = np.random.default_rng(3)
    town, x = rng.integers(0, 40, 1_500), rng.normal(size=1_500)
    names = np.where(rng.random(1_500) < 0.05, None, np.char.add("t", town.astype(str)).astype(object))
    y = 2 * rng.permutation(np.linspace(-1, 1, 40))[town] * x + rng.normal(0, 0.2, 1_500)
    return pd.DataFrame({"x": x, "town": names, "y": y})


@pytest.mark.parametrize("library", BOOSTING_LIBRARIES)
def test_native_categories(library: str, tmp_path: Path) -> None:
    """Trees separate towns that the target encoding cannot; nulls and unknown towns get a prediction."""
    params = {"n_estimators": 60, "monotone_constraints": {"x": 0}}
    table, new = towns_table().head(1_000), towns_table().tail(500)
    errors = []
    for native in (False, True):
        model, contract, features = fit_numbers(table, library, params={**params, "native_categories": native})
        certificate, _ = certify(model, contract, {"train": features}, seed=1)
        if library == "catboost" and native:
            assert "statistics of categories" in certificate.reason
        else:
            assert certificate.identical == 1.0, certificate.reason
        rows = contract.features(new)
        errors.append(float(np.abs(model.predict(rows) - contract.labels(new)).mean()))
        model_io.save_model(model, tmp_path / "model.skops")
        again = model_io.load_model(tmp_path / "model.skops")
        unknown = rows.assign(town="elsewhere")
        np.testing.assert_array_equal(again.predict(unknown), model.predict(unknown))
    assert errors[1] < (0.95 if library == "catboost" else 0.8) * errors[0]


@pytest.mark.parametrize("library", BOOSTING_LIBRARIES)
def test_names_that_the_library_does_not_accept(library: str) -> None:
    """Each feature has a unique name in the model file, without brackets and quotes."""
    model, contract, features = fit_numbers(numbers_table(), library, params={"n_estimators": 10})
    assert certify(model, contract, {"train": features}, seed=1)[0].identical == 1.0
    names = booster_of(model).feature_names_in_.tolist()
    assert len(set(names)) == len(NAMES)
    assert names[0] == "number__a_b_c"
    assert "number__größe" in names


@pytest.mark.parametrize("library", BOOSTING_LIBRARIES)
def test_predictions_are_those_of_the_library(library: str) -> None:
    """The library, opened on the model file, gives the same values."""
    model, _, features = fit_numbers(numbers_table(), library, params={"n_estimators": 30})
    booster = booster_of(model)
    design = pipeline_of(model)[:-1].transform(features).to_numpy()
    if library == "lightgbm":
        expected = lightgbm.Booster(model_str=booster.model_.decode()).predict(design)
    elif library == "xgboost":
        opened = xgboost.XGBRegressor()
        opened.load_model(bytearray(booster.model_))
        expected = opened.predict(pd.DataFrame(design, columns=booster.feature_names_in_))
    else:
        expected = np.full(len(design), json.loads(booster.model_)["scale_and_bias"][1][0])
        for tree in json.loads(booster.model_)["oblivious_trees"]:
            bits = [
                np.nan_to_num(design[:, split["float_feature_index"]].astype(np.float32), nan=-np.inf) > split["border"]
                for split in tree["splits"]
            ]
            expected += np.array(tree["leaf_values"])[sum(bit * 2**place for place, bit in enumerate(bits))]
        expected = expected.round(12)
    predicted = model.predict(features)
    np.testing.assert_array_equal(predicted.round(12) if library == "catboost" else predicted, expected)


@pytest.mark.parametrize(
    ("library", "params", "reason"),
    [
        ("lightgbm", {"linear_tree": True}, "linear models"),
        ("lightgbm", {"zero_as_missing": True}, "zeros as missing"),
        ("lightgbm", {"boosting": "rf", "bagging_freq": 1, "bagging_fraction": 0.5}, "averages its trees"),
        ("lightgbm", {"objective": "cross_entropy"}, "the objective 'cross_entropy'"),
        ("xgboost", {"booster": "dart", "rate_drop": 0.5}, "the booster 'dart'"),
        ("xgboost", {"booster": "gblinear"}, "the booster 'gblinear'"),
        ("xgboost", {"objective": "reg:logistic"}, "the objective 'reg:logistic'"),
        ("xgboost", {"objective": "binary:logistic"}, "the objective 'binary:logistic'"),
        ("catboost", {"grow_policy": "Lossguide"}, "not symmetric"),
        ("catboost", {"loss_function": "LogLinQuantile"}, "the objective 'LogLinQuantile'"),
    ],
)
def test_a_model_without_an_exact_plan_is_not_compiled(
    library: str, params: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    """The certificate has the reason; the stored model predicts with the library."""
    table = numbers_table(200)
    if "logistic" in reason or "entropy" in reason:
        table["y"] = 1 / (1 + np.exp(-table["y"]))
    model, contract, features = fit_numbers(table, library, params={"n_estimators": 5, **params})
    certificate, file = certify(model, contract, {"train": features}, seed=1)
    assert not certificate.compiled
    assert reason in certificate.reason
    assert file == b""
    model_io.save_model(model, tmp_path / "model.skops")
    again = model_io.load_model(tmp_path / "model.skops")
    np.testing.assert_array_equal(again.predict(features), model.predict(features))


@pytest.mark.parametrize(
    ("library", "params"),
    [
        ("lightgbm", {"objective": "poisson"}),
        ("lightgbm", {"objective": "l1"}),
        ("lightgbm", {"boosting": "dart"}),
        ("xgboost", {"objective": "count:poisson"}),
        ("xgboost", {"objective": "reg:absoluteerror"}),
        ("xgboost", {"objective": "reg:tweedie", "tweedie_variance_power": 1.3, "num_parallel_tree": 2}),
        ("catboost", {"loss_function": "Poisson"}),
        ("catboost", {"loss_function": "MAE", "nan_mode": "Max"}),
    ],
)
def test_other_objectives(library: str, params: dict[str, Any]) -> None:
    """Objectives with a log link, and those of another error, are compiled."""
    table = numbers_table()
    table["y"] = np.exp(table["y"].clip(-5, 3))
    model, contract, features = fit_numbers(table, library, params={"n_estimators": 15, **params})
    certificate, _ = certify(model, contract, {"train": features}, seed=1)
    assert certificate.identical == 1.0, certificate.reason
    assert np.corrcoef(model.predict(features), table["y"])[0, 1] > 0.2


@pytest.mark.parametrize("library", BOOSTING_LIBRARIES)
def test_class_weights_raise_the_probability_of_rare_classes(library: str) -> None:
    """Also of three classes, for which XGBoost itself has no class weights."""
    table = numbers_table(600)
    table["y"] = np.select([table["y"] > 2, table["y"] < -3], ["high", "low"], "middle")
    shares = []
    for weights in (None, "balanced"):
        model, contract, features = fit_numbers(table, library, params={"n_estimators": 10}, weights=weights)
        shares.append(model.predict_proba(features)[:, contract.classes.index("low")].mean())
        assert certify(model, contract, {"train": features}, seed=1)[0].identical == 1.0
    assert shares[1] > 1.2 * shares[0]


@pytest.mark.parametrize("library", BOOSTING_LIBRARIES)
def test_sample_weights_are_used(library: str) -> None:
    """Rows of weight zero do not affect the trees or early stopping."""
    table = numbers_table()
    model, contract, features = fit_numbers(table, library, params={"n_estimators": 10})
    labels, weights = contract.labels(table).copy(), (np.arange(len(table)) % 2).astype(float)
    before = model.fit(features, labels, estimate__sample_weight=weights).predict(features)
    labels[weights == 0] += 100
    after = model.fit(features, labels, estimate__sample_weight=weights).predict(features)
    np.testing.assert_allclose(after, before, atol=1e-6)


@pytest.mark.parametrize("library", BOOSTING_LIBRARIES)
def test_training_stops_early(library: str) -> None:
    """On noise after few of 500 trees; a small table gets 100 trees; a number in the config is the maximum."""
    rng = np.random.default_rng(2)
    table = pd.DataFrame({"x": rng.normal(size=400), "z": rng.normal(size=400), "y": rng.normal(size=400)})
    assert trees(fit_numbers(table, library)[0]) < 100
    assert trees(fit_numbers(table.head(60), library)[0]) == 100
    assert trees(fit_numbers(table, library, params={"n_estimators": 3})[0]) <= 3
    unstopped = {"n_estimators": 120, "early_stopping_rounds": 0}
    assert trees(fit_numbers(table, library, params=unstopped)[0]) == 120


def daily_table() -> pd.DataFrame:
    """20 rows a day, ordered by time. The mean of the target differs by day and depends on a feature of that day."""
    rng = np.random.default_rng(5)
    day = np.repeat(np.arange(30), 20)
    at = pd.Timestamp("2024-01-01") + pd.to_timedelta(day * 24 + np.tile(np.arange(20), 30), unit="h")
    level, weather = rng.normal(size=30), rng.normal(size=30)
    x = rng.normal(size=600)
    return pd.DataFrame({"x": x, "weather": weather[day], "at": at, "y": x + 3 * level[day] + rng.normal(0, 0.2, 600)})


@pytest.mark.parametrize("library", BOOSTING_LIBRARIES)
def test_with_a_time_training_stops_by_the_latest_rows(library: str) -> None:
    """A random tenth has rows of the same days as the training rows, so it does not detect overfitting to days."""
    table = daily_table()
    by_time, at_random = fit_numbers(table, library, "at")[0], fit_numbers(table.drop(columns="at"), library)[0]
    assert 2 * trees(by_time) < trees(at_random)


@pytest.mark.parametrize("library", BOOSTING_LIBRARIES)
def test_the_latest_rows_are_in_the_model(library: str) -> None:
    """After early stopping, as many trees are fitted on all rows, so the latest rows are in the model too."""
    table = daily_table()
    table["y"], table["state"] = table["x"], (np.arange(600) >= 540).astype(float)
    table.loc[table["state"] == 1, "y"] += 50
    constant = {"learning_rate": 0.3, "n_estimators": 40}
    model, _, features = fit_numbers(table, library, "at", params=constant)
    again = fit_numbers(table, library, "at", params=constant)[0]
    gain = model.predict(features)[540:].mean() - model.predict(features)[:540].mean()
    assert gain > 10
    assert (again.predict(features) == model.predict(features)).all()


@pytest.mark.parametrize("late", [10, 3])
@pytest.mark.parametrize("library", BOOSTING_LIBRARIES)
def test_a_class_of_the_latest_rows_only(library: str, late: int) -> None:
    """It does not fail the fit: the model has a probability for it."""
    table = daily_table()
    table["y"] = np.where(np.arange(600) < 600 - late, np.where(table["x"] > 0, "high", "low"), "late")
    table.loc[600 - late :, "x"] = 90.0
    params = {"n_estimators": 20, "learning_rate": 0.3}
    model, _, features = fit_numbers(table, library, "at", params=params)
    assert set(model.predict(features)) >= {"high", "low"}
    assert model.predict_proba(features).shape == (600, 3)


def trees(model: Any) -> int:
    booster = booster_of(model)
    if booster.library == "lightgbm":
        return booster.model_.count(b"\nTree=")
    document = json.loads(booster.model_)
    if booster.library == "catboost":
        return len(document["oblivious_trees"])
    return len(document["learner"]["gradient_booster"]["model"]["trees"])


@pytest.mark.parametrize("library", BOOSTING_LIBRARIES)
def test_monotone_constraints_by_column(library: str) -> None:
    """The prediction never decreases with the first column, and never increases with the second."""
    constraints = {"a[b]<c": 1, "größe": -1}
    params = {"n_estimators": 30, "monotone_constraints": constraints}
    model, _, features = fit_numbers(numbers_table(), library, params=params)
    for column, sign in constraints.items():
        rows = features.iloc[[5] * 50].reset_index(drop=True).assign(**{column: np.linspace(-3, 3, 50)})
        steps = np.diff(model.predict(rows)) * sign
        assert steps.min() >= -1e-6
        assert steps.max() > 0


@pytest.mark.parametrize(
    ("params", "message", "remedy"),
    [
        ({"monotone_constraints": {"grosse": 1}}, "'grosse' is not a feature of numbers", "größe"),
        ({"monotone_constraints": {"größe": "up"}}, "'up' is not a constraint", "write 1, 0 or -1"),
        ({"n_estimator": 5}, "has no parameter 'n_estimator'", "n_estimators"),
    ],
)
@pytest.mark.parametrize("library", BOOSTING_LIBRARIES)
def test_wrong_parameters_are_refused(library: str, params: dict[str, Any], message: str, remedy: str) -> None:
    """Before the fit: LightGBM and XGBoost themselves ignore unknown parameters."""
    with pytest.raises(ConfigError, match=message) as caught:
        fit_numbers(numbers_table(), library, params=params)
    assert remedy in caught.value.remedy


@pytest.mark.parametrize("library", BOOSTING_LIBRARIES)
def test_the_default_search_space_can_be_fitted(library: str) -> None:
    """With the lowest value of each parameter, for a regression and for a classification; the plan stays exact."""
    for task in ("regression", "binary"):
        table = numbers_table(200)
        table["y"] = table["y"] if task == "regression" else table["y"] > 0
        space = default_search_space(Candidate(estimator=library), task)  # type: ignore[arg-type]
        assert len(space) >= 3
        params = {**check_space(space, "search.space"), "n_estimators": 3}
        model, contract, features = fit_numbers(table, library, params=params)
        assert certify(model, contract, {"train": features}, seed=1)[0].identical == 1.0


def test_several_outputs_are_refused() -> None:
    """XGBoost fits a quantile regression for each value of ``quantile_alpha``; a model of towline has one output."""
    params = {"n_estimators": 3, "objective": "reg:quantileerror", "quantile_alpha": [0.1, 0.9]}
    model, _, features = fit_numbers(numbers_table(200), "xgboost", params=params)
    with pytest.raises(ValueError, match="2 outputs"):
        model.predict(features)


@pytest.mark.parametrize("library", BOOSTING_LIBRARIES)
def test_a_stored_model_needs_no_trust(library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It predicts the same; without its library the error names the package to install."""
    model, _, features = fitted("sold", library, n_estimators=5)
    path = tmp_path / "model.skops"
    model_io.save_model(model, path)
    assert model_io.untrusted_types(path) == ()
    assert library in model_io.packages_of(model_io.skops_untrusted_types(path))
    np.testing.assert_array_equal(model_io.load_model(path).predict_proba(features), model.predict_proba(features))

    def without_library(self: Booster, content: bytes) -> Any:
        raise ModuleNotFoundError(f"No module named {library!r}", name=library)

    monkeypatch.setattr(type(booster_of(model)), "_read", without_library)
    with pytest.raises(ReleaseError, match=f"needs {library}, which is not installed") as caught:
        model_io.load_model(path)
    assert caught.value.remedy == f"pip install 'towline[{library}]'"
