"""Checks that prevent a test from passing on an empty collection."""

from collections.abc import Iterable
from typing import TypeVar

T = TypeVar("T")


def at_least_one(items: Iterable[T]) -> list[T]:
    """The items as a list, for a loop of assertions; fails if there are none."""
    checked = list(items)
    assert checked, "there is nothing to check"
    return checked
