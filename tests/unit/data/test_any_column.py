"""Columns and targets as in real files: words among numbers, other notations, rows without a target."""

import csv
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from towline.config import PipelineConfig, build_config
from towline.data import snapshot
from towline.data.schema.contract import Contract
from towline.data.schema.detection.notation import detect_number_format, read_text_column
from towline.data.schema.inference import infer_contract
from towline.data.schema.rows import RowReader
from towline.data.schema.values import ValueFormat, ValueReader
from towline.data.source import formats
from towline.data.source.sources import Dataset, load_dataset, read_snapshot
from towline.data.validation.custom_rules import check_dataset
from towline.errors import DataError
from towline.training.behaviour.expected_predictions import find_class

ROWS = 400


def load(folder: Path, columns: dict[str, Any], /, **data: Any) -> tuple[Dataset, pd.DataFrame, Contract]:
    """Writes a CSV with these columns and a numeric target ``y``, and reads it as a run does."""
    frame = pd.DataFrame({"y": np.arange(ROWS) / 7} | columns)
    frame.to_csv(folder / "t.csv", index=False)
    config: PipelineConfig = build_config({"name": "t", "data": {"source": "t.csv", "target": "y", **data}}, "t")
    dataset = load_dataset(config.data, folder, folder, None)
    rows = read_snapshot(dataset, folder)
    return dataset, rows, infer_contract(rows, config, dataset.formats)


def with_others(others: list[str], values: Any = None) -> list[str]:
    """Numbers whose first values are replaced by other texts."""
    numbers = np.random.default_rng(1).normal(50, 9, ROWS).round(2) if values is None else values
    return [*others, *map(str, numbers[len(others) :])]


@pytest.mark.parametrize(
    ("others", "nulls"),
    [
        (["?"] * 11, 11),
        (["-", "n/a", "."], 3),
        (["Calm"], 1),
        (["inf", "-Infinity"], 2),
        (["T"] * 20, 20),
        (["", " "], 2),
        (["3,5", "1,25"], 0),
        (["no", "3,5"], 1),
    ],
)
def test_a_few_other_texts_in_a_column_of_numbers_are_null(tmp_path: Path, others: list[str], nulls: int) -> None:
    """The column is numeric, its other texts are null and counted, and a request is read in the same way."""
    dataset, rows, contract = load(tmp_path, {"x": with_others(others)})
    column = contract.columns[1]
    assert (column.kind, int(rows["x"].isna().sum())) == ("numeric", nulls)
    blank = sum(not text.strip() for text in others) + others.count("n/a")
    assert sum(each.count for each in dataset.coerced) == nulls - blank
    requested = contract.features(pd.DataFrame({"x": [*others, "7.5"]}))["x"]
    np.testing.assert_array_equal(requested[: len(others)], rows["x"][: len(others)])
    assert requested.iloc[-1] == 7.5


def test_numbers_with_many_words_are_a_category(tmp_path: Path) -> None:
    """Real mixtures keep all their values as levels."""
    levels = np.random.default_rng(2).choice(["1", "2", "3", "more"], ROWS)
    grades = np.random.default_rng(3).choice(["9", "10", "11", "12", "other"], ROWS, p=[0.24, 0.24, 0.24, 0.24, 0.04])
    dataset, _, contract = load(tmp_path, {"doors": levels, "grade": grades})
    kinds = {column.name: column.kind for column in contract.columns}
    assert (kinds["doors"], kinds["grade"]) == ("category", "category")
    assert contract.columns[1].categories == ("1", "2", "3", "more")
    assert dataset.coerced == ()


def test_the_limit_of_other_texts_is_configurable(tmp_path: Path) -> None:
    """A larger share than data.max_unreadable makes the column a category."""
    column = with_others(["calm"] * 30)
    assert load(tmp_path, {"x": column})[2].columns[1].kind == "numeric"
    assert load(tmp_path, {"x": column}, max_unreadable=0.05)[2].columns[1].kind != "numeric"


@pytest.mark.parametrize(
    "written",
    ["%m/%d/%Y", "%d.%m.%Y", "%d-%b-%Y", "%m/%d/%Y %H:%M:%S", "%Y/%m/%d", "%d.%m.%Y | %d/%m/%Y", "%d-%b-%Y | %m/%d/%Y"],
)
def test_dates_that_a_format_or_two_read_are_dates(tmp_path: Path, written: str) -> None:
    """As a feature and as the time column, in training and in a request."""
    times = pd.date_range("2024-01-01 10:30", periods=ROWS, freq="17h")
    times = times if "%H" in written else times.normalize()
    texts = times.strftime(written.split(" | ", maxsplit=1)[0]).to_numpy()
    texts[::5] = times[::5].strftime(written.rsplit(" | ", maxsplit=1)[-1])
    _, rows, contract = load(tmp_path, {"sold": texts})
    assert contract.columns[1].kind == "datetime"
    assert rows["sold"].tolist() == times.tolist()
    requested = contract.features(pd.DataFrame({"sold": texts[:3]}))["sold"]
    assert requested.tolist() == times[:3].tolist()
    dataset, rows, _ = load(tmp_path, {"sold": texts}, time="sold")
    assert rows["sold"].tolist() == times.tolist()
    assert dict(dataset.formats)["sold"].date_format == (None if written == "%Y/%m/%d" else written)  # read as ISO


@pytest.mark.parametrize("written", ["%Y-%m-%d", "%m/%d/%Y", "%d-%b-%Y | %m/%d/%Y"])
def test_a_few_words_among_dates_are_null(tmp_path: Path, written: str) -> None:
    """In training and in a request, with a warning; with many, or if the dates are few levels, they are levels."""
    times = pd.date_range("2024-01-01", periods=ROWS, freq="D")
    texts = times.strftime(written.partition(" | ")[0]).to_numpy(dtype=object)
    texts[::5] = times[::5].strftime(written.rpartition(" | ")[2])
    texts[[7, 8]] = "not yet"
    dataset, rows, contract = load(tmp_path, {"sold": texts})
    assert contract.columns[1].kind == "datetime"
    assert rows["sold"].isna().sum() == 2
    assert rows["sold"].drop([7, 8]).tolist() == times.delete([7, 8]).tolist()
    (warning,) = (rule for rule in check_dataset(dataset, "y") if rule.rule == "values_datetime")
    assert (warning.count, "a time; other values are read as null" in warning.detail) == (2, True)
    row: list[Any] = RowReader(contract).read([{"sold": "not yet"}])[0]
    assert row == [None]
    texts[: ROWS // 5] = "not yet"
    assert load(tmp_path, {"sold": texts})[2].columns[1].kind != "datetime"
    few = np.array([*texts[-3:], "not yet"], dtype=object)[np.arange(ROWS) % 13 % 4]
    assert load(tmp_path, {"sold": few})[2].columns[1].kind == "category"


def test_dates_that_may_have_either_of_two_formats_are_named(tmp_path: Path) -> None:
    """As the time column they are an error; its remedy names both formats and works."""
    texts = [f"{1 + n % 12:02}/{1 + n % 11:02}/2024" for n in range(ROWS)]
    with pytest.raises(DataError) as caught:
        load(tmp_path, {"sold": texts}, time="sold")
    assert "'%m/%d/%Y' or '%d/%m/%Y'" in caught.value.remedy
    _, rows, _ = load(tmp_path, {"sold": texts}, time="sold", date_format="%d/%m/%Y")
    assert rows["sold"].iloc[1] == pd.Timestamp("2024-02-02")


@pytest.mark.parametrize(
    ("first", "step", "date_format", "moment"),
    [
        (16695, 1, "epoch_d", "2015-09-17"),
        (2000.5, 0.25, "decimal_year", "2000-07-02"),
        (45292, 1, "excel", "2024-01-01"),
    ],
)
def test_days_and_decimal_years(tmp_path: Path, first: float, step: float, date_format: str, moment: str) -> None:
    """Numbers are times if data.date_format says so, in training and in a request."""
    values = first + step * np.arange(ROWS)
    _, rows, contract = load(tmp_path, {"at": values}, time="at", date_format=date_format)
    assert rows["at"].iloc[0] == pd.Timestamp(moment)
    assert contract.features(pd.DataFrame({"at": [first]}))["at"].iloc[0] == pd.Timestamp(moment)


def test_numbers_in_one_other_notation_are_read(tmp_path: Path) -> None:
    """1,234.50 has one meaning; a column with only 1,234 has two meanings, is text and gives a warning."""
    values = np.random.default_rng(4).uniform(1000, 90_000, ROWS).round(2)
    _, rows, contract = load(tmp_path, {"x": [f"{value:,.2f}" for value in values]})
    assert contract.columns[1].kind == "numeric"
    np.testing.assert_allclose(rows["x"], values)
    assert contract.features(pd.DataFrame({"x": ["1,234.50"]}))["x"].iloc[0] == 1234.5


def test_thousands_beside_a_decimal_comma_of_the_config(tmp_path: Path) -> None:
    texts = [f"1.{row:03},50 €" for row in range(ROWS)]
    _, rows, _ = load(tmp_path, {"x": texts, "z": [f"{row},25" for row in range(ROWS)]}, decimal=",")
    assert rows["x"].tolist() == [1_000.5 + row for row in range(ROWS)]
    assert rows["z"].tolist() == [row + 0.25 for row in range(ROWS)]


def test_points_between_thousands_beside_a_decimal_comma_of_the_config(tmp_path: Path) -> None:
    """1.115 together with 642 is a count, because the decimal mark is a comma; 1.5 is not."""
    texts = [f"{3 * row:,}".replace(",", ".") for row in range(ROWS)]
    _, rows, _ = load(tmp_path, {"x": texts, "z": [f"{row}.5" for row in range(ROWS)]}, decimal=",")
    assert rows["x"].tolist() == [3 * row for row in range(ROWS)]
    assert rows["z"].tolist() == [row + 0.5 for row in range(ROWS)]


def test_apostrophes_between_thousands_beside_a_decimal_comma_of_the_config(tmp_path: Path) -> None:
    texts = [f"1'{row:03}" for row in range(ROWS)]
    _, rows, _ = load(tmp_path, {"x": texts, "z": [f"{row},25" for row in range(ROWS)]}, decimal=",")
    assert rows["x"].tolist() == [1_000 + row for row in range(ROWS)]
    assert rows["z"].tolist() == [row + 0.25 for row in range(ROWS)]


_NOTATIONS = {
    "comma": ("{},25", 0.25), "swiss": ("1'{:03},50", 1000.5), "swiss point": ("1'{:03}.50", 1000.5),
    "english": ("1,{:03}.50", 1000.5), "german": ("1.{:03},50", 1000.5), "dollars": ("$1,{:03}.50", 1000.5),
    "point": ("{}.5", 0.5),
}  # fmt: skip


@pytest.mark.parametrize("kinds", [{}, dict.fromkeys(_NOTATIONS, "numeric")])
@pytest.mark.parametrize("data", [{}, {"decimal": ","}, {"thousands": ","}, {"decimal": ",", "thousands": "."}])
def test_columns_of_one_table_have_notations_of_their_own(
    tmp_path: Path, data: dict[str, Any], kinds: dict[str, str]
) -> None:
    """data.decimal and data.thousands do not prevent it, nor does a declared kind; requests are read alike."""
    columns = {name: [pattern.format(row) for row in range(ROWS)] for name, (pattern, _) in _NOTATIONS.items()}
    dataset, rows, contract = load(tmp_path, columns, columns=kinds, **data)
    expected = {name: [row + added for row in range(ROWS)] for name, (_, added) in _NOTATIONS.items()}
    assert {name: rows[name].tolist() for name in columns} == expected
    assert dataset.coerced == ()
    requested = contract.features(pd.DataFrame(columns))
    assert {name: requested[name].tolist() for name in columns} == expected


@pytest.mark.parametrize("data", [{}, {"thousands": ","}])
def test_a_mark_after_a_zero_is_no_mark_between_thousands(tmp_path: Path, data: dict[str, Any]) -> None:
    """Three digits after each comma could be thousands, but not in 0,532."""
    _, rows, contract = load(tmp_path, {"x": [f"{row / 10:.3f}".replace(".", ",") for row in range(ROWS)]}, **data)
    assert contract.columns[1].kind == "numeric"
    assert rows["x"].tolist() == [row / 10 for row in range(ROWS)]


def test_a_declared_number_may_have_a_decimal_comma_in_some_rows(tmp_path: Path) -> None:
    """As in a column whose kind is inferred; other texts are null."""
    dataset, rows, _ = load(tmp_path, {"x": with_others(["3,5", "none of them", "1,25"])}, columns={"x": "numeric"})
    assert rows["x"][:3].fillna(0).tolist() == [3.5, 0, 1.25]
    assert [each.count for each in dataset.coerced] == [1]


def test_a_csv_with_an_index_in_windows_1252(tmp_path: Path) -> None:
    """The file is read with a warning; a column without a name gets the name that pandas gives it."""
    frame = pd.DataFrame({"Größe": np.arange(ROWS) % 7, "Ort": ["Köln", "Nîmes", "Åre", "20 €"] * (ROWS // 4)})
    frame.assign(y=np.arange(ROWS) / 7).to_csv(tmp_path / "t.csv", encoding="cp1252")
    config = build_config({"name": "t", "data": {"source": "t.csv", "target": "y"}}, "t")
    dataset = load_dataset(config.data, tmp_path, tmp_path, None)
    rows = read_snapshot(dataset, tmp_path)
    assert list(rows.columns) == ["Unnamed: 0", "Größe", "Ort", "y"]
    assert set(rows["Ort"]) == {"Köln", "Nîmes", "Åre", "20 €"}
    (warning,) = (rule for rule in check_dataset(dataset, "y") if rule.rule == "encoding")
    assert "Windows-1252" in warning.detail


@pytest.mark.parametrize(
    ("pattern", "values"),
    [
        ("${:,.2f}", 1_234.5), ("-$ {:.1f}", -7.5), ("$-{:.1f}", -7.5), ("{:.1f}%", 12.5), ("{:.0f} KG", 70.0),
        ("{:.1f}°C", 20.5), ("€{:.2f}", 3.25), ("{:,.1f} sq ft", 12_500.0), ("£{:,.0f}", 12_500.0),
        ("(${:,.2f})", -1_234.5), ("(CHF {:.1f})", -3.5),
        ("{:,.0f}", 950.0), ("USD {:.2f}", 9.75), ("{:.1f} Tage", 3.5), ("{:.0f} Stück", 1_250.0),
    ],
)  # fmt: skip
def test_numbers_with_a_unit_are_read(tmp_path: Path, pattern: str, values: float) -> None:
    """Values with and without the unit, in the table and in requests; a few other texts are null."""
    texts = [pattern.format(abs(values) + row % 90) for row in range(ROWS)]
    _, rows, contract = load(tmp_path, {"x": ["n/a", "unknown", *texts[2:]]})
    column = next(column for column in contract.columns if column.name == "x")
    assert (column.kind, column.role) == ("numeric", "feature")
    sign = -1 if values < 0 else 1
    assert rows["x"].isna().sum() == 2
    assert rows["x"][2:].tolist() == [sign * (abs(values) + row % 90) for row in range(2, ROWS)]
    first = pattern.format(abs(values))
    assert RowReader(contract).read([{"x": first}, {"x": values}, {"x": str(values)}]) == [[values]] * 3


@pytest.mark.parametrize("pattern", ["{}.-", "{},-", "{}.–", "{},-- €", "CHF {}.-"])
def test_a_dash_for_no_cents_is_no_minus(tmp_path: Path, pattern: str) -> None:
    """Among prices with cents and negative prices, in the table and in requests."""
    mark = "," if "," in pattern else "."
    texts = [pattern.format(row % 80 + 1) for row in range(ROWS)]
    cents = pattern.replace(f"{mark}-- ", "{} ").replace(f"{mark}-", "{}").replace(f"{mark}–", "{}")
    texts[:2] = cents.format(7, f"{mark}50"), pattern.format(-3)
    _, rows, contract = load(tmp_path, {"x": texts})
    assert contract.columns[1].kind == "numeric"
    assert rows["x"].tolist() == [7.5, -3, *(row % 80 + 1 for row in range(2, ROWS))]
    assert RowReader(contract).read([{"x": texts[1]}, {"x": texts[5]}]) == [[-3], [6]]


@pytest.mark.parametrize("mark", [" ", "\u00a0", "\u2009", "\u202f", "’"])
@pytest.mark.parametrize("unit", ["", " km", "\u00a0€"])
@pytest.mark.parametrize("decimals", [False, True])
def test_marks_between_thousands_beside_units_and_decimals(
    tmp_path: Path, mark: str, unit: str, *, decimals: bool
) -> None:
    """As in French and Swiss tables; numbers below 1,000 have no mark."""
    fraction = "" if not decimals else ".50" if mark == "’" else ",50"
    numbers = [7 * row**2 % 90_001 for row in range(ROWS)]
    texts = [f"{number:,}".replace(",", mark) + fraction + unit for number in numbers]
    _, rows, contract = load(tmp_path, {"x": ["?", *texts[1:]]})
    expected = [number + (0.5 if decimals else 0) for number in numbers]
    assert contract.columns[0].kind == "numeric"
    assert rows["x"].isna().tolist() == [True, *[False] * (ROWS - 1)]
    assert rows["x"][1:].tolist() == expected[1:]
    assert RowReader(contract).read([{"x": texts[20]}, {"x": expected[20]}]) == [[expected[20]]] * 2


@pytest.mark.parametrize(("pattern", "scale"), [("€{}M", 1e6), ("$ {}k", 1e3), ("{} B USD", 1e9), ("€{}", 1)])
def test_thousands_millions_and_billions_of_money(tmp_path: Path, pattern: str, scale: float) -> None:
    """Amounts with and without a letter are in one column, as a target too."""
    texts = [pattern.format(f"{row / 10}") if row % 4 else f"{row} {pattern.strip('{}MkB ')}" for row in range(ROWS)]
    _, rows, contract = load(tmp_path, {"x": texts, "y": texts})
    assert contract.task == "regression"
    expected = [row / 10 * scale if row % 4 else row for row in range(ROWS)]
    np.testing.assert_allclose(rows["x"], expected, rtol=1e-15)
    assert RowReader(contract).read([{"x": pattern.format("2.5")}]) == [[2.5 * scale]]


@pytest.mark.parametrize("codes", ["{}A", "B7{}", "K-{}", "{} EUR or {} USD", "3rd of {}", "x{}"])
def test_codes_are_no_numbers_with_a_unit(tmp_path: Path, codes: str) -> None:
    _, _, contract = load(
        tmp_path, {"x": [codes.replace("{}", str(row % 40)) for row in range(ROWS)], "z": range(ROWS)}
    )
    assert contract.columns[1].kind == "category"


def test_different_words_after_numbers_are_no_unit(tmp_path: Path) -> None:
    """The words are street names after house numbers."""
    texts = [f"{row % 40} {('Elm', 'Oak', 'Hill')[row % 3]}" for row in range(ROWS)]
    _, _, contract = load(tmp_path, {"x": texts, "z": range(ROWS)})
    assert contract.columns[1].kind in ("category", "text")


def test_rows_without_a_target_are_left_out(tmp_path: Path) -> None:
    """A warning has their number; above the limit the remedy of the error works."""
    target = np.where(np.arange(ROWS) % 10 == 0, np.nan, np.arange(ROWS) / 7)
    dataset, rows, _ = load(tmp_path, {"y": target, "x": range(ROWS)})
    assert (len(rows), dataset.rows, dict(dataset.left_out)) == (360, 360, {"without a target": 40})
    (rule,) = check_dataset(dataset, "y")
    assert (rule.result, rule.count, rule.share) == ("warned", 40, 0.1)
    with pytest.raises(DataError, match=r"10\.0% of the rows have no target") as caught:
        load(tmp_path, {"y": target, "x": range(ROWS)}, max_unlabelled=0.05)
    assert "data.max_unlabelled: 0.1 " in caught.value.remedy
    assert load(tmp_path, {"y": target, "x": range(ROWS)}, max_unlabelled=0.1)[0].rows == 360


def test_rare_classes_are_kept_merged_or_left_out(tmp_path: Path) -> None:
    """A class with fewer rows than data.classes.min_rows is rare."""
    target = ["a"] * 200 + ["b"] * 180 + ["c"] * 12 + ["d"] * 8
    columns = {"y": target, "x": np.arange(ROWS)}
    assert load(tmp_path, columns)[2].classes == ("a", "b", "c", "d")
    merged = load(tmp_path, columns, classes={"rare": "merge", "other": "rest"})
    assert merged[2].classes == ("a", "b", "rest")
    assert (merged[1]["y"] == "rest").sum() == 20
    dropped = load(tmp_path, columns, classes={"rare": "drop", "min_rows": 10})
    assert dropped[2].classes == ("a", "b", "c")
    assert dict(dropped[0].left_out) == {"of 1 rare classes": 8}


def test_levels_that_differ_in_case_and_blanks_are_one_level_with_ignore_case(tmp_path: Path) -> None:
    """Of a feature and the target, in the table, a request and a file of labels; other columns keep their levels."""
    columns = {"y": ["ja", " Ja", "NEIN", "nein\u00a0"], "city": ["Bonn", "bonn ", "New York", "new  york"]}
    columns["code"] = ["a", "A", "b", "B"]
    table = {name: levels * (ROWS // 4) for name, levels in columns.items()}
    _, _, contract = load(tmp_path, table, ignore_case=["y", "city"])
    assert (contract.classes, contract.positive, contract.task) == (("ja", "nein"), "ja", "binary")
    assert contract.columns[1].categories == ("bonn", "new york")
    assert contract.columns[2].categories == ("A", "B", "a", "b")
    requested = contract.features(pd.DataFrame({"city": ["BONN", " New\tYork"], "code": ["a", "A"]}))
    assert requested["city"].tolist() == ["bonn", "new york"]
    assert requested["code"].tolist() == ["a", "A"]
    assert contract.labels(pd.DataFrame({"y": ["JA ", "Nein"]})).tolist() == ["ja", "nein"]
    assert load(tmp_path, table, ignore_case=["y"], positive="Nein")[2].positive == "nein"
    assert [find_class(label, contract) for label in ("Ja", " NEIN", True, "maybe")] == ["ja", "nein", "ja", None]
    assert len(load(tmp_path, table)[2].classes) == 4


@pytest.mark.parametrize(
    ("negative", "positive"), [("Nein", "Ja"), ("non", "oui"), ("no", "sí"), ("neg", "pos"), ("nej", "ja"), ("N", "Y")]
)
def test_the_positive_class_means_yes(tmp_path: Path, negative: str, positive: str) -> None:
    """Also in other languages, and if it is the more frequent class."""
    assert load(tmp_path, {"y": [positive] * 300 + [negative] * 100, "x": np.arange(ROWS)})[2].positive == positive


def shops() -> pd.DataFrame:
    rng = np.random.default_rng(3)
    visits = rng.integers(10, 500, ROWS)
    return pd.DataFrame(
        {"shop": [f"S{number}" for number in range(ROWS)], "visits": visits, "y": (visits * 3.2).round(2)}
    )


def read_text(folder: Path, text: str) -> tuple[Dataset, pd.DataFrame]:
    (folder / "t.csv").write_text(text)
    config = build_config({"name": "t", "data": {"source": "t.csv", "target": "y"}}, "t")
    dataset = load_dataset(config.data, folder, folder, None)
    return dataset, read_snapshot(dataset, folder)


@pytest.mark.parametrize(
    ("end", "rows"),
    [
        ("Total,{visits},{y:.2f}\n", 1),
        ("Grand total:,{visits},\n", 1),
        (",{visits},{y:.2f}\n", 1),
        ("Total,{visits},{y:.2f}\nAverage,{mean:.1f},\n", 2),
        ("\n,,\nTotal,{visits},{y:.2f}\nSource: the ministry,,\n", 3),
    ],
)
def test_totals_at_the_end_are_left_out(tmp_path: Path, end: str, rows: int) -> None:
    """Sums and means below a table are not rows of it; they are counted."""
    table = shops()
    text = table.to_csv(index=False)
    written = end.format(visits=table["visits"].sum(), y=table["y"].sum(), mean=table["visits"].mean())
    dataset, frame = read_text(tmp_path, text + written)
    assert frame.equals(read_text(tmp_path, text)[1])
    assert dict(dataset.left_out) == {"at the end that are totals or means of the others": rows}
    assert "totals" in next(iter(check_dataset(dataset, "y"))).detail


@pytest.mark.parametrize("end", ["Total,501,9.25\n", "S401,{visits},{y:.2f}\n", "Total,,7\n", ",12,3.5\n", "S401,,3\n"])
def test_a_last_row_that_is_no_total_is_kept(tmp_path: Path, end: str) -> None:
    """A shop called Total, a shop as large as all others, and rows with blanks are data."""
    table = shops()
    written = end.format(visits=table["visits"].sum(), y=table["y"].sum())
    dataset, frame = read_text(tmp_path, table.to_csv(index=False) + written)
    assert (len(frame), dataset.left_out) == (ROWS + 1, ())


@pytest.mark.parametrize("level", ["average", "Total", "Mean"])
def test_a_level_named_like_a_mean_is_no_summary(tmp_path: Path, level: str) -> None:
    """The last row has an answer that other rows give too, and by chance numbers near the means of their columns."""
    table = shops().assign(answer=[level.lower() if row % 3 else "below" for row in range(ROWS)])
    end = f"S401,{table['visits'].mean():.0f},{table['y'].sum():.2f},{level}\n"
    dataset, frame = read_text(tmp_path, table.to_csv(index=False) + end)
    assert (len(frame), dataset.left_out) == (ROWS + 1, ())


@pytest.mark.parametrize("end", ["\n(400 rows affected)\n", "Source: the ministry\n\nDone at 12:00\n"])
def test_notes_below_the_table_are_not_read(tmp_path: Path, end: str) -> None:
    """Also not from a file that is read in blocks."""
    text = shops().to_csv(index=False)
    expected = read_text(tmp_path, text)[1]
    dataset, frame = read_text(tmp_path, text + end)
    assert frame.equals(expected)
    assert dataset.left_out == ()
    (tmp_path / "t.csv").write_text(text + end)
    assert sum(map(len, formats.stream_csv(tmp_path / "t.csv", ","))) == ROWS


@pytest.mark.parametrize("separator", [",", " "])
def test_quoted_row_names_need_no_name_in_the_header(tmp_path: Path, separator: str) -> None:
    """As ``write.table`` of R writes them; read as a whole and in blocks."""
    table = shops().set_index(pd.Index([f"row {number}" for number in range(ROWS)]))
    text = table.to_csv(sep=separator, quoting=csv.QUOTE_NONNUMERIC).removeprefix(f'""{separator}')
    (tmp_path / "t.csv").write_text(text)
    assert formats.detect_separator(tmp_path / "t.csv") == separator
    frame = formats.read_file(tmp_path / "t.csv", separator).to_pandas()
    assert list(frame) == ["Unnamed: 0", "shop", "visits", "y"]
    assert frame["Unnamed: 0"].tolist() == table.index.tolist()
    assert frame["y"].astype(float).tolist() == table["y"].tolist()
    assert pa.concat_tables(formats.stream_csv(tmp_path / "t.csv", separator)).to_pandas().equals(frame)


def test_a_header_with_one_name_is_no_title(tmp_path: Path) -> None:
    """pandas writes a table with two unnamed index levels in this way."""
    index = pd.MultiIndex.from_product([range(30), ["north", "south"]])
    pd.DataFrame({"sales": range(60)}, index=index).to_csv(tmp_path / "t.csv")
    table = formats.read_file(tmp_path / "t.csv", ",")
    assert table.column_names == ["Unnamed: 0", "Unnamed: 1", "sales"]
    assert table.num_rows == 60


@pytest.mark.parametrize("cells", [10**9, -1], ids=["in memory", "column by column"])
def test_an_unnamed_index_in_parquet_is_no_column(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cells: int) -> None:
    """pandas stores the index of a sample of rows as a column."""
    monkeypatch.setattr(snapshot, "MAX_CELLS", cells)
    shops().sample(frac=0.5, random_state=1).to_parquet(tmp_path / "t.parquet")
    config = build_config({"name": "t", "data": {"source": "t.parquet", "target": "y"}}, "t")
    frame = read_snapshot(load_dataset(config.data, tmp_path, tmp_path, None), tmp_path)
    assert list(frame.columns) == ["shop", "visits", "y"]


def test_one_value_more_than_the_header_without_quotes_is_an_error(tmp_path: Path) -> None:
    """The last two values may be one number with a decimal comma."""
    with pytest.raises(DataError, match="the rows have 3 fields, but the header has 2"):
        read_text(tmp_path, "shop,y\n" + "".join(f"S{number},{number},5\n" for number in range(30)))


@pytest.mark.parametrize("end", ["S4", "a note of the shop\nS1,2,3\n"])
def test_a_row_that_is_cut_off_is_an_error(tmp_path: Path, end: str) -> None:
    """A last row that is cut off, or a note within the table."""
    with pytest.raises(DataError, match="1 field, but the header has 3") as caught:
        read_text(tmp_path, shops().to_csv(index=False) + end)
    assert caught.value.where.endswith(f"t.csv:{ROWS + 2}")


def test_an_error_below_a_title_names_the_line_of_the_file(tmp_path: Path) -> None:
    """Lines before the header are skipped, but the error has the line number that an editor shows."""
    text = "Shops of 2026\n\n" + shops().to_csv(index=False)
    assert list(read_text(tmp_path, text)[1]) == ["shop", "visits", "y"]
    with pytest.raises(DataError) as caught:
        read_text(tmp_path, text + "S9,1,2,3\n")
    assert caught.value.where.endswith(f"t.csv:{ROWS + 4}")


@pytest.mark.parametrize(
    ("texts", "numbers"),
    [
        (["3h 20m", "45m", "2h"], [12_000, 2_700, 7_200]),
        (["1 hr 5 min", "12 min", "1 hour and 2 minutes"], [3_900, 720, 3_720]),
        (["1:05:30", "45:12", "26:00:00"], [3_930, 2_712, 93_600]),
        (["2 years", "1 month", "3 weeks"], [63_115_200, 2_629_800, 1_814_400]),
        (["P0DT0H4M21S", "PT1H", "P2D"], [261, 3_600, 172_800]),
        (["0 days 00:04:21.5", "1 day, 2:00:00", "-1 days +23:59:59"], [261.5, 93_600, -1]),
        (["14:30", "09:05", "00:00"], [52_200, 32_700, 0]),
        (["2:30 PM", "12:05 am", "11:00 am"], [52_200, 300, 39_600]),
        (["5'11\"", "6'", "5’ 7”"], [71, 72, 67]),
        (["5'9", "5'10", "6'02.5"], [69, 70, 74.5]),
        (["1'550", "1'008", "2'841"], [1_550, 1_008, 2_841]),
        (["1'550", "950", "1'002'841"], [1_550, 950, 1_002_841]),
        (["1,234.50", "(7,000.25)", "12"], [1234.5, -7000.25, 12]),
        (["1’234’567", "12", "1’000"], [1_234_567, 12, 1_000]),
        (["12,34,567", "7", "1,00,000"], [1_234_567, 7, 100_000]),
        (["\N{MINUS SIGN}3", "4", "0.5"], [-3, 4, 0.5]),
        (["R$ 863,56", "R$ 1,5", "R$ 7,25"], [863.56, 1.5, 7.25]),
        (["1.2K", "649", "3.4M"], [1_200, 649, 3_400_000]),
        (["7.5-", "4", "0.5"], [-7.5, 4, 0.5]),
        (["500 g", "1.5kg", "1,200 g"], [0.5, 1.5, 1.2]),
        (["2 m", "150 cm", "2 feet"], [2, 1.5, 0.6096]),
        (["2 inches", "1 yd", "3 Miles"], [0.0508, 0.9144, 4828.032]),
        (["51 m2", "26.6 m²", "30 m2"], [51, 26.6, 30]),
        (["51 m2", "2 ha", "100 sq. ft"], [51, 20_000, 9.290304]),
        (["2 L", "750 ml", "1 gallon"], [2, 0.75, 3.785411784]),
        (["1.5 GB", "512 MB", "64KiB"], [1.5e9, 5.12e8, 65_536]),
        (["4.1/5", "3.9/5", "2/5"], [4.1, 3.9, 2]),
    ],
)
def test_notations_of_numbers_are_read_in_a_file_and_a_request(
    tmp_path: Path, texts: list[str], numbers: list[float]
) -> None:
    """A number stays a number in each notation, and nothing is read as null."""
    dataset, rows, contract = load(tmp_path, {"x": (texts * ROWS)[:ROWS]})
    assert contract.columns[1].kind == "numeric"
    assert rows["x"].head(3).tolist() == numbers
    assert not dataset.coerced
    assert [row[0] for row in RowReader(contract).read([{"x": text} for text in texts])] == numbers
    assert contract.features(pd.DataFrame({"x": texts}))["x"].tolist() == numbers
    assert RowReader(contract).read([{"x": 7.5}]) == [[7.5]]


@pytest.mark.parametrize(
    ("texts", "numbers"),
    [
        (["<0.5", "> 90", "≤1.5", "less than 7", "c. 1850"], [0.5, 90, 1.5, 7, 1850]),
        (["7.3*", "12 (est.)", "1,234[3]", "10,000+", "~5"], [7.3, 12, 1_234, 10_000, 5]),
        (["10-20", "5 – 8", "100 to 110", "1990-1995"], [15, 6.5, 105, 1992.5]),
        (["$53K-$91K (Glassdoor est.)", "$99-101K", "$110K-$111K"], [72_000, 100_000, 110_500]),
        (["-5 to 5", "<-2", "-7*"], [0, -2, -7]),
    ],
)
def test_bounds_ranges_and_marks_are_read_as_numbers(tmp_path: Path, texts: list[str], numbers: list[float]) -> None:
    """In a column of many numbers: a bound is its number, a range its middle, and marks are ignored."""
    others = [f"{number}.5" if "-" not in texts[0][1:] else f"{number}-{number + 1}" for number in range(10, 60)]
    rows, contract = load(tmp_path, {"x": [*texts, *others * ROWS][:ROWS]})[1:]
    assert (contract.columns[1].kind, contract.columns[1].format.measure) == ("numeric", "approximate")
    assert rows["x"].head(len(texts)).tolist() == numbers
    assert [row[0] for row in RowReader(contract).read([{"x": text} for text in texts])] == numbers
    assert contract.features(pd.DataFrame({"x": texts}))["x"].tolist() == numbers


@pytest.mark.parametrize(
    ("measure", "text"),
    [("duration", "{}:30"), ("duration", "P{}D"), ("clock", "{}:30"), ("feet", "{}'5"), ("approximate", "<{}")],
)
def test_numbers_of_many_digits_are_null(measure: Any, text: str) -> None:
    """A client's text of thousands of digits is no measure, and no error of the service."""
    reader = ValueReader("numeric", ValueFormat(measure=measure))
    assert math.isnan(reader.read(text.format("9" * 400)))
    assert math.isnan(reader.read(text.format("9" * 5000)))


@pytest.mark.parametrize("kinds", [{}, {"x": "numeric"}])
def test_infinities_of_typed_numbers_are_null(tmp_path: Path, kinds: dict[str, str]) -> None:
    """Whether the config declares the kind of the column or not."""
    table = pd.DataFrame({"x": [1.5, math.inf, -math.inf, *np.arange(97.0)], "y": np.arange(100) / 7})
    table.to_parquet(tmp_path / "t.parquet")
    raw = {"name": "t", "data": {"source": "t.parquet", "target": "y", "columns": kinds}}
    dataset = load_dataset(build_config(raw, "t").data, tmp_path, tmp_path, None)
    assert read_snapshot(dataset, tmp_path)["x"].head(3).isna().tolist() == [False, True, True]
    assert [each.count for each in dataset.coerced] == [2]


def test_words_among_bounds_are_null(tmp_path: Path) -> None:
    """A few values that were not measured are null, and are counted."""
    texts = ["<0.5", "not measured", *(f"{number}.5" for number in range(98))]
    dataset, rows, contract = load(tmp_path, {"x": (texts * ROWS)[:ROWS]})
    assert contract.columns[1].kind == "numeric"
    assert rows["x"].head(3).tolist()[::2] == [0.5, 0.5]
    assert np.isnan(rows["x"][1])
    assert [each.count for each in dataset.coerced] == [texts.count("not measured") * ROWS // len(texts)]


@pytest.mark.parametrize(
    "texts",
    [
        [f"555-{number}" for number in range(1000, 1040)],  # telephone numbers
        [f"{first}-{90 - first}" for first in range(30, 70)],  # results of matches
        [f"{month:02}-{year}" for month in range(1, 13) for year in range(2015, 2019)],
        [f"A{number}+" for number in range(40)],
        [f"{number}-{'9' * 400}" for number in range(40)],
        [f"{number}{'AB'[number % 2]}" for number in range(40)],
        [f"{'€' if number % 3 else '$'}{number}.50" for number in range(40)],
        [f"{number}/{number + 40}" for number in range(80, 120)],  # blood pressure
        ["0-9", "10-19", "20-29", "30-39", "40+"],
    ],
)
def test_codes_results_and_few_ranges_are_not_read_as_numbers(tmp_path: Path, texts: list[str]) -> None:
    """A range ascends; most have as many digits at both ends; few levels are a category."""
    assert load(tmp_path, {"x": (texts * ROWS)[:ROWS]})[2].columns[1].kind != "numeric"


@pytest.mark.parametrize(
    "texts",
    [
        ["10M", "5Y", "3M"],
        ["3 boxes", "4 bags", "1 box"],
        ["16:9", "4:3", "21:9"],
        ["12k", "45k", "7k"],
        ["2 kg", "3 m", "4 l"],
    ],
)
def test_other_texts_with_numbers_are_no_durations(tmp_path: Path, texts: list[str]) -> None:
    """Terms of bonds, counts of things, ratios and different quantities are categories."""
    assert load(tmp_path, {"x": (texts * ROWS)[:ROWS]})[2].columns[1].kind == "category"


@pytest.mark.parametrize(
    ("texts", "kind"),
    [(["2024-03", "2023-12", "2024-11"], "datetime"), (["2023-24", "2024-25", "2011-12"], "category")],
)
def test_months_are_dates_and_seasons_are_categories(tmp_path: Path, texts: list[str], kind: str) -> None:
    rows, contract = load(tmp_path, {"x": (texts * ROWS)[:ROWS]})[1:]
    assert contract.columns[1].kind == kind
    if kind == "datetime":
        assert rows["x"].head(3).tolist() == [pd.Timestamp(text) for text in texts]


@pytest.mark.parametrize(
    ("texts", "day"),
    [
        (["1. Juni 2024", "13. März 2024", "2. Dezember 2023"], "2024-06-01"),
        (["1 juin 2024", "13 août 2024", "2 décembre 2023"], "2024-06-01"),
        (["1 de junio de 2024", "13 de enero de 2024", "2 de abril de 2023"], "2024-06-01"),
        (["1 juin 2024", "3 janv. 2024", "9 août 2024", "2 févr. 2024", "4 juil. 2023", "5 mars 2023"], "2024-06-01"),
        (["1. Juni 2024", "3. Jan. 2024", "9. Aug. 2024", "2. März 2024", "4. Okt. 2023"], "2024-06-01"),
        (["1 June 2024", "3 Jan 2024", "9 Sept. 2024", "2 March 2024", "4 Dec. 2023"], "2024-06-01"),
        (["1 giu 2024", "3 gen 2024", "9 mag 2024", "2 set 2024", "4 dic 2023"], "2024-06-01"),
        (["Sat 01 Jun 2024", "Wed 03 Jan 2024", "Fri 03 Nov 2023"], "2024-06-01"),
        (["2024-06-01 00:00:00 UTC", "2024-06-02 00:00:00 UTC", "2024-06-03 10:00:00 UTC"], "2024-06-01"),
        (["2024-05-31 24:00", "2024-06-02 23:00", "2024-06-03 10:00"], "2024-06-01"),
        (["2024-06-01", "0000-00-00", "2023-11-03"], "2024-06-01"),
        (["Jun 1 2024", "Jan 3 2024", "Dec 13 2023"], "2024-06-01"),
        (["01JUN2024", "13DEC2023", "30JAN2024"], "2024-06-01"),
        (["2024-Jun-01", "2023-Dec-13", "2024-Jan-30"], "2024-06-01"),
        (["06/2024", "12/2021", "1/2024", "3/2020"], "2024-06-01"),
        (["2024 Q2", "2021 Q4", "2024 Q1", "2020-Q3"], "2024-04-01"),
        (["Q2/2024", "q4/2021", "Q1 2024", "Q3/2020"], "2024-04-01"),
        (["2Q2024", "4Q2021", "1Q2024", "3Q2020"], "2024-04-01"),
        (["2024-W22", "2020-W53", "2024W1", "2020-W03"], "2024-05-27"),
        (["W22/2024", "KW 53 2020", "kw01/2024"], "2024-05-27"),
        (["01/06/2024 12:00:00 a. m.", "13/06/2024 01:30:00 p.\u00a0m."], "2024-06-01"),
        (["2024/06/01 1:00:00 AM GMT+1", "2024/01/13 11:10:00 PM GMT", "2024/07/01 1:00:00 PM GMT-3:30"], "2024-06-01"),
        (["01.06.2024 02:00:00 +0200", "13.06.2024 02:00:00 UTC"], "2024-06-01"),
        (["Sat, 01 Jun 2024 00:00:00 GMT", "Thu, 13 Jun 2024 05:00:00 +0100"], "2024-06-01"),
        (["01JUN2024:00:00:00", "13DEC2023:10:30:00"], "2024-06-01"),
        (["20240601T000000", "20231213T103000Z"], "2024-06-01"),
        (["01.06.2024", "2023-12-13", "2023-12-14T10:00:00"], "2024-06-01"),
        (["2024-06-01", "2023-12-13", "Dec 14, 2023"], "2024-06-01"),
    ],
)
def test_notations_of_dates_are_read_in_a_file_and_a_request(tmp_path: Path, texts: list[str], day: str) -> None:
    """Months of other languages, weekdays, quarters, weeks, the end of a day, zones, ISO dates among others."""
    _, rows, contract = load(tmp_path, {"x": (texts * ROWS)[:ROWS]})
    read = RowReader(contract).read([{"x": text} for text in texts])
    assert contract.columns[1].kind == "datetime"
    assert rows["x"].iloc[0] == pd.Timestamp(day)
    assert [None if pd.isna(value) else value for value in rows["x"].head(len(texts))] == [row[0] for row in read]


@pytest.mark.parametrize("date_format", [None, "%Y"])
def test_years_with_a_fraction_of_zero(tmp_path: Path, date_format: str | None) -> None:
    """pandas writes years as 1950.0 if the column has nulls."""
    data = {"time": "year"} | ({"date_format": {"year": date_format}} if date_format else {})
    _, rows, contract = load(tmp_path, {"year": [f"{1950 + n % 60}.0" for n in range(ROWS)]}, **data)
    assert rows["year"].iloc[0] == pd.Timestamp("1950-01-01")
    assert contract.columns[1].reader.spell("1951.0") == contract.columns[1].reader.spell(1951)


def test_one_blank_between_columns_is_a_separator(tmp_path: Path) -> None:
    """Also if other values are quoted and have blanks; a column of sentences is not split."""
    path = tmp_path / "t.txt"
    path.write_text('a b y\n1 "x z" 0.5\n2 w 1.5\n')
    assert formats.read_file(path, None).to_pylist()[0] == {"a": "1", "b": "x z", "y": "0.5"}
    path.write_text("what they said\nyes it was\nno\nwell then\n")
    assert formats.read_file(path, None).column_names == ["what they said"]


@pytest.mark.parametrize(
    ("prices", "unit", "thousands"),
    [
        (["234.500", "99.120", "101.003"], "€", "."), (["1.234.500,50", "234.500"], "€", "."),
        (["1.859", "1.799", "2.001"], "€", ""), (["234.50", "99.10"], "€", ""), (["234.500", "99.120"], "kg", ""),
    ],
)  # fmt: skip
def test_points_of_prices_may_separate_thousands(prices: list[str], unit: str, thousands: str) -> None:
    """Prices have no three decimals, but for those of a litre of fuel."""
    column = pa.chunked_array([[f"{price} {unit}" for price in prices]])
    fmt = ValueFormat(unit=unit)
    assert (detect_number_format(column, fmt, 0) or fmt).thousands == thousands
    assert read_text_column(column, ValueFormat(), 0).format.thousands == thousands
