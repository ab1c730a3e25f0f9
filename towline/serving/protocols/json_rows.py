"""What requests say and how they are answered: our own rows, and MLflow's scoring protocol."""

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
    """The rows of a request, and how it wants its answer (Open Inference Protocol only)."""

    rows: Rows
    id: str | None = None
    outputs: tuple[str, ...] = ()


class WireProtocol(NamedTuple):
    """One way to ask.

    ``read`` takes the document, the model's feature names and the most rows allowed, and raises Problem. ``write``
    takes the answer, the model, what was asked and the request id, and gives JSON. ``bare``: its clients do not say
    that they send JSON. ``nan``: they write NaN for null.
    """

    name: str
    read: "Callable[[Any, Model, int], PredictionRequest]"
    write: "Callable[[RowPredictions, Model, PredictionRequest, str], bytes]"
    bare: bool = False
    nan: bool = False


def read_rows(document: Any, model: "Model", most: int) -> PredictionRequest:
    """``{"rows": [{…}, …]}``, or one object as ``{"row": {…}}``."""
    del model
    if document.__class__ is dict and len(document) == 1:
        if "rows" in document:
            return PredictionRequest(check_records(document["rows"], "rows", most))
        if "row" in document:
            return PredictionRequest(check_records([document["row"]], "row", most))
    raise wrong_shape('give one object with one member, "rows" (a list of objects) or "row" (one object)')


def write_rows(answer: "RowPredictions", model: "Model", asked: PredictionRequest, request_id: str) -> bytes:
    del asked
    told: dict[str, Any] = {"predictions": answer.predictions}
    if answer.probabilities is not None:
        told["probabilities"] = answer.probabilities
    told["model"] = {"name": model.name, "version": model.version}
    told["request_id"] = request_id
    return orjson.dumps(told)


def read_invocations(document: Any, model: "Model", most: int) -> PredictionRequest:
    """MLflow's four formats; ``params`` are of no use to these models and left out."""
    given = [name for name in FORMATS if name in document] if isinstance(document, dict) else []
    if len(given) != 1:
        raise wrong_shape(f"give one object with exactly one of {', '.join(FORMATS)}")
    name, table = given[0], document[given[0]]
    if name == "dataframe_split":
        return PredictionRequest(_split(table, model, most))
    if name == "dataframe_records":
        return PredictionRequest(check_records(table, name, most))
    if isinstance(table, dict):
        return PredictionRequest(_columns(table, name, most))
    if isinstance(table, list) and table and not isinstance(table[0], dict):
        return PredictionRequest(_positional(table, model.reader.fields, name, most))
    return PredictionRequest(check_records(table, name, most))


def write_invocations(answer: "RowPredictions", model: "Model", asked: PredictionRequest, request_id: str) -> bytes:
    del model, asked
    return orjson.dumps({"predictions": answer.predictions, "request_id": request_id})


def check_records(rows: Any, name: str, most: int) -> Rows:
    """A list of objects, no longer than allowed.

    Raises:
        Problem: it is none.
    """
    if rows.__class__ is not list:
        raise wrong_shape(f"{name} is not a list of objects")
    check_row_limit(len(rows), most)
    for row in rows:
        if row.__class__ is not dict:
            odd = [place for place, row in enumerate(rows) if row.__class__ is not dict]
            raise wrong_shape(
                f"{name} holds what is not an object", *(Fault(place, "", "is not an object") for place in odd)
            )
    found: Rows = rows
    return found


def check_row_limit(count: int, most: int) -> None:
    if count > most:
        raise Problem("too-large", f"{count:,} rows: at most {most:,} are taken in one request")


def _split(table: Any, model: "Model", most: int) -> Rows:
    if not isinstance(table, dict) or "data" not in table or not table.keys() <= {"columns", "data", "index"}:
        raise wrong_shape("dataframe_split is not an object with columns, data and perhaps index")
    columns = table.get("columns")
    if columns is None:
        return _positional(table["data"], model.reader.fields, "dataframe_split.data", most)
    if not isinstance(columns, list) or not all(isinstance(column, str) for column in columns):
        raise wrong_shape("dataframe_split.columns is not a list of names")
    if len(set(columns)) < len(columns):
        raise wrong_shape("dataframe_split.columns names a column twice")
    return _positional(table["data"], columns, "dataframe_split.data", most)


def _positional(table: Any, columns: Sequence[str], name: str, most: int) -> Rows:
    """Lists of values, one a row, in the order of the columns; a bare value where there is one column."""
    if not isinstance(table, list):
        raise wrong_shape(f"{name} is not a list of rows")
    check_row_limit(len(table), most)
    width = len(columns)
    rows = [row if isinstance(row, list) else [row] for row in table]
    faults = [
        Fault(place, "", f"the row holds {len(row)} values, not {width}")
        for place, row in enumerate(rows)
        if len(row) != width
    ]
    if faults:
        raise wrong_shape(f"{name} holds rows that do not give each of the {width} columns one value", *faults)
    return [dict(zip(columns, row, strict=True)) for row in rows]


def _columns(table: Mapping[str, Any], name: str, most: int) -> Rows:
    """Columns by name, each a list, or a bare value in all of them."""
    if not any(isinstance(values, list) for values in table.values()):
        return [table]
    ragged = [column for column, values in table.items() if not isinstance(values, list)]
    lengths = {len(values) for values in table.values() if isinstance(values, list)}
    if ragged or len(lengths) > 1:
        raise wrong_shape(f"the columns of {name} are not lists of one length")
    check_row_limit(lengths.pop(), most)
    lists = [[_unwrapped(value) for value in values] for values in table.values()]
    return [dict(zip(table, row, strict=True)) for row in zip(*lists, strict=True)]


def _unwrapped(value: Any) -> Any:
    """A column of shape (n, 1) is one of n."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value


ROWS = WireProtocol("rows", read_rows, write_rows)
INVOCATIONS = WireProtocol("invocations", read_invocations, write_invocations, nan=True)
