"""Two JSON protocols for prediction requests: towline's rows, and MLflow's scoring protocol.

A protocol parses the JSON document of a request into rows, and writes the response.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from towline.errors import Fault
from towline.serving.problems import Problem, wrong_shape

if TYPE_CHECKING:
    from towline.inference.predictor import Model
    from towline.inference.scorer import RowPredictions

Rows = Sequence[Mapping[str, Any]]
FORMATS = ("dataframe_split", "dataframe_records", "instances", "inputs")


class PredictionRequest(NamedTuple):
    """The rows of a request; ``id`` and the requested ``outputs`` occur in the Open Inference Protocol only.

    ``versions`` are those that answered the rows, if two versions did.
    """

    rows: Rows
    id: str | None = None
    outputs: tuple[str, ...] = ()
    versions: tuple[int, ...] = ()


class WireProtocol(NamedTuple):
    """A protocol for prediction requests.

    Attributes:
        name: its name.
        read: takes the document, the model and the most rows allowed; returns the request or raises Problem.
        write: takes the predictions, the model, the request and the request id; returns JSON.
        bare: whether clients may omit the content type.
        nan: whether clients write NaN for null.
    """

    name: str
    read: "Callable[[Any, Model, int], PredictionRequest]"
    write: "Callable[[RowPredictions, Model, PredictionRequest, str], bytes]"
    bare: bool = False
    nan: bool = False


def read_rows(document: Any, model: "Model", max_rows: int) -> PredictionRequest:
    """``{"rows": [{…}, …]}``, or one object as ``{"row": {…}}``."""
    del model
    if document.__class__ is dict and len(document) == 1:
        if "rows" in document:
            return PredictionRequest(check_records(document["rows"], "rows", max_rows))
        if "row" in document:
            return PredictionRequest(check_records([document["row"]], "row", max_rows))
    raise wrong_shape('give one object with one member, "rows" (a list of objects) or "row" (one object)')


def write_rows(answer: "RowPredictions", model: "Model", request: PredictionRequest, request_id: str) -> bytes:
    """``{"predictions": […], "probabilities": […], "model": {…}, "request_id": …}``; ``versions`` if there are two."""
    response: dict[str, Any] = {"predictions": answer.predictions}
    if answer.probabilities is not None:
        response["probabilities"] = answer.probabilities
    response["model"] = {"name": model.name, "version": model.version}
    if request.versions:
        response["versions"] = request.versions
    response["request_id"] = request_id
    return orjson.dumps(response)


def read_invocations(document: Any, model: "Model", max_rows: int) -> PredictionRequest:
    """MLflow's four formats; ``params`` are ignored, as the models have none."""
    formats = [name for name in FORMATS if name in document] if isinstance(document, dict) else []
    if len(formats) != 1:
        raise wrong_shape(f"give one object with exactly one of {', '.join(FORMATS)}")
    name, table = formats[0], document[formats[0]]
    if name == "dataframe_split":
        return PredictionRequest(_split(table, model, max_rows))
    if name == "dataframe_records":
        return PredictionRequest(check_records(table, name, max_rows))
    if isinstance(table, dict):
        return PredictionRequest(_columns(table, name, max_rows))
    if isinstance(table, list) and table and not isinstance(table[0], dict):
        return PredictionRequest(_positional(table, model.reader.fields, name, max_rows))
    return PredictionRequest(check_records(table, name, max_rows))


def write_invocations(answer: "RowPredictions", model: "Model", request: PredictionRequest, request_id: str) -> bytes:
    del model, request
    return orjson.dumps({"predictions": answer.predictions, "request_id": request_id})


def check_records(rows: Any, name: str, max_rows: int) -> Rows:
    """Returns the rows if they are a list of at most ``most`` objects.

    Raises:
        Problem: they are not.
    """
    if rows.__class__ is not list:
        raise wrong_shape(f"{name} is not a list of objects")
    check_row_limit(len(rows), max_rows)
    for row in rows:
        if row.__class__ is not dict:
            invalid = [place for place, row in enumerate(rows) if row.__class__ is not dict]
            faults = [Fault(place, "", "is not an object") for place in invalid]
            raise wrong_shape(f"{name} holds an item that is not an object", *faults)
    records: Rows = rows
    return records


def check_row_limit(count: int, max_rows: int) -> None:
    if count > max_rows:
        raise Problem("too-large", f"{count:,} rows: one request may have at most {max_rows:,}")


def _split(table: Any, model: "Model", max_rows: int) -> Rows:
    if not isinstance(table, dict) or "data" not in table or not table.keys() <= {"columns", "data", "index"}:
        raise wrong_shape("dataframe_split is not an object with columns, data and optionally index")
    columns = table.get("columns")
    if columns is None:
        return _positional(table["data"], model.reader.fields, "dataframe_split.data", max_rows)
    if not isinstance(columns, list) or not all(isinstance(column, str) for column in columns):
        raise wrong_shape("dataframe_split.columns is not a list of names")
    if len(set(columns)) < len(columns):
        raise wrong_shape("dataframe_split.columns names a column twice")
    return _positional(table["data"], columns, "dataframe_split.data", max_rows)


def _positional(table: Any, columns: Sequence[str], name: str, max_rows: int) -> Rows:
    """Rows as lists of values in the order of the columns; with one column, a row may be a single value."""
    if not isinstance(table, list):
        raise wrong_shape(f"{name} is not a list of rows")
    check_row_limit(len(table), max_rows)
    width = len(columns)
    rows = [row if isinstance(row, list) else [row] for row in table]
    faults = [
        Fault(place, "", f"the row holds {len(row)} values, not {width}")
        for place, row in enumerate(rows)
        if len(row) != width
    ]
    if faults:
        raise wrong_shape(f"{name} holds rows without exactly one value for each of the {width} columns", *faults)
    return [dict(zip(columns, row, strict=True)) for row in rows]


def _columns(table: Mapping[str, Any], name: str, max_rows: int) -> Rows:
    """Columns by name: each is a list, or all are single values of one row."""
    if not any(isinstance(values, list) for values in table.values()):
        return [table]
    ragged = [column for column, values in table.items() if not isinstance(values, list)]
    lengths = {len(values) for values in table.values() if isinstance(values, list)}
    if ragged or len(lengths) > 1:
        raise wrong_shape(f"the columns of {name} are not lists of one length")
    check_row_limit(lengths.pop(), max_rows)
    lists = [[_unwrapped(value) for value in values] for values in table.values()]
    return [dict(zip(table, row, strict=True)) for row in zip(*lists, strict=True)]


def _unwrapped(value: Any) -> Any:
    """The value of a list of one: a column of shape (n, 1) is read as shape (n,)."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value


ROWS = WireProtocol("rows", read_rows, write_rows)
INVOCATIONS = WireProtocol("invocations", read_invocations, write_invocations, nan=True)
