"""Source formats: reads CSV, Parquet and JSON files as Arrow tables.

A CSV is read as text: the contract says what the text means. Each fault of a file is reported with its line.
"""

import codecs
import contextlib
import csv
import difflib
import io
import itertools
import json
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Literal

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from towline.config.passwords import mask_passwords
from towline.data.schema.arrow_types import readable_rows
from towline.data.source.compression import (
    COMPRESSED,
    READ_ERRORS,
    is_compressed,
    open_decompressed,
    plain_name,
    unreadable,
)
from towline.data.source.encodings import copy_as_utf8, has_only_carriage_returns, is_utf8, read_as_utf8, utf16_encoding
from towline.data.source.json_tables import JSON_ARRAYS, JSON_LINES, read_json
from towline.data.source.text_layouts import ALIGNED, has_spaced_quotes, is_aligned, is_plain, to_plain_csv
from towline.errors import ConfigError, DataError
from towline.files import is_visible
from towline.remote_files import is_url

ENCODING = b"encoding"  # key of the metadata of a CSV's table
SEPARATORS = ",;\t|"
_HEAD_LINES, _HEAD_BYTES = 20, 1 << 16  # in which the header is searched
_NOTES = 3  # lines below a table, such as the number of its rows
_WRITE_AGAIN = "write the file again, or leave it out of data.source"
_SAVE_AS_TABLE = "save the table as CSV (.csv), Parquet (.parquet) or JSON lines (.jsonl), and give that file"
#: first bytes of files that are named as a text
_BINARY = {
    b"PK\3\4": ("an Excel workbook or a ZIP archive", _SAVE_AS_TABLE),
    b"\xd0\xcf\x11\xe0": ("an Excel workbook", _SAVE_AS_TABLE),
    b"SQLite format 3\0": ("an SQLite database", "give its URL, sqlite:///PATH, and a query"),
    b"\x1f\x8b": ("compressed by gzip, which its name does not say", "rename it so that its name ends with .gz"),
    b"PAR1": ("a Parquet file, which its name does not say", "rename it so that its name ends with .parquet"),
}
PARQUET = (".parquet", ".pq")
_CSV = (".csv", ".tsv", ".txt")
_TEXT = _CSV + JSON_LINES + JSON_ARRAYS
FileFormat = Literal["csv", "parquet", "json"]
#: ends of the names of tables in a folder
TABLES = (*PARQUET, *(suffix + packed for suffix in _TEXT for packed in ("", *COMPRESSED)))


def list_files(source: str | list[str], project: Path, setting: str = "data.source") -> list[Path]:
    """The files of a source, which is a file, a folder, a glob pattern or a list of these; sorted by name.

    Args:
        source: relative paths start at the project.
        project: its folder.
        setting: that names the source, for errors.

    Raises:
        ConfigError: it is a URL.
        DataError: there is no such file.
    """
    if not isinstance(source, str):
        return [path for part in source for path in list_files(part, project, setting)]
    if is_url(source):
        what, remedy = "a URL is not read here", "copy the file to this machine, and give its path"
        raise ConfigError(what, where=f"{setting}: {mask_passwords(source)}", remedy=remedy)
    path = (project / source).absolute()
    if path.is_dir():
        if not (files := list_folder(path)):
            what = "no CSV, Parquet or JSON file in the folder"
            raise DataError(what, where=str(path), remedy=f"check {setting}")
        return files
    if path.exists():
        return [path]
    pattern = Path(source)  # the project's own path may contain characters of patterns
    root = project.absolute() / pattern.anchor
    matches = root.glob(str(pattern.relative_to(pattern.anchor)))
    files = sorted(each for each in matches if each.is_file() and is_visible(each.name, path.name))
    if not files:
        raise missing_file(path, setting)
    return files


def list_folder(folder: Path) -> list[Path]:
    """The tables directly in a folder, sorted; hidden files, such as those that macOS adds, are not tables."""
    names = (path for path in folder.iterdir() if path.name.lower().endswith(TABLES) and is_visible(path.name))
    return sorted(path for path in names if path.is_file())


def missing_file(path: Path, setting: str = "data.source") -> DataError:
    folder = path.parent
    names = (
        [child.name for child in folder.iterdir() if child.name.endswith((path.suffix, *TABLES))]
        if folder.is_dir()
        else []
    )
    similar = difflib.get_close_matches(path.name, names, 3, 0.5)
    question = f"did you mean {' or '.join(similar)}? " if similar else ""
    remedy = (
        f"{question}check {setting}; relative paths start at {'the project folder' if '.' in setting else path.parent}"
    )
    return DataError("no such file" if folder.is_dir() else "no such folder", where=str(path), remedy=remedy)


def detect_format(path: Path) -> FileFormat:
    """The format of a file by its name; a file whose name does not say it is a CSV if it is a text.

    Raises:
        DataError: the file is no table in a known format, or a ZIP archive that does not have one file.
    """
    try:
        name = plain_name(path).lower()
        if name.endswith(PARQUET) and not is_compressed(path.name):
            return "parquet"
        with open_decompressed(path) as file:
            head = file.read(_HEAD_BYTES)
    except READ_ERRORS as error:
        raise unreadable(path, error) from None
    check_text(head, str(path))
    if name.endswith(JSON_LINES + JSON_ARRAYS):
        return "json"
    if b"\0" in head and not name.endswith(_CSV) and utf16_encoding(head) is None:
        raise DataError("unknown file format", where=str(path), remedy=_SAVE_AS_TABLE)
    return "csv"


def check_text(head: bytes, where: str) -> None:
    """Checks that a file whose name is that of a text does not begin as another kind of file.

    Raises:
        DataError: it is a workbook, a database, compressed, or a Parquet file.
    """
    for start, (content, remedy) in _BINARY.items():
        if head.startswith(start):
            raise DataError(f"the file is {content}", where=where, remedy=remedy)


def detect_separator(path: Path) -> str:
    """The separator of a CSV file: the mark that occurs equally often in the first lines; a comma for other files.

    A space is added to it if quotes follow it and a space. If several spaces align the columns, it is ``ALIGNED``.
    """
    if detect_format(path) != "csv":
        return ","
    try:
        with open_decompressed(path) as file:
            return detect_separator_of(file.readlines(20_000)[:20])
    except READ_ERRORS:
        return ","  # reading the file reports it


def detect_separator_of(head: Sequence[bytes]) -> str:
    """The separator of a CSV with these first lines."""
    if has_only_carriage_returns(text := b"".join(head)):
        head = text.splitlines(keepends=True)[:20]
    lines = [line.decode("utf-8", "replace").replace("\0", "") for line in head]
    lines = [re.sub(r"\r(?!\n|\Z)", " ", line) for line in lines]  # csv refuses a CR within an unquoted value
    lines = lines[count_lines_before_header(lines) :]
    if not lines:
        return ","
    in_header = {mark: lines[0].count(mark) for mark in SEPARATORS}
    equal = {mark: sum(line.count(mark) == count for line in lines) * (count > 0) for mark, count in in_header.items()}
    if not any(in_header.values()) and _has_blanks_between_columns(lines):
        return " "
    if (
        not any(in_header[mark] for mark in SEPARATORS if mark != "\t")
        and equal["\t"] < len(lines)
        and is_aligned(lines)
    ):
        return ALIGNED
    separator = max(SEPARATORS, key=lambda mark: (in_header[mark] > 0, equal[mark], in_header[mark]))
    return f"{separator} " if has_spaced_quotes(lines, separator) else separator


def _has_blanks_between_columns(lines: Sequence[str]) -> bool:
    """Whether each line has as many values, at least three, separated by one space; or one more than the header."""
    rows = [next(csv.reader([line.rstrip("\r\n")], delimiter=" "), []) for line in lines]
    if len(rows) < 3 or len(rows[0]) < 3 or not all(rows[0]):
        return False
    return all(len(row) == len(rows[0]) for row in rows) or has_row_names("".join(lines).encode(), " ")


def count_lines_before_header(lines: Sequence[str]) -> int:
    """The number of lines before the header of a CSV, given its first lines: a title, comments with #, or ``sep=;``.

    Each has at most one value. The header has as many values as the last lines, none of them empty, and letters.

    Example:
        >>> count_lines_before_header(["# of 2026", "", "name,size", "a,1", "b,2"])
        2
    """
    head = "".join(lines[:_HEAD_LINES]).removeprefix("\ufeff").rstrip().splitlines()
    plain = list(itertools.takewhile(lambda line: line.count('"') % 2 == 0, head))  # to a newline within a value
    if len(plain) < 3:
        return 0
    parsed = [[next(csv.reader([line], delimiter=mark), []) for line in plain] for mark in SEPARATORS]
    fields = max(parsed, key=lambda rows: (len(rows[-1]) > 1, sum(len(row) == len(rows[-1]) for row in rows)))
    has_columns = [
        (sum(map(bool, row)) > 1 and not (line.startswith("#") and len(row) != len(fields[-1])))
        or (len(row) == len(fields[-1]) > 1 and any(row) and not row[0])  # a title is in the first cell
        for line, row in zip(plain, fields, strict=True)
    ]
    first = has_columns.index(True) if any(has_columns) else 0
    if re.fullmatch("sep=.", plain[0], re.IGNORECASE):
        return max(first, 1)
    header, has_letters = fields[first], any(letter.isalpha() for letter in plain[first])
    is_header = len(header) == len(fields[-1]) and all(header) and has_letters and first < len(plain) - 1
    is_title = len(header) > 2 or first > 1 or plain[0].startswith("#")  # else it may be a column of texts with commas
    return first if is_header and is_title else 0


def length_before_header(head: bytes) -> int:
    """The number of bytes before the header of a CSV in UTF-8 that starts so; see ``count_lines_before_header``."""
    lines = head[:_HEAD_BYTES].splitlines(keepends=True)
    lines = lines[: min(_HEAD_LINES, len(lines) - (len(head) >= _HEAD_BYTES))]  # the last one may be cut
    return sum(map(len, lines[: count_lines_before_header([line.decode("utf-8", "replace") for line in lines])]))


def has_row_names(head: bytes, separator: str) -> bool:
    """Whether the rows of a CSV have names, as ``write.table`` of R writes them: the header has no name for them.

    Each of the first rows begins with one more value than the header has. It is quoted, and another one in each row;
    without quotes, the last value could as well be the second part of a number with a decimal comma.

    Args:
        head: the first bytes of a CSV in UTF-8, from its header on.
        separator: of the columns.

    Example:
        >>> has_row_names(b'"size","price"\\n"1",7,2\\n"2",8,3\\n', ",")
        True
    """
    lines = head.removeprefix(codecs.BOM_UTF8).strip(b"\r\n").splitlines(keepends=True)
    records = list(_records(b"".join(lines[:_HEAD_LINES]), separator))
    if len(lines) > _HEAD_LINES or len(head) >= _HEAD_BYTES:
        records = records[:-1]  # the last one may be cut
    starts = [lines[line] for line, _ in records[:-1]]  # each record begins after the last line of the one before
    header, *rows = [fields for _, fields in records] or [[]]
    names = {fields[0] for fields in rows}
    return (
        len(names) == len(rows) > 1
        and all(len(fields) == len(header) + 1 for fields in rows)
        and "" not in names
        and all(line.startswith(b'"') for line in starts)
    )


def check_header(header: Sequence[str], separator: str, where: str) -> None:
    """Refuses a header with one name that contains another separator.

    Raises:
        DataError: the only name contains another separator, or several spaces side by side.
    """
    others = [mark for mark in SEPARATORS if mark != separator and mark in header[0]] if len(header) == 1 else []
    if others:
        raise DataError(
            f"there is only one column, and its name contains {others[0]!r}: {header[0][:80]!r}",
            where=where,
            remedy=f"set data.separator to {others[0]!r} (of a command: --separator)",
        )
    if len(header) == 1 and re.search(r"\S\s{2,}\S", header[0]):
        raise DataError(
            f"there is only one column; several spaces separate its values: {' '.join(header[0].split())[:80]!r}",
            where=where,
            remedy=f"set data.separator to {ALIGNED!r} (of a command: --separator)",
        )


def read_file(path: Path, separator: str | None) -> pa.Table:
    """The table of a file; every column of a CSV is text.

    Args:
        path: of the file.
        separator: of the columns of a CSV; None: it is detected.

    Raises:
        DataError: the file cannot be read, or its format is unknown.
    """
    match detect_format(path):
        case "parquet":
            return read_parquet(path, _WRITE_AGAIN)
        case "json":
            return read_json(path)
        case "csv":
            return _read_csv(path, separator or detect_separator(path))


def check_parquet(path: Path) -> None:
    """Checks that a file of a source is a Parquet file.

    Raises:
        DataError: the file is not a Parquet file.
    """
    try:
        pq.read_metadata(path)
    except (pa.ArrowException, OSError):
        read_parquet(path, _WRITE_AGAIN)


def read_parquet_column(path: Path, name: str) -> pa.ChunkedArray:
    """One column of a Parquet file of a source.

    Raises:
        DataError: it cannot be read.
    """
    try:
        with pq.ParquetFile(path, pre_buffer=False) as file:
            return file.read(columns=[name], use_threads=False)[name]
    except (pa.ArrowException, OSError) as error:
        what = f"column {name!r} cannot be read: {str(error).splitlines()[0][:200]}"
        raise DataError(what, where=str(path), remedy=_WRITE_AGAIN) from None


def unnamed_index(schema: pa.Schema) -> list[str]:
    """The columns of a Parquet file in which pandas has stored an index that has no name."""
    stored = json.loads((schema.metadata or {}).get(b"pandas", b"{}")).get("index_columns", [])
    return [name for name in stored if isinstance(name, str) and re.fullmatch(r"__index_level_\d+__", name)]


def read_parquet(path: Path, remedy: str) -> pa.Table:
    """The table of a Parquet file, without pandas' metadata; ``remedy`` is that of the error for an unreadable file."""
    try:
        # pq.read_table would add columns for key=value in the path
        table = pq.ParquetFile(path).read()
        return readable_rows(table.drop_columns(unnamed_index(table.schema)).replace_schema_metadata(None))
    except (pa.ArrowException, OSError) as error:
        reason = str(error).split("\n")[0][:200]
        what = "the file is empty" if path.stat().st_size == 0 else f"not a readable Parquet file: {reason}"
        raise DataError(what, where=str(path), remedy=remedy) from None


def stream_csv(path: Path, separator: str) -> Iterator[pa.Table]:
    """The rows of a CSV in blocks of about 16 MB; the columns are text, as in ``read_file``.

    Raises:
        DataError: the file is not readable; its first rows may have been given.
    """
    if not is_plain(separator):
        yield _read_csv(path, separator)
        return
    rows = 0
    try:
        for table in stream_utf8_csv(path, separator):
            rows += len(table)
            yield table
    except DataError:
        if rows and not is_utf8(path):
            yield from _stream_decoded_csv(path, separator, rows)
            return
        yield _read_csv(path, separator).slice(rows)  # names the line of a fault; reads other encodings


def _stream_decoded_csv(path: Path, separator: str, skipped: int) -> Iterator[pa.Table]:
    """As ``stream_csv``, without the first rows, of a file whose later rows show that it is not in UTF-8."""
    with tempfile.TemporaryDirectory() as folder:
        decoded = Path(folder) / "decoded.csv"
        if not copy_as_utf8(path, decoded):
            _read_csv(path, separator)  # raises the error with the reason
        for table in stream_utf8_csv(decoded, separator):
            rows, skipped = table.slice(skipped), max(0, skipped - len(table))
            if len(rows):
                yield rows


def stream_utf8_csv(path: Path, separator: str) -> Iterator[pa.Table]:
    """As ``stream_csv``, of a file in UTF-8.

    Raises:
        DataError: the file is not readable; its first rows may have been given.
    """
    parsing = pyarrow.csv.ParseOptions(delimiter=separator, newlines_in_values=True)
    try:
        skipped, named = _examine_head(path, separator)
        with pyarrow.csv.open_csv(_csv_input(path), pyarrow.csv.ReadOptions(skip_rows=skipped), parsing) as head:
            header = head.schema.names
        options = pyarrow.csv.ReadOptions(block_size=2**24, skip_rows=skipped)
        if named:
            header = ["", *header]
            options = pyarrow.csv.ReadOptions(block_size=2**24, skip_rows=skipped + 1, column_names=header)
        reader = pyarrow.csv.open_csv(
            _csv_input(path), read_options=options, parse_options=parsing, convert_options=_text_columns(header)
        )
        with reader:
            for batch in reader:
                yield _name_columns(pa.Table.from_batches([batch]))
    except (*READ_ERRORS, UnicodeDecodeError) as error:  # the last one: of a header
        reason = str(error).split("\n")[0][:200]
        raise DataError(f"not a readable CSV: {reason}", where=str(path), remedy="correct the file") from None


def _csv_input(path: Path) -> Path | IO[bytes]:
    """The path of a plain or gzip file, which Arrow opens; of another file, its decompressed content."""
    return open_decompressed(path) if is_compressed(path.name) and not path.name.lower().endswith(".gz") else path


def _examine_head(path: Path, separator: str) -> tuple[int, bool]:
    """The number of lines before the header of a CSV (``count_lines_before_header``), and ``has_row_names``."""
    try:
        with open_decompressed(path) as file:
            head = file.read(_HEAD_BYTES)
    except READ_ERRORS:
        return 0, False  # reading the file reports it
    before = length_before_header(head)
    blank = len(head) - len(head[before:].removeprefix(codecs.BOM_UTF8).lstrip(b"\r\n"))
    return head.count(b"\n", 0, blank), has_row_names(head[before:], separator)


def name_columns(header: Sequence[str]) -> list[str]:
    """The names that pandas gives to the columns of a CSV: each is another one, and none is empty.

    Example:
        >>> name_columns(["", "a", "b", "a"])
        ['Unnamed: 0', 'a', 'b', 'a.1']
    """
    given = [name or f"Unnamed: {place}" for place, name in enumerate(header)]
    names: list[str] = []
    for name in given:
        numbered = (f"{name}.{number}" for number in itertools.count(1))
        names.append(name if name not in names else next(n for n in numbered if n not in given and n not in names))
    return names


def _name_columns(table: pa.Table) -> pa.Table:
    return table.rename_columns(name_columns(table.column_names))


def _text_columns(header: Iterable[str]) -> pyarrow.csv.ConvertOptions:
    types = dict.fromkeys(header, pa.large_string())
    return pyarrow.csv.ConvertOptions(column_types=types, strings_can_be_null=True, null_values=[""])


def _read_csv(path: Path, separator: str) -> pa.Table:
    raw, encoding = read_as_utf8(path)
    if not is_plain(separator):
        raw, separator = to_plain_csv(raw, separator), ","
    raw = b"\n" * raw.count(b"\n", 0, before := length_before_header(raw)) + raw[before:]  # lines keep their numbers
    records = _records(raw, separator)
    line, header = next(records)
    if has_row_names(raw[:_HEAD_BYTES], separator):
        start = len(raw) - len(raw.removeprefix(codecs.BOM_UTF8).lstrip(b"\r\n"))
        raw, header = raw[:start] + separator.encode() + raw[start:], ["", *header]
    check_header(header, separator, f"{path}:{line}")
    if next(records, None) is None:
        raise DataError("there is a header, but no row", where=str(path), remedy="give a file with rows")
    if raw.count(b'"') % 2 and (line := _find_open_quote(raw, separator)):
        raise DataError("a quote is opened and never closed", where=f"{path}:{line}", remedy="correct the line")
    try:
        return _parse_csv(raw, separator, header, encoding)
    except pa.ArrowException as error:
        for repair in (_quote_carriage_returns, _remove_notes):
            with contextlib.suppress(pa.ArrowException):
                return _parse_csv(repair(raw, separator), separator, header, encoding)
        _check_separators_of_header(raw, separator, f"{path}:{line}")
        for line, fields in _records(raw, separator):
            if len(fields) != len(header):
                what = f"{len(fields)} field{'s' * (len(fields) != 1)}, but the header has {len(header)}"
                remedy = "correct the line: it has too many or too few separators, or an open quote"
                raise DataError(what, where=f"{path}:{line}", remedy=remedy) from None
        reason = re.sub(r"(got \d+):.*", r"\1", str(error).split("\n")[0])  # the rest of the line is the row
        raise DataError(f"not a readable CSV: {reason[:200]}", where=str(path), remedy="correct the file") from None


def _check_separators_of_header(raw: bytes, separator: str, where: str) -> None:
    """Refuses a header with one value less than each of the first rows, which ``has_row_names`` does not explain.

    Raises:
        DataError: the header has one value less than each row.
    """
    (_, header), *rows = itertools.islice(_records(raw, separator), _HEAD_LINES)
    if len(rows) > 1 and all(len(fields) == len(header) + 1 for _, fields in rows):
        named = any(fields[-1] for _, fields in rows)
        place, reason = ("beginning", "the first column has no name") if named else ("end", "each row ends with one")
        what = f"the rows have {len(header) + 1} fields, but the header has {len(header)}"
        raise DataError(what, where=where, remedy=f"write {separator!r} at the {place} of the header: {reason}")


def _parse_csv(raw: bytes, separator: str, header: Sequence[str], encoding: str) -> pa.Table:
    table = pyarrow.csv.read_csv(
        io.BytesIO(raw),
        read_options=pyarrow.csv.ReadOptions(block_size=2**24),
        parse_options=pyarrow.csv.ParseOptions(delimiter=separator, newlines_in_values=True),
        convert_options=_text_columns(header),
    )
    return _name_columns(table).replace_schema_metadata({ENCODING: encoding})


def _quote_carriage_returns(raw: bytes, separator: str) -> bytes:
    """The CSV with quotes around each field that has a carriage return inside; its lines end with a line feed.

    pandas and R write such fields without quotes, and Arrow takes the carriage return as the end of a line.

    Example:
        >>> _quote_carriage_returns(b"1,two\\rlines\\n", ",")
        b'1,"two\\rlines"\\n'
    """
    text = b'[^"\n%b]*' % re.escape(separator.encode())
    start, end = (b"%b[\n%b])" % (side, re.escape(separator.encode())) for side in (b"(?<=", b"(?=\r?"))
    field = re.compile(start + text + b"\r(?!\n)" + text + b"?" + end)
    parts = (b"\n" + raw + b"\n").split(b'"')  # those at even positions are outside quotes
    for position in range(0, len(parts), 2):
        if b"\r" in parts[position]:
            parts[position] = field.sub(lambda match: b'"' + match[0] + b'"', parts[position])
    return b'"'.join(parts)[1:-1]


def _remove_notes(raw: bytes, separator: str) -> bytes:
    """The CSV without notes below it: at most ``_NOTES`` last lines that have one field, of several words.

    Example:
        >>> _remove_notes(b"a,b\\n1,2\\n\\n(1 row affected)\\n", ",")
        b'a,b\\n1,2'
    """
    table = raw.rstrip()
    for _ in range(_NOTES):
        note = table[table.rfind(b"\n") + 1 :]
        if separator.encode() in note or len(note.split()) < 2:
            break
        table = table[: -len(note)].rstrip()
    return table


def _records(raw: bytes, separator: str) -> Iterator[tuple[int, list[str]]]:
    """The records that are not blank, each with the number of its last line."""
    reader = csv.reader(io.TextIOWrapper(io.BytesIO(raw), "utf-8-sig", newline=""), delimiter=separator)
    try:
        yield from ((reader.line_num, fields) for fields in reader if fields)
    except csv.Error:  # a field longer than csv's limit
        yield reader.line_num, []


def _find_open_quote(raw: bytes, separator: str) -> int:
    """The line with a quote that is never closed; 0 if there is none."""
    text = io.TextIOWrapper(io.BytesIO(raw), "utf-8-sig", newline="")
    reader, line = csv.reader(text, delimiter=separator, strict=True), 0
    try:
        for _ in reader:
            line = reader.line_num
    except csv.Error as error:
        return line + 1 if "unexpected end" in str(error) else 0
    return 0
