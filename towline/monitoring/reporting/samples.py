"""Two small tables side by side, fit to be drawn: one out of a release's profile, one of current rows."""

import datetime as dt
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from towline.data.schema.values import LARGEST, category_name, parse_boolean, parse_number

if TYPE_CHECKING:
    import pyarrow as pa

ROWS = 5_000
COLUMNS = 50
LEVELS = 30  # of a category that are shown by name
OTHER = "(other)"
_LEAST = 10  # values on each side: of fewer nothing can be drawn
_LONGEST = 60  # characters of a name or level


class Sides(NamedTuple):
    """The same columns twice, float64 or object (strings), with a plain index.

    Attributes:
        numbers, categories: their names, as ``plain`` writes them.
        left_out: why a column is not among them.
    """

    reference: pd.DataFrame
    current: pd.DataFrame
    numbers: list[str]
    categories: list[str]
    left_out: dict[str, str]

    @property
    def drawable(self) -> bool:
        return bool(self.numbers or self.categories)


def drawn(profile: Mapping[str, Any], rows: int = ROWS, seed: int = 0) -> pd.DataFrame:
    """Rows whose columns look like those of the profile, each by itself: how columns hang together is not in it.

    Args:
        profile: ``profile.json`` of a release.
        rows: how many.
        seed: of the order of the values; how often each comes is not left to chance.

    Returns:
        (rows, columns) of float64 and strings, with the profile's share of nulls. Times, numbers too far apart to
        have a grid, and personal data are left out.
    """
    generator = np.random.default_rng(seed)
    columns = {}
    for name, facts in profile["columns"].items():
        nulls = round(rows * facts["nulls"] / max(1, facts["count"] + facts["nulls"]))
        if "counts" in facts:
            values: np.ndarray = np.full(rows, None, dtype=object)
            values[nulls:] = _levels(facts, rows - nulls)
        elif facts.get("grid") is not None:
            values = np.full(rows, np.nan)
            values[nulls:] = _numbers(facts, rows - nulls)
        else:
            continue
        columns[name] = generator.permutation(values)
    return pd.DataFrame(columns)


def _levels(facts: Mapping[str, Any], rows: int) -> np.ndarray:
    names = np.array([*facts["counts"], OTHER], dtype=object)
    counts = np.array([*facts["counts"].values(), facts["other"]], dtype=np.float64)
    if not counts.sum():
        return np.full(rows, None, dtype=object)
    where, _ = _spread(counts, rows)
    found: np.ndarray = names[where]
    return found


def _numbers(facts: Mapping[str, Any], rows: int) -> np.ndarray:
    """Even within a cell; beyond the grid even from its edge to as far as the mean there says."""
    grid = facts["grid"]
    low, high, cells = grid["low"], grid["high"], len(grid["cells"])
    edges = np.linspace(low, high, cells + 1)
    below = low if grid.get("below_mean") is None else 2 * grid["below_mean"] - low
    above = high if grid.get("above_mean") is None else 2 * grid["above_mean"] - high
    edges = np.array([below, *edges, above])
    where, within = _spread(np.array([grid["below"], *grid["cells"], grid["above"]], dtype=np.float64), rows)
    values: np.ndarray = edges[where] + within * (edges[where + 1] - edges[where])
    if facts["min"] == facts["max"]:
        return np.full(rows, facts["min"])
    quantiles = facts.get("quantiles") or [0.5]
    return np.round(values) if all(float(quantile).is_integer() for quantile in quantiles) else values


def _spread(counts: np.ndarray, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Which cell each of so many evenly spread ranks falls into, and how far into it (0 to 1)."""
    ends = np.cumsum(counts)
    ranks = (np.arange(rows) + 0.5) / max(1, rows) * ends[-1]
    where = np.searchsorted(ends, ranks, side="right")
    return where, (ranks - (ends[where] - counts[where])) / counts[where]


def logged(folder: Path, version: int, start: dt.datetime | None, end: dt.datetime | None) -> pd.DataFrame:
    """A sample of the predictions of one version and window.

    Args:
        folder: ``predictions/<name>`` of the store.
        version: of the model.
        start: of the window.
        end: not in it.

    Returns:
        The columns that are logged as they came, by their names, and ``prediction``; what is hashed or coarse is no
        value of its column.

    Raises:
        DataError: a part cannot be read.
        TransientError: the folder cannot be written, which its lock needs.
    """
    import pyarrow.compute as pc

    from towline.prediction_log import parquet_store

    def mine() -> Iterator["pa.Table"]:
        for _, table in parquet_store.tables(folder, start, end):
            names = [field.name for field in table.schema if _drawable(field)]
            yield table.filter(pc.equal(table["version"], version)).select(names)

    if not folder.is_dir():
        return pd.DataFrame()
    with parquet_store.held(folder):
        return sampled(mine()).rename(columns=lambda name: str(name).removeprefix(parquet_store.INPUT))


def sampled(tables: Iterable["pa.Table | pa.RecordBatch"]) -> pd.DataFrame:
    """At most 5,000 of all rows: each has the same chance, in memory that does not grow with them."""
    import pyarrow as pa

    generator = np.random.default_rng(0)
    kept: list[pa.Table] = []
    lots = np.empty(0)
    for table in tables:
        if table.num_rows:
            more = table if isinstance(table, pa.Table) else pa.Table.from_batches([table])
            lots = np.concatenate([lots, generator.random(len(more))])
            chosen = np.sort(np.argsort(lots, kind="stable")[:ROWS])
            together = pa.concat_tables([*kept, more], promote_options="permissive")
            kept, lots = [together.take(pa.array(chosen))], lots[chosen]
    return kept[0].to_pandas() if kept else pd.DataFrame()


def _drawable(field: Any) -> bool:
    return field.name == "prediction" or (field.metadata or {}).get(b"kept") == b"keep"


def sides(reference: pd.DataFrame, current: pd.DataFrame, first: Iterable[str] = ()) -> Sides:
    """Makes two tables alike, whatever is in them.

    At most 5,000 rows a side and 50 columns. What is infinite, not of the column's kind or beyond what can be summed
    becomes null. A column that is on one side only, twice, a time, or almost empty is left out.

    Args:
        reference: says which columns are numbers.
        current: rows of production, of any types.
        first: names that come first where there are too many.
    """
    reference, current = _fewer(reference), _fewer(current)
    left_out: dict[str, str] = {}
    then: dict[str, pd.Series] = {}
    now: dict[str, pd.Series] = {}
    numbers: list[str] = []
    for name in _order([*reference.columns, *current.columns], first):
        why = ""
        if list(map(str, reference.columns)).count(name) != 1:
            why = "not among the training columns" if name not in map(str, reference.columns) else "there twice"
        elif list(map(str, current.columns)).count(name) != 1:
            why = "missing" if name not in map(str, current.columns) else "there twice"
        elif len(then) == COLUMNS:
            why = f"only {COLUMNS} columns are drawn"
        else:
            pair = _column(reference, name), _column(current, name)
            why = _paired(plain(name), *pair, then, now, numbers)
        if why:
            left_out[plain(name)] = why
    categories = [name for name in then if name not in numbers]
    return Sides(pd.DataFrame(then), pd.DataFrame(now), numbers, categories, left_out)


def plain(text: object) -> str:
    """Text that is text wherever it is shown: no markup, no line breaks, of bounded length."""
    told = " ".join(str(text).split()).translate({ord("<"): "‹", ord(">"): "›", ord("&"): "＆", ord("`"): "'"})
    told = told.encode("utf-8", "replace").decode()
    return told if len(told) <= _LONGEST else told[: _LONGEST - 1] + "…"


def _paired(
    name: str,
    reference: pd.Series,
    current: pd.Series,
    then: dict[str, pd.Series],
    now: dict[str, pd.Series],
    numbers: list[str],
) -> str:
    """Adds one column to both sides; else says why not."""
    if name in then:
        return "there twice"
    if pd.api.types.is_datetime64_any_dtype(reference.dtype):
        return "a time"
    numeric = pd.api.types.is_numeric_dtype(reference.dtype)
    pair = (_floats(reference), _floats(current)) if numeric else _named(_texts(reference), _texts(current))
    if min(side.notna().sum() for side in pair) < _LEAST:
        return f"fewer than {_LEAST} values"
    if numeric:
        numbers.append(name)
    then[name], now[name] = pair
    return ""


def _fewer(rows: pd.DataFrame) -> pd.DataFrame:
    """At most so many rows, in their order: it is mostly that of time."""
    if len(rows) <= ROWS:
        return rows
    return rows.iloc[np.sort(np.random.default_rng(0).choice(len(rows), ROWS, replace=False))]


def _order(names: Iterable[object], first: Iterable[str]) -> list[str]:
    there = dict.fromkeys(map(str, names))
    return list(dict.fromkeys([*(name for name in first if name in there), *there]))


def _column(rows: pd.DataFrame, name: str) -> pd.Series:
    column: pd.Series = rows.iloc[:, list(map(str, rows.columns)).index(name)]
    return column


def _floats(values: pd.Series) -> pd.Series:
    found = np.array([_numeric(value) for value in values.astype(object)], dtype=np.float64)
    return pd.Series(np.where(np.abs(found) <= LARGEST, found, np.nan))


def _numeric(value: Any) -> float:
    return (
        parse_boolean(value) if isinstance(value, str) and value.lower() in ("true", "false") else parse_number(value)
    )


def _texts(values: pd.Series) -> pd.Series:
    texts = [None if text is None else plain(text) for text in map(category_name, values.astype(object))]
    return pd.Series(texts, dtype=object)


def _named(reference: pd.Series, current: pd.Series) -> tuple[pd.Series, pd.Series]:
    """The most frequent levels keep their names."""
    counts = reference.value_counts(normalize=True).add(current.value_counts(normalize=True), fill_value=0.0)
    kept = {None, OTHER, *counts.sort_values(ascending=False, kind="stable").index[:LEVELS]}
    return tuple(  # type: ignore[return-value]
        pd.Series([text if text in kept else OTHER for text in side], dtype=object) for side in (reference, current)
    )
