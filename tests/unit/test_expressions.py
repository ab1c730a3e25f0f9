"""The language of features: values, null, types, errors, and the same values for one row and for columns."""

import datetime as dt
import math
import random
import re
import struct
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.support.expressions import KINDS, build_contract, draw_feature, draw_row
from tests.support.paths import REPOSITORY
from towline.data.schema.rows import RowReader
from towline.expressions.compilation import Expression, known_functions
from towline.expressions.operations import Type
from towline.expressions.parts import Columns
from towline.expressions.patterns import LinearPattern, PatternError, compile_like
from towline.expressions.syntax import MAX_CHAIN, MAX_DEPTH, ExpressionError

COLUMNS: dict[str, tuple[Type, int]] = {
    "a": ("number", 0), "b": ("number", 1), "n": ("number", 2), "s": ("text", 3), "d": ("datetime", 4),
    "e": ("datetime", 5), "flag": ("boolean", 6), "living area": ("number", 7), "unknown": ("text", 8),
}  # fmt: skip
D, E = dt.datetime.fromisoformat("2026-01-31 13:30"), dt.datetime.fromisoformat("2026-02-01")
ROW: list[Any] = [
    7.0, 2.0, math.nan, "Straße 12", D, E, 1.0, 80.0, None,
]  # fmt: skip
GUIDE = (REPOSITORY / "docs" / "features.md").read_text()
EXAMPLES = re.findall(r"^\| `([^`]+)` \| (null|true|false|-?[\d.]+|'[^']*') \|$", GUIDE, re.MULTILINE)


def evaluate(text: str) -> Any:
    """The value of an expression, which is the same for one row and for columns."""
    expression = Expression(text, COLUMNS)
    arrays = [np.array([value], dtype=object if value.__class__ is str or value is None else None) for value in ROW]
    arrays[4:6] = [array.astype("datetime64[us]") for array in arrays[4:6]]
    (column,) = expression.evaluate_columns(Columns(arrays, 1)).tolist()
    value = expression.evaluate(ROW)
    value = None if isinstance(value, float) and math.isnan(value) else value
    assert (None if isinstance(column, float) and math.isnan(column) else column) == value
    return bool(value) if expression.type == "boolean" and value is not None else value


def error_of(text: str) -> str:
    with pytest.raises(ExpressionError) as error:
        Expression(text, COLUMNS)
    return error.value.describe(text)


@pytest.mark.parametrize(("text", "value"), EXAMPLES, ids=[text for text, _ in EXAMPLES])
def test_the_examples_of_the_guide(text: str, value: str) -> None:
    """docs/features.md shows what each expression gives."""
    expected = {"null": None, "true": True, "false": False}.get(value, value)
    if isinstance(expected, str):
        expected = expected.strip("'") if expected.startswith("'") else float(expected)
    assert evaluate(text) == expected


def test_the_guide_lists_every_function() -> None:
    """No function is undocumented."""
    assert len(EXAMPLES) >= 25
    assert [name for name in known_functions() if f"`{name}(" not in GUIDE] == []


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1 + 2 * 3 - 4 / 2", 5.0),
        ("-a + +b", -5.0),
        ("not flag or b = 2 and a = 7", True),
        ("'l''or' || s", "l'orStraße 12"),
        ('"living area" / 2 -- of a house\n + 1', 41.0),
        ("CASE WHEN a > 1 THEN 'x' END", "x"),
        ("case when n > 0 then 1 end", None),
        ("n = n", None),
        ("n is null and a is not null", True),
        ("n in (1, 2)", None),
        ("null in ('a', 'b')", None),
        ("a not between 1 and 5", True),
        ("a between n and 5", False),
        ("n > 0 and false", False),
        ("n > 0 or a > 0", True),
        ("1e308 * 10", None),
        ("1e308 * 10 > 0", None),
        ("exp(1000)", None),
        ("sqrt(-1)", None),
        ("power(-8, 0.5)", None),
        ("power(n, 0)", None),
        ("power(1, n)", None),
        ("a % 0", None),
        ("-a % 4", -3.0),
        ("round(-2.5)", -3.0),
        ("round(0.125, 2)", 0.13),
        ("round(1e300, 3) / 1e300", 1.0),
        ("floor(-0.5)", -1.0),
        ("ceil(-1.5)", -1.0),
        ("greatest(n, b, a)", 7.0),
        ("least(n, n + 1)", None),
        ("least(s, 'A')", "A"),
        ("trim('   ')", None),
        ("length('日本😀')", 3.0),
        ("substring(s, 1, 0)", None),
        ("unknown || s", None),
        ("concat(unknown, s)", "Straße 12"),
        ("cast('1e2' as number) + cast(flag as number)", 101.0),
        ("cast('inf' as number)", None),
        ("cast(cast(0 as boolean) as text)", "false"),
        ("cast('YES' as boolean)", True),
        ("cast('maybe' as boolean)", None),
        ("cast(0.1 as text)", "0.1"),
        ("cast(-0.0 as text)", "0"),
        ("cast(n as text)", None),
        ("d", D),
        ("greatest(d, e, null)", E),
        ("d < timestamp '2026-01-31 13:30:00.5'", True),
        ("hour(d) * 100 + minute(d)", 1330.0),
        ("day_of_year(e) + quarter(e)", 33.0),
        ("date_diff('day', d, e)", 1.0),
        ("date_diff('hour', e, d)", -11.0),
        ("seconds_between(e, d)", -37_800.0),
        ("weekday(date '1969-12-31')", 2.0),
        ("case a when 7 then flag end", True),
        ("case n when null then 1 when 7 then 2 else 3 end", 3.0),
        ("case unknown when null then 'x' when 'a' then 'y' else 'z' end", "z"),
        ("case s when 'Straße 12' then 1 when 'Straße 12' then 2 end", 1.0),
        ("coalesce(case when false then 1 else null end, 3)", 3.0),
    ],
)
def test_values(text: str, value: Any) -> None:
    """Precedence, null, three-valued logic, and operations without a result."""
    assert evaluate(text) == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "column 1: the expression is empty"),
        ("a +", "column 4: unexpected the end of the expression"),
        ("a b", "column 3: unexpected 'b'"),
        ("a +\n  roms", "line 2, column 3: unknown column 'roms'"),
        ("A", "column 1: unknown column 'A'; did you mean a?"),
        ("livng_area", "column 1: unknown column 'livng_area'; did you mean living area?"),
        ("rond(a)", "column 1: unknown function 'rond'; did you mean round?"),
        ("log(a)", "write ln (natural) or log10"),
        ("sum(a)", "an expression reads one row"),
        ("now()", "the result would depend on the clock"),
        ("__import__('os')", "column 1: unknown function '__import__'"),
        ("a.b", "column 2: unexpected character '.'"),
        ("'a", "column 1: a text has no closing '"),
        ("a + s", "column 5: + needs a number, not a text; convert one: cast(… as number)"),
        ("a = s", "column 5: = of number and text"),
        ("e - d", "use days_between(a, b)"),
        ("flag < true", "< of booleans"),
        ("case when a then 1 end", "column 11: case needs a boolean, not a number"),
        ("case when flag then 1 else 'x' end", "column 28: case of number and text"),
        ("coalesce(a, 'x')", "column 13: coalesce of number and text"),
        ("round(a, b)", "argument 2 of round must be a constant"),
        ("round(a, 1.5)", "the number of digits must be a whole number from 0 to 15"),
        ("substring(s, 0)", "the first character must be a whole number from 1"),
        ("bucket(a, 2, 1)", "the edges of a bucket must ascend"),
        ("abs(a, b)", "abs has 2 arguments, not 1; write abs(number)"),
        ("nullif(a)", "nullif has 1 arguments, not 2"),
        ("a in (b)", "in needs constants"),
        ("regexp_matches(s, '(a')", "not a regular expression: a ( has no )"),
        ("regexp_matches(s, '(?=a)')", "(?= is not supported"),
        ("date_diff('week', d, e)", "no unit 'week'"),
        ("timestamp '2026-13-01'", "not a time: '2026-13-01'"),
        ("timestamp '2026-01-01T00:00+01:00'", "write it in UTC"),
        ("cast(d as text)", "a datetime cannot be cast to text"),
        ("cast(a as date)", "unexpected 'date'; expected number, text or boolean"),
        ("1e999", "the number is too large"),
        ("null", "the result is always null"),
        ("between", 'the column "between" is written in quotes'),
        ("(" * (MAX_DEPTH + 1) + "a", "column 51: more than 50 nested parts"),
        (" + ".join(["a"] * (MAX_CHAIN + 2)), "nested operations"),
    ],
)
def test_errors_name_the_place_and_a_remedy(text: str, message: str) -> None:
    """An invalid expression is refused when it is compiled, with line and column."""
    assert message in error_of(text)


def test_random_expressions_have_the_same_value_for_one_row_and_for_columns() -> None:
    """Requests and tables give equal bits; benchmarks/features.py compares more of them, and DuckDB's values."""
    rng = random.Random(11)
    count = 0
    for _ in range(15):
        rows = [draw_row(rng) for _ in range(40)]
        features = {f"f{place}": draw_feature(rng).text for place in range(20)}
        contract = build_contract(features)
        canonical = RowReader(contract).read(rows)
        frame = contract.features(pd.DataFrame(rows, dtype=object))
        for place, (name, text) in enumerate(features.items(), len(KINDS)):
            for row, value in zip(canonical, frame[name], strict=True):
                assert to_bits(row[place]) == to_bits(value), (text, row)
                count += 1
    assert count == 15 * 40 * 20


def to_bits(value: Any) -> Any:
    if value is None or value is pd.NaT or (isinstance(value, float) and math.isnan(value)):
        return None
    return struct.pack("<d", value) if isinstance(value, float) else value


def test_regular_expressions_match_as_in_re() -> None:
    """The patterns of the subset have the meaning that they have in re."""
    rng = random.Random(5)
    parts = ["a", "b", ".", r"\d", "[ab]", "[^a]", "(a|b)", "(?:ab|c)", r"\.", r"\w", r"\s", "[a-c1]", r"[\d.]"]
    for _ in range(500):
        atoms = [
            rng.choice(parts) + rng.choice(["", "", "*", "+", "?", "{2}", "{1,3}", "{2,}", "*?"]) for _ in range(4)
        ]
        pattern = rng.choice(["", "^"]) + rng.choice(["", "|"]).join(atoms) + rng.choice(["", r"$"])
        matcher, reference = LinearPattern(pattern), re.compile(pattern.replace("$", r"\Z"), re.ASCII)
        for _ in range(10):
            text = "".join(rng.choice("abc1. \né") for _ in range(rng.randint(0, 9)))
            assert matcher.search(text) == (reference.search(text) is not None), (pattern, text)


@pytest.mark.parametrize("pattern", ["(a+)+b", "(a|a)*c", "(a*)*$b", "a.*a.*a.*a.*b"])
def test_a_pattern_that_makes_re_backtrack_takes_linear_time(pattern: str) -> None:
    """The text of a request cannot keep a service busy: re would need longer than the age of the universe."""
    assert not LinearPattern(pattern).search("a" * 50_000)


def test_a_pattern_that_is_too_large_is_an_error() -> None:
    """Nested counts multiply."""
    with pytest.raises(PatternError, match="too large"):
        LinearPattern("((a{100}){100}){100}")


@pytest.mark.parametrize("pattern", ["a%", "%a", "%a%", "a_", "_%a", "%a%b%", "a%b", "%", "", "_", "%_%a", "100%"])
def test_like_matches_as_a_regular_expression(pattern: str) -> None:
    """% and _ have the meaning of .* and . in a pattern for the whole text."""
    rng = random.Random(2)
    escaped = "".join({"%": ".*", "_": "."}.get(character, re.escape(character)) for character in pattern)
    for _ in range(300):
        text = "".join(rng.choice("ab10\n%") for _ in range(rng.randint(0, 6)))
        assert compile_like(pattern)(text) == (re.fullmatch(escaped, text, re.DOTALL) is not None)
