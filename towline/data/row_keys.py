"""Keys of rows: 64-bit numbers by which equal values are found without holding the values.

The key of a number or a time is a permutation of its bits, so that equal keys mean equal values. The key of a text, and
of several columns, is a hash: rows with equal keys are compared by a digest of 128 bits.
"""

import hashlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from towline.data.schema import text_columns

MAX_KEYS = 2**26  # keys in memory, 512 MB: more rows are read in several passes
_NULL_KEY = np.uint64(0x9E3779B97F4A7C15)
_BASE = 0xD1342543DE82EF95  # odd, so that it has an inverse modulo 2^64
_MAX_BYTES = 4_000_000  # of text that is hashed in one call
_BYTE_KEYS = np.random.default_rng(7).integers(0, 2**64, 256, dtype=np.uint64)
_POWERS: dict[str, np.ndarray] = {}


def mix_bits(bits: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea & Flood, OOPSLA 2014), a permutation of 64-bit numbers."""
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = bits ^ (bits >> np.uint64(31))
    return mixed


def column_keys(column: pa.Array) -> np.ndarray:
    """(n,) uint64 keys of the values of a column; all nulls have one key."""
    if pa.types.is_dictionary(column.type):
        keys = np.append(column_keys(column.dictionary), _NULL_KEY)
        selected: np.ndarray = keys[column.indices.fill_null(len(keys) - 1).to_numpy(zero_copy_only=False)]
        return selected
    if text_columns.is_text(column.type):
        keys = _text_keys(column.cast(pa.large_string()))
    elif pa.types.is_boolean(column.type):
        keys = column.cast(pa.int8()).fill_null(0).to_numpy().astype(np.uint64)
    else:
        plain = column.cast(pa.int64()) if pa.types.is_timestamp(column.type) else column
        plain = plain.fill_null(0) if plain.null_count else plain
        keys = mix_bits(plain.to_numpy(zero_copy_only=False).view(np.uint64))
    if column.null_count:
        keys[column.is_null().to_numpy(zero_copy_only=False)] = _NULL_KEY
    return keys


def row_keys(columns: Sequence[pa.Array], names: Sequence[str]) -> np.ndarray:
    """(n,) uint64 keys of the rows of several columns; ``names`` tell equal values of different columns apart."""
    total = np.zeros(len(columns[0]), dtype=np.uint64)
    for column, name in zip(columns, names, strict=True):
        salt = np.frombuffer(hashlib.sha256(name.encode()).digest()[:8], np.uint64)[0]
        total += mix_bits(column_keys(column) ^ salt)
    return mix_bits(total)


def _text_keys(column: pa.Array) -> np.ndarray:
    """Polynomial hashes of texts, computed for all bytes of the column together."""
    _, offset_buffer, data = column.buffers()
    offsets = np.frombuffer(offset_buffer, np.int64)[column.offset : column.offset + len(column) + 1]
    if not len(column) or data is None or offsets[0] == offsets[-1]:
        return np.full(len(column), mix_bits(np.zeros(1, np.uint64))[0])
    if offsets[-1] - offsets[0] > _MAX_BYTES and len(column) > 1:
        half = len(column) // 2
        return np.concatenate([_text_keys(column.slice(0, half)), _text_keys(column.slice(half))])
    letters = np.frombuffer(data, np.uint8)[offsets[0] : offsets[-1]]
    starts, ends = offsets[:-1] - offsets[0], offsets[1:] - offsets[0]
    powers, inverses = _powers(len(letters))
    sums = np.zeros(len(letters) + 1, dtype=np.uint64)
    np.cumsum(_BYTE_KEYS[letters] * powers[: len(letters)], out=sums[1:])
    return mix_bits((sums[ends] - sums[starts]) * inverses[starts] + (ends - starts).astype(np.uint64))


def _powers(count: int) -> tuple[np.ndarray, np.ndarray]:
    """The powers 0…count of the base and of its inverse, modulo 2^64."""
    if len(_POWERS.get("base", ())) <= count:
        size = max(2 * count, 2**16) + 1
        for name, factor in (("base", _BASE), ("inverse", pow(_BASE, -1, 2**64))):
            factors = np.full(size, factor, dtype=np.uint64)
            factors[0] = 1
            _POWERS[name] = np.cumprod(factors, dtype=np.uint64)
    return _POWERS["base"], _POWERS["inverse"]


class KeyCounts(NamedTuple):
    """Counts of the keys of rows.

    Attributes:
        rows: number of rows.
        distinct: number of different keys.
        repeated: number of rows whose key another row has too.
        repeated_keys: (k,) these keys, sorted.
    """

    rows: int
    distinct: int
    repeated: int
    repeated_keys: np.ndarray


class KeyCollector:
    """Collects the keys of one part of all keys; with several parts, each pass over the rows collects one.

    Args:
        part: the number of the part.
        parts: how many parts there are.
    """

    def __init__(self, part: int = 0, parts: int = 1) -> None:
        self._part, self._parts = part, parts
        self._keys = list[np.ndarray]()

    def add(self, keys: np.ndarray) -> None:
        """Adds the keys of rows."""
        self._keys.append(keys if self._parts == 1 else keys[keys % np.uint64(self._parts) == self._part])

    def count(self) -> KeyCounts:
        """The counts of all keys that were added."""
        keys = np.concatenate(self._keys) if self._keys else np.zeros(0, np.uint64)
        self._keys.clear()
        keys.sort()
        starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]])) if len(keys) else np.zeros(0, np.int64)
        sizes = np.diff(np.append(starts, len(keys)))
        repeated = sizes > 1
        return KeyCounts(len(keys), len(starts), int(sizes[repeated].sum()), keys[starts[repeated]])


def merge_counts(parts: Iterable[KeyCounts]) -> KeyCounts:
    """The counts of all parts together."""
    parts = list(parts)
    keys = np.sort(np.concatenate([part.repeated_keys for part in parts]))
    return KeyCounts(
        sum(part.rows for part in parts),
        sum(part.distinct for part in parts),
        sum(part.repeated for part in parts),
        keys,
    )
