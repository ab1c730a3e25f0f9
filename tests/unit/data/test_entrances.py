"""A value has the same meaning in training, batch, program, request, log and drift check."""

import datetime as dt
import gzip
import json
import math
import sqlite3
import uuid
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from towline.batch.input.canonical_columns import convert_inputs
from towline.batch.input.source import open_source
from towline.config import SqlSource, build_config
from towline.data.coded_column import column_values
from towline.data.schema.contract import Contract
from towline.data.schema.inference import infer_contract
from towline.data.schema.rows import RowReader
from towline.data.source import formats, sources, sql_source
from towline.inference.predictor import _to_frame
from towline.monitoring.drift import current_rows
from towline.prediction_log.parquet_store import LogRows
from towline.prediction_log.privacy import HashKeys, PrivacyFilter

ROWS = 300
CODES = [
    "00501", "501", "1.10", "1.1", "NA", "N/A", "null", "true", "True", "2025-01-01", "2025-01-01 00:00:00", "yes",
    "yes ", "YES", "é", "1e3", "None", "x,y", 'a "b"', "nan", "-", "?",
]  # fmt: skip
COLUMNS = {
    "code": "category", "rating": "category", "born": "category", "told": "category", "flag": "boolean",
    "day": "datetime", "price": "numeric", "remark": "text",
}  # fmt: skip


def moment(rng: np.random.Generator) -> dt.datetime:
    """A random time."""
    return dt.datetime(2024, 1, 1) + dt.timedelta(days=int(rng.integers(700)), hours=int(rng.integers(2)) * 13)  # noqa: DTZ001 - naive UTC


def to_text(value: Any, rng: np.random.Generator) -> str | None:
    """A value as text, in one of the ways in which a program may write it."""
    if isinstance(value, bool):
        return str(rng.choice(["true", "True", "TRUE"] if value else ["false", "False", "FALSE"]))
    if isinstance(value, dt.datetime):
        ways = [value.isoformat(), value.isoformat(" "), value.strftime("%Y-%m-%d %H:%M")]
        return str(rng.choice([*ways, f"{value:%Y-%m-%d}"] if value.time() == dt.time.min else ways))
    if isinstance(value, float):
        return str(rng.choice([repr(value), f"{value:.4f}", f" {value:.2f}"]))
    return None if value is None else str(value)


def draw(seed: int) -> pd.DataFrame:
    """Typed values; each column has nulls."""
    rng = np.random.default_rng(seed)
    table = pd.DataFrame(
        {
            "code": rng.choice(CODES, ROWS),
            "rating": rng.integers(1, 6, ROWS),
            "born": [moment(rng).replace(hour=0, day=1) for _ in range(ROWS)],
            "told": rng.random(ROWS) < 0.5,
            "flag": rng.random(ROWS) < 0.5,
            "day": [moment(rng) for _ in range(ROWS)],
            "price": np.round(rng.normal(size=ROWS) * 100, 2),
            "remark": rng.choice([*CODES, "two words", "7 of 9"], ROWS),
            "guessed_code": [f"{number:05}" for number in rng.integers(0, 90, ROWS)],
            "guessed_flag": rng.random(ROWS) < 0.5,
            "guessed_day": [moment(rng) for _ in range(ROWS)],
            "guessed_price": np.round(rng.normal(size=ROWS) * 100, 2),
            "guessed_count": rng.integers(0, 40, ROWS),
            "guessed_big": [2**53 + int(number) for number in rng.integers(0, 40, ROWS)],
            "guessed_remark": [f"{' '.join(rng.choice(['one', 'ü', 'NA', '3'], 9))} {row}." for row in range(ROWS)],
            "guessed_word": rng.choice(["a", "NA", "None", "b c", "ü"], ROWS),
        },
        dtype=object,
    )
    for name in table:
        values = [value.item() if isinstance(value, np.generic) else value for value in table[name]]
        values = [None if missing else value for value, missing in zip(values, rng.random(ROWS) < 0.1, strict=True)]
        table[name] = pd.Series(values, dtype=object)
    return table.assign(y=[0.25 * row for row in range(ROWS)])


def texts(table: pd.DataFrame, seed: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {name: pd.Series([to_text(value, rng) for value in table[name]], dtype=object) for name in table}
    )


def arrow(table: pd.DataFrame) -> pa.Table:
    return pa.table({name: pa.array(table[name].tolist()) for name in table})


def csv(table: pd.DataFrame, path: Path) -> Path:
    table.to_csv(path, index=False)
    return path


def parquet(table: pa.Table, path: Path) -> Path:
    pq.write_table(table, path)
    return path


def sqlite(table: pd.DataFrame, folder: Path) -> pa.Table:
    """Booleans are integers and times are text, since SQLite has no other types."""
    rows = [
        [value.isoformat(" ") if isinstance(value, dt.datetime) else value for value in row]
        for row in table.itertuples(index=False)
    ]
    with sqlite3.connect(folder / "t.db") as connection:
        connection.execute("DROP TABLE IF EXISTS t")
        connection.execute(f"CREATE TABLE t ({', '.join(table.columns)})")
        connection.executemany(f"INSERT INTO t VALUES ({', '.join('?' * table.shape[1])})", rows)
    rows = sql_source.read_query(
        SqlSource(url="sqlite:///t.db", query="SELECT * FROM t"), folder, 10**6, lambda: folder
    )
    assert isinstance(rows, pa.Table)
    return rows


def rows_of(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [dict(row) for row in table.to_dict("records")]


def as_json(table: pd.DataFrame) -> list[dict[str, Any]]:
    return json.loads(json.dumps(rows_of(table), default=dt.datetime.isoformat))  # type: ignore[no-any-return]


def by_reader(contract: Contract, rows: list[dict[str, Any]]) -> pd.DataFrame:
    reader = RowReader(contract)
    columns = dict(zip(reader.fields, reader.columns(reader.read(rows)), strict=True))
    return pd.DataFrame({name: pd.Series(values, dtype=values.dtype) for name, values in columns.items()})


def by_log(contract: Contract, rows: list[dict[str, Any]], folder: Path) -> pd.DataFrame:
    """The values of a request as the prediction log stores them."""
    policy = PrivacyFilter(contract, build_config(raw(folder / "x"), "t").privacy, None, HashKeys(folder))
    head = {"version": 1, "model": "m", "prediction": "float64", "fields": [list(field) for field in policy.fields]}
    collected = LogRows(json.loads(json.dumps(head)))
    logged = json.loads(json.dumps(policy.filter_rows(rows, 0.0)))
    record = {"id": "r", "first": 0, "at": 0, "rows": logged, "predictions": [0.0] * len(rows), "probabilities": None}
    collected.add(record)
    table = collected.table()
    names = {f"input.{field.name}": field.name for field in policy.fields}
    renamed = [names.get(name, name.partition(":")[2] or name) for name in table.column_names]
    return table.rename_columns(renamed).select([field.name for field in policy.fields]).to_pandas()


def raw(source: Path) -> dict[str, Any]:
    return {"name": "t", "task": "regression", "data": {"source": str(source), "target": "y", "columns": COLUMNS}}


def differences(expected: pd.DataFrame, given: pd.DataFrame) -> dict[str, int]:
    """How many values of each column are not the same; nulls are equal."""
    assert list(given.columns) == list(expected.columns)
    counts = {}
    for name in expected.columns:
        same = (expected[name] == given[name]) | (expected[name].isna() & given[name].isna())
        counts[name] = int((~same).sum())
    return {name: count for name, count in counts.items() if count}


def trained(folder: Path, file: Path) -> tuple[Contract, pd.DataFrame]:
    """The contract of a table, and its features in training."""
    config = build_config(raw(file), "t")
    dataset = sources.load_dataset(config.data, folder, folder / "store", None)
    snapshot = sources.read_snapshot(dataset, folder / "store")
    contract = infer_contract(snapshot, config, dataset.formats)
    return contract, contract.features(snapshot)


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
@pytest.mark.parametrize("origin", ["csv", "parquet"])
def test_a_value_is_read_equally_everywhere(tmp_path: Path, seed: int, origin: str) -> None:
    """10,000 values and more are read equally in training, batch, program, request, log and drift check."""
    native = draw(seed)
    text = texts(native, seed)
    file = csv(text, tmp_path / "t.csv")
    typed = parquet(arrow(native), tmp_path / "typed.parquet")
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(file.read_bytes()))
    spelled = parquet(arrow(text), tmp_path / "text.parquet")
    contract, expected = trained(tmp_path, file if origin == "csv" else typed)
    kinds = {column.name: column.kind for column in contract.feature_columns}
    assert {name: kinds[name] for name in COLUMNS} == COLUMNS
    guessed = {name: kind for name, kind in kinds.items() if name.startswith("guessed")}
    assert guessed == {
        "guessed_code": "category", "guessed_flag": "boolean", "guessed_day": "datetime", "guessed_price": "numeric",
        "guessed_count": "numeric", "guessed_big": "category", "guessed_word": "category", "guessed_remark": "text",
    }  # fmt: skip
    assert set(expected["code"].dropna()) == set(CODES)
    features: Callable[[Any], pd.DataFrame] = lambda table: contract.features(_to_frame(table))  # noqa: E731
    exact = pd.array(native["guessed_big"].tolist(), dtype="Int64")  # pandas itself converts through float64
    batches = [*current_rows.read_table(file, contract)]
    entrances = {
        "score CSV": features(formats.read_file(file, ",")),
        "score CSV.gz": features(formats.read_file(tmp_path / "t.csv.gz", ",")),
        "score Parquet": features(formats.read_file(typed, ",")),
        "score Parquet of text": features(formats.read_file(spelled, ",")),
        "SQL": features(sqlite(native, tmp_path)),
        "drift --current CSV": features(pa.Table.from_batches(batches)),
        "drift --current Parquet": features(pa.Table.from_batches([*current_rows.read_table(typed, contract)])),
        "frame of objects": features(native),
        "frame of nullable types": features(native.convert_dtypes().assign(guessed_big=exact)),
        "frame as pandas reads Parquet": features(pd.read_parquet(typed).assign(guessed_big=exact)),
        "frame of text": features(text),
        "Arrow": features(arrow(native)),
        "Arrow of text": features(arrow(text)),
        "polars": features(pl.from_arrow(arrow(native))),
        "dicts": by_reader(contract, rows_of(native)),
        "dicts of text": by_reader(contract, rows_of(text)),
        "JSON": by_reader(contract, as_json(native)),
        "JSON of text": by_reader(contract, as_json(text)),
        "training on CSV": trained(tmp_path, file)[1],
        "training on Parquet": trained(tmp_path, typed)[1],
        "training on Parquet of text": trained(tmp_path, spelled)[1],
        "log of JSON": features(by_log(contract, as_json(native), tmp_path)),
        "log of text": features(by_log(contract, as_json(text), tmp_path)),
    }
    assert len(entrances) * expected.size > 10_000
    differing = {name: differences(expected, given) for name, given in entrances.items()}
    assert {name: counts for name, counts in differing.items() if counts} == {}


def by_batch(contract: Contract, table: pa.Table, folder: Path) -> dict[str, list[Any]]:
    """The input columns as ``towline score`` reads them from Parquet."""
    path = parquet(table, folder / "batch.parquet")
    source = open_source(str(path), [path], None, contract, folder / "copies")
    (batch,) = source.read(source.shards[0], contract, None, as_text=False)
    columns = convert_inputs(contract, batch.inputs, len(batch))
    assert not columns.bad.any()
    return dict(zip((column.name for column in contract.input_columns), columns.inputs, strict=True))


def test_a_contract_does_not_depend_on_the_file_format(tmp_path: Path) -> None:
    """CSV and typed Parquet of one table give the same contract and digest."""
    native = draw(7)
    loaded = []
    for file in (csv(texts(native, 7), tmp_path / "t.csv"), parquet(arrow(native), tmp_path / "t.parquet")):
        config = build_config(raw(file), "t")
        dataset = sources.load_dataset(config.data, tmp_path, tmp_path / "store", None)
        loaded.append((dataset.digest, infer_contract(sources.read_snapshot(dataset, tmp_path / "store"), config)))
    assert loaded[0] == loaded[1]


def test_a_duration_is_its_seconds_everywhere(tmp_path: Path) -> None:
    """To the microsecond, also for negative durations."""
    nanoseconds = [0, 1_500_000_000, -1_500, 86_400 * 10**9, None]
    table = pa.table({"took": pa.array(nanoseconds, pa.duration("ns")), "y": [1.0, 2.0, 3.0, 4.0, 5.0]})
    config = build_config(
        {"name": "t", "task": "regression", "data": {"source": "t", "target": "y", "columns": {"took": "numeric"}}}, "t"
    )
    data = config.data.model_copy(update={"source": str(parquet(table, tmp_path / "t.parquet"))})
    dataset = sources.load_dataset(data, tmp_path, tmp_path / "store", None)
    snapshot = sources.read_snapshot(dataset, tmp_path / "store")
    contract = infer_contract(snapshot, config, dataset.formats)
    frame = table.to_pandas()
    rows = [{"took": value} for value in frame["took"].tolist()]
    steps = [{"took": value} for value in frame["took"].to_numpy()]
    texts = pa.table({"took": ["0:00:00", "1.5", "-0:00:00.000002", "1 day, 0:00:00", ""]})
    iso = [{"took": text} for text in ("PT0S", "P0DT0H0M1.5S", "-PT0.000002S", "P1DT0H0M0S", None)]
    expected = [0.0, 1.5, -2e-06, 86_400.0, np.nan]
    for read in (
        contract.features(snapshot),
        contract.features(frame),
        contract.features(_to_frame(table)),
        by_reader(contract, rows),
        by_reader(contract, steps),
        contract.features(_to_frame(texts)),
        by_reader(contract, texts.to_pylist()),
        by_reader(contract, iso),
        by_batch(contract, table, tmp_path),
    ):
        np.testing.assert_array_equal(read["took"], expected)


def test_a_uuid_is_its_text_everywhere(tmp_path: Path) -> None:
    """As the type of a Parquet column, as text in a file and a request, and as a value of a program."""
    stores = [uuid.UUID(int=place % 3 + 1) if place % 7 else None for place in range(60)]
    stored = pa.array([store and store.bytes for store in stores], pa.uuid())
    table = pa.table({"store": stored, "y": [0.5 * row for row in range(60)]})
    expected = [store and str(store) for store in stores]
    file = parquet(table, tmp_path / "t.parquet")
    config = build_config({"name": "t", "task": "regression", "data": {"source": str(file), "target": "y"}}, "t")
    dataset = sources.load_dataset(config.data, tmp_path, tmp_path / "store", None)
    snapshot = sources.read_snapshot(dataset, tmp_path / "store")
    contract = infer_contract(snapshot, config, dataset.formats)
    native = [{"store": store} for store in stores]
    for read in (
        contract.features(snapshot),
        contract.features(pd.DataFrame(native)),
        contract.features(_to_frame(table)),
        contract.features(formats.read_file(file, ",").to_pandas()),
        contract.features(pa.Table.from_batches([*current_rows.read_table(file, contract)]).to_pandas()),
        by_reader(contract, native),
        {name: column_values(column) for name, column in by_batch(contract, table, tmp_path).items()},
    ):
        assert [None if level != level else level for level in read["store"]] == expected


def load_numbers(folder: Path, file: Path, **data: Any) -> tuple[Contract, pd.DataFrame]:
    """The contract and the snapshot of a regression table with the target y."""
    data = {"source": str(file), "target": "y", **data}
    config = build_config({"name": "t", "task": "regression", "data": data}, "t")
    dataset = sources.load_dataset(config.data, folder, folder / "store", None)
    snapshot = sources.read_snapshot(dataset, folder / "store")
    return infer_contract(snapshot, config, dataset.formats), snapshot


def test_a_time_of_day_is_its_seconds_everywhere(tmp_path: Path) -> None:
    """As a typed column, as text in a file and a request, and as a value of a program."""
    clock = [dt.time(minute // 60, minute % 60) for minute in range(0, 1440, 70)] * 9
    table = pa.table({"at": pa.array(clock, pa.time32("s")), "y": [0.5 * row for row in range(len(clock))]})
    expected = [time.hour * 3600.0 + time.minute * 60 for time in clock]
    native = [{"at": time} for time in clock]
    texts = [{"at": time.strftime("%H:%M")} for time in clock]
    files = parquet(table, tmp_path / "t.parquet"), csv(pd.DataFrame(texts).assign(y=table["y"]), tmp_path / "t.csv")
    for file in files:
        contract, snapshot = load_numbers(tmp_path, file)
        for read in (
            contract.features(snapshot),
            contract.features(_to_frame(table)),
            contract.features(pd.DataFrame(texts)),
            by_reader(contract, native),
            by_reader(contract, texts),
            by_batch(contract, table, tmp_path),
        ):
            assert list(read["at"]) == expected


@pytest.mark.parametrize("marker", [-200, -200.0, "-200", "-200.00"])
def test_a_null_marker_that_is_a_number_is_null_everywhere(tmp_path: Path, marker: Any) -> None:
    """Whatever the notation in the config and the file."""
    values = [-200.0 if row % 4 == 0 else row / 10 for row in range(80)]
    table = pa.table({"co": values, "y": [row * 0.5 for row in range(80)]})
    expected = [math.isnan(value) or value == -200 for value in values]
    text_table = pd.DataFrame({"co": [f"{value:.2f}" for value in values], "y": table["y"]})
    for file in (parquet(table, tmp_path / "t.parquet"), csv(text_table, tmp_path / "t.csv")):
        contract, snapshot = load_numbers(tmp_path, file, na_values=[marker])
        for read in (
            contract.features(snapshot),
            contract.features(_to_frame(table)),
            contract.features(text_table),
            by_reader(contract, rows_of(text_table)),
            by_reader(contract, [{"co": value} for value in values]),
            by_batch(contract, table, tmp_path),
            contract.features(pa.Table.from_batches([*current_rows.read_table(file, contract)]).to_pandas()),
        ):
            assert np.isnan(np.asarray(read["co"], dtype=float)).tolist() == expected


def test_decimals_are_read_exactly(tmp_path: Path) -> None:
    """A value of a SQL NUMERIC or a Parquet decimal equals the value of its text."""
    texts = [f"{number / 100:.2f}" for number in range(100, 40_000, 7)]
    table = pa.table({"price": pa.array(map(Decimal, texts), pa.decimal128(10, 2)), "y": np.arange(len(texts)) * 0.5})
    contract, snapshot = load_numbers(tmp_path, parquet(table, tmp_path / "t.parquet"))
    assert snapshot["price"].tolist() == [float(text) for text in texts]
    assert list(by_batch(contract, table, tmp_path)["price"]) == snapshot["price"].tolist()


@pytest.mark.parametrize("nulls", [0, 3])
def test_unsigned_identifiers_beyond_64_bits_with_sign_stay_exact(tmp_path: Path, nulls: int) -> None:
    """A column of Parquet has the levels of the same column of a CSV, although they are one number as float64."""
    numbers = [None] * nulls + [2**63 + row % 30 for row in range(300 - nulls)]
    table = pa.table({"key": pa.array(numbers, pa.uint64()), "y": [0.5 * row for row in range(300)]})
    expected = [None if each is None else str(each) for each in numbers]
    text_table = pd.DataFrame({"key": expected, "y": table["y"]})
    for file in (parquet(table, tmp_path / "t.parquet"), csv(text_table, tmp_path / "t.csv")):
        contract, snapshot = load_numbers(tmp_path, file)
        assert (contract.columns[0].kind, contract.columns[0].levels) == ("category", 30)
        for read in (
            contract.features(snapshot),
            contract.features(_to_frame(table)),
            by_reader(contract, [{"key": number} for number in numbers]),
            by_batch(contract, table, tmp_path),
        ):
            levels = [None if pd.isna(level) else level for level in np.asarray(read["key"], dtype=object)]
            assert levels == expected
