"""A search for texts in all files of a folder, including compressed and columnar files."""

import gzip
import io
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


def find_traces(folder: Path, texts: Iterable[bytes], without: Iterable[Path] = ()) -> list[str]:
    """``path: text`` for each of these byte strings in the names or contents of the folder's files.

    ZIP archives (also those of NumPy and skops) are unpacked, Parquet files are read as columns; files in
    ``without`` are not searched.
    """
    left_out = set(without)
    needles = list(texts)
    traces = []
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path not in left_out:
            content = (
                str(path.relative_to(folder)).encode() + b"\n" + b"\n".join(_contents(path.name, path.read_bytes()))
            )
            traces += [f"{path.relative_to(folder)}: {needle!r}" for needle in needles if needle in content]
    return traces


def _contents(name: str, content: bytes) -> Iterator[bytes]:
    yield content
    if content[:4] == b"PK\x03\x04":
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for inner in archive.namelist():
                yield inner.encode()
                yield from _contents(inner, archive.read(inner))
    elif content[:2] == b"\x1f\x8b":
        yield from _contents(name.removesuffix(".gz"), gzip.decompress(content))
    elif content[:4] == b"PAR1":
        file = pq.ParquetFile(pa.BufferReader(content))
        yield f"{file.read().to_pydict()} {file.metadata.to_dict()}".encode()
