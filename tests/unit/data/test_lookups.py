"""Lookups: rows and columns get equal values, those of pandas' joins; tables with later entries are refused."""

import datetime as dt
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from towline.config import PipelineConfig, build_config, locating_errors, read_config
from towline.data.schema.contract import Contract
from towline.data.schema.inference import infer_contract
from towline.data.schema.rows import RowReader
from towline.data.source import sources
from towline.data.validation.custom_rules import RowExamples, check_rules
from towline.data.workspace import Workspace, open_workspace
from towline.errors import ConfigError, DataError, TowlineError

SHOPS = ["a", "Ä", "ẞ東", "7", "o'x", "unknown"]


def make_config(lookup: object, *, time: str | None = "at", **sections: object) -> PipelineConfig:
    data = {"source": "rows.parquet", "target": "y", **({"time": time} if time else {})}
    return build_config({"name": "m", "data": data, "lookups": {"shops": lookup}, **sections}, "test")


def make_rows(count: int = 300, seed: int = 0) -> pd.DataFrame:
    """Rows with keys of text and number, some null or without an entry, and times around a change of clocks."""
    rng = np.random.default_rng(seed)
    shop = pd.Series(rng.choice(SHOPS, count), dtype=object)
    shop[rng.random(count) < 0.1] = None
    times = pd.Timestamp("2026-03-29") + pd.to_timedelta(rng.integers(0, 200, count), "h")
    number = np.where(rng.random(count) < 0.1, np.nan, rng.integers(0, 6, count))
    return pd.DataFrame({"shop": shop, "number": number, "at": times, "y": rng.normal(size=count)})


def make_history(seed: int = 0) -> pd.DataFrame:
    """Entries that change with time, in random order, some of them with null values."""
    rng = np.random.default_rng(seed)
    keys = [(shop, hour) for shop in SHOPS[:-1] for hour in rng.choice(200, 30, replace=False)]
    rng.shuffle(keys)
    frame = pd.DataFrame({"shop": [shop for shop, _ in keys], "size": rng.normal(size=len(keys))})
    frame["valid_from"] = [pd.Timestamp("2026-03-29") + pd.Timedelta(hours=int(hour)) for _, hour in keys]
    frame["region"] = rng.choice(["north", "süd", "east"], len(keys))
    frame["opened"] = pd.Timestamp("2020-01-01") + pd.to_timedelta(rng.integers(0, 1000, len(keys)), "D")
    frame.loc[rng.random(len(keys)) < 0.1, ["size", "region", "opened"]] = None
    return frame


def infer(folder: Path, rows: pd.DataFrame, table: pd.DataFrame, config: PipelineConfig) -> tuple[Workspace, Contract]:
    rows.to_parquet(folder / "rows.parquet", index=False)
    if not (folder / "shops.csv").exists():
        table.to_csv(folder / "shops.csv", index=False)
    dataset = sources.load_dataset(config.data, folder, folder / "store", None)
    work = open_workspace(config, dataset, folder, folder / "store", None)
    contract = infer_contract(work.table(), config, dataset.formats, work.lookups(config))
    return work, Contract.model_validate_json(contract.model_dump_json())


def check_rows_and_columns(contract: Contract, rows: pd.DataFrame) -> pd.DataFrame:
    """The canonical frame, after a check that single rows give the same values."""
    frame = contract.features(rows)
    reader = RowReader(contract)
    records = rows[list(reader.fields)].astype(object).where(rows[list(reader.fields)].notna(), None).to_dict("records")
    for record in records:
        record.update({name: value.isoformat() for name, value in record.items() if isinstance(value, dt.datetime)})
    columns = reader.columns([reader.read([record])[0] for record in records])
    for column, values in zip(contract.canonical_columns, columns, strict=True):
        series = pd.Series(values, name=column.name, dtype=values.dtype)
        pd.testing.assert_series_equal(series, frame[column.name], check_exact=True)
    return frame


@pytest.mark.parametrize("seed", range(5))
def test_a_row_gets_the_latest_entry_at_or_before_its_time(tmp_path: Path, seed: int) -> None:
    lookup = {"table": "shops.csv", "key": "shop", "columns": ["size", "region", "opened"], "time": "valid_from"}
    rows, table = make_rows(seed=seed), make_history(seed)
    _, contract = infer(tmp_path, rows, table, make_config(lookup, features={"wide": "size > 0 or region = 'north'"}))
    frame = check_rows_and_columns(contract, rows)
    numbered = rows.reset_index().sort_values("at", kind="stable")
    with_key = numbered[numbered["shop"].notna()]
    dates = ["valid_from", "opened"]
    read = pd.read_csv(tmp_path / "shops.csv", parse_dates=dates, float_precision="round_trip")
    read = read.sort_values("valid_from")
    merged = pd.merge_asof(
        with_key.astype({"shop": str}), read, left_on="at", right_on="valid_from", by="shop"
    ).set_index("index").reindex(range(len(rows)))  # fmt: skip
    assert merged["valid_from"].eq(merged["at"]).any()  # the sample contains equal times
    for name in ("size", "region", "opened"):
        expected = merged[name].astype(object).where(merged[name].notna(), None).tolist()
        values = frame[name].astype(object).where(frame[name].notna(), None).tolist()
        assert values == expected
    assert contract.lookups[0].unmatched == int(merged["valid_from"].isna().sum())


def test_numbers_are_equal_however_they_are_written(tmp_path: Path) -> None:
    """A number, its text and its float are one key, in the table and in the row; a joined code is a category."""
    (tmp_path / "shops.csv").write_text("id,code\n1.0,x\n 2 ,y\n3,z\n4e0,x\n")
    lookup = {"table": "shops.csv", "key": {"number": "id"}, "columns": {"shop_code": "code"}}
    rows = make_rows()
    _, contract = infer(tmp_path, rows, rows, make_config(lookup, features={"is_x": "shop_code = 'x'"}))
    frame = check_rows_and_columns(contract, rows)
    codes = {1.0: "x", 2.0: "y", 3.0: "z", 4.0: "x"}
    assert frame["shop_code"].where(frame["shop_code"].notna(), None).tolist() == [
        codes.get(number) for number in rows["number"]
    ]
    assert [column.name for column in contract.input_columns] == ["shop", "number", "at"]


def test_several_key_columns(tmp_path: Path) -> None:
    rows = make_rows()
    table = pd.DataFrame([(shop, n, n * 1.5) for shop in SHOPS[:4] for n in range(4)], columns=["shop", "number", "v"])
    lookup = {"table": "shops.csv", "key": ["shop", "number"], "columns": ["v"]}
    _, contract = infer(tmp_path, rows, table, make_config(lookup))
    frame = check_rows_and_columns(contract, rows)
    expected = rows.merge(table, how="left", on=["shop", "number"])["v"]
    assert np.array_equal(frame["v"], expected, equal_nan=True)


def test_a_feature_of_an_unused_joined_column_is_computed(tmp_path: Path) -> None:
    """The column ``constant`` is ignored, but a feature reads it; a model without the feature does not need the key."""
    rows, table = make_rows(), pd.DataFrame({"shop": SHOPS, "constant": 2.0})
    rows["shop"] = rows["shop"].fillna("a")
    lookup = {"table": "shops.csv", "key": "shop", "columns": ["constant"]}
    _, contract = infer(tmp_path, rows, table, make_config(lookup, features={"twice": "constant * number"}))
    assert contract.derived[0].role == "ignored"
    frame = check_rows_and_columns(contract, rows)
    assert np.array_equal(frame["twice"], rows["number"] * 2, equal_nan=True)
    last = len(contract.canonical_columns) - 1
    row = {"shop": "a", "number": 3, "at": "2026-01-01", "y": 0}
    assert RowReader(contract, {last}).read([row])[0][last] == 6.0


def test_a_changed_table_gives_another_run(tmp_path: Path) -> None:
    """Steps of a run with the former table are not used; a workspace keeps its copy of the table."""
    lookup = {"table": "shops.csv", "key": "shop", "columns": ["v"]}
    config, rows, table = make_config(lookup), make_rows(), pd.DataFrame({"shop": SHOPS, "v": range(6)})
    first, contract = infer(tmp_path, rows, table, config)
    assert infer(tmp_path, rows, table, config)[0].key == first.key
    (tmp_path / "shops.csv").write_text("shop,v\na,9\n")
    second, changed = infer(tmp_path, rows, table, config)
    assert second.key != first.key
    assert changed.lookups[0].digest != contract.lookups[0].digest
    again = infer_contract(first.table(), config, (), first.lookups(config))
    assert again.lookups == contract.lookups


LOOKUP = {"table": "shops.csv", "key": "shop", "columns": ["size"]}
TIMED = {**LOOKUP, "time": "valid_from"}


@pytest.mark.parametrize(
    ("lookup", "message", "remedy", "corrected"),
    [
        (LOOKUP, "the entries change with time", "set lookups.shops.time: valid_from", TIMED),
        ({**TIMED, "columns": ["sice"]}, "no column 'sice' in", "size", TIMED),
        ({**TIMED, "key": {"chop": "shop"}}, "the key 'chop' is not a column", "the columns are shop, number", TIMED),
        ({**TIMED, "key": {"number": "shop"}}, "the key 'number' is numeric", "", TIMED),
        ({**TIMED, "table": "absent.csv"}, "", "correct lookups.shops.table", TIMED),
        (
            {**TIMED, "columns": {"number": "size"}}, "has the name of a column of the rows",
            "columns: {shops_number: size}", {**TIMED, "columns": {"shops_number": "size"}},
        ),
    ],
)  # fmt: skip
def test_errors_have_a_remedy_that_works(
    tmp_path: Path, lookup: dict[str, object], message: str, remedy: str, corrected: dict[str, object]
) -> None:
    with pytest.raises(TowlineError) as caught:
        infer(tmp_path, make_rows(), make_history(), make_config(lookup))
    assert message in caught.value.what
    assert remedy in caught.value.remedy
    assert "lookups.shops" in caught.value.where
    infer(tmp_path, make_rows(), make_history(), make_config(corrected))


def test_the_table_has_its_own_separator(tmp_path: Path) -> None:
    """The separator in data is for the rows."""
    (tmp_path / "shops.csv").write_text("shop;size\na;1,5\nb;2,5\n")
    config = make_config(LOOKUP)
    config = config.model_copy(update={"data": config.data.model_copy(update={"decimal": ","})})
    _, contract = infer(tmp_path, make_rows(), make_rows(), config)
    assert contract.features(make_rows())["size"].max() == 1.5  # some rows have the key a


def test_repeated_keys_are_named(tmp_path: Path) -> None:
    (tmp_path / "shops.csv").write_text("shop,size\na,1\nb,2\na,3\n")
    with pytest.raises(TowlineError, match="1 keys occur more than once: a") as caught:
        infer(tmp_path, make_rows(), make_rows(), make_config(LOOKUP))
    assert caught.value.remedy == "keep one entry for each key"


def test_entries_from_the_future_of_a_row_are_refused(tmp_path: Path) -> None:
    """Each key occurs once, but its time is after that of rows; both remedies work."""
    (tmp_path / "shops.csv").write_text("shop,size,updated\na,1,2026-04-02\n7,2,2026-04-01\n")
    with pytest.raises(ConfigError, match="'updated' is later than the row") as caught:
        infer(tmp_path, make_rows(), make_rows(), make_config(LOOKUP))
    assert "set lookups.shops.time: updated" in caught.value.remedy
    assert "lookups.shops.timeless: true" in caught.value.remedy
    for remedy in ({"time": "updated"}, {"timeless": True}):
        infer(tmp_path, make_rows(), make_rows(), make_config({**LOOKUP, **remedy}))


@pytest.mark.parametrize(
    ("lookup", "sections", "message"),
    [
        (TIMED, {"time": None}, "lookups.shops.time: needs the time of each row"),
        ({**LOOKUP, "key": "y"}, {}, "the key 'y' is the target"),
        (LOOKUP, {"privacy": {"pii": ["shop"]}}, "the key 'shop' is in privacy.pii"),
        (LOOKUP, {"features": {"size": "number"}}, "features has the name 'size' too"),
        ({**LOOKUP, "kinds": {"sice": "category"}}, {}, "did you mean size?"),
    ],
)
def test_a_config_that_cannot_work_is_refused(
    lookup: dict[str, object], sections: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        make_config(lookup, **sections)  # type: ignore[arg-type]
    assert message in "".join(caught.value.details)


def test_flows_take_a_config_with_lookups() -> None:
    """Prefect reads the parameters of a flow as mappings of their fields."""
    assert dict(make_config(TIMED).lookups["shops"])["time"] == "valid_from"


def test_an_unreadable_file_keeps_the_remedy_of_its_reader(tmp_path: Path) -> None:
    (tmp_path / "shops.csv").write_text("shop,size\na,1\nb,2,3,4\n")
    with pytest.raises(TowlineError) as caught:
        infer(tmp_path, make_rows(), make_rows(), make_config(LOOKUP))
    assert caught.value.what == "4 fields, but the header has 2"
    assert "shops.csv" in caught.value.where
    assert "put the file there" not in caught.value.remedy


def test_boolean_and_datetime_keys(tmp_path: Path) -> None:
    """Keys are read like the row's columns, from a file with types and from text; a null key has no entry."""
    rows = make_rows().assign(open=np.array([True, False, None] * 100, dtype=object))
    rows["day"] = rows["at"].dt.floor("D").where(rows["number"].notna())
    days = pd.Series(pd.date_range("2026-03-29", periods=5))
    pd.DataFrame({"open": [False, True], "staff": [0.5, 3.0]}).to_parquet(tmp_path / "staff.parquet")
    pd.DataFrame({"day": days.dt.strftime("%Y-%m-%d"), "rain": range(5)}).to_csv(tmp_path / "days.csv", index=False)
    pd.DataFrame({"day": days, "open": [True, False] * 2 + [True], "visits": np.arange(5) + 0.5}).to_parquet(
        tmp_path / "visits.parquet"
    )
    lookups = {
        "shops": {"table": "staff.parquet", "key": "open", "columns": ["staff"]},
        "days": {"table": "days.csv", "key": "day", "columns": ["rain"]},
        "visits": {"table": "visits.parquet", "key": ["day", "open"], "columns": ["visits"]},
    }
    _, contract = infer(tmp_path, rows, rows, make_config(lookups["shops"], lookups=lookups))
    frame = check_rows_and_columns(contract, rows)
    day = (rows["day"] - days[0]).dt.days
    assert frame["staff"].equals(rows["open"].map({True: 3.0, False: 0.5}).astype(float).rename("staff"))
    assert frame["rain"].equals(day.where(day < 5).astype(float).rename("rain"))
    matches = (day < 5) & ((day % 2 == 0) == rows["open"]) & rows["open"].notna()
    assert frame["visits"].equals((day + 0.5).where(matches).rename("visits"))


@pytest.mark.parametrize("time", [None, "valid_from"])
@pytest.mark.parametrize("rows", [0, 3], ids=["no rows", "null keys"])
def test_a_table_without_entries_is_refused(tmp_path: Path, rows: int, time: str | None) -> None:
    """Its columns would be null in every row."""
    table = make_history().head(rows).assign(shop=pd.Series([None] * rows, dtype=object))
    table.to_parquet(tmp_path / "shops.parquet", index=False)
    config = make_config({**LOOKUP, "table": "shops.parquet", **({"time": time} if time else {})})
    with pytest.raises(DataError) as caught:
        infer(tmp_path, make_rows(), make_rows(), config)
    assert caught.value.where.startswith(("lookups.shops", str(tmp_path / "shops.parquet")))
    (tmp_path / "shops.csv").write_text("shop,size,valid_from\n")
    with pytest.raises(DataError, match="there is a header, but no row"):
        infer(tmp_path, make_rows(), make_rows(), make_config(LOOKUP))


def test_numeric_keys_with_other_values_all_have_a_remedy_that_works(tmp_path: Path) -> None:
    """The error names both numeric keys; the remedy is the YAML that corrects both."""
    rows = make_rows().assign(code=[7, 8, 9] * 100)
    (tmp_path / "shops.csv").write_text("number,code,size\n1,7,1.5\n2,x8,2.5\n3a,9,3.5\n")
    lookup = {"table": "shops.csv", "key": ["number", "code"], "columns": ["size"]}
    with pytest.raises(ConfigError, match="the key 'number' is numeric") as caught:
        infer(tmp_path, rows, rows, make_config(lookup))
    assert "3a" in caught.value.details[0]
    assert "the key 'code' is numeric" in caught.value.details[1]
    assert "x8" in caught.value.details[1]
    remedy = caught.value.remedy.partition("set ")[2]
    assert remedy.startswith("data.columns: {")
    kinds = yaml.safe_load(remedy.removeprefix("data.columns: "))
    config = make_config(lookup)
    config = config.model_copy(update={"data": config.data.model_copy(update={"columns": kinds})})
    _, contract = infer(tmp_path, rows, rows, config)
    frame = check_rows_and_columns(contract, rows)
    assert frame["size"].notna().tolist() == ((rows["number"] == 1) & (rows["code"] == 7)).tolist()


POSITIONS = """name: m
data: {source: rows.parquet, target: y, time: at}
lookups:
  shops:
    table: shops.csv
    key: shop
    columns: [size]
    time: valid_from
  more:
    table: shops.csv
    key: {number: size, shop: shop}
    columns: {width: size}
    time: valid_from
features:
  wide: size > 1
"""


@pytest.mark.parametrize(
    ("text", "changed", "positions"),
    [
        ("key: shop", "key: chop", ["6:10"]),
        ("columns: [size]", "columns: [sice]", ["7:15"]),
        ("{number: size, ", "{nummer: size, ", ["11:11"]),
        ("    time: valid_from\n  more", "  more", ["4:3"]),
        ("size > 1", "size > 'a'", ["15:3"]),
        ("{number: size, ", "{nummer: size, schop: shop, ", ["11:11", "schop"]),
        ("shops.csv\n    key: shop", "absent.csv\n    key: shop", ["4:3"]),
        ("key: shop", "key: y", ["6:10"]),
        ("size > 1", "y > 1", ["15:3"]),
        ("key: shop\n    columns: [size]", "key: y\n    columns: [size, width]", ["6:10", "line 12, column 15"]),
    ],
)
def test_errors_name_the_line_and_column_of_the_config(
    tmp_path: Path, text: str, changed: str, positions: list[str]
) -> None:
    """Whether the config or the tables cause them; several errors of one kind are reported together."""
    assert text in POSITIONS
    path = tmp_path / "m.yaml"
    path.write_text(POSITIONS.replace(text, changed, 1))
    with pytest.raises(TowlineError) as caught, locating_errors(path):
        infer(tmp_path, make_rows(), make_history(), read_config(path))
    assert caught.value.where.startswith(f"{path}:{positions[0]}")
    for place in positions[1:]:
        assert place in str(caught.value)


@pytest.mark.parametrize(("shops", "passed"), [("abc", True), ("ab", False)])
def test_rows_without_an_entry_give_a_warning(tmp_path: Path, shops: str, passed: bool) -> None:
    """A third of the rows has another shop than the lookup table."""
    rows = make_rows().assign(shop=["a", "b", "c"] * 100)
    table, config = pd.DataFrame({"shop": list(shops), "size": np.arange(len(shops)) + 0.5}), make_config(LOOKUP)
    work, contract = infer(tmp_path, rows, table, config)
    (rule,) = (
        rule
        for rule in check_rules(RowExamples(work.table()), contract, config.training)
        if rule.rule == "rows_in_lookup"
    )
    assert (rule.passed, rule.severity, rule.column) == (passed, "warn", "shop")
    assert rule.count == (0 if passed else 100)
