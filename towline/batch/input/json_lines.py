"""Reads the rows of JSON lines; a value has the same meaning as in a request."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from towline.batch.input.records import Records
from towline.batch.input.row_batch import RejectedRow, RowBatch
from towline.data.source.json_tables import replace_half_surrogates
from towline.errors import DataError

_SAMPLE_ROWS = 10_000


def infer_schema(block: bytes, where: str) -> pa.Schema:
    """The columns and types of the first rows; a column of mixed types is text.

    Raises:
        DataError: there is no row.
    """
    records = Records(block, quoted=False)
    rows = [row for row in map(_parse, records.take(np.arange(min(len(records), _SAMPLE_ROWS))).to_pylist()) if row]
    rows = [row for row in rows if isinstance(row, dict)]
    columns: dict[str, pa.DataType] = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        try:
            columns[name] = pa.array([row.get(name) for row in rows]).type
        except (pa.ArrowException, OverflowError):
            columns[name] = pa.string()
    if not columns:
        raise DataError("no JSON object in the file", where=where, remedy="give one JSON object a line")
    return pa.schema(columns.items())


class JsonReader:
    """Reads blocks of JSON lines.

    Args:
        copied: names and types of the columns that are copied; None: the text of the rows is copied.
        as_text: copy the columns as text, whatever their types are.
        filled: columns of the file that are null in a row without them.
        known: all columns of the first rows; None: ``copied``.
    """

    def __init__(
        self,
        copied: pa.Schema | None,
        *,
        as_text: bool = False,
        filled: Iterable[str] = (),
        known: Iterable[str] | None = None,
    ) -> None:
        self._copied, self._filled = copied, frozenset(filled)
        self._known = frozenset((copied.names if copied else ()) if known is None else known)
        if copied is not None and as_text:
            self._copied = pa.schema([(name, pa.string()) for name in copied.names])

    def read(self, block: bytes, first: int) -> RowBatch:
        """The rows of a block of whole lines; ``first`` is the number of its first row.

        Rows are rejected that are no JSON object, or with a copied value that is not of the type of the first rows.
        """
        records = Records(block, quoted=False)
        texts = records.take().to_pylist()
        rows = [_parse(text) for text in texts]
        reasons: dict[int, tuple[str, str]] = {
            place: ("", "is not a JSON object") for place, row in enumerate(rows) if not isinstance(row, dict)
        }
        copied = None if self._copied is None else self._copy(rows, reasons)
        places = np.array([place for place in range(len(rows)) if place not in reasons], dtype=np.int64)
        if copied is not None and copied.num_columns and reasons:  # without columns it has no rows
            copied = copied.take(pa.array(places))
        rejected = tuple(
            RejectedRow(first + place, field, reason, texts[place].decode(errors="replace"))
            for place, (field, reason) in sorted(reasons.items())
        )
        objects = [rows[place] for place in places.tolist()]
        new = {name for row in objects if not row.keys() <= self._known for name in row.keys() - self._known}
        left_out = frozenset() if copied is None else frozenset(new)
        filled = [self._fill(row) for row in objects]
        return RowBatch(first + places, {}, copied, records, places, rejected, filled, left_out)

    def _fill(self, row: dict[str, Any]) -> dict[str, Any]:
        """The row with null for each column that it lacks; unchanged if it has none of them, as an empty object."""
        if self._filled <= row.keys() or self._filled.isdisjoint(row):
            return row
        return dict.fromkeys(self._filled) | row

    def _copy(self, rows: Sequence[Any], reasons: dict[int, tuple[str, str]]) -> pa.RecordBatch:
        """The copied columns of all rows; adds a reason for each row with a value of another type."""
        schema = self._copied or pa.schema([])
        columns = []
        for field in schema:
            values = [row.get(field.name) if isinstance(row, dict) else None for row in rows]
            if field.type == pa.string():
                values = [value if value is None or isinstance(value, str) else json.dumps(value) for value in values]
            try:
                column = pa.array(values, field.type)
            except (pa.ArrowException, OverflowError, TypeError):
                for place, value in enumerate(values):
                    if not _fits(value, field.type):
                        values[place] = None
                        reasons.setdefault(
                            place, (field.name, f"{field.name} is no {field.type}, as in the first rows")
                        )
                column = pa.array(values, field.type)
            columns.append(column)
        return pa.RecordBatch.from_arrays(columns, schema=schema)


def _fits(value: Any, kind: pa.DataType) -> bool:
    try:
        pa.array([value], kind)
    except (pa.ArrowException, OverflowError, TypeError):
        return False
    return True


def _parse(text: bytes) -> Any:
    """The value of a line, with null in place of NaN and infinities; None if it is no JSON."""
    if b"\\u" in text:
        text = replace_half_surrogates(text.decode("latin-1")).encode("latin-1")  # only escapes are changed
    try:
        return json.loads(text, parse_constant=lambda _: None)
    except (ValueError, RecursionError):
        return None
