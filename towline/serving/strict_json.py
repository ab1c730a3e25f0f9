"""JSON that means one thing only: whatever two parsers could read in two ways is refused."""

import gc
import json
import re
from collections.abc import Iterable
from typing import Any

import numpy as np
import orjson

from towline.serving.problems import Problem

DEPTH = 32  # levels; no path takes more than six
LARGE = 65_536  # bytes
OBJECTS, LISTS = 10, 50  # at most, for each row that is allowed
# a text without an end is taken to the end: else it would be looked for again from each quote in it
_TEXT_OR_NAN = re.compile(rb'"(?:[^"\\]|\\.)*+(?:"|\\?\Z)|\bNaN\b', re.DOTALL)
_LOW, _HIGH = -(2.0**63), 2.0**64


def loads(body: bytes, longest: int = 10_000, *, nan: bool = False) -> Any:
    """One JSON document.

    Args:
        body: UTF-8, without a byte order mark.
        longest: how long a list of objects or of lists may be.
        nan: whether the word NaN is taken for null, as clients written in Python have it.

    Raises:
        Problem: it is no JSON, or holds NaN, a number beyond all floats, a key twice in one object, a NUL, half of a
            surrogate pair, or more than 32 levels (``malformed-json``); or too long a list (``too-large``).
    """
    if len(body) < LARGE or not gc.isenabled():
        return _loads(body, longest, nan)
    gc.disable()  # else each of a million new lists would be looked through for cycles again and again
    try:
        return _loads(body, longest, nan)
    finally:
        gc.enable()


def _loads(body: bytes, longest: int, nan: bool) -> Any:
    if body.count(b"{") > OBJECTS * longest or body.count(b"[") > LISTS * longest:
        _check_size(body, longest)
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        if not (nan and b"NaN" in body):
            raise Problem("malformed-json", f"not JSON: {error}") from None
        body = _without_nan(body)
        return _loads(body, longest, nan=False)
    try:
        keys = _keys(document, longest, DEPTH)
    except _Beyond64Bits:  # orjson rounds such integers
        document = json.loads(body)
        keys = _keys(document, longest, DEPTH, rounded=False)
    if body.count(b":") != keys and _colons(body, keys) != keys:
        raise Problem("malformed-json", "a key stands twice in one object")
    if b"\\u0000" in body and b"\\u0000" in body.replace(b"\\\\", b""):
        raise Problem("malformed-json", "a text holds a NUL character")
    return document


def _check_size(body: bytes, longest: int) -> None:
    """Millions of empty objects cost more than their few bytes let expect."""
    marks = _bare(body)
    opened, closed = (marks == ord("[")) | (marks == ord("{")), (marks == ord("]")) | (marks == ord("}"))
    if np.cumsum(opened.astype(np.int8) - closed, dtype=np.int32).max(initial=0) > DEPTH:
        raise _too_deep()
    if np.count_nonzero(marks == ord("{")) > OBJECTS * longest or np.count_nonzero(opened) > LISTS * longest:
        raise Problem("too-large", f"the body holds far more lists and objects than {longest:,} rows need")


def _too_deep() -> Problem:
    return Problem("malformed-json", f"more than {DEPTH} levels of lists and objects")


def _without_nan(body: bytes) -> bytes:
    """Each NaN outside of strings made null."""
    return _TEXT_OR_NAN.sub(lambda found: b"null" if found[0] == b"NaN" else found[0], body)


class _Beyond64Bits(Exception):
    """A float that may have been written as an integer."""


def _keys(value: Any, longest: int, depth: int, *, rounded: bool = True) -> int:
    """How many keys all objects of a document have together."""
    if not depth:
        raise _too_deep()
    keys = 0
    inner: Iterable[Any] = (value,)
    if value.__class__ is dict:
        keys, inner = len(value), value.values()
    elif value.__class__ is list:
        inner = value
        if len(value) > longest and value[0].__class__ in (dict, list):
            raise Problem("too-large", f"a list holds {len(value):,} entries: at most {longest:,} are taken")
    for item in inner:
        kind = item.__class__
        if kind is float:
            if rounded and not _LOW <= item < _HIGH:
                raise _Beyond64Bits
        elif kind is dict or kind is list:
            keys += _keys(item, longest, depth - 1, rounded=rounded)
    return keys


def _colons(body: bytes, keys: int) -> int:
    """How many colons stand outside of strings: one behind each key that was written."""
    spaced = b" :" in body or b"\n:" in body or b"\t:" in body or b"\r:" in body
    if not spaced and body.count(b'":') == keys:
        return keys
    return int(np.count_nonzero(_bare(body) == ord(":")))


def _bare(body: bytes) -> np.ndarray:
    """The bytes of a document, those inside of strings made 0, in a few passes over it."""
    marks = np.frombuffer(body.replace(b"\\\\", b"").replace(b'\\"', b""), dtype=np.uint8)
    inside = np.cumsum(marks == ord('"'), dtype=np.uint8) & 1  # wraps around, and stays odd or even
    bare: np.ndarray = marks * (1 - inside)
    return bare
