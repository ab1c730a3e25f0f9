"""Batch scoring copies the columns of a file and adds the predictions."""

import gzip
import json
import math
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.batch import score
from towline.errors import ConfigError, DataError
from towline.inference.predictor import Model

HEADER = "zip,word,size,flag,day,country,price,model\n"
LINES = (
    '00501,T,1.50,true,2025-01-02,NA,1.10,x\n501,"a, b",,TRUE,,,,\n'
    '"00501","two\nlines",+7,f,2025-01-03 10:00,null,2.50,-5\n'
)


def added(line: str, separator: str = ",") -> list[str]:
    return line.split(separator)[-5:]


@pytest.mark.parametrize("suffix", ["csv", "csv.gz", "csv.zst", "txt"])
def test_columns_of_a_csv_are_copied_unchanged(tmp_path: Path, model: Model, suffix: str) -> None:
    """Leading zeros, NA, booleans, decimals, quotes and line breaks are written as in the input."""
    source, output = tmp_path / f"in.{suffix}", tmp_path / f"out.{suffix}"
    text = (HEADER + LINES).encode()
    packed = pa.Codec("zstd").compress(text, asbytes=True)
    source.write_bytes({"csv.gz": gzip.compress(text), "csv.zst": packed}.get(suffix, text))
    result = score(model, source, output, prefix="p_")
    compression = {"csv.gz": "gzip", "csv.zst": "zstd"}.get(suffix)
    with pa.input_stream(str(output), compression=compression) as stream:
        scored = stream.read().decode()
    names = "p_prediction,p_probability_no,p_probability_yes,p_model,p_version"
    assert result.columns == tuple(names.split(","))
    lines = scored.split("\n")
    assert lines[0] == f"{HEADER.strip()},{names}"
    assert [",".join(line.split(",")[:-5]) for line in (lines[1], lines[2])] == LINES.split("\n")[:2]
    assert f'"00501","two\nlines",+7,f,2025-01-03 10:00,null,2.50,-5,{",".join(added(lines[4]))}\n' in scored
    assert {added(line)[3] for line in (lines[1], lines[2], lines[4])} == {"house-value"}


@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_the_separator_of_the_input_is_recognized(tmp_path: Path, model: Model, separator: str) -> None:
    """The output has the same separator; the option takes precedence, and the error names it."""
    source, output = tmp_path / "in.csv", tmp_path / "out.csv"
    rows = [["zip", "word", '"a, b"', "size", "flag", "day"], ["00501", "T", '"1,5"', "2", "", ""]]
    source.write_text("".join(separator.join(row) + "\n" for row in rows))
    score(model, source, output, prefix="p_")
    assert added(output.read_text().splitlines()[1], separator)[3:] == ["house-value", "3"]
    with pytest.raises(DataError) as caught:
        score(model, source, output, separator="#")
    assert "--separator" in caught.value.remedy


def make_typed_table() -> pa.Table:
    return pa.table(
        {
            "zip": ["00501", "501"], "word": ["T", None], "size": pa.array([1.5, None], pa.float32()),
            "flag": pa.array([True, None]), "day": pa.array([1, None], pa.timestamp("ms")),
            "id": pa.array([2**60 + 1, None]), "small": pa.array([1, None], pa.int8()), "list": [[1, 2], None],
            "nothing": pa.nulls(2), "price": pa.array([1, None], pa.decimal128(9, 2)),
        }
    )  # fmt: skip


def test_types_of_a_parquet_file_are_preserved(tmp_path: Path, model: Model) -> None:
    """Integers with nulls, booleans, decimals, lists and times keep their type in Parquet, and their text in a CSV."""
    table = make_typed_table()
    pq.write_table(table, tmp_path / "in.parquet")
    score(model, tmp_path / "in.parquet", tmp_path / "out.parquet")
    copied = pq.read_table(tmp_path / "out.parquet").select(table.column_names)
    assert copied.schema.equals(table.schema)
    assert copied.equals(table)
    score(model, tmp_path / "in.parquet", tmp_path / "out.csv")
    frame = pd.read_csv(tmp_path / "out.csv", dtype=str, keep_default_na=False)
    assert frame.loc[0, ["id", "flag", "small", "list", "price"]].tolist() == [
        str(2**60 + 1), "True", "1", "[1, 2]", "1.00",
    ]  # fmt: skip
    assert frame.iloc[1, 2:10].tolist() == [""] * 8


@pytest.mark.parametrize("name", ["out.csv", "out.jsonl", "out.parquet"])
def test_string_views_are_texts(tmp_path: Path, model: Model, name: str) -> None:
    """A feature and a copied column may be of this type, which DataFusion and others write."""
    table = make_typed_table().append_column("label", pa.array(["a", None], pa.string_view()))
    for place, field in enumerate(table.schema):
        if field.type == pa.string():
            table = table.set_column(place, field.name, table.column(place).cast(pa.string_view()))
    pq.write_table(table, tmp_path / "in.parquet")
    score(model, tmp_path / "in.parquet", tmp_path / name)
    if name == "out.parquet":
        assert pq.read_table(tmp_path / name)["label"].to_pylist() == ["a", None]
    else:
        assert "a" in (tmp_path / name).read_text()


@pytest.mark.parametrize("name", ["out.csv", "out.jsonl", "out.parquet", "parts"])
def test_uuids_are_copied_as_text(tmp_path: Path, model: Model, name: str) -> None:
    """Also as a partition column."""
    table = make_typed_table().append_column("uuid", pa.array([bytes([7] * 16), None], pa.uuid()))
    pq.write_table(table, tmp_path / "in.parquet")
    score(model, tmp_path / "in.parquet", tmp_path / name, partition_by="uuid" if name == "parts" else None)
    text = "07070707-0707-0707-0707-070707070707"
    if name == "parts":
        folders = {path.name for path in (tmp_path / name).iterdir() if path.is_dir()}
        assert folders == {f"uuid={text}", "uuid=__HIVE_DEFAULT_PARTITION__"}
    elif name == "out.parquet":
        assert pq.read_table(tmp_path / name)["uuid"].to_pylist() == [text, None]
    else:
        assert text in (tmp_path / name).read_text()


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary(1)])
def test_bytes_are_refused_in_a_text_before_scoring(tmp_path: Path, model: Model, kind: pa.DataType) -> None:
    """Bytes have no text; Parquet can hold them, and --keep can leave them out."""
    table = make_typed_table().append_column("blob", pa.array([b"\xff", None], kind))
    pq.write_table(table, tmp_path / "in.parquet")
    for name in ("out.csv", "out.jsonl"):
        with pytest.raises(DataError, match="column 'blob' holds bytes") as caught:
            score(model, tmp_path / "in.parquet", tmp_path / name)
        assert "--keep" in caught.value.remedy
        assert score(model, tmp_path / "in.parquet", tmp_path / name, keep=("zip",)).rows == 2
    score(model, tmp_path / "in.parquet", tmp_path / "out.parquet")
    assert pq.read_table(tmp_path / "out.parquet")["blob"].to_pylist() == [b"\xff", None]


def test_a_time_beyond_the_year_9999_is_null_in_a_text(tmp_path: Path, model: Model) -> None:
    """A CSV has an empty field, Parquet the date. A bad row with such a date is written to the quarantine file."""
    far = pa.array([6_700_000, 18_262, 6_700_000], pa.int32()).cast(pa.date32())
    table = pa.table({
        "zip": ["00501"] * 3, "word": ["T"] * 3, "size": ["1.5", "2", "?!"], "flag": [True] * 3, "day": far,
        "until": far,
    })  # fmt: skip
    pq.write_table(table, tmp_path / "in.parquet")
    for name in ("out.csv", "out.jsonl", "out.parquet"):
        result = score(model, tmp_path / "in.parquet", tmp_path / name)
        assert (result.rows, result.quarantined) == (2, 1)
    assert pd.read_csv(tmp_path / "out.csv", keep_default_na=False)["until"].tolist() == ["", "2020-01-01"]
    lines = (tmp_path / "out.jsonl").read_text().splitlines()
    assert [json.loads(line)["until"] for line in lines] == [None, "2020-01-01"]
    assert pq.read_table(tmp_path / "out.parquet")["until"].equals(table["until"].slice(0, 2))
    score(model, tmp_path / "in.parquet", tmp_path / "out", partition_by="until")
    folders = {path.name for path in (tmp_path / "out").iterdir() if path.is_dir()}
    assert folders == {"until=2020-01-01", "until=__HIVE_DEFAULT_PARTITION__"}


def test_json_lines_are_copied_unchanged(tmp_path: Path, model: Model) -> None:
    """The text of each object is unchanged, also of an empty one; other formats become objects."""
    rows = ['{"zip":"00501" , "word":"T","size":1.50,"flag":null,"day":"2025-01-02","nested":{"a":[1]}}', "{}"]
    (tmp_path / "in.jsonl").write_text("\n".join(rows))
    result = score(model, tmp_path / "in.jsonl", tmp_path / "out.jsonl", columns=("prediction", "version"))
    (line,) = (tmp_path / "out.jsonl").read_text().splitlines()
    assert line.startswith(rows[0][:-1])
    assert json.loads(line)["version"] == 3
    assert (result.rows, result.quarantined) == (1, 1)  # the empty object is a bad row
    pq.write_table(make_typed_table(), tmp_path / "in.parquet")
    score(model, tmp_path / "in.parquet", tmp_path / "typed.jsonl")
    first = json.loads((tmp_path / "typed.jsonl").read_text().splitlines()[0])
    assert (first["id"], first["flag"], first["list"], first["nothing"]) == (2**60 + 1, True, [1, 2], None)


def test_nan_in_json_lines_is_null(tmp_path: Path, model: Model) -> None:
    """Python's json module writes NaN; in a table for training it is null, too."""
    row = '{"zip":"00501","word":"T","size":%s,"flag":null,"day":"2025-01-02"}\n'
    (tmp_path / "in.jsonl").write_text(row % "NaN" + row % "null" + row % "-Infinity")
    result = score(model, tmp_path / "in.jsonl", tmp_path / "out.csv", columns=("prediction", "probability_yes"))
    assert (result.rows, result.quarantined) == (3, 0)
    assert pd.read_csv(tmp_path / "out.csv")["probability_yes"].nunique() == 1


def test_half_a_surrogate_pair_in_json_lines_is_a_replacement_character(tmp_path: Path, model: Model) -> None:
    """As in a table for training; also in a name."""
    row = r'{"zip":"00501","word":"T\ud83d","size":1,"flag":null,"day":"2025-01-02","note\ud83d":"ü \ud83d"}'
    (tmp_path / "in.jsonl").write_text(row + "\n")
    result = score(model, tmp_path / "in.jsonl", tmp_path / "out.csv")
    assert (result.rows, result.quarantined) == (1, 0)
    assert pd.read_csv(tmp_path / "out.csv")["note\ufffd"].tolist() == ["ü \ufffd"]
    score(model, tmp_path / "in.jsonl", tmp_path / "out.parquet")
    assert pq.read_table(tmp_path / "out.parquet")["word"].to_pylist() == ["T\ufffd"]


def test_a_conflicting_column_name_is_refused_before_scoring(tmp_path: Path, model: Model) -> None:
    """The error names the option --prefix."""
    source = tmp_path / "in.csv"
    source.write_text((HEADER + LINES).replace("model", "prediction", 1))
    with pytest.raises(DataError, match="column 'prediction'") as caught:
        score(model, source, tmp_path / "out.csv")
    assert "--prefix" in caught.value.remedy
    assert [path.name for path in tmp_path.iterdir()] == ["in.csv"]


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_a_column_called_model_is_copied(tmp_path: Path, model: Model, form: str) -> None:
    """The added column with the name of the model then gets a prefix, and only then."""
    source, output = tmp_path / "in.csv", tmp_path / f"out.{form}"
    source.write_text(HEADER + LINES)
    result = score(model, source, output)
    probabilities = ("probability_no", "probability_yes")
    assert result.columns == ("prediction", *probabilities, "scored_model", "version")
    written = pd.read_csv(output) if form == "csv" else pd.read_parquet(output)
    assert written["model"].tolist() == pd.read_csv(source)["model"].tolist()
    assert set(written["scored_model"]) == {model.name}
    result = score(model, source, tmp_path / f"few.{form}", keep=("zip",))
    assert result.columns == ("prediction", *probabilities, "model", "version")


@pytest.mark.parametrize("way", ["same", "link", "dots"])
def test_the_input_is_never_replaced(tmp_path: Path, model: Model, way: str) -> None:
    """The output may not be another path to the input."""
    source = tmp_path / "in.csv"
    source.write_text(HEADER + LINES)
    (tmp_path / "link.csv").symlink_to(source)
    output = {"same": source, "link": tmp_path / "link.csv", "dots": tmp_path / ".." / tmp_path.name / "in.csv"}[way]
    with pytest.raises(ConfigError, match="would replace the input"):
        score(model, source, output, prefix="p_", overwrite=True)
    assert source.read_text() == HEADER + LINES


@pytest.mark.parametrize(("source", "output"), [("in/*.csv", "in/b.csv"), ("in", "in/b.csv"), ("in/b.csv", "in"),
                                                ("in/*.csv", ".")])  # fmt: skip
def test_no_file_of_several_is_replaced(tmp_path: Path, model: Model, source: str, output: str) -> None:
    """Nor is a folder that holds an input."""
    folder = tmp_path / "home" / "in"
    folder.mkdir(parents=True)
    for name in ("a.csv", "b.csv"):
        (folder / name).write_text(HEADER + LINES)
    with pytest.raises(ConfigError, match="would replace the input"):
        score(model, tmp_path / "home" / source, tmp_path / "home" / output, prefix="p_", overwrite=True)
    assert [path.read_text() for path in sorted(folder.iterdir())] == [HEADER + LINES] * 2


def test_a_partition_has_columns_beside_its_own(tmp_path: Path, model: Model) -> None:
    """A Parquet file without columns has no rows."""
    (tmp_path / "in.csv").write_text(HEADER + LINES)
    with pytest.raises(ConfigError, match="no column would be written beside"):
        score(model, tmp_path / "in.csv", tmp_path / "out", keep=("zip",), columns=(), partition_by="zip")


def test_a_name_that_is_too_long_is_named(tmp_path: Path, model: Model) -> None:
    (tmp_path / "in.csv").write_text(HEADER + LINES)
    with pytest.raises(ConfigError, match="longer than 200 bytes"):
        score(model, tmp_path / "in.csv", tmp_path / f"{'n' * 240}.csv", prefix="p_")
    assert score(model, tmp_path / "in.csv", tmp_path / f"{'n' * 196}.csv", prefix="p_").rows == 3


def test_an_output_is_not_written_among_the_inputs(tmp_path: Path, model: Model) -> None:
    """The next run would read it as an input."""
    (tmp_path / "in.csv").write_text(HEADER + LINES)
    with pytest.raises(ConfigError, match="the next run would read it"):
        score(model, tmp_path, tmp_path / "out.csv", prefix="p_")
    assert score(model, tmp_path, tmp_path / "out" / "out.csv", prefix="p_").rows == 3


def test_a_folder_with_other_files_is_not_replaced(tmp_path: Path, model: Model) -> None:
    """Only a folder of Parquet files can be an earlier output."""
    (tmp_path / "in.csv").write_text(HEADER + LINES)
    output = tmp_path / "out"
    score(model, tmp_path / "in.csv", output, prefix="p_")
    (output / "_SUCCESS").touch()
    score(model, tmp_path / "in.csv", output, prefix="q_", overwrite=True)
    (output / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="replaced as a whole") as refused:
        score(model, tmp_path / "in.csv", output, prefix="p_", overwrite=True)
    assert refused.value.where == str(output / "notes.txt")


def test_formulas_are_escaped_with_safe_csv(tmp_path: Path, model: Model) -> None:
    """Numbers remain numbers. By default the text of the file is not changed."""
    source = tmp_path / "in.csv"
    source.write_text("zip,word,=cmd,size,flag,day\n=1+1,@x,+z,,,\n-5,-5,+5.5,,,\n")
    score(model, source, tmp_path / "plain.csv")
    assert (tmp_path / "plain.csv").read_text().startswith("zip,word,=cmd,size,flag,day,")
    score(model, source, tmp_path / "safe.csv", safe_csv=True)
    lines = [line.split(",")[:3] for line in (tmp_path / "safe.csv").read_text().splitlines()]
    assert lines == [["zip", "word", "'=cmd"], ["'=1+1", "'@x", "'+z"], ["-5", "-5", "+5.5"]]


def test_columns_are_chosen(tmp_path: Path, model: Model) -> None:
    """``keep`` names columns of the input, ``columns`` added ones; an unknown name is refused with a suggestion."""
    source = tmp_path / "in.csv"
    source.write_text(HEADER + LINES)
    score(model, source, tmp_path / "out.csv", keep=("word", "zip"), columns=("prediction",))
    frame = pd.read_csv(tmp_path / "out.csv", dtype=str)
    assert list(frame) == ["word", "zip", "prediction"]
    assert frame["word"].tolist() == ["T", "a, b", "two\nlines"]
    for option, named in (("keep", "zipp"), ("columns", "predictions")):
        with pytest.raises(ConfigError, match=named) as caught:
            score(model, source, tmp_path / "other.csv", **{option: (named,)})
        assert f"did you mean {named[:-1]}?" in caught.value.remedy


def test_a_folder_is_partitioned(tmp_path: Path, model: Model) -> None:
    """A name without a suffix is a folder of Parquet files."""
    source = tmp_path / "in.csv"
    source.write_text(HEADER + LINES)
    score(model, source, tmp_path / "out", partition_by="zip", prefix="p_")
    assert sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.parquet")) == [
        "zip=00501/part-000000.parquet", "zip=501/part-000000.parquet",
    ]  # fmt: skip
    table = pq.read_table(tmp_path / "out" / "zip=00501" / "part-000000.parquet", partitioning=None)
    assert table["price"].to_pylist() == ["1.10", "2.50"]
    assert "zip" not in table.column_names  # the name of the folder has the value


def test_a_partition_by_lists_is_refused_before_scoring(tmp_path: Path, model: Model) -> None:
    table = make_typed_table()
    pq.write_table(table.append_column("tags", pa.array([["a"]] * len(table))), tmp_path / "in.parquet")
    with pytest.raises(ConfigError, match="'tags' has lists or structs"):
        score(model, tmp_path / "in.parquet", tmp_path / "out", partition_by="tags")


def test_each_row_is_in_one_partition(tmp_path: Path, model: Model) -> None:
    """A float column is partitioned by its values: NaN has the folder of null, and -0.0 that of 0.0."""
    keys = [1.0, math.nan, -0.0, 0.0, None, math.nan, 1.0]
    table = pa.table({
        "zip": ["00501"] * 7, "word": ["T"] * 7, "size": [1.0] * 7, "flag": [True] * 7, "day": ["2025-01-02"] * 7,
        "key": pa.array(keys, pa.float32()), "id": range(7),
    })  # fmt: skip
    pq.write_table(table, tmp_path / "in.parquet")
    score(model, tmp_path / "in.parquet", tmp_path / "out", partition_by="key")
    written = {
        path.parent.name: pq.read_table(path, partitioning=None)["id"].to_pylist()
        for path in (tmp_path / "out").rglob("*.parquet")
    }
    assert written == {"key=1.0": [0, 6], "key=0.0": [2, 3], "key=__HIVE_DEFAULT_PARTITION__": [1, 4, 5]}


@pytest.mark.parametrize(
    ("name", "keep", "left_out"),
    [("out.csv", None, True), ("out.csv", ("zip",), False), ("out.parquet", None, True), ("out.jsonl", None, False)],
)
def test_columns_that_only_later_rows_have_are_named(
    tmp_path: Path, model: Model, name: str, keep: tuple[str, ...] | None, left_out: bool
) -> None:
    """The columns of an output are those of the first rows; JSON lines keep the text of each row."""
    row = {"zip": "00501", "word": "T", "size": 1.5, "flag": True, "day": None}
    rows = [row] * 10_001 + [{**row, "id": "a,7"}]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, rows)))
    done = score(model, tmp_path / "in.jsonl", tmp_path / name, keep=keep)
    assert (done.rows, done.left_out) == (10_002, ("id",) if left_out else ())
    assert ("columns left out, because the first rows do not have them: id" in done.text()) == left_out
