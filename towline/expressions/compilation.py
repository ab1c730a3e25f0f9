"""Compilation of expressions: from a tree to two functions, for one row and for columns, after its types are checked.

The functions are closures that call each other. No text is evaluated as Python code.
"""

import datetime as dt
import difflib
import math
from collections.abc import Callable, Iterable, Mapping
from operator import itemgetter
from typing import Any

import numpy as np

from towline.expressions import operations
from towline.expressions.operations import Type
from towline.expressions.parts import DTYPES, Columns, Compiled, Masked, Row, RowFunction, make_null
from towline.expressions.row_functions import CANONICAL
from towline.expressions.special_forms import FORMS, FUNCTION_FORMS
from towline.expressions.step_functions import find_steps
from towline.expressions.strict_operations import compile_cast, compile_operation
from towline.expressions.syntax import Call, ExpressionError, Literal, Name, Node, list_columns, parse

LARGEST = 1e38  # of a feature; larger numbers are null, because some estimators round to float32

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


class Expression:
    """A compiled expression.

    Args:
        text: of the expression.
        columns: for each column that it may read the type and its position in a canonical row.

    Raises:
        ExpressionError: the text is not an expression, names an unknown column or function, or its types do not fit.

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

    def find_steps(self) -> frozenset[float] | None:
        """The numbers at which an expression of one numeric column may change, as in ``step_functions``."""
        return find_steps(parse(self.text))

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

    if compiled.build and compiled.type in ("number", "boolean"):
        return compiled.build(limit=LARGEST, booleans=CANONICAL)

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


class _Compiler:
    def __init__(self, columns: Mapping[str, tuple[Type, int]]) -> None:
        self._known = columns

    def compile(self, node: Node) -> Compiled:
        if isinstance(node, Literal):
            return _compile_literal(node)
        if isinstance(node, Name):
            return self._compile_column(node)
        arguments = [self.compile(argument) for argument in node.arguments]
        if node.function in FORMS:
            return FORMS[node.function](node, arguments)
        if node.function.startswith("cast as "):
            return compile_cast(node, arguments[0])
        operation = operations.OPERATIONS.get(node.function)
        if operation is None:
            raise _unknown_function(node)
        return compile_operation(node, operation, arguments)

    def _compile_column(self, node: Name) -> Compiled:
        if node.name not in self._known:
            raise ExpressionError(f"unknown column {node.name!r}", node.at, suggest(node.name, self._known))
        type_, place = self._known[node.name]
        return Compiled(
            type_,
            _column_function(type_, place),
            lambda columns: columns.read(place, type_),
            place=None if type_ == "boolean" else place,
        )


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
    return sorted({*(name for name in operations.OPERATIONS if name.isidentifier()), *FUNCTION_FORMS} - words)


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
        return make_null(None)
    types: dict[type, Type] = {float: "number", str: "text", bool: "boolean", dt.datetime: "datetime"}
    type_ = types[type(value)]
    single = np.empty(1, dtype=DTYPES[type_])
    single[0] = value

    def columns(columns: Columns) -> Masked:
        return np.broadcast_to(single, columns.count), np.broadcast_to(np.False_, columns.count)

    return Compiled(type_, lambda _: value, columns, is_constant=True, constant=value)
