"""Files of every format are scored like a table of their rows, whatever the size of shards."""

import bz2
import codecs
import csv
import gzip
import io
import lzma
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.batch import make_customer_table, score, use_small_shards
from tests.support.checks import at_least_one
from towline.batch.input import records
from towline.batch.input.source import open_source
from towline.errors import DataError
from towline.inference.predictor import Model


def table_of(rows: int = 120) -> pd.DataFrame:
    table = make_customer_table(rows, seed=9).drop(columns="bought")
    return table.assign(id=np.arange(rows), note=['x "y"', "", "ü", "a\nb"] * (rows // 4))


def read_output(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, float_precision="round_trip", keep_default_na=False)


def check_equal(model: Model, table: pd.DataFrame, scored: pd.DataFrame) -> None:
    """The file has the predictions of the table, to the last bit, in the order of the rows."""
    features = model.to_features(table)
    predictions = model.predict_frame(features)
    assert scored["prediction"].astype(str).tolist() == [str(label) for label in predictions.labels]
    assert predictions.probabilities is not None
    assert np.array_equal(scored["probability_yes"].to_numpy(float), predictions.probabilities[:, 1])
    assert scored["id"].astype(int).tolist() == table["id"].tolist()


def spaced_quotes(text: str) -> str:
    """The CSV with quotes around each value, and a space before each quoted value but the first."""
    table = pd.read_csv(io.StringIO(text), dtype=str, keep_default_na=False)
    return table.to_csv(index=False, quoting=csv.QUOTE_ALL).replace('","', '", "')


ENCODINGS: dict[str, Any] = {
    "plain": lambda text: text.encode(),
    "CRLF": lambda text: re.sub(r'\n(?=(?:[^"]*"[^"]*")*[^"]*$)', "\r\n", text).encode(),
    "CR": lambda text: re.sub(r'\n(?=(?:[^"]*"[^"]*")*[^"]*$)', "\r", text).encode(),
    "no newline at the end": lambda text: text.rstrip("\n").encode(),
    "BOM": lambda text: codecs.BOM_UTF8 + text.encode(),
    "blank lines": lambda text: ("\n" + text + "\n\n").encode(),
    "a title": lambda text: ("Customers of 2026\n\n" + text).encode(),
    "comments": lambda text: codecs.BOM_UTF8 + ("# exported, by a tool\n# 2026\n" + text).encode(),
    "a separator line": lambda text: ("sep=,\n" + text).encode(),
    "UTF-16": lambda text: text.encode("utf-16"),
    "UTF-16-BE": lambda text: text.encode("utf-16-be"),
    "Windows-1252": lambda text: text.encode("cp1252"),
    "UTF-8, in parts Windows-1252": lambda text: b"".join(
        line.encode("cp1252" if number % 9 == 5 else "utf-8") for number, line in enumerate(text.splitlines(True))
    ),
    "spaces before quotes": lambda text: spaced_quotes(text).encode(),
    "a quote within a field": lambda text: text.replace(",ü\n", ',5" pipe\n').encode(),
    "an inch within a quoted file": lambda text: text.replace(",ü\n", ',5"\n').encode(),
}


@pytest.mark.parametrize("name", ["in.csv", "in.csv.gz", "in.csv.zst", "in.utf16.csv"])
def test_a_csv_with_a_header_only_has_no_rows(tmp_path: Path, model: Model, name: str) -> None:
    """However its text is read."""
    text = "zip,word,size,flag,day\n"
    raw = text.encode("utf-16" if "utf16" in name else "utf-8")
    codec = {"gz": "gzip", "zst": "zstd"}.get(name.rpartition(".")[2])
    (tmp_path / name).write_bytes(pa.Codec(codec).compress(raw, asbytes=True) if codec else raw)
    done = score(model, tmp_path / name, tmp_path / "out.csv")
    assert (done.rows, done.rows_in) == (0, 0)


@pytest.mark.parametrize("rows", [0, 1])
def test_a_header_that_fills_a_block_is_no_row(
    tmp_path: Path, model: Model, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    """The next block has no header."""
    monkeypatch.setattr(records, "BLOCK_BYTES", 25)
    (tmp_path / "in.csv.gz").write_bytes(gzip.compress(b"zip,word,size,flag,day\n" + b"501,a,1,True,\n" * rows))
    assert score(model, tmp_path / "in.csv.gz", tmp_path / "out.csv").rows == rows


@pytest.mark.parametrize("name", ENCODINGS)
def test_text_of_any_form_is_read(tmp_path: Path, model: Model, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Newlines, byte order marks, lines before the header, encodings and stray quotes do not change a prediction."""
    use_small_shards(monkeypatch)
    table, source = table_of(), tmp_path / "in.csv"
    source.write_bytes(ENCODINGS[name](table.to_csv(index=False)))
    result = score(model, source, tmp_path / "out.csv")
    check_equal(model, table, read_output(tmp_path / "out.csv"))
    assert (result.rows, result.rows_in, result.quarantined) == (120, 120, 0)


@pytest.mark.parametrize("separator", [",", "\t"])
@pytest.mark.parametrize("end", ["csv", "csv.gz"])
def test_rows_with_names_as_r_writes_them(
    tmp_path: Path, model: Model, monkeypatch: pytest.MonkeyPatch, separator: str, end: str
) -> None:
    """The header has no name for them; in the output this name is empty, so that the columns are aligned."""
    use_small_shards(monkeypatch)
    table, source = table_of(), tmp_path / f"in.{end}"
    names = pd.Index([str(number + 1) for number in range(len(table))])
    text = table.set_index(names).to_csv(sep=separator, quoting=csv.QUOTE_NONNUMERIC).removeprefix(f'""{separator}')
    source.write_bytes(gzip.compress(text.encode()) if end.endswith(".gz") else text.encode())
    result = score(model, source, tmp_path / "out.csv")
    assert (result.rows, result.quarantined) == (len(table), 0)
    scored = pd.read_csv(
        tmp_path / "out.csv", sep=separator, float_precision="round_trip", keep_default_na=False, index_col=0
    )
    check_equal(model, table, scored)
    assert scored.index.astype(str).tolist() == names.tolist()


@pytest.mark.parametrize("name", ["in.dat", "in.csv.gz"])
def test_columns_aligned_by_blanks(tmp_path: Path, model: Model, name: str) -> None:
    """Aligned columns are read like those of a CSV."""
    table = table_of().drop(columns="note")
    table["word"] = table["word"].replace({'a "b", c': "T", "two\nlines": "-5"})
    rows = [table.columns, *table.assign(day=table["day"].dt.strftime("%Y-%m-%dT%H:%M")).astype(str).to_numpy()]
    text = "\n".join("".join(f"{'?' if value == 'nan' else value:>18}" for value in row) for row in rows)
    source = tmp_path / name
    source.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    score(model, source, tmp_path / "out.csv")
    check_equal(model, table, read_output(tmp_path / "out.csv"))


@pytest.mark.parametrize("kind", ["csv", "csv.gz", "csv.zst", "jsonl.gz"])
@pytest.mark.parametrize("encoding", ["cp1252", "utf-16"])
@pytest.mark.parametrize("late", [False, True])
def test_other_encodings_in_header_values_and_compressed_files(
    tmp_path: Path, model: Model, kind: str, encoding: str, *, late: bool
) -> None:
    """Names and values have accents; ``late``: the first accent is after the part that is read first."""
    table, source, output = table_of(), tmp_path / f"in.{kind}", tmp_path / "out.csv"
    note = ["Größe"] * len(table)
    if late:
        note = ["x" * 20_000] * (len(table) - 1) + ["Größe"]
    table = table.assign(**{"note" if late else "Vermerk für später": note})
    text = (
        table.to_csv(index=False)
        if "csv" in kind
        else table.to_json(orient="records", lines=True, date_format="iso", force_ascii=False)
    )
    packed = {"gz": gzip.compress, "zst": lambda data: pa.Codec("zstd").compress(data, asbytes=True)}
    source.write_bytes(packed.get(kind.rpartition(".")[2], bytes)(text.encode(encoding)))
    result = score(model, source, output)
    assert (result.rows, result.quarantined) == (len(table), 0)
    check_equal(model, table, read_output(output))
    assert "Größe" in output.read_text()


KINDS = [
    "csv", "csv.gz", "csv.zst", "csv.bz2", "csv.xz", "csv.zip", "data", "data.gz", "parquet", "jsonl", "jsonl.gz",
    "jsonl.xz", "json", "json.gz",
]  # fmt: skip


def zip_file(data: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("table.csv", data)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", KINDS)
def test_every_format_gives_the_same_predictions(
    tmp_path: Path, model: Model, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    use_small_shards(monkeypatch)
    table, source = table_of(), tmp_path / f"in.{kind}"
    if kind == "parquet":
        table.to_parquet(source, row_group_size=13)
    else:
        text = (
            table.to_json(orient="records", lines="jsonl" in kind, date_format="iso")
            if "json" in kind
            else table.to_csv(index=False)
        )
        packed = {
            "gz": gzip.compress, "zst": lambda data: pa.Codec("zstd").compress(data, asbytes=True),
            "bz2": bz2.compress, "xz": lzma.compress, "zip": zip_file,
        }  # fmt: skip
        source.write_bytes(packed.get(kind.rpartition(".")[2], bytes)(text.encode()))
    score(model, source, tmp_path / "out.csv", keep=("id",))
    check_equal(model, table, read_output(tmp_path / "out.csv"))


@pytest.mark.parametrize("target", ["csv", "csv.gz", "jsonl", "parquet", "folder"])
def test_shards_do_not_change_the_output(
    tmp_path: Path, model: Model, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    """Rows keep their order. Text has the same bytes."""
    source = tmp_path / "in.csv"
    table_of().to_csv(source, index=False)
    output = tmp_path / ("one" if target == "folder" else f"one.{target}")
    score(model, source, output)
    use_small_shards(monkeypatch)
    assert len(open_source(str(source), [source], None, model.contract, tmp_path / "copies").shards) > 5
    other = tmp_path / output.name.replace("one", "many")
    score(model, source, other)
    if target in ("folder", "parquet"):
        assert pq.read_table(other).equals(pq.read_table(output))
    else:
        opened = gzip.open if target.endswith("gz") else open
        assert opened(other, "rb").read() == opened(output, "rb").read()


def test_several_files_are_one_table(tmp_path: Path, model: Model) -> None:
    """A folder and a pattern are read in the order of the names."""
    table = table_of()
    for part in range(3):
        table[40 * part : 40 * part + 40].to_csv(tmp_path / f"part{part}.csv", index=False)
    score(model, tmp_path / "part*.csv", tmp_path / "out" / "out.csv")
    check_equal(model, table, read_output(tmp_path / "out" / "out.csv"))
    score(model, tmp_path, tmp_path / "out" / "folder.csv")
    check_equal(model, table, read_output(tmp_path / "out" / "folder.csv"))


@pytest.mark.parametrize("kind", ["csv", "csv.gz", "parquet"])
def test_files_may_have_their_columns_in_another_order(tmp_path: Path, model: Model, kind: str) -> None:
    """As in training; the output has the order of the first file."""
    table, folder = table_of(), tmp_path / "parts"
    folder.mkdir()
    for number, start in enumerate(range(0, len(table), 40)):
        part = table[start : start + 40]
        part = part[part.columns[::-1]] if number % 2 else part
        part.to_parquet(folder / f"{number}.parquet") if kind == "parquet" else part.to_csv(
            folder / f"{number}.{kind}", index=False, sep=";"
        )
    result = score(model, folder, tmp_path / "out.csv")
    assert (result.rows, result.quarantined) == (len(table), 0)
    scored = pd.read_csv(
        tmp_path / "out.csv", sep="," if kind == "parquet" else ";", float_precision="round_trip", keep_default_na=False
    )
    assert scored.columns[: table.shape[1]].tolist() == table.columns.tolist()
    assert scored["note"].tolist() == table["note"].tolist()
    check_equal(model, table, scored)


def test_one_row_no_row_and_no_bytes(tmp_path: Path, model: Model) -> None:
    """A file with only a header gives only a header; an empty file is an error that names it."""
    table, source, output = table_of(4)[:1], tmp_path / "in.csv", tmp_path / "out.csv"
    table.to_csv(source, index=False)
    assert score(model, source, output).rows == 1
    table[:0].to_csv(source, index=False)
    assert score(model, source, output, overwrite=True).rows == 0
    assert (
        output.read_text() == "zip,word,size,flag,day,id,note,prediction,probability_no,probability_yes,model,version\n"
    )
    table[:0].to_parquet(tmp_path / "in.parquet")
    score(model, tmp_path / "in.parquet", tmp_path / "out.parquet")
    assert pq.read_table(tmp_path / "out.parquet").num_rows == 0
    score(model, tmp_path / "in.parquet", tmp_path / "folder")
    assert pq.read_table(tmp_path / "folder").num_rows == 0
    for name in ("in.csv", "in.parquet", "in.jsonl"):
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(DataError) as caught:
            score(model, tmp_path / name, tmp_path / "other.csv")
        assert name in caught.value.where


def test_a_wide_table(tmp_path: Path, model: Model) -> None:
    table = table_of(40)
    wide = pd.concat([table, pd.DataFrame(np.ones((40, 750)), columns=[f"w{number}" for number in range(750)])], axis=1)
    wide.to_csv(tmp_path / "in.csv", index=False)
    score(model, tmp_path / "in.csv", tmp_path / "out.csv")
    scored = read_output(tmp_path / "out.csv")
    assert scored.shape == (40, 757 + 5)
    check_equal(model, table, scored)


def spoil_names(folder: Path, table: pd.DataFrame) -> Path:
    table.drop(columns="size").to_csv(folder / "in.csv", index=False)
    return folder / "in.csv"


def spoil_second_file(folder: Path, table: pd.DataFrame) -> Path:
    table.to_parquet(folder / "part0.parquet")
    table.assign(size=table["size"].astype(str)).to_parquet(folder / "part1.parquet")
    return folder / "part*.parquet"


def spoil_second_header(folder: Path, table: pd.DataFrame) -> Path:
    table.to_csv(folder / "part0.csv", index=False)
    table.rename(columns={"note": "remark"}).to_csv(folder / "part1.csv", index=False)
    return folder / "part*.csv"


def spoil_type(folder: Path, table: pd.DataFrame) -> Path:
    table.assign(size=[[1]] * len(table)).to_parquet(folder / "in.parquet")
    return folder / "in.parquet"


def spoil_bytes(folder: Path, table: pd.DataFrame) -> Path:
    table.to_parquet(folder / "in.parquet")
    content = (folder / "in.parquet").read_bytes()
    (folder / "in.parquet").write_bytes(content[: len(content) // 2])
    return folder / "in.parquet"


SPOILED = [
    (spoil_names, "'size'"), (spoil_second_file, "'size' is"), (spoil_second_header, "remark"),
    (spoil_type, "'size' is"), (spoil_bytes, "not a readable Parquet file"),
]  # fmt: skip


@pytest.mark.parametrize(("spoil", "named"), SPOILED, ids=lambda case: getattr(case, "__name__", ""))
def test_an_invalid_source_is_refused_before_the_first_row(
    tmp_path: Path, model: Model, spoil: Any, named: str
) -> None:
    """An earlier output remains."""
    output = tmp_path / "out" / "out.csv"
    output.parent.mkdir()
    output.write_text("old")
    source = spoil(tmp_path, table_of())
    with pytest.raises(DataError, match=named):
        score(model, source, output, overwrite=True)
    assert [(path.name, path.read_text()) for path in at_least_one(output.parent.iterdir())] == [("out.csv", "old")]
