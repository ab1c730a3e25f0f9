"""Forms: operations for which a null argument does not simply give null, such as ``and``, ``case`` and ``coalesce``.

Each has a function of one row and a function of columns.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import isnan, nan
from typing import Any

import numpy as np

from towline.expressions import operations
from towline.expressions.operations import Operation, Type
from towline.expressions.parts import NULL, Columns, Compiled, Masked, Row, RowFunction, make_null
from towline.expressions.row_functions import LOGICAL, BooleanValues
from towline.expressions.strict_operations import argument_position, check_argument, compile_operation, unify_types
from towline.expressions.syntax import Call, ExpressionError


def _expect_type(node: Call, arguments: Sequence[Compiled], places: Iterable[int], type_: Type) -> list[Compiled]:
    checked = list(arguments)
    for place in places:
        if checked[place].type is None:
            checked[place] = make_null(type_)
        check_argument(node, type_, checked[place], place)
    return checked


def _compile_and(node: Call, arguments: Sequence[Compiled]) -> Compiled:
    return _compile_connection(node, arguments, decisive=False)


def _compile_or(node: Call, arguments: Sequence[Compiled]) -> Compiled:
    return _compile_connection(node, arguments, decisive=True)


def _compile_connection(node: Call, arguments: Sequence[Compiled], *, decisive: bool) -> Compiled:
    """``and`` and ``or``: one ``decisive`` argument decides, whatever the other is."""
    left, right = _expect_type(node, arguments, (0, 1), "boolean")
    first, second = left.row, right.row

    def row(row: Row) -> Any:
        left_value = first(row)
        if left_value is decisive:
            return decisive
        right_value = second(row)
        if right_value is decisive:
            return decisive
        return None if left_value is None or right_value is None else not decisive

    def columns(columns: Columns) -> Masked:
        (left_values, left_null), (right_values, right_null) = left.columns(columns), right.columns(columns)
        decided = (~left_null & (left_values == decisive)) | (~right_null & (right_values == decisive))
        return decided == decisive, ~decided & (left_null | right_null)

    return Compiled("boolean", row, columns)


def _compile_between(node: Call, arguments: Sequence[Compiled]) -> Compiled:
    _, (value, low, high) = unify_types(node, arguments, (0, 1, 2))
    connected = _connect_bounds(node, value, low, high)
    if value.type != "number" or not (low.is_constant and high.is_constant) or isnan(low.constant + high.constant):
        return connected
    function, least, most = value.row, low.constant, high.constant

    def build(limit: float, booleans: BooleanValues) -> RowFunction:  # noqa: ARG001 - of numbers
        true, false, null = booleans

        def row(row: Row) -> Any:
            number = function(row)
            return true if least <= number <= most else false if number == number else null  # noqa: PLR0124 - NaN

        return row

    return connected._replace(row=build(0.0, LOGICAL), build=build)


def _connect_bounds(node: Call, value: Compiled, low: Compiled, high: Compiled) -> Compiled:
    above = compile_operation(Call(">=", node.arguments[:2], node.at), operations.OPERATIONS[">="], [value, low])
    below_node = Call("<=", (node.arguments[0], node.arguments[2]), node.at)
    below = compile_operation(below_node, operations.OPERATIONS["<="], [value, high])
    return _compile_and(node, [above, below])


def _compile_is_null(node: Call, arguments: Sequence[Compiled]) -> Compiled:  # noqa: ARG001 - a form
    (argument,) = arguments
    function = argument.row

    def number(row: Row) -> bool:
        value = function(row)
        return bool(value != value)  # noqa: PLR0124 - NaN

    def columns(columns: Columns) -> Masked:
        _, null = argument.columns(columns)
        return null, np.zeros(columns.count, dtype=bool)

    return Compiled("boolean", number if argument.type == "number" else lambda row: function(row) is None, columns)


def _compile_in(node: Call, arguments: Sequence[Compiled]) -> Compiled:
    _check_count(node, arguments, 2)
    for place, member in enumerate(arguments[1:], 1):
        if not member.is_constant or member.type is None:
            raise ExpressionError(
                "in needs constants that are not null", argument_position(node, place), "write a = b or a = c"
            )
    _, (value, *members) = unify_types(node, arguments, range(len(arguments)))
    constants = frozenset(member.constant for member in members)
    function = value.row

    def row(row: Row) -> Any:
        operand = function(row)
        return None if operand is None or operand != operand else operand in constants  # noqa: PLR0124 - NaN

    def columns(columns: Columns) -> Masked:
        values, null = value.columns(columns)
        if values.dtype == object:
            return np.array([text in constants for text in values], dtype=bool), null
        return np.isin(values, np.array(list(constants), dtype=values.dtype)), null

    return Compiled("boolean", row, columns)


def _compile_case(node: Call, arguments: Sequence[Compiled]) -> Compiled:
    conditions = range(0, len(arguments) - 1, 2)
    arguments = _expect_type(node, arguments, conditions, "boolean")
    results = [*range(1, len(arguments) - 1, 2), len(arguments) - 1]
    type_, arguments = unify_types(node, arguments, results)
    branches = [(arguments[place], arguments[place + 1]) for place in conditions]
    return _branch(type_, branches, arguments[-1])


def _branch(type_: Type | None, branches: Sequence[tuple[Compiled, Compiled]], default: Compiled) -> Compiled:
    """The value of the first branch whose condition is true."""
    functions = [(condition.row, value.row) for condition, value in branches]
    otherwise = default.row

    def row(row: Row) -> Any:
        for condition, value in functions:
            if condition(row):
                return value(row)
        return otherwise(row)

    def columns(columns: Columns) -> Masked:
        values, null = (array.copy() for array in default.columns(columns))
        for condition, value in reversed(branches):
            flags, unknown = condition.columns(columns)
            chosen = flags & ~unknown
            branch, branch_null = value.columns(columns)
            values[chosen], null[chosen] = branch[chosen], branch_null[chosen]
        return values, null

    return Compiled(type_, row, columns)


def _compile_switch(node: Call, arguments: Sequence[Compiled]) -> Compiled:
    """``case x when 1 then …``: the value of the first branch that is equal to x."""
    results = [*range(2, len(arguments) - 1, 2), len(arguments) - 1]
    type_, arguments = unify_types(node, arguments, results)
    subject, equal = arguments[0], operations.OPERATIONS["="]
    branches = []
    for place in range(1, len(arguments) - 1, 2):
        test = Call("=", (node.arguments[0], node.arguments[place]), node.arguments[place].at)
        branches.append((compile_operation(test, equal, [subject, arguments[place]]), arguments[place + 1]))
    compiled = _branch(type_, branches, arguments[-1])
    if not all(argument.is_constant for argument in arguments[1:]):
        return compiled
    pairs = [(arguments[at].constant, arguments[at + 1].constant) for at in reversed(range(1, len(arguments) - 1, 2))]
    values = {key: value for key, value in pairs if key is not None and key == key}  # noqa: PLR0124 - null equals nothing
    function, default = subject.row, arguments[-1].constant
    return compiled._replace(row=lambda row: values.get(function(row), default))


def _compile_coalesce(node: Call, arguments: Sequence[Compiled]) -> Compiled:
    _check_count(node, arguments, 2)
    type_, arguments = unify_types(node, arguments, range(len(arguments)))
    functions, null = [argument.row for argument in arguments], NULL.get(type_)
    first, second = functions[:2]

    def row(row: Row) -> Any:
        for function in functions:
            value = function(row)
            if value is not None and value == value:  # noqa: PLR0124 - NaN
                return value
        return null

    def two_numbers(row: Row) -> Any:
        value = first(row)
        return value if value == value else second(row)  # noqa: PLR0124 - NaN

    def columns(columns: Columns) -> Masked:
        values, nulls = (array.copy() for array in arguments[0].columns(columns))
        for argument in arguments[1:]:
            others, other_nulls = argument.columns(columns)
            values[nulls], nulls[nulls] = others[nulls], other_nulls[nulls]
        return values, nulls

    return Compiled(type_, two_numbers if type_ == "number" and len(functions) == 2 else row, columns)


def _compile_nullif(node: Call, arguments: Sequence[Compiled]) -> Compiled:
    _check_count(node, arguments, 2, most=2)
    type_, unified = unify_types(node, arguments, (0, 1))
    equal = compile_operation(node, operations.OPERATIONS["="], unified)
    compiled = _branch(type_, [(equal, make_null(type_))], unified[0])
    if type_ != "number":
        return compiled
    first, second = (argument.row for argument in unified)

    def row(row: Row) -> Any:
        value = first(row)
        return nan if value == second(row) else value

    return compiled._replace(row=row)


def _compile_least(node: Call, arguments: Sequence[Compiled]) -> Compiled:
    return _compile_extreme(node, arguments, operations.OPERATIONS["<"])


def _compile_greatest(node: Call, arguments: Sequence[Compiled]) -> Compiled:
    return _compile_extreme(node, arguments, operations.OPERATIONS[">"])


def _compile_extreme(node: Call, arguments: Sequence[Compiled], comparison: Operation) -> Compiled:
    """The least or the greatest argument that is not null."""
    _check_count(node, arguments, 2)
    type_, arguments = unify_types(node, arguments, range(len(arguments)))
    for place, argument in enumerate(arguments):
        check_argument(node, "ordered", argument, place)
    functions, null = [argument.row for argument in arguments], NULL.get(type_)
    is_better, are_better = comparison.build()

    def row(row: Row) -> Any:
        best = None
        for function in functions:
            value = function(row)
            if value is not None and value == value and (best is None or is_better(value, best)):  # noqa: PLR0124 - NaN
                best = value
        return null if best is None else best

    first, second = functions[:2]

    def two_numbers(row: Row) -> Any:
        left, right = first(row), second(row)
        return right if left != left or is_better(right, left) else left  # noqa: PLR0124 - NaN

    def columns(columns: Columns) -> Masked:
        values, nulls = (array.copy() for array in arguments[0].columns(columns))
        for argument in arguments[1:]:
            others, other_nulls = argument.columns(columns)
            better = ~other_nulls & (nulls | are_better(others, values))  # type: ignore[misc]
            values[better] = others[better]
            nulls = nulls & other_nulls
        return values, nulls

    return Compiled(type_, two_numbers if type_ == "number" and len(functions) == 2 else row, columns)


def _compile_concat(node: Call, arguments: Sequence[Compiled]) -> Compiled:
    _check_count(node, arguments, 1)
    arguments = _expect_type(node, arguments, range(len(arguments)), "text")
    functions = [argument.row for argument in arguments]

    def columns(columns: Columns) -> Masked:
        parts = []
        for argument in arguments:
            values, null = argument.columns(columns)
            parts.append(np.where(null, "", values).tolist())
        joined = np.empty(columns.count, dtype=object)
        joined[:] = list(map("".join, zip(*parts, strict=True)))
        return joined, np.zeros(columns.count, dtype=bool)

    return Compiled("text", lambda row: "".join([function(row) or "" for function in functions]), columns)


def _check_count(node: Call, arguments: Sequence[Compiled], least: int, most: int | None = None) -> None:
    if not least <= len(arguments) <= (most or len(arguments)):
        expected = f"{least}" if most == least else f"at least {least}"
        remedy = "write nullif(x, y)" if node.function == "nullif" else f"write {node.function}(x, y, …)"
        raise ExpressionError(f"{node.function} has {len(arguments)} arguments, not {expected}", node.at, remedy)


FORMS: Mapping[str, Callable[[Call, Sequence[Compiled]], Compiled]] = {
    "and": _compile_and, "or": _compile_or, "between": _compile_between, "is null": _compile_is_null,
    "in": _compile_in, "case": _compile_case, "switch": _compile_switch, "coalesce": _compile_coalesce,
    "nullif": _compile_nullif, "least": _compile_least, "greatest": _compile_greatest, "concat": _compile_concat,
}  # fmt: skip
FUNCTION_FORMS = ("coalesce", "nullif", "least", "greatest", "concat")
