"""Errors that come from another process."""

import pytest

from towline import errors
from towline.errors import Fault, InputValidationError, TowlineError, restored

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, TowlineError)]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_an_error_is_restored(kind: type[TowlineError]) -> None:
    """The text and the exit code are the same."""
    if kind is InputValidationError:
        error: TowlineError = InputValidationError(
            [Fault(0, "hour", "is no number"), Fault(3, "hour", "is no number")], 2
        )
    else:
        error = kind("no such table", where="a.csv", remedy="give another", details=("one", "two"))
    again = restored(error.as_dict())
    assert (str(again), again.exit_code) == (str(error), error.exit_code)
    if kind is not InputValidationError:
        assert type(again) is kind


def test_an_unknown_error_is_restored() -> None:
    """An error of an unknown type becomes a plain error with the same text."""
    error = restored({"error": "Later", "what": "it is late", "where": "", "remedy": "wait", "details": []})
    assert (type(error), error.what, error.exit_code) == (TowlineError, "it is late", 1)
