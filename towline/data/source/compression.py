"""Compressed files: opens their text; the compression follows from the name of the file."""

import bz2
import gzip
import io
import lzma
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any

import pyarrow as pa

from towline.errors import DataError

COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".zip")
#: of a damaged or unreadable file
READ_ERRORS = (OSError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, pa.ArrowException)


def is_compressed(name: str) -> bool:
    """Whether the name of a file ends with the suffix of a compression."""
    return name.lower().endswith(COMPRESSED)


def open_decompressed(path: Path) -> IO[bytes]:
    """The content of a file, decompressed if its name says so; a ZIP archive must have one file.

    Raises:
        DataError: a ZIP archive has no file, several ones, or is encrypted.
        OSError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, pyarrow.ArrowException: ``READ_ERRORS``;
            also when the content is read.
    """
    suffix = next((suffix for suffix in COMPRESSED if path.name.lower().endswith(suffix)), "")
    file: IO[bytes] = _OPEN[suffix](path) if suffix else path.open("rb")
    return file


def read_decompressed(path: Path, size: int = 1 << 22) -> Iterator[bytes]:
    """The content of a file in blocks of at most ``size`` bytes.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        with open_decompressed(path) as file:
            while block := file.read(size):
                yield block
    except READ_ERRORS as error:
        raise unreadable(path, error) from None


def unreadable(path: Path, error: Exception) -> DataError:
    """The error of a damaged file, from one of ``READ_ERRORS``."""
    return DataError(f"cannot read the file: {str(error)[:200]}", where=str(path), remedy="check or copy it again")


def plain_name(path: Path) -> str:
    """The name of the file without its compression; of a ZIP archive, the name of the file in it.

    Raises:
        DataError, OSError, zipfile.BadZipFile: as ``open_decompressed``.
    """
    if path.name.lower().endswith(".zip"):
        with zipfile.ZipFile(path) as archive:
            return PurePosixPath(_only_file(archive, path).filename).name
    return path.name.rpartition(".")[0] if is_compressed(path.name) else path.name


def _open_zstandard(path: Path) -> IO[bytes]:
    return io.BufferedReader(pa.input_stream(str(path), compression="zstd"))


def _open_zip(path: Path) -> IO[bytes]:
    archive = zipfile.ZipFile(path)
    entry = _only_file(archive, path)
    if entry.flag_bits & 1:
        remedy = "extract the file, and give its path"
        raise DataError("the archive needs a password", where=str(path), remedy=remedy)
    return archive.open(entry)


def _only_file(archive: zipfile.ZipFile, path: Path) -> zipfile.ZipInfo:
    """The file in an archive, without those that macOS adds."""
    entries = [entry for entry in archive.infolist() if not entry.is_dir()]
    entries = [
        entry
        for entry in entries
        if not entry.filename.startswith("__MACOSX/") and not PurePosixPath(entry.filename).name.startswith(".")
    ]
    if len(entries) != 1:
        names = ", ".join(entry.filename for entry in entries[:5])
        what = f"the archive has {len(entries)} files: {names}" if entries else "the archive has no file"
        raise DataError(what, where=str(path), remedy="extract the table, and give its path")
    return entries[0]


_OPEN: dict[str, Callable[[Path], Any]] = {
    ".gz": gzip.GzipFile,
    ".bz2": bz2.BZ2File,
    ".xz": lzma.LZMAFile,
    ".zst": _open_zstandard,
    ".zip": _open_zip,
}
