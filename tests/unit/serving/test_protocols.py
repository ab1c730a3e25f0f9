"""The request formats: all give the same rows, and other shapes are refused."""

import gzip
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.support.checks import at_least_one
from tests.support.serving import CLASSES, ROW, FakeModel, RunningService, make_contract, run_service
from towline.serving.problems import Problem
from towline.serving.protocols import open_inference

ROWS = [ROW, {"size": 30, "kind": "flat & <b>garden</b>", "sunny": False, "at": None}, {**ROW, "size": None}]
NUMBERS = (("a", "numeric", {}), ("b", "numeric", {}), ("c", "boolean", {}))
PREDICTED = [41.0, 60.0, 0.0]
INFER = "/v2/models/house-price/infer"


@pytest.fixture
def service(tmp_path: Path) -> Iterator[RunningService]:
    with run_service(FakeModel(make_contract(), tmp_path)) as running:
        yield running


@pytest.fixture
def numbers(tmp_path: Path) -> Iterator[RunningService]:
    """A model whose features are all numbers."""
    with run_service(FakeModel(make_contract((), NUMBERS), tmp_path)) as running:
        yield running


def tensor(name: str, values: list[Any], datatype: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "shape": [len(values), 1], "datatype": datatype, "data": values, **more}


def column(name: str) -> list[Any]:
    return [row[name] for row in ROWS]


# a frame as MLServer's PandasCodec.encode_request writes it, and tensors as tritonclient does with binary_data=False
PANDAS = {
    "parameters": {"content_type": "pd"},
    "inputs": [
        tensor("size", [20.5, 30.0, None], "FP64"),
        tensor("kind", column("kind"), "BYTES", parameters={"content_type": "str"}),
        tensor("sunny", column("sunny"), "BOOL"),
        tensor(
            "at",
            ['"2026-03-01T12:00:00"', "null", '"2026-03-01T12:00:00"'],
            "BYTES",
            parameters={"content_type": "pd_json"},
        ),
    ],
}
TRITON = {
    "id": "42",
    "parameters": {"binary_data_output": True},
    "inputs": [
        {"name": "size", "shape": [3], "datatype": "FP32", "data": [20.5, 30.0, None]},
        {"name": "kind", "shape": [3], "datatype": "BYTES", "data": column("kind")},
        {"name": "sunny", "shape": [3, 1], "datatype": "BOOL", "data": [[True], [False], [True]]},
        {"name": "at", "shape": [3], "datatype": "BYTES", "data": column("at")},
    ],
}
FRAME = {"columns": list(ROW), "data": [list(row.values()) for row in ROWS]}
ASKED = {
    "rows": ("/predict", {"rows": ROWS}),
    "records": ("/invocations", {"dataframe_records": ROWS}),
    "split": ("/invocations", {"dataframe_split": FRAME}),
    "split with index": ("/invocations", {"dataframe_split": {**FRAME, "index": [7, 8, 9]}}),
    "split in another order": (
        "/invocations",
        {"dataframe_split": {"columns": [*reversed(ROW)], "data": [[*reversed(row.values())] for row in ROWS]}},
    ),
    "split without columns": ("/invocations", {"dataframe_split": {"data": FRAME["data"]}}),
    "instances": ("/invocations", {"instances": ROWS}),
    "instances as lists": ("/invocations", {"instances": FRAME["data"]}),
    "inputs by column": ("/invocations", {"inputs": {name: column(name) for name in ROW}}),
    "inputs of shape (n, 1)": ("/invocations", {"inputs": {name: [[value] for value in column(name)] for name in ROW}}),
    "inputs as rows": ("/invocations", {"inputs": ROWS}),
    "inputs with params": ("/invocations", {"inputs": ROWS, "params": {"temperature": 1}}),
    "MLServer": (INFER, PANDAS),
    "tritonclient": (INFER, TRITON),
    "a version": ("/v2/models/house-price/versions/3/infer", TRITON),
}


@pytest.mark.parametrize(("path", "document"), ASKED.values(), ids=ASKED.keys())
def test_each_format_gives_the_same_predictions(service: RunningService, path: str, document: Any) -> None:
    """The log has the same rows, too."""
    response = service.client.post(path, document)
    assert response.status_code == 200, response.text
    content = response.json()
    assert (content["outputs"][0]["data"] if path.startswith("/v2") else content["predictions"]) == PREDICTED
    logged = service.log.records[0][3]
    assert [service.reloader.model.reader.read([row]) for row in logged] == [
        service.reloader.model.reader.read([row]) for row in ROWS
    ]


def test_the_response_to_rows(service: RunningService) -> None:
    """It has the predictions, the model and the request id, which is also a header."""
    response = service.client.post("/predict", {"rows": [ROW]}, x_request_id="order-7")
    assert response.json() == {
        "predictions": [41.0],
        "model": {"name": "house-price", "version": 3},
        "request_id": "order-7",
    }
    assert response.headers["x-request-id"] == "order-7"
    assert response.headers["content-type"] == "application/json"


def test_a_single_row_is_answered_as_a_list(service: RunningService) -> None:
    assert service.client.post("/predict", {"row": ROW}).json()["predictions"] == [41.0]


def test_no_rows_get_an_empty_list(service: RunningService) -> None:
    assert service.client.post("/predict", {"rows": []}).json()["predictions"] == []
    assert service.client.post("/invocations", {"dataframe_records": []}).json()["predictions"] == []


def test_a_classification_returns_probabilities(tmp_path: Path) -> None:
    """Each protocol that can return them has them in the order of the classes."""
    with run_service(FakeModel(make_contract(CLASSES), tmp_path)) as service:
        content = service.client.post("/predict", {"rows": ROWS}).json()
        assert content["predictions"] == ["no", "yes", "no"]
        assert content["probabilities"] == [[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]
        assert service.client.post("/invocations", {"inputs": ROWS}).json()["predictions"] == ["no", "yes", "no"]
        labels, shares = service.client.post(INFER, PANDAS).json()["outputs"]
        assert labels == {"name": "predict", "datatype": "BYTES", "shape": [3, 1], "data": ["no", "yes", "no"]}
        assert shares == {
            "name": "predict_proba",
            "datatype": "FP64",
            "shape": [3, 2],
            "data": [1.0, 0.0, 0.0, 1.0, 1.0, 0.0],
        }
        chosen = service.client.post(INFER, {**PANDAS, "outputs": [{"name": "predict_proba"}]}).json()["outputs"]
        assert chosen == [shares]


@pytest.mark.parametrize(
    ("classes", "datatype"), [((0, 1), "INT64"), ((False, True), "BOOL"), ((0.5, 1.5), "FP64"), (("a", 1), "BYTES")]
)
def test_a_label_tensor_has_the_datatype_of_the_labels(tmp_path: Path, classes: tuple[Any, ...], datatype: str) -> None:
    with run_service(FakeModel(make_contract(classes), tmp_path)) as service:
        assert service.client.get("/v2/models/house-price").json()["outputs"][0]["datatype"] == datatype
        assert service.client.post(INFER, PANDAS).json()["outputs"][0]["datatype"] == datatype


def test_the_id_in_the_body_is_returned(service: RunningService) -> None:
    """It becomes the request id if no header has one."""
    response = service.client.post(INFER, TRITON)
    assert (response.json()["id"], response.headers["x-request-id"]) == ("42", "42")
    response = service.client.post(INFER, TRITON, x_request_id="mine")
    assert (response.json()["id"], response.headers["x-request-id"]) == ("42", "mine")
    response = service.client.post(INFER, {**TRITON, "id": "two words\r\nx: y"})
    assert response.json()["id"] == "two words\r\nx: y"
    assert "x" not in response.headers
    assert " " not in response.headers["x-request-id"]
    response = service.client.post(INFER, PANDAS)
    assert response.json()["id"] == response.headers["x-request-id"] != ""


def test_a_single_tensor_may_hold_all_numeric_columns(numbers: RunningService) -> None:
    """They have the order of the contract."""
    values = [[1.5, 2, 1], [3, 4, 0]]
    for data in (values, [*values[0], *values[1]]):
        document = {"inputs": [{"name": "input-0", "shape": [2, 3], "datatype": "FP64", "data": data}]}
        response = numbers.client.post(INFER, document)
        assert response.json()["outputs"][0]["data"] == [3.0, 6.0]
    assert numbers.client.post("/invocations", {"inputs": values}).json()["predictions"] == [3.0, 6.0]


def test_a_single_tensor_is_refused_if_a_column_is_no_number(service: RunningService) -> None:
    document = {"inputs": [{"name": "input-0", "shape": [1, 4], "datatype": "FP64", "data": [1, 2, 3, 4]}]}
    response = service.client.post(INFER, document)
    assert response.status_code == 422
    assert "one named input per column" in response.json()["detail"]


def test_the_model_description_has_names_datatypes_and_shapes(service: RunningService) -> None:
    """The clients of MLServer and Triton need it."""
    content = service.client.get("/v2/models/house-price/versions/3").json()
    assert content["name"] == "house-price"
    assert content["versions"] == ["3"]
    assert [(tensor["name"], tensor["datatype"], tensor["shape"]) for tensor in content["inputs"]] == [
        ("size", "FP64", [-1, 1]), ("kind", "BYTES", [-1, 1]), ("sunny", "BOOL", [-1, 1]), ("at", "BYTES", [-1, 1]),
    ]  # fmt: skip
    assert content["outputs"] == [{"name": "predict", "datatype": "FP64", "shape": [-1, 1]}]
    assert service.client.get("/v2/models/house-price/ready").json()["ready"] is True
    assert service.client.get("/v2").json()["name"] == "towline"


@pytest.mark.parametrize("path", ["/v2/models/other", "/v2/models/house-price/versions/4", "/v2/models/other/ready"])
def test_another_model_or_version_gets_404(service: RunningService, path: str) -> None:
    """The response has the member ``error`` of the v2 protocol."""
    response = service.client.get(path)
    assert response.status_code == 404
    assert "house-price" in response.json()["error"] or "3" in response.json()["error"]
    assert service.client.post("/v2/models/other/infer", TRITON).status_code == 404


def test_a_frame_serialized_by_mlflow_is_read(service: RunningService) -> None:
    """It contains nulls."""
    from mlflow.utils.proto_json_utils import dump_input_data

    frame = pd.DataFrame(ROWS).astype({"size": object, "at": object}).where(pd.DataFrame(ROWS).notna(), None)
    response = service.client.send(dump_input_data(frame).encode(), "/invocations")
    assert response.json()["predictions"] == PREDICTED
    numbers = dump_input_data(FRAME["data"])
    assert service.client.send(numbers.encode(), "/invocations").json()["predictions"] == PREDICTED


def binary(document: dict[str, Any], *tails: bytes) -> tuple[bytes, dict[str, str]]:
    head = json.dumps(document).encode()
    headers = {"inference_header_content_length": str(len(head)), "content_type": "application/octet-stream"}
    return head + b"".join(tails), headers


def texts(values: list[str]) -> bytes:
    return b"".join(struct.pack("<I", len(value.encode())) + value.encode() for value in values)


def raw(name: str, shape: list[int], datatype: str, part: bytes) -> dict[str, Any]:
    return {"name": name, "shape": shape, "datatype": datatype, "parameters": {"binary_data_size": len(part)}}


def test_binary_tensors_are_read(service: RunningService) -> None:
    """Triton's client sends them by default."""
    parts = {
        "size": np.array([20.5, 30, np.nan], np.float32).tobytes(),
        "kind": texts(column("kind")),
        "at": texts(["2026-03-01T12:00:00"] * 3),
    }
    inputs = [
        raw("size", [3, 1], "FP32", parts["size"]),
        raw("kind", [3, 1], "BYTES", parts["kind"]),
        tensor("sunny", [True, False, True], "BOOL"),
        raw("at", [3], "BYTES", parts["at"]),
    ]
    body, headers = binary({"inputs": inputs}, *parts.values())
    response = service.client.send(body, INFER, **headers)
    assert response.json()["outputs"][0]["data"] == PREDICTED
    # the length of the document is that without compression
    response = service.client.send(gzip.compress(body), INFER, **headers, content_encoding="gzip")
    assert response.json()["outputs"][0]["data"] == PREDICTED


@pytest.mark.parametrize("shape", [[1] * 9, [1, *[2**62] * 100_000]], ids=["nine", "huge sizes"])
def test_shapes_with_many_dimensions_are_refused(service: RunningService, shape: list[int]) -> None:
    """Multiplying their sizes would take minutes."""
    response = service.client.post(INFER, {"inputs": [tensor("size", [1.0], "FP64", shape=shape)]})
    assert response.status_code == 422
    assert "at most 8" in response.json()["detail"]


def test_too_many_json_values_are_refused_before_they_are_parsed(service: RunningService) -> None:
    values = tensor("at", ["1"] * 12_000, "BYTES", shape=[100, 120], parameters={"content_type": "pd_json"})
    assert service.client.post(INFER, {"inputs": [values]}).json()["code"] == "too-large"


@pytest.mark.parametrize(
    "datatype",
    ["INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64", "FP16", "FP32", "FP64"],
)
def test_binary_tensors_of_each_datatype_are_read(numbers: RunningService, datatype: str) -> None:
    """Each datatype has its own width and sign."""
    dtype = {"F": "float", "I": "int", "U": "uint"}[datatype[0]] + datatype.lstrip("FPINTU")
    part = np.array([[21, 3, 1], [30, 4, 0]], dtype).tobytes()
    body, headers = binary({"inputs": [raw("all", [2, 3], datatype, part)]}, part)
    assert numbers.client.send(body, INFER, **headers).json()["outputs"][0]["data"] == [42.0, 60.0]


EIGHT = b"\0" * 8
BAD_BINARY = {
    "too short": ({"inputs": [raw("size", [1], "FP64", EIGHT)]}, b"\0" * 4, "beyond the end"),
    "too long": ({"inputs": [raw("size", [1], "FP64", EIGHT)]}, b"\0" * 12, "after the last"),
    "nobody's": ({"inputs": [tensor("size", [1.0], "FP64")]}, b"\0", "after the last"),
    "no inputs": ({}, b"\0", "after the last"),
    "negative": (
        {"inputs": [{**raw("size", [1], "FP64", b""), "parameters": {"binary_data_size": -8}}]},
        b"",
        "beyond",
    ),
    "no size": (
        {"inputs": [{**raw("size", [1], "FP64", b""), "parameters": {"binary_data_size": "8"}}]},
        b"",
        "beyond",
    ),
    "half a number": ({"inputs": [raw("size", [1], "FP64", b"\0" * 9)]}, b"\0" * 9, "not a multiple"),
    "other shape": ({"inputs": [raw("size", [2], "FP64", EIGHT)]}, EIGHT, "not have the given shape"),
    "no datatype": ({"inputs": [raw("size", [1], "FP65", EIGHT)]}, EIGHT, "datatype"),
    "long text": ({"inputs": [raw("size", [1], "BYTES", b"\xff\0\0\0a")]}, b"\xff\0\0\0a", "beyond its tensor"),
    "half a length": ({"inputs": [raw("size", [1], "BYTES", b"\1\0")]}, b"\1\0", "not texts"),
    "no UTF-8": ({"inputs": [raw("size", [1], "BYTES", b"\1\0\0\0\xff")]}, b"\1\0\0\0\xff", "not texts"),
    "NUL": ({"inputs": [raw("size", [1], "BYTES", b"\1\0\0\0\0")]}, b"\1\0\0\0\0", "NUL"),
}


@pytest.mark.parametrize(("document", "tail", "detail"), BAD_BINARY.values(), ids=BAD_BINARY.keys())
def test_invalid_binary_tensors_are_refused(service: RunningService, document: Any, tail: bytes, detail: str) -> None:
    """The error names the input."""
    body, headers = binary(document, tail)
    response = service.client.send(body, INFER, **headers)
    assert response.status_code == 422
    assert detail in response.json()["detail"]


@pytest.mark.parametrize("length", ["-1", "x", "99999", "9" * 30, "1e2", ""])
def test_an_invalid_json_length_is_refused(service: RunningService, length: str) -> None:
    response = service.client.send(b"{}", INFER, inference_header_content_length=length)
    assert response.status_code == 400


def with_input(**changes: Any) -> dict[str, Any]:
    return {"inputs": [{**PANDAS["inputs"][0], **changes}, *PANDAS["inputs"][1:]]}


SHAPES: dict[str, tuple[str, Any, str]] = {
    "no object": ("/predict", [ROW], "one object"),
    "a text": ("/predict", "rows", "one object"),
    "null": ("/predict", None, "one object"),
    "no rows": ("/predict", {}, "one object"),
    "a bare row": ("/predict", ROW, "one object"),
    "both": ("/predict", {"rows": [ROW], "row": ROW}, "one object"),
    "a further member": ("/predict", {"rows": [ROW], "x": 1}, "one object"),
    "rows is an object": ("/predict", {"rows": ROW}, "not a list"),
    "rows is null": ("/predict", {"rows": None}, "not a list"),
    "row is a list": ("/predict", {"row": [ROW]}, "not an object"),
    "a row is a list": ("/predict", {"rows": [ROW, [1]]}, "not an object"),
    "a row is null": ("/predict", {"rows": [None]}, "not an object"),
    "no format": ("/invocations", {"rows": [ROW]}, "exactly one of"),
    "two formats": ("/invocations", {"inputs": [ROW], "instances": [ROW]}, "exactly one of"),
    "list for a format": ("/invocations", [ROW], "exactly one of"),
    "records is an object": ("/invocations", {"dataframe_records": ROW}, "not a list"),
    "split is a list": ("/invocations", {"dataframe_split": [1]}, "not an object"),
    "split without data": ("/invocations", {"dataframe_split": {"columns": ["size"]}}, "not an object with columns"),
    "split with more": ("/invocations", {"dataframe_split": {**FRAME, "x": 1}}, "not an object with columns"),
    "split's columns numbers": ("/invocations", {"dataframe_split": {"columns": [1], "data": [[1]]}}, "list of names"),
    "split's columns twice": ("/invocations", {"dataframe_split": {"columns": ["a", "a"], "data": [[1, 2]]}}, "twice"),
    "split, rows short": ("/invocations", {"dataframe_split": {"columns": ["a", "b"], "data": [[1]]}}, "each of the 2"),
    "split's data is text": ("/invocations", {"dataframe_split": {"columns": ["a"], "data": "x"}}, "not a list"),
    "instances is a text": ("/invocations", {"instances": "x"}, "not a list"),
    "instances mixed": ("/invocations", {"instances": [ROW, [1]]}, "not an object"),
    "instances of another width": ("/invocations", {"instances": [[1, 2]]}, "each of the 4"),
    "inputs ragged": ("/invocations", {"inputs": {"size": [1, 2], "kind": ["a"]}}, "one length"),
    "inputs list and value": ("/invocations", {"inputs": {"size": [1, 2], "kind": "a"}}, "one length"),
    "inputs missing": (INFER, {}, '"inputs"'),
    "inputs empty": (INFER, {"inputs": []}, '"inputs"'),
    "inputs an object": (INFER, {"inputs": {}}, '"inputs"'),
    "input no object": (INFER, {"inputs": [1]}, "inputs[0] is not an object"),
    "input no name": (INFER, with_input(name=None), "inputs[0] has no name"),
    "input twice": (INFER, with_input(name="kind"), "inputs[1] has the same name"),
    "no shape": (INFER, with_input(shape=None), "inputs[0]: the shape"),
    "empty shape": (INFER, with_input(shape=[]), "inputs[0]: the shape"),
    "negative shape": (INFER, with_input(shape=[-1]), "inputs[0]: the shape"),
    "shape of floats": (INFER, with_input(shape=[3.0]), "inputs[0]: the shape"),
    "shape of flags": (INFER, with_input(shape=[True]), "inputs[0]: the shape"),
    "wrong shape": (INFER, with_input(shape=[2, 1]), "inputs[0]: the data does not have"),
    "wide shape": (INFER, with_input(shape=[3, 2], data=[1.0] * 6), "not [n] or [n, 1]"),
    "nested otherwise": (INFER, with_input(data=[[1.0, 2.0], [3.0]]), "inputs[0]: the data does not have"),
    "too deeply nested": (INFER, with_input(data=[[[1.0]], [[2.0]], [[3.0]]]), "not have the given shape"),
    "other number of rows": (INFER, with_input(shape=[1, 1], data=[1.0]), "the same number of rows"),
    "no datatype": (INFER, with_input(datatype=None), "inputs[0]: the datatype"),
    "unknown datatype": (INFER, with_input(datatype="FP128"), "inputs[0]: the datatype"),
    "list for a datatype": (INFER, with_input(datatype=[]), "inputs[0]: the datatype"),
    "unknown content type": (INFER, with_input(parameters={"content_type": "base64"}), "inputs[0]: the content_type"),
    "no data": (INFER, with_input(data=None), "inputs[0]: data is not a list"),
    "text for a number": (INFER, with_input(data=["a", 1, 2]), "not FP64"),
    "unknown output": (INFER, {**PANDAS, "outputs": [{"name": "x"}]}, "outputs holds a name"),
    "outputs no list": (INFER, {**PANDAS, "outputs": 1}, "outputs holds a name"),
    "id no text": (INFER, {**PANDAS, "id": 1}, "id is not"),
    "id too long": (INFER, {**PANDAS, "id": "x" * 129}, "id is not"),
}  # fmt: skip


@pytest.mark.parametrize(("path", "document", "detail"), SHAPES.values(), ids=SHAPES.keys())
def test_a_document_of_the_wrong_shape_gets_422(service: RunningService, path: str, document: Any, detail: str) -> None:
    """The error names the place and the problem."""
    response = service.client.post(path, document)
    assert response.status_code == 422, response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["code"] == "wrong-shape"
    assert detail in response.json()["detail"]


@pytest.mark.parametrize(
    ("datatype", "values", "wrong"),
    [
        ("BOOL", [True, False, 0, 1, None], ["true", 2, 0.5]),
        ("INT8", [-128, 127, None], [128, -129, 1.0, True, "1"]),
        ("UINT8", [0, 255], [256, -1]),
        ("INT64", [2**63 - 1, -(2**63)], [2**63]),
        ("UINT64", [2**64 - 1], [2**64, -1]),
        ("FP16", [65504, -1.5], [65505.0, "1", True]),
        ("FP32", [3.4e38, 1], [3.5e38]),
        ("FP64", [1e308, 1, None], ["1e3", False, [], {}]),
        ("BYTES", ["", "x", None], [1, True, ["x"]]),
    ],
)
def test_values_must_have_the_datatype(datatype: str, values: list[Any], wrong: list[Any]) -> None:
    """Null is valid; the error names the rows of other values."""
    open_inference._check(values, datatype, "x")
    for value in at_least_one(wrong):
        with pytest.raises(Problem) as caught:
            open_inference._check([*values, value], datatype, "x")
        assert [(fault.row, fault.field) for fault in caught.value.faults] == [(len(values), "x")]


def test_the_limit_of_rows_holds_in_each_format(tmp_path: Path) -> None:
    with run_service(FakeModel(make_contract((), NUMBERS), tmp_path), max_rows=3) as service:
        row = {"a": 1, "b": 2, "c": 0}
        data = [[1, 2, 0]] * 4
        flat = {"name": "all", "shape": [4, 3], "datatype": "FP64", "data": [value for row in data for value in row]}
        for path, document in [
            ("/predict", {"rows": [row] * 4}),
            ("/invocations", {"dataframe_records": [row] * 4}),
            ("/invocations", {"dataframe_split": {"columns": list(row), "data": data}}),
            ("/invocations", {"inputs": {name: [0] * 4 for name in row}}),
            (INFER, {"inputs": [flat]}),
        ]:
            response = service.client.post(path, document)
            assert (response.status_code, response.json()["code"]) == (413, "too-large"), path
        assert service.client.post("/predict", {"rows": [row] * 3}).status_code == 200


def test_the_error_names_a_missing_column(service: RunningService) -> None:
    """This holds for tensors and for rows."""
    response = service.client.post(INFER, {"inputs": PANDAS["inputs"][1:]})
    assert response.status_code == 422
    assert response.json()["errors"][0] == {"row": 0, "field": "size", "detail": "'size' is missing"}
    assert "'size' is missing" in response.json()["error"]
