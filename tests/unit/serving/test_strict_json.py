"""What is refused as JSON, and that nothing else is."""

import json
import math

import orjson
import pytest

from towline.serving.problems import Problem
from towline.serving.protocols.strict_json import MAX_DEPTH, MAX_KEYS, parse_json

MIB5 = 5_000_000


def refused(body: bytes) -> str:
    with pytest.raises(Problem) as caught:
        parse_json(body)
    return caught.value.code


def stretched(start: bytes, unit: bytes, end: bytes) -> bytes:
    """A body of five million bytes that is in order until its very end."""
    return start + b",".join([unit] * ((MIB5 - len(start) - len(end)) // (len(unit) + 1))) + end


HOSTILE = {
    "nothing": b"",
    "spaces": b"  ",
    "cut off": b'{"rows": [',
    "two documents": b"{} {}",
    "comment": b"{} // rows",
    "single quotes": b"{'rows': []}",
    "trailing comma": b'{"rows": [1,]}',
    "NaN": b'{"a": NaN}',
    "Infinity": b'{"a": Infinity}',
    "-Infinity": b'{"a": -Infinity}',
    "1e400": b'{"a": 1e400}',
    "-1e400": b'{"a": -1e400}',
    "400 digits": b'{"a": ' + b"1" * 400 + b"}",
    "10,000 digits": b'{"a": ' + b"1" * 10_000 + b"}",
    "hexadecimal": b'{"a": 0x10}',
    "leading zero": b'{"a": 01}',
    "leading plus": b'{"a": +1}',
    "key twice": b'{"a": 1, "a": 1}',
    "key twice, spelled otherwise": b'{"a": 1, "\\u0061": 1}',
    "key twice, spaces": b'{"a" :1,"a"\n:1}',
    "key twice, deep": b'{"rows":[{"a":1},{"b":[{"c":1,"c":2}]}]}',
    "key twice, colons in texts": b'{"rows":[{"a":"x:y","a":"\\":"}]}',
    "empty key twice": b'{"":1,"":1}',
    "raw NUL": b'{"a": "x\x00"}',
    "escaped NUL": b'{"a": "x\\u0000"}',
    "escaped NUL in a key": b'{"\\u0000": 1}',
    "NUL behind a backslash": b'{"a": "\\\\\\u0000"}',
    "raw control character": b'{"a": "x\x1f"}',
    "lone high surrogate": b'{"a": "\\ud800"}',
    "lone low surrogate": b'{"a": "\\udc00"}',
    "surrogates the wrong way round": b'{"a": "\\udc00\\ud800"}',
    "encoded surrogate": b'{"a": "\xed\xa0\x80"}',
    "no UTF-8": b'{"a": "\xff"}',
    "overlong UTF-8": b'{"a": "\xc0\xaf"}',
    "byte order mark": b"\xef\xbb\xbf{}",
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "deep lists": b"[" * 2000 + b"]" * 2000,
    "deep objects": b'{"a":' * 2000 + b"1" + b"}" * 2000,
    "a little too deep": b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1),
    "deep and not closed": b"[" * 100_000,
}
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


@pytest.mark.parametrize("body", HOSTILE.values(), ids=HOSTILE.keys())
def test_what_could_be_read_in_two_ways_is_refused(body: bytes) -> None:
    """Each of these is answered with 400, whatever else a parser would make of it."""
    assert refused(body) == "malformed-json"


@pytest.mark.parametrize("body", HOSTILE_AND_LARGE.values(), ids=HOSTILE_AND_LARGE.keys())
def test_large_bodies_are_refused_too(body: bytes) -> None:
    """The same for five megabytes of it."""
    assert refused(body) == "malformed-json"


@pytest.mark.parametrize(
    "body",
    [stretched(b"[", b"{}", b"]"), stretched(b"[", b"[]", b"]"), stretched(b"[1,", b"[]", b"]"),
     b"[" + b"[]," * 10_000 + b"[]]"],
    ids=["objects", "lists", "lists behind a number", "one more than allowed"],
)  # fmt: skip
def test_more_objects_than_rows_are_refused_before_they_are_built(body: bytes) -> None:
    """A small body cannot be blown up into a hundred megabytes of empty objects."""
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
def test_an_object_with_too_many_keys_is_refused_before_it_is_built(body: bytes) -> None:
    """Building it would take tens of milliseconds in which nobody else is answered."""
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
def test_as_many_keys_as_allowed(body: bytes) -> None:
    """What counts are the keys of one object, not of all together."""
    assert parse_json(body, widest=MAX_KEYS) == json.loads(body)


def test_a_wide_table_may_have_more_keys() -> None:
    """The caller says how many its model needs."""
    assert len(parse_json(wide(MAX_KEYS + 1), widest=2 * MAX_KEYS)) == MAX_KEYS + 1


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
def test_what_is_in_order_is_read_exactly(document: object, style: str) -> None:
    """The same values as Python's own reader gives, however the document is laid out."""
    options = {"compact": {"separators": (",", ":")}, "indented": {"indent": 2}, "ascii": {"ensure_ascii": True}}
    text = json.dumps(document, **({"ensure_ascii": False} | options.get(style, {})))
    found = parse_json(text.encode())
    assert found == json.loads(text)
    assert repr(found) == repr(json.loads(text))  # 1 and 1.0 are equal, and not the same


def test_spaces_before_colons_are_no_reason_to_refuse() -> None:
    """JSON allows them."""
    assert parse_json(b'{"a" : 1, "b"\t:\r\n{"a" :"x :"}}') == {"a": 1, "b": {"a": "x :"}}


def test_numbers_are_the_nearest_floats() -> None:
    """Of long fractions too."""
    text = "0." + "1234567890" * 40
    assert parse_json(text.encode()) == float(text)
    assert not math.isinf(parse_json(b"1.7976931348623157e308"))


def test_the_reason_holds_no_value() -> None:
    """A refusal says where, and never repeats what was sent."""
    with pytest.raises(Problem) as caught:
        parse_json(b'{"name": "Eva Muster", "name": 1}')
    assert "Eva" not in str(caught.value.document("id"))
    with pytest.raises(Problem) as caught:
        parse_json(b'{"name": "Eva Muster" oops}')
    told = caught.value.detail
    assert "Eva" not in told
    assert "column" in told


def test_the_collector_is_left_as_it_was() -> None:
    """Garbage collection goes on after a large body, also a refused one."""
    import gc

    parse_json(orjson.dumps(["x" * 100_000]))
    assert gc.isenabled()
    refused(b"[" + b"1," * 100_000)
    assert gc.isenabled()


def test_nan_where_it_is_allowed() -> None:
    """The word becomes null outside of texts, and nothing else is let through with it."""
    body = b'{"a": [NaN, 1, NaN], "b": "NaN, \\"NaN", "c": NaN}'
    assert parse_json(body, nan=True) == {"a": [None, 1, None], "b": 'NaN, "NaN', "c": None}
    for bad in (b"[NaN, Infinity]", b"[-NaN]", b"[NaN", b'[NaN, {"a": 1, "a": 2}]', b"[NaN, 1e400]", b'[NaN "a]'):
        with pytest.raises(Problem):
            parse_json(bad, nan=True)


def test_quotes_without_end_are_read_once() -> None:
    """Millions of quotes behind a NaN end in a refusal, not in a search that begins anew from each."""
    for tail in (b'\\"' * 1_000_000, b'"' * 999_999, b"\\" * 999_999):
        with pytest.raises(Problem):
            parse_json(b'[NaN, "' + tail, nan=True)
