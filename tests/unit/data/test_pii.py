"""Personal data: columns of privacy.pii in the contract, the canonical rows, the profile and errors."""

import contextlib
import datetime as dt
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.support.checks import at_least_one
from towline.config import PipelineConfig, build_config
from towline.data.example_row import example_row
from towline.data.profile import profile_features
from towline.data.schema.contract import Contract
from towline.data.schema.inference import infer_contract
from towline.data.schema.rows import RowReader
from towline.data.source import sources
from towline.data.validation import suite
from towline.data.workspace import open_workspace
from towline.errors import ConfigError, DataValidationError

PII = ["town", "age", "born", "vip", "phone", "who"]


def table(rows: int = 200) -> pd.DataFrame:
    rng = np.random.default_rng(3)
    frame = pd.DataFrame(
        {
            "size": rng.normal(0, 1, rows),
            "town": rng.choice(["Ulm-marker", "Bonn-marker", "Kiel-marker"], rows),
            "age": rng.integers(20, 90, rows) + 0.4711,
            "born": pd.Timestamp("1950-01-01") + pd.to_timedelta(rng.integers(0, 20_000, rows), unit="D"),
            "vip": rng.random(rows) < 0.4,
            "phone": [f"marker-{n:05}" for n in rng.permutation(rows)],
            "who": rng.choice(["g1-marker", "g2-marker", "g3-marker", "g4-marker"], rows),
        }
    )
    frame["y"] = 3 * frame["size"] + (frame["town"] == "Ulm-marker") + rng.normal(0, 0.1, rows)
    return frame


def config(**changes: object) -> PipelineConfig:
    raw = {
        "name": "t",
        "data": {"source": "t.parquet", "target": "y", "group": "who"},
        "privacy": {"pii": PII},
        **changes,
    }
    return build_config(raw, "t.yaml")


@pytest.fixture
def contract() -> Contract:
    return infer_contract(table(), config())


def test_a_contract_has_no_personal_values(contract: Contract) -> None:
    """A pii column has neither range nor categories in the contract, whatever its kind and role; others have them."""
    text = contract.model_dump_json()
    assert "marker" not in text
    assert "4711" not in text
    by_name = {column.name: column for column in contract.columns}
    assert {name for name, column in by_name.items() if column.pii} == set(PII)
    assert by_name["size"].min is not None
    assert all(by_name[name].min is None and by_name[name].categories is None for name in PII)
    assert "marker" not in str(example_row(contract))


def test_categories_become_pseudonyms(contract: Contract) -> None:
    """A table and a request give the same canonical row, equal runs have equal pseudonyms, and null stays null."""
    rows = table(20)
    features = contract.features(rows)
    assert not features["town"].isin(rows["town"]).any()
    assert features.groupby(rows["town"])["town"].nunique().eq(1).all()
    assert features["town"].nunique() == rows["town"].nunique()
    sent = [{name: row[name] for name in features.columns} for row in rows.to_dict("records")]
    read = RowReader(contract).read(sent)
    at = list(features.columns).index("town")
    assert [row[at] for row in read] == features["town"].tolist()
    nothing = [{**sent[0], "town": None, "age": None}]
    read_nothing = RowReader(contract).read(nothing)[0]
    assert read_nothing[at] is None
    assert np.isnan(read_nothing[list(features.columns).index("age")])
    assert contract.features(pd.DataFrame(nothing))[["town", "age"]].isna().all(axis=None)
    again = infer_contract(table(), config())
    assert again.features(rows).equals(features)


def test_numbers_are_rounded_to_three_digits(contract: Contract) -> None:
    """Numbers are rounded equally in a table and in a request, to the last bit, whatever their size and sign."""
    ages = [0.0, -0.0, 48213.579, -48213.579, 1e-300, 1.2345e149, 41, 0.1 + 0.2, 2.675, 1005, 1015.0000000001]
    rows = table(len(ages)).assign(age=ages)
    features = contract.features(rows)
    sent = [{name: row[name] for name in features.columns} for row in rows.to_dict("records")]
    at = list(features.columns).index("age")
    assert [row[at] for row in RowReader(contract).read(sent)] == features["age"].tolist()
    assert features["age"].tolist()[2:7] == [48200.0, -48200.0, 1e-300, 1.23e149, 41.0]


def test_a_profile_has_counts_only(contract: Contract) -> None:
    """The profile of a pii column has the number of values and nulls, but no value."""
    facts = profile_features(contract.features(table()), contract)["columns"]
    names = [column.name for column in contract.feature_columns if column.pii]
    assert names
    for name in at_least_one(names):
        assert facts[name].keys() == {"kind", "count", "nulls", "levels"}
    assert "quantiles" in facts["size"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": {"source": "t", "target": "y", "time": "at"}, "privacy": {"pii": ["at"]}}, "data.time"),
        ({"evaluation": {"slices": ["town"]}}, "evaluation.slices"),
    ],
)
def test_configs_that_reveal_personal_values_are_rejected(change: dict[str, object], message: str) -> None:
    """A pii column can be neither data.time nor a slice of the report."""
    with pytest.raises(ConfigError, match=message):
        config(**change)


def checked(folder: Path, frame: pd.DataFrame, settings: PipelineConfig) -> suite.Validation:
    frame.to_parquet(folder / "t.parquet", index=False)
    dataset = sources.load_dataset(settings.data, folder, folder, None, settings.privacy.pii)
    work = open_workspace(settings, dataset, folder, folder, None)
    try:
        return suite.validate_table(work, settings, settings.validation, None, dt.datetime(2026, 11, 1, tzinfo=dt.UTC))
    finally:
        for name in ("contract.json", "suite.json", "validation.json", "data_docs.html"):
            if work.file(name).exists():
                assert "marker" not in work.file(name).read_text(), name


def test_validation_shows_no_value(tmp_path: Path) -> None:
    """Broken rules of pii columns report row numbers; neither reports nor the error show values."""
    rules = {
        "validation": {
            "columns": {"town": {"categories": ["Rome"], "severity": "error"}, "age": {"max": 50}},
            "expectations": [
                {"type": "expect_column_max_to_be_between", "kwargs": {"column": "age", "max_value": 3}},
                {
                    "type": "expect_column_most_common_value_to_be_in_set",
                    "kwargs": {"column": "who", "value_set": ["x"]},
                },
            ],
        }
    }
    frame = pd.concat([table(), table().head(3)])
    with pytest.raises(DataValidationError) as caught:
        checked(tmp_path, frame, config(**rules))
    text = json.dumps(caught.value.as_dict())
    assert "***" in text
    assert "marker" not in text
    assert "4711" not in text


def test_errors_of_reading_show_no_value(tmp_path: Path) -> None:
    """A pii column of numbers with other texts, or of values that do not fit its kind, is named without examples."""
    frame = table()
    frame["phone"] = [str(4711 + n) if n else "marker" for n in range(len(frame))]
    validation = checked(tmp_path, frame, config())
    (rule,) = (rule for rule in validation.rules if rule.rule == "values_numeric")
    assert (rule.column, rule.count, rule.examples) == ("phone", 1, ())
    data = {"source": "t.parquet", "target": "y", "columns": {"town": "datetime"}}
    with pytest.raises(ConfigError, match="not datetime") as unfit:
        checked(tmp_path, table(), config(data=data))
    assert "row 1" in str(unfit.value)
    assert "marker" not in str(unfit.value)


@pytest.mark.parametrize("column", ["town", "age"])
def test_buckets_of_personal_data_are_rejected(tmp_path: Path, column: str) -> None:
    """Edges or levels of buckets are values of the table, so a pii column cannot have buckets."""
    with pytest.raises(ConfigError, match="buckets are values"):
        checked(tmp_path, table(), config(privacy={"pii": PII, "columns": {column: "bucket"}}))


def test_snapshot_is_removed_at_the_end_of_the_run(tmp_path: Path) -> None:
    """With data.keep_snapshot: false no row remains after a successful or a failed run; the run key is unchanged."""
    table().to_parquet(tmp_path / "t.parquet", index=False)
    default = config()
    gone = config(data={**default.data.model_dump(), "keep_snapshot": False})
    assert gone.digest == default.digest
    store = tmp_path / "store"
    for fails in (False, True):
        dataset = sources.load_dataset(gone.data, tmp_path, store, None)
        work = open_workspace(gone, dataset, tmp_path, store, None)
        with pytest.raises(ZeroDivisionError) if fails else contextlib.nullcontext(), work.exclusive_lock():
            assert len(work.table()) == 200
            assert list(store.rglob("*.parquet")) == [work.file("snapshot.parquet")]
            if fails:
                raise ZeroDivisionError
        assert not list(store.rglob("*.parquet"))
