"""The OpenAPI 3.1 document of a service: its paths, and the schema of a row."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from towline.data.example_row import example_row
from towline.data.schema.contract import Column, Contract
from towline.formatting import shorten_list
from towline.serving.problems import PROBLEM_TYPES
from towline.serving.protocols.open_inference import DATATYPES, LABELS, PROBABILITIES, describe_model

if TYPE_CHECKING:
    from towline.inference.predictor import Model

MAX_CATEGORIES = 20  # categories listed
_TYPES = {
    "numeric": ["number"],
    "boolean": ["boolean"],
    "category": ["string", "number", "boolean"],
    "text": ["string", "number", "boolean"],
}
_STATUSES = (400, 401, 403, 404, 405, 413, 415, 422, 429, 500, 503)
_SECURITY: list[dict[str, list[str]]] = [{"bearer": []}, {"header": []}]

Json = dict[str, Any]

# path, summary, operation id, whether a key is needed, media type; {name} is the name of the model
_GET_OPERATIONS = (
    ("/metadata", "Metadata of the model: data, metrics, versions of libraries", "describe", True, "application/json"),
    ("/metrics", "Metrics for Prometheus; needs the scope admin", "metrics", True, "text/plain"),
    ("/livez", "Whether the process runs", "live", False, "application/json"),
    ("/readyz", "Whether load balancers should send requests", "ready", False, "application/json"),
    ("/ping", "MLflow's readiness", "ping", False, "application/json"),
    ("/version", "The version of towline", "version", False, "text/plain"),
    ("/v2", "The server, by the Open Inference Protocol", "server", True, "application/json"),
    ("/v2/health/live", "As /livez", "v2_live", False, "application/json"),
    ("/v2/health/ready", "As /readyz", "v2_ready", False, "application/json"),
    ("/v2/models/{name}", "The model's tensors", "v2_model", True, "application/json"),
    ("/v2/models/{name}/ready", "Whether the model answers", "v2_model_ready", False, "application/json"),
)


def describe_fields(contract: Contract) -> list[Json]:
    """The fields of a row: each feature with its kind, and its range or levels in training."""
    included = {"name", "kind", "min", "max", "categories", "levels"}
    return [
        column.model_dump(mode="json", include=included) | {"nulls_in_training": column.nullable}
        for column in contract.input_columns
    ]


def openapi_document(model: "Model", max_rows: int) -> Json:
    """Builds the document.

    Args:
        model: the model that is served.
        max_rows: maximum rows of a request.
    """
    contract = model.contract
    row = example_row(contract)
    paths: Json = {"/predict": {"post": _predict(model, row, max_rows)}}
    paths["/invocations"] = {"post": _invocations(model, row, max_rows)}
    for path, summary, name, keyed, media_type in _GET_OPERATIONS:
        paths[path.format(name=model.name)] = {"get": _get(summary, name, keyed, media_type)}
    paths[f"/v2/models/{model.name}/infer"] = {"post": _infer(model, row, max_rows)}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": model.name,
            "version": str(model.version),
            "summary": f"Predicts {contract.target} ({contract.task})",
        },
        "paths": paths,
        "components": {
            "schemas": {
                "Row": _row(contract, row),
                "Prediction": {"enum": list(contract.classes)} if contract.classes else {"type": "number"},
                "Problem": _problem(),
            },
            "responses": {str(status): _error_response(status) for status in _STATUSES},
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            },
        },
    }


def _object(properties: Json, required: Sequence[str], **keywords: Any) -> Json:
    return {"type": "object", "properties": properties, "required": list(required), **keywords}


def _array(items: Json | None = None, **keywords: Any) -> Json:
    return {"type": "array", **({} if items is None else {"items": items}), **keywords}


def _text(**keywords: Any) -> Json:
    return {"type": "string", **keywords}


def _reference(schema: str) -> Json:
    return {"$ref": f"#/components/schemas/{schema}"}


def _column(column: Column) -> Json:
    """The schema of one field. Its range and categories are only described: other values are valid, and counted."""
    notes = []
    if column.min is not None and column.max is not None:
        notes.append(f"in training from {column.min:g} to {column.max:g}")
    if column.categories:
        notes.append(f"in training one of {shorten_list(column.categories, MAX_CATEGORIES)}")
    if not column.nullable:
        notes.append("never null in training")
    schema: Json = {"description": "; ".join([column.kind, *notes])}
    if column.kind == "datetime":
        return schema | {"type": ["string", "null"], "format": "date-time"}
    return schema | {"type": [*_TYPES[column.kind], "null"]}


def _row(contract: Contract, row: Json) -> Json:
    columns = {column.name: _column(column) for column in contract.input_columns}
    description = "Every feature, null if its value is unknown. Additional fields are ignored."
    return _object(columns, tuple(columns), description=description, examples=[row])


def _problem() -> Json:
    fault = _object(
        {"row": {"type": "integer", "minimum": 0}, "field": _text(), "detail": _text()}, ("row", "field", "detail")
    )
    properties = {
        **{name: _text() for name in ("type", "title", "detail", "remedy", "request_id")},
        **{name: {"type": "integer"} for name in ("status", "error_count")},
        "code": {"enum": list(PROBLEM_TYPES)},
        "errors": _array(fault, maxItems=20),
    }
    required = ("type", "title", "status", "detail", "code", "request_id")
    return _object(properties, required, description="RFC 9457")


def _error_response(status: int) -> Json:
    titles = [kind.title for kind in PROBLEM_TYPES.values() if kind.status == status]
    content = {"application/problem+json": {"schema": _reference("Problem")}}
    return {"description": "; ".join(titles), "content": content}


def _error_references(statuses: Sequence[int]) -> Json:
    return {str(status): {"$ref": f"#/components/responses/{status}"} for status in statuses}


def _get(summary: str, name: str, keyed: bool, media_type: str) -> Json:
    success = {"200": {"description": "Success", "content": {media_type: {}}}}
    statuses = (401, 403, 405, 429, 503) if keyed else (405, 503)
    operation: Json = {"summary": summary, "operationId": name, "responses": success | _error_references(statuses)}
    return operation | {"security": _SECURITY} if keyed else operation


def _post(summary: str, name: str, request: Json, example: Json, response: Json) -> Json:
    """An operation with the schema and an example of its request, and the schema of its response."""
    request_id = {
        "name": "X-Request-Id",
        "in": "header",
        "description": "Returned in the response and stored in the prediction log.",
        "schema": _text(pattern="^[A-Za-z0-9_.:/+=@-]{1,128}$"),
    }
    content = {"application/json": {"schema": request, "example": example}}
    success = {"description": "The predictions", "content": {"application/json": {"schema": response}}}
    return {
        "summary": summary,
        "operationId": name,
        "security": _SECURITY,
        "parameters": [request_id],
        "requestBody": {"required": True, "content": content},
        "responses": {"200": success} | _error_references(_STATUSES),
    }


def _predict(model: "Model", row: Json, max_rows: int) -> Json:
    rows = {"rows": _array(_reference("Row"), maxItems=max_rows)}
    requests = [
        _object(properties, tuple(properties), additionalProperties=False)
        for properties in (rows, {"row": _reference("Row")})
    ]
    served = {"name": {"const": model.name}, "version": {"type": "integer"}}
    properties: Json = {
        "predictions": _array(_reference("Prediction")),
        "model": _object(served, tuple(served)),
        "request_id": _text(),
    }
    if classes := model.contract.classes:
        probabilities = _array({"type": "number"}, minItems=len(classes), maxItems=len(classes))
        description = f"For each row, in the order of the classes: {', '.join(map(str, classes))}"
        properties["probabilities"] = _array(probabilities, description=description)
    response = _object(properties, sorted(properties))
    return _post("Predictions for rows", "predict", {"oneOf": requests}, {"rows": [row]}, response)


def _invocations(model: "Model", row: Json, max_rows: int) -> Json:
    names = list(model.reader.fields)
    rows = _array(_reference("Row"), maxItems=max_rows)
    split = {
        "columns": _array(_text(), examples=[names]),
        "index": _array(),
        "data": _array(_array(), maxItems=max_rows),
    }
    formats = {
        "dataframe_split": _object(split, ("columns", "data"), additionalProperties=False),
        "dataframe_records": rows,
        "instances": rows,
        "inputs": {"anyOf": [_object(dict.fromkeys(names, _array()), names), rows]},
    }
    request = {"oneOf": [_object({name: schema}, (name,)) for name, schema in formats.items()]}
    example = {"dataframe_split": {"columns": names, "data": [list(row.values())]}}
    response = _object({"predictions": _array(_reference("Prediction"))}, ("predictions",))
    return _post("Predictions, by MLflow's scoring protocol", "invocations", request, example, response)


def _infer(model: "Model", row: Json, max_rows: int) -> Json:
    tensor = {
        "name": _text(),
        "shape": _array({"type": "integer", "minimum": 0, "maximum": max_rows}, minItems=1),
        "datatype": {"enum": list(DATATYPES)},
        "data": _array(),
        "parameters": {"type": "object"},
    }
    tensors = _object(tensor, ("name", "shape", "datatype", "data"))
    request = {
        "id": _text(maxLength=128),
        "parameters": {"type": "object"},
        "inputs": _array(tensors, minItems=1),
        "outputs": _array(_object({"name": {"enum": [LABELS, PROBABILITIES]}}, ("name",))),
    }
    response = {
        "model_name": {"const": model.name},
        "model_version": _text(),
        "id": _text(),
        "outputs": _array(tensors),
    }
    inputs = []
    for column in describe_model(model)["inputs"]:
        value = row[column["name"]]
        data = [str(value) if column["datatype"] == "BYTES" and value is not None else value]
        inputs.append(column | {"shape": [1, 1], "data": data})
    return _post(
        "Predictions, by the Open Inference Protocol v2",
        "infer",
        _object(request, ("inputs",)),
        {"inputs": inputs},
        _object(response, ("model_name", "outputs")),
    )
