"""Compilation of expressions: from a tree to two functions, for one row and for columns, after its types are checked.

The functions are closures that call each other. Nothing is evaluated as Python code.

In the function of one row, numbers are float with NaN for null, booleans are bool, and null of other types is None. In
that of columns, a value is an array and an array of nulls; values in null rows have no meaning.
"""

import datetime as dt
import difflib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np

from towline.expressions import operations
from towline.expressions.operations import ConstantError, Operation, Type
from towline.expressions.syntax import Call, ExpressionError, Literal, Name, Node, list_columns, parse

LARGEST = 1e38  # of a feature; larger numbers are null, because some estimators round to float32

Row = Sequence[Any]
RowFunction = Callable[[Row], Any]
Masked = tuple[np.ndarray, np.ndarray]  # values (n,), and whether they are null (n,)
_LARGEST_FLOAT = 1.7976931348623157e308
_DTYPES: Mapping[str, Any] = {"number": np.float64, "boolean": np.bool_, "text": object, "datetime": "datetime64[us]"}
_EMPTY: Mapping[str, Any] = {"number": 0.0, "boolean": False, "text": "", "datetime": np.datetime64(0, "us")}
_NULL: Mapping[Type | None, Any] = {"number": math.nan}  # in functions of one row; of other types None
_FIRST, _LAST = np.datetime64("0001-01-01", "us"), np.datetime64("9999-12-31T23:59:59.999999", "us")
_ONE_ROW = "an expression reads one row; compute it in data.source"
_CLOCK = "the result would depend on the clock; use a column with the time of the row"
_HINTS: Mapping[str, str] = {
    "log": "write ln (natural) or log10", "len": "write length", "min": "write least", "max": "write greatest",
    "pow": "write power", "ceiling": "write ceil", "if": "write case when … then … else … end",
    "ifnull": "write coalesce",
    "isnull": "write x is null", "substr": "write substring", "regexp_like": "write regexp_matches",
    "datediff": "write date_diff", "dayofweek": "write weekday (0 is Monday)", "dow": "write weekday (0 is Monday)",
    "mod": "write a % b", "trunc": "write floor", "to_number": "write cast(x as number)",
    **dict.fromkeys(("avg", "mean", "sum", "count", "median", "lag", "lead", "row_number", "rank"), _ONE_ROW),
    **dict.fromkeys(("now", "today", "current_date", "current_timestamp"), _CLOCK),
    **dict.fromkeys(("random", "rand", "uuid"), "a feature has the same value each time"),
}  # fmt: skip


class Compiled(NamedTuple):
    """A typed part of an expression.

    Attributes:
        type: of its value; None: it is always null.
        row: its function of one row.
        columns: its function of columns.
        is_constant: whether it is a literal.
        constant: its value then.
        limited: of an operation: ``row`` with a smaller limit for numbers.
    """

    type: Type | None
    row: RowFunction
    columns: Callable[["Columns"], Masked]
    is_constant: bool = False
    constant: Any = None
    limited: Callable[[float], RowFunction] | None = None


class Columns:
    """The canonical columns that expressions read; each is converted once."""

    def __init__(self, arrays: Sequence[np.ndarray], count: int) -> None:
        self.count, self._arrays = count, arrays
        self._read: dict[int, Masked] = {}

    def read(self, place: int, type_: Type) -> Masked:
        """A column as values and nulls."""
        if place not in self._read:
            self._read[place] = _to_masked(self._arrays[place], type_)
        return self._read[place]


class Expression:
    """A compiled expression.

    Args:
        text: of the expression.
        columns: for each column that it may read the type and its position in a canonical row.

    Raises:
        ExpressionError: the text is no expression, names an unknown column or function, or its types do not fit.

    Example:
        >>> ratio = Expression("a / b", {"a": ("number", 0), "b": ("number", 1)})
        >>> ratio.type, ratio.evaluate([1.0, 4.0]), ratio.evaluate([1.0, 0.0])
        ('number', 0.25, nan)
        >>> ratio.evaluate_columns(Columns([np.array([1.0, 1.0]), np.array([4.0, 0.0])], 2))
        array([0.25,  nan])
    """

    def __init__(self, text: str, columns: Mapping[str, tuple[Type, int]]) -> None:
        tree = parse(text)
        self.text = text
        self.inputs = tuple(name.name for name in list_columns(tree))
        compiled = _Compiler(columns).compile(tree)
        if compiled.type is None:
            raise ExpressionError("the result is always null", 0, "write an expression with a column")
        self.type: Type = compiled.type
        self._columns = compiled.columns
        self.evaluate: Callable[[Row], Any] = _to_canonical(compiled)

    def evaluate_columns(self, columns: Columns) -> np.ndarray:
        """The canonical column (n,); null is NaN, of times NaT."""
        with np.errstate(all="ignore"):
            values, null = self._columns(columns)
        if self.type == "datetime":
            return np.where(null, np.datetime64("NaT", "us"), values)
        if self.type == "text":
            return _nullify_texts(values, null)
        numbers = values.astype(np.float64)
        return np.where(null | (np.abs(numbers) > LARGEST), np.nan, numbers)


def _to_canonical(compiled: Compiled) -> Callable[[Row], Any]:
    """The function of one row with a canonical result: NaN for null numbers and booleans, None for null texts."""
    function, nan = compiled.row, math.nan

    if compiled.type == "number" and compiled.limited:
        return compiled.limited(LARGEST)

    def number(row: Row) -> Any:
        value = function(row)
        return value if -LARGEST <= value <= LARGEST else nan

    def boolean(row: Row) -> float:
        value = function(row)
        return nan if value is None else 1.0 if value else 0.0

    def text(row: Row) -> str | None:
        value = function(row)
        return value if value and not value.isspace() else None

    functions = {"number": number, "boolean": boolean, "text": text, "datetime": function}
    return functions[str(compiled.type)]


def _nullify_texts(values: np.ndarray, null: np.ndarray) -> np.ndarray:
    texts = np.empty(len(values), dtype=object)
    texts[:] = [
        math.nan if missing or not text or text.isspace() else text
        for text, missing in zip(values.tolist(), null.tolist(), strict=True)
    ]
    return texts


def _to_masked(array: np.ndarray, type_: Type) -> Masked:
    """A canonical column as values and nulls."""
    if type_ == "text":
        null = np.array([value.__class__ is not str for value in array], dtype=bool)
        values = array.copy()
        values[null] = ""
        return values, null
    if type_ == "datetime":
        null = ~((array >= _FIRST) & (array <= _LAST))  # NaT too
        return np.where(null, _EMPTY["datetime"], array), null
    null = np.isnan(array)
    return (array == 1.0 if type_ == "boolean" else array), null


class _Compiler:
    def __init__(self, columns: Mapping[str, tuple[Type, int]]) -> None:
        self._known = columns

    def compile(self, node: Node) -> Compiled:
        if isinstance(node, Literal):
            return _compile_literal(node)
        if isinstance(node, Name):
            return self._compile_column(node)
        arguments = [self.compile(argument) for argument in node.arguments]
        if node.function in _FORMS:
            return _FORMS[node.function](node, arguments)
        if node.function.startswith("cast as "):
            return _compile_cast(node, arguments[0])
        operation = operations.OPERATIONS.get(node.function)
        if operation is None:
            raise _unknown_function(node)
        return _compile_operation(node, operation, arguments)

    def _compile_column(self, node: Name) -> Compiled:
        if node.name not in self._known:
            raise ExpressionError(f"unknown column {node.name!r}", node.at, suggest(node.name, self._known))
        type_, place = self._known[node.name]
        return Compiled(type_, _column_function(type_, place), lambda columns: columns.read(place, type_))


def suggest(name: str, known: Iterable[str]) -> str:
    """A question with the most similar name, or the names."""
    names = list(known)
    similar = difflib.get_close_matches(name, names, 1, 0.6) or [each for each in names if each.lower() == name.lower()]
    if similar:
        return f"did you mean {similar[0]}?"
    return f"known: {', '.join(names[:20])}{', …' if len(names) > 20 else ''}"


def known_functions() -> list[str]:
    """The names of all functions, sorted."""
    words = {"negative", "not", "like"}  # operators
    return sorted({*(name for name in operations.OPERATIONS if name.isidentifier()), *_FUNCTION_FORMS} - words)


def _unknown_function(node: Call) -> ExpressionError:
    remedy = _HINTS.get(node.function) or suggest(node.function, known_functions())
    return ExpressionError(f"unknown function {node.function!r}", node.at, remedy)


def _column_function(type_: Type, place: int) -> RowFunction:
    def boolean(row: Row) -> Any:
        value = row[place]
        return None if value != value else value == 1.0  # noqa: PLR0124 - NaN

    return boolean if type_ == "boolean" else itemgetter(place)


def _compile_literal(node: Literal) -> Compiled:
    value = node.value
    if value is None:
        return _null(None)
    types: dict[type, Type] = {float: "number", str: "text", bool: "boolean", dt.datetime: "datetime"}
    type_ = types[type(value)]
    single = np.empty(1, dtype=_DTYPES[type_])
    single[0] = value

    def columns(columns: Columns) -> Masked:
        return np.broadcast_to(single, columns.count), np.broadcast_to(np.False_, columns.count)

    return Compiled(type_, lambda _: value, columns, is_constant=True, constant=value)


def _null(type_: Type | None) -> Compiled:
    """The constant null, of a type if it is used where one is needed."""
    single = np.empty(1, dtype=_DTYPES[type_ or "number"])
    single[0] = _EMPTY[type_ or "number"]

    def columns(columns: Columns) -> Masked:
        return np.broadcast_to(single, columns.count), np.broadcast_to(np.True_, columns.count)

    value = _NULL.get(type_)
    return Compiled(type_, lambda _: value, columns, is_constant=True, constant=value)


def _unify(node: Call, arguments: Sequence[Compiled], positions: Sequence[int]) -> tuple[Type | None, list[Compiled]]:
    """The one type of the arguments at some positions, and all arguments with nulls of this type."""
    types = {arguments[place].type: place for place in reversed(positions) if arguments[place].type is not None}
    if len(types) > 1:
        (first, _), (second, place) = sorted(types.items(), key=lambda item: item[1])[:2]
        what = f"{_title(node)} of {first} and {second}"
        raise ExpressionError(what, _position(node, place), _conversion_hint(str(first), str(second)))
    type_ = next(iter(types), None)
    unified = list(arguments)
    for place in positions:
        if arguments[place].type is None and type_ is not None:
            unified[place] = _null(type_)
    return type_, unified


def _title(node: Call) -> str:
    return {"||": "||", "switch": "case"}.get(node.function, node.function)


def _position(node: Call, place: int) -> int:
    return node.arguments[place].at if place < len(node.arguments) else node.at


def _conversion_hint(expected: str, given: str) -> str:
    if (given, expected) in operations.CASTS:
        return f"convert one: cast(… as {expected})"
    if expected == "datetime" or given == "datetime":
        return "compare a time with timestamp '2026-01-31', or use days_between(a, b) or a part such as year(a)"
    return "use values of one type"


def _compile_cast(node: Call, argument: Compiled) -> Compiled:
    target = node.function.removeprefix("cast as ")
    if argument.type is None:
        return _null(target)  # type: ignore[arg-type]
    if argument.type == target:
        return argument
    operation = operations.CASTS.get((argument.type, target))
    if operation is None:
        remedy = "use a part of the time, such as year(a)" if argument.type == "datetime" else "cast it to text first"
        raise ExpressionError(f"a {argument.type} cannot be cast to {target}", node.at, remedy)
    return _compile_operation(node, operation, [argument])


def _compile_operation(node: Call, operation: Operation, arguments: Sequence[Compiled]) -> Compiled:
    """A strict operation on its arguments, after their number and types are checked."""
    parameters = _parameters_for(node, operation, len(arguments))
    generic = [place for place, parameter in enumerate(parameters) if parameter in ("any", "ordered")]
    type_, arguments = _unify(node, arguments, generic) if generic else (None, list(arguments))
    constants, places = [], []
    for place, parameter in enumerate(parameters):
        if arguments[place].type is None and place not in generic and "!" not in parameter:
            arguments[place] = _null(parameter)  # type: ignore[arg-type]
        _check_argument(node, parameter, arguments[place], place)
        if "!" in parameter:
            constants.append(arguments[place].constant)
        else:
            places.append(place)
    try:
        function, column_function = operation.build(*constants)
    except ConstantError as error:
        place = next(place for place, parameter in enumerate(parameters) if "!" in parameter)
        raise ExpressionError(str(error), _position(node, place)) from None
    result: Any = type_ if operation.result in ("any", "ordered") else operation.result
    dynamic = [arguments[place] for place in places]
    return Compiled(
        result,
        _strict_row_function(function, dynamic, result),
        _strict_column_function(function, column_function, dynamic, result),
        limited=partial(_strict_row_function, function, dynamic, result),
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


def _check_argument(node: Call, parameter: str, argument: Compiled, place: int) -> None:
    expected = parameter.strip("!?.")
    at = _position(node, place)
    if "!" in parameter and (not argument.is_constant or argument.type is None):
        raise ExpressionError(f"argument {place + 1} of {_title(node)} must be a constant", at, f"write a {expected}")
    if expected == "any" or (expected == "ordered" and argument.type != "boolean") or argument.type is None:
        return
    if expected == "ordered":
        raise ExpressionError(f"{_title(node)} of booleans", at, "write a = b, or cast(… as number)")
    if argument.type != expected:
        what = f"{_title(node)} needs a {expected}, not a {argument.type}"
        raise ExpressionError(what, at, _conversion_hint(expected, argument.type))


def _strict_row_function(
    function: Callable[..., Any], arguments: list[Compiled], result: str, limit: float = _LARGEST_FLOAT
) -> RowFunction:
    """The function of one row; null if an argument is null, the arithmetic fails or a number is beyond ``limit``."""
    numeric = arguments[0].type == "number"
    if len(arguments) == 1:
        (argument,) = arguments
        if result == "number":
            return (_unary_number if numeric else _measure)(function, argument.row, limit)
        return (_unary_of_number if numeric else _unary)(function, argument.row)
    left, right = arguments
    if result == "number":
        if not numeric:
            return _measure_both(function, left.row, right.row, limit)
        if right.is_constant:
            return _arithmetic_with(function, left.row, right.constant, limit)
        return _arithmetic(function, left.row, right.row, limit)
    if numeric and right.is_constant:
        return _comparison_with(function, left.row, right.constant)
    return (_comparison if numeric else _binary)(function, left.row, right.row)


# The functions of one row by the types of their arguments and results: a null number is NaN, other nulls are None.


def _unary_number(function: Callable[..., Any], argument: RowFunction, limit: float) -> RowFunction:
    def evaluate(row: Row) -> Any:
        value = argument(row)
        if value != value:  # noqa: PLR0124 - NaN
            return value
        try:
            value = function(value)
        except (ArithmeticError, ValueError):
            return math.nan
        return value if -limit <= value <= limit else math.nan

    return evaluate


def _measure(function: Callable[..., Any], argument: RowFunction, limit: float) -> RowFunction:
    def evaluate(row: Row) -> Any:
        value = argument(row)
        value = None if value is None else function(value)
        return math.nan if value is None or not -limit <= value <= limit else value

    return evaluate


def _measure_both(function: Callable[..., Any], first: RowFunction, second: RowFunction, limit: float) -> RowFunction:
    def evaluate(row: Row) -> Any:
        left, right = first(row), second(row)
        if left is None or right is None:
            return math.nan
        value = function(left, right)
        return value if -limit <= value <= limit else math.nan

    return evaluate


def _unary_of_number(function: Callable[..., Any], argument: RowFunction) -> RowFunction:
    def evaluate(row: Row) -> Any:
        value = argument(row)
        return function(value) if value == value else None  # noqa: PLR0124 - NaN

    return evaluate


def _unary(function: Callable[..., Any], argument: RowFunction) -> RowFunction:
    def evaluate(row: Row) -> Any:
        value = argument(row)
        return None if value is None else function(value)

    return evaluate


def _binary(function: Callable[..., Any], first: RowFunction, second: RowFunction) -> RowFunction:
    def evaluate(row: Row) -> Any:
        left = first(row)
        if left is None:
            return None
        right = second(row)
        return None if right is None else function(left, right)

    return evaluate


def _arithmetic(function: Callable[..., Any], first: RowFunction, second: RowFunction, limit: float) -> RowFunction:
    def evaluate(row: Row) -> Any:
        try:
            value = function(first(row), second(row))
        except (ArithmeticError, ValueError):
            return math.nan
        return value if -limit <= value <= limit else math.nan

    return evaluate


def _arithmetic_with(function: Callable[..., Any], first: RowFunction, constant: float, limit: float) -> RowFunction:
    def evaluate(row: Row) -> Any:
        try:
            value = function(first(row), constant)
        except (ArithmeticError, ValueError):
            return math.nan
        return value if -limit <= value <= limit else math.nan

    return evaluate


def _comparison(function: Callable[..., Any], first: RowFunction, second: RowFunction) -> RowFunction:
    def evaluate(row: Row) -> Any:
        left, right = first(row), second(row)
        return function(left, right) if left == left and right == right else None  # noqa: PLR0124 - NaN

    return evaluate


def _comparison_with(function: Callable[..., Any], first: RowFunction, constant: float) -> RowFunction:
    if constant != constant:  # noqa: PLR0124 - the constant null
        return lambda _: None

    def evaluate(row: Row) -> Any:
        left = first(row)
        return function(left, constant) if left == left else None  # noqa: PLR0124 - NaN

    return evaluate


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
    values = np.full(len(null), _EMPTY[result], dtype=_DTYPES[result])
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
        if result == "number" and value is not None and not -_LARGEST_FLOAT <= value <= _LARGEST_FLOAT:
            value = None
        results.append(value)
        if known is not None:
            known[row] = value
    missing = np.array([value is None for value in results], dtype=bool)
    filled = np.empty(len(results), dtype=_DTYPES[result])
    filled[:] = [_EMPTY[result] if value is None else value for value in results]
    values[rows] = filled
    nulls = null.copy()
    nulls[rows] = missing
    return values, nulls


# Forms are operations for which null is not simply null. Each has a function of one row and a function of columns.


def _expect_type(node: Call, arguments: Sequence[Compiled], places: Iterable[int], type_: Type) -> list[Compiled]:
    checked = list(arguments)
    for place in places:
        if checked[place].type is None:
            checked[place] = _null(type_)
        _check_argument(node, type_, checked[place], place)
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
        one = first(row)
        if one is decisive:
            return decisive
        other = second(row)
        return decisive if other is decisive else None if one is None or other is None else not decisive

    def columns(columns: Columns) -> Masked:
        (one, one_null), (other, other_null) = left.columns(columns), right.columns(columns)
        decided = (~one_null & (one == decisive)) | (~other_null & (other == decisive))
        return decided == decisive, ~decided & (one_null | other_null)

    return Compiled("boolean", row, columns)


def _compile_between(node: Call, arguments: Sequence[Compiled]) -> Compiled:
    _, (value, low, high) = _unify(node, arguments, (0, 1, 2))
    above = _compile_operation(Call(">=", node.arguments[:2], node.at), operations.OPERATIONS[">="], [value, low])
    below_node = Call("<=", (node.arguments[0], node.arguments[2]), node.at)
    below = _compile_operation(below_node, operations.OPERATIONS["<="], [value, high])
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
                "in needs constants that are not null", _position(node, place), "write a = b or a = c"
            )
    _, (value, *members) = _unify(node, arguments, range(len(arguments)))
    constants = frozenset(member.constant for member in members)
    function = value.row

    def row(row: Row) -> Any:
        one = function(row)
        return None if one is None or one != one else one in constants  # noqa: PLR0124 - NaN

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
    type_, arguments = _unify(node, arguments, results)
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
    type_, arguments = _unify(node, arguments, results)
    subject, equal = arguments[0], operations.OPERATIONS["="]
    branches = []
    for place in range(1, len(arguments) - 1, 2):
        test = Call("=", (node.arguments[0], node.arguments[place]), node.arguments[place].at)
        branches.append((_compile_operation(test, equal, [subject, arguments[place]]), arguments[place + 1]))
    return _branch(type_, branches, arguments[-1])


def _compile_coalesce(node: Call, arguments: Sequence[Compiled]) -> Compiled:
    _check_count(node, arguments, 2)
    type_, arguments = _unify(node, arguments, range(len(arguments)))
    functions, null = [argument.row for argument in arguments], _NULL.get(type_)

    def row(row: Row) -> Any:
        for function in functions:
            value = function(row)
            if value is not None and value == value:  # noqa: PLR0124 - NaN
                return value
        return null

    def columns(columns: Columns) -> Masked:
        values, nulls = (array.copy() for array in arguments[0].columns(columns))
        for argument in arguments[1:]:
            others, other_nulls = argument.columns(columns)
            values[nulls], nulls[nulls] = others[nulls], other_nulls[nulls]
        return values, nulls

    return Compiled(type_, row, columns)


def _compile_nullif(node: Call, arguments: Sequence[Compiled]) -> Compiled:
    _check_count(node, arguments, 2, most=2)
    type_, unified = _unify(node, arguments, (0, 1))
    equal = _compile_operation(node, operations.OPERATIONS["="], unified)
    return _branch(type_, [(equal, _null(type_))], unified[0])


def _compile_least(node: Call, arguments: Sequence[Compiled]) -> Compiled:
    return _compile_extreme(node, arguments, operations.OPERATIONS["<"])


def _compile_greatest(node: Call, arguments: Sequence[Compiled]) -> Compiled:
    return _compile_extreme(node, arguments, operations.OPERATIONS[">"])


def _compile_extreme(node: Call, arguments: Sequence[Compiled], comparison: Operation) -> Compiled:
    """The least or the greatest argument that is not null."""
    _check_count(node, arguments, 2)
    type_, arguments = _unify(node, arguments, range(len(arguments)))
    for place, argument in enumerate(arguments):
        _check_argument(node, "ordered", argument, place)
    functions, null = [argument.row for argument in arguments], _NULL.get(type_)
    is_better, are_better = comparison.build()

    def row(row: Row) -> Any:
        best = None
        for function in functions:
            value = function(row)
            if value is not None and value == value and (best is None or is_better(value, best)):  # noqa: PLR0124 - NaN
                best = value
        return null if best is None else best

    def columns(columns: Columns) -> Masked:
        values, nulls = (array.copy() for array in arguments[0].columns(columns))
        for argument in arguments[1:]:
            others, other_nulls = argument.columns(columns)
            better = ~other_nulls & (nulls | are_better(others, values))  # type: ignore[misc]
            values[better] = others[better]
            nulls = nulls & other_nulls
        return values, nulls

    return Compiled(type_, row, columns)


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


_FORMS: Mapping[str, Callable[[Call, Sequence[Compiled]], Compiled]] = {
    "and": _compile_and, "or": _compile_or, "between": _compile_between, "is null": _compile_is_null,
    "in": _compile_in, "case": _compile_case, "switch": _compile_switch, "coalesce": _compile_coalesce,
    "nullif": _compile_nullif, "least": _compile_least, "greatest": _compile_greatest, "concat": _compile_concat,
}  # fmt: skip
_FUNCTION_FORMS = ("coalesce", "nullif", "least", "greatest", "concat")
