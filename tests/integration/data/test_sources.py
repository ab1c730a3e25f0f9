"""Sources: the dataset of each format, the rows that are left out, and the error for each fault."""

import gzip
import os
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sqlalchemy import Float, Numeric, Text, create_engine, make_url

from tests.support.checks import at_least_one
from towline.config import DataConfig, PipelineConfig
from towline.config.passwords import mask_passwords
from towline.data import snapshot
from towline.data.schema.inference import infer_contract
from towline.data.source import encodings, formats, sources, sql_source
from towline.errors import ConfigError, DataError, TowlineError, TransientError

DATA = Path(__file__).parents[3] / "data"
BIKE = {"target": "rentals", "time": "datetime", "drop": ("casual", "registered", "season")}
BANK = {"target": "subscribed", "time": "date", "drop": ("duration",)}


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database; each test runs on SQLite and on PostgreSQL."""
    return f"sqlite:///{tmp_path}/t.db" if request.param == "sqlite" else request.getfixturevalue("postgres")


def execute(url: str, *statements: str) -> None:
    engine = create_engine(url)
    with engine.begin() as connection:
        for statement in statements:
            connection.execution_options(no_parameters=True).exec_driver_sql(statement)
    engine.dispose()


def load(tmp_path: Path, source: Any, as_of: datetime | None = None, **data: Any) -> sources.Dataset:
    config = DataConfig(source=source, **{"target": "y", **data})
    return sources.load_dataset(config, tmp_path, tmp_path / "store", as_of)


def frame(tmp_path: Path, source: Any, as_of: datetime | None = None, **data: Any) -> pd.DataFrame:
    return sources.read_snapshot(load(tmp_path, source, as_of, **data), tmp_path / "store")


def error_of(tmp_path: Path, content: bytes | str, name: str = "t.csv", **data: Any) -> str:
    (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(TowlineError) as caught:
        load(tmp_path, name, **data)
    assert caught.value.where
    assert caught.value.remedy
    assert len(str(caught.value).splitlines()) <= 25
    assert not (tmp_path / "store").exists()
    return str(caught.value)


@pytest.mark.parametrize(("table", "data"), [("bike_hourly", BIKE), ("bank_marketing", BANK)])
def test_formats_give_the_same_dataset(tmp_path: Path, table: str, data: dict[str, Any]) -> None:
    """A table has one digest and one feature frame, as Parquet, CSV, CSV.gz or several files of a folder."""
    rows = pd.read_parquet(DATA / f"{table}.parquet").head(4_000)
    rows.to_csv(tmp_path / "t.csv", index=False)
    rows.to_csv(tmp_path / "t.csv.gz", index=False)
    pq.write_table(pa.Table.from_pandas(rows), tmp_path / "t.parquet", row_group_size=999)
    (tmp_path / "folder").mkdir()
    rows[:2500].to_csv(tmp_path / "folder" / "1.csv", index=False)
    rows[2500:].to_parquet(tmp_path / "folder" / "2.parquet")
    kinds = ["t.csv", "t.csv.gz", "t.parquet", "folder", ["folder/1.csv", "folder/2*"], str(tmp_path / "t.parquet")]
    loaded = [load(tmp_path, kind, **data) for kind in kinds]
    assert len({dataset.digest for dataset in loaded}) == 1
    config = PipelineConfig(name="x", data=DataConfig(source="t.csv", **data))
    read = sources.read_snapshot(loaded[0], tmp_path / "store")
    contract = infer_contract(read, config)
    features = contract.features(read)
    for other in (rows, pd.read_csv(tmp_path / "t.csv"), pd.DataFrame(rows.to_dict("records"))):
        pd.testing.assert_frame_equal(contract.features(other), features, check_exact=True)
    assert loaded[0].rows == len(rows)
    assert loaded[0].start == rows[data["time"]].min().isoformat()


@pytest.mark.parametrize(("table", "data"), [("bike_hourly", BIKE), ("bank_marketing", BANK)])
@pytest.mark.parametrize("kind", ["csv", "csv.gz", "parquet", "folder"])
def test_a_large_source_gives_the_same_dataset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, table: str, data: dict[str, Any], kind: str
) -> None:
    """A source that is read column by column gives the dataset of a source in memory; no temporary file remains."""
    rows = pd.read_parquet(DATA / f"{table}.parquet").head(4_000)
    rows.loc[rows.index[5:9], data["target"]] = None
    if kind == "parquet":
        rows.to_parquet(tmp_path / f"t.{kind}", row_group_size=999)
    elif kind == "folder":
        (tmp_path / "t.folder").mkdir()
        rows[:2_500].to_csv(tmp_path / "t.folder" / "1.csv", index=False)
        rows[2_500:].to_parquet(tmp_path / "t.folder" / "2.parquet")
    else:
        rows.to_csv(tmp_path / f"t.{kind}", index=False)
    cut = rows[data["time"]].max() - pd.Timedelta("2D")
    in_memory = load(tmp_path, f"t.{kind}", cut.to_pydatetime(), **data)
    before = sources.read_snapshot(in_memory, tmp_path / "store")
    monkeypatch.setattr(snapshot, "MAX_CELLS", 0)
    monkeypatch.setattr(snapshot, "_GROUP_ROWS", 700)
    assert load(tmp_path, f"t.{kind}", cut.to_pydatetime(), **data) == in_memory
    assert in_memory.left_out == (("without a target", 4),)
    pd.testing.assert_frame_equal(sources.read_snapshot(in_memory, tmp_path / "store"), before)
    file = sources.check_snapshot(in_memory, tmp_path / "store")
    assert pq.read_metadata(file).num_row_groups > 2
    assert [path.name for path in file.parent.iterdir()] == [file.name]


@pytest.mark.parametrize(
    "content",
    [
        "y,x\n1,n/a\n2,$3\n,$4\n3,$5\n",
        "y,x\n1,1 234\n2,?\n3,5\n" + "4,7\n" * 40,
        "y,x\n1,007\n2,8\n",
        "y,x\n1,9007199254740993\n2,8\n",
        "y,x\n1,true\n2,NA\n",
        "y,x\n1,\n2,\n",
        "y,x\n1,caf\xe9\n2,t\xe9\n",
        "y,x\n1,1;2\n2\n",
        "y;x\n1;2\n",
        'y,x\n1,"open\n2,3\n',
        "y,x\n",
        "",
    ],
)
def test_a_large_source_has_the_same_values_and_faults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    """Units, words, codes, null markers, another encoding and faults of a CSV are handled as in memory."""
    (tmp_path / "t.csv").write_bytes(content.encode("latin-1"))
    outcomes = []
    for cells in (10**9, 0):
        monkeypatch.setattr(snapshot, "MAX_CELLS", cells or -1)
        try:
            outcomes.append(load(tmp_path, "t.csv", max_unlabelled=0.5))
        except TowlineError as error:
            outcomes.append((error.what, error.where, error.remedy))
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16", "utf-16-be", "utf-16-le", "cp1251", "utf-8-sig", "mixed"])
@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz"])
@pytest.mark.parametrize("block", [1, 7, 2**22])
def test_a_large_csv_that_is_not_utf8(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str, name: str, block: int
) -> None:
    """The file is copied to UTF-8 in blocks; dataset and error are those of a table in memory."""
    words = ["г", "слово", "буквы"] if encoding == "cp1251" else ["caf\xe9", "t\xe9\xe9", "\xfc\xe4", '"a\nb"']
    rows = "".join(f"{row},{words[row % len(words)]}\n" for row in range(60))
    content = f"y,\xfcber\n{rows}" if encoding != "cp1251" else f"y,x\n{rows}"
    if encoding == "mixed":
        raw = content.encode() + "61,caf\xe9\n".encode("cp1252") + b"62,\x8d\n"
    else:
        raw = content.encode(encoding)
    (tmp_path / name).write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
    outcomes, read_file = [], formats.read_file
    monkeypatch.setattr(encodings, "_BLOCK_BYTES", block)
    for cells in (10**9, -1):
        monkeypatch.setattr(snapshot, "MAX_CELLS", cells)
        if cells < 0 and encoding != "cp1251":
            monkeypatch.setattr(formats, "read_file", None)
        try:
            outcomes.append(load(tmp_path, name))
        except DataError as error:
            outcomes.append((error.what, error.where, error.remedy))
    monkeypatch.setattr(formats, "read_file", read_file)
    assert outcomes[0] == outcomes[1]
    assert isinstance(outcomes[0], tuple) == (encoding == "cp1251")
    assert len([*(tmp_path / "store" / "datasets").glob("*")]) == (encoding != "cp1251")


@pytest.mark.parametrize(("table", "data"), [("bike_hourly", BIKE), ("bank_marketing", BANK)])
def test_a_database_gives_the_dataset_of_files(tmp_path: Path, database: str, table: str, data: dict[str, Any]) -> None:
    """A table in a database has the digest of the same table in Parquet."""
    rows = pd.read_parquet(DATA / f"{table}.parquet").head(3_000)
    rows.to_parquet(tmp_path / "t.parquet")
    engine = create_engine(database)
    rows.to_sql("t", engine, index_label="position")
    engine.dispose()
    columns = ", ".join(f'"{name}"' for name in rows.columns)
    stored = load(tmp_path, {"url": database, "query": f"SELECT {columns} FROM t ORDER BY position"}, **data)
    assert stored.digest == load(tmp_path, "t.parquet", **data).digest


@pytest.mark.parametrize(("table", "data"), [("bike_hourly", BIKE), ("bank_marketing", BANK)])
def test_a_large_query_gives_the_same_dataset(
    tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch, table: str, data: dict[str, Any]
) -> None:
    """A result that is copied in blocks gives the dataset of a result in memory; no temporary file remains."""
    rows = pd.read_parquet(DATA / f"{table}.parquet").head(2_000)
    rows.loc[rows.index[5:9], data["target"]] = None
    rows["late"] = [None] * 900 + ["text"] * 1_100
    rows["mixed"] = pd.Series([2**53 + 1, *range(1_499), *np.arange(500) / 8], dtype=object)
    rows["price"] = [Decimal(number) / 10 ** (number % 7) for number in range(2_000)]
    rows["none"] = None
    engine = create_engine(database)
    kinds = {"price": Numeric(30, None) if database.startswith("postgres") else Float(), "none": Text()}
    rows.assign(mixed=rows["mixed"].astype(float)).to_sql("t", engine, index_label="position", dtype=kinds)
    engine.dispose()
    mixed_column = "CASE WHEN position < 1500 THEN CAST(mixed AS BIGINT) ELSE mixed END AS mixed"
    columns = ", ".join(mixed_column if name == "mixed" else f'"{name}"' for name in rows.columns)
    source = {"url": database, "query": f"SELECT {columns} FROM t ORDER BY position"}
    in_memory = load(tmp_path, source, **data)
    monkeypatch.setattr(snapshot, "MAX_CELLS", 5_000)
    monkeypatch.setattr(sql_source, "BLOCK_ROWS", 300)
    assert load(tmp_path, source, **data) == in_memory
    file = sources.check_snapshot(in_memory, tmp_path / "store")
    assert [path.name for path in file.parent.iterdir()] == [file.name]


@pytest.mark.parametrize("large", [False, True])
def test_a_query_with_mixed_types(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, large: bool) -> None:
    """The error counts the values of all blocks and gives rows of the rarest type, also if each block has one type."""
    values = ", ".join(f"({row}, {row if row < 700 else repr(str(row))})" for row in range(1_000))
    execute(f"sqlite:///{tmp_path}/t.db", "CREATE TABLE t (y INT, a)", f"INSERT INTO t VALUES {values}")
    monkeypatch.setattr(snapshot, "MAX_CELLS", 500 if large else 10**6)
    monkeypatch.setattr(sql_source, "BLOCK_ROWS", 100)
    with pytest.raises(DataError, match="column 'a' mixes number and str") as caught:
        load(tmp_path, {"url": "sqlite:///t.db", "query": "SELECT * FROM t ORDER BY y"})
    assert caught.value.details[0].startswith("row 701: '700', row 702: '701', ")
    assert caught.value.details[0].endswith(" and 295 more")
    assert not [*(tmp_path / "store").rglob("*.*")]


def test_a_lost_database_connection(tmp_path: Path, postgres: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error is transient, and no file with the rows that were read remains."""
    query = "SELECT number AS y, repeat('x', 2000) AS text FROM generate_series(1, 20000) number"
    fetched, real = list[int](), sql_source.QueryRows.add

    def lose_connection(rows: sql_source.QueryRows, block: Any) -> None:
        fetched.append(len(block))
        if len(fetched) == 3:
            execute(postgres, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE '%FETCH%'")
        real(rows, block)

    monkeypatch.setattr(snapshot, "MAX_CELLS", 1_000)
    monkeypatch.setattr(sql_source, "BLOCK_ROWS", 1_000)
    monkeypatch.setattr(sql_source.QueryRows, "add", lose_connection)
    with pytest.raises(TransientError, match="does not answer") as caught:
        load(tmp_path, {"url": postgres, "query": query})
    assert str(make_url(postgres).password) not in str(caught.value)
    assert len(fetched) >= 3
    assert not [path for path in (tmp_path / "store").rglob("*") if path.is_file()]
    monkeypatch.setattr(sql_source.QueryRows, "add", real)
    assert load(tmp_path, {"url": postgres, "query": query}).rows == 20_000


def test_types(tmp_path: Path) -> None:
    """Every scalar type of Parquet is read as one of five dtypes, with nulls and time zones."""
    stamp = datetime(2026, 1, 1, 12, tzinfo=UTC)
    table = pa.table(
        {
            "y": pa.array([1, 2, 3], pa.int8()),
            "gaps": pa.array([1, None, 3]),
            "flag": pa.array([True, False, True]),
            "flag?": pa.array([True, None, True]),
            "price": pa.array([Decimal("1.25"), None, Decimal("2.50")]),
            "half": pa.array(np.array([1.5, np.nan, 2.5], np.float32)),
            "level": pa.array(["a", "b", None]).dictionary_encode(),
            "day": pa.array([stamp.date(), None, stamp.date()]),
            "zoned": pa.array([stamp] * 3, pa.timestamp("ns", "Europe/Paris")),
            "huge": pa.array([2**64 - 2**11, 0, 1], pa.uint64()),  # exact as float64
            "hour": pa.array([stamp.time()] * 3),
            "code": pa.array([UUID(int=1), None, UUID(int=2)]),
            "none": pa.nulls(3),
            "none too": pa.nulls(3, pa.string()),
            'a.b[c] "ü"': pa.array([1, 2, 3]),
        }
    )
    pq.write_table(table, tmp_path / "t.parquet")
    read = frame(tmp_path, "t.parquet")
    kinds = {name: str(dtype) for name, dtype in read.dtypes.items()}
    assert kinds == {
        "y": "int64", "gaps": "float64", "flag": "bool", "flag?": "boolean", "price": "float64", "half": "float64",
        "level": "str", "day": "datetime64[us]", "zoned": "datetime64[us]", "huge": "float64", "hour": "float64",
        "code": "str", "none": "float64", "none too": "float64", 'a.b[c] "ü"': "int64",
    }  # fmt: skip
    assert read["zoned"][0] == pd.Timestamp("2026-01-01 12:00")
    assert read["price"].tolist()[::2] == [1.25, 2.5]


def test_types_of_postgresql(tmp_path: Path, postgres: str) -> None:
    """Every scalar type of PostgreSQL is read as from Parquet, whatever the time zone of the server."""
    winter, summer = (datetime(2026, month, 1, 12, 30, 0, 5, tzinfo=UTC) for month in (1, 7))
    columns = {
        "y": ("smallint", pa.array([1, 2, 3], pa.int16())),
        "gaps": ("integer", pa.array([1, None, 3], pa.int32())),
        "big": ("bigint", pa.array([2**62 + 1, -(2**63), 0])),
        "price": ("numeric(9, 2)", pa.array([Decimal("1.25"), None, Decimal("-2.50")])),
        "wide": ("numeric", pa.array([1e40, 1e-40, float("inf")])),
        "half": ("real", pa.array(np.array([1.5, np.nan, 2.5], np.float32))),
        "third": ("double precision", pa.array([1 / 3, -0.0, None])),
        "flag": ("boolean", pa.array([True, False, True])),
        "flag?": ("boolean", pa.array([True, None, False])),
        "day": ("date", pa.array([winter.date(), None, summer.date()])),
        "plain": ("timestamp", pa.array([winter.replace(tzinfo=None), None, summer.replace(tzinfo=None)])),
        "zoned": ("timestamptz", pa.array([winter, summer, None], pa.timestamp("us", "Asia/Tokyo"))),
        "hour": ("time", pa.array([winter.time(), None, summer.time()])),
        "code": ("uuid", pa.array([UUID(int=1), None, UUID(int=2)])),
        "words": ("text", pa.array(["ü", "", "a\nb"])),
        "level": ("varchar(9)", pa.array(["low", None, "high"]).dictionary_encode()),
        "enum": ("rank", pa.array(["low", None, "high"])),
        "none": ("text", pa.nulls(3, pa.string())),
    }
    table = pa.table({name: values for name, (_, values) in columns.items()})
    pq.write_table(table, tmp_path / "t.parquet")
    described = ", ".join(f'"{name}" {kind}' for name, (kind, _) in columns.items())
    marks = ", ".join(["%s"] * len(columns))
    engine = create_engine(postgres)
    with engine.begin() as connection:
        connection.exec_driver_sql(f"ALTER DATABASE {make_url(postgres).database} SET timezone = 'America/New_York'")
        connection.exec_driver_sql("CREATE TYPE rank AS ENUM ('low', 'high')")
        connection.exec_driver_sql(f"CREATE TABLE t ({described})")
        rows = [tuple(row.values()) for row in table.to_pylist()]
        connection.exec_driver_sql(f"INSERT INTO t VALUES ({marks})", rows)
    engine.dispose()
    source = {"url": postgres, "query": "SELECT * FROM t ORDER BY y"}
    pd.testing.assert_frame_equal(frame(tmp_path, source), frame(tmp_path, "t.parquet"), check_exact=True)
    assert load(tmp_path, source).digest == load(tmp_path, "t.parquet").digest


def test_the_digest_depends_on_values_only(tmp_path: Path) -> None:
    """Chunks, dictionaries and bytes under nulls do not change it; another value, name or order does."""
    beneath = pa.Array.from_buffers(
        pa.int64(), 3, [pa.py_buffer(b"\x05"), pa.py_buffer(np.array([1, 77, 3], np.int64).tobytes())]
    )
    words = pa.chunked_array([["p"], ["q", None]])
    base = {"y": pa.array([1, 2, 3]), "x": pa.array([1, None, 3]), "w": pa.array(["p", "q", None])}
    same = [base, {**base, "x": beneath}, {**base, "w": words}, {**base, "w": base["w"].dictionary_encode()}]
    other = [
        {**base, "x": pa.array([1, None, 4])},
        {**base, "w": pa.array(["pq", "", None])},
        {"y": base["y"], "x": base["x"], "v": base["w"]},
    ]
    digests = []
    for columns in same + other:
        pq.write_table(pa.table(columns), tmp_path / "t.parquet")
        digests.append(load(tmp_path, "t.parquet").digest)
    assert len(set(digests[: len(same)])) == 1
    assert len(set(digests)) == 1 + len(other)


def test_reads_csv_files_of_spreadsheets(tmp_path: Path) -> None:
    """Quotes, newlines in values, a byte order mark, nulls and late floats are read over the whole file.

    NA is null among dates and numbers, and a level like any other in a category.
    """
    body = '\ufeffy,name,"a, b"\n' + '1,"x\ny",2026-01-01\n' + "2,,2026-01-02 10:00\n" * 3000 + "2.5,NA,NA\n3.5,,\n"
    (tmp_path / "t.csv").write_text(body, encoding="utf-8")
    read = frame(tmp_path, "t.csv")
    assert read.shape == (3003, 3)
    assert read["y"].tolist()[-2:] == [2.5, 3.5]
    assert read["name"].iloc[0] == "x\ny"
    assert (read["name"].isna().sum(), read["name"].iloc[-2]) == (3001, "NA")
    assert read["a, b"].dtype == "datetime64[us]"


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_csv_with_carriage_returns_inside_unquoted_text(tmp_path: Path, end: str) -> None:
    """pandas writes text with a carriage return without quotes; the text stays one value."""
    lines = ["a,y,b", 'one\rtwo,1,"x, ""y"""', '\rb,2,"last"', "plain,3,three\rfour\r!", '"5\r",4,']
    assert "header has 3" in error_of(tmp_path, end.join([*lines, "6,7", ""]), "u.csv")
    (tmp_path / "t.csv").write_bytes(end.join([*lines, ""]).encode())
    table = frame(tmp_path, "t.csv").sort_values("y")
    assert table["a"].tolist() == ["one\rtwo", "\rb", "plain", "5\r"]
    assert table["b"].fillna("").tolist() == ['x, "y"', "last", "three\rfour\r!", ""]


def test_as_of_and_window_limit_the_rows(tmp_path: Path) -> None:
    """as_of and the window limit the rows; start and end of the snapshot are recorded; rows keep their order."""
    times = pd.date_range("2026-01-01", periods=10, freq="D")[::-1]
    pd.DataFrame({"y": range(10), "t": times}).to_csv(tmp_path / "t.csv", index=False)
    cut = load(tmp_path, "t.csv", datetime(2026, 1, 7, 1, tzinfo=UTC), time="t", window=timedelta(days=3))
    assert (cut.rows, cut.start, cut.end) == (3, "2026-01-05T00:00:00", "2026-01-07T00:00:00")
    assert frame(tmp_path, "t.csv", time="t", window=timedelta(days=2))["y"].tolist() == [0, 1]
    assert len(frame(tmp_path, "t.csv", time="t", window=(timedelta(days=2), timedelta(days=4)))) == 4
    assert len(frame(tmp_path, "t.csv", time="t", window=(timedelta(days=2), None))) == 10
    with pytest.raises(DataError, match="no rows are left of 10"):
        load(tmp_path, "t.csv", datetime(2025, 1, 1, tzinfo=UTC), time="t")
    with pytest.raises(ConfigError, match="needs a time column"):
        load(tmp_path, "t.csv", window=timedelta(days=2))


def test_text_times(tmp_path: Path) -> None:
    """Text in ISO format is read as UTC; other formats are refused with their rows."""
    message = error_of(tmp_path, "y,t\n1,2026-01-02\n2,03/01/2026\n3,now\n", time="t")
    assert "2 of 3" in message
    assert "row 2: '03/01/2026', row 3: 'now'" in message
    pq.write_table(pa.table({"y": [1, 2], "t": ["2026-01-01T10:00+02:00", "2026-01-02"]}), tmp_path / "t.parquet")
    read = frame(tmp_path, "t.parquet", time="t")
    assert read["t"].tolist() == [pd.Timestamp("2026-01-01 08:00"), pd.Timestamp("2026-01-02")]


def test_unfinished_snapshots_of_killed_runs_are_removed(tmp_path: Path) -> None:
    """Unfinished snapshots are removed after a day; newer ones may still be written and remain, like complete ones."""
    (tmp_path / "t.csv").write_text("x,y\n1,2\n3,4\n")
    complete = tmp_path / "store" / load(tmp_path, "t.csv").path
    old, young = complete.with_name(".0123.parquet.abc"), complete.with_name(".0123.parquet.def")
    yesterday = (datetime.now(UTC) - timedelta(days=1, hours=1)).timestamp()
    for path in (old, young, complete.with_name("0123.parquet")):
        path.write_bytes(b"half")
        if path != young:
            os.utime(path, (yesterday, yesterday))
    load(tmp_path, "t.csv")
    assert {path.name for path in complete.parent.iterdir()} == {complete.name, young.name, "0123.parquet"}


def test_snapshot_is_checked(tmp_path: Path) -> None:
    """A missing, damaged or changed snapshot is an error."""
    (tmp_path / "t.csv").write_text("y,a\n1,2\n")
    dataset = load(tmp_path, "t.csv")
    path = tmp_path / "store" / dataset.path
    pq.write_table(pa.table({"y": [1], "a": [3]}), path)
    with pytest.raises(DataError, match="was changed"):
        sources.read_snapshot(dataset, tmp_path / "store")
    path.write_bytes(b"PAR1")
    with pytest.raises(DataError, match="not a readable Parquet"):
        sources.read_snapshot(dataset, tmp_path / "store")
    path.unlink()
    with pytest.raises(DataError, match="is missing"):
        sources.read_snapshot(dataset, tmp_path / "store")


@pytest.mark.parametrize(
    ("content", "data", "words"),
    [
        ("", {}, ["empty"]),
        (" \n\n", {}, ["empty"]),
        ("y,a\n", {}, ["a header, but no row"]),
        ("y,a", {}, ["a header, but no row"]),
        ("y;a\n1;2\n", {}, ["';'", "data.separator"]),
        ("y\ta,b\n1\t2\n", {"separator": "|"}, ["data.separator"]),
        (b"y,a\n1,b\n2,\xed\xee\xf7\xfc\n", {}, ["neither UTF-8 nor", "0xed", "t.csv:3", "iconv"]),
        ("y,a\n1,2\n\n1,2,3\n", {}, ["3 fields, but the header has 2", "t.csv:4"]),
        (
            "y,a\n1,2,\n2,3,\n",
            {},
            ["the rows have 3 fields, but the header has 2", "t.csv:1", "at the end of the header"],
        ),
        ('y,a\n1,2\n1,"2\n1,2\n', {}, ["t.csv:3", "never closed"]),
        ("sales,a\n1,2\n", {"target": "sale"}, ["no column 'sale'", "did you mean sales?", "data.target"]),
        ("y,stamp\n1,2\n", {"time": "stmp"}, ["data.time", "did you mean stamp"]),
        ("y,shop\n1,2\n", {"group": "shp"}, ["data.group", "did you mean shop"]),
        ("y,a\n1,2\n", {"drop": ("zzz",)}, ["data.drop", "known: a, y"]),
        ("y,a\n1,2\n", {"columns": {"b": "text"}}, ["data.columns"]),
        ("y,t\n1,17.5\n", {"time": "t"}, ["row 1: '17.5'", "ISO 8601", "data.date_format"]),
        ("y,t\n1,03/04/2026\n", {"time": "t"}, ["row 1: '03/04/2026'", "data.date_format", "%d/%m/%Y"]),
        ("y,a\n1,2\n,4\n", {}, ["50.0% of the rows have no target", "data.max_unlabelled: 0.5"]),
    ],
)
def test_bad_csv(tmp_path: Path, content: bytes | str, data: dict[str, Any], words: list[str]) -> None:
    """Each malformed CSV gives one short error with place and remedy, and the store is not changed."""
    message = error_of(tmp_path, content, **data)
    for word in at_least_one(words):
        assert word in message


@pytest.mark.parametrize("cells", [10**9, -1], ids=["in memory", "column by column"])
@pytest.mark.parametrize("format_", ["%Y-%m-%d", "%d/%m/%Y %H:%M", "%Y%m%d"])
def test_rows_without_a_time_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format_: str, cells: int
) -> None:
    """Nulls and ``data.na_values`` are left out and counted; another text is an error that names the row."""
    monkeypatch.setattr(snapshot, "MAX_CELLS", cells)
    times = pd.date_range("2026-01-25", periods=100).strftime(format_).tolist()
    table = pd.DataFrame({"y": range(100), "t": times})
    table.loc[[3, 50], "t"] = None
    table.loc[70, "t"] = "unknown"
    table.to_csv(tmp_path / "t.csv", index=False)
    dates = {} if format_ == "%Y-%m-%d" else {"date_format": format_}
    with pytest.raises(DataError, match="1 of 100 values are not") as caught:
        load(tmp_path, "t.csv", time="t", **dates)
    assert "data.na_values" in caught.value.remedy
    assert caught.value.details == ("row 71: 'unknown'",)
    dates |= {"na_values": ["unknown"]}
    dataset = load(tmp_path, "t.csv", time="t", **dates)
    assert sources.read_snapshot(dataset, tmp_path / "store")["y"].tolist() == [
        row for row in range(100) if row not in (3, 50, 70)
    ]
    assert dict(dataset.left_out) == {"without a time": 3}


def test_many_rows_without_a_time_are_refused(tmp_path: Path) -> None:
    """The remedy of the error leaves them out."""
    text = "y,t\n" + "".join(f"{row},{'' if row % 10 == 0 else f'2026-01-{row + 1:02}'}\n" for row in range(30))
    message = error_of(tmp_path, text, time="t")
    assert "10.0% of the rows have no time, at most 5% may lack it" in message
    assert "data.max_undated: 0.1" in message
    assert load(tmp_path, "t.csv", time="t", max_undated=0.1).rows == 27


def test_a_column_without_any_time_is_refused(tmp_path: Path) -> None:
    assert "no row has a time" in error_of(tmp_path, "y,t\n1,\n2,\n", time="t")


def test_the_remedy_for_row_names_works(tmp_path: Path) -> None:
    """R writes no header for the column of row names; with a separator before the header the table is read."""
    text = "y a\n1 5 2\n2 6 3\n"
    message = error_of(tmp_path, text, separator=" ")
    assert "write ' ' at the beginning of the header" in message
    (tmp_path / "t.csv").write_text(f" {text}")
    data = DataConfig(source="t.csv", target="y", separator=" ")
    table = sources.read_snapshot(sources.load_dataset(data, tmp_path, tmp_path / "store", None), tmp_path / "store")
    assert table["a"].tolist() == [2, 3]


def test_bad_files(tmp_path: Path) -> None:
    """The error names a missing, damaged, nested or unsupported file."""
    assert "PAR1" not in error_of(tmp_path, b"not parquet", "t.parquet")
    assert "the file is empty" in error_of(tmp_path, b"", "e.parquet")
    assert "cannot read the file" in error_of(tmp_path, gzip.compress(b"y,a\n1,2\n" * 999)[:-20], "t.csv.gz")
    assert "the file is an Excel workbook" in error_of(tmp_path, b"PK\x03\x04\x14\0\6\0", "t.xlsx")
    for column in ([[1]], [{"k": 1}], [b"raw"]):
        pq.write_table(pa.table({"y": [1], "odd": column}), tmp_path / "n.parquet")
        assert "'odd'" in error_of(tmp_path, (tmp_path / "n.parquet").read_bytes(), "n.parquet")
    pq.write_table(pa.Table.from_arrays([pa.array([1])] * 3, ["y", "a", "a"]), tmp_path / "d.parquet")
    assert "the same name: 'a'" in error_of(tmp_path, (tmp_path / "d.parquet").read_bytes(), "d.parquet")
    with pytest.raises(DataError, match="no such file") as caught:
        load(tmp_path, "t.parqet")
    assert "t.parquet" in caught.value.remedy
    with pytest.raises(DataError, match="no such folder"):
        load(tmp_path, "nowhere/t.csv")
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="no CSV, Parquet or JSON"):
        load(tmp_path, "none")


def test_files_of_a_folder_with_other_columns_are_named(tmp_path: Path) -> None:
    """Files with other columns or types are named; another order of the columns is no difference."""
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "1.csv").write_text("y,a\n1,2\n")
    (tmp_path / "d" / "2.csv").write_text("a,y\n2.5,1\n")
    assert frame(tmp_path, "d")["a"].tolist() == [2.0, 2.5]
    (tmp_path / "d" / "3.csv").write_text("y,b\n1,2\n")
    with pytest.raises(DataError) as caught:
        load(tmp_path, "d/*.csv")
    assert "3.csv" in caught.value.where
    assert caught.value.details == ("missing: a", "only here: b")
    (tmp_path / "d" / "3.csv").write_text("y,a\n1,two\n")
    dataset = load(tmp_path, "d")
    assert [(each.column, each.count, each.examples) for each in dataset.coerced] == [("a", 1, "row 3: 'two'")]


def test_database(tmp_path: Path, database: str) -> None:
    """Colons and percent signs of a query are not parameters; a query that fails is reported."""
    rows = "(1, 1, '10%'), (2, 2.5, ':x'), (3, NULL, NULL)"
    execute(database, "CREATE TABLE t (y INT, a NUMERIC, s TEXT)", f"INSERT INTO t VALUES {rows}")
    read = frame(tmp_path, {"url": database, "query": "SELECT * FROM t WHERE s LIKE '%' OR s = ':x' ORDER BY y"})
    assert read["a"].tolist() == [1.0, 2.5]
    assert read["s"].tolist() == ["10%", ":x"]
    with pytest.raises(DataError, match=r"the query failed: .*not_there") as caught:
        load(tmp_path, {"url": database, "query": "SELECT * FROM not_there"})
    assert caught.value.where == mask_passwords(database)
    for query in ("SELECT * FROM t WHERE y > 9", "DELETE FROM t"):
        with pytest.raises(DataError, match=r"no rows|syntax error at or near .DELETE"):
            load(tmp_path, {"url": database, "query": query})
    assert load(tmp_path, {"url": database, "query": "SELECT * FROM t"}).rows == 3


def test_sqlite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path starts at the project; a missing file is not created; only numbers may have several types."""
    execute(f"sqlite:///{tmp_path}/t.db", "CREATE TABLE t (y INT, a)", "INSERT INTO t VALUES (1, 1), (2, 2.5)")
    monkeypatch.setenv("DB_FILE", "t.db")
    source = {"url": "sqlite:///${DB_FILE}", "query": "SELECT * FROM t"}
    assert frame(tmp_path, source)["a"].tolist() == [1.0, 2.5]
    execute(f"sqlite:///{tmp_path}/t.db", "INSERT INTO t VALUES (4, 'four')")
    with pytest.raises(DataError, match="mixes number and str") as caught:
        load(tmp_path, source)
    assert "four" in str(caught.value)
    with pytest.raises(DataError, match="no such file"):
        load(tmp_path, {"url": "sqlite:///u.db", "query": "SELECT 1"})
    assert not (tmp_path / "u.db").exists()


def test_uuids(tmp_path: Path, postgres: str) -> None:
    """PostgreSQL's uuid type is read as text."""
    execute(
        postgres, "CREATE TABLE keyed (y INT, ref UUID)", f"INSERT INTO keyed VALUES (1, '{UUID(int=7)}'), (2, NULL)"
    )
    keyed = frame(tmp_path, {"url": postgres, "query": "SELECT * FROM keyed ORDER BY y"})
    assert keyed["ref"].isna().tolist() == [False, True]
    assert keyed["ref"][0] == str(UUID(int=7))


def test_database_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An invalid URL, an unset variable and a server that is down are different errors, without the password."""
    with pytest.raises(ConfigError, match="NOT_SET"):
        load(tmp_path, {"url": "sqlite:///${NOT_SET}", "query": "SELECT 1"})
    with pytest.raises(ConfigError, match="not a database URL"):
        load(tmp_path, {"url": "t.db", "query": "SELECT 1"})
    monkeypatch.setenv("DB_PW", "s3cr:t@/x")
    with pytest.raises(TransientError) as caught:
        load(tmp_path, {"url": "postgresql://me:${DB_PW}@127.0.0.1:1/d", "query": "SELECT 1"})
    assert "s3cr" not in str(caught.value)
    assert "hidden" not in mask_passwords("postgresql://me:hid@hidden@h/d?password=hidden")


def test_postgresql(tmp_path: Path, postgres: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A password of the environment is used unchanged, and is in no error and no record."""
    password = make_url(postgres).password
    monkeypatch.setenv("DB_PW", password or "")
    url = make_url(postgres).set(password="PW").render_as_string(hide_password=False).replace(":PW@", ":${DB_PW}@")
    dataset = load(tmp_path, {"url": url, "query": "SELECT 1 AS y"})
    assert dataset.rows == 1
    assert dataset.source == f"{url} SELECT 1 AS y"
    for wrong, query in (
        (f"{url}_not_there", "SELECT 1 AS y"),
        (url, "SELECT 1 AS y, pg_terminate_backend(pg_backend_pid())"),
    ):
        with pytest.raises(TransientError, match="does not answer") as caught:
            load(tmp_path, {"url": wrong, "query": query})
        assert str(password) not in str(caught.value)


ALIGNED = {
    "values with one blank": "".join(
        f"  {n:<8}{'12-15 years' if n % 2 else '< 12 years':<14}{n * 0.5:>8}\n" for n in range(60)
    ),
    "quotes": "".join(
        f"{n}  '{n % 2}' \t\"{'12-15 years' if n % 2 else '< 12 years'}\" {n * 0.5}\n" for n in range(60)
    ),
}


@pytest.mark.parametrize(
    ("case", "header"), [("values with one blank", "  id      heduc          y"), ("quotes", "id\ta\theduc y")]
)
def test_columns_aligned_by_blanks(tmp_path: Path, case: str, header: str) -> None:
    """The error's remedy reads them; the detection of separators recognizes them."""
    content = f"{header}\n{ALIGNED[case]}"
    if case == "values with one blank":
        assert "set data.separator to 'aligned'" in error_of(tmp_path, content)
    short = content.replace("\n", "\nodd\n", 30).replace("odd\n", "", 29)  # a line with one value near the end
    assert "t.csv:31" in error_of(tmp_path, short, separator="aligned")
    (tmp_path / "t.csv").write_text(content)
    table = frame(tmp_path, "t.csv", separator="aligned")
    assert table.columns.tolist() == header.split()
    assert table["heduc"].unique().tolist() == ["< 12 years", "12-15 years"]
    assert table["y"].tolist() == [n * 0.5 for n in range(60)]
    assert formats.detect_separator(tmp_path / "t.csv") == "aligned"


def test_quotes_that_follow_a_space(tmp_path: Path) -> None:
    """The space belongs to the separator, so that a quoted value may contain commas."""
    rows = "".join(f'"{n}",  {n * 0.5}, "{"A, or B" if n % 2 else "C"}"\n' for n in range(60))
    assert "t.csv:62" in error_of(tmp_path, f'"id", "y", "kind"\n{rows}1, "2"\n', separator=", ")
    (tmp_path / "t.csv").write_text(f'"id", "y", "kind"\n{rows}')
    separator = formats.detect_separator(tmp_path / "t.csv")
    table = frame(tmp_path, "t.csv", separator=separator)
    assert (separator, table.columns.tolist()) == (", ", ["id", "y", "kind"])
    assert table["kind"].tolist() == ["C", "A, or B"] * 30
    assert table["y"].tolist() == [n * 0.5 for n in range(60)]
