"""Compiled models with features of the config: single rows and tables get equal predictions."""

import random
from bisect import bisect_left
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.support.expressions import draw_expression
from towline.config import build_config
from towline.data.schema.contract import Contract
from towline.data.schema.inference import infer_contract
from towline.data.schema.rows import RowReader
from towline.expressions.compilation import Expression
from towline.expressions.syntax import ExpressionError, list_columns, parse
from towline.inference.compiled.compiler import compile_plan
from towline.inference.compiled.fusion import FusedForest, fuse_features
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


def test_features_of_one_column_are_not_computed_for_a_request() -> None:
    """Nulls, unknown levels and numbers at the steps get equal predictions; a product is still computed."""
    features = {
        "red": "colour = 'red'", "start": "substring(colour, 1, 1)", "missing": "a is null or a between 1 and 2",
        "low": "case when a < -0.5 then 1 when a = 0 then 2 end", "group": "bucket(b, -1, 1)", "product": "a * b",
    }  # fmt: skip
    table = make_table()
    params = {"max_iter": 60, "early_stopping": False, "min_samples_leaf": 5}
    plan, contract = compiled(table, {"estimator": "boosting", "name": "other", "params": params}, features)
    fused = fuse_features(plan, contract)
    assert isinstance(fused.scorer, FusedForest)
    product = [column.name for column in contract.canonical_columns].index("product")
    assert fused.scorer.features
    assert product not in fused.scorer.features
    steps = [-0.5, 0.0, -0.0, 1.0, 2.0, -1.0, 3.7, None]
    near = [edge for step in steps if step is not None for edge in (np.nextafter(step, 9), np.nextafter(step, -9))]
    rows = [
        {"a": a, "b": b, "colour": colour}
        for a in (*steps, *map(float, near))
        for b in (-1.0, 0.5, 1.0, None)
        for colour in ("red", "green", "rouge", None)
    ]
    reader = RowReader(contract, plan.used_columns, fused.scorer.features)
    scorer = CompiledScorer(fused, contract, reader)
    computed = reader.read(rows)
    expected = plan.predict_rows(RowReader(contract, plan.used_columns).read(rows))
    values = [value for value, _ in expected]
    assert [scorer.predict_rows([row]).predictions[0] for row in computed] == values
    assert scorer.predict_rows(computed[:30]).predictions == values[:30]
    assert scorer.predict_rows(computed).predictions == values
    assert len(set(values)) > 20


def test_features_of_personal_data_are_computed_before_pseudonyms() -> None:
    table = make_table()
    raw = {
        "name": "t", "data": {"source": "x", "target": "y"}, "privacy": {"pii": ["colour"]}, "candidates": [PARTS[1]],
        "features": {"red": "colour = 'red'"},
    }  # fmt: skip
    config = build_config(raw, "test")
    contract = infer_contract(table, config)
    model = build_candidate(config.candidates[0], contract, config).fit(
        contract.features(table), contract.labels(table)
    )
    plan = compile_plan(model, contract)
    assert 3 in plan.used_columns
    assert fuse_features(plan, contract) is plan


def test_random_step_functions_are_constant_between_their_steps() -> None:
    """Each number has the value of the largest number below the next step, which a fused table stores."""
    rng, types, checked = random.Random(3), {"a": ("number", 0)}, 0
    while checked < 20:
        text = draw_expression(rng, rng.choice(["boolean", "number", "text"]), 2).text
        if [name.name for name in list_columns(parse(text))] != ["a"]:
            continue
        try:
            expression = Expression(text, types)  # type: ignore[arg-type]
        except ExpressionError:  # always null
            continue
        steps = expression.find_steps()
        if not steps:
            continue
        checked += 1
        cuts = sorted({*(np.nextafter(step, -np.inf) for step in steps), *steps})
        numbers = [rng.uniform(-20, 20), rng.uniform(-1e300, 1e300), *(step + rng.uniform(-1, 1) for step in steps)]
        for number in numbers + [-step for step in steps]:
            place = bisect_left(cuts, number)
            same = cuts[place] if place < len(cuts) else np.nextafter(cuts[-1], np.inf)
            assert repr(expression.evaluate([number])) == repr(expression.evaluate([same])), (text, number)
