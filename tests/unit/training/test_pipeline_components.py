"""Classifiers are fitted on positions of the contract's classes and predict its labels."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.compose import ColumnTransformer
from sklearn.model_selection import KFold
from sklearn.preprocessing import OneHotEncoder, StandardScaler, TargetEncoder

from towline.config import Candidate, PipelineConfig
from towline.data.schema.inference import infer_contract
from towline.training.boosting.histogram import BoostingClassifier
from towline.training.estimators import build_model, pipeline_of
from towline.training.evaluation.metrics import predict
from towline.training.pipeline_components import CappedTargetEncoder, DenseColumns, fit_model

ESTIMATORS = [
    "linear", "forest", "boosting", "sklearn.svm.LinearSVC", "sklearn.neighbors.KNeighborsClassifier",
    "lightgbm.LGBMClassifier", "xgboost.XGBClassifier", "catboost.CatBoostClassifier",
]  # fmt: skip
PARAMS = {"boosting": {"max_iter": 30}, "forest": {"n_estimators": 30}}
LABELS = {
    "boolean": [True, False],
    "text": ["no", "yes"],
    "three texts": ["high", "low", "middle"],
    "integers": [3, 7],
    "three integers": [-1, 10, 200],
    "whole floats": [0.0, 1.0],
}


@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_predictions_are_labels_of_the_contract(estimator: str, labels: list[Any]) -> None:
    """Predictions are (n,), equal to a class of the contract and of the same type; most are correct."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=240)
    places = np.digitize(x, [0.0] if len(labels) == 2 else [-0.4, 0.4])
    frame = pd.DataFrame({"x": x, "y": pd.Series([labels[place] for place in places])})
    config = PipelineConfig.model_validate({"name": "t", "data": {"source": "x", "target": "y"}})
    contract = infer_contract(frame, config)
    features, truth = contract.features(frame), contract.labels(frame)
    candidate = Candidate(estimator=estimator, params=PARAMS.get(estimator, {}))
    predictions = predict(build_model(candidate, contract, 7).fit(features, truth), features, contract)
    kinds = {type(label) for label in contract.classes}
    assert predictions.labels.shape == (240,)
    assert {type(label) for label in predictions.labels} == kinds
    assert np.mean(predictions.labels == truth) > 0.9
    if predictions.probabilities is not None:
        assert predictions.probabilities.shape == (240, len(labels))
        likeliest = predictions.probabilities.argmax(axis=1)
        assert np.mean([contract.classes[place] for place in likeliest] == truth) > 0.9


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("labels", [None, ["no", "yes"]], ids=["regression", "binary"])
def test_a_forest_does_not_depend_on_the_number_of_processors(labels: list[str] | None, weighted: bool) -> None:
    """The final fit uses all processors and gives the bits of a fit on one processor; predictions use one."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(400, 3))
    y = x[:, 0] + rng.normal(size=400)
    frame = pd.DataFrame(x, columns=["a", "b", "c"]).assign(y=y if labels is None else np.take(labels, y > 0))
    config = PipelineConfig.model_validate({"name": "t", "data": {"source": "x", "target": "y"}})
    contract = infer_contract(frame, config)
    features, truth = contract.features(frame), contract.labels(frame)
    candidate, weights = Candidate(estimator="forest"), rng.random(400) if weighted else None
    fitted = fit_model(build_model(candidate, contract, 7), features, truth, weights)
    options = {"estimate__sample_weight": weights} if weighted else {}
    single = build_model(candidate, contract, 7).fit(features, truth, **options)
    assert pipeline_of(fitted).named_steps["estimate"].n_jobs == 1
    first, second = (predict(model, features, contract) for model in (fitted, single))
    assert np.array_equal(first.labels, second.labels)
    assert np.array_equal(np.asarray(first.probabilities), np.asarray(second.probabilities))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_class_that_does_not_occur(estimator: str) -> None:
    """Rows without one of three classes can be fitted; it is never predicted, with the probability 0."""
    rng = np.random.default_rng(4)
    x = rng.normal(size=240)
    frame = pd.DataFrame({"x": x, "y": np.array(["a", "b", "c"])[np.digitize(x, [-0.4, 0.4])]})
    config = PipelineConfig.model_validate({"name": "t", "data": {"source": "x", "target": "y"}})
    contract = infer_contract(frame, config)
    features, truth = contract.features(frame), contract.labels(frame)
    without = truth != "b"
    candidate = Candidate(estimator=estimator, params=PARAMS.get(estimator, {}))
    model = build_model(candidate, contract, 7).fit(features[without], truth[without])
    predictions = predict(model, features, contract)
    assert set(predictions.labels) == {"a", "c"}
    assert np.mean(predictions.labels[without] == truth[without]) > 0.9
    if predictions.probabilities is not None:
        assert (predictions.probabilities[:, 1] == 0).all()


def test_unknown_labels_are_rejected() -> None:
    """The error names the label that is not in the contract."""
    frame = pd.DataFrame({"x": np.arange(40.0) % 7, "y": ["a", "b"] * 20})
    config = PipelineConfig.model_validate({"name": "t", "data": {"source": "x", "target": "y"}})
    contract = infer_contract(frame, config)
    with pytest.raises(ValueError, match=r"labels that are not classes: \['z'\]"):
        build_model(Candidate(estimator="linear"), contract, 7).fit(
            contract.features(frame), np.array(["a", "z"] * 20, dtype=object)
        )


def test_boosting_of_classes_with_few_rows() -> None:
    """A class with fewer rows than folds does not fail the fit; weights of rows are used."""
    rng = np.random.default_rng(2)
    x = rng.normal(size=(300, 2))
    y = np.where(x[:, 0] > 0, 1, 0)
    y[:3] = 2
    params = {"max_iter": 60, "early_stopping": True, "random_state": 0}
    assert set(BoostingClassifier(**params).fit(x, y).classes_) == {0, 1, 2}
    binary = np.minimum(y, 1)
    weights = np.where(x[:, 1] > 0, 1.0, 1e-6)
    flipped = np.where(x[:, 1] > 0, binary, 1 - binary)
    fitted = BoostingClassifier(**params).fit(x, flipped, sample_weight=weights)
    assert (fitted.predict(x) == binary)[x[:, 1] > 0.1].mean() > 0.95


@pytest.mark.parametrize("counts", [(200, 99, 1), (3,) * 20])
def test_boosting_where_a_tenth_cannot_have_each_class(counts: tuple[int, ...]) -> None:
    """A class of one row, and more classes than a tenth of the rows."""
    rng = np.random.default_rng(4)
    y = np.repeat(np.arange(len(counts)), counts)
    x = rng.normal(size=(len(y), 3))
    params = {"max_iter": 60, "early_stopping": True, "n_iter_no_change": 5, "random_state": 0}
    fitted = BoostingClassifier(**params).fit(x, y, sample_weight=np.ones(len(y)))
    assert list(fitted.classes_) == list(range(len(counts)))
    assert fitted.n_iter_ < 60
    assert (BoostingClassifier(**params).fit(x, y).predict_proba(x) == fitted.predict_proba(x)).all()


def test_dense_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    """The matrix is that of scikit-learn's ColumnTransformer, to the last bit; blocks are converted in parts."""
    rng = np.random.default_rng(6)
    frame = pd.DataFrame({"x": rng.normal(size=50), "n": rng.integers(0, 9, 50), "kind": rng.choice(list("abc"), 50)})
    blocks = [
        ("one-hot", OneHotEncoder(), ["kind", "n"]),
        ("scaled", StandardScaler(), ["x"]),
        ("plain", "passthrough", ["n"]),
    ]
    matrix = ColumnTransformer(blocks, sparse_threshold=0).fit_transform(frame)
    monkeypatch.setattr(DenseColumns, "ROWS", 7)
    columns = DenseColumns(blocks)
    np.testing.assert_array_equal(columns.fit_transform(frame), matrix, strict=True)
    np.testing.assert_array_equal(columns.transform(frame[30:]), matrix[30:], strict=True)


def test_probabilities_cost_no_second_prediction(monkeypatch: pytest.MonkeyPatch) -> None:
    """An ensemble needs the probabilities of its parts, not their labels, which would cost a second prediction."""
    x = np.random.default_rng(8).normal(size=240)
    frame = pd.DataFrame({"x": x, "y": np.where(x > 0.3, "yes", "no")})
    config = PipelineConfig.model_validate({"name": "t", "data": {"source": "x", "target": "y"}})
    contract = infer_contract(frame, config)
    features = contract.features(frame)
    model = build_model(Candidate(estimator="boosting", params={"max_iter": 5}), contract, 7)
    model.fit(features, contract.labels(frame))
    expected = model.predictions(features).probabilities
    monkeypatch.setattr(BoostingClassifier, "predict", None)
    np.testing.assert_array_equal(model.predict_proba(features), expected)


@pytest.mark.parametrize("classes", [3, 99, 100, 150, 400])
def test_categories_have_a_column_for_each_of_the_most_frequent_classes(classes: int) -> None:
    """Up to 100 classes, the columns are those of scikit-learn; of more classes, the rarer ones share one column."""
    rng = np.random.default_rng(0)
    y = np.concatenate([np.arange(classes).repeat(2), rng.integers(0, min(classes, 60), 1_000)])
    levels = pd.DataFrame({"level": [f"l{place % 40}" for place in y + rng.integers(0, 2, len(y))]})
    folds = KFold(5, shuffle=True, random_state=0)
    encoded = CappedTargetEncoder(target_type="auto", cv=folds).fit_transform(levels, y)
    every = TargetEncoder(target_type="auto", cv=folds).fit_transform(levels, y)
    if classes <= 100:
        assert np.array_equal(encoded, every)
    else:
        frequent = np.sort(np.argsort(-np.bincount(y), kind="stable")[:100])
        assert encoded.shape == (len(y), 101)
        assert np.array_equal(encoded[:, 1:], every[:, frequent])
