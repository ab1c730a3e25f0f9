"""A lookup is a second table, frozen into the contract, whose columns are joined to a row by a key of the row.

If the table has a time, a row gets the latest entry at or before its own time. One row and columns are joined through
the same index, so their values are equal. The table is stored as NumPy arrays; reading it executes no code.
"""

import base64
import io
import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
from pydantic import Field

from towline.config import Frozen, Kind
from towline.data.schema.values import TEXT_KINDS


class Lookup(Frozen):
    """A frozen lookup table.

    Attributes:
        key: columns of the row that are compared with the key.
        row_time: the column with the row's time, if the table has a time.
        columns: the names of the joined columns and their kinds.
        digest: SHA-256 of the table as it was read.
        entries: rows of the table.
        rows, unmatched: rows of the training table, and those without an entry, whose joined columns are null.
        content: the table, as ``encode_table`` writes it.
    """

    name: str
    key: tuple[str, ...]
    row_time: str | None
    columns: tuple[tuple[str, Kind], ...]
    digest: str
    entries: int
    rows: int = 0
    unmatched: int = 0
    content: str = Field(repr=False)

    @property
    def inputs(self) -> tuple[str, ...]:
        """The columns of a row that the join reads."""
        return self.key if self.row_time is None or self.row_time in self.key else (*self.key, self.row_time)

    def position(self, column: str) -> int:
        """The position of a joined column in ``columns``."""
        return [name for name, _ in self.columns].index(column)

    @property
    def table(self) -> "LookupTable":
        """The decoded table; decoded once per process for equal content."""
        return _decode_table(self.content, len(self.key), tuple(kind for _, kind in self.columns))


class _Texts(NamedTuple):
    """A column of texts: the position of each value in ``levels``; the last level is None."""

    codes: np.ndarray
    levels: list[str | None]


class LookupTable:
    """The entries of a lookup, with an index of their keys.

    Args:
        keys: for each key column the canonical values (n,), sorted by key and then by time.
        times: (n,) datetime64[us]; None: a key occurs once.
        columns: the joined columns, each with one more value, which is null.
    """

    def __init__(
        self, keys: Sequence[Sequence[Any]], times: np.ndarray | None, columns: Sequence[np.ndarray | _Texts]
    ) -> None:
        self._columns, self._times = tuple(columns), times
        self._null = len(keys[0])
        single = keys[0] if len(keys) == 1 else list(zip(*keys, strict=True))
        self._ids: dict[Any, int] = {}
        starts: list[int] = []
        for place, key in enumerate(single):
            if key not in self._ids:
                self._ids[key] = len(starts)
                starts.append(place)
        if times is not None:
            self._bounds = [*starts, self._null]
            self._moments: list[Any] = times.tolist()
            ordered = np.sort(times)  # np.unique would import numpy.ma
            self._distinct = ordered[np.append(ordered[:-1] != ordered[1:], np.ones(len(ordered[-1:]), bool))]
            ids = np.repeat(np.arange(len(starts)), np.diff(self._bounds))
            self._order = ids * (len(self._distinct) + 1) + np.searchsorted(self._distinct, times, "left")

    def find_entry(self, key: Any, time: Any) -> int:
        """The place of a row's entry; without an entry the place of null.

        Args:
            key: canonical value, or a tuple of them for several key columns.
            time: of the row; unused if the table has no time.
        """
        entry = self._ids.get(key, -1)
        if self._times is None or entry < 0:
            return entry if entry >= 0 else self._null
        if time is None:
            return self._null
        start = self._bounds[entry]
        place = bisect_right(self._moments, time, start, self._bounds[entry + 1]) - 1
        return place if place >= start else self._null

    def find_entries(self, keys: Sequence[np.ndarray], times: np.ndarray | None) -> np.ndarray:
        """(n,) the places of the entries of many rows."""
        lists = [[None if value != value else value for value in column.tolist()] for column in keys]  # noqa: PLR0124
        single = lists[0] if len(lists) == 1 else list(zip(*lists, strict=True))
        ids = np.array([self._ids.get(key, -1) for key in single], dtype=np.int64)
        if self._times is None or times is None:
            return np.where(ids < 0, self._null, ids)
        after = np.searchsorted(self._distinct, times, "right")
        base = ids * (len(self._distinct) + 1)
        places = np.searchsorted(self._order, base + after, "left") - 1
        starts = np.asarray(self._bounds)[ids]
        return np.where((ids < 0) | np.isnat(times) | (places < starts), self._null, places)

    def value_reader(self, column: int) -> Callable[[int], Any]:
        """A function that gives the canonical value of the entry at a place."""
        values = self._columns[column]
        if not isinstance(values, _Texts):
            return values.item
        levels, read_code = values.levels, values.codes.item
        return lambda place: levels[read_code(place)]

    def read_values(self, column: int, places: np.ndarray) -> np.ndarray:
        """(n,) the canonical values of entries; null is NaN or NaT."""
        values = self._columns[column]
        if not isinstance(values, _Texts):
            selected: np.ndarray = values[places]
            return selected
        levels = np.empty(len(values.levels), dtype=object)
        levels[:] = [math.nan if level is None else level for level in values.levels]
        return np.asarray(levels[values.codes[places]], dtype=object)


class Join:
    """Joins columns of one lookup to canonical rows; the entry of a row is searched once for all of them.

    Args:
        lookup: with the table.
        columns: the names of the joined columns, and their positions in a canonical row.
        positions: of the columns of a canonical row.
    """

    def __init__(self, lookup: Lookup, columns: Mapping[str, int], positions: Mapping[str, int]) -> None:
        self._lookup = lookup
        self._columns = [(name, lookup.position(name), place) for name, place in columns.items()]
        self._keys = [positions[name] for name in lookup.key]
        self._time = None if lookup.row_time is None else positions[lookup.row_time]
        self.fill = self._fill_function()

    def _fill_function(self) -> Callable[[list[Any]], None]:
        """A function that writes the joined columns into one canonical row."""
        table, time = self._lookup.table, self._time
        find, read_key = table.find_entry, itemgetter(*self._keys)
        readers = [(place, table.value_reader(column)) for _, column, place in self._columns]

        def fill(row: list[Any]) -> None:
            entry = find(read_key(row), None if time is None else row[time])
            for place, read in readers:
                row[place] = read(entry)

        return fill

    def join_columns(self, arrays: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        """The joined columns (n,) by their names, of canonical columns."""
        table = self._lookup.table
        entries = table.find_entries(
            [arrays[key] for key in self._keys], None if self._time is None else arrays[self._time]
        )
        return {name: table.read_values(column, entries) for name, column, _ in self._columns}


def encode_table(keys: Sequence[np.ndarray], times: np.ndarray | None, columns: Sequence[np.ndarray]) -> str:
    """Writes canonical columns as compressed arrays in base64, without pickled objects; equal tables give equal texts.

    Args:
        keys: without nulls, sorted by key and then by time.
        times: (n,) datetime64[us].
        columns: the joined columns.
    """
    arrays: dict[str, np.ndarray] = {}
    for name, values in [
        *((f"key{at}", values) for at, values in enumerate(keys)),
        *((f"column{at}", values) for at, values in enumerate(columns)),
        *([] if times is None else [("time", times)]),
    ]:
        if values.dtype != object:
            arrays[name] = values
            continue
        levels = {value: None for value in values.tolist() if isinstance(value, str)}
        codes = {level: at for at, level in enumerate(levels)}
        encoded = [level.encode("utf-8", "surrogatepass") for level in levels]
        arrays[f"{name}.codes"] = np.array([codes.get(value, -1) for value in values.tolist()], dtype=np.int32)
        arrays[f"{name}.lengths"] = np.array([len(text) for text in encoded], dtype=np.int64)
        arrays[f"{name}.texts"] = np.frombuffer(b"".join(encoded), dtype=np.uint8)
    with io.BytesIO() as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)
        return base64.b64encode(file.getvalue()).decode()


@lru_cache(maxsize=8)
def _decode_table(content: str, keys: int, kinds: tuple[Kind, ...]) -> LookupTable:
    with np.load(io.BytesIO(base64.b64decode(content)), allow_pickle=False) as file:
        arrays = dict(file)
    key_values = []
    for at in range(keys):
        if f"key{at}" in arrays:
            key_values.append(arrays[f"key{at}"].tolist())
        else:
            texts = _read_texts(arrays, f"key{at}")
            key_values.append([texts.levels[code] for code in texts.codes.tolist()])
    columns: list[np.ndarray | _Texts] = []
    for at, kind in enumerate(kinds):
        if kind in TEXT_KINDS:
            texts = _read_texts(arrays, f"column{at}")
            columns.append(texts._replace(codes=np.append(texts.codes, np.int32(-1))))
        else:
            null = np.array([np.nan]) if kind != "datetime" else np.array(["NaT"], dtype="datetime64[us]")
            columns.append(np.concatenate([arrays[f"column{at}"], null]))
    return LookupTable(key_values, arrays.get("time"), columns)


def _read_texts(arrays: Mapping[str, np.ndarray], name: str) -> _Texts:
    ends = np.cumsum(arrays[f"{name}.lengths"]).tolist()
    data = arrays[f"{name}.texts"].tobytes()
    levels: list[str | None] = [
        data[start:end].decode("utf-8", "surrogatepass") for start, end in zip([0, *ends[:-1]], ends, strict=False)
    ]
    return _Texts(arrays[f"{name}.codes"], [*levels, None])
