"""Freezing of lookup tables: their keys are read as the rows' columns of the contract, checked, sorted and encoded."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

from towline.config import Kind, LookupConfig
from towline.data.schema.columns import convert_column, list_examples, to_frame
from towline.data.schema.contract import Column
from towline.data.schema.lookups import Lookup, encode_table
from towline.errors import ConfigError, DataError
from towline.formatting import shorten_list

_SHOWN = 5


class LookupSource(NamedTuple):
    """A lookup table before it is frozen.

    Attributes:
        convert: the table with converted columns, given the declared kinds of some of them.
        digest: SHA-256 of the table as it was read.
    """

    convert: Callable[[dict[str, Kind]], pa.Table]
    digest: str


class LookupFrame(NamedTuple):
    """A converted lookup table.

    Attributes:
        name: of the lookup.
        config: its settings.
        keys: the columns of the row that are compared with the key.
        frame: the columns of the table, by their names in it.
        digest: of the source.
    """

    name: str
    config: LookupConfig
    keys: tuple[Column, ...]
    frame: pd.DataFrame
    digest: str

    @property
    def times(self) -> list[str]:
        """The columns of the table with times, except those of the key."""
        key = set(self.config.key_columns.values())
        return [str(name) for name in self.frame if self.frame[name].dtype.kind == "M" and name not in key]


def check_lookup_names(lookups: Mapping[str, LookupConfig], columns: Mapping[str, Column]) -> None:
    """Checks the names of the keys and of the joined columns of all lookups.

    Args:
        lookups: of the config.
        columns: of the rows, by their names.

    Raises:
        ConfigError: a key names no column of the rows, or a joined column has the name of one; names all of them.
    """
    read = [name for name, column in columns.items() if column.kind != "ignore"]
    problems = []
    for name, config in lookups.items():
        for key in config.key_columns:
            if key not in read:
                remedy = f"the columns are {', '.join(read[:20])}; if the table names it otherwise, write "
                remedy += "key: {column of the rows: column of the table}"
                problems.append((f"lookups.{name}.key: {key}", f"the key {key!r} is not a column that is read", remedy))
        for joined, source in config.names.items():
            if joined in columns:
                what = f"the joined column {joined!r} has the name of a column of the rows"
                remedy = f"rename it: columns: {{{name}_{joined}: {source}}}"
                problems.append((f"lookups.{name}.columns: {joined}", what, remedy))
    if problems:
        where, what, remedy = problems[0]
        details = tuple(f"{place}: {message}; {hint}" for place, message, hint in problems[1:10])
        raise ConfigError(what, where=where, remedy=remedy, details=details)


def read_lookup_frame(
    name: str, config: LookupConfig, source: LookupSource, columns: Mapping[str, Column]
) -> LookupFrame:
    """Converts a lookup table; its key columns have the kinds of the row's columns."""
    keys = tuple(columns[key] for key in config.key_columns)
    # the key is unchanged: it is read in the format of the row's column
    kinds: dict[str, Kind] = {column: "text" for column in config.key_columns.values() if column != config.time}
    kinds |= {config.names[joined]: kind for joined, kind in config.kinds.items() if config.names[joined] not in kinds}
    frame = to_frame(source.convert(kinds))
    return LookupFrame(name, config, keys, frame, source.digest)


def freeze_lookup(
    table: LookupFrame, columns: Mapping[str, tuple[np.ndarray, Kind]], row_time: str | None
) -> tuple[Lookup, np.ndarray]:
    """Checks the entries, sorts them by key and time, and encodes them. Entries with a null key or time are left out.

    Args:
        table: the converted table.
        columns: for each joined column its canonical values and its kind.
        row_time: the time column of the rows.

    Returns:
        The lookup, and the rows of the table that are its entries, in their order.

    Raises:
        ConfigError: the key has another kind than the rows, or the table changes with time and names no time.
        DataError: there is no entry, or a key, or a key and time, occurs twice.
    """
    keys, present = _read_keys(table), np.ones(len(table.frame), dtype=bool)
    for values in keys:
        present &= pd.notna(values)
    times = None
    if table.config.time:
        times = table.frame[table.config.time].to_numpy("datetime64[us]")
        present &= ~np.isnat(times)
    ids = pd.DataFrame({str(at): pd.factorize(values, sort=True)[0] for at, values in enumerate(keys)})
    if times is not None:
        ids["time"] = times
    order = ids[present].sort_values(list(map(str, ids)), kind="stable").index.to_numpy()
    if not len(order):
        what = f"no entry has a key{' and a time' if table.config.time else ''}: joined columns would be null"
        remedy = f"correct the file in lookups.{table.name}.table, or remove lookups.{table.name}"
        raise DataError(what, where=f"lookups.{table.name}", remedy=remedy)
    repeated = ids.iloc[order].duplicated(keep=False).to_numpy()
    if repeated.any():
        raise _repetition_error(table, order[repeated], row_time)
    lookup = Lookup(
        name=table.name,
        key=tuple(table.config.key_columns),
        row_time=row_time if times is not None else None,
        columns=tuple((name, kind) for name, (_, kind) in columns.items()),
        digest=table.digest,
        entries=len(order),
        content=encode_table(
            [values[order] for values in keys],
            None if times is None else times[order],
            [values[order] for values, _ in columns.values()],
        ),
    )
    return lookup, order


def _read_keys(table: LookupFrame) -> list[np.ndarray]:
    """The canonical key columns of the table, in the kinds of the row's columns."""
    keys, problems = [], []
    for column, name in zip(table.keys, table.config.key_columns.values(), strict=True):
        values, bad = convert_column(table.frame[name], column.kind, column.format.model_copy(update={"coerce": False}))
        keys.append(values)
        if len(bad):
            what = f"the key {column.name!r} is {column.kind}, but column {name!r} of the table holds other values"
            problems.append((column.name, what, list_examples(table.frame[name], bad)))
    if problems:
        kinds = ", ".join(f"{key}: category" for key, *_ in problems)
        raise ConfigError(
            problems[0][1],
            where=f"lookups.{table.name}.key: {problems[0][0]}",
            remedy=f"correct the values, or set data.columns: {{{kinds}}}",
            details=(problems[0][2], *(f"{what}: {examples}" for _, what, examples in problems[1:])),
        )
    return keys


def _repetition_error(table: LookupFrame, places: np.ndarray, row_time: str | None) -> ConfigError | DataError:
    where = f"lookups.{table.name}"
    columns = [*table.config.key_columns.values(), *([table.config.time] if table.config.time else [])]
    distinct = table.frame.iloc[places][columns].drop_duplicates()
    rows = [", ".join(map(str, row)) for row in distinct.head(_SHOWN).itertuples(index=False)]
    shown = shorten_list(rows, _SHOWN, "; ", total=len(distinct))
    if table.config.time:
        what = f"{len(distinct)} keys occur more than once at the same time: {shown}"
        return DataError(what, where=where, remedy="keep one entry for each key and time")
    what = f"{len(distinct)} keys occur more than once: {shown}"
    if table.times:
        remedy = f"set lookups.{table.name}.time: {table.times[0]}, so that a row gets the latest entry before its time"
        if not row_time:
            remedy = f"keep one entry for each key; or name the time of the rows in data.time and {remedy}"
        return ConfigError(f"{what}; the entries change with time, and no time is named", where=where, remedy=remedy)
    return DataError(what, where=where, remedy="keep one entry for each key")


def check_future(table: LookupFrame, order: np.ndarray, places: np.ndarray, row_times: np.ndarray) -> None:
    """Checks that no row gets an entry with a later time, in a table without a named time.

    Args:
        table: the converted table.
        order: the rows of the table that are entries, in the order of the entries.
        places: (n,) of the entries that the rows get, ``LookupTable.find_entries``.
        row_times: (n,) of the rows.

    Raises:
        ConfigError: rows get entries from their future.
    """
    if table.config.time or table.config.timeless:
        return
    for name in table.times:
        moments = np.append(table.frame[name].to_numpy("datetime64[us]")[order], np.datetime64("NaT", "us"))
        later = int((moments[places] > row_times).sum())
        if later:
            raise ConfigError(
                f"{later:,} of {len(row_times):,} rows would get an entry whose {name!r} is later than the row: "
                "the entries may hold values from the future",
                where=f"lookups.{table.name}",
                remedy=f"set lookups.{table.name}.time: {name}; if the joined values are the same at all times, set "
                f"lookups.{table.name}.timeless: true",
            )
