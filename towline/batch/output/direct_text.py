"""Text that processes of this machine write directly into the unfinished output, without pieces.

A single process appends each shard to the output. Of several processes, each collects the text of a shard, up to 128 MB
in memory. As soon as the lengths of all earlier shards are known, it writes the text at its place.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
import pyarrow as pa

from towline import files
from towline.batch.input.shards import Shard
from towline.batch.work_folder import WorkFolder
from towline.errors import TransientError

UNKNOWN, FAILED = -1, -2
POLL_S, MEMORY_BYTES = 0.002, 128 << 20


class DirectText(Protocol):
    """Writes the text of shards into the unfinished output.

    Attributes:
        end: place in the output after the text of the last shard.
    """

    end: int

    def open(self, work: WorkFolder, shard: int) -> Any:
        """A context with a file for the text of a shard. The text is in the output when the block has succeeded."""


class AppendedText:
    """Writes each shard after the one before it."""

    def __init__(self) -> None:
        self.end = 0

    @contextmanager
    def open(self, work: WorkFolder, shard: int) -> Iterator[IO[bytes]]:
        before = work.result(shard - 1)
        begin = before.end if before and before.end is not None else work.assembled.stat().st_size
        with files.disk(work.assembled):
            try:
                with work.assembled.open("r+b") as file:
                    file.seek(begin)
                    yield file
                    file.flush()
                    os.fsync(file.fileno())
                    self.end = file.tell()
            except BaseException:
                os.truncate(work.assembled, begin)
                raise


class ShardPlaces:
    """The places of the shards in the output, in a file that several processes map into memory.

    It has no lock, which a killed process would keep: each value is written once, by one process.

    Args:
        path: of the file that ``create`` has written.
    """

    def __init__(self, path: Path) -> None:
        self._values = np.memmap(path, np.int64, "r+")  # begin, cancelled, the length of each shard

    @classmethod
    def create(cls, path: Path, lengths: Sequence[int], begin: int) -> "ShardPlaces":
        """Writes the file anew: a process that still maps an earlier one has no influence.

        Args:
            path: of the file.
            lengths: of the text of each shard in bytes, as ``known_lengths`` gives them.
            begin: present length of the output.
        """
        files.write(path, np.array([begin, 0, *lengths], np.int64).tobytes())
        return cls(path)

    def record(self, shard: int, length: int) -> None:
        """Records the length of the text of a shard; ``FAILED`` if there will be none."""
        self._values[2 + shard] = length

    def wait_for_place(self, shard: int) -> int:
        """The place of a shard, once the lengths of all earlier ones are known.

        Raises:
            TransientError: an earlier shard has failed, or the job has ended.
        """
        earlier = self._values[2 : 2 + shard]
        while (earlier < 0).any():
            if self._values[1] or (earlier == FAILED).any():
                raise TransientError("another shard has failed", remedy="run the same command again")
            time.sleep(POLL_S)
        return int(self._values[0] + earlier.sum())

    def cancel(self) -> None:
        """Ends all waiting for places."""
        self._values[1] = 1


class PlacedText:
    """Writes each shard at its place. The assembly flushes it to the disk, so that the worker need not wait.

    Args:
        places: of all shards.
    """

    def __init__(self, places: ShardPlaces) -> None:
        self._places, self.end = places, 0

    @contextmanager
    def open(self, work: WorkFolder, shard: int) -> Iterator["_Collected"]:
        with files.disk(work.path), _Collected(work.path) as collected:
            yield collected
            self._places.record(shard, collected.length)
            begin = self._places.wait_for_place(shard)
            with work.assembled.open("r+b") as file:
                file.seek(begin)
                collected.copy_to(file)
        self.end = begin + collected.length


class _Collected:
    """Text that is held in memory; in a temporary file if it is long.

    Args:
        folder: of the temporary file.

    Attributes:
        length: of the text in bytes.
    """

    def __init__(self, folder: Path) -> None:
        self.length = 0
        self._folder, self._parts = folder, list[bytes | pa.Buffer]()
        self._file: IO[bytes] | None = None

    def __enter__(self) -> "_Collected":
        return self

    def __exit__(self, *_: object) -> None:
        if self._file:
            self._file.close()

    def write(self, data: Any) -> int:
        part = data if isinstance(data, pa.Buffer) else bytes(data)  # a stream uses its own memory again
        self._parts.append(part)
        self.length += len(part)
        if self._file is None and self.length > MEMORY_BYTES:
            self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 - closed by __exit__
        if self._file:
            self._file.writelines(self._parts)
            self._parts.clear()
        return len(part)

    def copy_to(self, file: IO[bytes]) -> None:
        if self._file:
            self._file.seek(0)
            shutil.copyfileobj(self._file, file)
        file.writelines(self._parts)


def known_lengths(work: WorkFolder, shards: Sequence[Shard]) -> list[int]:
    """The bytes that each shard will add to the output: 0 if it is there, ``UNKNOWN`` if it is not scored yet."""
    lengths = list[int]()
    for shard in shards:
        result = work.result(shard.number)
        if result is None:
            lengths.append(UNKNOWN)
        else:
            lengths.append(work.piece(shard.number).stat().st_size if result.end is None else 0)
    return lengths
