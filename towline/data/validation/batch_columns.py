"""One batch of rows as rules see it: what several rules need of a column is computed once."""

from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from towline.data.row_keys import column_keys
from towline.data.schema.text_columns import is_text


class BatchColumn:
    """One column of a batch of n rows, m of them not null.

    Attributes:
        array: the column.
        present_rows: (m,) positions of the values that are not null; None: all.
    """

    def __init__(self, array: pa.Array) -> None:
        self.array = array
        self.nulls: int = array.null_count

    @cached_property
    def present_rows(self) -> np.ndarray | None:
        if not self.nulls:
            return None
        rows: np.ndarray = np.flatnonzero(self.array.is_valid().to_numpy(zero_copy_only=False))
        return rows

    @cached_property
    def present(self) -> pa.Array:
        """The values that are not null."""
        return self.array.drop_null() if self.nulls else self.array

    @cached_property
    def values(self) -> np.ndarray:
        """(m,) numbers, booleans or times."""
        values: np.ndarray = self.present.to_numpy(zero_copy_only=False)
        return values

    @cached_property
    def bounds(self) -> np.ndarray:
        """The least and the greatest value; empty if all are null."""
        if not len(self.present):
            return self.values[:0]
        if self.values.dtype.kind == "b":
            return np.array([self.values.min(), self.values.max()])
        ends = pc.min_max(self.present)
        return np.array([ends["min"].as_py(), ends["max"].as_py()], dtype=self.values.dtype)

    @cached_property
    def _encoded(self) -> pa.DictionaryArray:
        encoded = self.present
        return encoded if pa.types.is_dictionary(encoded.type) else encoded.dictionary_encode()

    @cached_property
    def distinct(self) -> pd.Series:
        """The distinct values, and perhaps some that are in other batches only."""
        dictionary = self._encoded.dictionary
        return pd.Series(dictionary.to_pandas(), dtype="str" if is_text(dictionary.type) else None)

    @cached_property
    def codes(self) -> np.ndarray:
        """(m,) positions in ``distinct``."""
        codes: np.ndarray = self._encoded.indices.to_numpy(zero_copy_only=False)
        return codes

    @cached_property
    def keys(self) -> np.ndarray:
        """(m,) keys of the values."""
        return column_keys(self.present)

    @cached_property
    def distinct_keys(self) -> np.ndarray:
        """The keys of the values; of a dictionary, each once."""
        if pa.types.is_dictionary(self.present.type):
            keys: np.ndarray = column_keys(self._encoded.dictionary)[np.unique(self.codes)]
            return keys
        return self.keys

    def rows_with(self, is_bad: Callable[[pd.Series], Any]) -> np.ndarray:
        """Positions (in the batch) of the values that are bad; ``is_bad`` is called with the distinct values."""
        bad = np.asarray(is_bad(self.distinct), dtype=bool)
        if not bad.any():
            return np.zeros(0, dtype=np.int64)
        return self.rows_of(bad[self.codes])

    def rows_of(self, mask: np.ndarray) -> np.ndarray:
        """Positions (in the batch) of the values of a mask (m,)."""
        selected: np.ndarray = np.flatnonzero(mask)
        return selected if self.present_rows is None else self.present_rows[selected]


class Batch:
    """A batch of rows; ``start`` is the position of its first row in the table."""

    def __init__(self, batch: pa.RecordBatch, start: int) -> None:
        self.batch, self.start, self._columns = batch, start, dict[str, BatchColumn]()

    def __len__(self) -> int:
        return int(self.batch.num_rows)

    def __getitem__(self, name: str) -> BatchColumn:
        if name not in self._columns:
            self._columns[name] = BatchColumn(self.batch.column(name))
        return self._columns[name]
