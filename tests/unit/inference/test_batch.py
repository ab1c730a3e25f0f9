"""Batch scoring copies the columns of a file and adds the predictions."""

import gzip
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from towline.config import build_config
from towline.data.schema.inference import infer_contract
from towline.errors import ConfigError, DataError
from towline.inference.batch import score_file
from towline.training.evaluation.predictions import Predictions

HEADER = "zip,country,flag,price,model\n"
LINES = '00501,NA,true,1.10,T\n501,"a, b",TRUE,,\n"x\ny",null,,2.50,-5\n'


@pytest.fixture
def model() -> Any:
    """Answers ``yes`` for rows of zip 00501, and asks the real contract for its features."""
    table = pd.DataFrame({"zip": ["00501", "501"] * 10, "model": ["T", "-5"] * 10, "y": ["no", "yes"] * 10})
    contract = infer_contract(table, build_config({"name": "m", "data": {"source": "x", "target": "y"}}, "t"))

    def predict_frame(features: pd.DataFrame) -> Predictions:
        yes = (features["zip"] == "00501").to_numpy(float)
        return Predictions(np.where(yes > 0, "yes", "no").astype(object), np.column_stack([1 - yes, yes]))

    return SimpleNamespace(
        name="m", version=3, contract=contract, to_features=contract.features, predict_frame=predict_frame
    )


@pytest.mark.parametrize("suffix", ["csv", "csv.gz"])
def test_columns_of_a_csv_are_copied_unchanged(tmp_path: Path, model: Any, suffix: str) -> None:
    """Leading zeros, NA, booleans, decimals, quotes and line breaks are written as they were read."""
    source, output = tmp_path / f"in.{suffix}", tmp_path / f"out.{suffix}"
    opened = gzip.compress if suffix == "csv.gz" else bytes
    source.write_bytes(opened((HEADER + LINES).encode()))
    done = score_file(model, source, output, prefix="p_")
    content = output.read_bytes()
    text = (gzip.decompress(content) if suffix == "csv.gz" else content).decode()
    assert text == (
        "zip,country,flag,price,model,p_prediction,p_probability_no,p_probability_yes,p_model,p_version\n"
        "00501,NA,true,1.10,T,yes,0.0,1.0,m,3\n"
        '501,"a, b",TRUE,,,no,1.0,0.0,m,3\n'
        '"x\ny",null,,2.50,-5,no,1.0,0.0,m,3\n'
    )
    assert done.columns == ("p_prediction", "p_probability_no", "p_probability_yes", "p_model", "p_version")


@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_the_separator_of_the_input_is_recognized(tmp_path: Path, model: Any, separator: str) -> None:
    """The output has the same one; a separator that is given has priority, and the error names the option."""
    source, output = tmp_path / "in.csv", tmp_path / "out.csv"
    rows = [["zip", "model", '"a, b"'], ["00501", "T", '"1,5"']]
    source.write_text("".join(separator.join(row) + "\n" for row in rows))
    score_file(model, source, output, prefix="p_")
    assert output.read_text().splitlines()[1].split(separator)[-5:] == ["yes", "0.0", "1.0", "m", "3"]
    with pytest.raises(DataError) as refused:
        score_file(model, source, output, "#")
    assert "--separator" in refused.value.remedy


def test_types_of_a_parquet_file_are_preserved(tmp_path: Path, model: Any) -> None:
    """Integers with nulls, booleans, decimals and times keep their type in Parquet and CSV."""
    table = pa.table(
        {
            "zip": ["00501", "501"], "model": ["T", None], "id": pa.array([2**60 + 1, None]),
            "flag": pa.array([True, None]), "small": pa.array([1, None], pa.int8()),
        }
    )  # fmt: skip
    pq.write_table(table, tmp_path / "in.parquet")
    score_file(model, tmp_path / "in.parquet", tmp_path / "out.parquet", prefix="p_")
    assert pq.read_table(tmp_path / "out.parquet").select(table.column_names).equals(table)
    score_file(model, tmp_path / "in.parquet", tmp_path / "out.csv", prefix="p_")
    lines = [line.split(",")[:5] for line in (tmp_path / "out.csv").read_text().splitlines()]
    assert lines[1:] == [["00501", "T", str(2**60 + 1), "True", "1"], ["501", "", "", "", ""]]


def test_a_conflicting_column_name_is_refused_before_scoring(tmp_path: Path, model: Any) -> None:
    """The error names the option --prefix."""
    source = tmp_path / "in.csv"
    source.write_text(HEADER + LINES)
    model.predictions = lambda features: pytest.fail("rows were scored")
    with pytest.raises(DataError, match="column 'model'") as refused:
        score_file(model, source, tmp_path / "out.csv")
    assert "--prefix" in refused.value.remedy
    assert not (tmp_path / "out.csv").exists()


@pytest.mark.parametrize("way", ["same", "link", "dots"])
def test_the_input_is_never_replaced(tmp_path: Path, model: Any, way: str) -> None:
    """The output may not be another path to the input."""
    source = tmp_path / "in.csv"
    source.write_text(HEADER + LINES)
    (tmp_path / "link.csv").symlink_to(source)
    output = {"same": source, "link": tmp_path / "link.csv", "dots": tmp_path / ".." / tmp_path.name / "in.csv"}[way]
    with pytest.raises(ConfigError, match="would replace the input"):
        score_file(model, source, output, prefix="p_")
    assert source.read_text() == HEADER + LINES


def test_formulas_are_escaped_with_safe_csv(tmp_path: Path, model: Any) -> None:
    """Numbers stay numbers. By default the text of the file is not changed."""
    source = tmp_path / "in.csv"
    source.write_text("zip,model,=cmd\n=1+1,@x,+z\n-5,-5,+5.5\n")
    score_file(model, source, tmp_path / "plain.csv", prefix="p_")
    assert (tmp_path / "plain.csv").read_text().startswith("zip,model,=cmd,")
    score_file(model, source, tmp_path / "safe.csv", prefix="p_", safe_csv=True)
    lines = [line.split(",")[:3] for line in (tmp_path / "safe.csv").read_text().splitlines()]
    assert lines == [["zip", "model", "'=cmd"], ["'=1+1", "'@x", "'+z"], ["-5", "-5", "+5.5"]]
