"""Distances from a profile equal scipy's distances of the rows; unusual values are counted."""

import datetime as dt
import math
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from scipy.spatial.distance import jensenshannon
from scipy.stats import wasserstein_distance

from tests.support.checks import at_least_one
from towline.config import DataConfig, PipelineConfig
from towline.data.profile import profile_features
from towline.data.schema.contract import Contract
from towline.data.schema.inference import infer_contract
from towline.monitoring.drift.distances import distance
from towline.monitoring.drift.histograms import ColumnStats, HistogramAccumulator


def reference(rows: pd.DataFrame) -> tuple[dict[str, Any], Contract]:
    config = PipelineConfig(name="x", data=DataConfig(source="t", target="y"))
    contract = infer_contract(rows, config)
    return profile_features(contract.features(rows), contract), contract


def accumulate(rows: pd.DataFrame, current: Any) -> tuple[dict[str, Any], HistogramAccumulator]:
    profiled, contract = reference(rows)
    accumulator = HistogramAccumulator(profiled, contract)
    table = current if isinstance(current, pa.Table) else pa.Table.from_pandas(current, preserve_index=False)
    for batch in table.to_batches(max_chunksize=700):
        accumulator.add(batch)
    return profiled["columns"], accumulator


DRAWS = {
    "normal": lambda draw, n, shift: draw.normal(shift, 1, n),
    "skewed": lambda draw, n, shift: draw.lognormal(shift, 1.0, n),
    "far tail": lambda draw, n, shift: draw.standard_t(2.5, n) + shift,
    "whole": lambda draw, n, shift: draw.poisson(3 + shift, n).astype(float),
    "two humps": lambda draw, n, shift: draw.normal(0, 0.3, n) + 4 * (draw.random(n) < 0.4 + shift / 4),
}


@pytest.mark.parametrize("shape", DRAWS)
@pytest.mark.parametrize("shift", [0.0, 0.2, 1.5])
def test_distances_of_numbers_equal_those_of_scipy(shape: str, shift: float) -> None:
    """Within a hundredth of a standard deviation of the exact distance."""
    draw = np.random.default_rng(7)
    training, current = DRAWS[shape](draw, 20_000, 0.0), DRAWS[shape](draw, 5_000, shift)
    columns, accumulator = accumulate(
        pd.DataFrame({"a": training, "y": np.arange(len(training))}), pd.DataFrame({"a": current})
    )
    exact = wasserstein_distance(training, current) / training.std()
    assert distance(columns["a"], accumulator.columns["a"]) == pytest.approx(exact, abs=0.01)


def test_distances_of_categories_equal_those_of_scipy() -> None:
    """Distances are equal to the last digits, with new categories."""
    draw = np.random.default_rng(7)
    training = draw.choice(list("abcd"), 4_000, p=[0.5, 0.3, 0.15, 0.05])
    current = draw.choice(list("abcz"), 900, p=[0.4, 0.3, 0.2, 0.1])
    columns, accumulator = accumulate(
        pd.DataFrame({"a": training, "y": np.arange(4_000)}), pd.DataFrame({"a": current})
    )
    shares = [[np.mean(side == level) for level in "abcdz"] for side in (training, current)]
    assert distance(columns["a"], accumulator.columns["a"]) == pytest.approx(jensenshannon(*shares, base=2), abs=1e-12)
    categories = accumulator.columns["a"].categories
    assert categories is not None
    assert (categories.unseen, categories.examples) == (int(np.sum(current == "z")), ["z"])


def test_equal_rows_have_distance_zero() -> None:
    """The training rows have a distance of 0 in every kind of column."""
    draw = np.random.default_rng(7)
    rows = pd.DataFrame(
        {
            "number": np.where(draw.random(3_000) < 0.1, np.nan, draw.standard_cauchy(3_000)),
            "flag": draw.random(3_000) < 0.3,
            "level": draw.choice(["x", "y", None], 3_000),
            "one": 5.0,
            "y": np.arange(3_000) % 7 * 1.5,
        }
    )
    columns, accumulator = accumulate(rows, rows)
    for name, stats in at_least_one(accumulator.columns.items()):
        assert distance(columns[name], stats) == pytest.approx(0.0, abs=1e-9), name
        assert (stats.rows, stats.nulls, stats.wrong_type) == (3_000, columns[name]["nulls"], 0)


def test_a_constant_that_changes() -> None:
    """The distance is the share of other values."""
    rows = pd.DataFrame({"a": [5.0] * 99 + [math.nan], "b": np.arange(100) / 7, "y": range(100)})
    columns, accumulator = accumulate(rows, pd.DataFrame({"a": [5.0] * 30 + [6.0, 1e9] * 5}))
    assert distance(columns["a"], accumulator.columns["a"]) == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("values", "nulls", "wrong_type", "count"),
    [
        (pa.array([1, None, 3], pa.uint8()), 1, 0, 2),
        (pa.array([1.5, math.nan, None]), 2, 0, 1),
        (pa.array([math.inf, -math.inf, 1.0]), 0, 2, 1),
        (pa.array([1e308, 1e200, 1.0]), 0, 2, 1),
        (pa.array(["1.5", "", " ", "two", None, "-3"]), 3, 1, 2),
        (pa.array(["7", "x", None, "7"]).dictionary_encode(), 1, 1, 2),
        (pa.array([dt.date(2026, 1, 1)]), 0, 1, 0),
        (pa.array([True, False]), 0, 0, 2),
        (pa.nulls(4), 4, 0, 0),
        (pa.array([], pa.float64()), 0, 0, 0),
        (pa.array([["a"], None]), 1, 1, 0),
    ],
)
def test_unusual_values_of_a_numeric_column(values: pa.Array, nulls: int, wrong_type: int, count: int) -> None:
    """Each value is counted once, whatever its type: as null, as a wrong type, or on the grid."""
    rows = pd.DataFrame({"a": np.arange(50) / 3, "y": range(50)})
    _, accumulator = accumulate(rows, pa.table({"a": values}))
    stats = accumulator.columns["a"]
    assert (stats.rows, stats.nulls, stats.wrong_type, stats.count) == (len(values), nulls, wrong_type, count)
    assert stats.histogram is not None
    assert int(stats.histogram.cells.sum()) + stats.histogram.below + stats.histogram.above == count


@pytest.mark.parametrize(
    ("values", "nulls", "wrong_type", "count"),
    [
        (pa.array([1, 2, None]), 1, 0, 2),
        (pa.array([1.0, math.nan]), 1, 0, 1),
        (pa.array(["", "x", None]), 2, 0, 1),
        (pa.array([["a"], ["b"]]), 0, 2, 0),
        (pa.nulls(3), 3, 0, 0),
    ],
)
def test_unusual_values_of_a_categorical_column(values: pa.Array, nulls: int, wrong_type: int, count: int) -> None:
    """Each value is counted once; numbers are categories by their text."""
    rows = pd.DataFrame({"a": list("12x3") * 20, "y": range(80)})
    _, accumulator = accumulate(rows, pa.table({"a": values}))
    stats = accumulator.columns["a"]
    assert (stats.nulls, stats.wrong_type, stats.count) == (nulls, wrong_type, count)


def test_missing_and_unknown_columns() -> None:
    """A missing column has no rows; a column that is not in the contract is named."""
    rows = pd.DataFrame({"a": np.arange(50) / 3, "b": np.arange(50) / 7, "y": range(50)})
    _, accumulator = accumulate(rows, pd.DataFrame({"a": [1.0, 2.0], "c": [1, 2]}))
    assert (
        accumulator.rows,
        accumulator.columns["a"].rows,
        accumulator.columns["b"].rows,
        accumulator.unknown_columns,
    ) == (2, 2, 0, {"c"})
    assert distance({"count": 5}, ColumnStats("numeric")) is None
