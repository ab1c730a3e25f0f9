"""Encodings of text files: UTF-8, UTF-16 and Windows-1252, recognized by the bytes."""

import codecs
import itertools
import re
from functools import partial
from pathlib import Path

from towline.data.source.compression import READ_ERRORS, open_decompressed, read_decompressed
from towline.errors import DataError
from towline.remote_files import RemoteFile

_MAX_NON_ASCII_RUN = 2  # letters in a row
_BLOCK_BYTES = 2**22  # that are decoded together


def is_utf8(path: Path) -> bool:
    with open_decompressed(path) as file:
        try:
            for _ in codecs.iterdecode(iter(partial(file.read, _BLOCK_BYTES), b""), "utf-8"):
                pass
        except UnicodeDecodeError:
            return False
    return True


def read_as_utf8(path: Path) -> tuple[bytes, str]:
    """The decompressed content of a CSV or JSON file as UTF-8, and its encoding: UTF-8, UTF-16 or Windows-1252.

    Raises:
        DataError: the file cannot be read, is empty, or has another encoding.
    """
    raw = _decode_utf16(b"".join(read_decompressed(path)))
    if not raw.strip():
        remedy = "give a CSV with a header line and rows, or JSON objects"
        raise DataError("the file is empty", where=str(path), remedy=remedy)
    try:
        raw.decode()
    except UnicodeDecodeError as error:
        if converted := _decode_windows_1252(raw):
            return converted, "Windows-1252"
        line = raw.count(b"\n", 0, error.start) + 1
        detail = f": byte {raw[error.start]:#04x} at position {error.start}"
        raise _encoding_error(path, detail, line) from None
    return raw, "UTF-8"


def has_only_carriage_returns(head: bytes) -> bool:
    """Whether the lines of a CSV with this beginning end with CR alone, as old programs for the Mac write them."""
    unquoted = b"".join(head.split(b'"')[::2])
    return b"\r" in unquoted.rstrip(b"\r") and b"\n" not in unquoted


def replace_carriage_returns(raw: bytes) -> bytes:
    """A CSV with LF in place of CR at the ends of its lines; values in quotes are unchanged."""
    parts = raw.split(b'"')
    parts[::2] = [part.replace(b"\r", b"\n") for part in parts[::2]]
    return b'"'.join(parts)


def is_utf16(path: Path) -> bool:
    """Whether a file begins as UTF-16 does."""
    try:
        with open_decompressed(path) as file:
            return utf16_encoding(file.read(64)) is not None
    except READ_ERRORS:
        return False  # reading the file reports it


def copy_as_utf8(path: Path, target: Path) -> str:
    """Copies a CSV file in UTF-16 or Windows-1252 to a file in UTF-8, a block after the other.

    Returns:
        The encoding that the table is noted with; empty if the file has none of the two.
    """
    runs = _RunCounter()
    try:
        with open_decompressed(path) as file, target.open("wb") as copy:
            first = file.read(max(64, _BLOCK_BYTES))
            encoding, blocks = utf16_encoding(first[:64]) or "cp1252", iter(partial(file.read, _BLOCK_BYTES), b"")
            for text in codecs.iterdecode(itertools.chain([first], blocks), encoding):
                runs.add(text)
                copy.write(text.encode())
    except (*READ_ERRORS, UnicodeDecodeError):
        return ""
    return "UTF-8" if encoding != "cp1252" else "Windows-1252" if runs.is_western() else ""


class _RunCounter:
    """Counts the runs of non-ASCII letters in a text that is given in parts.

    In Western European languages more than two such letters in a row are rare. A text in another alphabet, decoded as
    Windows-1252, has whole words of them.
    """

    def __init__(self) -> None:
        self._runs = self._long = 0
        self._end = ""  # a run that the next part may continue

    def add(self, text: str) -> None:
        """Counts the runs of the next part."""
        text = self._end + text
        size = len(text)
        while size and not text[size - 1].isascii():
            size -= 1
        self._count(text[:size])
        self._end = text[size:]

    def is_western(self) -> bool:
        """Whether few runs are long."""
        self._count(self._end)
        self._end = ""
        return self._long <= 0.02 * self._runs

    def _count(self, text: str) -> None:
        lengths = [] if text.isascii() else [len(run) for run in re.findall(r"[^\x00-\x7f]+", text)]
        self._runs += len(lengths)
        self._long += sum(length > _MAX_NON_ASCII_RUN for length in lengths)


def text_encoding(head: bytes, path: Path | RemoteFile, *, utf8: bool = True) -> str:
    """The encoding of a text: utf-8, utf-16 (or utf-16-le, utf-16-be without a mark) or cp1252.

    Args:
        head: the beginning of the text; if the text is not UTF-8, the part that is not.
        path: of the file, for the error.
        utf8: whether the text may be UTF-8.

    Raises:
        DataError: it is not UTF-8, and none of the others either.
    """
    if encoding := utf16_encoding(head):
        return encoding
    if utf8:
        return "utf-8"
    if _decode_windows_1252(head):
        return "cp1252"
    raise _encoding_error(path, "")


def _encoding_error(path: Path | RemoteFile, detail: str, line: int = 0) -> DataError:
    return DataError(
        f"neither UTF-8 nor Windows-1252{detail}",
        where=f"{path}:{line}" if line else str(path),
        remedy="save it as UTF-8, e.g. iconv -f ENCODING -t utf-8 OLD.csv > NEW.csv",
    )


def _decode_windows_1252(raw: bytes) -> bytes:
    """Converts Windows-1252 (or Latin-1) to UTF-8; empty if the bytes are probably another encoding."""
    try:
        text = raw.decode("cp1252")
    except UnicodeDecodeError:
        return b""
    runs = _RunCounter()
    runs.add(text)
    return text.encode() if runs.is_western() else b""


def utf16_encoding(raw: bytes) -> str | None:
    """The encoding by its byte order mark or by the null bytes of a Latin header; None if it is not UTF-16."""
    marks = {codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
    encoding = marks.get(raw[:2])
    if encoding is None and len(raw) >= 8 and len(raw) % 2 == 0:
        head = raw[:64]
        encoding = "utf-16-le" if not any(head[1::2]) else "utf-16-be" if not any(head[::2]) else None
    return encoding


def _decode_utf16(raw: bytes) -> bytes:
    """Converts UTF-16 to UTF-8."""
    encoding = utf16_encoding(raw)
    try:
        return raw.decode(encoding).encode() if encoding else raw
    except UnicodeDecodeError:
        return raw  # reported as not UTF-8
