"""Strict JSON: a parser that refuses documents which different parsers could read in different ways."""

import gc
import json
import re
from collections.abc import Iterable
from typing import Any

import numpy as np
import orjson

from towline.serving.problems import Problem

MAX_DEPTH = 32  # levels; the protocols use at most six
LARGE_BODY = 65_536  # bytes
MAX_OBJECTS_PER_ROW, LISTS = 10, 50  # most objects, and most lists and objects, for each row that is allowed
MAX_KEYS = 10_000  # most keys of one object
BEGINNING = 262_144  # bytes that are checked before the whole body is
# an unterminated text matches to the end: otherwise the search would restart at each quote in it
_TEXT_OR_NAN = re.compile(rb'"(?:[^"\\]|\\.)*+(?:"|\\?\Z)|\bNaN\b', re.DOTALL)
_LOW, _HIGH = -(2.0**63), 2.0**64
# the structural characters of a document; each is translated to its position here plus 1
_MARKS = b'":{}[]'
_QUOTE, _COLON, _BRACE, _BRACE_END, _BRACKET, _BRACKET_END = range(1, len(_MARKS) + 1)
_TABLE = bytes(_MARKS.find(byte) + 1 for byte in range(256))
_OTHERS = bytes(byte for byte in range(256) if byte not in _MARKS)
_STEPS = np.array([0, 0, 0, 1, -1, 1, -1], dtype=np.int8)  # change of the depth at each character


def parse_json(body: bytes, max_items: int = 10_000, *, max_keys: int = MAX_KEYS, nan: bool = False) -> Any:
    """Parses one JSON document.

    Args:
        body: UTF-8, without a byte order mark.
        max_items: of a list of objects or lists.
        max_keys: of an object; checked in bodies of 64 KiB and more, since smaller ones cannot hold many.
        nan: whether NaN is read as null, as Python clients write it.

    Raises:
        Problem: ``malformed-json`` if the body is not JSON, or holds NaN, a number beyond the range of floats, a key
            twice in one object, a NUL, an unpaired surrogate, or more than 32 levels; ``too-large`` if a list is too
            long or an object has too many keys.
    """
    if len(body) < LARGE_BODY or not gc.isenabled():
        return _loads(body, max_items, max_keys, nan)
    gc.disable()  # otherwise the collector would scan all new lists again and again
    try:
        return _loads(body, max_items, max_keys, nan)
    finally:
        gc.enable()


def _loads(body: bytes, max_items: int, max_keys: int, nan: bool) -> Any:
    if (
        len(body) >= LARGE_BODY
        or body.count(b"{") > MAX_OBJECTS_PER_ROW * max_items
        or body.count(b"[") > LISTS * max_items
    ):
        if len(body) > 2 * BEGINNING:
            _check_size(body[:BEGINNING], max_items, max_keys)  # detects most refused bodies at a tenth of the cost
        _check_size(body, max_items, max_keys)
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        if not (nan and b"NaN" in body):
            raise Problem("malformed-json", f"not JSON: {error}") from None
        body = _TEXT_OR_NAN.sub(lambda match: b"null" if match[0] == b"NaN" else match[0], body)
        return _loads(body, max_items, max_keys, nan=False)
    try:
        keys = _keys(document, max_items, MAX_DEPTH)
    except _Beyond64Bits:  # orjson rounds such integers
        document = json.loads(body)
        keys = _keys(document, max_items, MAX_DEPTH, rounded=False)
    if body.count(b":") != keys and _colons(body, keys) != keys:
        raise Problem("malformed-json", "a key occurs twice in one object")
    if b"\\u0000" in body and b"\\u0000" in body.replace(b"\\\\", b""):
        raise Problem("malformed-json", "a text holds a NUL character")
    return document


def _check_size(body: bytes, max_items: int, max_keys: int) -> None:
    """Refuses, before it is parsed, a body whose objects would take far more time and memory than its size suggests.

    No other request is answered while a body is parsed.
    """
    marks = _marks(body)
    depth = np.cumsum(_STEPS[marks], dtype=np.int32)
    if depth.max(initial=0) > MAX_DEPTH:
        raise _too_deep()
    counts = np.bincount(marks, minlength=len(_STEPS))
    if counts[_BRACE] > MAX_OBJECTS_PER_ROW * max_items or counts[_BRACE] + counts[_BRACKET] > LISTS * max_items:
        raise Problem("too-large", f"the body holds far more lists and objects than {max_items:,} rows need")
    if counts[_COLON] > max_keys and (keys := _most_keys(marks, depth)) > max_keys:
        raise Problem("too-large", f"an object holds {keys:,} keys: at most {max_keys:,} are allowed")


def _most_keys(marks: np.ndarray, depth: np.ndarray) -> int:
    """The number of keys of the object with the most keys."""
    most = 0
    for level in range(1, int(depth.max()) + 1):  # a key belongs to the object opened last on its level
        here = marks[depth == level]
        here = here[(here == _COLON) | (here == _BRACE)]
        begins = np.flatnonzero(here == _BRACE)
        if len(begins):
            most = max(most, int(np.diff(begins, append=len(here)).max()) - 1)
    return most


def _too_deep() -> Problem:
    return Problem("malformed-json", f"more than {MAX_DEPTH} levels of lists and objects")


class _Beyond64Bits(Exception):
    """A float may have been written as an integer of more than 64 bits."""


def _keys(value: Any, max_items: int, depth: int, *, rounded: bool = True) -> int:
    """The number of keys of all objects of a document."""
    if not depth:
        raise _too_deep()
    keys = 0
    inner: Iterable[Any] = (value,)
    if value.__class__ is dict:
        keys, inner = len(value), value.values()
    elif value.__class__ is list:
        inner = value
        if len(value) > max_items and value[0].__class__ in (dict, list):
            raise Problem("too-large", f"a list holds {len(value):,} entries: at most {max_items:,} are allowed")
    for item in inner:
        kind = item.__class__
        if kind is float:
            if rounded and not _LOW <= item < _HIGH:
                raise _Beyond64Bits
        elif kind is dict or kind is list:
            keys += _keys(item, max_items, depth - 1, rounded=rounded)
    return keys


def _colons(body: bytes, keys: int) -> int:
    """The number of colons outside of strings: one for each key in the text, including duplicates."""
    spaced = b" :" in body or b"\n:" in body or b"\t:" in body or b"\r:" in body
    if not spaced and body.count(b'":') == keys:
        return keys
    return int(np.count_nonzero(_marks(body) == _COLON))


def _marks(body: bytes) -> np.ndarray:
    """The colons, braces and brackets of a document outside of strings, in order."""
    if b"\\" in body:
        body = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    marks = np.frombuffer(body.translate(_TABLE, _OTHERS), dtype=np.uint8)
    inside = np.cumsum(marks == _QUOTE, dtype=np.uint8) & 1  # overflow does not change whether it is odd or even
    outside: np.ndarray = marks[(inside == 0) & (marks != _QUOTE)]
    return outside
