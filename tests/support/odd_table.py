"""A table with nulls, many levels, unusual names, times, texts and huge numbers, and models that are fitted on it."""

import copy
import json
from functools import cache
from typing import Any

import numpy as np
import pandas as pd

from towline.config import build_config
from towline.data.schema.contract import Contract
from towline.data.schema.inference import infer_contract
from towline.training.estimators import build_candidate
from towline.training.evaluation.predictions import Threshold

ROWS = 900
PARTS = [  # of an ensemble
    "linear",
    {"estimator": "forest", "params": {"n_estimators": 9}},
    {"estimator": "boosting", "params": {"max_iter": 9, "early_stopping": False, "max_leaf_nodes": 31}},
]


def remark(rng: np.random.Generator, size: float) -> str:
    """One to nine words, some of which depend on the size; with capital letters, accents and punctuation."""
    words = ["Größe", "ÉTÉ", "naïve", "x-1", "日本語", "a", "of", "the", "e\u0301"]
    chosen = [*rng.choice(words, rng.integers(1, 9)), "very LARGE!" if size > 1 else "(rather small)"]
    return " ".join(rng.permutation(chosen))


def odd_table() -> pd.DataFrame:
    """Nulls in every kind of column, 40 levels, unusual names, times over two years, whole and huge numbers."""
    return _make_table().copy()


@cache
def _make_table() -> pd.DataFrame:
    rng = np.random.default_rng(3)
    holes = rng.random((ROWS, 4)) < 0.1
    size = rng.normal(0, 3, ROWS)
    colour = rng.choice(["rot", "grün", "it's", ""], ROWS)
    town = np.array([f"t{k}" for k in rng.integers(0, 40, ROWS)], dtype=object)
    at = pd.Series(pd.date_range("2023-01-01", periods=ROWS, freq="19h"))
    score = size + 2 * (colour == "rot") + at.dt.hour.to_numpy() / 12 + rng.normal(0, 0.5, ROWS)
    return pd.DataFrame(
        {
            "größe (m)": np.where(holes[:, 0], np.nan, size),
            "whole": rng.integers(-5, 6, ROWS),
            "huge": rng.lognormal(20, 4, ROWS),
            "colour": np.where(holes[:, 1], None, colour),
            "town": np.where(holes[:, 2], None, town),
            "flag": np.where(rng.random(ROWS) < 0.05, None, rng.random(ROWS) < 0.3),
            "at": at.where(~holes[:, 3]),
            "born": pd.Series(rng.choice(pd.date_range("1931-05-06T07:08:09.000001", "2024-01-01"), ROWS)),
            "note": np.where(holes[:, 1], None, [remark(rng, value) for value in size]),
            "value": score,
            "sold": np.where(score > 1, "ja", "nein"),
            "grade": pd.cut(score, [-np.inf, -1, 0, 2, np.inf], labels=[1, 2, 3, 5]).astype(int),
        }
    )


def fitted(
    target: str, estimator: str, threshold: Threshold | None = None, **params: Any
) -> tuple[Any, Contract, pd.DataFrame]:
    """A fitted model on this table, its contract, and the canonical features; fitted once for a session."""
    model, contract, features = _fit(target, estimator, json.dumps(params))
    model = copy.deepcopy(model)
    if threshold is not None:
        model.set_params(threshold=threshold)
    return model, contract, features.copy()


@cache
def _fit(target: str, estimator: str, params_text: str) -> tuple[Any, Contract, pd.DataFrame]:
    params = json.loads(params_text)
    table = odd_table().drop(columns={"value", "sold", "grade"} - {target})
    table = table.dropna(subset=[target]).reset_index(drop=True)
    data = {
        "source": "x",
        "target": target,
        "columns": {"at": "datetime", "town": "category", "flag": "boolean", "note": "text"},
    }
    candidates: list[Any] = [{"estimator": estimator, "params": params}]
    if estimator == "ensemble":
        candidates = [*PARTS, estimator]
    raw = {"name": "odd", "data": data, "candidates": candidates}
    config = build_config(raw | ({"task": "multiclass"} if target == "grade" else {}), "test")
    contract = infer_contract(table, config)
    model = build_candidate(config.candidates[-1], contract, config, params)
    features = contract.features(table)
    model.fit(features, contract.labels(table))
    return model, contract, features
