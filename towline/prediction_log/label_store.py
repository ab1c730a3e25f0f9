"""The folder of a model's labels: Parquet parts in the order they were added, and a history of what was added."""

import datetime as dt
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from towline import files

REQUEST = "request_id"
TIME = pa.timestamp("us", "UTC")
SCHEMA = pa.schema(
    [
        ("by", pa.string()),  # the column whose values the keys are
        ("keys", pa.list_(pa.string())),  # the value as it is, or its hash under every key there was
        ("row", pa.int32()),  # of the request; null where the label has another key
        ("label", pa.string()),
        ("added", TIME),
    ]
)


class LabelStore:
    """Labels in ``labels/<name>`` of the store. The last of a key counts; those before it stay on disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keeps every other process away; clears what a killed one left.

        Raises:
            TransientError: the folder cannot be written.
        """
        with files.disk(self.folder):
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with files.exclusive_lock(self.folder / ".lock"), files.disk(self.folder):
            for draft in self.folder.glob(".part-*"):
                draft.unlink()
            yield

    def table(self) -> pa.Table:
        """All labels, in the order they were added."""
        if not self.folder.is_dir():
            return SCHEMA.empty_table()
        with self.held():
            return pa.concat_tables([SCHEMA.empty_table(), *map(pq.read_table, self._parts())])

    def known(self, by: str) -> dict[tuple[str, int | None], str]:
        """The label that counts for each key (and row) of one column; for callers that hold the folder."""
        found: dict[tuple[str, int | None], str] = {}
        for path in self._parts():
            for row in pq.read_table(path, columns=["by", "keys", "row", "label"]).to_pylist():
                if row["by"] == by:
                    found |= {(key, row["row"]): row["label"] for key in row["keys"]}
        return found

    def append(self, rows: Sequence[tuple[str, list[str], int | None, str, dt.datetime]]) -> None:
        """One more part, whole or not at all; for callers that hold the folder."""
        numbers = [int(path.stem.removeprefix("part-")) for path in self._parts()]
        columns = zip(*rows, strict=True)
        arrays = [pa.array(values, field.type) for values, field in zip(columns, SCHEMA, strict=True)]
        self._write(self.folder / f"part-{max(numbers, default=0) + 1:06}.parquet", pa.table(arrays, schema=SCHEMA))

    def note(self, facts: dict[str, Any]) -> None:
        """One more line of the history, which holds counts and no values."""
        with (self.folder / "history.jsonl").open("ab") as file:
            file.write(orjson.dumps(facts, option=orjson.OPT_APPEND_NEWLINE))

    def remove(self, gone: Callable[[dict[str, Any]], bool]) -> int:
        """Removes the labels of which ``gone`` says so, each part whole or not at all; returns how many.

        Raises:
            TransientError: the folder cannot be written.
        """
        if not self.folder.is_dir():
            return 0
        count = 0
        with self.held():
            for path in self._parts():
                table = pq.read_table(path)
                keep = [not gone(row) for row in table.to_pylist()]
                if not all(keep):
                    count += keep.count(False)
                    self._write(path, table.filter(pa.array(keep)))
        return count

    def _parts(self) -> list[Path]:
        return sorted(self.folder.glob("part-*.parquet"))

    def _write(self, path: Path, table: pa.Table) -> None:
        if len(table):
            with files.replacing(path) as file:
                pq.write_table(table, file, compression="zstd")
        else:
            path.unlink()
        files.sync(self.folder)
