"""The privacy filter decides what of a request is logged: each column is kept, dropped, hashed or put into a bucket.

Hashes are HMAC-SHA256 with a key that changes each month and never leaves the store. Without the keys, the values
cannot be recovered from the log. After the key of a month is removed, its hashes can no longer be matched.
"""

import datetime as dt
import hmac
import json
import os
import secrets
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml

try:
    from yaml import CSafeLoader as SafeLoader  # libyaml takes a tenth of the time
except ImportError:
    from yaml import SafeLoader  # type: ignore[assignment]

from towline.config import Kind, LoggingPolicy, PrivacyConfig, build_config
from towline.data.schema.contract import Contract
from towline.data.schema.values import ValueFormat, ValueReader, category_name

StoredType = Literal["float64", "bool", "string", "timestamp"]
HASH_KEYS = "hash-keys"  # folder of a model's keys, next to its segments and parts
BUCKETS = 10
_STORED_TYPES: Mapping[Kind, StoredType] = {"numeric": "float64", "boolean": "bool", "datetime": "timestamp"}


class LoggedColumn(NamedTuple):
    """A logged column.

    Attributes:
        name: its name in requests.
        kind: its kind in the contract; ``category`` for a join key that is not a feature.
        policy: whether values are kept, hashed or put into a bucket.
        stored: the type in Parquet.
        format: how text values are parsed, as the fields of ``ValueFormat``.
    """

    name: str
    kind: Kind
    policy: LoggingPolicy
    stored: StoredType
    format: Mapping[str, Any] = {}

    @property
    def reader(self) -> ValueReader:
        """Parses values of this column from JSON, CSV or Parquet."""
        return ValueReader(self.kind, ValueFormat(**self.format))


class HashKeys:
    """The hash keys of one model: a file for each month (``2026-11``), created by the first process that needs it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._known: dict[str, bytes] = {}

    def month_key(self, month: str) -> bytes:
        """The key of a month (``2026-11``).

        Raises:
            OSError: it cannot be read or created.
        """
        if month not in self._known:
            path = self.folder / month
            if not path.exists():
                self._make(path)
            self._known[month] = path.read_bytes()
        return self._known[month]

    def is_cached(self, month: str) -> bool:
        return month in self._known

    def hashes(self, column: str, text: str) -> list[str]:
        """The hashes of a value with every stored key."""
        return [hash_value(month, self.month_key(month), column, text) for month in self.months()]

    def months(self) -> list[str]:
        return sorted(path.name for path in self.folder.glob("????-??"))

    def remove(self, before: dt.date) -> list[str]:
        """Removes the keys of months that ended before a day; returns the months."""
        removed = [month for month in self.months() if month < _month(before)]
        for month in removed:
            (self.folder / month).unlink(missing_ok=True)
            self._known.pop(month, None)
        return removed

    def _make(self, path: Path) -> None:
        for folder in (self.folder.parent, self.folder):  # mkdir(parents=True) ignores the mode for parents
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = self.folder / f".{path.name}.{secrets.token_hex(8)}"
        try:
            handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "wb") as file:
                file.write(secrets.token_bytes(32))
                file.flush()
                os.fsync(file.fileno())
            os.link(draft, path)  # fails if another process was first
        except FileExistsError:
            pass
        finally:
            draft.unlink(missing_ok=True)


def hash_value(month: str, key: bytes, column: str, text: str) -> str:
    """The hash of a value, with the month of its key; equal values of two columns have different hashes."""
    message = f"{column}\0{text}".encode("utf-8", "surrogatepass")
    return f"{month}:{hmac.digest(key, message, 'sha256')[:16].hex()}"


class PrivacyFilter:
    """Applies the logging policies of one release to rows; ``fields`` are the logged columns in their order."""

    def __init__(
        self, contract: Contract, privacy: PrivacyConfig, profile: Mapping[str, Any] | None, keys: HashKeys
    ) -> None:
        columns = {column.name: column for column in contract.input_columns}
        ranges = {column.name: (column.min, column.max) for column in contract.input_columns}
        profiles = (profile or {}).get("columns", {})
        self._keys = keys
        self._hashed: list[tuple[int, str, ValueReader]] = []
        self._buckets: list[tuple[int, Callable[[Any], str | None]]] = []
        fields: list[LoggedColumn] = []
        names = [name for name in columns if privacy.of(name) != "drop"]
        for place, name in enumerate([*names, *(key for key in privacy.join_on if key not in columns)]):
            column, policy = columns.get(name), privacy.of(name)
            kind, reader = (column.kind, column.reader) if column else ("category", ValueReader("category"))
            if policy == "bucket" and kind == "boolean":
                policy = "keep"  # two values cannot be grouped further
            if policy == "hash":
                self._hashed.append((place, name, reader))
            elif policy == "bucket":
                self._buckets.append((place, _bucket_function(reader, profiles.get(name, {}), *ranges[name])))
            stored = _STORED_TYPES.get(kind, "string") if policy == "keep" else "string"
            fields.append(LoggedColumn(name, kind, policy, stored, reader.format.model_dump(exclude_defaults=True)))
        self.fields = tuple(fields)
        self._features = _row_getter(names)
        self._extra = [field.name for field in fields[len(names) :]]

    def needs_no_file(self, at: float) -> bool:
        """Whether ``filter_rows`` needs to read no key file for rows of this time."""
        return not self._hashed or self._keys.is_cached(_month(dt.datetime.fromtimestamp(at, dt.UTC)))

    def filter_rows(self, rows: Iterable[Mapping[str, Any]], at: float) -> list[list[Any]]:
        """The values to log for rows that were predicted.

        Kept values are not parsed here; ``column_storage`` makes them canonical on conversion to Parquet.

        Args:
            rows: the rows of a request.
            at: time of the prediction, in seconds since 1970.

        Raises:
            OSError: a column must be hashed and the key cannot be read or created.
        """
        month = _month(dt.datetime.fromtimestamp(at, dt.UTC)) if self._hashed else ""
        key = self._keys.month_key(month) if month else b""
        filtered = []
        for row in rows:
            # a join key may have any JSON type
            values = [*self._features(row), *(category_name(row.get(name)) for name in self._extra)]
            for place, name, reader in self._hashed:
                text = reader.spell(values[place])
                values[place] = None if text is None else hash_value(month, key, name, text)
            for place, bucket in self._buckets:
                values[place] = bucket(values[place])
            filtered.append(values)
        return filtered


def read_privacy_filter(directory: Path, contract: Contract, keys: HashKeys) -> PrivacyFilter:
    """The privacy filter of a release, from the config inside it.

    Raises:
        OSError, ValueError, TowlineError: the config or the profile in the release cannot be read.
    """
    path = directory / "config.yaml"
    privacy = build_config(yaml.load(path.read_bytes(), SafeLoader), str(path)).privacy
    coarse = "bucket" in privacy.columns.values()
    return PrivacyFilter(
        contract, privacy, json.loads((directory / "profile.json").read_bytes()) if coarse else None, keys
    )


def _row_getter(names: Sequence[str]) -> Callable[[Mapping[str, Any]], tuple[Any, ...]]:
    if len(names) > 1:
        return itemgetter(*names)
    return lambda row: tuple(row[name] for name in names)


def _bucket_function(
    reader: ValueReader, profile: Mapping[str, Any], low: float | None, high: float | None
) -> Callable[[Any], str | None]:
    """Returns a function from value to bucket: a decile of the training rows, a month, or a frequent level."""
    if reader.kind == "datetime":
        return lambda value: _month(moment) if (moment := reader.read(value)) else None
    if reader.kind != "numeric":
        common = frozenset(list(profile.get("counts", {}))[:BUCKETS])
        return lambda value: _common_or_other(reader.read(value), common)
    quantiles = profile.get("quantiles")
    if quantiles:
        edges = sorted(set(quantiles[10:100:10]))
    elif low is not None and high is not None and low < high:
        edges = [low + (high - low) * part / BUCKETS for part in range(1, BUCKETS)]
    else:
        edges = []
    ends = ["", *(str(category_name(edge)) for edge in edges), ""]
    names = [f"{start}..{end}" for start, end in pairwise(ends)]

    def bucket(value: Any) -> str | None:
        read = reader.read(value)
        return None if read != read else names[bisect_right(edges, read)]  # noqa: PLR0124 - NaN

    return bucket


def _month(moment: dt.date) -> str:
    return f"{moment.year:04}-{moment.month:02}"  # takes a tenth of the time of strftime


def _common_or_other(text: str | None, common: frozenset[str]) -> str | None:
    return text if text is None or text in common else "other"
