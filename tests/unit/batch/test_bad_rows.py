"""Bad rows go to the quarantine with number, field and reason; the counts add up."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tests.support.batch import make_customer_table, score, use_small_shards
from towline.batch.job import quarantine_path
from towline.errors import DataError
from towline.inference.predictor import Model

BAD = {
    3: ("size", "size", "many", "is not a number"),
    50: ("size", "size", "1e200", "is too large"),
    51: ("day", "day", "someday", "is not an ISO 8601 time"),
    97: ("flag", "flag", "perhaps", "is neither true nor false"),
}


def make_table() -> pd.DataFrame:
    table = make_customer_table(100, seed=9).drop(columns="bought").astype(object)
    for row, (column, _, value, _) in BAD.items():
        table.loc[row, column] = value
    return table.assign(id=range(100))


def write(table: pd.DataFrame, path: Path) -> Path:
    if path.suffix == ".jsonl":
        table.to_json(path, orient="records", lines=True, date_format="iso")
    elif path.suffix == ".parquet":
        table.astype(str).where(table.notna(), None).to_parquet(path, row_group_size=30)
    else:
        table.to_csv(path, index=False)
    return path


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_bad_rows_are_quarantined(tmp_path: Path, model: Model, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """The other rows are scored as without them."""
    use_small_shards(monkeypatch)
    source, output = write(make_table(), tmp_path / f"in.{kind}"), tmp_path / "out.csv"
    result = score(model, source, output)
    assert (result.rows_in, result.rows, result.quarantined) == (100, 96, 4)
    quarantine = pd.read_csv(quarantine_path(output), dtype=str)
    assert quarantine["row"].tolist() == [str(row + 1) for row in BAD]
    assert quarantine["field"].tolist() == [field for _, field, _, _ in BAD.values()]
    for (_, _, value, reason), bad_row in zip(BAD.values(), quarantine.itertuples(), strict=True):
        assert reason in bad_row.reason
        assert value in bad_row.record
    good = make_table().drop(index=list(BAD))
    scored = pd.read_csv(output, float_precision="round_trip", dtype={"prediction": str})
    assert scored["id"].astype(int).tolist() == good["id"].tolist()
    assert scored["prediction"].tolist() == model.predict(good).tolist()


@pytest.mark.parametrize("output", ["out.csv", "out.jsonl", "out.parquet", "out"])
@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_bad_rows_are_quarantined_if_no_column_is_copied(
    tmp_path: Path, model: Model, monkeypatch: pytest.MonkeyPatch, kind: str, output: str
) -> None:
    use_small_shards(monkeypatch)
    source = write(make_table(), tmp_path / f"in.{kind}")
    if kind == "jsonl":
        source.write_text(source.read_text() + "no JSON\n")
    done = score(model, source, tmp_path / output, keep=())
    assert (done.rows, done.quarantined) == (96, 4 + (kind == "jsonl"))


def test_a_column_that_some_rows_of_json_lines_lack_is_null_there(tmp_path: Path, model: Model) -> None:
    """As in training. A column that all rows lack is a missing field in each."""
    table = make_customer_table(60, seed=9).drop(columns="bought")
    rows, name = table.to_dict("records"), table.select_dtypes("number").columns[0]
    lacking = [{key: value for key, value in row.items() if key != name or at % 3} for at, row in enumerate(rows)]
    text = "\n".join(json.dumps(row, default=str) for row in lacking)
    (tmp_path / "in.jsonl").write_text(text)
    result = score(model, tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    assert (result.rows, result.quarantined) == (60, 0)
    scored = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    nulls = table.assign(**{name: table[name].where(table.index % 3 > 0)})
    assert [row["prediction"] for row in scored] == model.predict(nulls).tolist()
    assert [name in row for row in scored] == [at % 3 > 0 for at in range(60)]
    (tmp_path / "none.jsonl").write_text(text.replace(f'"{name}"', '"renamed"'))
    result = score(model, tmp_path / "none.jsonl", tmp_path / "none.csv")
    assert (result.rows, result.quarantined) == (0, 60)


def test_malformed_lines_of_a_csv_are_quarantined(
    tmp_path: Path, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line with too few or too many fields is one bad row; its text is in the quarantine."""
    use_small_shards(monkeypatch)
    source, output = tmp_path / "in.csv", tmp_path / "out.csv"
    lines = make_customer_table(60, seed=9).drop(columns="bought").assign(word="T").to_csv(index=False).splitlines()
    lines[7], lines[40] = "00501,T", lines[40] + ",extra"
    source.write_text("\n".join(lines))
    result = score(model, source, output)
    assert (result.rows_in, result.rows, result.quarantined) == (60, 58, 2)
    quarantine = pd.read_csv(quarantine_path(output), dtype=str)
    assert quarantine["row"].tolist() == ["7", "40"]
    assert quarantine["record"].tolist() == ["00501,T", lines[40]]
    assert quarantine["reason"].tolist() == [
        "2 fields, but the header has 5", "6 fields, but the header has 5",
    ]  # fmt: skip
    assert len(output.read_text().splitlines()) == 59


def test_a_job_can_stop_at_the_first_bad_row(tmp_path: Path, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the row of the file; there is no output."""
    use_small_shards(monkeypatch)
    source, output = write(make_table(), tmp_path / "in.csv"), tmp_path / "out.csv"
    with pytest.raises(DataError, match="row 4: size is not a number"):
        score(model, source, output, bad_rows="stop")
    assert not output.exists()
    table = make_table()
    table.loc[3, "size"] = 1
    write(table, source)
    with pytest.raises(DataError, match="row 51: size is too large"):
        score(model, source, output, bad_rows="stop")


def test_a_row_that_the_model_refuses_is_quarantined(
    tmp_path: Path, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other rows of its batch are scored."""
    real = type(model.scorer).predict_columns

    def refuse(scorer: Any, columns: Any) -> Any:
        if (columns[2] == 13.0).any():
            raise DataError("a number is too large for this model", where="rows")
        return real(scorer, columns)

    monkeypatch.setattr(type(model.scorer), "predict_columns", refuse)
    table = make_customer_table(40, seed=9).drop(columns="bought")
    table.loc[[5, 30], "size"] = 13.0
    result = score(model, write(table, tmp_path / "in.csv"), tmp_path / "out.csv")
    assert (result.rows, result.quarantined) == (38, 2)
    quarantine = pd.read_csv(quarantine_path(tmp_path / "out.csv"))
    assert quarantine["row"].tolist() == [6, 31]
    assert set(quarantine["reason"]) == {"a number is too large for this model"}


def test_an_earlier_quarantine_is_removed(tmp_path: Path, model: Model) -> None:
    """A new output replaces or removes the quarantine of the earlier output."""
    source, output = write(make_table(), tmp_path / "in.csv"), tmp_path / "out.csv"
    score(model, source, output)
    write(make_table().drop(index=list(BAD)), source)
    assert score(model, source, output, overwrite=True).quarantine is None
    assert not quarantine_path(output).exists()
