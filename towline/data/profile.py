"""What the training rows looked like, small enough to travel with a release."""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import pandas as pd

from towline.config import Kind
from towline.data.schema.contract import Contract

_CELLS = 256
_TOP = 200
_BYTES = 10_000  # of level names


def profile_features(features: pd.DataFrame, contract: Contract) -> dict[str, Any]:
    """The reference that later rows are compared with, of at most 12 KB a column.

    Args:
        features: the canonical frame of ``contract.features``.
        contract: names the columns and their kinds.

    Returns:
        ``{"rows": n, "columns": {name: …}}``, JSON-able. Each column has kind, count (non-null) and nulls. Numeric and
        boolean add mean, sd, min, max, quantiles (0, 1, … 100 %) and grid: counts in 256 equal cells from low to high,
        and those below and above these with their means
        and sds. Category adds levels, counts (of the most frequent) and other.
        Datetime adds min and max. What is undefined is None. Of a column with personal data there are counts alone.
    """
    columns = contract.feature_columns
    kinds = {column.name: column.kind for column in columns}
    return describe_columns(features, kinds, without=[column.name for column in columns if column.pii])


def duplicate_share(features: pd.DataFrame) -> float:
    """The share of rows that are equal to an earlier one."""
    return float(pd.util.hash_pandas_object(features, index=False).duplicated().mean()) if len(features) else 0.0


def describe_columns(table: pd.DataFrame, kinds: Mapping[str, Kind], without: Collection[str] = ()) -> dict[str, Any]:
    """The same of any columns of these kinds; ``without`` are those whose values are left out."""
    columns = {}
    for name, kind in kinds.items():
        values = table[name]
        present = values.dropna()
        facts: dict[str, Any] = {"kind": kind, "count": len(present), "nulls": len(values) - len(present)}
        if name in without:
            facts |= {"levels": int(present.nunique())}
        elif kind == "category":
            facts |= _levels(present)
        elif kind == "datetime":
            ends = (present.min(), present.max()) if len(present) else (None, None)
            facts |= {name: end.isoformat() if end else None for name, end in zip(("min", "max"), ends, strict=True)}
        else:
            facts |= _numbers(present.to_numpy(np.float64))
        columns[name] = facts
    return {"rows": len(table), "columns": columns}


def _levels(present: pd.Series) -> dict[str, Any]:
    # ties by name, so that equal rows in another order give an equal profile
    ranked = sorted(present.value_counts().items(), key=lambda pair: (-pair[1], str(pair[0])))
    counts: dict[str, int] = {}
    size = 0
    for level, count in ranked[:_TOP]:
        size += len(str(level).encode())
        if size > _BYTES:
            break
        counts[str(level)] = int(count)
    return {"levels": len(ranked), "counts": counts, "other": len(present) - sum(counts.values())}


def _numbers(values: np.ndarray) -> dict[str, Any]:
    finite = np.sort(values[np.isfinite(values)])  # sums then do not hang on the order of the rows
    if not len(finite):
        return dict.fromkeys(("mean", "sd", "min", "max", "quantiles", "grid"))
    with np.errstate(over="ignore", invalid="ignore"):
        quantiles = np.quantile(finite, np.linspace(0.0, 1.0, 101))
        facts = {"mean": finite.mean(), "sd": finite.std(), "min": finite.min(), "max": finite.max()}
        # far tails would leave the middle to a few cells: the grid ends half a spread beyond the 1 and 99 % quantiles
        reach = (quantiles[99] - quantiles[1]) / 2
        low, high = max(finite.min(), quantiles[1] - reach), min(finite.max(), quantiles[99] + reach)
        width = high - low
    if width < max(1e-9 * abs(low), 1e-290):  # too narrow to be cut into cells
        pad = max(0.5, 1e-3 * abs(low))
        low, high = low - pad, high + pad
    cells = np.histogram(finite, bins=_CELLS, range=(low, high))[0].tolist() if np.isfinite(width) else None
    grid = {"low": float(low), "high": float(high), "cells": cells}
    for side, beyond in (("below", values[values < low]), ("above", values[values > high])):
        with np.errstate(over="ignore", invalid="ignore"):
            spread = (beyond.mean(), beyond.std()) if len(beyond) else (np.nan, np.nan)
        mean, sd = (float(fact) if np.isfinite(fact) else None for fact in spread)
        grid |= {side: len(beyond), f"{side}_mean": mean, f"{side}_sd": sd}
    return {
        **{name: float(fact) if np.isfinite(fact) else None for name, fact in facts.items()},
        "quantiles": quantiles.tolist() if np.isfinite(quantiles).all() else None,
        "grid": grid if cells else None,
    }
