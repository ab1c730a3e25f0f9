"""The row groups of several Parquet files become those of one file."""

import datetime as dt
import decimal
import io

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from towline.batch.output.parquet_groups import RowGroupJoiner, open_parquet_writer


def make_table(rows: int, seed: int) -> pa.Table:
    rng = np.random.default_rng(seed)
    day = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    return pa.table(
        {
            "id": pa.array(np.arange(rows) + seed * 1_000_000),
            "value": pa.array(rng.normal(size=rows), mask=rng.random(rows) < 0.1),
            "town": pa.array(rng.choice(["Köln", "Łódź", "", "t'4"], rows)).dictionary_encode(),
            "note": [f"note {number} {'x' * (number % 50)}" for number in range(rows)],
            "paid": pa.array([decimal.Decimal(number) / 4 for number in range(rows)], pa.decimal128(20, 2)),
            "at": pa.array([day + dt.timedelta(minutes=number) for number in range(rows)], pa.timestamp("ns", "UTC")),
            "flag": rng.random(rows) < 0.5,
            "tags": pa.array([["a"] * (number % 3) for number in range(rows)], pa.list_(pa.string())),
            "place": [{"x": number, "names": {"n": str(number)}} for number in range(rows)],
            "empty": pa.nulls(rows),
            "a name with dots.and 'quotes'": pa.array(rng.integers(0, 3, rows), pa.int8()),
        }
    )


def to_parquet(table: pa.Table, **options: object) -> io.BytesIO:
    file = io.BytesIO()
    pq.write_table(table, file, **options)
    return file


def join(schema: pa.Schema, *pieces: io.BytesIO) -> io.BytesIO:
    file = io.BytesIO()
    joiner = RowGroupJoiner(file, schema)
    for piece in pieces:
        joiner.add(piece)
    joiner.close()
    return file


def test_rows_types_and_statistics_are_those_of_the_pieces() -> None:
    tables = [make_table(rows, seed) for seed, rows in enumerate([700, 1, 2_500])]
    joined = join(
        tables[0].schema,
        to_parquet(tables[0]),
        to_parquet(tables[1], write_page_index=True, compression="none"),
        to_parquet(tables[2], row_group_size=1_000, compression="zstd", use_dictionary=False),
    )
    expected = pa.concat_tables(tables).unify_dictionaries()
    file = pq.ParquetFile(joined)
    assert file.schema_arrow.equals(tables[0].schema)
    assert file.read().unify_dictionaries().equals(expected)
    assert [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)] == [
        *(700, 1, 1_000, 1_000, 500)
    ]
    places = np.cumsum([0, 700, 1, 1_000, 1_000])
    for group, place in enumerate(places.tolist()):
        statistics = file.metadata.row_group(group).column(0).statistics
        ids = expected["id"][place : place + file.metadata.row_group(group).num_rows].to_numpy()
        assert (statistics.min, statistics.max) == (ids.min(), ids.max())
        assert file.read_row_group(group)["id"].to_pylist() == ids.tolist()


def test_rows_are_filtered_by_the_page_index_and_the_statistics() -> None:
    tables = [make_table(2_000, seed) for seed in range(3)]
    options = {"write_page_index": True, "data_page_size": 1_000, "row_group_size": 500}
    joined = join(tables[0].schema, *(to_parquet(table, **options) for table in tables))
    rows = pq.read_table(joined, filters=[("id", ">=", 1_001_990), ("id", "<", 2_000_003)])
    assert rows["id"].to_pylist() == [*range(1_001_990, 1_002_000), *range(2_000_000, 2_000_003)]


@pytest.mark.slow
def test_a_file_of_many_row_groups_and_pieces() -> None:
    table = pa.table({"id": np.arange(40_000)})
    pieces = [to_parquet(table.slice(first, 10_000), row_group_size=1) for first in range(0, 40_000, 10_000)]
    file = pq.ParquetFile(join(table.schema, *pieces))
    assert file.num_row_groups == 40_000
    assert file.read_row_group(39_999)["id"].to_pylist() == [39_999]
    assert file.metadata.num_rows == 40_000


def test_no_pieces_leave_an_empty_table() -> None:
    table = make_table(3, 0)
    assert pq.read_table(join(table.schema)).equals(table.slice(0, 0))


def test_pandas_metadata_is_kept() -> None:
    table = pa.Table.from_pandas(pd.DataFrame({"a": [1, 2]}, index=pd.Index([5, 6], name="key")))
    frame = pd.read_parquet(join(table.schema, to_parquet(table), to_parquet(table)))
    assert frame.index.tolist() == [5, 6, 5, 6]


def test_other_columns_are_refused() -> None:
    table = pa.table({"a": [1]})
    joiner = RowGroupJoiner(io.BytesIO(), table.schema)
    for other in (pa.table({"b": [1]}), pa.table({"a": ["1"]}), pa.table({"a": [1], "b": [1]})):
        with pytest.raises(ValueError, match="differ from the schema"):
            joiner.add(to_parquet(other))


def test_columns_whose_values_repeat_get_a_dictionary() -> None:
    rng = np.random.default_rng(1)
    table = make_table(5_000, 1).select(["id", "town", "note", "flag", "empty"])
    table = table.append_column("price", pa.array(rng.choice([1.5, 2.5, 9.99], 5_000)))
    table = table.append_column("share", pa.array(rng.random(5_000)))
    file = io.BytesIO()
    writer = open_parquet_writer(file, table.to_batches()[0])
    writer.write_table(table)
    writer.close()
    group = pq.ParquetFile(file).metadata.row_group(0)
    columns = {group.column(number).path_in_schema: group.column(number) for number in range(group.num_columns)}
    assert {name for name, column in columns.items() if column.has_dictionary_page} == {"town", "price", "empty"}
    assert pq.read_table(file).equals(table)
