"""The Open Inference Protocol v2: a request holds one named tensor per column, a response the predictions.

The predictions of a classification include the probabilities.
"""

import math
import struct
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from towline.errors import Fault
from towline.serving.problems import Problem, wrong_shape
from towline.serving.protocols.json_rows import PredictionRequest, WireProtocol, check_row_limit
from towline.serving.protocols.strict_json import parse_json

if TYPE_CHECKING:
    from towline.inference.predictor import Model
    from towline.inference.scorer import RowPredictions

INTEGERS = {
    f"{sign}INT{bits}": ((0, 2**bits - 1) if sign else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1))
    for sign in ("", "U")
    for bits in (8, 16, 32, 64)
}
FLOATS = {"FP16": 65504.0, "FP32": 3.4028235677973366e38, "FP64": math.inf}
DATATYPES = ("BOOL", *INTEGERS, *FLOATS, "BYTES")
DIMENSIONS = 8  # computing the product of very many sizes would take minutes
CONTENT_TYPES = ("str", "np", "pd", "datetime", "pd_json")
LABELS, PROBABILITIES = "predict", "predict_proba"  # as MLServer's scikit-learn runtime names them
BINARY_HEADER = b"inference-header-content-length"
_NUMPY_TYPES = {
    "BOOL": "?", "INT8": "<i1", "INT16": "<i2", "INT32": "<i4", "INT64": "<i8",
    "UINT8": "<u1", "UINT16": "<u2", "UINT32": "<u4", "UINT64": "<u8", "FP16": "<f2", "FP32": "<f4", "FP64": "<f8",
}  # fmt: skip
_KIND_TYPES = {"numeric": "FP64", "boolean": "BOOL", "category": "BYTES", "text": "BYTES", "datetime": "BYTES"}


def describe_model(model: "Model") -> dict[str, Any]:
    """The answer to ``GET /v2/models/NAME``."""
    outputs = [{"name": LABELS, "datatype": _label_type(model), "shape": [-1, 1]}]
    if model.contract.classes:
        outputs.append({"name": PROBABILITIES, "datatype": "FP64", "shape": [-1, len(model.contract.classes)]})
    return {
        "name": model.name,
        "versions": [str(model.version)],
        "platform": "towline",
        "inputs": [
            {"name": column.name, "datatype": _KIND_TYPES[column.kind], "shape": [-1, 1]}
            for column in model.contract.input_columns
        ],
        "outputs": outputs,
    }


def read_tensors(document: Any, model: "Model", max_rows: int) -> PredictionRequest:
    """Reads one tensor per column, of shape [n] or [n, 1], or one of shape [n, columns] if all columns are numbers."""
    if not isinstance(document, dict) or not isinstance(inputs := document.get("inputs"), list) or not inputs:
        raise wrong_shape('give one object with "inputs", a list of tensors')
    identity = document.get("id")
    if identity is not None and not (isinstance(identity, str) and len(identity) <= 128):
        raise wrong_shape("id is not a text of at most 128 characters")
    tensors: dict[str, tuple[list[int], list[Any]]] = {}
    for place, tensor in enumerate(inputs):
        name, shape, values = _tensor(tensor, f"inputs[{place}]", max_rows)
        if name in tensors:
            raise wrong_shape(f"inputs[{place}] has the same name as an earlier input")
        tensors[name] = (shape, values)
    outputs = _outputs(document.get("outputs"), model)
    if len(tensors) == 1:
        ((name, (shape, values)),) = tensors.items()
        if len(shape) == 2 and (shape[1] > 1 or name not in model.reader.fields):
            return PredictionRequest(_matrix(shape, values, model), identity, outputs)
    counts = set()
    for name, (shape, values) in tensors.items():
        if len(shape) > 1 and math.prod(shape[1:]) != 1:
            raise wrong_shape(f"the shape of input {name!r} is not [n] or [n, 1]")
        counts.add(len(values))
    if len(counts) != 1:
        raise wrong_shape("the inputs do not have the same number of rows")
    columns = [values for _, values in tensors.values()]
    rows = [dict(zip(tensors, row, strict=True)) for row in zip(*columns, strict=True)]
    return PredictionRequest(rows, identity, outputs)


def write_tensors(answer: "RowPredictions", model: "Model", request: PredictionRequest, request_id: str) -> bytes:
    return orjson.dumps({
        "model_name": model.name,
        "model_version": str(model.version),
        "id": request_id if request.id is None else request.id,
        "outputs": write_outputs(answer, model, request),
    })  # fmt: skip


def write_outputs(answer: "RowPredictions", model: "Model", request: PredictionRequest) -> list[dict[str, Any]]:
    """The tensors of a response: labels and, for a classification, probabilities; only those that were requested."""
    labels: list[Any] = answer.predictions
    datatype = _label_type(model)
    if datatype == "BYTES":
        labels = [label if isinstance(label, str) else str(label) for label in labels]
    outputs: list[dict[str, Any]] = [{"name": LABELS, "datatype": datatype, "shape": [len(labels), 1], "data": labels}]
    if answer.probabilities is not None:
        width = len(model.contract.classes)
        flat = [share for row in answer.probabilities for share in row]
        outputs.append({"name": PROBABILITIES, "datatype": "FP64", "shape": [len(labels), width], "data": flat})
    return [output for output in outputs if not request.outputs or output["name"] in request.outputs]


def _tensor(tensor: Any, place: str, max_rows: int) -> tuple[str, list[int], list[Any]]:
    """The name, shape and flat values of a tensor; the values are checked against shape and datatype."""
    if not isinstance(tensor, dict):
        raise wrong_shape(f"{place} is not an object")
    name, shape, datatype, data = (tensor.get(key) for key in ("name", "shape", "datatype", "data"))
    if not isinstance(name, str):
        raise wrong_shape(f"{place} has no name")
    if not isinstance(shape, list) or not shape or not all(type(size) is int and size >= 0 for size in shape):
        raise wrong_shape(f"{place}: the shape is not a list of sizes")
    if len(shape) > DIMENSIONS:
        raise wrong_shape(f"{place}: the shape has {len(shape):,} dimensions: at most {DIMENSIONS} are allowed")
    if datatype not in DATATYPES:
        raise wrong_shape(f"{place}: the datatype is not one of {', '.join(DATATYPES)}")
    parameters = tensor.get("parameters") or {}
    content_type = parameters.get("content_type") if isinstance(parameters, dict) else None
    if content_type is not None and content_type not in CONTENT_TYPES:
        raise wrong_shape(f"{place}: the content_type is not one of {', '.join(CONTENT_TYPES)}")
    check_row_limit(shape[0], max_rows)
    if not isinstance(data, list):
        raise wrong_shape(f"{place}: data is not a list; shared memory is not supported")
    values = _flat(data, shape, place)
    if content_type == "pd_json":  # MLServer writes each value of a column with mixed types as a JSON document
        check_row_limit(len(values), max_rows)
        values = [parse_json(value.encode()) if isinstance(value, str) else value for value in values]
    else:
        _check(values, datatype, name)
    return name, shape, values


def _flat(data: list[Any], shape: Sequence[int], place: str) -> list[Any]:
    """Row-major values of nested or flat data."""
    if math.prod(shape) == len(data) and not any(value.__class__ is list for value in data):
        return data
    values: list[Any] = data
    for inner in shape[1:]:
        if not all(isinstance(value, list) and len(value) == inner for value in values):
            raise wrong_shape(f"{place}: the data does not have the given shape")
        values = [value for part in values for value in part]
    if len(data) != shape[0] or any(isinstance(value, list) for value in values):
        raise wrong_shape(f"{place}: the data does not have the given shape")
    return values


def _check(values: list[Any], datatype: str, name: str) -> None:
    if datatype in INTEGERS:
        low, high = INTEGERS[datatype]
        fits = [type(value) is int and low <= value <= high for value in values]
    elif datatype in FLOATS:
        largest = FLOATS[datatype]
        fits = [type(value) in (int, float) and abs(value) <= largest for value in values]
    elif datatype == "BOOL":
        fits = [type(value) is bool or value in (0, 1) for value in values]
    else:
        fits = [type(value) is str for value in values]
    faults = [
        Fault(row, name, f"is not {datatype}")
        for row, (fit, value) in enumerate(zip(fits, values, strict=True))
        if not fit and value is not None
    ]
    if faults:
        raise Problem("wrong-shape", f"input {name!r} holds values that are not {datatype}", faults=tuple(faults))


def _matrix(shape: Sequence[int], values: list[Any], model: "Model") -> list[Mapping[str, Any]]:
    columns = model.contract.input_columns
    if any(column.kind not in ("numeric", "boolean") for column in columns):
        raise wrong_shape("a single tensor can only hold numbers: send one named input per column")
    if shape[1] != len(columns):
        raise wrong_shape(f"the tensor has {shape[1]} columns, not {len(columns)}")
    names, width = [column.name for column in columns], len(columns)
    return [dict(zip(names, values[at : at + width], strict=True)) for at in range(0, len(values), width)]


def _outputs(outputs: Any, model: "Model") -> tuple[str, ...]:
    if outputs is None:
        return ()
    known = {LABELS, PROBABILITIES} if model.contract.classes else {LABELS}
    listed = outputs if isinstance(outputs, list) else [None]
    names = [output.get("name") if isinstance(output, dict) else None for output in listed]
    if not all(isinstance(name, str) and name in known for name in names):
        raise wrong_shape(f"outputs holds a name that is not one of {', '.join(sorted(known))}")
    return tuple(str(name) for name in names)


def _label_type(model: "Model") -> str:
    kinds = {type(label) for label in model.contract.classes}
    if not kinds or kinds == {float}:
        return "FP64"
    return "BOOL" if kinds == {bool} else "INT64" if kinds == {int} else "BYTES"


def json_length(headers: Mapping[bytes, bytes], length: int) -> int:
    """The length of the JSON document at the start of a body of ``length`` bytes.

    Raises:
        Problem: the header is not a number within the body.
    """
    value = headers[BINARY_HEADER]
    if not value.isdigit() or len(value) > 18 or int(value) > length:
        raise Problem("bad-request", "Inference-Header-Content-Length is not a position in the body")
    return int(value)


def attach_binary_data(document: Any, tail: bytes) -> None:
    """Parses the binary data behind the JSON document and stores it as ``data`` of the tensors.

    Raises:
        Problem: a size, datatype or text is invalid.
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
        tensor["data"] = _binary_values(tail[at : at + size], tensor.get("datatype"), f"inputs[{place}]")
        at += size
    if at != len(tail):
        raise wrong_shape("there are bytes after the last tensor")


def _binary_values(part: bytes, datatype: Any, place: str) -> list[Any]:
    if datatype == "BYTES":
        return _texts(part, place)
    if not isinstance(datatype, str) or datatype not in _NUMPY_TYPES:
        raise wrong_shape(f"{place}: the datatype is not one of {', '.join(_NUMPY_TYPES)}, BYTES")
    dtype = np.dtype(_NUMPY_TYPES[datatype])
    if len(part) % dtype.itemsize:
        raise wrong_shape(f"{place}: the number of bytes is not a multiple of the size of {datatype}")
    values: list[Any] = np.frombuffer(part, dtype).tolist()
    if dtype.kind == "f":
        return [None if value != value else value for value in values]  # noqa: PLR0124 - NaN
    return values


def _texts(part: bytes, place: str) -> list[str]:
    """Texts in UTF-8, each after its length as a little-endian integer of four bytes."""
    texts, at = [], 0
    try:
        while at < len(part):
            (length,) = struct.unpack_from("<I", part, at)
            at += 4 + length
            if at > len(part):
                raise wrong_shape(f"{place}: a text extends beyond its tensor")
            texts.append(part[at - length : at].decode())
    except (struct.error, UnicodeDecodeError):
        raise wrong_shape(f"{place}: the bytes are not texts in UTF-8") from None
    if any("\0" in text for text in texts):
        raise wrong_shape(f"{place}: a text holds a NUL character")
    return texts


TENSORS = WireProtocol("open-inference", read_tensors, write_tensors, bare=True)
