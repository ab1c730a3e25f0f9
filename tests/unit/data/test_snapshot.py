"""A snapshot that is read column by column has the same values as one in memory."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from towline.data import snapshot
from towline.data.schema.inference import count_distinct
from towline.data.snapshot import SnapshotColumns, snapshot_to_frame

COLUMNS = {
    "numbers": pa.array([1.5, None, -0.0, 1e300]),
    "whole": pa.array([1, 2**53 + 1, -3, 4]),
    "whole with nulls": pa.array([1, 2, None, 4]),
    "time": pa.array(["2026-01-01", None, "0001-01-01", "9999-12-31"]).cast(pa.timestamp("us")),
    "flag": pa.array([True, False, True, True]),
    "flag with nulls": pa.array([True, None, True, False]),
    "text": pa.array(["a", None, "", "ü"], pa.large_string()),
    "nothing": pa.nulls(4),
}


@pytest.mark.parametrize("rows", [1, 3, 131_072])
def test_columns_are_those_of_the_frame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    """With their types, whatever the size of batches and the position of the first null."""
    monkeypatch.setattr(snapshot, "BATCH_ROWS", rows)
    table = pa.table(COLUMNS)
    pq.write_table(table, tmp_path / "snapshot.parquet")
    columns, frame = SnapshotColumns(tmp_path / "snapshot.parquet"), snapshot_to_frame(table)
    assert columns.columns == list(frame.columns)
    for name in frame:
        pd.testing.assert_series_equal(columns[name], frame[name])


def test_a_snapshot_without_rows(tmp_path: Path) -> None:
    table = pa.table(COLUMNS).slice(0, 0)
    pq.write_table(table, tmp_path / "snapshot.parquet")
    for name, values in snapshot_to_frame(table).items():
        column = SnapshotColumns(tmp_path / "snapshot.parquet")[name]
        assert (len(column), column.dtype) == (0, values.dtype)


def test_distinct_values_are_counted_as_pandas_does() -> None:
    """Zeros of both signs are one value, and nulls are none."""
    rng = np.random.default_rng(4)
    numbers = rng.integers(-5, 5, 1_000) / 2
    numbers[::7], numbers[1::7] = np.nan, -0.0
    times = pd.Series(pd.to_datetime(["2026-01-01", None, "2026-01-01", "2026-01-02"]))
    for values in (pd.Series(numbers), times, pd.Series([True, False, True]), pd.Series(["a", None, "a"]), times[:0]):
        before = values.copy()
        assert count_distinct(values) == values.nunique()
        pd.testing.assert_series_equal(values, before)
