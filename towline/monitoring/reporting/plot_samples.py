"""Samples for plots: rows drawn from a release's profile, and a sample of current rows, with the same columns."""

import datetime as dt
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from towline.data.schema.values import LARGEST, category_name, parse_boolean, parse_number

if TYPE_CHECKING:
    import pyarrow as pa

MAX_ROWS = 5_000
MAX_COLUMNS = 50
MAX_CATEGORIES = 30  # of a column that keep their name
OTHER = "(other)"
MIN_VALUES = 10  # of a column in each sample
MAX_TEXT = 60  # characters of a name or category


class SamplePair(NamedTuple):
    """Two samples with the same columns, float64 or object (strings), with a default index.

    Attributes:
        numbers, categories: names of the columns, as ``plain_text`` writes them.
        excluded: why a column is not among them.
    """

    reference: pd.DataFrame
    current: pd.DataFrame
    numbers: list[str]
    categories: list[str]
    excluded: dict[str, str]

    @property
    def has_columns(self) -> bool:
        return bool(self.numbers or self.categories)


def sample_profile(profile: Mapping[str, Any]) -> pd.DataFrame:
    """``MAX_ROWS`` rows whose columns are distributed as in the profile, each column independently of the others.

    Args:
        profile: ``profile.json`` of a release.

    Returns:
        (rows, columns) of float64 and strings, with the profile's share of nulls. Datetimes, numbers without a grid,
        and personal data are left out.
    """
    rows, generator = MAX_ROWS, np.random.default_rng(0)  # the order of the values is random, their frequencies are not
    columns = {}
    for name, column in profile["columns"].items():
        nulls = round(rows * column["nulls"] / max(1, column["count"] + column["nulls"]))
        if "counts" in column:
            values: np.ndarray = np.full(rows, None, dtype=object)
            values[nulls:] = _draw_categories(column, rows - nulls)
        elif column.get("grid") is not None:
            values = np.full(rows, np.nan)
            values[nulls:] = _draw_numbers(column, rows - nulls)
        else:
            continue
        columns[name] = generator.permutation(values)
    return pd.DataFrame(columns)


def _draw_categories(column: Mapping[str, Any], rows: int) -> np.ndarray:
    names = np.array([*column["counts"], OTHER], dtype=object)
    counts = np.array([*column["counts"].values(), column["other"]], dtype=np.float64)
    if not counts.sum():
        return np.full(rows, None, dtype=object)
    cells, _ = _spread_ranks(counts, rows)
    categories: np.ndarray = names[cells]
    return categories


def _draw_numbers(column: Mapping[str, Any], rows: int) -> np.ndarray:
    """Evenly within each cell; outside the grid evenly around the mean there."""
    if column["min"] == column["max"]:
        return np.full(rows, column["min"])
    grid = column["grid"]
    low, high, cells = grid["low"], grid["high"], len(grid["cells"])
    below = low if grid.get("below_mean") is None else 2 * grid["below_mean"] - low
    above = high if grid.get("above_mean") is None else 2 * grid["above_mean"] - high
    edges = np.array([below, *np.linspace(low, high, cells + 1), above])
    counts = np.array([grid["below"], *grid["cells"], grid["above"]], dtype=np.float64)
    cell, offset = _spread_ranks(counts, rows)
    values: np.ndarray = edges[cell] + offset * (edges[cell + 1] - edges[cell])
    quantiles = column.get("quantiles") or [0.5]
    return np.round(values) if all(float(quantile).is_integer() for quantile in quantiles) else values


def _spread_ranks(counts: np.ndarray, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """The cell of each of ``rows`` evenly spread ranks, and its offset in the cell (0 to 1)."""
    ends = np.cumsum(counts)
    ranks = (np.arange(rows) + 0.5) / max(1, rows) * ends[-1]
    cells = np.searchsorted(ends, ranks, side="right")
    return cells, (ranks - (ends[cells] - counts[cells])) / counts[cells]


def sample_log(folder: Path, version: int, start: dt.datetime | None, end: dt.datetime | None) -> pd.DataFrame:
    """A sample of the logged rows of one version and window.

    Args:
        folder: the model's prediction log.
        version: version that made the predictions.
        start: start of the window.
        end: end of the window, not included.

    Returns:
        The columns that are logged unmodified, under their own names, and ``prediction``.

    Raises:
        DataError: a part of the log cannot be read.
        TransientError: the folder cannot be written, which its lock needs.
    """
    import pyarrow.compute as pc

    from towline.prediction_log import parquet_store

    def selected() -> Iterator["pa.Table"]:
        for _, rows in parquet_store.iter_tables(folder, start, end):
            names = [field.name for field in rows.schema if _is_unmodified(field)]
            yield rows.filter(pc.equal(rows["version"], version)).select(names)

    if not folder.is_dir():
        return pd.DataFrame()
    with parquet_store.lock_store(folder):
        rows = sample_batches(selected())
    return rows.rename(columns=lambda name: str(name).removeprefix(parquet_store.INPUT_PREFIX))


def sample_batches(batches: Iterable["pa.Table | pa.RecordBatch"]) -> pd.DataFrame:
    """A uniform sample of at most 5,000 rows, in constant memory."""
    import pyarrow as pa

    generator = np.random.default_rng(0)
    sample: list[pa.Table] = []
    priorities = np.empty(0)
    for batch in batches:
        if batch.num_rows:
            rows = batch if isinstance(batch, pa.Table) else pa.Table.from_batches([batch])
            priorities = np.concatenate([priorities, generator.random(len(rows))])
            chosen = np.sort(np.argsort(priorities, kind="stable")[:MAX_ROWS])
            combined = pa.concat_tables([*sample, rows], promote_options="permissive")
            sample, priorities = [combined.take(pa.array(chosen))], priorities[chosen]
    return sample[0].to_pandas() if sample else pd.DataFrame()


def _is_unmodified(field: Any) -> bool:
    return field.name == "prediction" or (field.metadata or {}).get(b"kept") == b"keep"


def pair_samples(reference: pd.DataFrame, current: pd.DataFrame, first: Iterable[str] = ()) -> SamplePair:
    """Gives two samples the same columns and types.

    Each has at most 5,000 rows and 50 columns. Values that are infinite, of the wrong type or too large become null.
    Excluded are columns of one sample only, duplicated columns, datetimes, and columns with hardly any values.

    Args:
        reference: decides which columns are numeric.
        current: current rows, of any types.
        first: names that come first if there are too many columns.
    """
    reference, current = _limit_rows(reference), _limit_rows(current)
    in_reference, in_current = list(map(str, reference.columns)), list(map(str, current.columns))
    excluded: dict[str, str] = {}
    pairs: dict[str, _ColumnPair] = {}
    for name in _order_names([*in_reference, *in_current], first):
        if why := _exclusion_reason(in_reference.count(name), in_current.count(name), len(pairs)):
            excluded[plain_text(name)] = why
            continue
        columns = reference.iloc[:, in_reference.index(name)], current.iloc[:, in_current.index(name)]
        pair = _pair_columns(*columns)
        if isinstance(pair, str) or plain_text(name) in pairs:
            excluded[plain_text(name)] = pair if isinstance(pair, str) else "duplicated"
        else:
            pairs[plain_text(name)] = pair
    return SamplePair(
        pd.DataFrame({name: pair.reference for name, pair in pairs.items()}),
        pd.DataFrame({name: pair.current for name, pair in pairs.items()}),
        [name for name, pair in pairs.items() if pair.numeric],
        [name for name, pair in pairs.items() if not pair.numeric],
        excluded,
    )


class _ColumnPair(NamedTuple):
    reference: pd.Series
    current: pd.Series
    numeric: bool


def _exclusion_reason(in_reference: int, in_current: int, columns: int) -> str:
    if in_reference != 1:
        return "duplicated" if in_reference else "not among the training columns"
    if in_current != 1:
        return "duplicated" if in_current else "missing"
    return f"only {MAX_COLUMNS} columns are plotted" if columns == MAX_COLUMNS else ""


def _pair_columns(reference: pd.Series, current: pd.Series) -> _ColumnPair | str:
    """Both columns with the same type, or why that is not possible."""
    if pd.api.types.is_datetime64_any_dtype(reference.dtype):
        return "a datetime"
    numeric = pd.api.types.is_numeric_dtype(reference.dtype)
    if numeric:
        pair = _ColumnPair(_to_numbers(reference), _to_numbers(current), True)
    else:
        pair = _limit_categories(_to_texts(reference), _to_texts(current))
    if min(pair.reference.notna().sum(), pair.current.notna().sum()) < MIN_VALUES:
        return f"fewer than {MIN_VALUES} values"
    return pair


def plain_text(text: object) -> str:
    """Text without markup or line breaks, of limited length, that is safe wherever it is shown."""
    plain = " ".join(str(text).split()).translate({ord("<"): "‹", ord(">"): "›", ord("&"): "＆", ord("`"): "'"})
    plain = plain.encode("utf-8", "replace").decode()
    return plain if len(plain) <= MAX_TEXT else plain[: MAX_TEXT - 1] + "…"


def _limit_rows(rows: pd.DataFrame) -> pd.DataFrame:
    """At most 5,000 rows, in their order, which mostly is that of time."""
    if len(rows) <= MAX_ROWS:
        return rows
    return rows.iloc[np.sort(np.random.default_rng(0).choice(len(rows), MAX_ROWS, replace=False))]


def _order_names(names: Iterable[str], first: Iterable[str]) -> list[str]:
    distinct = dict.fromkeys(names)
    return list(dict.fromkeys([*(name for name in first if name in distinct), *distinct]))


def _to_numbers(values: pd.Series) -> pd.Series:
    numbers = np.array([_to_number(value) for value in values.astype(object)], dtype=np.float64)
    return pd.Series(np.where(np.abs(numbers) <= LARGEST, numbers, np.nan))


def _to_number(value: Any) -> float:
    is_boolean_text = isinstance(value, str) and value.lower() in ("true", "false")
    return parse_boolean(value) if is_boolean_text else parse_number(value)


def _to_texts(values: pd.Series) -> pd.Series:
    texts = [None if name is None else plain_text(name) for name in map(category_name, values.astype(object))]
    return pd.Series(texts, dtype=object)


def _limit_categories(reference: pd.Series, current: pd.Series) -> _ColumnPair:
    """The most frequent categories keep their names."""
    shares = reference.value_counts(normalize=True).add(current.value_counts(normalize=True), fill_value=0.0)
    named = {None, OTHER, *shares.sort_values(ascending=False, kind="stable").index[:MAX_CATEGORIES]}
    limited = [
        pd.Series([text if text in named else OTHER for text in side], dtype=object) for side in (reference, current)
    ]
    return _ColumnPair(limited[0], limited[1], numeric=False)
