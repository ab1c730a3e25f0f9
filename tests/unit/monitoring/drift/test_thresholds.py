"""Drift thresholds: they keep the false-alarm budget for single rows, groups and days."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest

from towline.config import DataConfig, PipelineConfig
from towline.data import blocks
from towline.data.blocks import Blocks
from towline.data.profile import profile_features
from towline.data.schema.inference import infer_contract
from towline.monitoring.drift.distances import distance
from towline.monitoring.drift.histograms import HistogramAccumulator
from towline.monitoring.drift.thresholds import (
    CheckThresholds,
    ReferenceColumn,
    WindowSimulation,
    unseen_share_threshold,
)

TRAINING = 6_000
WEEKS = 52


def reference(frame: pd.DataFrame, times: Any = None, groups: Any = None) -> tuple[dict[str, Any], Blocks, Any]:
    rows = frame.assign(y=np.arange(len(frame)) / 7)
    contract = infer_contract(rows, PipelineConfig(name="x", data=DataConfig(source="t", target="y")))
    features = contract.features(rows)
    profile = profile_features(features, contract)
    kind, unit = blocks.assign_blocks(times, groups, len(frame.columns))
    return profile, blocks.count_blocks(features, profile["columns"], kind, unit), contract


def drawn(
    profile: dict[str, Any], of: Blocks, name: str, rows: int, each: float = 0.01, days: float = 1
) -> CheckThresholds:
    return WindowSimulation(days, 1, each).thresholds(ReferenceColumn(name, profile["columns"][name], of), rows, rows)


def alone(rng: np.random.Generator, rows: int) -> np.ndarray:
    return rng.normal(size=rows)


def grouped(rng: np.random.Generator, rows: int) -> np.ndarray:
    return np.sqrt(0.2) * rng.normal(size=-(-rows // 20)).repeat(20)[:rows] + np.sqrt(0.8) * rng.normal(size=rows)


@pytest.mark.parametrize("rows", [50, 400])
@pytest.mark.parametrize("draw", [alone, grouped], ids=["alone", "grouped"])
@pytest.mark.parametrize("kind", ["number", "skewed", "level"])
def test_windows_without_drift_stay_below_the_threshold(draw: Callable[..., np.ndarray], rows: int, kind: str) -> None:
    """Of 300 windows, about 1 % exceed a threshold for 1 %, and the threshold is not too high."""
    rng = np.random.default_rng(8)
    letters = np.array(list("abcde"))
    made = {"number": np.copy, "skewed": np.exp, "level": lambda z: letters[np.digitize(z, [-1, 0, 1, 2])]}[kind]
    groups = pd.Series(np.arange(TRAINING) // 20) if draw is grouped else None
    profile, of, contract = reference(pd.DataFrame({"a": made(draw(rng, TRAINING))}), groups=groups)
    assert of.kind == ("none" if groups is None else "group")
    limit = drawn(profile, of, "a", rows).distance
    result = []
    for _ in range(300):
        accumulator = HistogramAccumulator(profile, contract)
        accumulator.add(pa_table(made(draw(rng, rows))))
        result.append(distance(profile["columns"]["a"], accumulator.columns["a"]))
    assert np.mean(np.array(result) > limit) <= 0.03
    assert limit < 2.5 * np.quantile(result, 0.95)


def pa_table(values: np.ndarray) -> Any:
    import pyarrow as pa

    return pa.table({"a": pa.array(values)})


def test_groups_have_higher_thresholds_than_single_rows() -> None:
    """A few customers differ more from the training rows than the same number of independent rows."""
    rng = np.random.default_rng(1)
    frame = pd.DataFrame({"a": grouped(rng, TRAINING)})
    profile, of, _ = reference(frame, groups=pd.Series(np.arange(TRAINING) // 20))
    _, none, _ = reference(frame)
    assert drawn(profile, of, "a", 200).distance > 1.3 * drawn(profile, none, "a", 200).distance
    assert drawn(profile, of, "a", 50_000).distance < drawn(profile, of, "a", 200).distance


def test_seasons_raise_the_threshold_of_short_windows() -> None:
    """A day may differ much from the year, a month less, a whole year little."""
    rng = np.random.default_rng(2)
    day = np.repeat(np.arange(364), 20)
    values = np.sin(day / 364 * 2 * np.pi) + rng.normal(0, 0.3, len(day))
    times = pd.Series(pd.Timestamp("2025-01-01") + pd.to_timedelta(day, unit="D"))
    profile, of, _ = reference(pd.DataFrame({"a": values}), times=times)
    assert of.kind == "time"
    day, quarter = (drawn(profile, of, "a", 500, days=days).distance for days in (1, 91))
    assert day > 1.2
    assert quarter < day
    assert drawn(profile, of, "a", 500, days=1).nulls < 0.02


def test_more_rows_and_fewer_checks_lower_the_thresholds() -> None:
    """Thresholds fall with rows and rise with the number of checks that share a budget."""
    rng = np.random.default_rng(3)
    profile, of, _ = reference(pd.DataFrame({"a": rng.normal(size=TRAINING), "b": rng.choice(list("abc"), TRAINING)}))
    for name in ("a", "b"):
        by_rows = [drawn(profile, of, name, rows) for rows in (50, 500, 5_000)]
        assert by_rows == sorted(by_rows, reverse=True)
        by_share = [drawn(profile, of, name, 500, each).distance for each in (0.3, 0.03, 0.003, 0.0003)]
        assert by_share == sorted(by_share)
    assert drawn(profile, of, "a", 500) == drawn(profile, of, "a", 500)


def test_threshold_of_unseen_categories() -> None:
    """Categories that occurred once in training make unseen ones likely."""
    assert unseen_share_threshold(10_000, 1_000, 0, 1e-4) < unseen_share_threshold(10_000, 1_000, 50, 1e-4) < 0.1
    assert unseen_share_threshold(10_000, 100, 0, 1e-4) > unseen_share_threshold(10_000, 10_000, 0, 1e-4)
    assert unseen_share_threshold(0, 100, 0, 1e-4) == 1.0


def test_blocks_are_reproducible() -> None:
    """Equal rows give an equal file, and the file gives the same blocks."""
    rng = np.random.default_rng(4)
    frame = pd.DataFrame({"a": rng.normal(size=900), "b": rng.choice(["x", "y", None], 900)})
    times = pd.Series(pd.date_range("2025-01-01", periods=900, freq="h"))
    first, second = (blocks.serialize_blocks({"inputs": reference(frame, times=times)[1]}) for _ in range(2))
    assert first == second
    back = blocks.deserialize_blocks(first)["inputs"]
    assert (back.kind, int(back.rows.sum()), len(back.rows)) == ("time", 900, 38)
    assert {name: table.sum() for name, table in back.counts.items()} == {"a": 900, "b": int(frame["b"].notna().sum())}


@pytest.mark.parametrize("days", [40, 364, 1_500])
def test_blocks_are_bounded_and_cover_whole_weeks(days: int) -> None:
    """At most 364 days are stored, with the same number of each day of the week."""
    times = pd.Series(pd.Timestamp("2020-01-06") + pd.to_timedelta(np.arange(days), unit="D"))
    kind, unit = blocks.assign_blocks(times, None, 10)
    remaining = times[unit >= 0].dt.weekday.value_counts()
    assert kind == "time"
    assert len(set(unit) - {-1}) == min(days, 364)
    assert remaining.max() - remaining.min() <= (1 if days < 364 else 0)


def test_rows_without_a_group_are_spread_over_the_blocks() -> None:
    """In one block, guests without a customer number would be half of the table."""
    groups = pd.Series([f"c{number // 4}" if number % 2 else None for number in range(4_000)])
    kind, unit = blocks.assign_blocks(None, groups, 10)
    counts = np.bincount(unit)
    assert kind == "group"
    assert counts.max() < 5 * counts.mean()


@pytest.mark.slow
def test_a_wide_table_makes_a_file_of_a_few_megabytes() -> None:
    """750 columns over a year."""
    rng = np.random.default_rng(5)
    rows = 20_000
    frame = pd.DataFrame({f"c{n}": rng.normal(size=rows) for n in range(750)})
    times = pd.Series(pd.Timestamp("2025-01-01") + pd.to_timedelta(np.sort(rng.integers(0, 365, rows)), unit="D"))
    _, of, _ = reference(frame, times=times)
    assert len(blocks.serialize_blocks({"inputs": of})) < 8 * 2**20
