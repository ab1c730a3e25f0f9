"""Rows with edge cases of a model: nulls, unseen categories, values at and next to the thresholds of its trees."""

from typing import Any

import numpy as np
import pandas as pd

from towline.data.schema.contract import Contract


def generate(table: pd.DataFrame, contract: Contract, model: Any, count: int, seed: int = 1) -> list[dict[str, Any]]:
    """JSON rows. Each value is as likely another row's as one made to be hard.

    A made number stands on a threshold, on the nearest float64 or float32 above or below one, far out, or is null; a
    made category is unseen, empty or null; a made time is any minute of forty years, or null.
    """
    rng = np.random.default_rng(seed)
    cuts = thresholds(model)
    columns = {}
    for column in contract.feature_columns:
        usual = table[column.name].sample(count, replace=True, random_state=rng.integers(2**32)).to_numpy()
        if column.kind == "datetime":
            usual = pd.to_datetime(pd.Series(usual)).dt.strftime("%Y-%m-%dT%H:%M:%S").to_numpy(dtype=object)
            minutes = pd.Timestamp("1990-01-01") + pd.to_timedelta(rng.integers(0, 40 * 525_960, count), unit="min")
            made = minutes.strftime("%Y-%m-%dT%H:%M:%S").to_numpy(dtype=object)
        elif column.kind == "category":
            made = rng.choice(np.array(["never seen", "?", "Ünseen", None], dtype=object), count)
        else:
            on = np.asarray(cuts.get(column.name) or usual[:1], dtype=np.float64)[
                rng.integers(0, len(cuts.get(column.name) or [0]), count)
            ]
            adjacent = np.nextafter(on, rng.choice([-np.inf, np.inf], count))
            narrow = np.nextafter(on.astype(np.float32), rng.choice([-np.inf, np.inf], count).astype(np.float32))
            far = rng.normal(0, 1, count) * 10.0 ** rng.integers(-6, 9, count)
            made = np.choose(rng.integers(0, 5, count), [on, adjacent, narrow.astype(np.float64), far, np.nan])
        values = np.where(rng.random(count) < 0.5, usual.astype(object), made.astype(object))
        columns[column.name] = [None if pd.isna(value) else value for value in values]
        columns[column.name] = [v.item() if isinstance(v, np.generic) else v for v in columns[column.name]]
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def thresholds(model: Any) -> dict[str, list[float]]:
    """The thresholds of a pipeline's trees in its numeric columns; none for other estimators."""
    pipeline = getattr(model, "estimator_", model)
    prepare, estimator = pipeline.named_steps["prepare"], pipeline.named_steps["estimate"]
    if hasattr(estimator, "_predictors"):
        nodes = [tree.nodes for trees in estimator._predictors for tree in trees]
        pairs = [(part["feature_idx"], part["num_threshold"]) for part in (n[n["is_leaf"] == 0] for n in nodes)]
    elif hasattr(estimator, "estimators_") and hasattr(estimator.estimators_[0], "tree_"):
        trees = [member.tree_ for member in estimator.estimators_]
        pairs = [(tree.feature[tree.feature >= 0], tree.threshold[tree.feature >= 0]) for tree in trees]
    else:
        return {}
    features, values = (np.concatenate(part) for part in zip(*pairs, strict=True))
    cuts = {}
    for name, _, columns in prepare.transformers_:
        if name == "number":
            first = prepare.output_indices_[name].start
            cuts = {
                column: np.unique(values[features == first + position]).tolist()
                for position, column in enumerate(columns)
            }
    return cuts
