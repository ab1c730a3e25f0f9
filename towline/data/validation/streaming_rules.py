"""Expectations compiled to rules that see a table batch by batch.

A rule gives the verdict and the count that Great Expectations gives for the whole table. ``compile_rule`` returns None
for an expectation that it does not know, or whose arguments do not fit the column: Great Expectations evaluates it.
"""

import datetime as dt
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

from towline.data.row_keys import KeyCollector, KeyCounts, row_keys
from towline.data.schema.text_columns import is_text
from towline.data.validation.batch_columns import Batch

EXAMPLES = 5
_VERIFIED = 200_000  # rows with equal keys whose values are compared


class RuleResult(NamedTuple):
    """The result of an expectation.

    Attributes:
        passed: the verdict.
        broken: number of rows that break it, if it is about rows.
        rows: positions of the first of them.
        observed: the value that it is about, if it is about one.
        missing: columns that are missing.
    """

    passed: bool
    broken: int = 0
    rows: tuple[int, ...] = ()
    observed: object = None
    missing: tuple[str, ...] = ()


class StreamingRule(ABC):
    """An expectation on a table, evaluated batch by batch.

    Args:
        columns: that it reads.
        kwargs: of the expectation.
    """

    defaults: ClassVar[Mapping[str, Any]] = {}

    def __init__(self, columns: Sequence[str], kwargs: Mapping[str, Any]) -> None:
        self.columns = tuple(columns)
        self.kwargs = {**self.defaults, **kwargs}
        self.considered, self.count, self.rows = 0, 0, list[int]()

    @abstractmethod
    def add(self, batch: Batch) -> None:
        """Evaluates a batch."""

    def result(self) -> RuleResult:
        """The result after all batches."""
        mostly = self.kwargs.get("mostly")
        share = (self.considered - self.count) / self.considered if self.considered else 1.0
        passed = share >= (1.0 if mostly is None else mostly)
        return RuleResult(passed, self.count, tuple(self.rows))


class _RowRule(StreamingRule):
    """A rule about each row: it counts the rows that break it."""

    def add(self, batch: Batch) -> None:
        rows, considered = self.broken_rows(batch)
        self.considered += considered
        self.count += len(rows)
        self.rows += (rows[: EXAMPLES - len(self.rows)] + batch.start).tolist()

    @abstractmethod
    def broken_rows(self, batch: Batch) -> tuple[np.ndarray, int]:
        """The positions in the batch of rows that break the rule, and the number of rows that it is about."""


class _ValueRule(_RowRule):
    """A rule about each value of a column that is not null."""

    def broken_rows(self, batch: Batch) -> tuple[np.ndarray, int]:
        column = batch[self.columns[0]]
        return self.broken_values(batch), len(column.present)

    @abstractmethod
    def broken_values(self, batch: Batch) -> np.ndarray:
        """The positions in the batch of values that break the rule."""


class _DistinctRule(_ValueRule):
    """A rule about a value that is evaluated once for each distinct value of a batch."""

    def broken_values(self, batch: Batch) -> np.ndarray:
        return batch[self.columns[0]].rows_with(self.is_bad)

    @abstractmethod
    def is_bad(self, values: pd.Series) -> Any:
        """(k,) bool of distinct values."""


class _NotNull(_RowRule):
    def broken_rows(self, batch: Batch) -> tuple[np.ndarray, int]:
        column = batch[self.columns[0]]
        if not column.nulls:
            return np.zeros(0, np.int64), len(batch)
        return np.flatnonzero(column.array.is_null().to_numpy(zero_copy_only=False)), len(batch)


class _Null(_RowRule):
    def broken_rows(self, batch: Batch) -> tuple[np.ndarray, int]:
        column = batch[self.columns[0]]
        present = np.arange(len(batch)) if column.present_rows is None else column.present_rows
        return present, len(batch)


def _in_range(values: Any, kwargs: Mapping[str, Any]) -> Any:
    """(m,) bool: whether values are in the range of an expectation."""
    # as Great Expectations compares: in float64, which matters beyond 2^53 only
    low, high = (
        float(end) if isinstance(end, int) else end for end in (kwargs.get("min_value"), kwargs.get("max_value"))
    )
    inside = np.ones(len(values), dtype=bool)
    if low is not None:
        inside &= np.asarray(values > low if kwargs.get("strict_min") else values >= low)
    if high is not None:
        inside &= np.asarray(values < high if kwargs.get("strict_max") else values <= high)
    return inside


class _Between(_ValueRule):
    def broken_values(self, batch: Batch) -> np.ndarray:
        column = batch[self.columns[0]]
        if _in_range(column.bounds, self.kwargs).all():
            return np.zeros(0, np.int64)
        return column.rows_of(~_in_range(column.values, self.kwargs))


class _InSet(_DistinctRule):
    def is_bad(self, values: pd.Series) -> Any:
        return ~values.isin(self.kwargs["value_set"])


class _NotInSet(_DistinctRule):
    def is_bad(self, values: pd.Series) -> Any:
        return values.isin(self.kwargs["value_set"])


class _Matches(_DistinctRule):
    def is_bad(self, values: pd.Series) -> Any:
        return ~values.str.contains(self.kwargs["regex"])


class _MatchesNot(_DistinctRule):
    def is_bad(self, values: pd.Series) -> Any:
        return values.str.contains(self.kwargs["regex"])


class _MatchesList(_DistinctRule):
    defaults: ClassVar[Mapping[str, Any]] = {"match_on": "any"}

    def is_bad(self, values: pd.Series) -> Any:
        matches = [np.asarray(values.str.contains(regex), dtype=bool) for regex in self.kwargs["regex_list"]]
        return ~(np.any(matches, axis=0) if self.kwargs["match_on"] == "any" else np.all(matches, axis=0))


class _MatchesNoneOf(_DistinctRule):
    def is_bad(self, values: pd.Series) -> Any:
        return np.any([np.asarray(values.str.contains(r), dtype=bool) for r in self.kwargs["regex_list"]], axis=0)


class _LengthBetween(_DistinctRule):
    def is_bad(self, values: pd.Series) -> Any:
        return ~_in_range(values.str.len(), self.kwargs)


class _LengthEqual(_DistinctRule):
    def is_bad(self, values: pd.Series) -> Any:
        return values.str.len() != self.kwargs["value"]


class _Ordered(_ValueRule):
    """Each value is at least (or at most) the value before it that is not null."""

    sign = 1

    def __init__(self, columns: Sequence[str], kwargs: Mapping[str, Any]) -> None:
        super().__init__(columns, kwargs)
        self._last: np.ndarray | None = None

    def broken_values(self, batch: Batch) -> np.ndarray:
        column = batch[self.columns[0]]
        values = column.values if self._last is None else np.concatenate([self._last, column.values])
        if not len(column.values):
            return np.zeros(0, np.int64)
        steps = np.diff(values if values.dtype.kind == "f" else values.view(np.int64))
        against = steps < 0 if self.sign > 0 else steps > 0
        if self.kwargs.get("strictly"):
            against |= steps == 0
        if self._last is None:
            against = np.append(False, against)
        self._last = column.values[-1:]
        return column.rows_of(against)


class _Descending(_Ordered):
    sign = -1


class _ColumnPairRule(_RowRule):
    """A rule about the numbers or times of two columns."""

    defaults: ClassVar[Mapping[str, Any]] = {"ignore_row_if": "both_values_are_missing"}

    def broken_rows(self, batch: Batch) -> tuple[np.ndarray, int]:
        first, second = (batch[name] for name in self.columns)
        left, right = (_with_nulls(column.array) for column in (first, second))
        broken = ~np.asarray(self.holds(left, right))
        if not (first.nulls or second.nulls):
            return np.flatnonzero(broken), len(batch)
        missing = [np.asarray(pd.isna(values)) for values in (left, right)]
        ignored = {
            "both_values_are_missing": missing[0] & missing[1],
            "either_value_is_missing": missing[0] | missing[1],
            "neither": np.zeros(len(batch), dtype=bool),
        }[self.kwargs["ignore_row_if"]]
        return np.flatnonzero(broken & ~ignored), int((~ignored).sum())

    def holds(self, left: np.ndarray, right: np.ndarray) -> Any:
        """(n,) bool."""
        return left == right


class _Greater(_ColumnPairRule):
    def holds(self, left: np.ndarray, right: np.ndarray) -> Any:
        return left >= right if self.kwargs.get("or_equal") else left > right


def _with_nulls(array: pa.Array) -> np.ndarray:
    values: np.ndarray = array.to_numpy(zero_copy_only=False)  # null as NaN or NaT
    return values


class KeyedRule(StreamingRule):
    """A rule about equal values, which are found by their keys.

    After the pass, ``end`` takes the counts of all keys. If rows have equal keys, a second pass (``locate``) finds the
    first of them, and compares their values unless equal keys mean equal values.
    """

    def __init__(self, columns: Sequence[str], kwargs: Mapping[str, Any]) -> None:
        super().__init__(columns, kwargs)
        self.collector = KeyCollector()
        self._repeated_keys = np.zeros(0, np.uint64)
        self._compared = dict[bytes, list[int]]()

    def add(self, batch: Batch) -> None:
        keys = self.keys(batch)[0]
        self.considered += len(keys)
        self.collector.add(keys)

    def keys(self, batch: Batch) -> tuple[np.ndarray, np.ndarray | None]:
        """The keys of the rows that the rule is about, and their positions in the batch; None: all rows."""
        column = batch[self.columns[0]]
        return column.keys, column.present_rows

    @property
    def copies(self) -> int:
        """The number of rows whose key an earlier row has."""
        return self.count - len(self._repeated_keys)

    def end(self, counts: KeyCounts) -> None:
        """Takes the counts of all keys."""
        self.count, self._repeated_keys = counts.repeated, counts.repeated_keys

    @property
    def are_rows_needed(self) -> bool:
        """Whether rows have equal keys."""
        return self.count > 0

    def locate(self, batch: Batch) -> bool:
        """Finds the rows with repeated keys in a batch; returns whether it needs the next one."""
        keys, positions = self.keys(batch)
        places = np.searchsorted(self._repeated_keys, keys)
        places[places == len(self._repeated_keys)] = 0
        repeated = np.flatnonzero(self._repeated_keys[places] == keys)
        rows = repeated if positions is None else positions[repeated]
        self.rows += (rows[: EXAMPLES - len(self.rows)] + batch.start).tolist()
        if self.count > _VERIFIED or self._are_keys_exact(batch):
            return len(self.rows) < EXAMPLES
        selected = batch.batch.select(list(self.columns)).take(pa.array(rows))
        for row, values in zip(rows + batch.start, selected.to_pylist(), strict=True):
            digest = hashlib.blake2b(repr(tuple(values.values())).encode(), digest_size=16).digest()
            self._compared.setdefault(digest, []).append(int(row))
        return True

    def _are_keys_exact(self, batch: Batch) -> bool:
        kind = batch[self.columns[0]].array.type
        return len(self.columns) == 1 and not (is_text(kind) or pa.types.is_dictionary(kind))

    def compared_copies(self) -> list[int] | None:
        """Positions of rows with the values of an earlier one; None if values were not compared."""
        if self.count and not self._compared:
            return None
        return sorted(row for rows in self._compared.values() for row in rows[1:])

    def result(self) -> RuleResult:
        if self._compared:
            rows = sorted(row for rows in self._compared.values() if len(rows) > 1 for row in rows)
            self.count, self.rows = len(rows), rows[:EXAMPLES]
        return super().result()


class UniqueRows(KeyedRule):
    """No two rows have the same values in several columns."""

    defaults: ClassVar[Mapping[str, Any]] = {"ignore_row_if": "all_values_are_missing"}

    def keys(self, batch: Batch) -> tuple[np.ndarray, np.ndarray | None]:
        columns = [batch[name].array for name in self.columns]
        keys = row_keys(columns, self.columns)
        ignored = {"never": None, "all_values_are_missing": np.all, "any_value_is_missing": np.any}
        combine = ignored[self.kwargs["ignore_row_if"]]
        if combine is None or not any(column.null_count for column in columns):
            return keys, None
        nulls = [column.is_null().to_numpy(zero_copy_only=False) for column in columns]
        rows = np.flatnonzero(~combine(nulls, axis=0))
        return keys[rows], rows


class _DistinctCount(KeyedRule):
    """The number of distinct values, or their share of the values that are not null."""

    def __init__(self, columns: Sequence[str], kwargs: Mapping[str, Any], *, share: bool) -> None:
        super().__init__(columns, kwargs)
        self._share, self._distinct, self._present = share, 0, 0

    def add(self, batch: Batch) -> None:
        self._present += len(batch[self.columns[0]].present)
        super().add(batch)

    def keys(self, batch: Batch) -> tuple[np.ndarray, np.ndarray | None]:
        return batch[self.columns[0]].distinct_keys, None

    def end(self, counts: KeyCounts) -> None:
        self._distinct = counts.distinct

    def result(self) -> RuleResult:
        observed: float | None = self._distinct
        if self._share:
            observed = self._distinct / self._present if self._present else 0
        return _observed_result(observed, self.kwargs)


class _Extreme(StreamingRule):
    """The least or the greatest number of a column."""

    def __init__(self, columns: Sequence[str], kwargs: Mapping[str, Any], *, place: int) -> None:
        super().__init__(columns, kwargs)
        self._place, self._extremes = place, list[Any]()

    def add(self, batch: Batch) -> None:
        bounds = batch[self.columns[0]].bounds
        self._extremes += [bounds[self._place]] if len(bounds) else []

    def result(self) -> RuleResult:
        if not self._extremes:
            return RuleResult(passed=False)
        return _observed_result((max if self._place else min)(self._extremes), self.kwargs)


class _PresentShare(StreamingRule):
    """The share of values that are not null."""

    def add(self, batch: Batch) -> None:
        self.considered += len(batch)
        self.count += batch[self.columns[0]].nulls

    def result(self) -> RuleResult:
        share = (self.considered - self.count) / self.considered if self.considered else None
        return _observed_result(share, self.kwargs)


class _RowCount(StreamingRule):
    """The number of rows."""

    def add(self, batch: Batch) -> None:
        self.considered += len(batch)

    def result(self) -> RuleResult:
        return _observed_result(self.considered, self.kwargs)


def _observed_result(observed: Any, kwargs: Mapping[str, Any]) -> RuleResult:
    passed = observed is not None and bool(_in_range(np.array([observed]), kwargs).all())
    return RuleResult(passed, observed=observed)


class _RuleSpec(NamedTuple):
    """How an expectation is compiled.

    Attributes:
        rule: makes the rule from its columns and arguments.
        arguments: those that it supports.
        fits: whether the types of the columns and the arguments fit.
    """

    rule: Callable[[Sequence[str], Mapping[str, Any]], StreamingRule]
    arguments: frozenset[str]
    fits: Callable[[Sequence[pa.DataType], Mapping[str, Any]], bool] = lambda kinds, kwargs: True  # noqa: ARG005


_RANGE = frozenset({"min_value", "max_value", "strict_min", "strict_max"})
_MOSTLY = frozenset({"mostly"})
_PAIR = frozenset({"column_A", "column_B", "ignore_row_if", "mostly"})


def _is_number(value: object) -> bool:
    return isinstance(value, int | float)


def _ends(kwargs: Mapping[str, Any]) -> list[Any]:
    return [kwargs[key] for key in ("min_value", "max_value") if kwargs.get(key) is not None]


def _have_range(kinds: Sequence[pa.DataType], kwargs: Mapping[str, Any]) -> bool:
    ends = _ends(kwargs)
    if pa.types.is_timestamp(kinds[0]):
        return bool(ends) and all(isinstance(end, dt.datetime) and end.tzinfo is None for end in ends)
    return bool(ends) and not is_text(kinds[0]) and all(map(_is_number, ends))


def _have_number_range(kinds: Sequence[pa.DataType], kwargs: Mapping[str, Any]) -> bool:
    return not is_text(kinds[0]) and not pa.types.is_timestamp(kinds[0]) and all(map(_is_number, _ends(kwargs)))


def _have_text(kinds: Sequence[pa.DataType], kwargs: Mapping[str, Any]) -> bool:
    """Whether the column is text, and all regular expressions are valid for pandas."""
    patterns = [kwargs["regex"]] if "regex" in kwargs else kwargs.get("regex_list") or ()
    try:
        return is_text(kinds[0]) and all(len(pd.Series(["a"], dtype="str").str.contains(each)) for each in patterns)
    except Exception:  # noqa: BLE001 - Great Expectations reports it
        return False


def _have_text_and_length(kinds: Sequence[pa.DataType], kwargs: Mapping[str, Any]) -> bool:
    ends = [kwargs["value"]] if "value" in kwargs else _ends(kwargs)
    return is_text(kinds[0]) and bool(ends) and all(map(_is_number, ends))


def _have_order(kinds: Sequence[pa.DataType], _kwargs: Mapping[str, Any]) -> bool:
    return not is_text(kinds[0]) and not pa.types.is_boolean(kinds[0]) and not pa.types.is_null(kinds[0])


def _are_comparable(kinds: Sequence[pa.DataType], kwargs: Mapping[str, Any]) -> bool:
    """Whether two columns are both numbers or both times."""
    return all(_have_order([kind], kwargs) for kind in kinds) and len(set(map(pa.types.is_timestamp, kinds))) == 1


def _have_set(kinds: Sequence[pa.DataType], kwargs: Mapping[str, Any]) -> bool:
    values = kwargs.get("value_set")
    is_plain = not pa.types.is_timestamp(kinds[0]) or all(isinstance(value, dt.datetime) for value in values or ())
    return isinstance(values, list | tuple) and is_plain and all(value is not None for value in values)


_RULE_SPECS: Mapping[str, _RuleSpec] = {
    "expect_column_values_to_not_be_null": _RuleSpec(_NotNull, _MOSTLY),
    "expect_column_values_to_be_null": _RuleSpec(_Null, _MOSTLY),
    "expect_column_values_to_be_between": _RuleSpec(_Between, _RANGE | _MOSTLY, _have_range),
    "expect_column_values_to_be_in_set": _RuleSpec(_InSet, _MOSTLY | {"value_set"}, _have_set),
    "expect_column_values_to_not_be_in_set": _RuleSpec(_NotInSet, _MOSTLY | {"value_set"}, _have_set),
    "expect_column_values_to_match_regex": _RuleSpec(_Matches, _MOSTLY | {"regex"}, _have_text),
    "expect_column_values_to_not_match_regex": _RuleSpec(_MatchesNot, _MOSTLY | {"regex"}, _have_text),
    "expect_column_values_to_match_regex_list": _RuleSpec(
        _MatchesList, _MOSTLY | {"regex_list", "match_on"}, _have_text
    ),
    "expect_column_values_to_not_match_regex_list": _RuleSpec(_MatchesNoneOf, _MOSTLY | {"regex_list"}, _have_text),
    "expect_column_value_lengths_to_be_between": _RuleSpec(_LengthBetween, _RANGE | _MOSTLY, _have_text_and_length),
    "expect_column_value_lengths_to_equal": _RuleSpec(_LengthEqual, _MOSTLY | {"value"}, _have_text_and_length),
    "expect_column_values_to_be_increasing": _RuleSpec(_Ordered, _MOSTLY | {"strictly"}, _have_order),
    "expect_column_values_to_be_decreasing": _RuleSpec(_Descending, _MOSTLY | {"strictly"}, _have_order),
    "expect_column_values_to_be_unique": _RuleSpec(KeyedRule, _MOSTLY),
    "expect_compound_columns_to_be_unique": _RuleSpec(UniqueRows, _MOSTLY | {"column_list", "ignore_row_if"}),
    "expect_column_pair_values_to_be_equal": _RuleSpec(_ColumnPairRule, _PAIR, _are_comparable),
    "expect_column_pair_values_a_to_be_greater_than_b": _RuleSpec(_Greater, _PAIR | {"or_equal"}, _are_comparable),
    "expect_column_unique_value_count_to_be_between": _RuleSpec(partial(_DistinctCount, share=False), _RANGE),
    "expect_column_proportion_of_unique_values_to_be_between": _RuleSpec(partial(_DistinctCount, share=True), _RANGE),
    "expect_column_proportion_of_non_null_values_to_be_between": _RuleSpec(_PresentShare, _RANGE),
    "expect_column_min_to_be_between": _RuleSpec(partial(_Extreme, place=0), _RANGE, _have_number_range),
    "expect_column_max_to_be_between": _RuleSpec(partial(_Extreme, place=1), _RANGE, _have_number_range),
    "expect_table_row_count_to_be_between": _RuleSpec(_RowCount, _RANGE),
}


def compile_rule(type_: str, kwargs: Mapping[str, Any], schema: pa.Schema) -> StreamingRule | None:
    """The rule for an expectation; None if only Great Expectations can evaluate it.

    Args:
        type_: its name.
        kwargs: its arguments.
        schema: of the table.
    """
    columns = named_columns(kwargs)
    spec = _RULE_SPECS.get(type_)
    given = {key for key, value in kwargs.items() if value is not None} - {"column"}
    if spec is None or not given <= spec.arguments or not set(columns) <= set(schema.names):
        return None
    if not spec.fits([schema.field(name).type for name in columns], kwargs):
        return None
    return spec.rule(columns, kwargs)


def named_columns(kwargs: Mapping[str, Any]) -> list[str]:
    """The columns that an expectation's keyword arguments name."""
    names = [kwargs.get(key) for key in ("column", "column_A", "column_B")] + list(kwargs.get("column_list") or ())
    return [str(name) for name in names if name is not None]
