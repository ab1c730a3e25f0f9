"""Rows as a reader gives them: batches of a shard with the columns that the model and the output need."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from towline.batch.input.records import Records

BATCH_ROWS, BATCH_CELLS = 50_000, 2_000_000


class RejectedRow(NamedTuple):
    """A row that is not scored.

    Attributes:
        number: of the row in its shard, from 0.
        field: the column with the fault; empty if it is the whole row.
        reason: why.
        record: the row's text; JSON if the input is not text.
    """

    number: int
    field: str
    reason: str
    record: str


@dataclass(frozen=True)
class RowBatch:
    """Rows that were read together.

    Attributes:
        numbers: (n,) the numbers of the rows in their shard, from 0.
        inputs: the model's input columns by name.
        copied: the columns of the input that are copied to the output; None if the text of the rows is copied.
        records: the text of the rows of a CSV or of JSON lines, at ``places``; None for Parquet.
        places: (n,) the rows' positions in ``records``.
        rejected: rows that cannot be read.
        objects: the rows of JSON lines, in place of ``inputs``.
        left_out: columns of JSON lines that the first rows do not have, so that they are not copied.
    """

    numbers: np.ndarray
    inputs: Mapping[str, pa.Array]
    copied: pa.RecordBatch | None
    records: Records | None = None
    places: np.ndarray | None = None
    rejected: tuple[RejectedRow, ...] = ()
    objects: Sequence[Mapping[str, Any]] | None = None
    left_out: frozenset[str] = frozenset()

    def __len__(self) -> int:
        return len(self.numbers)


def batch_rows(columns: int) -> int:
    """The number of rows that are read together: 50,000, fewer for wide tables."""
    return max(500, min(BATCH_ROWS, BATCH_CELLS // max(1, columns)))


def select_rows(batch: RowBatch, chosen: np.ndarray) -> list[dict[str, Any]]:
    """Rows of a batch as a request would have them.

    Args:
        batch: the rows.
        chosen: (n,) bool.
    """
    places = np.flatnonzero(chosen)
    if batch.objects is not None:
        return [dict(batch.objects[place]) for place in places.tolist()]
    columns = dict(batch.inputs)
    if batch.copied is not None:
        columns = dict(zip(batch.copied.schema.names, batch.copied.columns, strict=True)) | columns
    values = [column.take(pa.array(places)).to_pylist() for column in columns.values()]
    return [dict(zip(columns, row, strict=True)) for row in zip(*values, strict=True)]
