"""Example rows that fit a contract: they are made up, so that no row of the training table is shown."""

import math
from typing import Any

from towline.data.schema.contract import Column, Contract

_TIME = "2026-01-15T12:00:00"


def example_row(contract: Contract) -> dict[str, Any]:
    """A JSON value for each feature: the middle of its range or its first category; a constant for personal data."""
    return {column.name: example_value(column) for column in contract.input_columns}


def example_value(column: Column) -> Any:
    if column.kind == "category":
        return column.categories[0] if column.categories else "example"
    if column.kind == "text":
        return "An example text"
    if column.kind == "datetime":
        return _TIME
    if column.kind == "boolean":
        return True
    if column.min is None or column.max is None:
        return 1 if column.integer else 1.0
    middle, width = column.min / 2 + column.max / 2, column.max - column.min
    if column.integer:
        return int(middle)
    digits = 1 - math.floor(math.log10(width)) if 0 < width < math.inf else 15
    rounded = round(middle, digits) if abs(digits) < 300 else middle
    return rounded if column.min <= rounded <= column.max else middle
