"""The profile of a table is small and exact, and is plain JSON."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.support.checks import at_least_one
from towline.config import DataConfig, PipelineConfig
from towline.data.profile import profile_features
from towline.data.schema.inference import infer_contract

DATA = Path(__file__).parents[3] / "data"


@pytest.mark.parametrize(
    ("table", "target", "time"), [("bike_hourly", "rentals", "datetime"), ("bank_marketing", "subscribed", "date")]
)
def test_profiles_of_real_tables(table: str, target: str, time: str) -> None:
    """Counts add up to the number of rows, in each column and each grid, within 12 KB a column."""
    rows = pd.read_parquet(DATA / f"{table}.parquet")
    contract = infer_contract(rows, PipelineConfig(name="x", data=DataConfig(source="t", target=target, time=time)))
    made = profile_features(contract.features(rows), contract)
    assert json.loads(json.dumps(made, allow_nan=False)) == made
    assert list(made["columns"]) == [column.name for column in contract.feature_columns]
    for name, facts in at_least_one(made["columns"].items()):
        assert len(json.dumps(facts)) < 12_000
        assert facts["count"] + facts["nulls"] == made["rows"] == len(rows)
        if facts["kind"] == "category":
            assert sum(facts["counts"].values()) + facts["other"] == facts["count"]
        elif facts["kind"] == "numeric":
            grid = facts["grid"]
            assert len(grid["cells"]) == 256
            assert sum(grid["cells"]) + grid["below"] + grid["above"] == facts["count"]
            assert len(facts["quantiles"]) == 101
            assert facts["quantiles"][50] == np.nanmedian(rows[name])


def test_profiles_of_unusual_columns() -> None:
    """Constants, far tails, huge numbers, infinities, empty columns and long levels give a profile without NaN."""
    rows = pd.DataFrame(
        {
            "y": np.arange(1000) / 3,
            "tail": np.append(np.arange(999) / 7, 1e12),
            "huge": np.tile([1e308, -1e308], 500),
            "close": np.tile([1e17, 1e17 + 16], 500),
            "inf": np.tile([np.inf, 0.5, np.nan, -1.0], 250),
            "one": np.tile([5.0, np.nan], 500),
            "long": [f"{'x' * 300}{i % 400}" for i in range(1000)],
            "when": pd.date_range("2026-01-01", periods=1000, freq="D"),
        }
    )
    config = PipelineConfig(name="x", data=DataConfig(source="t", target="y", columns={"long": "category"}))
    contract = infer_contract(rows, config)
    made = profile_features(contract.features(rows), contract)["columns"]
    for facts in at_least_one(made.values()):
        assert len(json.dumps(facts, allow_nan=False)) < 12_000
    assert made["tail"]["grid"]["above"] == 1
    assert made["tail"]["grid"]["high"] < 250
    assert (made["inf"]["count"], made["inf"]["max"]) == (500, 0.5)  # infinities are null
    assert made["one"]["count"] == 500
    assert made["long"]["other"] > 0
    assert made["when"]["min"] == "2026-01-01T00:00:00"
    empty = profile_features(contract.features(rows[:0]), contract)["columns"]
    assert empty["tail"]["grid"] is None
    assert empty["when"]["max"] is None


def test_order_of_rows_does_not_matter() -> None:
    """Equal rows in another order have an equal profile."""
    rows = pd.DataFrame({"y": np.arange(300) / 3, "c": ["a", "b", "c"] * 100, "n": np.arange(300) % 7 / 4})
    contract = infer_contract(rows, PipelineConfig(name="x", data=DataConfig(source="t", target="y")))
    assert profile_features(contract.features(rows), contract) == profile_features(
        contract.features(rows[::-1]), contract
    )


def test_a_range_too_narrow_for_cells() -> None:
    """A column of the smallest floats has a grid like any other column."""
    rows = pd.DataFrame({"x": [5e-324, 1e-310, 0.0] * 10, "y": range(30)})
    contract = infer_contract(rows, PipelineConfig(name="x", data=DataConfig(source="t", target="y")))
    assert sum(profile_features(contract.features(rows), contract)["columns"]["x"]["grid"]["cells"]) == 30
