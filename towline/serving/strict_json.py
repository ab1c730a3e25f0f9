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
# "\u0000", unless its backslash is itself escaped
_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")
_SPACED = (b" :", b"\n:", b"\t:", b"\r:")
_LOW, _HIGH = -(2.0**63), 2.0**64


def loads(body: bytes, longest: int = 10_000) -> Any:
    """One JSON document.

    Args:
        body: UTF-8, without a byte order mark.
        longest: how long a list of objects or of lists may be.

    Raises:
        Problem: it is no JSON, or holds NaN, a number beyond all floats, a key twice in one object, a NUL, half of a
            surrogate pair, or more than 32 levels (``malformed-json``); or too long a list (``too-large``).
    """
    if len(body) < LARGE or not gc.isenabled():
        return _loads(body, longest)
    gc.disable()  # else each of a million new lists would be looked through for cycles again and again
    try:
        return _loads(body, longest)
    finally:
        gc.enable()


def _loads(body: bytes, longest: int) -> Any:
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Problem("malformed-json", f"not JSON: {error}") from None
    try:
        keys = _keys(document, longest, DEPTH)
    except _Beyond64Bits:  # orjson rounds such integers
        document = json.loads(body)
        keys = _keys(document, longest, DEPTH, rounded=False)
    # in most bodies each '":' ends one key; where not, the colons outside of strings are counted
    if (body.count(b'":') != keys or any(mark in body for mark in _SPACED)) and _colons(body) != keys:
        raise Problem("malformed-json", "a key stands twice in one object")
    if b"\\u0000" in body and _NUL.search(body):
        raise Problem("malformed-json", "a text holds a NUL character")
    return document


class _Beyond64Bits(Exception):
    """A float that may have been written as an integer."""


def _keys(value: Any, longest: int, depth: int, *, rounded: bool = True) -> int:
    """How many keys all objects of a document have together."""
    keys = 0
    inner: Iterable[Any]
    if value.__class__ is dict:
        keys, inner = len(value), value.values()
    elif value.__class__ is list:
        inner = value
        if len(value) > longest and value[0].__class__ in (dict, list):
            raise Problem("too-large", f"a list holds {len(value):,} entries: at most {longest:,} are taken")
    else:
        inner = (value,)
    if not depth:
        raise Problem("malformed-json", f"more than {DEPTH} levels of lists and objects")
    for item in inner:
        kind = item.__class__
        if kind is dict or kind is list:
            keys += _keys(item, longest, depth - 1, rounded=rounded)
        elif rounded and kind is float and not _LOW <= item < _HIGH:
            raise _Beyond64Bits
    return keys


def _colons(body: bytes) -> int:
    """How many colons stand outside of the strings of a valid document, in a few passes over its bytes."""
    marks = np.frombuffer(body.replace(b"\\\\", b"").replace(b'\\"', b""), dtype=np.uint8)
    inside = np.cumsum(marks == 0x22, dtype=np.uint8) & 1  # wraps around, and stays odd or even
    return int(np.count_nonzero((marks == 0x3A) & (inside == 0)))
