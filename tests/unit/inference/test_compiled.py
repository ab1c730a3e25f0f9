"""The compiled scorer gives the predictions of scikit-learn."""

import dataclasses
import io
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.support.odd_table import ROWS, fitted, odd_table
from towline.config import Candidate, build_config
from towline.data.schema.inference import infer_contract
from towline.data.schema.rows import RowReader
from towline.errors import DataError, ReleaseError
from towline.inference.compiled import codec, parity
from towline.inference.compiled.compiler import NotCompiledError, compile_plan
from towline.inference.compiled.parity import certify
from towline.inference.compiled.plan import BitmaskForest, LinearSum, Plan, TraversedForest, WeightedMean
from towline.inference.compiled.scorer import CompiledScorer
from towline.training.estimators import build_model
from towline.training.evaluation.metrics import predict
from towline.training.evaluation.predictions import Threshold

WEIGHTS = {"weights": {"linear": 0.34, "forest": 0.22, "boosting": 0.44}}
THRESHOLDS = (0.7, 0.2, 0.1, 0.4)
CASES = [
    ("value", "linear", None, {}, LinearSum),
    ("value", "boosting", None, {"max_iter": 40}, BitmaskForest),
    ("value", "boosting", None, {"max_iter": 15, "max_leaf_nodes": 200, "min_samples_leaf": 2}, TraversedForest),
    ("value", "boosting", None, {"max_iter": 40, "native_categories": True}, BitmaskForest),
    ("sold", "boosting", 0.61, {"max_iter": 40, "native_categories": True}, BitmaskForest),
    ("grade", "boosting", THRESHOLDS, {"max_iter": 12, "native_categories": True}, BitmaskForest),
    ("value", "forest", None, {"n_estimators": 20}, TraversedForest),
    ("value", "sklearn.ensemble.ExtraTreesRegressor", None, {"n_estimators": 10}, TraversedForest),
    ("value", "sklearn.linear_model.Lasso", None, {"alpha": 0.01}, LinearSum),
    ("sold", "linear", 0.37, {}, LinearSum),
    ("sold", "linear", None, {}, LinearSum),
    ("sold", "boosting", 0.61, {"max_iter": 40}, BitmaskForest),
    ("sold", "boosting", None, {"max_iter": 10, "early_stopping": False}, BitmaskForest),
    ("sold", "forest", 0.5, {"n_estimators": 20}, TraversedForest),
    ("grade", "linear", None, {}, LinearSum),
    ("grade", "linear", THRESHOLDS, {}, LinearSum),
    ("grade", "boosting", None, {"max_iter": 12}, BitmaskForest),
    ("grade", "boosting", THRESHOLDS, {"max_iter": 12}, BitmaskForest),
    ("grade", "forest", THRESHOLDS, {"n_estimators": 20}, TraversedForest),
    ("value", "ensemble", None, WEIGHTS, WeightedMean),
    ("sold", "ensemble", 0.37, WEIGHTS, WeightedMean),
    ("sold", "ensemble", None, {"weights": {"linear": 0.5, "boosting": 0.5}}, WeightedMean),
    ("grade", "ensemble", None, WEIGHTS, WeightedMean),
    ("grade", "ensemble", THRESHOLDS, WEIGHTS, WeightedMean),
]


def name_of(case: object) -> str | None:
    return case if isinstance(case, str) else getattr(case, "__name__", None)


@pytest.mark.parametrize(("target", "estimator", "threshold", "params", "head"), CASES, ids=name_of)
def test_the_compiled_scorer_agrees_with_scikit_learn(
    monkeypatch: pytest.MonkeyPatch,
    target: str,
    estimator: str,
    threshold: Threshold | None,
    params: dict[str, Any],
    head: type,
) -> None:
    """Training rows and generated rows are compared: trees to the last bit, sums within 1e-12."""
    monkeypatch.setattr(parity, "GENERATED_ROWS", 1_000)
    model, contract, features = fitted(target, estimator, threshold, **params)
    certificate, file = certify(model, contract, {"train": features}, seed=1)
    assert certificate.compiled, certificate.reason
    assert file
    assert certificate.rows == {"train": ROWS, "generated": 1_000}
    assert certificate.scorer.startswith(codec.KINDS[head])
    assert certificate.wrong_labels == 0
    assert certificate.largest_difference <= 1e-12
    if head not in (LinearSum, WeightedMean) and target == "value":
        assert certificate.identical == 1.0


def test_large_trees_with_native_categories_are_not_compiled() -> None:
    """scikit-learn then predicts, as for other models that cannot be compiled."""
    large = {"max_iter": 40, "max_leaf_nodes": 90, "min_samples_leaf": 5, "native_categories": True}
    model, contract, _ = fitted("value", "boosting", **large)
    with pytest.raises(NotCompiledError, match="split categories natively"):
        compile_plan(model, contract)


def test_the_certificate_of_an_ensemble_names_its_parts() -> None:
    model, contract, features = fitted("value", "ensemble", **WEIGHTS)
    certificate, _ = certify(model, contract, {"train": features.head(20)}, seed=1)
    assert certificate.scorer == "ensemble of linear, traversed forest, bitmask forest"


def test_an_ensemble_with_another_part_is_not_compiled() -> None:
    """The reason names the part."""
    model, contract, _ = fitted("value", "ensemble", **WEIGHTS)
    model.parts[1] = ("nearest", fitted("value", "sklearn.neighbors.KNeighborsRegressor")[0])
    with pytest.raises(NotCompiledError, match="its part nearest: KNeighborsRegressor"):
        compile_plan(model, contract)


def test_plans_of_earlier_formats_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Later formats are refused."""
    model, contract, features = fitted("value", "boosting", max_iter=9)
    plan, path = compile_plan(model, contract), tmp_path / "plan.npz"
    columns = [features[column.name].to_numpy() for column in contract.feature_columns]
    for number in (codec.FORMAT - 1, codec.FORMAT + 1):
        with monkeypatch.context() as patch, path.open("wb") as file:
            patch.setattr(codec, "FORMAT", number)
            codec.write_plan(plan, file)
        if number < codec.FORMAT:
            assert (
                codec.read_plan(path).predict_columns(columns)[0].tolist() == plan.predict_columns(columns)[0].tolist()
            )
        else:
            with pytest.raises(ReleaseError, match=f"format {number}"):
                codec.read_plan(path)


@pytest.mark.slow
def test_a_linear_model_of_many_large_terms_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its prediction is small compared with its terms, and so are the rounding errors."""
    monkeypatch.setattr(parity, "GENERATED_ROWS", 500)
    rng = np.random.default_rng(5)
    table = pd.DataFrame(rng.normal(size=(400, 800)) * 1e6, columns=[f"x{number}" for number in range(800)])
    table["y"] = table["x0"] - table["x1"] + rng.normal(size=400)
    config = build_config({"name": "t", "data": {"source": "x", "target": "y"}}, "test")
    contract = infer_contract(table, config)
    features = contract.features(table)
    model = build_model(Candidate(estimator="linear"), contract, 7).fit(features, contract.labels(table))
    certificate, _ = certify(model, contract, {"train": features}, seed=1)
    assert certificate.compiled, certificate.reason


@pytest.mark.parametrize(("target", "estimator", "threshold", "params", "head"), CASES, ids=name_of)
def test_single_rows_and_many_rows_get_equal_predictions(
    tmp_path: Path, target: str, estimator: str, threshold: Threshold | None, params: dict[str, Any], head: type
) -> None:
    """Predictions are equal to the last bit, from dicts and a frame, before and after writing the plan."""
    model, contract, features = fitted(target, estimator, threshold, **params)
    written = io.BytesIO()
    plan = compile_plan(model, contract)
    assert isinstance(plan.scorer, head)
    codec.write_plan(plan, written)
    (tmp_path / "plan.npz").write_bytes(written.getvalue())
    read = codec.read_plan(tmp_path / "plan.npz")
    again = io.BytesIO()
    codec.write_plan(read, again)
    assert again.getvalue() == written.getvalue()
    reader = RowReader(contract)
    rows = reader.read(odd_table().head(60).astype(object).to_dict("records"))
    scorer = CompiledScorer(read, contract, reader)
    together = scorer.predict_rows(rows)
    single = [scorer.predict_rows([row]) for row in rows]
    frame = scorer.predict_frame(features.head(60))
    assert together.predictions == [answer.predictions[0] for answer in single] == frame.labels.tolist()
    if together.probabilities is not None:
        assert frame.probabilities is not None
        assert together.probabilities == [answer.probabilities[0] for answer in single if answer.probabilities]
        assert together.probabilities == frame.probabilities.tolist()
        assert {type(label) for label in together.predictions} == {type(contract.classes[0])}


def test_a_poisson_loss_predicts_through_an_exponential() -> None:
    table = odd_table().drop(columns=["sold", "grade"])
    table["value"] = np.exp(table["value"].clip(upper=3)).round()
    raw = {
        "name": "odd", "data": {"source": "x", "target": "value", "columns": {"town": "category"}},
        "candidates": [{"estimator": "boosting", "params": {"loss": "poisson", "max_iter": 20}}], "task": "regression",
    }  # fmt: skip
    config = build_config(raw, "test")
    contract = infer_contract(table, config)
    features = contract.features(table)
    model = build_model(config.candidates[0], contract, 7).fit(features, contract.labels(table))
    certificate, _ = certify(model, contract, {"train": features}, 1)
    assert certificate.compiled
    assert certificate.rows == {"train": ROWS, "generated": 5_000}
    assert (predict(model, features, contract).labels > 0).all()


def test_an_unknown_estimator_is_not_compiled() -> None:
    """The certificate names it, and no plan is written."""
    model, contract, features = fitted("value", "sklearn.svm.SVR")
    with pytest.raises(NotCompiledError, match="SVR"):
        compile_plan(model, contract)
    certificate, file = certify(model, contract, {"train": features}, 1)
    assert not certificate.compiled
    assert "SVR" in certificate.reason
    assert file == b""


def test_a_wrong_plan_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """A leaf with a difference of a millionth is detected."""
    model, contract, features = fitted("value", "boosting", max_iter=20)

    def spoilt(*arguments: Any) -> Plan:
        plan = compile_plan(*arguments)
        assert isinstance(plan.scorer, BitmaskForest)
        leaves = plan.scorer.leaves.copy()
        leaves[3, 0] += 1e-6
        return dataclasses.replace(plan, scorer=BitmaskForest(plan.scorer.start, plan.scorer.masks, leaves))

    monkeypatch.setattr(parity, "compile_plan", spoilt)
    certificate, file = certify(model, contract, {"train": features}, 1)
    assert not certificate.compiled
    assert "values differ by up to" in certificate.reason
    assert 1e-12 < certificate.largest_difference < 2e-6
    assert file == b""


def test_a_number_that_scikit_learn_refuses_is_refused() -> None:
    """A forest rounds to float32; a larger number is an error in both."""
    model, contract, features = fitted("value", "forest", n_estimators=5)
    scorer = CompiledScorer(compile_plan(model, contract), contract, RowReader(contract))
    features.loc[3, "huge"] = 1e60
    with pytest.raises(ValueError, match="float32"):
        predict(model, features, contract)
    with pytest.raises(DataError, match="too large"):
        scorer.predict_frame(features)


def test_an_invalid_plan_file_is_refused(tmp_path: Path) -> None:
    """The error names the file."""
    for content in (b"", b"PK\x03\x04nonsense"):
        (tmp_path / "plan.npz").write_bytes(content)
        with pytest.raises(ReleaseError, match=r"compiled scorer cannot be read") as error:
            codec.read_plan(tmp_path / "plan.npz")
        assert "plan.npz" in error.value.where
