"""A table scored whole through the predictor that serves programs and requests."""

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
    """What was written: rows, the columns added, and which model they come from."""

    rows: int
    output: str
    columns: tuple[str, ...]
    model: str
    version: int

    def _repr_html_(self) -> str:
        return render_fields({**self.model_dump(), "columns": ", ".join(self.columns)})


def score_file(
    model: Model, source: Path, output: Path, separator: str = ",", *, prefix: str = "", safe_csv: bool = False
) -> BatchResult:
    """Writes the rows of a file with ``prediction``, ``probability_<class>``, ``model`` and ``version`` added.

    The columns of the file are written as they were read: the text of a CSV is not changed.

    Args:
        model: what answers.
        source: CSV, CSV.gz or Parquet.
        output: CSV, CSV.gz or Parquet, by its name; replaced whole, or not at all; never the source itself.
        separator: of a CSV, in and out.
        prefix: of the names of the added columns.
        safe_csv: put ' before text in a CSV that a spreadsheet would run as a formula.

    Raises:
        ConfigError: an output format that is not known, or an output that is the source.
        DataError: the file cannot be read, does not fit the model's contract, or has a column of an added name.
        TransientError: the output cannot be written.
    """
    if not output.name.endswith(FORMATS):
        raise ConfigError("unknown output format", where=str(output), remedy=f"end the name in {', '.join(FORMATS)}")
    if not source.is_file():
        raise DataError("no such file", where=str(source), remedy="give a CSV, CSV.gz or Parquet file")
    if output.exists() and output.samefile(source):
        raise ConfigError("the output would replace the input", where=str(output), remedy="give OUT another name")
    table = formats.read_file(source, separator)
    names = _added_columns(model, prefix)
    if taken := [name for name in names if name in table.column_names]:
        raise DataError(
            f"the input has a column {taken[0]!r}, the name of a column that is added",
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
                # integers and flags with nulls stay what they are
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
    """The table with ' before each text, name or cell, that begins like a formula and is no number."""
    for index, (name, column) in enumerate(zip(table.column_names, table.columns, strict=True)):
        if text_columns.is_text(column.type):
            formula = pc.match_substring_regex(column, _FORMULA)
            formula = pc.and_not(formula, pc.match_substring_regex(column, _NUMBER))
            quoted = pc.binary_join_element_wise(pa.scalar("'", column.type), column, pa.scalar("", column.type))
            column = pc.if_else(formula, quoted, column)  # noqa: PLW2901 - the same column
        table = table.set_column(index, "'" + name if name[:1] in ("=", "+", "-", "@", "\t", "\r") else name, column)
    return table
