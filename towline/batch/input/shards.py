"""Shards: parts of a source that are scored independently of each other.

The list of shards depends on the source alone, never on the number of workers.
"""

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from towline.batch.input.records import IrregularTextError, RegularityCheck, first_record_end
from towline.config import Frozen
from towline.errors import DataError
from towline.remote_files import RemoteFile

SHARD_ROWS, SHARD_BYTES = 250_000, 64 << 20
SCAN_BYTES = 16 << 20
FilePath = Path | RemoteFile
Format = Literal["csv", "parquet", "json lines"]
#: how the text of a file is read: in byte ranges; as a stream that is decoded; as a whole by the general CSV reader
Reading = Literal["ranges", "stream", "general"]


class SourceFile(Frozen):
    """A file of a source.

    Attributes:
        path: absolute, or a remote file, which is read in ranges.
        digest: SHA-256 of its bytes; of a remote Parquet file that of its address, size and version.
        size: in bytes.
        reading: of text.
        encoding: of text that is no UTF-8.
        body: place of the first record after the header.
    """

    path: FilePath
    digest: str
    size: int
    reading: Reading = "stream"
    encoding: str = "utf-8"
    body: int = 0

    def check_unchanged(self) -> None:
        """Checks that the file has not changed since the source was opened.

        Raises:
            DataError: the file has changed.
        """
        if isinstance(self.path, RemoteFile):
            self.path.check_unchanged()
        elif self.path.stat().st_size != self.size:
            raise DataError("the file has changed since it was opened", where=str(self.path), remedy="run again")


class Shard(Frozen):
    """A part of one file.

    Attributes:
        number: from 0, in the order of the rows.
        file: number of the file in the source.
        start, end: a range of bytes of text, or of row groups of a Parquet file.
        size: bytes of the input, for the progress.
    """

    number: int
    file: int
    start: int
    end: int
    size: int


def scan_text(path: FilePath, separator: str, *, quoted: bool) -> tuple[SourceFile, list[int]]:
    """Reads a file of text once: its digest, whether it can be read in ranges, and where its shards end.

    Args:
        path: of a file that is not compressed.
        separator: of a CSV.
        quoted: whether fields may be quoted (CSV).

    Raises:
        DataError: the text has an unknown encoding.
    """
    from towline.data.source.encodings import EncodingDetector

    digest, size, ends = hashlib.sha256(), 0, list[int]()
    detector, check = EncodingDetector(path), RegularityCheck(separator)
    regular, step, target = True, 0, 0
    with path.open("rb") as file, ThreadPoolExecutor(1) as hashing:  # hashing and scanning use a core each
        hashed = hashing.submit(digest.update, b"")
        while block := file.read(SCAN_BYTES):
            hashed.result()
            hashed = hashing.submit(digest.update, block)
            if not size:
                step = target = _shard_bytes(block)
            detector.add(block)
            quotes = check.quotes
            if quoted and regular:
                try:
                    check.check(block)
                except IrregularTextError:
                    regular = False
            while target < size + len(block):
                end = first_record_end(block, max(0, target - size), quotes, quoted=quoted)
                if end < 0:
                    break
                ends.append(size + end)
                target = ends[-1] + step
            size += len(block)
    encoding = detector.close()
    reading: Reading = "stream" if encoding != "utf-8" else "ranges" if regular else "general"
    scanned = SourceFile(path=path, digest=digest.hexdigest(), size=size, reading=reading, encoding=encoding)
    return scanned, ends if reading == "ranges" else []


def text_shards(files: Sequence[SourceFile], ends: Sequence[Sequence[int]]) -> list[Shard]:
    """The shards of text files.

    Args:
        files: of the source.
        ends: for each file the places of ``scan_text`` at which a shard may end.
    """
    shards: list[Shard] = []
    for place, (file, cuts) in enumerate(zip(files, ends, strict=True)):
        bounds = [file.body, *(cut for cut in cuts if file.body < cut < file.size), file.size]
        if file.reading != "ranges":
            bounds = [0, file.size]
        for start, end in pairwise(bounds):
            if end > start:
                shards.append(Shard(number=len(shards), file=place, start=start, end=end, size=end - start))
    return shards


def parquet_shards(files: Sequence[SourceFile]) -> list[Shard]:
    """Shards of whole row groups."""
    shards: list[Shard] = []
    for place, file in enumerate(files):
        with open_parquet(file.path) as parquet:
            for first, last, size in _row_group_ranges(parquet.metadata):
                shards.append(Shard(number=len(shards), file=place, start=first, end=last, size=size))
    return shards


def _row_group_ranges(footer: pq.FileMetaData) -> Iterator[tuple[int, int, int]]:
    first = rows = size = 0
    for number in range(footer.num_row_groups):
        group = footer.row_group(number)
        if number > first and (rows + group.num_rows > SHARD_ROWS or size + group.total_byte_size > SHARD_BYTES):
            yield first, number, size
            first, rows, size = number, 0, 0
        rows, size = rows + group.num_rows, size + group.total_byte_size
    if rows:
        yield first, footer.num_row_groups, size


def _shard_bytes(head: bytes) -> int:
    """The bytes of about 250,000 rows, by the length of the first lines."""
    mean = len(head) / max(1, head.count(b"\n"))
    return max(1 << 20, min(SHARD_BYTES, int(SHARD_ROWS * mean)))


@contextlib.contextmanager
def open_parquet(path: FilePath, **options: Any) -> Iterator[pq.ParquetFile]:
    """A Parquet file; of a remote one only the footer and the chosen columns are read."""
    with contextlib.ExitStack() as stack:
        source = path if isinstance(path, Path) else stack.enter_context(path.open())
        yield stack.enter_context(pq.ParquetFile(source, pre_buffer=False, **options))


@contextlib.contextmanager
def parquet_errors(path: FilePath) -> Iterator[None]:
    """Turns a Parquet file that cannot be read into a DataError."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        reason = str(error).split("\n")[0][:200]
        empty = (path.size if isinstance(path, RemoteFile) else path.stat().st_size if path.is_file() else 1) == 0
        raise DataError(
            "the file is empty" if empty else f"not a readable Parquet file: {reason}",
            where=str(path),
            remedy="write the file again, then run the same command again",
        ) from None
