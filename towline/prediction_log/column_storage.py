"""Storage of logged columns in Parquet: the Arrow type, the metadata, and the values in canonical form."""

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
    """The Arrow field of a logged column; its metadata holds the kind, the logging policy and the value format."""
    metadata: dict[str, str] = {"kind": field.kind, "kept": field.policy}
    if field.format:
        metadata["format"] = json.dumps(field.format)
    return pa.field(name, ARROW_TYPES[field.stored], metadata=metadata)


def from_arrow_field(name: str, column: pa.Field) -> LoggedColumn:
    """The logged column of an Arrow field: the inverse of ``to_arrow_field``."""
    metadata = {key.decode(): value.decode() for key, value in (column.metadata or {}).items()}
    kind: Kind = metadata.get("kind", "category")
    policy: LoggingPolicy = metadata.get("kept", "keep")
    stored: StoredType = str(column.type)  # type: ignore[assignment]
    return LoggedColumn(name, kind, policy, stored, json.loads(metadata.get("format", "{}")))


def input_array(values: Sequence[Any], field: LoggedColumn) -> pa.Array:
    """Canonical values of a column that was logged unmodified; hashes and buckets are text."""
    read: Callable[[Any], Any] = category_name
    if field.policy == "keep":
        reader = field.reader
        read = reader.read if field.kind != "boolean" else lambda value: _flag(reader.read(value))
    return _array(values, field.stored, read, direct="na_values" not in field.format)


def prediction_array(values: Sequence[Any], stored: str) -> pa.Array:
    """Predictions in the type of the model's classes."""
    readers: dict[str, Callable[[Any], Any]] = {
        "float64": parse_number,
        "int64": _to_whole_number,
        "bool": _flag,
        "string": category_name,
    }
    return _array(values, stored, readers[stored], direct=True)


def _array(values: Sequence[Any], stored: str, read: Callable[[Any], Any], *, direct: bool) -> pa.Array:
    """An Arrow array; ``direct`` means that values of the stored type are canonical and need no parsing."""
    if direct and stored not in ("string", "timestamp"):
        try:
            return pa.array(values, ARROW_TYPES[stored], from_pandas=True)
        except (pa.ArrowException, TypeError, OverflowError):
            pass  # some numbers or booleans are text
    return pa.array([read(value) for value in values], ARROW_TYPES[stored], from_pandas=True)


def _flag(value: Any) -> bool | None:
    read = parse_boolean(value)
    return None if read != read else bool(read)  # noqa: PLR0124 - NaN


def _to_whole_number(value: Any) -> int | None:
    read = parse_number(value)
    return int(read) if math.isfinite(read) else None
