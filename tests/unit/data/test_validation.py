import datetime as dt
import json
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from towline.config import PipelineConfig
from towline.data.schema.contract import Contract
from towline.data.source import sources
from towline.data.validation.suite import Rule, Validation, validate_table
from towline.data.workspace import Workspace
from towline.errors import ConfigError, DataValidationError

DATA = Path(__file__).parents[3] / "data"
NOW = dt.datetime.fromisoformat("2024-03-01")
ODD = ["self", "a b", "ä'ö", '"q"', "x[0]", "'; DROP TABLE t;--", "<script>alert(1)</script>", "日本", "{{7*7}}", "$x"]


class TableValidator:
    """Validates a table like the flow: through a file, a snapshot and a workspace."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.count = folder, 0

    def __call__(
        self, table: pd.DataFrame | str, previous: Contract | None = None, *, data: Any = None, **config: Any
    ) -> Validation:
        self.count += 1
        source = table if isinstance(table, str) else str(self.folder / f"{self.count}.parquet")
        if isinstance(table, pd.DataFrame):
            table.to_parquet(source, index=False)
        settings = PipelineConfig(name="sample", data={"source": source, "target": "y", **(data or {})}, **config)
        dataset = sources.load_dataset(settings.data, self.folder, self.folder, None, settings.privacy.pii)
        self.work = Workspace(store=self.folder, key=f"{self.count:016}", token="t", dataset=dataset)
        return validate_table(self.work, settings, settings.validation, previous, NOW)

    def rejected_rules(self, *args: Any, **kwargs: Any) -> list[Rule]:
        """The failed rules of a rejected table, read from the workspace."""
        with pytest.raises(DataValidationError) as refusal:
            self(*args, **kwargs)
        self.error = refusal.value
        saved = Validation.model_validate_json(self.work.file("validation.json").read_bytes())
        assert self.work.file("data_docs.html").is_file()
        failed = [rule for rule in saved.rules if not rule.passed and rule.severity == "error"]
        assert len(failed) == saved.failed == len(self.error.details)
        return failed


@pytest.fixture
def validate(tmp_path: Path) -> TableValidator:
    return TableValidator(tmp_path)


@pytest.fixture
def table() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "t": pd.date_range("2024-01-01", periods=300, freq="h"),
            "x": rng.normal(10, 1, 300),
            "k": rng.choice(["red", "green"], 300),
            "n": rng.integers(0, 5, 300),
            "y": rng.choice(["no", "yes"], 300, p=[0.8, 0.2]),
        }
    )


def warned(validation: Validation) -> dict[str | None, Rule]:
    return {rule.column: rule for rule in validation.rules if not rule.passed}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "target", "time", "leak"),
    [
        ("bike_hourly", "rentals", "datetime", ["casual", "registered"]),
        ("bank_marketing", "subscribed", "date", ["duration"]),
    ],
)
def test_sample_tables_pass_without_their_leaks(
    validate: TableValidator, name: str, target: str, time: str, leak: list[str]
) -> None:
    """The sample tables are accepted without their leaks; a sum is an error and a strong column a warning."""
    source, data = str(DATA / f"{name}.parquet"), {"target": target, "time": time}
    passed = validate(source, data={**data, "drop": leak})
    assert (passed.failed, passed.warned) == (0, 0)
    (rule,) = (
        validate.rejected_rules(source, data=data) if len(leak) > 1 else warned(validate(source, data=data)).values()
    )
    assert rule.column == ", ".join(leak)
    assert "data.drop" in rule.detail
    passed = validate(source, data=data, validation={"allow_leaks": leak})
    assert (passed.failed, passed.warned) == (0, 0)


def test_a_sum_is_allowed_only_as_a_whole(validate: TableValidator) -> None:
    """An allowed leak of one column of a sum does not allow the other column."""
    source, data = str(DATA / "bike_hourly.parquet"), {"target": "rentals", "time": "datetime"}
    assert (
        validate.rejected_rules(source, data=data, validation={"allow_leaks": ["casual"]})[0].rule == "no_leak_by_sum"
    )


def test_declared_column_rules(validate: TableValidator, table: pd.DataFrame) -> None:
    """Each broken rule reports column, count, share and rows; a rule with the severity warn does not reject."""
    table.loc[12, "x"] = -3
    table.loc[[5, 6], "k"] = None
    rules = {
        "x": {"min": 0, "max": 100, "unique": True},
        "k": {"nullable": False, "categories": ["red"]},
        "n": {"categories": ["0", "1", "2", "3"], "severity": "warn"},
    }
    failed = {(rule.column, rule.rule.removeprefix("expect_column_values_")): rule for rule in validate.rejected_rules(
        table, validation={"columns": rules})}  # fmt: skip
    assert failed.keys() == {("x", "to_be_between"), ("k", "to_not_be_null"), ("k", "to_be_in_set")}
    below = failed["x", "to_be_between"]
    assert (below.count, below.share, below.examples) == (1, 1 / 300, ("row 13: -3.0",))
    assert failed["k", "to_not_be_null"].examples == ("row 6: null", "row 7: null")
    assert failed["k", "to_be_in_set"].count == (table["k"] == "green").sum()
    assert any(line.startswith("x: ") and "row 13: -3.0" in line for line in validate.error.details)
    saved = Validation.model_validate_json(validate.work.file("validation.json").read_bytes())
    assert warned(saved)["n"].count == (table["n"] == 4).sum()


def test_columns_whose_names_differ_in_case_have_their_own_rules(validate: TableValidator, table: pd.DataFrame) -> None:
    """The rules of K are not those of k; a rule that names both is an error."""
    table["K"] = np.where(np.arange(len(table)) == 7, "small", "large")
    rules = {"k": {"categories": ["red", "green"]}, "K": {"categories": ["large"]}}
    (rule,) = validate.rejected_rules(table, validation={"columns": rules})
    assert (rule.column, rule.examples) == ("K", ("row 8: small",))
    both = {"type": "expect_compound_columns_to_be_unique", "kwargs": {"column_list": ["k", "K"]}}
    with pytest.raises(ConfigError, match="does not distinguish 'k' and 'K'"):
        validate(table, validation={"expectations": [both]})


def test_compound_key(validate: TableValidator, table: pd.DataFrame) -> None:
    """Columns that together identify a row, and a key of one column, are checked."""
    table.loc[9, "t"] = table.loc[3, "t"]
    table.loc[9, "k"] = table.loc[3, "k"]
    (rule,) = validate.rejected_rules(table, validation={"unique": ["t", "k"]})
    assert (rule.column, rule.count) == ("t, k", 2)
    assert [example.split(":")[0] for example in rule.examples] == ["row 4", "row 10"]
    assert validate.rejected_rules(table, validation={"unique": ["t"]})[0].rule == "expect_column_values_to_be_unique"


def test_columns_the_rules_name_must_exist(validate: TableValidator, table: pd.DataFrame) -> None:
    """A missing column of a rule is a fault of the table."""
    (rule,) = validate.rejected_rules(table, validation={"columns": {"gone": {"min": 0}}, "unique": ["away", "t"]})
    assert rule.rule == "expect_table_columns_to_match_set"
    assert rule.detail.endswith("missing 'away', 'gone'")


def test_rules_for_times(validate: TableValidator, table: pd.DataFrame) -> None:
    """Rows from the future are rejected; rows without a time are left out; wrong order and duplicates are warnings."""
    shuffled = pd.concat([table.iloc[::-1], table.head(3)])
    assert {rule.rule: rule.count for rule in warned(validate(shuffled, data={"time": "t"})).values()} == {
        "expect_column_values_to_be_increasing": 299,
        "rows_distinct": 3,
    }
    table.loc[4, "t"] = pd.NaT
    (rule,) = warned(validate(table, data={"time": "t"})).values()
    assert (rule.rule, rule.count, rule.detail) == ("rows_left_out", 1, "rows without a time are left out")
    table.loc[299, "t"] = pd.Timestamp("2024-03-02")
    (rule,) = validate.rejected_rules(table, data={"time": "t"})
    assert rule.examples == ("row 299: 2024-03-02 00:00:00",)


def test_rows_of_a_zone_ahead_of_utc_are_not_from_the_future(validate: TableValidator, table: pd.DataFrame) -> None:
    """Local time may be up to 14 hours ahead of UTC."""
    table.loc[299, "t"] = NOW + dt.timedelta(hours=13)
    assert validate(table, data={"time": "t"}).failed == 0


def test_rules_for_the_target(validate: TableValidator, table: pd.DataFrame) -> None:
    """Rows without a target are left out; a constant target is rejected; a class too small for the folds is named."""
    null = warned(validate(table.assign(y=table["y"].where(table.index != 7))))
    assert (null[None].rule, null[None].count) == ("rows_left_out", 1)
    assert "two different values" in validate.rejected_rules(table.assign(y="no"))[0].detail
    small = table.assign(y=np.where(table.index < 5, "rare", table["y"]))
    rule = warned(validate(small))["y"]
    assert (rule.rule, rule.count, rule.examples) == ("rows_in_each_class", 5, ("class rare: 5 rows",))
    assert warned(validate(small, cross_validation={"folds": 4})) == {}
    alone = table.assign(y=np.where(table.index < 5, "rare", "usual"))
    assert [rule.rule for rule in validate.rejected_rules(alone)] == ["rows_in_each_class"]


@pytest.mark.parametrize("rows", [1, 3, 19])
def test_too_few_rows(validate: TableValidator, table: pd.DataFrame, rows: int) -> None:
    """Fewer rows than min_rows, or than the folds need, are rejected."""
    assert validate.rejected_rules(table.head(rows))[0].rule == "expect_table_row_count_to_be_between"


def test_folds_need_rows(validate: TableValidator, table: pd.DataFrame) -> None:
    """A small min_rows does not accept a table that has too few rows for the folds."""
    number = table.assign(y=np.arange(300) % 97 * 1.7)
    failed = validate.rejected_rules(number.head(6), validation={"min_rows": 2})
    assert [rule.detail for rule in failed] == ["needs at least 8 rows for 5 folds and a holdout; observed 6"]


def test_empty_columns_and_infinities(validate: TableValidator, table: pd.DataFrame) -> None:
    """Empty columns and numbers that are too large are reported, unless the config leaves the column out."""
    table["empty"] = np.nan
    assert [rule.column for rule in validate.rejected_rules(table)] == ["empty"]
    assert validate(table, data={"drop": ["empty"]}).failed == 0
    assert validate(table, data={"columns": {"empty": "ignore"}}).failed == 0
    table["empty"] = np.where(table.index == 250, -1e200, 1.5 + table.index)
    (rule,) = validate.rejected_rules(table)
    assert (rule.column, rule.rule, rule.examples) == ("empty", "values_finite", ("row 251: -1e+200",))
    table["empty"] = np.where(table.index == 250, -np.inf, 1.5 + table.index)
    validation = validate(table)
    assert validation.failed == 0
    (rule,) = (rule for rule in validation.rules if rule.column == "empty" and not rule.passed)
    assert (rule.rule, rule.severity, rule.count, rule.examples) == ("values_numeric", "warn", 1, ("row 251: -inf",))


def test_columns_left_out_are_noted(validate: TableValidator, table: pd.DataFrame) -> None:
    """A constant column is no fault; a note names it."""
    validation = validate(table.assign(c=1))
    assert validation.failed == 0
    assert any(note.startswith("c: ") for note in validation.notes)


def test_more_features_than_rows_gives_a_warning(validate: TableValidator, table: pd.DataFrame) -> None:
    """The table is accepted with a warning."""
    wide = pd.DataFrame(np.random.default_rng(0).normal(size=(30, 40))).rename(columns="c{}".format)
    assert warned(validate(wide.assign(y=np.arange(30) % 2)))[None].rule == "fewer_features_than_rows"


def test_rules_of_the_champions_contract(validate: TableValidator, table: pd.DataFrame) -> None:
    """A missing column or one of another kind is rejected; new values give a warning with their count."""
    validate(table)
    champion = validate.work.contract()
    assert validate(table, champion).warned == 0
    fresh = table.copy()
    fresh.loc[3, "x"] = 99
    fresh.loc[[4, 5], "k"] = "blue"
    fresh.loc[6, "k"] = None
    validation = validate(fresh, champion)
    news = {(rule.column, rule.count) for rule in validation.rules if not rule.passed}
    assert (validation.failed, news) == (0, {("x", 1), ("k", 2), ("k", 1)})
    (rule,) = validate.rejected_rules(table.drop(columns="x"), champion)
    assert (rule.column, rule.rule) == ("x", "champion_columns")
    assert validate(table, champion, data={"drop": ["x"]}).failed == 0
    (rule,) = validate.rejected_rules(table.assign(x=np.where(table["x"] > 10, "high", "low")), champion)
    assert rule.detail.startswith("numeric for the champion, category now")


def test_expectations_of_the_user(validate: TableValidator, table: pd.DataFrame) -> None:
    """Expectations have the names of Great Expectations; dates are dates, and rows are reported."""
    table["when"] = table["t"].astype(str)
    expectations = [
        {"type": "expect_column_values_to_match_regex", "kwargs": {"column": "k", "regex": "^r"}, "severity": "warn"},
        {"type": "expect_column_values_to_be_between", "kwargs": {"column": "t", "min_value": dt.date(2024, 1, 2)}},
        {"type": "expect_column_values_to_be_between", "kwargs": {"column": "when", "max_value": "2024-01-05T00:00Z"}},
        {"type": "expect_column_mean_to_be_between", "kwargs": {"column": "x", "max_value": 5}},
        {"type": "expect_column_values_to_be_between", "kwargs": {"column": "x", "max_value": 10, "mostly": 0.1}},
    ]
    failed = validate.rejected_rules(table, validation={"expectations": expectations})
    assert [(rule.column, rule.count) for rule in failed] == [("t", 24), ("when", 203), ("x", 0)]
    assert failed[0].examples[0] == "row 1: 2024-01-01 00:00:00"
    assert "observed" in failed[2].detail


@pytest.mark.parametrize(
    ("type_", "kwargs", "message"),
    [
        ("expect_column_values_to_be_betwen", {"column": "x", "min_value": 1}, "did you mean expect_column_values_to"),
        ("unexpected_rows_expectation", {"unexpected_rows_query": "SELECT 1"}, "no such expectation"),
        ("expect_column_values_to_be_between", {"column": "xx", "min_value": 1}, "did you mean x?"),
        ("expect_column_values_to_be_between", {"column": "x", "minimum": 1}, "minimum"),
        ("expect_column_values_to_be_between", {"column": "x", "min_value": 3, "max_value": 1}, "above max_value 1"),
        ("expect_column_values_to_be_between", {"column": "k", "min_value": 3}, "could not be evaluated"),
        ("expect_column_values_to_be_between", {"column": "t", "min_value": "soon"}, "not a date"),
        ("expect_column_values_to_match_regex", {"column": "k", "regex": "("}, "could not be evaluated"),
    ],
)
def test_invalid_expectations_are_config_errors(
    validate: TableValidator, table: pd.DataFrame, type_: str, kwargs: dict[str, Any], message: str
) -> None:
    """An expectation that cannot be evaluated never passes: it is an error of the config, not of the table."""
    fine = {"type": "expect_column_to_exist", "kwargs": {"column": "x"}}
    with pytest.raises(ConfigError) as error:
        validate(table, validation={"expectations": [fine, {"type": type_, "kwargs": kwargs}]})
    assert message in str(error.value)
    assert "validation.expectations[1]" in error.value.where


def test_misspelt_privacy_columns_are_rejected(validate: TableValidator, table: pd.DataFrame) -> None:
    """A column of privacy must be in the table, in data.drop, or a key of requests."""
    data, table = {"drop": ["x"]}, table.rename(columns={"k": "colour"})
    validate(table, data=data, privacy={"pii": ["x", "caller"], "join_on": ["caller"], "columns": {"n": "bucket"}})
    with pytest.raises(ConfigError, match=r"(?s)no column 'color'.*privacy\.pii.*did you mean colour"):
        validate(table, data=data, privacy={"pii": ["color"]})
    with pytest.raises(ConfigError, match="no column 'phone'"):
        validate(table, data=data, privacy={"columns": {"phone": "hash"}})


def test_bounds_on_a_category(validate: TableValidator, table: pd.DataFrame) -> None:
    """A bound on a category is rejected before anything runs."""
    with pytest.raises(ConfigError, match="'k' is category"):
        validate(table, validation={"columns": {"k": {"min": 0}}})


def test_any_name_works_in_any_rule(validate: TableValidator, table: pd.DataFrame) -> None:
    """Any column name works in any rule, and none is markup in the report."""
    rng = np.random.default_rng(1)
    odd = table.copy()
    odd[ODD] = rng.normal(size=(300, len(ODD)))
    odd.loc[3, ODD] = -99.0
    odd["k"] = "<i>" + odd["k"] + "</i>\n" + "é" * 60
    rules = {name: {"min": -9, "max": 9, "nullable": False, "unique": True} for name in ODD}
    failed = validate.rejected_rules(
        odd, validation={"columns": {**rules, "k": {"categories": ["a"]}}, "unique": ODD[:3]}
    )
    assert [rule.column for rule in failed if rule.examples == ("row 4: -99.0",)] == ODD
    assert all(len(example) <= len("row 300: ") + 40 for rule in failed for example in rule.examples)
    page = validate.work.file("data_docs.html").read_text()
    assert "<script" not in page
    assert "<i>" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "{{7*7}}" in page


def test_the_report_needs_no_network(validate: TableValidator, table: pd.DataFrame) -> None:
    """The report loads nothing from elsewhere."""
    validation = validate(table, data={"time": "t"})
    page = validate.work.file(validation.docs).read_text()
    assert not any(word in page for word in ("http:", "https:", "src=", "href=", "@import", "url("))
    assert all(rule.rule in page for rule in validation.rules)


def test_records_are_plain_json(validate: TableValidator, table: pd.DataFrame) -> None:
    """Records are equal after JSON, and Great Expectations can read the suite."""
    validation = validate(table, data={"time": "t"}, validation={"columns": {"x": {"min": 0}}})
    assert Validation.model_validate_json(validation.model_dump_json()) == validation
    suite = json.loads(validate.work.file("suite.json").read_text())
    assert all(expectation.keys() == {"type", "kwargs", "meta", "severity"} for expectation in suite["expectations"])
    assert validate.work.contract().target == "y"


def test_great_expectations_is_silent_and_offline(
    validate: TableValidator,
    table: pd.DataFrame,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Great Expectations runs in memory, without network, files or output."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(home)

    def no_network(*_: object) -> None:
        raise AssertionError("network")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    validate(table, data={"time": "t"})
    assert capfd.readouterr() == ("", "")
    assert not list(home.iterdir())


def test_similar_levels_give_a_warning(validate: TableValidator, table: pd.DataFrame) -> None:
    """Levels and classes that differ in case or spaces only are reported; of personal data without the values."""
    odd = table.assign(k=np.where(table.index % 9 == 0, "Red ", table["k"]))
    odd["y"] = np.where(odd.index % 7 == 0, "YES", odd["y"])
    rules = warned(validate(odd, cross_validation={"folds": 2}))
    assert (rules["k"].rule, rules["k"].severity, rules["k"].count) == ("levels_distinct", "warn", 34)
    assert "'Red '" in rules["k"].examples[0]
    assert "'yes' and 'YES'" in rules["y"].examples
    assert warned(validate(odd, cross_validation={"folds": 2}, privacy={"pii": ["k"]}))["k"].examples == ()
    assert "k" not in warned(validate(table))
    assert {"k", "y"}.isdisjoint(warned(validate(odd, cross_validation={"folds": 2}, data={"ignore_case": ["k", "y"]})))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (["1,500", "2,250", "3,750"], "data.decimal: ','"),
        (["12/01/2026", "01/02/2026", "02/08/2026"], "data.date_format: {k: '%m/%d/%Y'}"),
        (["12 kg", "3 m"], "write all values in one unit, or set data.columns"),
    ],
)
def test_other_notations_give_a_warning(
    validate: TableValidator, table: pd.DataFrame, values: list[str], words: str
) -> None:
    """The warning names the setting that reads the text; declared columns give no warning."""
    odd = table.assign(k=[values[row % len(values)] for row in range(len(table))])
    rule = warned(validate(odd))["k"]
    assert (rule.rule, rule.severity) == ("notation", "warn")
    assert words in rule.detail
    assert repr(values[0]) in rule.detail
    assert repr(values[0]) not in warned(validate(odd, privacy={"pii": ["k"]}))["k"].detail
    assert "k" not in warned(validate(odd, data={"columns": {"k": "category"}}))


def test_coerced_values_give_a_warning(validate: TableValidator, table: pd.DataFrame) -> None:
    """Values of a declared numeric column that are no numbers are counted and listed; of personal data only counted."""
    odd = table.assign(k=["calm" if row % 10 == 0 else str(row) for row in range(len(table))])
    rule = warned(validate(odd, data={"columns": {"k": "numeric"}}))["k"]
    assert (rule.rule, rule.count, rule.share) == ("values_numeric", 30, 0.1)
    assert "row 1: 'calm'" in rule.examples[0]
    assert warned(validate(odd, data={"columns": {"k": "numeric"}}, privacy={"pii": ["k"]}))["k"].examples == ()
