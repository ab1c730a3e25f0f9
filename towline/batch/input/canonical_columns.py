"""Conversion of Arrow tables to canonical columns, with the values that ``Contract.features`` gives.

Bad values do not end the conversion: the rows that hold them are listed, so that the other rows can be scored.
Categories stay coded, so that each distinct text is read once.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from towline.data.coded_column import CanonicalColumn, CodedColumn, column_values
from towline.data.schema import text_columns
from towline.data.schema.contract import Column, Contract
from towline.data.schema.values import LARGEST, TEXT_KINDS


class CanonicalColumns(NamedTuple):
    """The canonical columns of a table.

    Attributes:
        inputs: the converted input columns, before pseudonyms replace personal data.
        bad: (n,) bool, True for rows with a value that does not fit its column; their other values are unspecified.
    """

    inputs: list[CanonicalColumn]
    bad: np.ndarray


def convert_inputs(contract: Contract, columns: Mapping[str, pa.Array], rows: int) -> CanonicalColumns:
    """Converts the input columns of a contract.

    Args:
        contract: of the model.
        columns: each input column by name; null is null. Text is read by the column's format.
        rows: number of rows.
    """
    inputs, bad = [], np.zeros(rows, dtype=bool)
    for column in contract.input_columns:
        values, misfits = _convert(columns[column.name], column)
        bad[misfits] = True
        if column.kind == "numeric" and isinstance(values, np.ndarray) and len(values):
            with np.errstate(invalid="ignore"):
                if not np.abs(values).max() <= LARGEST:  # also if there are nulls
                    bad |= np.abs(values) > LARGEST
        inputs.append(values)
    return CanonicalColumns(inputs, bad)


def complete_columns(contract: Contract, inputs: Sequence[CanonicalColumn], rows: int) -> list[CanonicalColumn]:
    """The canonical columns in their order: converted inputs and derived features, with pseudonyms of personal data."""
    from towline.data.schema.pseudonyms import pseudonymize_column

    columns = list(inputs)
    if contract.derived_features:
        columns += contract.derive([column_values(column) for column in inputs], rows).values()
    for place, column in enumerate(contract.canonical_columns):
        if column.pii:
            values = columns[place]
            levels = values.levels if isinstance(values, CodedColumn) else values
            hidden = pseudonymize_column(levels, column.name, column.kind, contract.salt)
            columns[place] = CodedColumn(values.codes, hidden) if isinstance(values, CodedColumn) else hidden
    return columns


def _convert(values: pa.Array, column: Column) -> tuple[CanonicalColumn, np.ndarray]:
    """The canonical values of one column, and the positions of values that do not fit it."""
    kind, fmt, type_ = column.kind, column.format, values.type
    none = np.empty(0, dtype=np.int64)
    if pa.types.is_dictionary(type_) and kind not in TEXT_KINDS:
        values, type_ = values.cast(type_.value_type), type_.value_type
    if kind in TEXT_KINDS and (pa.types.is_dictionary(type_) or text_columns.is_text(type_)):
        return _convert_levels(values, column)
    if text_columns.is_text(type_):
        read, unread = text_columns.PARSERS[kind](pa.chunked_array([values]), fmt)
        return read, none if fmt.coerce else np.flatnonzero(unread)
    if kind == "numeric" and not fmt.na_values and (pa.types.is_floating(type_) or pa.types.is_integer(type_)):
        floats = values.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
        return (np.where(np.isinf(floats), np.nan, floats) if np.isinf(floats).any() else floats), none
    from towline.data.schema.columns import convert_column, to_frame

    return convert_column(to_frame(pa.table({"values": values}))["values"], kind, fmt)


def _convert_levels(values: pa.Array, column: Column) -> tuple[CodedColumn, np.ndarray]:
    """Text of a category or text column: each distinct text is read once."""
    encoded = values if pa.types.is_dictionary(values.type) else values.dictionary_encode()
    distinct, reader = encoded.dictionary.to_pylist(), column.reader
    levels = np.empty(len(distinct) + 1, dtype=object)
    read = [reader.read(text) for text in distinct]
    levels[:] = [np.nan if value is None else value for value in read] + [np.nan]
    codes = encoded.indices
    if codes.null_count:
        codes = pc.fill_null(codes.cast(pa.int64()), len(distinct))
    positions = codes.to_numpy(zero_copy_only=False)
    misfits = [] if column.format.coerce else [place for place, text in enumerate(distinct) if reader.misfits(text)]
    return CodedColumn(positions, levels), np.flatnonzero(np.isin(positions, misfits)) if misfits else np.empty(0, int)
