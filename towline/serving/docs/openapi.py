"""The OpenAPI 3.1 document of a service: its paths, and the schema of a row."""

from typing import TYPE_CHECKING, Any

from towline.data.schema.contract import Column, Contract
from towline.data.schema.example import example_row
from towline.serving.problems import PROBLEM_TYPES
from towline.serving.protocols.open_inference import DATATYPES, LABELS, PROBABILITIES, describe_model

if TYPE_CHECKING:
    from towline.inference.predictor import Model

SHOWN = 20  # categories listed
_TYPES = {"numeric": ["number"], "boolean": ["boolean"], "category": ["string", "number", "boolean"]}
_STATUSES = (400, 401, 403, 405, 413, 415, 422, 429, 503)
_KEYED: list[dict[str, list[str]]] = [{"bearer": []}, {"header": []}]

Json = dict[str, Any]


def describe_fields(contract: Contract) -> list[Json]:
    """The fields of a row: each feature with its kind, and its range or levels in training."""
    return [
        {
            "name": column.name,
            "kind": column.kind,
            "nulls_in_training": column.nullable,
            "min": column.min,
            "max": column.max,
            "categories": None if column.categories is None else list(column.categories),
            "levels": column.levels,
        }
        for column in contract.feature_columns
    ]


def openapi_document(model: "Model", most: int) -> Json:
    """Builds the document.

    Args:
        model: the model that is served.
        most: most rows of a request.
    """
    contract = model.contract
    row = example_row(contract)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": model.name,
            "version": str(model.version),
            "summary": f"Predicts {contract.target} ({contract.task})",
        },
        "paths": {
            "/predict": {"post": _predict(model, row, most)},
            "/metadata": {"get": _get("Metadata of the model: data, metrics, versions of libraries", "describe")},
            "/metrics": {"get": _get("Metrics for Prometheus; needs the scope admin", "metrics", "text/plain")},
            "/livez": {"get": _get("Whether the process runs", "live", keyed=False)},
            "/readyz": {"get": _get("Whether load balancers should send requests", "ready", keyed=False)},
            "/invocations": {"post": _invocations(model, row, most)},
            "/ping": {"get": _get("MLflow's readiness", "ping", keyed=False)},
            "/version": {"get": _get("The version of towline", "version", "text/plain", keyed=False)},
            "/v2": {"get": _get("The server, by the Open Inference Protocol", "server")},
            "/v2/health/live": {"get": _get("As /livez", "v2_live", keyed=False)},
            "/v2/health/ready": {"get": _get("As /readyz", "v2_ready", keyed=False)},
            f"/v2/models/{model.name}": {"get": _get("The model's tensors", "v2_model")},
            f"/v2/models/{model.name}/ready": {"get": _get("Whether the model answers", "v2_model_ready", keyed=False)},
            f"/v2/models/{model.name}/infer": {"post": _infer(model, row, most)},
        },
        "components": {
            "schemas": {"Row": _row(contract, row), "Prediction": _label(contract), "Problem": _problem()},
            "responses": {str(status): _refusal(status) for status in _STATUSES},
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            },
        },
    }


def _column(column: Column) -> Json:
    """The schema of one field. Its range and categories are only described: other values are valid, and counted."""
    notes = []
    if column.min is not None and column.max is not None:
        notes.append(f"in training from {column.min:g} to {column.max:g}")
    if column.categories:
        more = f" and {len(column.categories) - SHOWN} more" if len(column.categories) > SHOWN else ""
        notes.append(f"in training one of {', '.join(column.categories[:SHOWN])}{more}")
    if not column.nullable:
        notes.append("never null in training")
    schema: Json = {"description": "; ".join([column.kind, *notes])}
    if column.kind == "datetime":
        return schema | {"type": ["string", "null"], "format": "date-time"}
    return schema | {"type": [*_TYPES[column.kind], "null"]}


def _row(contract: Contract, row: Json) -> Json:
    columns = contract.feature_columns
    schema: Json = {
        "type": "object",
        "description": "Every feature, null if its value is unknown. Additional fields are ignored.",
        "properties": {column.name: _column(column) for column in columns},
        "required": [column.name for column in columns],
    }
    return schema | {"examples": [row]}


def _label(contract: Contract) -> Json:
    return {"enum": list(contract.classes)} if contract.classes else {"type": "number"}


def _problem() -> Json:
    return {
        "type": "object",
        "description": "RFC 9457",
        "properties": {
            "type": {"type": "string"},
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "detail": {"type": "string"},
            "code": {"enum": list(PROBLEM_TYPES)},
            "remedy": {"type": "string"},
            "request_id": {"type": "string"},
            "error_count": {"type": "integer"},
            "errors": {
                "type": "array",
                "maxItems": 20,
                "items": {
                    "type": "object",
                    "properties": {
                        "row": {"type": "integer", "minimum": 0},
                        "field": {"type": "string"},
                        "detail": {"type": "string"},
                    },
                    "required": ["row", "field", "detail"],
                },
            },
        },
        "required": ["type", "title", "status", "detail", "code", "request_id"],
    }


def _refusal(status: int) -> Json:
    titles = [kind.title for kind in PROBLEM_TYPES.values() if kind.status == status]
    schema = {"schema": {"$ref": "#/components/schemas/Problem"}}
    return {"description": "; ".join(titles), "content": {"application/problem+json": schema}}


def _get(summary: str, name: str, media: str = "application/json", *, keyed: bool = True) -> Json:
    refusals = (401, 403, 405, 429, 503) if keyed else (405, 503)
    operation: Json = {
        "summary": summary,
        "operationId": name,
        "responses": {"200": {"description": "Success", "content": {media: {}}}} | _refusals(refusals),
    }
    return operation | {"security": _KEYED} if keyed else operation


def _post(summary: str, name: str, request: Json, response: Json) -> Json:
    return {
        "summary": summary,
        "operationId": name,
        "security": _KEYED,
        "parameters": [
            {
                "name": "X-Request-Id",
                "in": "header",
                "description": "Returned in the response and stored in the prediction log.",
                "schema": {"type": "string", "pattern": "^[A-Za-z0-9_.:/+=@-]{1,128}$"},
            }
        ],
        "requestBody": {"required": True, "content": {"application/json": request}},
        "responses": {"200": {"description": "The predictions", "content": {"application/json": response}}}
        | _refusals(_STATUSES),
    }


def _refusals(statuses: tuple[int, ...]) -> Json:
    return {str(status): {"$ref": f"#/components/responses/{status}"} for status in statuses}


def _predict(model: "Model", row: Json, most: int) -> Json:
    a_row = {"$ref": "#/components/schemas/Row"}
    request: Json = {
        "schema": {
            "oneOf": [
                {
                    "type": "object",
                    "properties": {"rows": {"type": "array", "items": a_row, "maxItems": most}},
                    "required": ["rows"],
                    "additionalProperties": False,
                },
                {"type": "object", "properties": {"row": a_row}, "required": ["row"], "additionalProperties": False},
            ]
        }
    }
    properties: Json = {
        "predictions": {"type": "array", "items": {"$ref": "#/components/schemas/Prediction"}},
        "model": {
            "type": "object",
            "properties": {"name": {"const": model.name}, "version": {"type": "integer"}},
            "required": ["name", "version"],
        },
        "request_id": {"type": "string"},
    }
    if model.contract.classes:
        properties["probabilities"] = _probabilities(model.contract)
    response = {"schema": {"type": "object", "properties": properties, "required": sorted(properties)}}
    request["example"] = {"rows": [row]}
    return _post("Predictions for rows", "predict", request, response)


def _probabilities(contract: Contract) -> Json:
    classes = ", ".join(map(str, contract.classes))
    width = len(contract.classes)
    inner = {"type": "array", "items": {"type": "number"}, "minItems": width, "maxItems": width}
    return {"type": "array", "items": inner, "description": f"For each row, in the order of the classes: {classes}"}


def _invocations(model: "Model", row: Json, most: int) -> Json:
    names = list(model.reader.fields)
    rows = {"type": "array", "items": {"$ref": "#/components/schemas/Row"}, "maxItems": most}
    split = {
        "type": "object",
        "properties": {
            "columns": {"type": "array", "items": {"type": "string"}, "examples": [names]},
            "index": {"type": "array"},
            "data": {"type": "array", "items": {"type": "array"}, "maxItems": most},
        },
        "required": ["columns", "data"],
        "additionalProperties": False,
    }
    columns = {"type": "object", "properties": {name: {"type": "array"} for name in names}, "required": names}
    formats = {
        "dataframe_split": split, "dataframe_records": rows, "instances": rows, "inputs": {"anyOf": [columns, rows]},
    }  # fmt: skip
    request: Json = {
        "schema": {
            "oneOf": [
                {"type": "object", "properties": {name: schema}, "required": [name]} for name, schema in formats.items()
            ]
        }
    }
    request["example"] = {"dataframe_split": {"columns": names, "data": [list(row.values())]}}
    predictions = {"type": "array", "items": {"$ref": "#/components/schemas/Prediction"}}
    response = {"schema": {"type": "object", "properties": {"predictions": predictions}, "required": ["predictions"]}}
    return _post("Predictions, by MLflow's scoring protocol", "invocations", request, response)


def _infer(model: "Model", row: Json, most: int) -> Json:
    shape = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": most}, "minItems": 1}
    tensor = {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "shape": shape,
            "datatype": {"enum": list(DATATYPES)},
            "data": {"type": "array"},
            "parameters": {"type": "object"},
        },
        "required": ["name", "shape", "datatype", "data"],
    }
    output = {"type": "object", "properties": {"name": {"enum": [LABELS, PROBABILITIES]}}, "required": ["name"]}
    body = {
        "type": "object",
        "properties": {
            "id": {"type": "string", "maxLength": 128},
            "parameters": {"type": "object"},
            "inputs": {"type": "array", "items": tensor, "minItems": 1},
            "outputs": {"type": "array", "items": output},
        },
        "required": ["inputs"],
    }
    request: Json = {"schema": body}
    inputs = [
        {"name": column["name"], "shape": [1, 1], "datatype": column["datatype"], "data": [_tensor_value(column, row)]}
        for column in describe_model(model)["inputs"]
    ]
    request["example"] = {"inputs": inputs}
    response = {
        "schema": {
            "type": "object",
            "properties": {
                "model_name": {"const": model.name},
                "model_version": {"type": "string"},
                "id": {"type": "string"},
                "outputs": {"type": "array", "items": tensor},
            },
            "required": ["model_name", "outputs"],
        }
    }
    return _post("Predictions, by the Open Inference Protocol v2", "infer", request, response)


def _tensor_value(tensor: Json, row: Json) -> Any:
    value = row[tensor["name"]]
    return str(value) if tensor["datatype"] == "BYTES" and value is not None else value
