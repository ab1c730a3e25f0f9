"""Features of the config: columns that the contract computes from the columns of a row."""

import math
import re
from typing import Any

import numpy as np
import pandas as pd
import pytest

from towline.config import PipelineConfig, build_config
from towline.data.example_row import example_row
from towline.data.schema.contract import Contract
from towline.data.schema.inference import infer_contract
from towline.data.schema.rows import RowReader
from towline.data.validation.leakage import find_leaks
from towline.errors import ConfigError, DataError, InputValidationError

FEATURES = {
    "ratio": "rooms / nullif(persons, 0)",
    "weekend": "weekday(at) >= 5",
    "region": "case when zip like '1%' then 'north' else 'south' end",
    "age": "days_between(built, at)",
    "renewed": "greatest(built, timestamp '2020-01-01')",
}


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    at = pd.Timestamp("2025-01-01") + pd.to_timedelta(rng.integers(0, 500 * 24, 400), "h")
    rooms = rng.integers(1, 9, 400).astype(float)
    return pd.DataFrame(
        {
            "at": at,
            "built": at - pd.to_timedelta(rng.integers(100, 5000, 400), "D"),
            "rooms": np.where(rng.random(400) < 0.1, np.nan, rooms),
            "persons": rng.integers(0, 5, 400),
            "zip": rng.choice(["01067", "10115", "80331", "12043"], 400),
            "name": [f"person {number}" for number in range(400)],
            "price": rooms * 100 + rng.normal(size=400),
        }
    )


def make_config(features: dict[str, str] | None = None, **sections: Any) -> PipelineConfig:
    data = {"source": "x", "target": "price", "time": "at", **sections.pop("data", {})}
    raw = {"name": "t", "data": data, "features": FEATURES if features is None else features, **sections}
    return build_config(raw, "the config")


@pytest.fixture(scope="module")
def contract(table: pd.DataFrame) -> Contract:
    return infer_contract(table.drop(columns="name"), make_config(data={"columns": {"at": "ignore"}}))


def to_rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows as a client sends them."""
    texts = table.assign(**{name: table[name].dt.strftime("%Y-%m-%dT%H:%M:%S") for name in ("at", "built")})
    rows: list[dict[str, Any]] = texts.astype(object).where(texts.notna(), None).to_dict("records")
    return rows


def test_kinds_follow_from_the_expressions(contract: Contract) -> None:
    """A number, a boolean, a category and times; a time has calendar parts and an age like other times."""
    kinds = {column.name: column.kind for column in contract.derived_features}
    expected = ["numeric", "boolean", "category", "numeric", "datetime"]
    assert kinds == dict(zip(FEATURES, expected, strict=True))
    assert next(c.categories for c in contract.derived if c.name == "region") == ("north", "south")
    assert "month" in next(c.derive for c in contract.derived if c.name == "renewed")


def test_inputs_are_the_columns_that_expressions_read(contract: Contract) -> None:
    """A column that an expression reads is an input, also if it is no feature; derived features are no inputs."""
    assert [c.name for c in contract.input_columns] == ["at", "built", "rooms", "persons", "zip"]
    assert "at" not in [c.name for c in contract.feature_columns]
    assert example_row(contract).keys() == {"at", "built", "rooms", "persons", "zip"}
    assert RowReader(contract).fields == ("at", "built", "rooms", "persons", "zip")


def test_rows_and_tables_have_equal_features(contract: Contract, table: pd.DataFrame) -> None:
    """A request and a table are read to the same values, to the last bit."""
    frame, rows = contract.features(table), RowReader(contract).read(to_rows(table))
    names = [column.name for column in contract.canonical_columns]
    assert list(frame.columns) == names
    for place, name in enumerate(names):
        values = [None if value is pd.NaT or value != value else value for value in frame[name]]
        assert [None if row[place] != row[place] else row[place] for row in rows] == values
    known = table["persons"] > 0
    assert np.array_equal(frame["ratio"][known], (table["rooms"] / table["persons"])[known], equal_nan=True)
    assert frame["ratio"][~known].isna().all()


def test_a_field_with_the_name_of_a_feature_is_ignored(contract: Contract, table: pd.DataFrame) -> None:
    """A client cannot set a feature."""
    (row,) = to_rows(table.head(1))
    reader = RowReader(contract)
    assert reader.read([row | {"region": "west", "ratio": 1e9}]) == reader.read([row])


def test_a_feature_that_no_prediction_depends_on_is_not_computed(contract: Contract, table: pd.DataFrame) -> None:
    """A compiled model that does not use a feature skips it; the other features keep their values and positions."""
    row = to_rows(table.head(1))
    names = [column.name for column in contract.canonical_columns]
    (everything,), (some,) = RowReader(contract).read(row), RowReader(contract, {names.index("region")}).read(row)
    place = names.index("region")
    assert some[:5] == everything[:5]
    assert some[place] == everything[place]
    assert all(pd.isna(value) for value in [*some[5:place], *some[place + 1 :]])


def test_a_missing_input_is_an_error(contract: Contract, table: pd.DataFrame) -> None:
    """The error names the column, not the feature."""
    with pytest.raises(InputValidationError, match="at"):
        RowReader(contract).read([{key: value for key, value in to_rows(table)[0].items() if key != "at"}])
    with pytest.raises(DataError, match="columns are missing: 'persons'"):
        contract.features(table.drop(columns="persons"))


def test_numbers_beyond_the_limits_are_null(table: pd.DataFrame) -> None:
    """No estimator gets an infinity; text that means infinity is null in a request."""
    contract = infer_contract(table, make_config({"huge": "exp(rooms * 15)", "low": "rooms - 1e300 * 1e10"}))
    assert [c.note for c in contract.derived] == ["", "has no values"]
    (row,) = to_rows(table.head(1))
    reader = RowReader(contract)
    assert math.isnan(reader.read([row | {"rooms": 8}])[0][-1])
    assert reader.read([row | {"rooms": 2}])[0][-1] == math.exp(30)
    anomalies: list[tuple[str, str]] = []
    assert math.isnan(reader.read([row | {"rooms": "inf"}], anomalies)[0][-1])
    assert ("rooms", "null") in anomalies


def test_a_contract_without_features_is_read_as_before() -> None:
    """The contract of an earlier version has no derived columns."""
    contract = Contract.model_validate({"target": "y", "task": "regression", "columns": []})
    assert contract.derived == ()


def test_a_changed_expression_is_another_training(table: pd.DataFrame) -> None:
    """Fits of another expression are not reused."""
    configs = [make_config({"x": text}) for text in ("rooms + 1", "rooms + 2")]
    assert configs[0].training.digest != configs[1].training.digest


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({"x": "rooms +"}, r"features.x: column 8: unexpected the end"),
        ({"x": "price * 2"}, r"features.x: column 1: 'price' is the target"),
        ({"x": "rooms + secret"}, r"features.x: column 9: 'secret' is in data.drop"),
        ({"x": "rooms + 1", "y": "x + 1"}, r"features.y: column 1: 'x' is a feature itself"),
        ({"x y": "1"}, r"the name of a feature must be letters"),
    ],
)
def test_an_expression_is_checked_with_the_config(features: dict[str, str], message: str) -> None:
    """The error names the feature and the place in the config before any data is read."""
    with pytest.raises(ConfigError, match=message):
        make_config(features, data={"drop": ["secret"]})


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({"x": "room + 1"}, r"column 1: unknown column 'room' \[features.x\].*did you mean rooms\?"),
        ({"x": "zip + 1"}, r"column 1: \+ needs a number, not a text \[features.x\].*cast"),
        ({"rooms": "persons + 1"}, r"the table has a column of this name"),
        ({"x": "persons + 1"}, r"column 1: column 'persons' is not read"),
    ],
)
def test_an_expression_is_checked_with_the_table(table: pd.DataFrame, features: dict[str, str], message: str) -> None:
    """Columns and types are known when the contract is inferred: `towline validate` reports them."""
    with pytest.raises(ConfigError) as error:
        infer_contract(table, make_config(features, data={"columns": {"persons": "ignore"}}))
    shown = f"{error.value.what} [{error.value.where}] {error.value.remedy}"
    assert re.search(message, shown)


def test_features_of_personal_data_are_personal_data(table: pd.DataFrame) -> None:
    """The contract has no values of them, and models get pseudonyms."""
    features = {"initial": "substring(name, 8, 1)", "income": "rooms * 1234.567"}
    contract = infer_contract(table, make_config(features, privacy={"pii": ["name", "rooms"]}))
    columns = {column.name: column for column in contract.derived}
    assert all(column.pii and column.min is None and column.categories is None for column in columns.values())
    frame = contract.features(table)
    assert not set(frame["initial"].dropna()) & set("0123456789")
    assert frame["income"][table["rooms"] == 3].unique().tolist() == [3700.0]
    names = [column.name for column in contract.canonical_columns]
    rows = RowReader(contract).read(to_rows(table))
    assert [row[names.index("initial")] for row in rows] == frame["initial"].tolist()


def test_a_feature_that_reveals_the_target_is_a_leak(table: pd.DataFrame) -> None:
    """The search for leaks sees features like other columns."""
    leaky = table.assign(billed=table["price"] * 0.5)
    contract = infer_contract(leaky, make_config({"double": "billed * 4 + 1"}))
    leaks = {name for leak in find_leaks(leaky, contract, 0) for name in leak.columns}
    assert {"billed", "double"} <= leaks
