"""Classifiers are fitted on positions of the contract's classes and predict its labels."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from towline.config import Candidate, PipelineConfig
from towline.data.schema.inference import infer_contract
from towline.training.estimators import build_model
from towline.training.evaluation.metrics import predict

ESTIMATORS = [
    "linear", "forest", "boosting", "sklearn.svm.LinearSVC", "sklearn.neighbors.KNeighborsClassifier",
    "lightgbm.LGBMClassifier", "xgboost.XGBClassifier", "catboost.CatBoostClassifier",
]  # fmt: skip
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
    found = predict(build_model(Candidate(estimator=estimator), contract, 7).fit(features, truth), features, contract)
    kinds = {type(label) for label in contract.classes}
    assert found.labels.shape == (240,)
    assert {type(label) for label in found.labels} == kinds
    assert np.mean(found.labels == truth) > 0.9
    if found.probabilities is not None:
        assert found.probabilities.shape == (240, len(labels))
        likeliest = found.probabilities.argmax(axis=1)
        assert np.mean([contract.classes[place] for place in likeliest] == truth) > 0.9


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_class_that_does_not_occur(estimator: str) -> None:
    """Rows without one of three classes can be fitted; it is never predicted and has the probability 0."""
    rng = np.random.default_rng(4)
    x = rng.normal(size=240)
    frame = pd.DataFrame({"x": x, "y": np.array(["a", "b", "c"])[np.digitize(x, [-0.4, 0.4])]})
    config = PipelineConfig.model_validate({"name": "t", "data": {"source": "x", "target": "y"}})
    contract = infer_contract(frame, config)
    features, truth = contract.features(frame), contract.labels(frame)
    without = truth != "b"
    model = build_model(Candidate(estimator=estimator), contract, 7).fit(features[without], truth[without])
    found = predict(model, features, contract)
    assert set(found.labels) == {"a", "c"}
    assert np.mean(found.labels[without] == truth[without]) > 0.9
    if found.probabilities is not None:
        assert (found.probabilities[:, 1] == 0).all()


def test_unknown_labels_are_rejected() -> None:
    """A label that the contract does not know is reported."""
    frame = pd.DataFrame({"x": np.arange(40.0) % 7, "y": ["a", "b"] * 20})
    config = PipelineConfig.model_validate({"name": "t", "data": {"source": "x", "target": "y"}})
    contract = infer_contract(frame, config)
    with pytest.raises(ValueError, match=r"labels that are no class: \['z'\]"):
        build_model(Candidate(estimator="linear"), contract, 7).fit(
            contract.features(frame), np.array(["a", "z"] * 20, dtype=object)
        )
