"""How a logged column is stored in Parquet: its Arrow type, its metadata, and values in canonical form."""

import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa

from towline.config import Kind, LoggingPolicy
from towline.data.schema.values import category_name, parse_boolean, parse_number
from towline.prediction_log.privacy import LoggedColumn, StoredType

ARROW_TYPES = {
    "float64": pa.float64(), "int64": pa.int64(), "bool": pa.bool_(), "string": pa.string(),
    "timestamp": pa.timestamp("us"),
}  # fmt: skip


def to_arrow_field(name: str, field: LoggedColumn) -> pa.Field:
    """The column of a part that holds a logged column; its metadata says how values are written and kept."""
    metadata: dict[str, str] = {"kind": field.kind, "kept": field.policy}
    if field.format:
        metadata["format"] = json.dumps(field.format)
    return pa.field(name, ARROW_TYPES[field.stored], metadata=metadata)


def from_arrow_field(name: str, column: pa.Field) -> LoggedColumn:
    """The logged column that a column of a part holds: the inverse of ``arrow_field``."""
    facts = {key.decode(): value.decode() for key, value in (column.metadata or {}).items()}
    kind: Kind = facts.get("kind", "category")
    kept: LoggingPolicy = facts.get("kept", "keep")
    stored: StoredType = str(column.type)  # type: ignore[assignment]
    return LoggedColumn(name, kind, kept, stored, json.loads(facts.get("format", "{}")))


def input_array(values: Sequence[Any], field: LoggedColumn) -> pa.Array:
    """Canonical values of a column that was logged as it came; hashes and buckets are text."""
    read: Callable[[Any], Any] = category_name
    if field.policy == "keep":
        reader = field.reader
        read = reader.read if field.kind != "boolean" else lambda value: _flag(reader.read(value))
    return _array(values, field.stored, read, direct="na_values" not in field.format)


def prediction_array(values: Sequence[Any], stored: str) -> pa.Array:
    """Predictions in the type that the model's classes have."""
    readers: dict[str, Callable[[Any], Any]] = {
        "float64": parse_number,
        "int64": _whole,
        "bool": _flag,
        "string": category_name,
    }
    return _array(values, stored, readers[stored], direct=True)


def _array(values: Sequence[Any], stored: str, read: Callable[[Any], Any], *, direct: bool) -> pa.Array:
    """``direct``: values of the stored type are canonical."""
    if direct and stored not in ("string", "timestamp"):
        try:
            return pa.array(values, ARROW_TYPES[stored], from_pandas=True)
        except (pa.ArrowException, TypeError, OverflowError):
            pass  # a number or a flag that is spelled out
    return pa.array([read(value) for value in values], ARROW_TYPES[stored], from_pandas=True)


def _flag(value: Any) -> bool | None:
    read = parse_boolean(value)
    return None if read != read else bool(read)  # noqa: PLR0124 - NaN


def _whole(value: Any) -> int | None:
    read = parse_number(value)
    return int(read) if math.isfinite(read) else None
