"""The profile of a table: histograms, quantiles and category counts of its columns, stored in each release.

Drift detection compares later rows with the profile of the training rows. It has at most 12 KB a column.
"""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import pandas as pd

from towline.config import Kind, finite_or_none
from towline.data.schema.contract import Contract
from towline.data.text_features import text_lengths

CELLS = 256
MAX_LEVELS, MAX_LEVEL_BYTES = 200, 10_000  # of a category: number of levels, and length of all their names


def profile_features(features: pd.DataFrame, contract: Contract) -> dict[str, Any]:
    """The profile of the features.

    Args:
        features: the canonical frame of ``contract.features``.
        contract: names the columns and their kinds.

    Returns:
        ``{"rows": n, "columns": {name: …}}``, which can be written as JSON. Each column has kind, count (of values that
        are not null) and nulls. Numeric and boolean columns add mean, sd, min, max, quantiles (0, 1, … 100 %) and grid:
        counts in 256 equal cells from low to high, and count, mean and sd of the values below and above; texts add the
        same of their lengths. Categories add levels, counts (of the most frequent levels) and other. Datetimes add min
        and max. Undefined values are None.
        Columns with personal data have counts only.
    """
    columns = contract.input_columns
    kinds = {column.name: column.kind for column in columns}
    return describe_columns(features, kinds, without=[column.name for column in columns if column.pii])


def duplicate_share(features: pd.DataFrame) -> float:
    """The share of rows that are equal to an earlier one."""
    return float(pd.util.hash_pandas_object(features, index=False).duplicated().mean()) if len(features) else 0.0


def describe_columns(table: pd.DataFrame, kinds: Mapping[str, Kind], without: Collection[str] = ()) -> dict[str, Any]:
    """The profile of columns of these kinds; ``without`` are columns whose values are left out."""
    columns = {}
    for name, kind in kinds.items():
        values = table[name]
        present = values.dropna()
        column: dict[str, Any] = {"kind": kind, "count": len(present), "nulls": len(values) - len(present)}
        if name in without:
            column |= {"levels": int(present.nunique())}
        elif kind == "category":
            column |= _describe_levels(present)
        elif kind == "text":
            column |= _describe_numbers(text_lengths(present))
        elif kind == "datetime":
            ends = {"min": present.min(), "max": present.max()} if len(present) else {}
            column |= {"min": None, "max": None} | {key: end.isoformat() for key, end in ends.items()}
        else:
            column |= _describe_numbers(present.to_numpy(np.float64))
        columns[name] = column
    return {"rows": len(table), "columns": columns}


def _describe_levels(present: pd.Series) -> dict[str, Any]:
    # levels with equal counts are ordered by name, so that the order of the rows has no effect
    ranked = sorted(present.value_counts().items(), key=lambda pair: (-pair[1], str(pair[0])))
    counts: dict[str, int] = {}
    size = 0
    for level, count in ranked[:MAX_LEVELS]:
        size += len(str(level).encode())
        if size > MAX_LEVEL_BYTES:
            break
        counts[str(level)] = int(count)
    return {"levels": len(ranked), "counts": counts, "other": len(present) - sum(counts.values())}


@np.errstate(over="ignore", invalid="ignore")
def _describe_numbers(values: np.ndarray) -> dict[str, Any]:
    finite = np.sort(values[np.isfinite(values)])  # sorted, so that sums do not depend on the order of the rows
    if not len(finite):
        return dict.fromkeys(("mean", "sd", "min", "max", "quantiles", "grid"))
    quantiles = np.quantile(finite, np.linspace(0.0, 1.0, 101))
    moments = {"mean": finite.mean(), "sd": finite.std(), "min": finite.min(), "max": finite.max()}
    # the grid ends half a range beyond the 1 % and 99 % quantiles: with far outliers most cells would be empty
    margin = (quantiles[99] - quantiles[1]) / 2
    low, high = max(finite.min(), quantiles[1] - margin), min(finite.max(), quantiles[99] + margin)
    if high - low < max(1e-9 * abs(low), 1e-290):  # too narrow for cells
        pad = max(0.5, 1e-3 * abs(low))
        low, high = low - pad, high + pad
    cells = np.histogram(finite, bins=CELLS, range=(low, high))[0].tolist() if np.isfinite(high - low) else None
    grid = {"low": float(low), "high": float(high), "cells": cells}
    for side, beyond in (("below", values[values < low]), ("above", values[values > high])):
        mean, sd = (beyond.mean(), beyond.std()) if len(beyond) else (np.nan, np.nan)
        grid |= {side: len(beyond), f"{side}_mean": finite_or_none(mean), f"{side}_sd": finite_or_none(sd)}
    return {
        **{name: finite_or_none(value) for name, value in moments.items()},
        "quantiles": quantiles.tolist() if np.isfinite(quantiles).all() else None,
        "grid": grid if cells else None,
    }
