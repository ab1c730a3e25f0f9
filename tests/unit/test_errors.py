"""Errors as they go from one machine to another."""

import pytest

from towline import errors
from towline.errors import Fault, InputValidationError, TowlineError, restored

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, TowlineError)]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_an_error_of_a_worker_is_the_same_error_here(kind: type[TowlineError]) -> None:
    """Its text, and the exit code that a script goes by."""
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


def test_an_error_of_another_version_is_told_all_the_same() -> None:
    """A kind that is not known here is a plain error with the same text."""
    error = restored({"error": "Later", "what": "it is late", "where": "", "remedy": "wait", "details": []})
    assert (type(error), error.what, error.exit_code) == (TowlineError, "it is late", 1)
