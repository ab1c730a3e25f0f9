"""Functions of one row for strict operations, by the types of their arguments and results.

A service calls them for each request, so there are special ones for the most frequent arguments, columns and constants:
each call that they save takes as long as the operation. A null number is NaN, null of other types is None.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from towline.expressions.parts import LARGEST_FLOAT, Compiled, Row, RowFunction

Function = Callable[..., Any]


class BooleanValues(NamedTuple):
    """The values that true, false and null have."""

    true: Any
    false: Any
    null: Any


LOGICAL = BooleanValues(True, False, None)
CANONICAL = BooleanValues(1.0, 0.0, math.nan)  # of a feature


def build_row_function(
    function: Function,
    arguments: list[Compiled],
    result: str,
    limit: float = LARGEST_FLOAT,
    booleans: BooleanValues = LOGICAL,
) -> RowFunction:
    """The function of one row; null if an argument is null, the arithmetic fails or a number is beyond ``limit``.

    Args:
        function: of the values of the arguments.
        arguments: one or two.
        result: the type of the result.
        limit: largest absolute value of a number.
        booleans: the values of a boolean result.
    """
    first, *rest = arguments
    numeric = first.type == "number"
    if result == "number":
        if not rest:
            return (_calculate if numeric else _measure)(function, first.row, limit)
        if not numeric:
            return _measure_two(function, first.row, rest[0].row, limit)
        return _build_arithmetic(function, first, rest[0], limit)
    if result != "boolean":
        return _convert_number(function, first.row) if numeric else _build_text_function(function, first, rest)
    if not rest:
        return (_test_number if numeric else _test)(function, first.row, booleans)
    return _build_comparison(function, first, rest[0], booleans)


def _build_arithmetic(function: Function, left: Compiled, right: Compiled, limit: float) -> RowFunction:
    if left.place is not None and right.is_constant:
        return _calculate_column(function, left.place, right.constant, limit)
    if left.place is not None and right.place is not None:
        return _calculate_columns(function, left.place, right.place, limit)
    return _calculate_two(function, left.row, right.row, limit)


def _build_comparison(function: Function, left: Compiled, right: Compiled, booleans: BooleanValues) -> RowFunction:
    numeric = left.type == "number"
    if right.is_constant and (right.constant is None or right.constant != right.constant):
        return lambda _: booleans.null
    if right.is_constant and left.place is not None:
        return (_test_number_column if numeric else _test_column)(function, left.place, right.constant, booleans)
    return (_test_two_numbers if numeric else _test_two)(function, left.row, right.row, booleans)


def _build_text_function(function: Function, first: Compiled, rest: list[Compiled]) -> RowFunction:
    return _join(function, first.row, rest[0].row) if rest else _convert(function, first.row)


def _calculate(function: Function, argument: RowFunction, limit: float) -> RowFunction:
    low = -limit

    def evaluate(row: Row) -> Any:
        value = argument(row)
        if value != value:  # noqa: PLR0124 - NaN
            return value
        try:
            value = function(value)
        except (ArithmeticError, ValueError):
            return math.nan
        return value if low <= value <= limit else math.nan

    return evaluate


def _calculate_two(function: Function, first: RowFunction, second: RowFunction, limit: float) -> RowFunction:
    low = -limit

    def evaluate(row: Row) -> Any:
        try:
            value = function(first(row), second(row))
        except (ArithmeticError, ValueError):
            return math.nan
        return value if low <= value <= limit else math.nan

    return evaluate


def _calculate_columns(function: Function, first: int, second: int, limit: float) -> RowFunction:
    low = -limit

    def evaluate(row: Row) -> Any:
        try:
            value = function(row[first], row[second])
        except (ArithmeticError, ValueError):
            return math.nan
        return value if low <= value <= limit else math.nan

    return evaluate


def _calculate_column(function: Function, place: int, constant: float, limit: float) -> RowFunction:
    low = -limit

    def evaluate(row: Row) -> Any:
        try:
            value = function(row[place], constant)
        except (ArithmeticError, ValueError):
            return math.nan
        return value if low <= value <= limit else math.nan

    return evaluate


def _measure(function: Function, argument: RowFunction, limit: float) -> RowFunction:
    low = -limit

    def evaluate(row: Row) -> Any:
        value = argument(row)
        value = None if value is None else function(value)
        return math.nan if value is None or not low <= value <= limit else value

    return evaluate


def _measure_two(function: Function, first: RowFunction, second: RowFunction, limit: float) -> RowFunction:
    low = -limit

    def evaluate(row: Row) -> Any:
        left, right = first(row), second(row)
        if left is None or right is None:
            return math.nan
        value = function(left, right)
        return value if low <= value <= limit else math.nan

    return evaluate


def _convert_number(function: Function, argument: RowFunction) -> RowFunction:
    def evaluate(row: Row) -> Any:
        value = argument(row)
        return function(value) if value == value else None  # noqa: PLR0124 - NaN

    return evaluate


def _convert(function: Function, argument: RowFunction) -> RowFunction:
    def evaluate(row: Row) -> Any:
        value = argument(row)
        return None if value is None else function(value)

    return evaluate


def _join(function: Function, first: RowFunction, second: RowFunction) -> RowFunction:
    def evaluate(row: Row) -> Any:
        left, right = first(row), second(row)
        return None if left is None or right is None else function(left, right)

    return evaluate


def _test_number(function: Function, argument: RowFunction, booleans: BooleanValues) -> RowFunction:
    true, false, null = booleans

    def evaluate(row: Row) -> Any:
        value = argument(row)
        return null if value != value else true if function(value) else false  # noqa: PLR0124 - NaN

    return evaluate


def _test(function: Function, argument: RowFunction, booleans: BooleanValues) -> RowFunction:
    true, false, null = booleans

    def evaluate(row: Row) -> Any:
        value = argument(row)
        value = None if value is None else function(value)
        return null if value is None else true if value else false

    return evaluate


def _test_two_numbers(
    function: Function, first: RowFunction, second: RowFunction, booleans: BooleanValues
) -> RowFunction:
    true, false, null = booleans

    def evaluate(row: Row) -> Any:
        left, right = first(row), second(row)
        if left != left or right != right:  # noqa: PLR0124 - NaN
            return null
        return true if function(left, right) else false

    return evaluate


def _test_two(function: Function, first: RowFunction, second: RowFunction, booleans: BooleanValues) -> RowFunction:
    true, false, null = booleans

    def evaluate(row: Row) -> Any:
        left, right = first(row), second(row)
        if left is None or right is None:
            return null
        return true if function(left, right) else false

    return evaluate


def _test_number_column(function: Function, place: int, constant: float, booleans: BooleanValues) -> RowFunction:
    true, false, null = booleans

    def evaluate(row: Row) -> Any:
        value = row[place]
        return null if value != value else true if function(value, constant) else false  # noqa: PLR0124 - NaN

    return evaluate


def _test_column(function: Function, place: int, constant: Any, booleans: BooleanValues) -> RowFunction:
    true, false, null = booleans

    def evaluate(row: Row) -> Any:
        value = row[place]
        return null if value is None else true if function(value, constant) else false

    return evaluate
