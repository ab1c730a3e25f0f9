"""Rows at the end of a table that summarize the rows above them: totals and means, as spreadsheets have them.

A row is one only if its numbers are the sums or the means of their columns, and if it is named so or lacks the values
that the other rows have. A name that rows above have too, such as the answer "average", is a value of its column.
"""

import re
from collections.abc import Callable
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from towline.data.schema import arrow_types, text_columns
from towline.data.schema.detection import notation
from towline.data.schema.values import ValueFormat, is_blank

_LAST = 5  # rows at the end that are examined
_MIN_ROWS = 5  # above them
_TOTAL = re.compile(
    r"(grand[ -]?|sub-?)?totals?|sums?|gesamt(summe)?|insgesamt|summe|total(e|es|en|aal)", re.IGNORECASE
)
_MEAN = re.compile(r"averages?|avg\.?|means?|durchschnitt|mittelwert|moyenne|promedio", re.IGNORECASE)
_SUM_ERROR = 1e-6  # relative
_UNNAMED_SUMS = 2  # columns with the sum that a row without a name needs
_MOSTLY = 0.95  # of the rows have a value in a column that is blank in a row without a name


class _TableColumn:
    """One column; its numbers are parsed only if the last rows may be summaries.

    Args:
        values: of all rows.
        fmt: how its text is written.
        max_unreadable: ``data.max_unreadable``.

    Attributes:
        last: the text of the last rows.
    """

    def __init__(self, values: pa.ChunkedArray, fmt: ValueFormat, max_unreadable: float) -> None:
        self._values, self._format, self._max_unreadable = values, fmt, max_unreadable
        tail = arrow_types.null_far_times(values.slice(max(0, len(values) - _LAST))).to_pylist()
        self.last = ["" if is_blank(value) else str(value).strip() for value in tail]

    @cached_property
    def numbers(self) -> np.ndarray:
        """(n,) float64; NaN for null and in a column of other values."""
        values = self._values
        if text_columns.is_text(values.type):
            text = text_columns.large_text(values)
            values = notation.read_text_column(text, self._format, self._max_unreadable).values
        kind = values.type
        if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)):
            return np.full(len(values), np.nan)
        return np.asarray(values.cast(pa.float64(), safe=False).to_numpy())

    def has_above(self, text: str, rows: int) -> bool:
        """Whether one of the first rows has a text; its case does not matter."""
        head = self._values.slice(0, rows)
        if not text_columns.is_text(head.type):
            return False
        texts = pc.utf8_lower(pc.utf8_trim_whitespace(text_columns.large_text(head)))
        return bool(pc.any(pc.equal(texts, text.lower())).as_py())

    def is_mostly_present(self, rows: int) -> bool:
        """Whether nearly all of the first rows have a value."""
        head = self._values.slice(0, rows)
        head = text_columns.large_text(head) if text_columns.is_text(head.type) else head
        return bool(head.null_count <= (1 - _MOSTLY) * rows)


def count_summary_rows(table: pa.Table, format_of: Callable[[str], ValueFormat], max_unreadable: float) -> int:
    """The number of rows at the end of a table that are totals or means of the rows above them.

    Remarks between them (rows with one text and no other value) and empty rows count too.

    Args:
        table: typed, or text as it is written.
        format_of: gives the format of a column according to the config.
        max_unreadable: ``data.max_unreadable``.
    """
    rows = int(table.num_rows)
    named = zip(table.column_names, table.columns, strict=True)  # a name may occur twice
    columns = [_TableColumn(values, format_of(name), max_unreadable) for name, values in named]
    for first in range(max(rows - _LAST, _MIN_ROWS), rows):
        if all(_may_summarize(columns, row, first, rows) for row in range(first, rows)):
            kinds = [_kind(columns, row, first, rows) for row in range(first, rows)]
            if any(kinds) and None not in kinds:
                return rows - first
    return 0


def _name(columns: list[_TableColumn], row: int, first: int, rows: int) -> re.Pattern[str] | None:
    """The pattern that a text of the row matches as a whole, if none of the first rows has this text."""
    for pattern in (_TOTAL, _MEAN):
        for column in columns:
            text = column.last[row - rows]
            if pattern.fullmatch(text.rstrip(":")) and not column.has_above(text, first):
                return pattern
    return None


def _is_remark(columns: list[_TableColumn], row: int, rows: int) -> bool:
    texts = [column.last[row - rows] for column in columns if column.last[row - rows]]
    return not texts or (len(texts) == 1 and len(columns) > 2 and any(letter.isalpha() for letter in texts[0]))


def _may_summarize(columns: list[_TableColumn], row: int, first: int, rows: int) -> bool:
    """Whether a row may be a summary, so that the numbers of the columns must be parsed."""
    if _name(columns, row, first, rows) or _is_remark(columns, row, rows):
        return True
    return any(not column.last[row - rows] and column.is_mostly_present(first) for column in columns)


def _kind(columns: list[_TableColumn], row: int, first: int, rows: int) -> bool | None:
    """True for a sum or mean, False for a remark, None for a row of data."""
    name = _name(columns, row, first, rows)
    if name is None and _is_remark(columns, row, rows):
        return False
    matches = 0
    for column in columns:
        numbers = column.numbers
        above, value = numbers[:first][np.isfinite(numbers[:first])], numbers[row]
        if len(above) < _MIN_ROWS or not np.isfinite(value) or not np.ptp(above):
            continue
        if name is _MEAN:
            decimals = len(f"{value:.12g}".partition(".")[2])
            matches += abs(value - above.mean()) <= 0.51 * 10.0**-decimals
        else:
            total = float(above.sum())
            matches += abs(value - total) <= _SUM_ERROR * abs(total)
    return True if matches >= (1 if name else _UNNAMED_SUMS) else None
