"""What every config and every small record is made of."""

import datetime as dt
import difflib
import re
from collections.abc import Iterable
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict


class Frozen(BaseModel):
    """A small immutable record: unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


def _as_duration(value: object) -> object:
    match = re.fullmatch(r"\s*(\d+)\s*(d|days?|h|hours?|w|weeks?)\s*", value) if isinstance(value, str) else None
    if not match:
        return value
    unit = {"d": "days", "h": "hours", "w": "weeks"}[match[2][0]]
    return dt.timedelta(**{unit: int(match[1])})


Duration = Annotated[dt.timedelta, BeforeValidator(_as_duration)]


def suggest(name: str, known: Iterable[str]) -> str:
    """The nearest known name, as a remedy; else all of them."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, 1, 0.5)
    return f"did you mean {near[0]}?" if near else "known: " + ", ".join(names)
