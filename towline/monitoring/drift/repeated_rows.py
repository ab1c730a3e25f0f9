"""Rows that came before: a day that is sent twice shows in a sample, whatever lies between."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from towline.data.schema.contract import Column
from towline.monitoring.drift.histograms import buffer_to_numpy

KEPT = 2_048  # rows of the sample
_ODD = np.uint64(0x9E3779B97F4A7C15)
_SHIFT = np.uint64(31)


class RepeatedRows:
    """Counts equal rows among those whose one column hashes to a small number: of equal rows all or none are looked at.

    Args:
        columns: the features; that with the most values is the one, and where no number has many, nothing is counted.
    """

    def __init__(self, columns: Sequence[Column]) -> None:
        numbers = [column for column in columns if column.kind == "numeric" and column.levels >= 50]
        self._key = max(numbers, key=lambda column: column.levels).name if numbers else None
        self._names = [column.name for column in columns]
        self._most = np.uint64(2**64 - 1)
        self._seen: dict[int, np.uint64] = {}
        self._copies: dict[int, int] = {}

    @property
    def share(self) -> float:
        """Rows that are equal to an earlier one, as a share of the sample."""
        copies = sum(self._copies.values())
        return copies / (copies + len(self._seen)) if self._seen else 0.0

    def add(self, rows: pa.Table | pa.RecordBatch) -> None:
        names = rows.schema.names
        if self._key is None or len(set(names)) < len(names) or self._key not in names or not rows.num_rows:
            return
        for batch in rows.to_batches() if isinstance(rows, pa.Table) else [rows]:
            keys = _numbers(batch.column(self._key))
            if keys is None:
                return
            np.multiply(keys ^ (keys >> _SHIFT), _ODD, out=keys)
            places = np.flatnonzero(keys <= self._most)
            while len(places) > 2 * KEPT:
                self._halve()
                places = places[keys[places] <= self._most]
            if len(places):
                self._take(batch.take(_indices(places)), keys[places])
            while len(self._seen) > KEPT:
                self._halve()

    def _take(self, rows: pa.RecordBatch, keys: np.ndarray) -> None:
        hashes = keys.copy()
        for name in self._names:
            if name in rows.schema.names:
                np.multiply(hashes ^ (hashes >> _SHIFT), _ODD, out=hashes)
                hashes ^= _hashed(rows.column(name))
        for row, key in zip(hashes.tolist(), keys, strict=True):
            if row in self._seen:
                self._copies[row] = self._copies.get(row, 0) + 1
            else:
                self._seen[row] = key

    def _halve(self) -> None:
        if self._most < KEPT:  # one value makes up the column
            self._key = None
            self._seen, self._copies = {}, {}
        self._most = np.uint64(self._most >> np.uint64(1))
        self._seen = {row: key for row, key in self._seen.items() if key <= self._most}
        self._copies = {row: count for row, count in self._copies.items() if row in self._seen}


def _indices(places: np.ndarray) -> pa.Array:
    """As ``pa.array``, which would import pandas to ask whether it is one of its own."""
    return pa.Array.from_buffers(pa.int64(), len(places), [None, pa.py_buffer(places.astype(np.int64))])


def _numbers(values: pa.Array) -> np.ndarray | None:
    if pa.types.is_timestamp(values.type):
        values = values.cast(pa.int64())
    kind = values.type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        return None
    floats = values.cast(pa.float64(), safe=False)
    found: np.ndarray = buffer_to_numpy(floats).view(np.uint64).copy()
    found[_missing(floats)] = 0
    return found


def _missing(values: pa.Array) -> np.ndarray:
    """(n,) where there is none: what stands there is left to chance."""
    if not values.null_count:
        return np.zeros(len(values), dtype=bool)
    present = np.unpackbits(np.frombuffer(values.buffers()[0], np.uint8), bitorder="little")
    absent: np.ndarray = present[values.offset : values.offset + len(values)] == 0
    return absent


def _hashed(values: pa.Array) -> np.ndarray:
    """Something for each value, the same for equal ones; nothing is told of what cannot be read."""
    numbers = _numbers(values)
    if numbers is not None:
        return numbers
    try:
        encoded = values if pa.types.is_dictionary(values.type) else values.dictionary_encode()
        named = [hash(value) & (2**64 - 1) for value in encoded.dictionary.to_pylist()]
        places = np.where(_missing(encoded.indices), len(named), buffer_to_numpy(encoded.indices))
        return np.array([*named, 0], dtype=np.uint64)[places]
    except (pa.ArrowException, TypeError, ValueError):  # lists; text that is not UTF-8
        return np.zeros(len(values), dtype=np.uint64)
