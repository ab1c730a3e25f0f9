"""A transformer of the project before the preprocessing: kinds of its columns, storage, compilation, errors."""

import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.support.checks import at_least_one
from towline.config import PipelineConfig, build_config
from towline.data.schema.inference import infer_contract
from towline.errors import ConfigError, FitError
from towline.inference.compiled.compiler import NotCompiledError, compile_plan
from towline.training import model_io
from towline.training.estimators import build_candidate
from towline.training.model_selection.config_checks import check_config

MODULE = """
    import pandas as pd
    from sklearn.base import BaseEstimator, TransformerMixin

    class Ratio(TransformerMixin, BaseEstimator):
        def __init__(self, name="ratio"):
            self.name = name
        def fit(self, X, y=None):
            self.mean_ = float(X["b"].mean())
            return self
        def transform(self, X):
            side = X["a"].gt(0).map({True: "left", False: "right"})
            return X.drop(columns="b").assign(**{self.name: X["a"] / X["b"].fillna(self.mean_), "side": side})

    class Halved(Ratio):
        def transform(self, X):
            return X.head(len(X) // 2)

    class Dates(Ratio):
        def transform(self, X):
            return X.assign(day=pd.Timestamp("2026-01-01"))

    class Array(Ratio):
        def transform(self, X):
            return X[["a"]].to_numpy()

    class Unstable(Ratio):
        def transform(self, X):
            return X[["a"]] if len(X) > 50 else X[["c"]]

    class Nothing:
        pass
"""


@pytest.fixture(autouse=True)
def _project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shop_features.py").write_text(textwrap.dedent(MODULE))
    monkeypatch.syspath_prepend(str(tmp_path))


def table(rows: int = 200) -> pd.DataFrame:
    """The target is a / b, which no linear model of a and b predicts."""
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=rows), rng.uniform(0.1, 2, rows)
    return pd.DataFrame({"a": a, "b": b, "c": rng.choice(["x", "y"], rows), "y": a / b})


def config(prepare: object, candidate: object = "linear", **more: Any) -> PipelineConfig:
    raw = {"name": "shop", "data": {"source": "x.csv", "target": "y"}, "candidates": [candidate], "prepare": prepare}
    return build_config(raw | more, "x.yaml")


def fit(prepare: object, candidate: object = "linear") -> tuple[Any, pd.DataFrame, np.ndarray]:
    built, frame = config(prepare, candidate), table()
    contract = infer_contract(frame, built)
    features, labels = contract.features(frame), contract.labels(frame)
    model = build_candidate(built.candidates[0], contract, built).fit(features, labels)
    with pytest.raises(NotCompiledError, match="prepared by code of the project"):
        compile_plan(model, contract)
    return model, features, labels


@pytest.mark.parametrize("candidate", ["linear", "forest", "boosting", "lightgbm"])
def test_new_columns_are_features_and_the_model_is_stored(candidate: str, tmp_path: Path) -> None:
    """Each estimator uses them; the stored model gives equal predictions and needs only the trust of the config."""
    model, features, labels = fit("shop_features:Ratio", candidate)
    predicted = model.predict(features)
    if candidate == "linear":
        assert np.abs(predicted - labels).mean() < 0.05 * np.abs(labels).mean()
    model_io.save_model(model, tmp_path / "model.skops", "candidates")
    trusted = model_io.trusted_packages(config("shop_features.Ratio"))
    assert (model_io.load_model(tmp_path / "model.skops", trusted).predict(features) == predicted).all()


def test_kinds_of_columns() -> None:
    """Unchanged columns keep their kind, removed ones are left out, new numbers and texts are encoded."""
    model, *_ = fit({"transformer": "shop_features.Ratio", "params": {"name": "share"}})
    columns = model.named_steps["prepare"].columns_
    assert {name: names for name, _, names in columns.transformers_ if name != "remainder"} == {
        "number": ["a", "share"],
        "category": ["c", "side"],
    }


@pytest.mark.parametrize(
    ("transformer", "what"),
    [
        ("Halved", "Halved returned 100 rows for 200"),
        ("Dates", "the new column 'day' has dates"),
        ("Array", "Array returned ndarray"),
    ],
)
def test_unusable_outputs_are_errors(transformer: str, what: str) -> None:
    with pytest.raises(FitError, match=what) as error:
        fit(f"shop_features.{transformer}")
    assert error.value.where == "prepare"
    assert error.value.remedy


def test_other_columns_than_in_training_are_an_error() -> None:
    model, features, _ = fit("shop_features.Unstable")
    with pytest.raises(FitError, match=r"Unstable.transform returned columns that differ from those in training"):
        model.predict(features.head(10))


def test_wrong_names_are_errors_before_anything_is_fitted() -> None:
    """Each error says where, and its remedy names something that exists."""
    cases = {
        "shop_features.Ratios": ("has no class 'Ratios'", "did you mean Ratio?"),
        "shop_features.Nothing": ("has no fit, transform and get_params", "TransformerMixin"),
        "numpy.array": ("the config does not trust numpy", "package: {trusted: [numpy]}"),
    }
    for path, (what, remedy) in at_least_one(cases.items()):
        with pytest.raises(ConfigError, match=what) as error:
            check_config(config(path, task="regression"))
        assert (error.value.where, remedy in error.value.remedy) == ("prepare.transformer", True)
    with pytest.raises(ConfigError, match="cannot be created: TypeError") as error:
        check_config(config({"transformer": "shop_features.Ratio", "params": {"wide": 1}}, task="regression"))
    assert error.value.where == "prepare.params"


def test_native_categories_are_refused_beside_a_transformer() -> None:
    """The transformer decides the columns, so the positions of the categories are not known."""
    candidate = {"estimator": "boosting", "params": {"native_categories": True}}
    with pytest.raises(ConfigError, match="cannot be split natively") as error:
        fit({"transformer": "shop_features.Ratio"}, candidate)
    assert error.value.where == "candidates.boosting.params.native_categories"
