"""Random expressions and random rows, for comparisons of the ways in which expressions are evaluated.

Each expression is given in towline's language and, where it has the same meaning there, in DuckDB's SQL.
"""

import random
from collections.abc import Callable
from typing import Any, NamedTuple

from towline.config import Kind
from towline.data.schema.contract import Column, Contract, DerivedColumn
from towline.expressions.compilation import Expression
from towline.expressions.syntax import ExpressionError, list_columns, parse

KINDS: dict[str, Kind] = {
    "a": "numeric", "b": "numeric", "c": "numeric", "flag": "boolean", "s": "text", "t": "text", "at": "datetime",
    "until": "datetime",
}  # fmt: skip
TYPES: dict[str, str] = {"numeric": "number", "boolean": "boolean", "text": "text", "datetime": "datetime"}
#: macros for DuckDB: a result that is not finite is null
MACROS = "CREATE MACRO fin(x) AS CASE WHEN isfinite(x) THEN x END"
_SIMPLE = [*"abAB z%_.5é É日本😀\t\u0301\u00a0", "ab", "12", "10115"]
_UNUSUAL = [*_SIMPLE, *"ßİΣςﬁǅı", "\u2028", "\u0000x"]
_NUMBERS = ["0", "1", "2", "0.5", "3.7", "10", "1e6", "1e-9", "1e200", "7", "24", "100"]
_TIMES = ["timestamp '2026-03-29 01:30:00'", "timestamp '2024-02-29'", "date '1969-12-31'"]
_PATTERNS = ["^a", "b$", "a+b?", "[ab]+", r"\d{2,}", "(a|é)z*", ".", "^$", r"\s", "[^a]b"]
_LIKES = ["a%", "%b", "%a%b%", "_b", "%_", "%", "", "1%5", "a_%"]
_SPACES = "' ' || chr(9) || chr(160) || chr(12288) || chr(10) || chr(13)"


class RandomExpression(NamedTuple):
    """An expression; ``sql`` is None if SQL has no equal one, ``exact`` is False for exp, logarithms and powers."""

    text: str
    sql: str | None
    exact: bool = True
    unusual: bool = False  # whether it reads texts for which DuckDB has another upper or lower case


def draw_expression(rng: random.Random, type_: str, depth: int) -> RandomExpression:
    """An expression of a type, with at most ``depth`` nested operations."""
    if depth == 0 or rng.random() < 0.1:
        return _draw_leaf(rng, type_)
    return _DRAWS[type_](rng, depth - 1)


def draw_feature(rng: random.Random) -> RandomExpression:
    """An expression of any type that is not always null."""
    types = {name: (TYPES[kind], place) for place, (name, kind) in enumerate(KINDS.items())}
    while True:
        drawn = draw_expression(rng, rng.choice(list(_DRAWS)), 3)
        try:
            Expression(drawn.text, types)  # type: ignore[arg-type]
        except ExpressionError as error:
            if error.message != "the result is always null":
                raise
        else:
            return drawn


def draw_row(rng: random.Random) -> dict[str, Any]:
    """A row as a client would send it; about a tenth of its values are null."""
    row: dict[str, Any] = {}
    for name, kind in KINDS.items():
        if rng.random() < 0.12:
            row[name] = None
        elif kind == "numeric":
            row[name] = _draw_number(rng)
        elif kind == "boolean":
            row[name] = rng.random() < 0.5
        elif kind == "text":
            row[name] = "".join(rng.choice(_SIMPLE if name == "s" else _UNUSUAL) for _ in range(rng.randint(1, 6)))
        else:
            row[name] = _draw_time(rng)
    return row


def build_contract(expressions: dict[str, str]) -> Contract:
    """The contract of the random rows with these features."""
    columns = tuple(Column(name=name, kind=kind, role="feature") for name, kind in KINDS.items())
    types = {column.name: (TYPES[column.kind], place) for place, column in enumerate(columns)}
    kinds: dict[str, Kind] = {"number": "numeric", "text": "category", "boolean": "boolean", "datetime": "datetime"}
    derived = tuple(
        DerivedColumn(
            name=name,
            kind=kinds[Expression(text, types).type],  # type: ignore[arg-type]
            role="feature",
            expression=text,
            inputs=tuple(column.name for column in list_columns(parse(text))),
        )
        for name, text in expressions.items()
    )
    return Contract(target="y", task="regression", columns=columns, derived=derived)


def _draw_number(rng: random.Random) -> float | int:
    choice = rng.random()
    if choice < 0.3:
        return rng.randint(-5, 30)
    if choice < 0.6:
        return round(rng.uniform(-100, 100), 2)
    if choice < 0.8:
        return rng.choice([0.0, -0.0, 0.5, 1.5, 2.5, -2.5, 1e15, 4503599627370496.5, 0.1, 1e-300, 2**53, -1e149])
    return rng.uniform(-1, 1) * 10.0 ** rng.randint(-20, 20)


def _draw_time(rng: random.Random) -> str:
    """A time, often near a change of daylight saving time, with and without an offset."""
    day = rng.choice(["2026-03-29", "2026-10-25", "2024-02-29", "1969-12-31", "2100-03-01", "1583-01-01"])
    second = f"{rng.randint(0, 59):02}" + (f".{rng.randint(0, 999_999):06}" if rng.random() < 0.3 else "")
    offset = rng.choice(["", "", "Z", "+01:00", "+02:00", "-05:30"])
    return f"{day}T{rng.randint(0, 23):02}:{rng.randint(0, 59):02}:{second}{offset}"


def _draw_leaf(rng: random.Random, type_: str) -> RandomExpression:
    if rng.random() < 0.7:
        names = [name for name, kind in KINDS.items() if TYPES[kind] == type_]
        name = rng.choice(names)
        return RandomExpression(name, f'"{name}"', unusual=name == "t")
    if rng.random() < 0.05:
        types = {"number": "DOUBLE", "text": "VARCHAR", "boolean": "BOOLEAN", "datetime": "TIMESTAMP"}
        return RandomExpression("null", f"CAST(NULL AS {types[type_]})")
    if type_ == "number":
        text = rng.choice(_NUMBERS)
        return RandomExpression(text, f"CAST({text} AS DOUBLE)")
    if type_ == "boolean":
        text = rng.choice(["true", "false"])
        return RandomExpression(text, text)
    if type_ == "datetime":
        text = rng.choice(_TIMES)
        return RandomExpression(text, f"CAST({text} AS TIMESTAMP)")
    text = _quote("".join(rng.choice(_SIMPLE) for _ in range(rng.randint(0, 3))))
    return RandomExpression(text, text)


def _quote(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _apply(text: str, sql: str | None, *parts: RandomExpression, exact: bool = True) -> RandomExpression:
    """An operation: its templates with their arguments."""
    sqls = [part.sql for part in parts]
    filled = None if sql is None or None in sqls else sql.format(*sqls)
    exact = exact and all(part.exact for part in parts)
    return RandomExpression(
        text.format(*(part.text for part in parts)), filled, exact, any(part.unusual for part in parts)
    )


def _draw_any(rng: random.Random, depth: int, type_: str) -> RandomExpression:
    """Operations that every type has."""
    first, second, third = (draw_expression(rng, type_, depth) for _ in range(3))
    condition, other = draw_expression(rng, "boolean", depth), draw_expression(rng, "boolean", depth)
    forms: list[tuple[str, tuple[RandomExpression, ...]]] = [
        ("coalesce({0}, {1}, {2})", (first, second, third)),
        ("case when {0} then {1} when {2} then {3} end", (condition, first, other, second)),
        ("case when {0} then {1} else {2} end", (condition, first, second)),
        ("case {0} when {1} then {2} else {3} end", (first, second, third, first)),
        ("nullif({0}, {1})", (first, second)),
    ]
    if type_ != "boolean":
        forms += [("least({0}, {1})", (first, second)), ("greatest({0}, {1}, {2})", (first, second, third))]
    template, parts = rng.choice(forms)
    return _apply(template, template, *parts)


def _draw_number_operation(rng: random.Random, depth: int) -> RandomExpression:
    if rng.random() < 0.2:
        return _draw_any(rng, depth, "number")
    x, y = draw_expression(rng, "number", depth), draw_expression(rng, "number", depth)
    s, at, until = (draw_expression(rng, type_, depth) for type_ in ("text", "datetime", "datetime"))
    flag = draw_expression(rng, "boolean", depth)
    digits, unit = rng.choice([0, 1, 2, 6]), rng.choice(["year", "month", "day", "hour", "minute", "second"])
    part = rng.choice(["year", "quarter", "month", "day", "hour", "minute"])
    spans = [("days", 86_400), ("hours", 3_600), ("seconds", 1)]
    span, seconds = rng.choice(spans)
    microseconds = "CAST(date_diff('microsecond', {0}, {1}) AS DOUBLE)"
    forms: list[Callable[[], RandomExpression]] = [
        lambda: _apply("({0} + {1})", "fin({0} + {1})", x, y),
        lambda: _apply("({0} - {1})", "fin({0} - {1})", x, y),
        lambda: _apply("{0} * ({1})", "fin(({0}) * ({1}))", x, y),
        lambda: _apply("({0}) / ({1})", "fin(({0}) / nullif({1}, 0))", x, y),
        lambda: _apply("({0}) % ({1})", "fin(({0}) % nullif({1}, 0))", x, y),
        lambda: _apply("-({0})", "-({0})", x),
        lambda: _apply("abs({0})", "abs({0})", x),
        lambda: _apply("floor({0})", "floor({0})", x),
        lambda: _apply("ceil({0})", "ceil({0})", x),
        lambda: _apply(f"round({{0}}, {digits})", None, x),
        # DuckDB rounds larger numbers twice
        lambda: _same(f"round(case when abs({{0}}) < 1e8 then {{0}} end, {digits})", x),
        lambda: _apply("sqrt({0})", "CASE WHEN {0} >= 0 THEN sqrt({0}) END", x),
        lambda: _apply("exp({0})", "fin(exp({0}))", x, exact=False),
        lambda: _apply("ln({0})", "CASE WHEN {0} > 0 THEN ln({0}) END", x, exact=False),
        lambda: _apply("log10({0})", "CASE WHEN {0} > 0 THEN log10({0}) END", x, exact=False),
        lambda: _apply("power({0}, {1})", "fin(power({0}, {1}))", x, y, exact=False),
        lambda: _apply(
            "bucket({0}, 0, 1, 7.5)",
            "CASE WHEN {0} IS NULL THEN NULL ELSE CAST(({0}) >= 0 AS DOUBLE) + CAST(({0}) >= 1 AS DOUBLE) "
            "+ CAST(({0}) >= 7.5 AS DOUBLE) END",
            x,
        ),
        lambda: _apply("length({0})", "CAST(length({0}) AS DOUBLE)", s),
        lambda: _apply(f"{part}({{0}})", f"CAST({part}({{0}}) AS DOUBLE)", at),
        lambda: _apply("second({0})", "CAST(second({0}) AS DOUBLE)", at),
        lambda: _apply("weekday({0})", "CAST(isodow({0}) - 1 AS DOUBLE)", at),
        lambda: _apply("day_of_year({0})", "CAST(dayofyear({0}) AS DOUBLE)", at),
        lambda: _apply(
            f"date_diff('{unit}', {{0}}, {{1}})", f"CAST(date_diff('{unit}', {{0}}, {{1}}) AS DOUBLE)", at, until
        ),
        lambda: _apply(
            f"{span}_between({{0}}, {{1}})", f"{microseconds} / CAST({seconds * 1_000_000} AS DOUBLE)", at, until
        ),
        lambda: _apply("cast({0} as number)", "CAST({0} AS DOUBLE)", flag),
        lambda: _apply("cast({0} as number)", None, s),
    ]
    return rng.choice(forms)()


def _draw_boolean_operation(rng: random.Random, depth: int) -> RandomExpression:
    if rng.random() < 0.15:
        return _draw_any(rng, depth, "boolean")
    type_ = rng.choice(["number", "number", "text", "datetime"])
    x, y, z = (draw_expression(rng, type_, depth) for _ in range(3))
    p, q = draw_expression(rng, "boolean", depth), draw_expression(rng, "boolean", depth)
    s, u = draw_expression(rng, "text", depth), draw_expression(rng, "text", depth)
    comparison, connection = rng.choice(["=", "<>", "<", "<=", ">", ">="]), rng.choice(["and", "or"])
    negation = rng.choice(["", "not "])
    like, pattern = _quote(rng.choice(_LIKES)), _quote(rng.choice(_PATTERNS))
    number = draw_expression(rng, "number", depth)
    forms: list[Callable[[], RandomExpression]] = [
        lambda: _same(f"(({{0}}) {comparison} ({{1}}))", x, y),
        lambda: _same(f"(({{0}}) {connection} ({{1}}))", p, q),
        lambda: _same(f"(({{0}}) {connection} ({{1}}))", p, q),
        lambda: _same("(not ({0}))", p),
        lambda: _same(f"(({{0}}) is {negation}null)", x),
        lambda: _same(f"(({{0}}) {negation}between ({{1}}) and ({{2}}))", x, y, z),
        lambda: _same(f"(({{0}}) {negation}in ('a', 'ab', '日'))", s),
        lambda: _same(f"(({{0}}) {negation}in (1, 2, 0.5))", number),
        lambda: _same(f"(({{0}}) {negation}like {like})", s),
        lambda: _same("starts_with({0}, {1})", s, u),
        lambda: _same("ends_with({0}, {1})", s, u),
        lambda: _same("contains({0}, {1})", s, u),
        lambda: _same(f"regexp_matches({{0}}, {pattern.replace('{', '{{').replace('}', '}}')})", s),
        lambda: _apply("cast({0} as boolean)", "CAST({0} AS BOOLEAN)", number),
        lambda: _apply("cast({0} as boolean)", None, s),
    ]
    return rng.choice(forms)()


def _same(template: str, *parts: RandomExpression) -> RandomExpression:
    return _apply(template, template, *parts)


def _draw_text_operation(rng: random.Random, depth: int) -> RandomExpression:
    if rng.random() < 0.2:
        return _draw_any(rng, depth, "text")
    s, u = draw_expression(rng, "text", depth), draw_expression(rng, "text", depth)
    number, flag = draw_expression(rng, "number", depth), draw_expression(rng, "boolean", depth)
    start, length, case = rng.randint(1, 4), rng.randint(0, 4), rng.choice(["lower", "upper"])
    forms: list[Callable[[], RandomExpression]] = [
        lambda: _apply(f"{case}({{0}})", None if s.unusual else f"{case}({{0}})", s),
        lambda: _apply("trim({0})", None if s.unusual else f"trim({{0}}, {_SPACES})", s),
        lambda: _same(f"substring({{0}}, {start}, {length})", s),
        lambda: _same(f"substring({{0}}, {start})", s),
        lambda: _same("replace({0}, 'a', 'é')", s),
        lambda: _same("({0} || {1})", s, u),
        lambda: _same("concat({0}, {1})", s, u),
        lambda: _apply("cast({0} as text)", "CAST({0} AS VARCHAR)", flag),
        lambda: _apply("cast({0} as text)", None, number),
    ]
    return rng.choice(forms)()


_DRAWS: dict[str, Callable[[random.Random, int], RandomExpression]] = {
    "number": _draw_number_operation,
    "boolean": _draw_boolean_operation,
    "text": _draw_text_operation,
    "datetime": lambda rng, depth: _draw_any(rng, depth, "datetime"),
}
