"""All errors that towline raises for causes outside its code, with their exit codes.

TowlineError
├── UserError                            the user must correct the cause; never retried
│   ├── ConfigError               T100   exit 2   the YAML or the command line
│   ├── DataError                 T200   exit 2   a table that cannot be read
│   │   └── InputValidationError  T210   exit 2   rows to predict that violate the contract
│   ├── DataValidationError       T300   exit 3   a table that violates its contract
│   ├── FitError                  T400   exit 2   an estimator that cannot be built or fitted
│   ├── PromotionRejectedError    T500   exit 4   a model that failed the gate, or another promotion came first
│   └── ReleaseError              T600   exit 6   a release that differs from its manifest
└── TransientError                T900   exit 5   a store or a server is down or full; retried

Exit code 0 means success, 1 a bug in towline, 130 an interrupt.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar


class TowlineError(Exception):
    """An error for the user: what went wrong, where, and how to correct it.

    Args:
        what: one sentence without a full stop.
        where: the file, column, key or address that is affected.
        remedy: what the user can do.
        details: further lines, one finding per line; shown indented.
    """

    code: ClassVar[str] = "T000"
    exit_code: ClassVar[int] = 1

    def __init__(self, what: str, *, where: str = "", remedy: str = "", details: tuple[str, ...] = ()) -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.remedy = remedy
        self.details = tuple(details)

    def __str__(self) -> str:
        lines = [self.what]
        lines += [f"  {detail}" for detail in self.details]
        if self.where:
            lines.append(f"  where:  {self.where}")
        if self.remedy:
            lines.append(f"  remedy: {self.remedy}")
        return "\n".join(lines)

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.what, self.where, self.remedy, self.details)

    def as_dict(self) -> dict[str, object]:
        return {
            "error": type(self).__name__,
            "code": self.code,
            "what": self.what,
            "where": self.where,
            "remedy": self.remedy,
            "details": list(self.details),
        }


def _rebuild(kind: type[TowlineError], what: str, where: str, remedy: str, details: tuple[str, ...]) -> TowlineError:
    return kind(what, where=where, remedy=remedy, details=details)


def restored(document: Mapping[str, Any]) -> TowlineError:
    """Restores an error from its ``as_dict``, e.g. of another process; InputValidationError becomes DataError."""
    kinds, name = {TowlineError.__name__: TowlineError}, str(document["error"])
    pending = [TowlineError]
    while pending:
        subclasses = pending.pop().__subclasses__()
        kinds |= {kind.__name__: kind for kind in subclasses}
        pending += subclasses
    kind = DataError if name == InputValidationError.__name__ else kinds.get(name, TowlineError)
    details = tuple(map(str, document["details"]))
    return _rebuild(kind, str(document["what"]), str(document["where"]), str(document["remedy"]), details)


class UserError(TowlineError):
    """The user must correct the cause; a retry fails again."""


class ConfigError(UserError):
    code = "T100"
    exit_code = 2


class DataError(UserError):
    code = "T200"
    exit_code = 2


@dataclass(frozen=True)
class Fault:
    """One invalid value: its row, counted from 0, its field, and the reason."""

    row: int
    field: str
    message: str

    def __str__(self) -> str:
        return f"row {self.row + 1}, {self.field!r}: {self.message}"


class InputValidationError(DataError):
    """Rows that cannot be predicted; ``faults`` are at most the first twenty of ``count``."""

    code = "T210"

    def __init__(self, faults: Sequence[Fault], count: int) -> None:
        first = faults[0]
        super().__init__(
            f"row {first.row + 1}: {first.field!r} {first.message}",
            where=first.field,
            remedy="give every field a value of its kind, or null if it is unknown",
            details=tuple(map(str, faults[:10])) if count > 1 else (),
        )
        self.faults = tuple(faults)
        self.count = count

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.faults, self.count)


class DataValidationError(UserError):
    code = "T300"
    exit_code = 3


class FitError(UserError):
    code = "T400"
    exit_code = 2


class PromotionRejectedError(UserError):
    code = "T500"
    exit_code = 4


class ReleaseError(UserError):
    code = "T600"
    exit_code = 6


class TransientError(TowlineError):
    """A store or a server is down, locked or full; a retry may succeed."""

    code = "T900"
    exit_code = 5
