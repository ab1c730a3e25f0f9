"""Tables in JSON: an array of objects, or one object a line. Each object is a row."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from towline.data.schema.values import category_name
from towline.data.source.encodings import read_as_utf8
from towline.errors import DataError

JSON_ARRAYS = (".json",)
JSON_LINES = (".jsonl", ".ndjson")
_HALF = "u[dD][{}][0-9a-fA-F]{{2}}"
#: an escape in JSON: a pair of surrogates, half of one (the group), or another one, which is skipped
_ESCAPE = re.compile(
    rf"\\(?:{_HALF.format('89abAB')}\\{_HALF.format('c-fC-F')}|({_HALF.format('89a-fA-F')})|.)", re.DOTALL
)
_REMEDY = 'write an array of objects or one object a line, e.g. with pandas: to_json(PATH, orient="records")'


def read_json(path: Path) -> pa.Table:
    """The table of a JSON file, whose columns are those of all objects; a missing value is null.

    A column has the type of its values. If they have several types, it is text, in which a value is spelled as a
    category is.

    Raises:
        DataError: the file cannot be read, or is not an array of objects or one object a line.
    """
    rows = list(read_objects(path))
    if not rows:
        raise DataError("no rows", where=str(path), remedy="give a table with rows")
    names = dict.fromkeys(name for row in rows for name in row)
    return pa.table({name: _to_array([row.get(name) for row in rows]) for name in names})


def read_objects(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a JSON file.

    Raises:
        DataError: as ``read_json``.
    """
    text = replace_half_surrogates(read_as_utf8(path)[0].decode("utf-8-sig"))
    if text.lstrip()[:1] == "[":
        try:
            rows = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DataError(f"not readable JSON: {error}", where=str(path), remedy=_REMEDY) from None
        for position, row in enumerate(rows):
            yield _check_row(row, f"{path}, row {position + 1}")
        return
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(f"not readable JSON: {error}", where=f"{path}:{number}", remedy=_REMEDY) from None
            yield _check_row(row, f"{path}:{number}")


def replace_half_surrogates(text: str) -> str:
    r"""JSON with U+FFFD in place of each half of a surrogate pair: a cut emoji, which no file in UTF-8 can hold.

    Example:
        >>> replace_half_surrogates(r'{"text": "cut \ud83d", "whole": "\ud83d\ude00"}')
        '{"text": "cut \\ufffd", "whole": "\\ud83d\\ude00"}'
    """
    if "\\ud" not in text and "\\uD" not in text:
        return text
    return _ESCAPE.sub(lambda escape: r"\ufffd" if escape[1] else escape[0], text)


def _check_row(row: Any, where: str) -> dict[str, Any]:
    # the only object of a file may be a table by columns, as pandas writes by default
    if not isinstance(row, dict) or (row and all(isinstance(value, dict) for value in row.values())):
        raise DataError("this is not an object with a value for each column", where=where, remedy=_REMEDY)
    return row


def _to_array(values: list[Any]) -> pa.Array:
    try:
        return pa.array(values, from_pandas=True)  # NaN is null
    except (pa.ArrowException, OverflowError):
        nested = any(isinstance(value, dict | list) for value in values)
        spell = json.dumps if nested else category_name
        return pa.array([None if value is None else spell(value) for value in values], pa.string())
