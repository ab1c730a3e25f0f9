"""The base class of configs and records, and types for durations and shares."""

import datetime as dt
import difflib
import math
import re
from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, PlainSerializer, TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue


class Frozen(BaseModel):
    """An immutable record that rejects unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


MAX_DURATION = dt.timedelta(days=36_500)  # a time of today plus or minus a longer one may have no date


def _as_duration(value: object) -> object:
    units = r"d|days?|h|hours?|w|weeks?|m|min|minutes?|s|seconds?"
    match = re.fullmatch(rf"\s*(\d+)\s*({units})\s*", value) if isinstance(value, str) else None
    if not match:
        return value
    unit = {"d": "days", "h": "hours", "w": "weeks", "m": "minutes", "s": "seconds"}[match[2][0]]
    try:
        return dt.timedelta(**{unit: int(match[1])})
    except OverflowError:
        return dt.timedelta.max


def _check_length(length: dt.timedelta) -> dt.timedelta:
    if not dt.timedelta(0) <= length <= MAX_DURATION:
        raise ValueError(f"a duration must be between 0d and {MAX_DURATION.days}d")
    return length


_BoundedDuration = Annotated[dt.timedelta, AfterValidator(_check_length)]
Duration = Annotated[_BoundedDuration, BeforeValidator(_as_duration)]


def format_duration(length: dt.timedelta | None) -> str:
    """A duration as in a config: 90d, 36h, 10m, 30s; None is ``all``."""
    if length is None:
        return "all"
    for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1)):
        if not length % dt.timedelta(seconds=size):
            return f"{length // dt.timedelta(seconds=size)}{unit}"
    return str(length)


def _as_span(value: object) -> object:
    value = None if value == "all" else _as_duration(value)
    if isinstance(value, dt.timedelta) and value <= dt.timedelta(0):
        raise ValueError("a duration must be positive")
    return value


def _as_budget(value: object) -> object:
    length = _as_duration(value)
    if length is not None and (not isinstance(length, dt.timedelta) or length < dt.timedelta(seconds=1)):
        raise ValueError(f"must be a duration such as 10m or 2h, or null for no limit, not {value!r}")
    return length


def _as_tuple(value: object) -> object:
    """One value, a list, or None as a tuple."""
    if value is None:
        return ()
    return tuple(value) if isinstance(value, list | tuple) else (value,)


def _as_share(value: object) -> object:
    if isinstance(value, str):
        value = TypeAdapter(Duration).validate_python(value)
    if isinstance(value, dt.timedelta) and value <= dt.timedelta(0):
        raise ValueError("a duration must be positive")
    if isinstance(value, int | float) and not 0 < value < 0.9:
        raise ValueError("a share must be greater than 0 and less than 0.9; a duration is written 28d")
    return value


OptionalDuration = Annotated[_BoundedDuration | None, BeforeValidator(_as_span), PlainSerializer(format_duration)]
Budget = Annotated[
    _BoundedDuration | None,
    BeforeValidator(_as_budget, json_schema_input_type=str | None),
    PlainSerializer(lambda budget: None if budget is None else format_duration(budget)),
]
Durations = Annotated[
    tuple[OptionalDuration, ...], BeforeValidator(_as_tuple, json_schema_input_type=str | list[str] | None)
]
Share = Annotated[float | _BoundedDuration, BeforeValidator(_as_share, json_schema_input_type=float | str)]


def format_share(share: float | dt.timedelta) -> float | str:
    """A share or a duration as in a config."""
    return format_duration(share) if isinstance(share, dt.timedelta) else share


class ConfigJsonSchema(GenerateJsonSchema):
    """Writes the JSON schema of a config, with durations in the notation of configs instead of ISO 8601."""

    def timedelta_schema(self, schema: object) -> JsonSchemaValue:  # noqa: ARG002 - of the base class
        return {"type": "string"}

    def encode_default(self, dft: Any) -> Any:
        return format_duration(dft) if isinstance(dft, dt.timedelta) else super().encode_default(dft)


def finite_or_none(value: float) -> float | None:
    """A number of a record; None if it is NaN or infinite, which JSON cannot hold."""
    return float(value) if math.isfinite(value) else None


def bare_name(name: str) -> str:
    """A name without the spaces and quotes around it.

    Example:
        >>> bare_name(" 'vote'")
        'vote'
    """
    return name.strip(" \t\"'")


def suggest(name: str, known: Iterable[str]) -> str:
    """A remedy for an unknown name: the most similar known name, else up to 30 known names."""
    names = sorted(set(known))
    similar = difflib.get_close_matches(name, names, 1, 0.5)
    if similar and bare_name(similar[0]) != similar[0]:
        return f"did you mean {similar[0]!r}? The spaces and quotes belong to the name"
    return f"did you mean {similar[0]}?" if similar else "known: " + ", ".join(names[:30])
