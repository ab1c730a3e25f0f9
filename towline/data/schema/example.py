"""A row that a contract takes, made up: what is shown to people is no row of the training table."""

import math
from typing import Any

from towline.data.schema.contract import Column, Contract

_TIME = "2026-01-15T12:00:00"


def example_row(contract: Contract) -> dict[str, Any]:
    """One value for each feature, as JSON: the middle of its range, its first category; of personal data a stand-in."""
    return {column.name: example_value(column) for column in contract.feature_columns}


def example_value(column: Column) -> Any:
    if column.kind == "category":
        return column.categories[0] if column.categories else "example"
    if column.kind == "datetime":
        return _TIME
    if column.kind == "boolean":
        return True
    if column.min is None or column.max is None:
        return 1 if column.integer else 1.0
    return _rounded(column.min / 2 + column.max / 2, column)


def _rounded(middle: float, column: Column) -> float | int:
    """With as few digits as leave it within the range."""
    if column.integer:
        return int(middle)
    assert column.min is not None  # noqa: S101 - the caller has looked
    assert column.max is not None  # noqa: S101
    width = column.max - column.min
    digits = 1 - math.floor(math.log10(width)) if 0 < width < math.inf else 15
    rounded = round(middle, digits) if abs(digits) < 300 else middle
    return rounded if column.min <= rounded <= column.max else middle
