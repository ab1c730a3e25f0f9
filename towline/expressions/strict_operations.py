"""Compilation of strict operations: an operation and its arguments become a function of one row and one of columns."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from towline.expressions import operations
from towline.expressions.operations import ConstantError, Operation, Type
from towline.expressions.parts import (
    DTYPES,
    EMPTY,
    LARGEST_FLOAT,
    Columns,
    Compiled,
    Masked,
    make_null,
)  # fmt: skip
from towline.expressions.row_functions import build_row_function
from towline.expressions.syntax import Call, ExpressionError


def unify_types(
    node: Call, arguments: Sequence[Compiled], positions: Sequence[int]
) -> tuple[Type | None, list[Compiled]]:
    """The one type of the arguments at some positions, and all arguments with nulls of this type."""
    types = {arguments[place].type: place for place in reversed(positions) if arguments[place].type is not None}
    if len(types) > 1:
        (first, _), (second, place) = sorted(types.items(), key=lambda item: item[1])[:2]
        what = f"{title(node)} of {first} and {second}"
        raise ExpressionError(what, argument_position(node, place), _conversion_hint(str(first), str(second)))
    type_ = next(iter(types), None)
    unified = list(arguments)
    for place in positions:
        if arguments[place].type is None and type_ is not None:
            unified[place] = make_null(type_)
    return type_, unified


def title(node: Call) -> str:
    return {"||": "||", "switch": "case"}.get(node.function, node.function)


def argument_position(node: Call, place: int) -> int:
    return node.arguments[place].at if place < len(node.arguments) else node.at


def _conversion_hint(expected: str, given: str) -> str:
    if (given, expected) in operations.CASTS:
        return f"convert one: cast(… as {expected})"
    if expected == "datetime" or given == "datetime":
        return "compare a time with timestamp '2026-01-31', or use days_between(a, b) or a part such as year(a)"
    return "use values of one type"


def compile_cast(node: Call, argument: Compiled) -> Compiled:
    target = node.function.removeprefix("cast as ")
    if argument.type is None:
        return make_null(target)  # type: ignore[arg-type]
    if argument.type == target:
        return argument
    operation = operations.CASTS.get((argument.type, target))
    if operation is None:
        remedy = "use a part of the time, such as year(a)" if argument.type == "datetime" else "cast it to text first"
        raise ExpressionError(f"a {argument.type} cannot be cast to {target}", node.at, remedy)
    return compile_operation(node, operation, [argument])


def compile_operation(node: Call, operation: Operation, arguments: Sequence[Compiled]) -> Compiled:
    """A strict operation on its arguments, after their number and types are checked."""
    parameters = _parameters_for(node, operation, len(arguments))
    generic = [place for place, parameter in enumerate(parameters) if parameter in ("any", "ordered")]
    type_, arguments = unify_types(node, arguments, generic) if generic else (None, list(arguments))
    constants, places = [], []
    for place, parameter in enumerate(parameters):
        if arguments[place].type is None and place not in generic and "!" not in parameter:
            arguments[place] = make_null(parameter)  # type: ignore[arg-type]
        check_argument(node, parameter, arguments[place], place)
        if "!" in parameter:
            constants.append(arguments[place].constant)
        else:
            places.append(place)
    try:
        function, column_function = operation.build(*constants)
    except ConstantError as error:
        place = next(place for place, parameter in enumerate(parameters) if "!" in parameter)
        raise ExpressionError(str(error), argument_position(node, place)) from None
    result: Any = type_ if operation.result in ("any", "ordered") else operation.result
    dynamic = [arguments[place] for place in places]
    return Compiled(
        result,
        build_row_function(function, dynamic, result),
        _strict_column_function(function, column_function, dynamic, result),
        build=partial(build_row_function, function, dynamic, result),
    )


def _parameters_for(node: Call, operation: Operation, count: int) -> list[str]:
    """The parameter of each of ``count`` arguments."""
    parameters = list(operation.parameters)
    least = sum(not parameter.endswith("?") for parameter in parameters)
    if parameters and parameters[-1].endswith("..."):
        parameters += [parameters[-1]] * (count - len(parameters))
    if not least <= count <= len(parameters):
        expected = f"{least}" if least == len(parameters) else f"{least} to {len(parameters)}"
        given = f"{count} argument{'s' if count != 1 else ''}"
        raise ExpressionError(f"{node.function} has {given}, not {expected}", node.at, _usage(node.function, operation))
    return parameters[:count]


def _usage(name: str, operation: Operation) -> str:
    return f"write {name}({', '.join(parameter.strip('!?.') for parameter in operation.parameters)})"


def check_argument(node: Call, parameter: str, argument: Compiled, place: int) -> None:
    expected = parameter.strip("!?.")
    at = argument_position(node, place)
    if "!" in parameter and (not argument.is_constant or argument.type is None):
        raise ExpressionError(f"argument {place + 1} of {title(node)} must be a constant", at, f"write a {expected}")
    if expected == "any" or (expected == "ordered" and argument.type != "boolean") or argument.type is None:
        return
    if expected == "ordered":
        raise ExpressionError(f"{title(node)} of booleans", at, "write a = b, or cast(… as number)")
    if argument.type != expected:
        what = f"{title(node)} needs a {expected}, not a {argument.type}"
        raise ExpressionError(what, at, _conversion_hint(expected, argument.type))


def _strict_column_function(
    function: Callable[..., Any],
    column_function: Callable[..., np.ndarray] | None,
    arguments: list[Compiled],
    result: str,
) -> Callable[[Columns], Masked]:
    """The same for columns; without a function of columns, that of one row is called for each row."""

    def columns(columns: Columns) -> Masked:
        read = [argument.columns(columns) for argument in arguments]
        null = read[0][1]
        for _, other in read[1:]:
            null = null | other
        if column_function is None:
            return _apply([values for values, _ in read], null, function, result)
        values = column_function(*(values for values, _ in read))
        return values, (null | ~np.isfinite(values) if result == "number" else null)

    return columns


def _apply(arrays: list[np.ndarray], null: np.ndarray, function: Callable[..., Any], result: str) -> Masked:
    """Calls a function of one row for each row; for columns with text once for each distinct row."""
    values = np.full(len(null), EMPTY[result], dtype=DTYPES[result])
    rows = np.flatnonzero(~null)
    known: dict[Any, Any] | None = {} if any(array.dtype == object for array in arrays) else None
    results: list[Any] = []
    for row in zip(*(array[rows].tolist() for array in arrays), strict=True):
        if known is not None and row in known:
            results.append(known[row])
            continue
        try:
            value = function(*row)
        except (ArithmeticError, ValueError):
            value = None
        if result == "number" and value is not None and not -LARGEST_FLOAT <= value <= LARGEST_FLOAT:
            value = None
        results.append(value)
        if known is not None:
            known[row] = value
    missing = np.array([value is None for value in results], dtype=bool)
    filled = np.empty(len(results), dtype=DTYPES[result])
    filled[:] = [EMPTY[result] if value is None else value for value in results]
    values[rows] = filled
    nulls = null.copy()
    nulls[rows] = missing
    return values, nulls
