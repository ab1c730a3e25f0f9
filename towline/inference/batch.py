"""Batch scoring: predictions for all rows of a file, with the same model code that the service uses."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from towline import files
from towline.config import Frozen
from towline.data import formats
from towline.data.schema import text_columns
from towline.data.schema.columns import to_frame
from towline.errors import ConfigError, DataError
from towline.inference.predictor import Model
from towline.notebook import render_fields

FORMATS = (".csv", ".csv.gz", ".parquet")
_FORMULA = r"^[=+\-@\t\r]"
_NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"


class BatchResult(Frozen):
    """The result of scoring a file: rows, output, added columns, and the model."""

    rows: int
    output: str
    columns: tuple[str, ...]
    model: str
    version: int

    def _repr_html_(self) -> str:
        return render_fields({**self.model_dump(), "columns": ", ".join(self.columns)})


def score_file(
    model: Model, source: Path, output: Path, separator: str | None = None, *, prefix: str = "", safe_csv: bool = False
) -> BatchResult:
    """Writes a file's rows with the added columns ``prediction``, ``probability_<class>``, ``model`` and ``version``.

    The columns of the input are copied unchanged; the text of a CSV is not reformatted.

    Args:
        model: the model.
        source: CSV, CSV.gz or Parquet.
        output: CSV, CSV.gz or Parquet; the suffix decides. An existing file is replaced when the new one is
            complete. It must not be the source.
        separator: column separator of a CSV, for input and output; None: the one that the input seems to have.
        prefix: prefix of the names of the added columns.
        safe_csv: put ' before text in a CSV that a spreadsheet would run as a formula.

    Raises:
        ConfigError: the output format is unknown, or the output is the source.
        DataError: the file cannot be read, violates the model's contract, or already has one of the added columns.
        TransientError: the output cannot be written.
    """
    if not output.name.endswith(FORMATS):
        raise ConfigError("unknown output format", where=str(output), remedy=f"end the name in {', '.join(FORMATS)}")
    if not source.is_file():
        raise DataError("no such file", where=str(source), remedy="give a CSV, CSV.gz or Parquet file")
    if output.exists() and output.samefile(source):
        raise ConfigError("the output would replace the input", where=str(output), remedy="give OUT another name")
    separator = separator or formats.detect_separator(source)
    table = formats.read_file(source, separator)
    names = _added_columns(model, prefix)
    if duplicates := [name for name in names if name in table.column_names]:
        raise DataError(
            f"the input already has a column {duplicates[0]!r}, which scoring would add",
            where=str(source),
            remedy="add --prefix, e.g. --prefix scored_",
        )
    predictions = model.predict_frame(model.to_features(to_frame(table)))
    values: list[Any] = [predictions.labels.tolist()]
    if predictions.probabilities is not None:
        values += list(predictions.probabilities.T)
    values += [[model.name] * len(table), [model.version] * len(table)]
    for name, column in zip(names, values, strict=True):
        table = table.append_column(name, pa.array(column))
    with files.disk(output.parent):
        output.parent.mkdir(parents=True, exist_ok=True)
        with files.replacing(output) as file:
            if output.suffix == ".parquet":
                pq.write_table(table, file)
            else:
                # nullable types: integers and booleans with nulls do not become floats
                frame = (_escape_formulas(table) if safe_csv else table).to_pandas(types_mapper=_NULLABLE.get)
                compression: Any = {"method": "gzip", "mtime": 0} if output.suffix == ".gz" else None
                frame.to_csv(file, index=False, sep=separator, compression=compression)
    return BatchResult(rows=len(table), output=str(output), columns=names, model=model.name, version=model.version)


_NULLABLE: dict[pa.DataType, Any] = {
    pa.int8(): pd.Int8Dtype(), pa.int16(): pd.Int16Dtype(), pa.int32(): pd.Int32Dtype(), pa.int64(): pd.Int64Dtype(),
    pa.uint8(): pd.UInt8Dtype(), pa.uint16(): pd.UInt16Dtype(), pa.uint32(): pd.UInt32Dtype(),
    pa.uint64(): pd.UInt64Dtype(), pa.bool_(): pd.BooleanDtype(),
}  # fmt: skip


def _added_columns(model: Model, prefix: str) -> tuple[str, ...]:
    probabilities: Sequence[str] = [f"probability_{name}" for name in model.contract.classes]
    return tuple(prefix + name for name in ("prediction", *probabilities, "model", "version"))


def _escape_formulas(table: pa.Table) -> pa.Table:
    """The table with ' before each column name or text that begins like a formula and is not a number."""
    for index, (name, column) in enumerate(zip(table.column_names, table.columns, strict=True)):
        if text_columns.is_text(column.type):
            formula = pc.match_substring_regex(column, _FORMULA)
            formula = pc.and_not(formula, pc.match_substring_regex(column, _NUMBER))
            quoted = pc.binary_join_element_wise(pa.scalar("'", column.type), column, pa.scalar("", column.type))
            column = pc.if_else(formula, quoted, column)  # noqa: PLW2901 - the same column
        table = table.set_column(index, "'" + name if name[:1] in ("=", "+", "-", "@", "\t", "\r") else name, column)
    return table
