"""The folder of a model's labels: Parquet files in the order they were added, and a history of the additions."""

import datetime as dt
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from towline import files

REQUEST = "request_id"
TIME = pa.timestamp("us", "UTC")
SCHEMA = pa.schema(
    [
        ("by", pa.string()),  # the column whose values the keys are
        ("keys", pa.list_(pa.string())),  # the value, or its hash with every hash key there was
        ("row", pa.int32()),  # of the request; null with other keys
        ("label", pa.string()),
        ("added", TIME),
    ]
)


class LabelStore:
    """Labels of a model. The last label of a key counts; earlier ones stay on disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Locks the folder, and removes drafts of interrupted writes.

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
        with self.lock():
            return pa.concat_tables([SCHEMA.empty_table(), *map(pq.read_table, self._parts())])

    def known(self, by: str, keys: Iterable[str]) -> dict[tuple[str, int | None], str]:
        """The current label of each of some keys (and row) of one column, for callers that hold the lock."""
        labels: dict[tuple[str, int | None], str] = {}
        searched = pa.array(keys, pa.string())
        for path in self._parts():
            table = pq.read_table(path, columns=["by", "keys", "row", "label"])
            table = table.filter(pc.equal(table["by"], by)).combine_chunks()
            is_searched = pc.is_in(pc.list_flatten(table["keys"]), searched)
            for row in table.take(pc.unique(pc.list_parent_indices(table["keys"]).filter(is_searched))).to_pylist():
                labels |= {(key, row["row"]): row["label"] for key in row["keys"]}
        return labels

    def append(self, rows: Sequence[tuple[str, list[str], int | None, str, dt.datetime]]) -> None:
        """Adds a file; an interrupted write leaves none. For callers that hold the lock."""
        numbers = [int(path.stem.removeprefix("part-")) for path in self._parts()]
        columns = zip(*rows, strict=True)
        arrays = [pa.array(values, field.type) for values, field in zip(columns, SCHEMA, strict=True)]
        self._write(self.folder / f"part-{max(numbers, default=0) + 1:06}.parquet", pa.table(arrays, schema=SCHEMA))

    def add_history(self, record: dict[str, Any]) -> None:
        """Adds a line to the history, which holds counts and no values."""
        with (self.folder / "history.jsonl").open("ab") as file:
            file.write(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE))

    def remove(self, matches: Callable[[dict[str, Any]], bool]) -> int:
        """Removes the labels for which ``matches`` is true; returns their number.

        Raises:
            TransientError: the folder cannot be written.
        """
        if not self.folder.is_dir():
            return 0
        count = 0
        with self.lock():
            for path in self._parts():
                table = pq.read_table(path)
                keep = [not matches(row) for row in table.to_pylist()]
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
