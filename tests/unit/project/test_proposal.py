"""The config that `towline init` proposes for generated tables, and the project that it writes."""

import sqlite3
from collections.abc import Callable
from pathlib import Path

import fsspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

import towline
from tests.support.checks import at_least_one
from tests.support.commands import CommandResult
from towline.config import DataConfig, PipelineConfig, SqlSource, read_config
from towline.data.schema.detection.notation import _CLOCKS, _DATES, _MOMENTS
from towline.data.source import formats
from towline.project import template
from towline.project.detection import guess_target
from towline.project.expectations import widen
from towline.project.initialization import InitResult
from towline.project.personal_data import detect_personal
from towline.project.sample import _RowSampler, read_sample

Command = Callable[..., CommandResult]
ROWS = 400


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command) -> Path:
    """An empty folder, in which commands run."""
    monkeypatch.delenv("TOWLINE_PROJECT")
    monkeypatch.delenv("TOWLINE_STORE")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def customers() -> pd.DataFrame:
    """Customers who leave or stay, with typical faults of a real table."""
    rng = np.random.default_rng(0)
    visits, leaves = rng.poisson(4, ROWS), rng.random(ROWS) < 0.3
    visits = np.where(leaves, visits // 2, visits)
    first, last = np.array(["Ann", "Bo", "Cleo", "Dan"]), np.array(["Smith", "Jones", "Khan", "Novak", "Berg"])
    letters = "abcdefghijklmnopqrstuvwxyz"
    names = [f"{first[i % 4]} {last[i % 5]}{letters[i % 26]}{letters[i // 26]}" for i in range(ROWS)]
    return pd.DataFrame(
        {
            "customer_id": [f"C{number:05d}" for number in rng.permutation(ROWS)],
            "name": names,
            "email": [f"user{number}@example.com" for number in range(ROWS)],
            "signed_up": pd.date_range("2024-01-01", periods=ROWS, freq="D").strftime("%d/%m/%Y"),
            "visits": visits,
            "plan": rng.choice(["basic", "plus", "pro"], ROWS),
            "spent": [f"{value:.2f}".replace(".", ",") for value in rng.gamma(2, 50, ROWS)],
            "age": pd.Series(rng.integers(18, 80, ROWS)).where(rng.random(ROWS) > 0.1).astype("Int64"),
            "source": "web",
            "cancelled_on": np.where(leaves, "yes", "no"),
            "comment": [f"Called about order {number} and asked for a new invoice, twice" for number in range(ROWS)],
            "churned": np.where(leaves, "left", "stayed"),
        }
    )


@pytest.fixture
def proposed(folder: Path) -> InitResult:
    customers().to_csv(folder / "customers.csv", index=False, sep=";")
    return towline.init("customers.csv", "churned")


def test_colleagues_and_containers_can_read_a_new_project(proposed: InitResult) -> None:
    """Other users may list its folders and read its files."""
    project = proposed.config.parents[1]
    paths = [
        path for name in ("configs", "deployments", "flows") for path in (project / name, *(project / name).rglob("*"))
    ]
    assert {oct(path.stat().st_mode & 0o777) for path in paths if path.is_dir()} == {"0o755"}
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in at_least_one(paths))


def test_the_config_describes_the_table(proposed: InitResult) -> None:
    """It has the table's separator, decimal mark, date format, time, identifier, constant and leak."""
    data = read_config(proposed.config).data
    assert (data.source, data.target, data.separator, data.decimal) == ("customers.csv", "churned", ";", ",")
    assert data.time == "signed_up"
    assert data.date_format == {"signed_up": "%d/%m/%Y"}
    assert set(data.drop) == {"customer_id", "source", "cancelled_on"}
    assert "leak" in proposed.proposal.drop["cancelled_on"]


def test_personal_data_is_declared(proposed: InitResult) -> None:
    """Names of persons and e-mail addresses are personal data, and none of their values is in the config."""
    assert set(read_config(proposed.config).privacy.pii) == {"name", "email"}
    text = proposed.config.read_text()
    assert "example.com" not in text
    assert "Smith" not in text


def test_proposed_rules_hold_for_the_table(proposed: InitResult) -> None:
    """Ranges are wider on both sides, categories are those of the table, and a violation is a warning."""
    rules = read_config(proposed.config).validation
    table = customers()
    visits = rules.columns["visits"]
    assert visits.min == 0
    assert visits.max is not None
    assert visits.max > table["visits"].max()
    assert rules.columns["plan"].categories == ("basic", "plus", "pro")
    assert rules.columns["age"].nullable is None
    assert {rule.severity for rule in rules.columns.values()} == {"warn"}
    (nulls,) = [e for e in rules.expectations if e.type == "expect_column_values_to_not_be_null"]
    assert nulls.kwargs["column"] == "age"
    assert 0.7 < nulls.kwargs["mostly"] < table["age"].notna().mean()
    assert rules.min_rows == ROWS // 2


@pytest.mark.parametrize("values", [1, 2, 4, 100, 399])
def test_the_rule_of_nulls_holds_for_a_column_with_few_values(folder: Path, values: int) -> None:
    """Also if nearly all of its values are null."""
    rng = np.random.default_rng(4)
    rare = [f"{number:.2f}" if row < values else "" for row, number in enumerate(rng.uniform(0, 9, 400))]
    pd.DataFrame({"rare": rare, "x": rng.normal(size=400), "y": rng.normal(size=400)}).to_csv("t.csv", index=False)
    validation = towline.validate(towline.init("t.csv", "y").config).validation
    assert (validation.failed, validation.warned) == (0, 0)


def test_the_split_is_by_time(proposed: InitResult) -> None:
    """With a date in every row, the newest rows are held out."""
    config = read_config(proposed.config)
    assert config.split.by == "time"
    assert config.by_time


def test_a_date_in_three_columns_is_named(folder: Path) -> None:
    """Three years are too few for a split by time; the reason names the columns that hold the rest of the date."""
    days = pd.date_range("2021-01-01", "2023-12-31")
    frame = pd.DataFrame({"year": days.year, "month": days.month, "day": days.day, "room": np.arange(len(days)) % 40})
    frame.assign(price=np.random.default_rng(2).normal(50, 9, len(days))).to_csv("stays.csv", index=False)
    reason = towline.init("stays.csv", target="price").proposal.split_reason
    assert reason == (
        "3 distinct times are too few for a split by time; one column with the date of year, month, day would allow it"
    )


def test_each_dropped_column_has_a_comment_with_the_reason(proposed: InitResult) -> None:
    """The YAML has a comment with the reason."""
    lines = proposed.config.read_text().splitlines()
    (leak,) = [line for line in lines if line.strip().startswith("- cancelled_on")]
    assert "# leak: each of its values" in leak


def test_a_proposal_passes_towline_validate(proposed: InitResult) -> None:
    """The unedited config breaks no rule."""
    checked = towline.validate(proposed.config)
    assert [rule.finding for rule in checked.validation.rules if not rule.passed] == []


def test_the_metric_of_a_target_that_is_mostly_one_value(folder: Path) -> None:
    """The median would be best by mae: no model of the mean could be promoted."""
    rng = np.random.default_rng(3)
    for rate, metric in ((0.3, "rmse"), (8, "mae")):
        pd.DataFrame({"age": rng.integers(18, 80, ROWS), "visits": rng.poisson(rate, ROWS)}).to_csv("visits.csv")
        result = towline.init("visits.csv", target="visits", name=f"rate-{metric}")
        assert (result.proposal.task, read_config(result.config).evaluation.metric) == ("regression", metric)
        assert ("of the targets are 0: by mae" in result.config.read_text()) == (metric == "rmse")


def test_rows_without_a_target_are_counted_exactly(folder: Path) -> None:
    """45 of 1,800 rows: their share as a float is slightly more than 45 / 1,800."""
    frame = pd.DataFrame({"x": np.arange(1800) % 97, "y": np.where(np.arange(1800) % 40 == 0, "", "a")})
    frame.loc[frame["x"] > 50, "y"] = frame.loc[frame["x"] > 50, "y"].replace("a", "b")
    frame.to_csv("rows.csv", index=False)
    config = towline.init("rows.csv", target="y").config.read_text()
    assert "the table has 1,755 with a target" in config


def test_rows_of_one_person_are_in_one_group(folder: Path) -> None:
    """Without a time, an identifier with several rows becomes the group."""
    rng = np.random.default_rng(1)
    table = pd.DataFrame({"patient_id": np.repeat(np.arange(50), 4), "dose": rng.random(200)})
    table["response"] = table["dose"] * 2 + rng.normal(0, 0.5, 200)
    table.to_csv("trial.csv", index=False)
    config = read_config(towline.init("trial.csv", "response").config)
    assert config.data.group == "patient_id"
    assert config.data.time is None


@pytest.mark.parametrize(("name", "group"), [("RANDID", "RANDID"), ("distid", "distid"), ("paid", None)])
def test_a_group_may_have_a_name_in_one_word(folder: Path, name: str, group: str | None) -> None:
    """If the rows of one member stand together, and the name only ends in id."""
    rng = np.random.default_rng(1)
    table = pd.DataFrame({name: np.repeat(rng.permutation(9_000)[:50], 4), "dose": rng.random(200)})
    table["response"] = table["dose"] * 2 + rng.normal(0, 0.5, 200)
    table.to_csv("trial.csv", index=False)
    assert read_config(towline.init("trial.csv", "response").config).data.group == group


def test_dates_of_birth_written_as_numbers_are_personal(folder: Path) -> None:
    rng = np.random.default_rng(1)
    days = pd.Series(pd.date_range("1950-01-01", periods=200, freq="60D")).dt.strftime("%Y%m%d")
    pd.DataFrame({"date_of_birth": days, "birth_weight": rng.integers(2_000, 4_500, 200), "y": rng.random(200)}).to_csv(
        "births.csv", index=False
    )
    assert set(towline.init("births.csv", "y").proposal.pii) == {"date_of_birth"}


def test_all_leaks_are_dropped_at_once(folder: Path) -> None:
    """A sum and a copy that it hides are both found, with their evidence."""
    rng = np.random.default_rng(2)
    table = pd.DataFrame(
        {"casual": rng.poisson(20, 300), "member": rng.poisson(70, 300), "heat": rng.normal(15, 5, 300)}
    )
    table["rentals"] = table["casual"] + table["member"]
    table["rentals_k"] = table["rentals"] / 1000
    table["wind"] = rng.random(300)
    table.to_csv("bikes.csv", index=False)
    proposal = towline.init("bikes.csv", "rentals").proposal
    assert set(proposal.drop) == {"casual", "member", "rentals_k"}
    assert "casual + member = rentals" in proposal.drop["casual"]


def test_a_strong_column_is_kept_and_named(command: Command, folder: Path) -> None:
    """A column that may be legitimate is a feature; a comment in the config says what to check."""
    rng = np.random.default_rng(5)
    table = pd.DataFrame(rng.normal(size=(500, 3)), columns=["listed", "rooms", "age"])
    table["sold"] = 50 * table["listed"] + 3 * table["rooms"] + 4 * rng.normal(size=500)
    table.to_csv("houses.csv", index=False)
    proposal = towline.init("houses.csv", "sold").proposal
    assert proposal.drop == {}
    assert "drop it if it is known only afterwards" in proposal.allow_leaks["listed"]
    assert command("validate", "configs/houses.yaml").code == 0


def test_a_row_with_totals_is_left_out_and_reported(command: Command, folder: Path) -> None:
    """A row with totals would make columns look like copies of the target."""
    rng = np.random.default_rng(6)
    table = pd.DataFrame({"shop": [f"S{n}" for n in range(200)], "visits": rng.integers(10, 500, 200)})
    table["sales"] = (3 * table["visits"] + 300 * rng.random(200)).round(2)
    total = pd.DataFrame({"shop": ["Total"], "visits": [table["visits"].sum()], "sales": [table["sales"].sum()]})
    pd.concat([table, total]).to_csv("shops.csv", index=False)
    screen = command("init", "shops.csv", "--target", "sales").out
    assert "totals or means" in screen
    assert "leak" not in screen


def test_numbers_with_many_words_among_them_are_numbers(command: Command, folder: Path) -> None:
    """Words that stand again and again among many different numbers are null; codes with letters stay a category."""
    rng = np.random.default_rng(9)
    amount, few = rng.normal(50, 9, 400).round(1), rng.integers(1, 6, 400)
    table = pd.DataFrame(
        {
            "amount": np.where(rng.random(400) < 0.3, rng.choice(["unknown", "#REF!"], 400), amount.astype(str)),
            "few": np.where(rng.random(400) < 0.3, "6 or more", few.astype(str)),
            "code": [f"{number}" if number % 3 else f"V{number}" for number in rng.integers(100, 300, 400)],
            "y": (amount + rng.normal(size=400)).round(2),
        }
    )
    table.to_csv("sales.csv", index=False)
    screen = command("init", "sales.csv", "--target", "y").out
    assert "of the values are other texts" in screen
    assert read_config(folder / "configs/sales.yaml").data.columns == {"amount": "numeric"}


def test_yes_and_no_in_several_spellings_are_two_classes(command: Command, folder: Path) -> None:
    """A target and a feature with several spellings are booleans, in the table and in a request."""
    rng = np.random.default_rng(7)
    signal = rng.normal(size=300)
    yes, no = rng.choice(["Yes ", "yes", "Y"], 300), rng.choice(["No", "n"], 300)
    table = pd.DataFrame({"x": signal, "member": rng.permutation(np.where(signal > 0, yes, no))})
    table["bought"] = np.where(signal + rng.normal(size=300) > 0, yes, no)
    table.to_csv("shop.csv", index=False)
    assert "5 spellings" in command("init", "shop.csv", "--target", "bought").out
    config = read_config(folder / "configs/shop.yaml")
    assert config.data.columns == {"member": "boolean", "bought": "boolean"}
    assert (config.task, config.data.positive) == ("binary", "true")
    assert command("validate", "configs/shop.yaml").code == 0


def test_levels_that_differ_in_case_are_one_level(command: Command, folder: Path) -> None:
    """A target and a feature are listed in ignore_case; codes of one letter and personal data are not."""
    rng = np.random.default_rng(8)
    signal = rng.normal(size=300)
    table = pd.DataFrame({"x": signal, "city": rng.choice(["Bonn", "BONN ", "Jena"], 300)})
    table["code"] = rng.choice(["a", "A", "b"], 300)
    table["email"] = rng.choice(["ann@lee.org", "Ann@Lee.org", "bob@ray.org", "eve@poe.org"], 300)
    table["left"] = np.where(signal + rng.normal(size=300) > 0, rng.choice(["Ja", "ja "], 300), "nein")
    table.to_csv("shop.csv", index=False)
    assert "are one level" in command("init", "shop.csv", "--target", "left").out
    config = read_config(folder / "configs/shop.yaml")
    assert config.data.ignore_case == ("city", "left")
    assert (config.task, config.data.positive) == ("binary", "ja")
    assert "email" in config.privacy.pii
    assert command("validate", "configs/shop.yaml").code == 0


def test_null_markers_of_numbers_are_null_in_categories(command: Command, folder: Path) -> None:
    """NA is null in a category if it is in a column of numbers, too, or if it is not one of several short codes."""
    rng = np.random.default_rng(4)
    table = pd.DataFrame({"weight": rng.normal(size=90).round(3), "origin": rng.choice(["DE", "FR", "NA"], 90)})
    table["island"] = rng.choice(["Biscoe", "N/A", "Dream"], 90)
    table["kind"] = np.where(table["weight"] > 0, "Adelie", "Gentoo")
    table.to_csv("complete.csv", index=False)
    table.loc[:4, "weight"] = np.nan
    table.to_csv("missing.csv", index=False, na_rep="NA")
    table["weight"] = table["weight"].map("{} kg".format, na_action="ignore")
    table.to_csv("units.csv", index=False, na_rep="NA")
    for name, markers in {"complete": {"N/A"}, "missing": {"NA", "N/A"}, "units": {"NA", "N/A"}}.items():
        assert command("init", f"{name}.csv", "--target", "kind").code == 0
        assert set(read_config(folder / f"configs/{name}.yaml").data.na_values) == markers
    words = pd.read_csv("complete.csv", keep_default_na=False).replace({"DE": "Germany", "FR": "France"})
    words.to_csv("words.csv", index=False)
    words.replace({"Germany": "G", "France": "F"}).to_csv("letters.csv", index=False)
    words.assign(continent=rng.choice(["AS", "EU", "NA"], 90)).to_csv("codes.csv", index=False)
    for name, markers in {"words": {"NA", "N/A"}, "letters": {"NA", "N/A"}, "codes": {"N/A"}}.items():
        assert command("init", f"{name}.csv", "--target", "kind").code == 0
        assert set(read_config(folder / f"configs/{name}.yaml").data.na_values) == markers
    columns = command("validate", "configs/missing.yaml", "--json").json["contract"]["columns"]
    origin = next(column for column in columns if column["name"] == "origin")
    assert (origin["categories"], origin["nullable"]) == (["DE", "FR"], True)


@pytest.mark.parametrize(
    ("sentinel", "size", "dose", "is_null"),
    [
        (-999, 1.0, 1.0, True), (9999, 1.0, 1.0, True), (-99, -3.0, 1.0, True),
        (-99, -30.0, 1.0, False), (-999, 1.0, -999.0, False), (7, 1.0, 1.0, False),
    ],
)  # fmt: skip
def test_numbers_far_from_all_others_mean_null(
    command: Command, folder: Path, sentinel: int, size: float, dose: float, *, is_null: bool
) -> None:
    """A number such as -999 means null, unless another number of its column, or a column with few of it, is near it."""
    rng = np.random.default_rng(4)
    table = pd.DataFrame({"size": rng.uniform(1, 9, 90).round(2), "dose": rng.uniform(1, 9, 90).round(2)})
    table["y"] = table["size"] + rng.normal(size=90).round(2)
    table.loc[:3, "size"] = sentinel
    table.loc[4, ["size", "dose"]] = size, dose
    table.to_csv("t.csv", index=False)
    assert command("init", "t.csv", "--target", "y").code == 0
    assert read_config(folder / "configs/t.yaml").data.na_values == ((str(sentinel),) if is_null else ())
    columns = command("validate", "configs/t.yaml", "--json").json["contract"]["columns"]
    assert next(column for column in columns if column["name"] == "size")["nullable"] == is_null


def test_blanks_and_quotes_around_names_need_not_be_given(command: Command, folder: Path) -> None:
    """The config has the name as in the header; the error for a name without blanks suggests it."""
    rows = "".join(f"{n % 7}, {n},{2000 + n}\n" for n in range(60))
    (folder / "race.csv").write_text(f"'lap',   Time, year\n{rows}")
    assert command("init", "race.csv", "--target", "Time", "--time", "year").code == 0
    config = read_config(folder / "configs/race.yaml")
    assert (config.data.target, config.data.time) == ("   Time", " year")
    assert command("init", "race.csv", "--target", "lap", "--name", "lap").code == 0
    assert read_config(folder / "configs/lap.yaml").data.target == "'lap'"
    refused = command("validate", "configs/race.yaml", "--set", "data.target=Time")
    assert "did you mean '   Time'? The spaces" in refused.err


def test_a_header_of_values_is_refused(command: Command, folder: Path) -> None:
    """With a first line of names, as the error asks for, the table is used."""
    rows = "".join(f"{n % 7}.5,{n}.25,c{n % 2}\n" for n in range(60))
    (folder / "wine.csv").write_text(rows)
    refused = command("init", "wine.csv")
    assert (refused.code, "not the names of columns" in refused.err, "first line" in refused.err) == (2, True, True)
    (folder / "wine.csv").write_text("acid,ash,sort\n" + rows)
    assert command("init", "wine.csv", "--yes").code == 0


@pytest.mark.parametrize(
    ("target", "what"), [("same", "has only one value"), ("remark", "has 300 different texts in 300 rows")]
)
def test_a_constant_or_a_remark_is_refused_as_a_target(command: Command, folder: Path, target: str, what: str) -> None:
    """Constants and remarks are no targets; no config is written."""
    table = pd.DataFrame({"x": np.arange(300.0) % 7, "same": 1, "remark": [f"remark {n} on it" for n in range(300)]})
    table.to_csv("t.csv", index=False)
    refused = command("init", "t.csv", "--target", target)
    assert refused.code == 2
    assert what in refused.err
    assert "--target" in refused.err
    assert not (folder / "configs").exists()


def test_a_file_with_other_columns_is_named(command: Command, folder: Path) -> None:
    """The error names the files of the folder, not temporary copies of them."""
    (folder / "months").mkdir()
    for name, header in (("may", "a,y"), ("june", "a,y,extra")):
        width = header.count(",") + 1
        rows = "\n".join(",".join([str(n)] * width) for n in range(30))
        (folder / "months" / f"{name}.csv").write_text(f"{header}\n{rows}\n")
    refused = command("init", "months", "--target", "y")
    assert refused.code == 2
    assert "the columns differ from those of june.csv" in refused.err
    assert str(folder / "months" / "may.csv") in refused.err
    assert "extra" in refused.err


def test_columns_of_lists_or_bytes_are_dropped_and_durations_are_seconds(command: Command, folder: Path) -> None:
    """The proposed config passes validation, and the profile of the table is written."""
    rng = np.random.default_rng(6)
    seconds = rng.integers(1, 9_000, 300)
    table = pa.table(
        {
            "took": pa.array([None, *seconds[1:].tolist()], pa.duration("ms")),
            "tags": pa.array([["a"]] * 300),
            "raw": pa.array([b"x"] * 300),
            "y": seconds / 1000 + rng.normal(0, 2, 300),
        }
    )
    pq.write_table(table, "jobs.parquet")
    proposed = towline.init("jobs.parquet", "y")
    assert set(proposed.proposal.drop) == {"tags", "raw"}
    (took,) = towline.validate(proposed.config).contract.feature_columns
    assert (took.kind, took.min, took.max) == ("numeric", seconds[1:].min() / 1000, seconds[1:].max() / 1000)
    assert command("data", "profile", "jobs.parquet", "--target", "y").code == 0
    assert "took" in Path("jobs-profile.html").read_text()


def test_columns_of_one_name_have_the_names_that_pandas_gives_them(folder: Path) -> None:
    """The second column ``a`` is ``a.1`` in the contract, whether the file is read as a whole or streamed."""
    rng = np.random.default_rng(7)
    rows = rng.normal(size=(200, 3))
    lines = [f"{a},{b},{c},{a + 2 * c + rng.normal():.3f}" for a, b, c in rows.tolist()]
    Path("t.csv").write_text("\n".join(["a,b,a,y", *lines]))
    columns = towline.validate(towline.init("t.csv", "y").config).contract.columns
    (streamed, *_) = formats.stream_csv(Path("t.csv"), ",")
    assert [column.name for column in columns] == ["a", "b", "a.1", "y"]
    assert streamed.column_names == ["a", "b", "a.1", "y"] == list(pd.read_csv("t.csv").columns)


def test_numbers_with_a_marker_of_null_among_them(folder: Path) -> None:
    """A question mark among numbers is null; the config passes validation."""
    rng = np.random.default_rng(3)
    table = pd.DataFrame({"power": rng.integers(40, 200, 100).astype(str), "weight": rng.random(100)})
    table["mpg"] = 30 - table["weight"] * 5 + rng.normal(0, 1, 100)
    table.loc[[3, 40], "power"] = "?"
    table.to_csv("cars.csv", index=False)
    checked = towline.validate(towline.init("cars.csv", "mpg").config)
    (power,) = [column for column in checked.contract.columns if column.name == "power"]
    assert power.kind == "numeric"
    assert power.nullable


def test_ordered_columns_and_a_key_become_expectations(folder: Path) -> None:
    """low_temp is never above high_temp, and a city has one row a day."""
    rng = np.random.default_rng(4)
    days = pd.date_range("2025-01-01", periods=100, freq="D").strftime("%Y-%m-%d")
    low = rng.normal(5, 4, 200)
    table = pd.DataFrame({"day": np.repeat(days, 2), "city": ["Oslo", "Rome"] * 100, "low_temp": low})
    table["high_temp"] = low + rng.random(200) * 10
    table["sales"] = rng.poisson(20, 200)
    table.to_csv("weather.csv", index=False)
    config = read_config(towline.init("weather.csv", "sales").config)
    expected = {e.type: e.kwargs for e in config.validation.expectations}
    pair = expected["expect_column_pair_values_a_to_be_greater_than_b"]
    assert (pair["column_A"], pair["column_B"]) == ("high_temp", "low_temp")
    assert expected["expect_compound_columns_to_be_unique"]["column_list"] == ["day", "city"]
    assert towline.validate(config).validation.failed == 0


def test_a_query_is_a_source(folder: Path) -> None:
    """The rows of a query get a proposal like those of a file."""
    with sqlite3.connect("shop.db") as database:
        table = customers()
        table["spent"] = table["visits"] * 3.5
        table.to_sql("customers", database, index=False)
    query = "SELECT visits, plan, age, spent FROM customers"
    config = read_config(towline.init("sqlite:///shop.db", "spent", query=query, name="shop").config)
    assert config.data.source.query == query  # type: ignore[union-attr]
    assert config.data.drop == ("visits",)


def test_a_large_query_is_sampled(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a query with many rows only a sample is in memory, in the order of the rows; the number of rows is exact."""
    rows = 50_000
    with sqlite3.connect("shop.db") as database:
        pd.DataFrame({"number": range(rows), "spent": 1.5, "note": [None] * (rows - 1) + ["late"]}).to_sql(
            "orders", database, index=False
        )
    monkeypatch.setattr("towline.project.sample.MAX_CELLS", 9_000)
    sample = read_sample(SqlSource(url="sqlite:///shop.db", query="SELECT * FROM orders"), folder, folder)
    numbers = sample.table["number"].to_pylist()
    assert (sample.rows, len(numbers)) == (rows, 3_000)
    assert numbers == sorted(numbers)
    assert abs(np.mean(numbers) / rows - 0.5) < 0.05, "the sample is not uniform"


def test_the_command_writes_a_project_with_the_reasons(command: Command, folder: Path) -> None:
    """In an empty folder there are flows, tasks, a config and a README; the screen names each decision."""
    customers().to_csv("customers.csv", index=False)
    result = command("init", "customers.csv", "--target", "churned", "--name", "churn", "--yes")
    assert result.code == 0, result.err
    assert "identifies the row" in result.out
    for path in ("flows/training.py", "tasks/data.py", "configs/churn.yaml", ".gitignore", "README.md"):
        assert (folder / path).is_file(), path
    assert "churn" in (folder / "deployments/ci/github.yml").read_text()
    assert "bike" not in (folder / "deployments/ci/github.yml").read_text()


def test_in_a_project_only_the_config_is_written(command: Command, folder: Path) -> None:
    """A second table adds its config; edited flows remain, and a config is replaced only on request."""
    customers().to_csv("customers.csv", index=False)
    command("init", "customers.csv", "--target", "churned")
    flow = folder / "flows" / "training.py"
    flow.write_text("# edited\n")
    assert command("init", "customers.csv", "--target", "visits", "--name", "visits", "--yes").code == 0
    assert flow.read_text() == "# edited\n"
    again = command("init", "customers.csv", "--target", "churned", "--yes")
    assert again.code == 2
    assert "--force" in again.err
    assert command("init", "customers.csv", "--target", "churned", "--yes", "--force").code == 0


def test_a_missing_target_is_an_error_that_lists_the_columns(command: Command, folder: Path) -> None:
    """Without a terminal the error lists the columns, and its remedy works; --yes takes the likeliest column."""
    customers().to_csv("customers.csv", index=False)
    refused = command("init", "customers.csv")
    assert refused.code == 2
    assert "churned" in refused.err
    assert command("init", "customers.csv", "--yes").code == 0
    assert read_config(folder / "configs" / "customers.yaml").data.target == "churned"
    misspelt = command("init", "customers.csv", "--target", "chruned")
    assert "did you mean churned?" in misspelt.err


def test_update_replaces_unedited_flows(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After an upgrade, unedited files are replaced; an edited file remains, and the new one is written next to it."""
    template.write_project(folder, "demo", "demo.yaml")
    texts = dict(template.read_template("demo", "demo.yaml"))
    newer = {path: f"{text}# newer\n" if path.startswith("flows/") else text for path, text in texts.items()}
    (folder / "flows" / "drift.py").write_text("# edited\n")
    monkeypatch.setattr(template, "read_template", lambda _name, _config: iter(newer.items()))
    replaced, edited = template.update_project(folder)
    assert edited == ["flows/drift.py"]
    assert "flows/training.py" in replaced
    assert (folder / "flows" / "training.py").read_text().endswith("# newer\n")
    assert (folder / "flows" / "drift.py").read_text() == "# edited\n"
    assert (folder / "flows" / "drift.py.new").read_text().endswith("# newer\n")
    assert template.update_project(folder) == ([], [])


def test_the_wheel_holds_the_template() -> None:
    """pyproject.toml puts each path of the template into the wheel."""
    import tomllib

    from tests.support.paths import REPOSITORY

    build = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert build["force-include"] == {path: f"towline/project/template/{path}" for path in template.PATHS}


@pytest.mark.parametrize(
    ("name", "values", "what"),
    [
        ("contact", ["ann@example.com", "bo@example.org"], "e-mail addresses"),
        ("Phone No", ["+44 20 7946 0018", "(555) 010-9999"], "phone numbers"),
        ("Téléphone", ["01 23 45 67 89", "06 98 76 54 32"], "phone numbers"),
        ("Geburtsdatum", ["1981-03-04", "1990-12-01"], "dates of birth"),
        ("date de naissance", ["1981-03-04", "1990-12-01"], "dates of birth"),
        ("Apellidos", ["García", "Pérez Soto"], "names of persons"),
        ("Straße", ["Hauptstraße 5", "Marktgasse 12a"], "addresses"),
        ("reference", ["078-05-1120", "219-09-9999"], "national identity numbers"),
        ("account", ["DE89 3704 0044 0532 0130 00", "GB29NWBK60161331926819"], "bank accounts"),
        ("last_name", ["Smith", "Jones"], "names of persons"),
        ("name", ["Ann Smith", "Jones, Bo"], "names of persons"),
        ("home address", ["12 High Street", "4b Park Lane"], "addresses"),
        ("Date of Birth", ["1990-01-02"], "dates of birth"),
        ("client_ip", ["10.0.0.1", "192.168.1.9"], "network addresses"),
        ("given_name", ["lachlan", "deakin"], "names of persons"),
        ("passenger", ["Cumings, Mrs. John Bradley (Florence Briggs Thayer)", "Bo, Mr. A"], "names of persons"),
        ("date of birth", ["19081209", "19990219"], "dates of birth"),
        ("comment", ["The doctor was late", "Mr. Smith called about order 7, twice"], None),
        ("car name", ["ford torino 500", "audi 100 ls"], None),
        ("plan", ["basic", "plus"], None),
        ("name", ["hawaiian", "classic_dlx"], None),
        ("email_opened", ["yes", "no"], None),
        ("DOB", ["0", "17", "482"], None),
    ],
)
def test_personal_data_by_name_and_value(name: str, values: list[str], what: str | None) -> None:
    """A column is personal if its values have the form that its name suggests, or one of personal data only."""
    assert detect_personal(name, values, 1.0) == what


def test_a_sample_is_bounded_and_keeps_the_order() -> None:
    """Whatever the number of batches, this number of rows remains, in order and from all parts of the table."""
    import pyarrow as pa

    sampler = _RowSampler(100, 0)
    for start in range(0, 10_000, 500):
        sampler.add(pa.table({"row": range(start, start + 500)}))
    rows = sampler.result()["row"].to_pylist()
    assert sampler.rows == 10_000
    assert len(rows) == 100
    assert rows == sorted(rows)
    assert min(rows) < 2_000
    assert max(rows) > 8_000


def test_a_target_is_guessed_by_its_name() -> None:
    """A column with a typical name of targets, else the last column."""
    assert guess_target(["a", "target", "b"]) == "target"
    assert guess_target(["a", "b"]) == "b"


@pytest.mark.parametrize(("low", "high"), [(0, 1), (3, 97), (-5, 5), (0.001, 0.002), (7, 7), (1e9, 3e9), (-3, 0)])
def test_a_range_gets_room_and_keeps_its_sign(low: float, high: float) -> None:
    """The proposed range contains the observed one, but no number with another sign."""
    below, above = widen(low, high)
    assert below <= low <= high <= above
    assert low < 0 or below >= 0
    assert high > 0 or above <= 0


def test_the_yaml_is_plain(proposed: InitResult) -> None:
    """The text is the config in the result."""
    assert PipelineConfig.model_validate(yaml.safe_load(proposed.config.read_text())) == proposed.pipeline


def test_many_rows_without_a_target(folder: Path) -> None:
    """The limit is above the share of the table, which a comment names; a run accepts the table."""
    rng = np.random.default_rng(5)
    table = pd.DataFrame({"size": rng.random(200)})
    table["wage"] = (10 + 5 * table["size"] + rng.normal(0, 2, 200)).where(rng.random(200) < 0.4)
    table.to_csv("wages.csv", index=False)
    result = towline.init("wages.csv", "wage")
    assert result.pipeline.data.max_unlabelled > table["wage"].isna().mean()
    assert "% of the rows have no target" in result.config.read_text()
    assert towline.validate(result.config).validation.failed == 0


@pytest.mark.parametrize(
    "date_format", [date + clock for date in _DATES for clock in ("", *_CLOCKS[-3:])] + [*_MOMENTS]
)
def test_each_detected_date_format_can_be_written_into_a_config(date_format: str) -> None:
    assert DataConfig(source="t", target="y", date_format=date_format).date_format == date_format


def test_a_target_of_numbers_and_other_texts_is_numeric(folder: Path) -> None:
    """Rows with another text are left out, and the config has their share; marks between thousands are numbers."""
    rng = np.random.default_rng(4)
    table = pd.DataFrame({"depth": rng.uniform(0, 9, 400)})
    lead = (0.5 + table["depth"] + rng.random(400)).map("{:.2f}".format)
    table.assign(lead=lead.mask(rng.random(400) < 0.24, "lost")).to_csv("lead.csv", index=False)
    result = towline.init("lead.csv", "lead")
    assert result.pipeline.data.columns == {"lead": "numeric"}
    assert "of the rows have other texts, such as 'lost', and are left out" in result.config.read_text()
    assert towline.validate(result.config).validation.failed == 0
    table.assign(price=rng.integers(100, 1_500, 400)).assign(
        price=lambda frame: frame["price"].map("{:,}".format)
    ).to_csv("price.csv", index=False)
    assert towline.init("price.csv", "price").pipeline.data.columns == {}


def test_detection_limits_are_read_as_numbers(folder: Path) -> None:
    """The config says how they are read; with data.na_values, rows without a measured target are left out."""
    rng = np.random.default_rng(4)
    table = pd.DataFrame({"depth": rng.uniform(0, 9, 400)})
    lead = (0.5 + table["depth"] + rng.random(400)).map("{:.2f}".format)
    table.assign(lead=lead.mask(table["depth"] < 1, "<1.5")).to_csv("lead.csv", index=False)
    result = towline.init("lead.csv", "lead")
    assert "texts such as '<1.5': a bound is its number" in result.config.read_text()
    assert towline.validate(result.config).contract.target_column.min == 1.5
    measured = towline.validate(result.config, overrides=["data.na_values=['<1.5']"])
    assert (measured.contract.target_column.min or 0) > 1.5


@pytest.mark.parametrize(("pattern", "other"), [("{:.1f}", "<0,5"), ("1.{:06.2f}", "n. V."), ("1'{:06.2f}", "POA")])
def test_a_target_of_numbers_in_another_notation_and_other_texts_is_numeric(
    folder: Path, pattern: str, other: str
) -> None:
    """With a decimal comma or marks between thousands; a feature in another notation does not prevent it."""
    rng = np.random.default_rng(6)
    size = rng.uniform(1, 90, 400)
    target = [pattern.format(9 * value + rng.random()).replace(".", ",") for value in size]
    target = [text.replace("1,", "1.", 1) if pattern.startswith("1.") else text for text in target]
    target = [text.replace(",", ".") if "'" in text else text for text in target]
    target[::7] = [other] * len(target[::7])
    table = pd.DataFrame({"size": [f"{value:.2f}".replace(".", ",") for value in size], "y": target})
    table.to_csv("t.csv", index=False, sep=";")
    result = towline.init("t.csv", "y")
    assert result.pipeline.data.columns == {"y": "numeric"}
    contract = towline.validate(result.config).contract
    assert [(column.kind, column.levels > 200) for column in contract.columns] == [("numeric", True)] * 2


def test_few_rows_without_a_time(folder: Path) -> None:
    """The column is proposed, with the share of the rows that are left out; validation accepts the table."""
    rng = np.random.default_rng(5)
    table = pd.DataFrame({"created": pd.date_range("2026-01-01", periods=400, freq="7h").strftime("%d/%m/%Y %H:%M")})
    table["size"] = rng.random(400)
    table["wage"] = 10 + 5 * table["size"] + rng.normal(0, 2, 400)
    table.loc[[3, 90], "created"] = None
    table.to_csv("wages.csv", index=False)
    result = towline.init("wages.csv", "wage")
    assert result.pipeline.data.time == "created"
    assert "0.50% of the rows have no time and are left out" in result.config.read_text()
    validation = towline.validate(result.config).validation
    assert validation.failed == 0
    assert "rows_left_out" in {rule.rule for rule in validation.rules}


@pytest.mark.parametrize("others", [0, 3])
def test_points_between_thousands_are_read_as_in_the_other_columns(folder: Path, others: int) -> None:
    """In a file with decimal commas, 1.115 together with 642 is a count, also if few columns have both marks."""
    rng = np.random.default_rng(8)
    count, price = rng.integers(1, 5_000, 300), rng.uniform(1, 9_000, 300)
    german = [f"{value:,.2f}".translate(str.maketrans(",.", ".,")) for value in price]
    table = pd.DataFrame({"menge": [f"{value:,}".replace(",", ".") for value in count], "preis": german})
    for number in range(others):
        table[f"mass{number}"] = [f"{value:.1f}".replace(".", ",") for value in rng.uniform(1, 99, 300)]
    table["erloes"] = [f"{value:.2f}".replace(".", ",") for value in 2 * count + price + rng.normal(0, 900, 300)]
    table.to_csv("verkauf.csv", index=False, sep=";")
    result = towline.init("verkauf.csv", "erloes")
    assert (result.pipeline.data.decimal, result.pipeline.data.thousands) == (",", ".")
    contract = towline.validate(result.config).contract
    largest = {column.name: column.max for column in contract.columns}
    assert largest["menge"] == count.max()
    assert largest["preis"] == pytest.approx(price.max(), abs=0.01)


def test_names_and_values_that_yaml_would_misread(folder: Path) -> None:
    """Columns called yes, null or "a: 1", and a name with a line break, are quoted."""
    rng = np.random.default_rng(6)
    names = ["x: 1", "y #2", "a\nb", "null", "- item"]
    table = pd.DataFrame({name: rng.choice(["yes", "no", "#a", "1: 2"], 80) for name in names})
    table["yes"] = rng.normal(0, 1, 80)
    table.to_csv("names.csv", index=False)
    config = read_config(towline.init("names.csv", "yes").config)
    assert config.data.target == "yes"
    assert set(names) <= config.validation.columns.keys()
    assert set(config.validation.columns["a\nb"].categories or ()) == {"yes", "no", "#a", "1: 2"}


@pytest.mark.parametrize(
    ("text", "remedy"),
    [("a\n1\n2\n", "features"), ("a,b\n1,\n2,\n", "--target"), ("", "header")],
)
def test_a_table_that_cannot_be_used_names_a_remedy(command: Command, folder: Path, text: str, remedy: str) -> None:
    """One column, a target without values and an empty file are refused; nothing is written."""
    (folder / "bad.csv").write_text(text)
    refused = command("init", "bad.csv", "--target", "a" if text.startswith("a\n") else "b")
    assert refused.code == 2
    assert remedy in refused.err
    assert [path.name for path in folder.iterdir()] == ["bad.csv"]


def test_a_table_behind_a_url(folder: Path, command: Command) -> None:
    """The config names the URL, and the model's name is that of the file."""
    memory = fsspec.filesystem("memory")
    memory.pipe(
        "/bucket/Flats 2026.csv", b"size,rent\n" + b"".join(b"%d,%d\n" % (n % 60, n * 7 % 900) for n in range(ROWS))
    )
    try:
        result = command("init", "memory://bucket/Flats 2026.csv", "--target", "rent", "--yes")
        assert result.code == 0, result.err
        assert read_config(folder / "configs" / "flats_2026.yaml").data.source == "memory://bucket/Flats 2026.csv"
        assert command("init", "memory://bucket/houses.csv", "--target", "rent", "--yes").code == 2
    finally:
        memory.store.clear()


def test_a_table_without_a_header(folder: Path, command: Command) -> None:
    """The error for an unknown target names the cause, and its remedy works."""
    rows = "".join(f"{n % 30},{n * 7 % 50}.5,{'ab'[n % 3 % 2]}\n" for n in range(ROWS))
    (folder / "iris.csv").write_text(rows)
    result = command("init", "iris.csv", "--target", "species", "--yes")
    assert result.code == 2
    assert "add a first line with the names of the columns" in result.err
    (folder / "iris.csv").write_text("length,width,species\n" + rows)
    assert command("init", "iris.csv", "--target", "species", "--yes").code == 0
