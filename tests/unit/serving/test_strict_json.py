"""The strict JSON parser."""

import json
import math

import orjson
import pytest

from tests.support.hostile_json import HOSTILE_JSON
from towline.serving.problems import Problem
from towline.serving.protocols.strict_json import MAX_KEYS, parse_json

MIB5 = 5_000_000


def refused(body: bytes) -> str:
    with pytest.raises(Problem) as error:
        parse_json(body)
    return error.value.code


def stretched(start: bytes, unit: bytes, end: bytes) -> bytes:
    """A body of five million bytes that is valid up to its end."""
    return start + b",".join([unit] * ((MIB5 - len(start) - len(end)) // (len(unit) + 1))) + end


HOSTILE_AND_LARGE = {
    "NaN": stretched(b'{"rows":[', b"1.5", b",NaN]}"),
    "1e400": stretched(b"[", b"1.5", b",1e400]"),
    "digits": b"1" * MIB5,
    "key twice": stretched(b"{", b'"a":"%b"' % (b"x" * 600), b"}"),
    "escaped NUL": stretched(b'["', b"abc", b'\\u0000"]'),
    "backslashes, then NUL": b'["' + b"\\" * (MIB5 - 10) + b'\\u0000"]',
    "lone surrogate": stretched(b'["', b"abc", b'\\ud800"]'),
    "no UTF-8": stretched(b'["', b"abc", b'\xff"]'),
    "deep lists": b"[" * MIB5,
    "deep objects": b'{"a":' * (MIB5 // 5),
    "deep and closed": b"[" * (MIB5 // 2) + b"]" * (MIB5 // 2),
}


@pytest.mark.parametrize("body", HOSTILE_JSON.values(), ids=HOSTILE_JSON.keys())
def test_ambiguous_json_is_refused(body: bytes) -> None:
    """Other parsers accept it or read it in another way."""
    assert refused(body) == "malformed-json"


@pytest.mark.parametrize("body", HOSTILE_AND_LARGE.values(), ids=HOSTILE_AND_LARGE.keys())
def test_ambiguous_json_in_a_large_body_is_refused(body: bytes) -> None:
    assert refused(body) == "malformed-json"


@pytest.mark.parametrize(
    "body",
    [stretched(b"[", b"{}", b"]"), stretched(b"[", b"[]", b"]"), stretched(b"[1,", b"[]", b"]"),
     b"[" + b"[]," * 10_000 + b"[]]"],
    ids=["objects", "lists", "lists behind a number", "one more than allowed"],
)  # fmt: skip
def test_too_many_objects_are_refused_before_they_are_parsed(body: bytes) -> None:
    """A small body could otherwise become a hundred megabytes of empty objects."""
    assert refused(body) == "too-large"


def wide(keys: int, value: bytes = b"1") -> bytes:
    return b"{" + b",".join(b'"key %06d":%b' % (number, value) for number in range(keys)) + b"}"


@pytest.mark.parametrize(
    "body",
    [
        wide(MAX_KEYS + 1),
        wide(300_000),
        b'{"rows":[' + b"{}," * 5_000 + wide(300_000) + b"]}",
        b'[{"a":1,"b":'
        + wide(MAX_KEYS - 1, b'{"c":[1,{"d":2}]}')
        + b'},{"a":'
        + wide(MAX_KEYS + 1, b'["}{:,"]')
        + b"}]",
        wide(MAX_KEYS, b'{"c":":"}').replace(b"}", b"} ", 1)[:-1] + b',"\\"{":1}',
        wide(300_000)[:-1],
    ],
    ids=["one too many", "many", "behind empty ones", "among others", "quoted braces", "not closed"],
)
def test_an_object_with_too_many_keys_is_refused_before_it_is_parsed(body: bytes) -> None:
    """Parsing it would block other requests for tens of milliseconds."""
    assert refused(body) == "too-large"


@pytest.mark.parametrize(
    "body",
    [
        wide(MAX_KEYS),
        b"[" + b",".join([wide(50)] * 2_000) + b"]",
        b'{"a":' + wide(MAX_KEYS, b'{"b":{"c":"{:}"}}') + b',"\\"":' + wide(MAX_KEYS) + b"}",
        b'{"text":"' + b":{" * 100_000 + b'"}',
    ],
    ids=["as many as allowed", "many small ones", "nested", "in a text"],
)
def test_the_limit_of_keys_holds_for_each_object(body: bytes) -> None:
    assert parse_json(body, max_keys=MAX_KEYS) == json.loads(body)


def test_the_limit_of_keys_can_be_raised_for_a_wide_model() -> None:
    assert len(parse_json(wide(MAX_KEYS + 1), max_keys=2 * MAX_KEYS)) == MAX_KEYS + 1


@pytest.mark.parametrize(
    "document",
    [
        {},
        [],
        None,
        "text",
        {"rows": [{"a": 1, "b": 2.5, "c": None, "d": True, "e": "x"}]},
        {"a": {"a": {"a": 1}}, "b": [{"a": 1}, {"a": 2}]},
        {"time": "2026-03-01T12:00:00", "quote": '":', "colon": " : ", "x:": 1},
        {'quoted "key"': '\\":"', "\\": "\\\\"},
        {"not a NUL": "\\u0000", "nor this": "\\\\u0000"},
        {"words": "Grüße, 東京, 😀", "Grüße": 1},
        [0.1, 1e-300, 1e300, -1e300, 1.7976931348623157e308, 0, -1],
        [2**63, 2**64 - 1, 2**64, 10**20, 12345678901234567890123, -(2**63) - 1],
        {"a": [[[[1, [2]]]]]},
        ["x" * 100_000, {"y": "z" * 100_000}],
    ],
)
@pytest.mark.parametrize("style", ["plain", "compact", "indented", "ascii"])
def test_valid_json_gives_the_same_values_as_the_json_module(document: object, style: str) -> None:
    """This holds for every layout of the document."""
    options = {"compact": {"separators": (",", ":")}, "indented": {"indent": 2}, "ascii": {"ensure_ascii": True}}
    text = json.dumps(document, **({"ensure_ascii": False} | options.get(style, {})))
    parsed = parse_json(text.encode())
    assert parsed == json.loads(text)
    assert repr(parsed) == repr(json.loads(text))  # 1 and 1.0 are equal, but not the same value


def test_spaces_before_colons_are_accepted() -> None:
    assert parse_json(b'{"a" : 1, "b"\t:\r\n{"a" :"x :"}}') == {"a": 1, "b": {"a": "x :"}}


def test_numbers_are_read_as_the_nearest_float() -> None:
    text = "0." + "1234567890" * 40
    assert parse_json(text.encode()) == float(text)
    assert not math.isinf(parse_json(b"1.7976931348623157e308"))


def test_errors_contain_no_value() -> None:
    with pytest.raises(Problem) as error:
        parse_json(b'{"name": "Eva Muster", "name": 1}')
    assert "Eva" not in str(error.value.document("id"))
    with pytest.raises(Problem) as error:
        parse_json(b'{"name": "Eva Muster" oops}')
    detail = error.value.detail
    assert "Eva" not in detail
    assert "column" in detail


def test_garbage_collection_is_enabled_again() -> None:
    """This also holds after a refused body."""
    import gc

    parse_json(orjson.dumps(["x" * 100_000]))
    assert gc.isenabled()
    refused(b"[" + b"1," * 100_000)
    assert gc.isenabled()


def test_nan_is_read_as_null_where_it_is_allowed() -> None:
    """NaN in strings is unchanged, and no other invalid value is accepted."""
    body = b'{"a": [NaN, 1, NaN], "b": "NaN, \\"NaN", "c": NaN}'
    assert parse_json(body, nan=True) == {"a": [None, 1, None], "b": 'NaN, "NaN', "c": None}
    for bad in (b"[NaN, Infinity]", b"[-NaN]", b"[NaN", b'[NaN, {"a": 1, "a": 2}]', b"[NaN, 1e400]", b'[NaN "a]'):
        with pytest.raises(Problem):
            parse_json(bad, nan=True)


def test_unterminated_strings_are_refused_in_linear_time() -> None:
    for tail in (b'\\"' * 1_000_000, b'"' * 999_999, b"\\" * 999_999):
        with pytest.raises(Problem):
            parse_json(b'[NaN, "' + tail, nan=True)
