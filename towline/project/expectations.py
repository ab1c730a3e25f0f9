"""Proposed rules for the table of a later run: each is what holds today, with room for change, as a warning."""

import itertools
import math
import re
from typing import Any

import pandas as pd

from towline.data.schema.contract import Column, Contract
from towline.project.personal_data import split_words
from towline.project.proposal import Proposal

MAX_COLUMNS = 60  # that get rules; of a wider table the first ones
MAX_CATEGORIES = 30
MARGIN = 0.1  # of the range, on either side
NULL_MARGIN = 0.05  # least increase of the null share that is reported
MIN_SLICE = 30  # rows

_ORDERS = (("min", "max"), ("low", "high"), ("lower", "upper"), ("start", "end"), ("first", "last"), ("open", "close"))


def propose_expectations(proposal: Proposal, frame: pd.DataFrame, contract: Contract) -> None:
    """Adds rules to a proposal: null shares, ranges, categories, patterns, uniqueness and orders of columns."""
    proposal.min_rows = max(20, (proposal.rows - proposal.unlabelled_rows) // 2)
    columns = [c for c in contract.columns if c.role in ("feature", "time", "target") and c.kind != "text"][
        :MAX_COLUMNS
    ]
    for column in columns:
        if rule := _rule(column):
            proposal.rules[column.name] = {**rule, "severity": "warn"}
        share = float(frame[column.name].isna().mean())
        if 0 < share < 1 and column.role == "feature":
            mostly = math.floor((1 - min(0.99, share + max(NULL_MARGIN, share / 2))) * 1000) / 1000
            if mostly <= 1 - share:
                proposal.expectations.append(
                    _warn("expect_column_values_to_not_be_null", column=column.name, mostly=mostly)
                )
        if pattern := _pattern(column, frame[column.name]):
            proposal.expectations.append(
                _warn("expect_column_values_to_match_regex", column=column.name, regex=pattern, mostly=0.99)
            )
    _propose_unique(proposal, frame)
    proposal.expectations += [
        _warn(
            "expect_column_pair_values_a_to_be_greater_than_b",
            column_A=larger, column_B=smaller, or_equal=True, ignore_row_if="either_value_is_missing",
        )
        for smaller, larger in _ordered_pairs(columns, frame)
    ]  # fmt: skip


def propose_slices(proposal: Proposal, frame: pd.DataFrame, contract: Contract) -> None:
    """Adds slices of the evaluation."""
    for column in contract.columns:
        if column.role != "feature" or column.name in proposal.pii:
            continue
        if column.kind == "category" and 2 <= column.levels <= 10 and len(proposal.slices) < 3:
            counts = frame[column.name].value_counts()
            if (counts >= MIN_SLICE).sum() >= 2:
                proposal.slices.append(column.name)


def _warn(type_: str, **kwargs: Any) -> dict[str, Any]:
    return {"type": type_, "kwargs": kwargs, "severity": "warn"}


def _rule(column: Column) -> dict[str, Any]:
    rule: dict[str, Any] = {}
    if column.role == "feature" and not column.nullable:
        rule["nullable"] = False
    if column.pii:
        return rule
    if column.kind == "numeric" and column.min is not None and column.max is not None:
        low, high = widen(column.min, column.max)
        if column.integer:
            low, high = math.floor(low), math.ceil(high)
        rule |= {"min": low, "max": high}
    elif column.kind == "category" and column.role == "feature":
        categories = column.categories or ()
        if 0 < len(categories) <= MAX_CATEGORIES and max(map(len, categories)) <= 60:
            rule["categories"] = list(categories)
    return rule


def widen(low: float, high: float) -> tuple[float, float]:
    """A range with room on both sides, in round numbers; a range without negative numbers stays so.

    Example:
        >>> widen(3, 97)
        (0, 110)
    """
    if not (math.isfinite(high - low) and abs(low) < 1e15 and abs(high) < 1e15):
        return low, high
    margin = MARGIN * (high - low) or MARGIN * abs(high) or 1.0
    unit = 10.0 ** math.floor(math.log10(margin))
    below, above = math.floor((low - margin) / unit) * unit, math.ceil((high + margin) / unit) * unit
    if low >= 0:
        below = max(below, 0.0)
    if low >= 0 and high <= 1:
        above = min(above, 1.0)
    if high <= 0:
        above = min(above, 0.0)
    return _plain(below), _plain(above)


def _plain(value: float) -> float:
    rounded = float(f"{value:.12g}")
    return int(rounded) if rounded.is_integer() else rounded


def _pattern(column: Column, values: pd.Series) -> str | None:
    """The one form that all values of a category with many levels have: ``^[A-Z]{2}\\d{4}$``."""
    if column.kind != "category" or column.pii or column.levels <= MAX_CATEGORIES or column.role != "feature":
        return None
    distinct = values.dropna().astype(str).unique()[:2_000]
    forms = {re.sub(r"[^\W\d_]", "A", re.sub(r"\d", "9", text)) for text in distinct if len(text) <= 40}
    if len(forms) != 1 or len(distinct) < 20:
        return None
    parts = []
    for character, run in itertools.groupby(forms.pop()):
        length = len(list(run))
        token = {"A": "[^\\W\\d_]", "9": "\\d"}.get(character) or re.escape(character)
        parts.append(token + (f"{{{length}}}" if length > 1 else ""))
    return "^" + "".join(parts) + "$"


def _propose_unique(proposal: Proposal, frame: pd.DataFrame) -> None:
    if not (proposal.time and proposal.is_complete) or len(frame) < 20:
        return
    if frame[proposal.time].is_unique:
        proposal.rules.setdefault(proposal.time, {"severity": "warn"})["unique"] = True
        return
    for name in frame.columns:
        if name in (proposal.time, proposal.target) or name in proposal.drop or frame[name].dtype.kind == "f":
            continue
        if 2 <= frame[name].nunique() <= len(frame) / 2 and not frame.duplicated([proposal.time, name]).any():
            key = [proposal.time, name]
            proposal.expectations.append(_warn("expect_compound_columns_to_be_unique", column_list=key))
            return


def _ordered_pairs(columns: list[Column], frame: pd.DataFrame) -> list[tuple[str, str]]:
    """Pairs of columns whose names say an order, e.g. min_temp and max_temp, and whose values have it in each row."""
    by_words = {tuple(split_words(column.name)): column for column in columns if column.kind in ("numeric", "datetime")}
    pairs = []
    for words, column in by_words.items():
        for smaller, larger in _ORDERS:
            other = by_words.get(tuple(larger if word == smaller else word for word in words))
            if other is None or other.name == column.name or smaller not in words or other.kind != column.kind:
                continue
            both = frame[[column.name, other.name]].dropna()
            if len(both) >= 20 and (both[column.name] <= both[other.name]).all():
                pairs.append((column.name, other.name))
    return pairs
