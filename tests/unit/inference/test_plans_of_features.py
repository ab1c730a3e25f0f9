"""Compiled models with features of the config: one row and a table get equal answers."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from towline.config import build_config
from towline.data.schema.contract import Contract
from towline.data.schema.inference import infer_contract
from towline.data.schema.rows import RowReader
from towline.inference.compiled.compiler import compile_plan
from towline.inference.compiled.plan import Plan
from towline.inference.compiled.scorer import CompiledScorer
from towline.training.estimators import build_candidate

FEATURES = {"product": "a * b", "positive": "a > 0", "red": "colour = 'red'", "per_b": "a / nullif(b, 0)"}
PARTS: list[Any] = ["linear", {"estimator": "boosting", "params": {"max_iter": 20, "early_stopping": False}}]


def make_table() -> pd.DataFrame:
    rng = np.random.default_rng(1)
    table = pd.DataFrame({"a": rng.normal(size=400), "b": rng.integers(-3, 4, 400).astype(float)})
    table["colour"] = rng.choice(["red", "green", "blue"], 400)
    table.loc[::11, "a"], table.loc[::13, "colour"] = np.nan, None
    product = (table["a"] * table["b"]).fillna(0)
    return table.assign(y=product * (table["colour"] == "red") + table["a"].fillna(3))


def compiled(table: pd.DataFrame, candidate: Any, features: dict[str, str]) -> tuple[Plan, Contract]:
    raw = {
        "name": "t", "data": {"source": "x", "target": "y"}, "features": features, "candidates": [*PARTS, candidate],
    }  # fmt: skip
    config = build_config(raw, "test")
    contract = infer_contract(table, config)
    params = {"weights": {"linear": 0.5, "boosting": 0.5}} if candidate == "ensemble" else None
    model = build_candidate(config.candidates[-1], contract, config, params)
    model.fit(contract.features(table), contract.labels(table))
    return compile_plan(model, contract), contract


@pytest.mark.parametrize(
    "candidate",
    [
        {"estimator": "linear", "name": "other"},
        {"estimator": "forest", "params": {"n_estimators": 5}},
        {"estimator": "boosting", "name": "other", "params": {"max_iter": 20, "early_stopping": False}},
        "ensemble",
    ],
    ids=["linear", "forest", "boosting", "ensemble"],
)
def test_one_row_is_predicted_as_in_a_table(candidate: Any) -> None:
    table = make_table()
    plan, contract = compiled(table, candidate, FEATURES)
    reader = RowReader(contract, plan.used_columns)
    scorer = CompiledScorer(plan, contract, reader)
    rows = table.drop(columns="y").astype(object).where(table.drop(columns="y").notna(), None).to_dict("records")
    canonical = reader.read(rows)
    expected = scorer.predict_frame(contract.features(table)).labels.tolist()
    assert [scorer.predict_rows([row]).predictions[0] for row in canonical] == expected
    assert scorer.predict_rows(canonical).predictions == expected
