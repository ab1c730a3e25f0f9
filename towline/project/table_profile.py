"""The profile of a table: one page with each column's distribution, nulls, change over time and relation to the target.

It shows a bounded sample, read as a run reads the table. Values of columns that look personal are not shown.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

import towline
from towline import files
from towline.data.schema.contract import Column, Contract
from towline.data.text_features import text_lengths
from towline.formatting import format_number
from towline.html import render_page
from towline.project.detection import read_table, unreadable_columns
from towline.project.initialization import TableReader
from towline.project.proposal import Proposal

BINS = 20  # of a histogram
GROUPS = 10  # quantile bins or most frequent levels, in which the target is compared
WINDOWS = 16  # of equal numbers of rows, for the change over time
MAX_TEXT = 40


class Bar(NamedTuple):
    """A bar: its height from 0 to 1, and the text that is shown when it is pointed at."""

    height: float
    text: str


@dataclass
class ColumnProfile:
    """One column.

    Attributes:
        name, kind: of the column.
        use: role in a model, or why it is not used.
        nulls: share of null values.
        levels: number of distinct values.
        values: range and median, or the most frequent levels.
        distribution: of its values.
        over_time: mean, or share of the most frequent level, in windows of time; empty without a time column.
        nulls_over_time: share of nulls in these windows.
        relation: mean of the target, or share of a class, by value.
        strength: share of the target's variance between these groups, from 0 to 1.
        warning: a suspected leak.
    """

    name: str
    kind: str
    use: str
    nulls: float
    levels: int
    values: str
    distribution: list[Bar]
    over_time: list[Bar]
    nulls_over_time: list[Bar]
    relation: list[Bar]
    strength: float | None
    warning: str = ""


def write_profile(reader: TableReader, path: Path, target: str | None, time: str | None) -> Proposal:
    """Writes the page; returns the proposal whose findings it shows.

    Args:
        reader: of the table.
        path: of the page.
        target: the column to predict; None: the likeliest one.
        time: as in ``detection.propose``.

    Raises:
        DataError: the table cannot be read.
        TransientError: the page cannot be written.
    """
    proposal = reader.propose(target, None, time)
    unreadable = unreadable_columns(reader.sample.table, proposal.target)
    frame, contract = read_table(replace(proposal, drop=unreadable, group=None), reader.sample)
    profiles = [_profile(column, frame, contract, proposal) for column in contract.columns]
    page = render_page(
        Path(__file__).parent / "table_profile.html.jinja",
        proposal=proposal,
        rows=len(frame),
        profiles=profiles,
        strongest=sorted(
            (profile for profile in profiles if profile.strength is not None),
            key=lambda profile: -(profile.strength or 0),
        )[:GROUPS],
        version=towline.__version__,
    )
    files.write(path, page, 0o644)
    return proposal


def _profile(column: Column, frame: pd.DataFrame, contract: Contract, proposal: Proposal) -> ColumnProfile:
    values, hidden = frame[column.name], column.name in proposal.pii
    is_text = column.kind == "text"  # a page shows the lengths of texts
    shown = pd.Series(text_lengths(values), index=values.index) if is_text else values
    groups = _group(shown, column)
    is_target = column.name == contract.target
    relation, strength = ([], None) if is_target else _compute_bars(groups, frame[contract.target], contract)
    warning = proposal.drop.get(column.name, "")
    warning = warning if warning.startswith("leak") else proposal.allow_leaks.get(column.name, "")
    if column.name in proposal.drop:
        use = f"dropped: {proposal.drop[column.name]}"
    elif hidden:
        use = proposal.pii[column.name]
    else:
        use = column.note or ("time" if column.name == proposal.time else column.role)
    over_time, nulls_over_time = _change(shown, frame, proposal.time) if column.name != proposal.time else ([], [])
    return ColumnProfile(
        name=column.name,
        kind=column.kind,
        use=use,
        nulls=float(values.isna().mean()),
        levels=int(values.nunique()),
        values="personal data" if hidden else _describe(shown, column),
        distribution=[] if hidden else _distribution(shown),
        over_time=over_time,
        nulls_over_time=nulls_over_time,
        relation=[Bar(bar.height, "") if hidden else bar for bar in relation],
        strength=strength,
        warning=warning,
    )


def _is_ordered(values: pd.Series) -> bool:
    return values.dtype.kind in "iufM"


def _numbers(values: pd.Series) -> np.ndarray:
    """Numbers, or times as microseconds, as float64; NaN for null and for what is not finite."""
    if values.dtype.kind == "M":
        moments = values.to_numpy("datetime64[us]")
        return np.where(np.isnat(moments), np.nan, moments.astype(np.int64))
    numbers = values.to_numpy(np.float64)
    return np.where(np.isfinite(numbers), numbers, np.nan)


def _describe(values: pd.Series, column: Column) -> str:
    present = values.dropna()
    if present.empty:
        return "no values"
    if values.dtype.kind == "M":
        return f"{present.min():%Y-%m-%d} to {present.max():%Y-%m-%d}"
    if _is_ordered(values):
        low, middle, high = (format_number(float(present.quantile(share))) for share in (0, 0.5, 1))
        label = "length " if column.kind == "text" else ""
        return f"{label}{low} to {high} {column.format.number_unit}".rstrip() + f", median {middle}"
    counts = present.astype(str).value_counts().head(3)
    return ", ".join(f"{_shorten(text)} {count / len(present):.0%}" for text, count in counts.items())


def _shorten(text: object) -> str:
    shown = str(text)
    return shown if len(shown) <= MAX_TEXT else shown[: MAX_TEXT - 1] + "…"


def _distribution(values: pd.Series) -> list[Bar]:
    present = values.dropna()
    if present.empty:
        return []
    if not _is_ordered(values):
        counts = present.astype(str).value_counts().head(BINS)
        return [Bar(count / counts.iloc[0], f"{_shorten(text)}: {count:,}") for text, count in counts.items()]
    is_time = values.dtype.kind == "M"
    numbers = _numbers(present)
    numbers = numbers[np.isfinite(numbers)]
    if not len(numbers):
        return []
    with np.errstate(over="ignore"):
        spread = numbers.max() - numbers.min()
    if spread <= BINS * np.spacing(np.abs(numbers).max()) or not np.isfinite(spread):  # no bins of finite size
        return [Bar(1.0, f"{_describe_edge(numbers.min(), is_time)} to {_describe_edge(numbers.max(), is_time)}")]
    sizes, edges = np.histogram(numbers, bins=BINS)
    texts = [_describe_edge(edge, is_time) for edge in edges]
    highest = max(int(sizes.max()), 1)
    return [
        Bar(size / highest, f"{low} to {high}: {size:,}")
        for size, low, high in zip(sizes, texts[:-1], texts[1:], strict=True)
    ]


def _describe_edge(edge: float, is_time: bool) -> str:
    return f"{pd.Timestamp(int(edge), unit='us'):%Y-%m-%d}" if is_time else format_number(float(edge))


def _group(values: pd.Series, column: Column) -> pd.Series:
    """The group of each row: a quantile bin, a frequent level, "other" or "null"."""
    if _is_ordered(values) and values.nunique() > GROUPS:
        numbers = pd.Series(_numbers(values), index=values.index)
        edges = np.unique(np.nanquantile(numbers, np.linspace(0, 1, GROUPS + 1)))
        if len(edges) > 2:
            codes = np.clip(np.searchsorted(edges, numbers, side="right") - 1, 0, len(edges) - 2)
            names = [f"from {format_number(float(edge))}" for edge in edges[:-1]]
            if column.kind == "datetime":
                names = [f"from {pd.Timestamp(int(edge), unit='us'):%Y-%m-%d}" for edge in edges[:-1]]
            named = pd.Series([names[code] for code in codes], index=values.index)
            return named.where(numbers.notna(), "null")
    texts = values.astype(object).where(values.notna(), "null").astype(str)
    frequent = texts.value_counts().index[:GROUPS]
    return texts.where(texts.isin(frequent), "other").map(_shorten)


def _compute_bars(groups: pd.Series, target: pd.Series, contract: Contract) -> tuple[list[Bar], float | None]:
    """Mean of the target (or share of a class) in each group, and the share of its variance between the groups."""
    known = target.notna()
    groups, target = groups[known], target[known]
    if target.nunique() < 2 or groups.nunique() < 2:
        return [], None
    if contract.task == "regression":
        indicators, label = pd.DataFrame({"mean": target.astype(float)}), f"mean of {contract.target}"
    else:
        indicators = pd.get_dummies(target.astype(str)).astype(float)
        positive = str(contract.positive) if contract.positive is not None else target.astype(str).mode().iloc[0]
        shown = positive if positive in indicators else indicators.columns[0]
        indicators = indicators[[shown, *[name for name in indicators.columns if name != shown]]]
        label = f"share of {_shorten(shown)}"
    means, sizes = indicators.groupby(groups, sort=False).mean(), groups.value_counts()
    overall = indicators.mean()
    between = ((means - overall) ** 2).mul(sizes.reindex(means.index), axis=0).sum().sum() / len(groups)
    total = float(indicators.var(ddof=0).sum())
    first = means.iloc[:, 0]
    low, high = min(0.0, float(first.min())), float(first.max())
    spread = (high - low) or 1.0
    bars = []
    for name in sorted(groups.unique(), key=_group_order):
        mean = float(first[name])
        bars.append(Bar((mean - low) / spread, f"{name}: {label} {format_number(mean)}, {sizes[name]:,} rows"))
    return bars, float(min(1.0, between / total)) if total else None


def _group_order(name: str) -> tuple[int, float, str]:
    """Quantile bins by their start, then levels by name, then other and null."""
    if name in ("other", "null"):
        return 2, 0.0, name
    if name.startswith("from "):
        try:
            return 0, float(name.removeprefix("from ").replace(",", "")), name
        except ValueError:
            return 0, 0.0, name
    return 1, 0.0, name


def _change(values: pd.Series, frame: pd.DataFrame, time: str | None) -> tuple[list[Bar], list[Bar]]:
    if time is None or len(frame) < 2 * WINDOWS:
        return [], []
    order = np.argsort(frame[time].to_numpy(), kind="stable")
    if _is_ordered(values) and values.dtype.kind != "M":
        numbers, label = pd.Series(_numbers(values), index=values.index), "mean"
    else:
        mode = values.mode()
        if mode.empty:
            return [], []
        numbers, label = (values == mode.iloc[0]).astype(float), "share of the most frequent value"
    parts = np.array_split(order, WINDOWS)
    starts = [f"{frame[time].iloc[part[0]]:%Y-%m-%d}" for part in parts]
    means = [float(numbers.iloc[part].mean()) for part in parts]
    nulls = [float(values.isna().iloc[part].mean()) for part in parts]
    known = [mean for mean in means if np.isfinite(mean)]
    low, high = (min(0.0, *known), max(0.0, *known)) if known else (0.0, 1.0)
    spread = (high - low) or 1.0
    bars = [
        Bar((mean - low) / spread if np.isfinite(mean) else 0.0, f"from {start}: {label} {format_number(mean)}")
        for start, mean in zip(starts, means, strict=True)
    ]
    return bars, [Bar(share, f"from {start}: {share:.1%} nulls") for start, share in zip(starts, nulls, strict=True)]
