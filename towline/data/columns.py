"""Whole columns in canonical form: ``values`` says what one value means, this does it for arrays."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from towline.config import Kind
from towline.data.values import blank, instant, level, number

_OFFENDERS = 5


def iso_times(values: pd.Series) -> pd.Series:
    """ISO 8601 strings and date objects as datetime64[us] in naive UTC; NaT where a value is neither, or null."""
    if values.dtype.kind == "M":
        naive = values.dt.tz_convert("UTC").dt.tz_localize(None) if getattr(values.dt, "tz", None) else values
        return naive.astype("datetime64[us]")
    times = np.array([instant(value) for value in values.astype(object)], dtype="datetime64[us]")
    return pd.Series(times, dtype="datetime64[us]")


def examples(values: Iterable[Any], rows: Sequence[int] | np.ndarray, *, shown: bool = True) -> str:
    """Up to five offending values, or only their rows, with row numbers (from 1, headers not counted)."""
    picked = {int(row): "" for row in rows[:_OFFENDERS]}
    at = values.iloc if isinstance(values, pd.Series) else list(values)
    told = [f"row {row + 1}: {repr(at[row])[:60]}" if shown else f"row {row + 1}" for row in picked]
    return ", ".join(told) + (f" and {len(rows) - len(told)} more" if len(rows) > len(told) else "")


def convert(values: pd.Series, kind: Kind) -> tuple[np.ndarray, np.ndarray]:
    """Canonical values (n,), and the positions of those that do not fit their kind.

    Numeric and boolean are float64 (NaN for null), category is object of str (NaN for null), datetime is
    datetime64[us].
    """
    if isinstance(values.dtype, pd.CategoricalDtype) or getattr(values.dtype, "na_value", None) is pd.NA:
        values = values.astype(object)
    if kind == "category":
        return _texts(values)
    code = values.dtype.kind
    if kind == "datetime":
        numeric = code in "biufcm"
        times = np.full(len(values), "NaT", dtype="datetime64[us]") if numeric else iso_times(values).to_numpy()
        return times, _misfits(values, np.isnat(times))
    if code in "biuf":
        floats = values.to_numpy(np.float64)
        bad = np.empty(0, dtype=np.int64)
    else:
        floats = np.array([number(value, kind == "boolean") for value in values.astype(object)], dtype=np.float64)
        bad = _misfits(values, np.isnan(floats))
    if kind == "boolean":
        bad = np.union1d(bad, np.flatnonzero(~np.isnan(floats) & (floats != 0.0) & (floats != 1.0)))
    return floats, bad


def _misfits(values: pd.Series, unread: np.ndarray) -> np.ndarray:
    """Positions that could not be read and held something."""
    if not unread.any():
        return np.empty(0, dtype=np.int64)
    places = np.flatnonzero(unread & values.notna().to_numpy(bool))
    held = [not blank(value) for value in values.iloc[places]]
    misfits: np.ndarray = places[np.array(held, dtype=bool)]
    return misfits


def _texts(values: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    if values.dtype == object:
        # not by unique value: 1, 1.0 and True are equal to a hash table
        texts = np.empty(len(values), dtype=object)
        texts[:] = [_name(value) for value in values]
    else:
        codes, uniques = pd.factorize(values)
        lookup = np.empty(len(uniques) + 1, dtype=object)
        lookup[:] = [*(_name(value) for value in uniques), math.nan]
        texts = lookup[codes]
    return texts, _misfits(values, pd.isna(texts))


def _name(value: Any) -> Any:
    name = level(value)
    return math.nan if name is None else name
