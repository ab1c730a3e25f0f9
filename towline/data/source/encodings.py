"""Encodings of text files: UTF-8, UTF-16, Windows-1252, and UTF-8 in parts Windows-1252, recognized by the bytes."""

import codecs
import re
from functools import partial
from pathlib import Path

from towline.data.source.compression import READ_ERRORS, open_decompressed, read_decompressed
from towline.errors import DataError
from towline.remote_files import RemoteFile

_MAX_NON_ASCII_RUN = 2  # letters in a row
_MAX_NON_ASCII = 0.005  # of the letters of a text in which their meaning does not matter
_BLOCK_BYTES = 2**22  # that are decoded together
_MIXED_SUFFIX = "+cp1252"
MIXED_ENCODING = f"utf-8{_MIXED_SUFFIX}"
_THREE_BYTES = re.compile(rb"[\xe1-\xec\xee\xef][\x80-\xbf]{2}")
_LETTER = re.compile(rb"[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}")  # in UTF-8
_SINGLE_BYTES = "towline.single-bytes"  # name of an error handler
_NOTED = {"cp1252": "Windows-1252", MIXED_ENCODING: "UTF-8, in parts Windows-1252"}


def is_utf8(path: Path) -> bool:
    """Whether a text file is UTF-8."""
    try:
        return detect_encoding(path) == "utf-8"
    except DataError:
        return False


def read_as_utf8(path: Path) -> tuple[bytes, str]:
    """The decompressed content of a CSV or JSON file as UTF-8, and the encoding that the table is noted with.

    Raises:
        DataError: the file cannot be read, is empty, or has another encoding.
    """
    raw = b"".join(read_decompressed(path))
    if not raw.strip():
        remedy = "give a CSV with a header line and rows, or JSON objects"
        raise DataError("the file is empty", where=str(path), remedy=remedy)
    detector = EncodingDetector(path)
    detector.add(raw)
    encoding = detector.close()
    if encoding == "utf-8":
        return raw, "UTF-8"
    try:
        text = decoder_of(encoding).decode(raw, final=True)
    except UnicodeDecodeError as error:
        what, remedy = f"not a text in UTF-16: {error.reason}", "check the file, or copy it again"
        raise DataError(what, where=str(path), remedy=remedy) from None
    return text.encode(), _NOTED.get(encoding, "UTF-8")


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
    """Copies a CSV file in another encoding to a file in UTF-8, a block after the other.

    Returns:
        The encoding that the table is noted with; empty if the file is UTF-8 or has an unknown encoding.
    """
    runs = _RunCounter()
    try:
        encoding = detect_encoding(path)
        if encoding == "utf-8":
            return ""
        decoder = decoder_of(encoding)
        with open_decompressed(path) as file, target.open("wb") as copy:
            for block in iter(partial(file.read, _BLOCK_BYTES), b""):
                text = decoder.decode(block)
                runs.add(text)
                copy.write(text.encode())
            copy.write(decoder.decode(b"", final=True).encode())
    except (*READ_ERRORS, UnicodeDecodeError, DataError):
        return ""
    is_read = encoding != "cp1252" or runs.is_western() or runs.is_ascii()
    return _NOTED.get(encoding, "UTF-8") if is_read else ""


class _RunCounter:
    """Counts the runs of non-ASCII letters in a text that is given in parts.

    In Western European languages more than two such letters in a row are rare. A text in another alphabet, decoded as
    Windows-1252, has whole words of them.
    """

    def __init__(self) -> None:
        self._runs = self._long = self._letters = self._size = 0
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

    def is_ascii(self) -> bool:
        """Whether so few letters are not ASCII that their meaning does not matter."""
        return self._letters <= _MAX_NON_ASCII * self._size

    def _count(self, text: str) -> None:
        lengths = [] if text.isascii() else [len(run) for run in re.findall(r"[^\x00-\x7f]+", text)]
        self._runs += len(lengths)
        self._letters += sum(lengths)
        self._size += len(text)
        self._long += sum(length > _MAX_NON_ASCII_RUN for length in lengths)


class EncodingDetector:
    """Detects the encoding of a text that is given in parts.

    A text that is not UTF-8 is Windows-1252, or UTF-8 with some bytes of Windows-1252, as joined files have them. The
    latter has letters in UTF-8 before the first other byte, or letters of three bytes after it.

    Args:
        path: of the file, for errors.

    Attributes:
        encoding: of the parts until now: utf-8, utf-16 (or utf-16-le, utf-16-be without a mark), cp1252, or
            ``MIXED_ENCODING``; empty at first.
    """

    def __init__(self, path: Path | RemoteFile) -> None:
        self.encoding = ""
        self._path, self._decoder, self._lines = path, codecs.getincrementaldecoder("utf-8")(), 1
        self._has_letters = False  # that are valid UTF-8 and not ASCII

    def add(self, block: bytes) -> None:
        """Reads the next part.

        Raises:
            DataError: the text has another encoding.
        """
        if not self.encoding and block:
            self.encoding = utf16_encoding(block) or "utf-8"
        if self.encoding == "utf-8" and not (block.isascii() and not self._decoder.getstate()[0]):
            self._decode(block)
        self._lines += block.count(b"\n")

    def close(self) -> str:
        """The encoding of the whole text; utf-8 of an empty one.

        Raises:
            DataError: the text has another encoding.
        """
        if self.encoding == "utf-8" and self._decoder.getstate()[0]:
            self._decode(b"", final=True)
        return self.encoding or "utf-8"

    def _decode(self, block: bytes, *, final: bool = False) -> None:
        try:
            self._has_letters |= not self._decoder.decode(block, final).isascii()
        except UnicodeDecodeError as error:
            raw, valid = error.object, error.object[: error.start]
            line = self._lines + valid.count(b"\n")
            is_mixed = self._has_letters or not valid.isascii() or _THREE_BYTES.search(raw)
            self.encoding = MIXED_ENCODING if is_mixed else "cp1252"
            runs = _RunCounter()
            runs.add(decoder_of("cp1252").decode(_LETTER.sub(b" ", raw) if is_mixed else raw, final=True))
            is_header = line == 1  # the names of columns matter, however few letters they have
            if not runs.is_western() and (is_header or not runs.is_ascii()):
                raise DataError(
                    f"neither UTF-8 nor Windows-1252: byte {raw[error.start]:#04x}",
                    where=f"{self._path}:{line}",
                    remedy="save it as UTF-8, e.g. iconv -f ENCODING -t utf-8 OLD.csv > NEW.csv",
                ) from None


def detect_encoding(path: Path) -> str:
    """The encoding of a text file, as ``EncodingDetector`` names it.

    Raises:
        DataError: it has another encoding.
    """
    detector = EncodingDetector(path)
    with open_decompressed(path) as file:
        for block in iter(partial(file.read, max(64, _BLOCK_BYTES)), b""):
            detector.add(block)
            if detector.encoding != "utf-8":
                break
    return detector.close()


def decoder_of(encoding: str) -> codecs.IncrementalDecoder:
    """A decoder for an encoding that ``EncodingDetector`` names."""
    if encoding in _NOTED:
        return codecs.getincrementaldecoder(encoding.removesuffix(_MIXED_SUFFIX))(_SINGLE_BYTES)
    return codecs.getincrementaldecoder(encoding)()


def _decode_single_bytes(error: UnicodeError) -> tuple[str, int]:
    """Decodes invalid bytes as Windows-1252; the five that it does not define as browsers do (WHATWG), as Latin-1."""
    if not isinstance(error, UnicodeDecodeError):
        raise error
    parts = (bytes([byte]) for byte in error.object[error.start : error.end])
    return "".join(part.decode("latin-1" if part in _UNDEFINED else "cp1252") for part in parts), error.end


_UNDEFINED = (b"\x81", b"\x8d", b"\x8f", b"\x90", b"\x9d")
codecs.register_error(_SINGLE_BYTES, _decode_single_bytes)


def utf16_encoding(raw: bytes) -> str | None:
    """The encoding by its byte order mark or by the null bytes of a Latin header; None if it is not UTF-16."""
    marks = {codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
    encoding = marks.get(raw[:2])
    if encoding is None and len(raw) >= 8 and len(raw) % 2 == 0:
        head = raw[:64]
        encoding = "utf-16-le" if not any(head[1::2]) else "utf-16-be" if not any(head[::2]) else None
    return encoding
