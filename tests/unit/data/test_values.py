"""Formats of text: decimal marks, null markers and times, in training and in prediction."""

import datetime as dt
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.checks import at_least_one
from towline.config import build_config
from towline.data.schema.columns import to_frame
from towline.data.schema.contract import Contract
from towline.data.schema.detection.notation import detect_notation
from towline.data.schema.inference import infer_contract
from towline.data.schema.rows import RowReader
from towline.data.schema.values import parse_time
from towline.data.source import formats, sources
from towline.errors import ConfigError, DataError, InputValidationError
from towline.monitoring.drift import current_rows


def trained(folder: Path, csv: str | bytes, **data: Any) -> tuple[sources.Dataset, pd.DataFrame, Contract]:
    """The dataset, its snapshot and the contract of a CSV with the target y."""
    (folder / "t.csv").write_bytes(csv.encode() if isinstance(csv, str) else csv)
    config = build_config({"name": "t", "data": {"source": "t.csv", "target": "y", **data}}, "t")
    dataset = sources.load_dataset(config.data, folder, folder / "store", None)
    snapshot = sources.read_snapshot(dataset, folder / "store")
    return dataset, snapshot, infer_contract(snapshot, config, dataset.formats)


def column(values: list[str], more: str = "") -> str:
    """A CSV of one feature x, quoted, and a target."""
    return "x,y\n" + "".join(f'"{value}",{row * 0.5}\n' for row, value in enumerate(values)) + more


@pytest.mark.parametrize(
    ("data", "written", "value"),
    [
        ({"decimal": ","}, "1,5", 1.5),
        ({"decimal": ",", "thousands": "."}, "-1.234,5", -1234.5),
        ({"thousands": ","}, "1,234,567", 1234567.0),
        ({"thousands": " "}, "1\u00a0234", 1234.0),
        ({"thousands": "'"}, "1'234.25", 1234.25),
        ({"decimal": ",", "thousands": "."}, "1.234,50-", -1234.5),
    ],
)
def test_numbers_in_another_notation(tmp_path: Path, data: dict[str, Any], written: str, value: float) -> None:
    """data.decimal and data.thousands apply to the snapshot, to tables and to requests; numbers stay numbers."""
    _, snapshot, contract = trained(tmp_path, column([written, "7"] * 20), **data)
    assert snapshot["x"].tolist()[:2] == [value, 7.0]
    assert contract.features(pd.DataFrame({"x": [written, value]}, dtype=object))["x"].tolist() == [value, value]
    reader = RowReader(contract)
    assert reader.read([{"x": written}, {"x": value}]) == [[value], [value]]
    if data.get("decimal") == ",":
        with pytest.raises(InputValidationError, match="is not a number"):
            reader.read([{"x": "1.5"}])


def test_null_markers(tmp_path: Path) -> None:
    """data.na_values are null in every column; NA is null among numbers and a level among words."""
    csv = "x,c,n,y\n" + "".join(f"{x},{c},{n},{n * 0.5 + 1}\n" for n in range(9) for x, c in ((-999, "?"), (5, "NA")))
    _, snapshot, contract = trained(tmp_path, csv + "NA,a,1,1\n", na_values=["?", -999])
    assert snapshot["x"].dropna().unique().tolist() == [5.0]
    assert snapshot["c"].dropna().unique().tolist() == ["NA", "a"]
    rows: list[dict[str, Any]] = [{"x": x, "c": "?", "n": 1} for x in (-999, "-999", "NA", " ", None)]
    table = contract.features(pd.DataFrame(rows, dtype=object))
    assert table["x"].isna().all()
    assert table["c"].isna().all()
    odd: list[tuple[str, str]] = []
    for row in at_least_one(RowReader(contract).read(rows, odd)):
        assert math.isnan(row[0])
        assert row[1] is None
    assert odd.count(("x", "null")) == 5


@pytest.mark.parametrize(
    ("written", "date_format", "moment"),
    [
        ("31.12.2026", "%d.%m.%Y", dt.datetime(2026, 12, 31)),  # noqa: DTZ001
        ("12/31/2026", "%m/%d/%Y", dt.datetime(2026, 12, 31)),  # noqa: DTZ001
        ("1700000000", "epoch_s", dt.datetime(2023, 11, 14, 22, 13, 20)),  # noqa: DTZ001
        ("1700000000.123", "epoch_s", dt.datetime(2023, 11, 14, 22, 13, 20, 123000)),  # noqa: DTZ001
        ("1700000000.123457", "epoch_s", dt.datetime(2023, 11, 14, 22, 13, 20, 123457)),  # noqa: DTZ001
        ("1700000000123", "epoch_ms", dt.datetime(2023, 11, 14, 22, 13, 20, 123000)),  # noqa: DTZ001
        ("1700000000123456", "epoch_us", dt.datetime(2023, 11, 14, 22, 13, 20, 123456)),  # noqa: DTZ001
        ("1700000000000000000", "epoch_ns", dt.datetime(2023, 11, 14, 22, 13, 20)),  # noqa: DTZ001
        ("20261231235958", "%Y%m%d%H%M%S", dt.datetime(2026, 12, 31, 23, 59, 58)),  # noqa: DTZ001
        ("31/Dec/2026:05:54:54 +0000", "%d/%b/%Y:%H:%M:%S %z", dt.datetime(2026, 12, 31, 5, 54, 54)),  # noqa: DTZ001
        ("20261231", "%Y%m%d", dt.datetime(2026, 12, 31)),  # noqa: DTZ001
        ("202612", "%Y%m", dt.datetime(2026, 12, 1)),  # noqa: DTZ001
        ("2026", "%Y", dt.datetime(2026, 1, 1)),  # noqa: DTZ001
    ],
)
def test_formats_of_times(tmp_path: Path, written: str, date_format: str, moment: dt.datetime) -> None:
    """A declared format is read in training, tables and requests; digits need no format; ISO is always read."""
    guessed = written.replace(".", "").isdigit() and date_format != "%d.%m.%Y"
    csv = "t,y\n" + f"{written},1.5\n{written},2.5\n"
    dataset, snapshot, contract = trained(tmp_path, csv, time="t", **({} if guessed else {"date_format": date_format}))
    assert dict(dataset.formats)["t"].date_format == date_format
    assert snapshot["t"].tolist() == [pd.Timestamp(moment)] * 2
    time = contract.columns[0]
    given: list[Any] = [written, moment, moment.isoformat(), *([float(written)] if guessed else [])]
    assert [time.reader.read(value) for value in given] == [moment] * len(given)
    feature = contract.model_copy(update={"columns": (time.model_copy(update={"role": "feature"}),)})
    assert feature.features(pd.DataFrame({"t": given}, dtype=object))["t"].tolist() == [pd.Timestamp(moment)] * len(
        given
    )
    assert RowReader(feature).read([{"t": value} for value in given]) == [[moment]] * len(given)


@pytest.mark.parametrize("suffix", ["csv", "parquet", "jsonl"])
def test_epoch_seconds_with_a_fraction_are_times(tmp_path: Path, suffix: str) -> None:
    """As from Python's time.time(): some are whole numbers, the column may be typed, and each microsecond is exact."""
    moments = pd.Timestamp("2023-11-14 22:13:20") + pd.to_timedelta(np.arange(8) * 60_250_001, unit="us")
    frame = pd.DataFrame({"t": (moments - pd.Timestamp("1970")) / pd.Timedelta("1s"), "y": np.arange(8) / 7})
    path = tmp_path / f"t.{suffix}"
    if suffix == "parquet":
        frame.to_parquet(path, index=False)
    else:
        lines = [
            f'{{"t": {t!r}, "y": {y!r}}}' if suffix == "jsonl" else f"{t!r},{y!r}" for t, y in frame.values.tolist()
        ]
        path.write_text("\n".join(lines if suffix == "jsonl" else ["t,y", *lines]))
    for settings in ({}, {"date_format": "epoch_s"}):
        config = build_config({"name": "t", "data": {"source": path.name, "target": "y", "time": "t", **settings}}, "t")
        dataset = sources.load_dataset(config.data, tmp_path, tmp_path / "store", None)
        assert dict(dataset.formats)["t"].date_format == "epoch_s"
        assert sources.read_snapshot(dataset, tmp_path / "store")["t"].tolist() == moments.tolist()


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e-9, 2024.5])
def test_other_numbers_are_no_times(value: float) -> None:
    """A fraction belongs to an epoch, not to a date that is written in digits."""
    assert parse_time(value, "%Y.%m") is None
    assert value == 2024.5 or parse_time(value, "epoch_s") is None


def test_ambiguous_times_are_rejected(tmp_path: Path) -> None:
    """Numbers of an ambiguous format are rejected: the remedy names data.date_format."""
    with pytest.raises(DataError, match=r"(?s)'17'.*data\.date_format"):
        trained(tmp_path, "t,y\n17,1\n18,2\n", time="t")


def test_declared_numbers_read_other_text_as_null(tmp_path: Path) -> None:
    """Such values are counted in training, and read as null in requests and tables."""
    csv = column(["1", "2", "calm", "3.5"] * 10)
    assert trained(tmp_path, csv)[2].columns[0].kind == "category"
    assert trained(tmp_path, csv, na_values=["calm"])[2].columns[0].kind == "numeric"
    dataset, snapshot, contract = trained(tmp_path, csv, columns={"x": "numeric"})
    assert [(c.column, c.count, c.share) for c in dataset.coerced] == [("x", 10, 0.25)]
    assert "'calm'" in dataset.coerced[0].examples
    assert snapshot["x"].isna().sum() == 10
    assert contract.features(pd.DataFrame({"x": ["calm", "2"]}))["x"].isna().tolist() == [True, False]
    odd: list[tuple[str, str]] = []
    assert math.isnan(RowReader(contract).read([{"x": "calm"}], odd)[0][0])
    assert odd == [("x", "unreadable")]


@pytest.mark.parametrize("kind", [pa.date32(), pa.date64(), pa.timestamp("s"), pa.timestamp("ms", "UTC")])
def test_times_beyond_the_year_9999_are_null(tmp_path: Path, kind: pa.DataType) -> None:
    """A mistyped year in Parquet is read as such a text in a CSV, also in the last rows and by a program."""
    days = [18_262 + row for row in range(40)]
    days[3], days[-1] = -800_000, 6_700_000
    per_day = {"date32[day]": 1, "timestamp[s]": 86_400}.get(str(kind), 86_400_000)
    times = pa.array([day * per_day for day in days], pa.int32() if kind == pa.date32() else pa.int64()).cast(kind)
    table = pa.table({"x": times, "y": [row * 0.5 for row in range(40)]})
    pq.write_table(table, tmp_path / "t.parquet")
    config = build_config({"name": "t", "data": {"source": "t.parquet", "target": "y"}}, "t")
    dataset = sources.load_dataset(config.data, tmp_path, tmp_path / "store", None)
    read = sources.read_snapshot(dataset, tmp_path / "store")["x"]
    assert read.index[read.isna()].tolist() == [3, 39]
    assert read[0] == pd.Timestamp("2020-01-01")
    contract = infer_contract(sources.read_snapshot(dataset, tmp_path / "store"), config, dataset.formats)
    rows = pa.Table.from_batches([*current_rows.read_table(tmp_path / "t.parquet", contract)])
    for given in (to_frame(table), formats.read_file(tmp_path / "t.parquet", ",").to_pandas(), rows.to_pandas()):
        assert contract.features(given)["x"].equals(read)


def test_codes_stay_codes(tmp_path: Path) -> None:
    """Numbers with leading zeros are a category with unchanged text."""
    for values in (["00501", "10001"], ["00501", "10001", "K1A"]):
        _, snapshot, contract = trained(tmp_path, column(values * 20))
        assert contract.columns[0].kind == "category"
        assert set(snapshot["x"]) == set(values)


def test_kinds_do_not_depend_on_nulls(tmp_path: Path) -> None:
    """A null among booleans, identifiers and codes changes neither their kind nor a value."""
    rows = [("true", 2**60 + 1, "007"), ("false", 2**60 + 2, "008")] * 10
    csv = "f,i,c,y\n" + "".join(f"{f},{i},{c},{n * 0.5}\n" for n, (f, i, c) in enumerate(rows))
    whole = trained(tmp_path, csv)[2]
    dataset, snapshot, gaps = trained(tmp_path, csv + ",,,1.5\n")
    assert [(c.name, c.kind, c.role) for c in gaps.columns] == [(c.name, c.kind, c.role) for c in whole.columns]
    assert [c.kind for c in gaps.columns] == ["boolean", "category", "category", "numeric"]
    assert set(snapshot["i"].dropna()) == {str(2**60 + 1), str(2**60 + 2)}
    assert RowReader(gaps).read([{"f": True, "i": 2**60 + 1, "c": "007"}]) == [[1.0, str(2**60 + 1), "007"]]
    assert dataset.rows == 21


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-8-sig"])
def test_other_encodings(tmp_path: Path, encoding: str) -> None:
    """UTF-16, with and without a byte order mark, is read like UTF-8."""
    _, snapshot, _ = trained(tmp_path, column(["é", "ü"] * 3).encode(encoding))
    assert snapshot["x"].tolist() == ["é", "ü"] * 3
    assert list(snapshot.columns) == ["x", "y"]


@pytest.mark.parametrize(
    ("values", "what", "remedy"),
    [
        (["1,5", "2,25", "3"], "a decimal comma", "data.decimal: ','"),
        (["1,234,567", "12"], "commas between thousands", "data.thousands: ','"),
        (["1.234.567,5", "1.000"], "points between thousands", "data.decimal: ',' and data.thousands: '.'"),
        (["$1,200.50", "3 EUR"], "units", "write all values in one unit"),
        (["12 kg", "3.5 lb"], "units", "write all values in one unit"),
        (["12/31/2026", "01/02/2026"], "dates", "data.date_format: {x: '%m/%d/%Y'}"),
        (["31.12.2026 10:30", "01.02.2026 00:00"], "dates", "data.date_format: {x: '%d.%m.%Y %H:%M'}"),
        (["3 Jan 2026", "14 Feb 2026"], "dates", "data.date_format: {x: '%d %b %Y'}"),
    ],
)
def test_other_notations_are_detected(tmp_path: Path, values: list[str], what: str, remedy: str) -> None:
    """Text that is numbers or dates in another notation is reported with the setting that reads it."""
    notation = detect_notation(pd.Series(values * 20, name="x"))
    assert notation is not None
    assert what in notation.what
    assert remedy in notation.remedy
    if "unit" not in remedy:
        keys = json.loads("{}")
        for setting in remedy.split(" and "):
            key, _, value = setting.removeprefix("data.").partition(": ")
            keys[key] = {"x": value.split("'")[1]} if value.startswith("{") else value.strip("'")
        kind = trained(tmp_path, column(values * 20), **keys)[2].columns[0].kind
        assert kind == ("datetime" if "date_format" in keys else "numeric")


@pytest.mark.parametrize("values", [["00501", "10001"], ["a", "b"], ["A-1", "B-2"], ["2026-01-31", "x"], ["", "NA"]])
def test_codes_and_words_are_no_notation(values: list[str]) -> None:
    """Text that is neither a number nor a date has no notation."""
    assert detect_notation(pd.Series(values * 20, name="x")) is None


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"decimal": ",", "thousands": ","}, "decimal and thousands are both ','"),
        ({"date_format": "31.12.2026"}, "is not a strptime format"),
        ({"date_format": {"t": "%Q"}}, "is not a strptime format"),
    ],
)
def test_invalid_formats_are_rejected(data: dict[str, Any], words: str) -> None:
    """Invalid formats are rejected with the config, before any data is read."""
    with pytest.raises(ConfigError) as caught:
        build_config({"name": "t", "data": {"source": "t.csv", "target": "y", **data}}, "t")
    assert words in str(caught.value)


def test_words_among_plain_numbers_are_named_instead_of_a_decimal_mark() -> None:
    """No decimal mark is suggested if the numbers can be read by default."""
    years = ["1905", "1932", "1958", "1974", "1996", "2012"] * 20 + ["k.A."] * 10
    notation = detect_notation(pd.Series(years, name="built"))
    assert notation is not None
    assert (notation.example, notation.formats) == ("k.A.", ())
    assert notation.what == "numbers with other words among them"
    assert notation.remedy == 'data.na_values: ["k.A."] if this means null'
