"""A table is equal in each format and compression; a file that is not a table is refused with a remedy."""

import bz2
import gzip
import io
import json
import lzma
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from towline.config import DataConfig
from towline.data import snapshot
from towline.data.source import formats, sources
from towline.data.source.encodings import read_as_utf8
from towline.errors import DataError


def zip_file(data: bytes, *names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, data)
    return buffer.getvalue()


def make_table() -> pd.DataFrame:
    rng = np.random.default_rng(4)
    size = rng.normal(20, 9, 240).round(3)
    return pd.DataFrame({
        "when": pd.date_range("2025-01-01", periods=240, freq="7h").strftime("%Y-%m-%d %H:%M:%S"),
        "word": rng.choice(["north", "süd", "a,b"], 240),
        "count": rng.integers(0, 90, 240),
        "size": np.where(rng.random(240) < 0.1, np.nan, size),
        "flag": rng.random(240) < 0.5,
        "y": size * 2,
    })  # fmt: skip


CSV = make_table().to_csv(index=False).encode()
LINES = make_table().to_json(orient="records", lines=True, force_ascii=False).encode()
ARRAY = make_table().to_json(orient="records").encode()
FILES: dict[str, bytes | Callable[[], bytes]] = {
    "t.csv.gz": gzip.compress(CSV),
    "t.csv.bz2": bz2.compress(CSV),
    "t.csv.xz": lzma.compress(CSV),
    "t.CSV.zst": pa.Codec("zstd").compress(CSV, asbytes=True),
    "t.csv.zip": zip_file(CSV, "t.csv"),
    "archive.zip": zip_file(CSV, "folder/table.csv", "__MACOSX/folder/._table.csv", "folder/.DS_Store"),
    "t.data": CSV,
    "t.dat.gz": gzip.compress(CSV),
    "table": CSV,
    "cr.csv": CSV.replace(b"\n", b"\r"),
    "cr.utf16.csv": CSV.replace(b"\n", b"\r").decode().encode("utf-16"),
    "t.tab": CSV.decode().encode("utf-16"),
    "t.jsonl": LINES,
    "t.ndjson.xz": lzma.compress(LINES),
    "t.json": ARRAY,
    "pretty.json": json.dumps(json.loads(ARRAY), indent=1).encode(),
    "lines.json": LINES,
    "utf16.json": ARRAY.decode().encode("utf-16"),
    "windows.jsonl": LINES.decode().encode("cp1252"),
    "records.zip": zip_file(LINES, "records.jsonl"),
}


@pytest.mark.parametrize("large", [False, True], ids=["in memory", "column by column"])
@pytest.mark.parametrize("name", FILES)
def test_a_table_is_the_same_in_each_format(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, *, large: bool
) -> None:
    """The snapshot has the digest of the plain CSV, which depends on names, types, values and order."""
    if large:
        monkeypatch.setattr(snapshot, "MAX_CELLS", 100)

    def load(source: Path) -> sources.Dataset:
        config = DataConfig(source=str(source), target="y", time="when")
        return sources.load_dataset(config, tmp_path, tmp_path / "store", None)

    (tmp_path / "plain.csv").write_bytes(CSV)
    (tmp_path / name).write_bytes(FILES[name])
    assert load(tmp_path / name).digest == load(tmp_path / "plain.csv").digest


@pytest.mark.parametrize("text", ["word,y\rone,1\rtwo,2\r", 'word,y\r"a\nb",1\r', "word,y\none\rtwo,1\nthree,2\n"])
def test_the_separator_of_lines_with_carriage_returns(text: str) -> None:
    """At the ends of lines, and within a value with and without quotes."""
    assert formats.detect_separator_of(io.BytesIO(text.encode()).readlines()) == ","


REFUSED = {
    "two.zip": (zip_file(CSV, "a.csv", "b.csv"), "the archive has 2 files: a.csv, b.csv"),
    "none.zip": (zip_file(b""), "the archive has no file"),
    "cut.csv.xz": (lzma.compress(CSV)[:-40], "cannot read the file"),
    "cut.csv.bz2": (bz2.compress(CSV)[:-40], "cannot read the file"),
    "no.zip": (CSV, "cannot read the file: File is not a zip file"),
    "sheet.xlsx": (zip_file(CSV, "xl/workbook.xml"), "the file is an Excel workbook or a ZIP archive"),
    "sheet.csv": (zip_file(CSV, "xl/workbook.xml"), "the file is an Excel workbook or a ZIP archive"),
    "table.dat": (b"\0\1\2" * 40, "unknown file format"),
    "packed.csv": (gzip.compress(CSV), "the file is compressed by gzip, which its name does not say"),
    "database.csv": (b"SQLite format 3\0" + b"\0" * 80, "the file is an SQLite database"),
    "table.txt": (b"PAR1" + b"\0" * 80, "the file is a Parquet file, which its name does not say"),
    "columns.json": (make_table().to_json().encode(), "this is not an object with a value for each column"),
    "numbers.json": (b"[1, 2]", "this is not an object with a value for each column"),
    "cut.json": (ARRAY[:-40], "not readable JSON"),
    "empty.json": (b" \n", "the file is empty"),
    "none.json": (b"[]", "no rows"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_that_is_not_a_table_is_refused(tmp_path: Path, name: str) -> None:
    content, what = REFUSED[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=re.escape(what)) as caught:
        sources.load_dataset(DataConfig(source=name, target="y"), tmp_path, tmp_path / "store", None)
    assert name in caught.value.where
    assert caught.value.remedy


def test_a_faulty_line_of_json_is_named(tmp_path: Path) -> None:
    """The error has the number of the line, and the problem."""
    (tmp_path / "t.jsonl").write_bytes(LINES[:-1] + b"}\n")
    with pytest.raises(DataError, match="not readable JSON") as caught:
        sources.load_dataset(DataConfig(source="t.jsonl", target="y"), tmp_path, tmp_path / "store", None)
    assert caught.value.where.endswith("t.jsonl:240")


@pytest.mark.parametrize("name", ["t.json", "t.jsonl"])
def test_half_a_surrogate_pair_in_json_is_a_replacement_character(tmp_path: Path, name: str) -> None:
    """A cut emoji is half of a pair; complete pairs, and an escaped backslash before such letters, are unchanged."""
    texts = [r"cut \ud83d", r"\uDE00 end", r"\ud83d\ude00", r"a\\ud83d", r"\ud83d\ud83d\ude00"]
    rows = [f'{{"t\\ud83d": "{text}", "y": {place}}}' for place, text in enumerate(texts)]
    (tmp_path / name).write_text("[" + ",".join(rows) + "]" if name == "t.json" else "\n".join(rows))
    table = formats.read_file(tmp_path / name, None)
    assert table["t\ufffd"].to_pylist() == ["cut \ufffd", "\ufffd end", "\U0001f600", r"a\ud83d", "\ufffd\U0001f600"]


def test_a_json_column_of_several_types_is_text(tmp_path: Path) -> None:
    """Numbers and booleans among words become categories; a number beyond 64 bits is read."""
    rows = [{"mixed": value, "big": 10**20, "y": place} for place, value in enumerate([5, "a", True, 2.0, None])]
    (tmp_path / "t.json").write_text(json.dumps(rows))
    dataset = sources.load_dataset(DataConfig(source="t.json", target="y"), tmp_path, tmp_path / "store", None)
    table = sources.read_snapshot(dataset, tmp_path / "store")
    assert table["mixed"].tolist()[:4] == ["5", "a", "true", "2"]
    assert table["mixed"].isna().tolist() == [False] * 4 + [True]
    assert table["big"].tolist() == [1e20] * 5


def test_brackets_in_a_project_path_are_not_a_glob_pattern(tmp_path: Path) -> None:
    """Brackets in the path of the project are not a pattern; a pattern with an absolute path is."""
    project = tmp_path / "houses [2026]"
    (project / "data").mkdir(parents=True)
    for name in ("b.csv", "a.csv"):
        (project / "data" / name).write_text("a,b\n1,2\n")
    files = [project / "data" / name for name in ("a.csv", "b.csv")]
    assert formats.list_files("data/*.csv", project) == files
    assert formats.list_files(f"{tmp_path}/houses*/data/?.csv", tmp_path / "elsewhere") == files


def test_hidden_files_of_a_folder_are_no_tables(tmp_path: Path) -> None:
    """macOS adds a file ._a.csv to each copied a.csv; a folder with the name of a table is no table either."""
    (tmp_path / "rows" / "old.csv").mkdir(parents=True)
    for name in ("a.csv", "._a.csv", ".towline.json"):
        (tmp_path / "rows" / name).write_text("a,b\n1,2\n")
    for source in ("rows", "rows/*", "rows/*.csv"):
        assert formats.list_files(source, tmp_path) == [tmp_path / "rows" / "a.csv"]
    assert formats.list_files("rows/.*.csv", tmp_path) == [tmp_path / "rows" / "._a.csv"]


def test_half_a_character_of_utf16_is_an_error(tmp_path: Path) -> None:
    """As in a file that was not copied to its end."""
    path = tmp_path / "t.csv"
    path.write_bytes("y,x\n1,2\n".encode("utf-16")[:-1])
    with pytest.raises(DataError, match="not a text in UTF-16: truncated data"):
        read_as_utf8(path)


@pytest.mark.parametrize(
    ("raw", "text", "encoding"),
    [
        ("Köln".encode("cp1252"), "Köln", "Windows-1252"),
        (b"Gar\x8dn", "Gar\x8dn", "Windows-1252"),
        ("Köln ".encode() + "Köln".encode("cp1252"), "Köln Köln", "UTF-8, in parts Windows-1252"),
        ("Zoë ".encode("cp1252") + "Ann’s".encode(), "Zoë Ann’s", "UTF-8, in parts Windows-1252"),
        ("Köln ".encode() + b"cut \xe2\x80", "Köln cut â€", "UTF-8, in parts Windows-1252"),
        (b"y,x\n" + b"a" * 2000 + "слово".encode("cp1251"), None, "Windows-1252"),
        ("y,слово\n".encode("cp1251") + b"1,2\n" * 2000, None, None),
        ("слово и дело".encode("cp1251"), None, None),
        ("слово ".encode() + "и дело".encode("cp1251"), None, None),
    ],
)
def test_the_encoding_of_a_text(tmp_path: Path, raw: bytes, text: str | None, encoding: str | None) -> None:
    """A few bytes that no encoding explains do not stop a run; a text in another alphabet does."""
    path = tmp_path / "t.csv"
    path.write_bytes(raw)
    if encoding is None:
        with pytest.raises(DataError, match="neither UTF-8 nor Windows-1252"):
            read_as_utf8(path)
        return
    converted, noted = read_as_utf8(path)
    assert noted == encoding
    assert text in (None, converted.decode())
