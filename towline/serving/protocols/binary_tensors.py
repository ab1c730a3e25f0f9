"""The binary extension of the Open Inference Protocol: tensors as bytes behind the document, as tritonclient sends."""

import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

from towline.serving.problems import Problem, wrong_shape

HEADER = b"inference-header-content-length"
_TYPES = {
    "BOOL": "?", "INT8": "<i1", "INT16": "<i2", "INT32": "<i4", "INT64": "<i8",
    "UINT8": "<u1", "UINT16": "<u2", "UINT32": "<u4", "UINT64": "<u8", "FP16": "<f2", "FP32": "<f4", "FP64": "<f8",
}  # fmt: skip


def json_length(headers: Mapping[bytes, bytes], length: int) -> int:
    """Where in a body of this length its document ends.

    Raises:
        Problem: the header that says so is no such number.
    """
    given = headers[HEADER]
    if not given.isdigit() or len(given) > 18 or int(given) > length:
        raise Problem("bad-request", "Inference-Header-Content-Length is no place in the body")
    return int(given)


def attach_binary_data(document: Any, tail: bytes) -> None:
    """Gives each tensor of a request that came as bytes its data.

    Raises:
        Problem: sizes, datatypes or texts are not right.
    """
    inputs = document.get("inputs") if isinstance(document, dict) else None
    at = 0
    for place, tensor in enumerate(inputs if isinstance(inputs, list) else ()):
        parameters = tensor.get("parameters") if isinstance(tensor, dict) else None
        size = parameters.get("binary_data_size") if isinstance(parameters, dict) else None
        if size is None:
            continue
        if type(size) is not int or not 0 <= size <= len(tail) - at:
            raise wrong_shape(f"inputs[{place}]: binary_data_size is beyond the end of the body")
        tensor["data"] = _values(tail[at : at + size], tensor.get("datatype"), f"inputs[{place}]")
        at += size
    if at != len(tail):
        raise wrong_shape("there are bytes behind the last tensor")


def _values(part: bytes, datatype: Any, place: str) -> list[Any]:
    if datatype == "BYTES":
        return _texts(part, place)
    if not isinstance(datatype, str) or datatype not in _TYPES:
        raise wrong_shape(f"{place}: the datatype is not one of {', '.join(_TYPES)}, BYTES")
    dtype = np.dtype(_TYPES[datatype])
    if len(part) % dtype.itemsize:
        raise wrong_shape(f"{place}: the bytes are no whole number of {datatype}")
    values: list[Any] = np.frombuffer(part, dtype).tolist()
    if dtype.kind == "f":
        return [None if value != value else value for value in values]  # noqa: PLR0124 - NaN
    return values


def _texts(part: bytes, place: str) -> list[str]:
    """Each is four bytes of length, the lowest first, and so much UTF-8."""
    texts, at = [], 0
    try:
        while at < len(part):
            (length,) = struct.unpack_from("<I", part, at)
            at += 4 + length
            if at > len(part):
                raise wrong_shape(f"{place}: a text is longer than its tensor")
            texts.append(part[at - length : at].decode())
    except (struct.error, UnicodeDecodeError):
        raise wrong_shape(f"{place}: the bytes are no texts in UTF-8") from None
    if any("\0" in text for text in texts):
        raise wrong_shape(f"{place}: a text holds a NUL character")
    return texts
