"""Batch scoring from and to SQLite and PostgreSQL."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from sqlalchemy import create_engine, make_url

from tests.support.batch import make_customer_table, train_customer_model
from towline.batch import addresses
from towline.batch.addresses import parse_source
from towline.batch.batch_summary import BatchResult
from towline.batch.job_options import BatchOptions, BatchRequest
from towline.batch.sql import table_output
from towline.errors import ConfigError, DataError, TransientError
from towline.inference.predictor import Model
from towline.store import StoreLayout

ROWS = 300


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return train_customer_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a database with the table ``new``."""
    url = request.getfixturevalue("postgres") if request.param == "postgres" else f"sqlite:///{tmp_path / 'shop.db'}"
    write(url, new_rows(), "new")
    return url


@pytest.fixture(autouse=True)
def _check_work_folders(tmp_path: Path) -> Iterator[None]:
    """Checks that a finished job leaves no work folder."""
    yield
    assert [path for path in tmp_path.rglob(".*towline-batch*") if path.is_dir()] == []


def new_rows() -> pd.DataFrame:
    table = make_customer_table(ROWS, seed=9).drop(columns="bought")
    return table.assign(id=np.arange(2**53, 2**53 + ROWS), note=["", None, "a,b"] * (ROWS // 3))


def write(url: str, table: pd.DataFrame, name: str) -> None:
    engine = create_engine(url)
    table.to_sql(name, engine, index=False)
    engine.dispose()


def read(url: str, name: str) -> pd.DataFrame:
    engine = create_engine(url)
    table = pd.read_sql(f'SELECT * FROM "{name}" ORDER BY id', engine)
    engine.dispose()
    return table


def score(model: Model, folder: Path, source: str, output: str, query: str | None = None, **how: Any) -> BatchResult:
    options = BatchOptions(**{key: how.pop(key) for key in ("bad_rows", "keep") if key in how})
    return addresses.score(
        model,
        parse_source(source, query),
        output,
        partial(BatchRequest, options=options, folder=folder, **how),
        StoreLayout(folder),
    )


def test_a_table_becomes_a_table(model: Model, database: str, tmp_path: Path) -> None:
    """Rows, nulls and large numbers are those of the source, predictions those of the model."""
    result = score(model, tmp_path, f"{database}#new", f"{database}#scored")
    scored, rows = read(database, "scored"), new_rows()
    assert (result.rows, result.rows_in, len(scored)) == (ROWS, ROWS, ROWS)
    assert scored["id"].tolist() == rows["id"].tolist()
    assert scored["note"].fillna("null").tolist() == rows["note"].fillna("null").tolist()
    assert scored["prediction"].tolist() == model.predict(rows).tolist()
    probabilities = model.predict_proba(rows)
    assert scored[[f"probability_{name}" for name in model.contract.classes]].to_numpy().tolist() == (
        probabilities.tolist()
    )
    assert not list(tmp_path.rglob("*.parquet"))


def test_a_table_is_replaced_only_with_overwrite(model: Model, database: str, tmp_path: Path) -> None:
    """An existing table is an error before a row is read; --overwrite replaces the whole table."""
    write(database, pd.DataFrame({"id": [7], "old": ["x"]}), "scored")
    with pytest.raises(ConfigError, match="the table exists"):
        score(model, tmp_path, f"{database}#new", f"{database}#scored")
    assert read(database, "scored")["old"].tolist() == ["x"]
    score(model, tmp_path, f"{database}#new", f"{database}#scored", overwrite=True)
    assert "old" not in read(database, "scored")


def test_views_of_a_replaced_table_stay(model: Model, database: str, tmp_path: Path) -> None:
    """As long as the columns are the same; else the error says what to do, and the table is unchanged."""
    score(model, tmp_path, f"{database}#new", f"{database}#scored")
    engine = create_engine(database)
    with engine.begin() as connection:
        connection.exec_driver_sql('CREATE VIEW few AS SELECT "id", prediction FROM scored')
        connection.exec_driver_sql("DELETE FROM new WHERE size < 40")
        rows = connection.exec_driver_sql("SELECT COUNT(*) FROM new").scalar()
    score(model, tmp_path, f"{database}#new", f"{database}#scored", overwrite=True)
    assert 0 < len(read(database, "scored")) == len(read(database, "few")) == rows
    if database.startswith("postgresql"):
        with pytest.raises(TransientError, match="depend on it") as caught:
            score(model, tmp_path, f"{database}#new", f"{database}#scored", keep=("id",), overwrite=True)
        assert "drop the views" in caught.value.remedy
        assert len(read(database, "few")) == rows
        with engine.begin() as connection:
            connection.exec_driver_sql("DROP VIEW few")
        score(model, tmp_path, f"{database}#new", f"{database}#scored", keep=("id",), overwrite=True)
        assert "note" not in read(database, "scored")
    engine.dispose()


def test_columns_that_differ_in_case_only(model: Model, database: str, tmp_path: Path) -> None:
    """PostgreSQL distinguishes them; the error of SQLite names them, and its remedy works."""
    new_rows().assign(ID="x").to_csv(tmp_path / "in.csv", index=False)
    output = f"{database}#scored"
    if database.startswith("sqlite"):
        with pytest.raises(ConfigError, match="does not distinguish the columns 'id' and 'ID'"):
            score(model, tmp_path, str(tmp_path / "in.csv"), output)
        score(model, tmp_path, str(tmp_path / "in.csv"), output, keep=("id",))
    else:
        score(model, tmp_path, str(tmp_path / "in.csv"), output)
        assert set(read(database, "scored")["ID"]) == {"x"}
    assert len(read(database, "scored")) == ROWS


def test_a_query_becomes_a_file(model: Model, database: str, tmp_path: Path) -> None:
    """Bad rows are in the quarantine; the rows keep their order."""
    query = "SELECT id, zip, word, size, flag, CASE id % 100 WHEN 99 THEN 'soon' ELSE '2026-01-01' END AS day FROM new"
    result = score(model, tmp_path, database, str(tmp_path / "out.parquet"), f"{query} ORDER BY id DESC")
    written = pq.read_table(tmp_path / "out.parquet").to_pandas()
    bad = [number for number in new_rows()["id"] if number % 100 == 99]
    assert written["id"].tolist() == [number for number in new_rows()["id"][::-1] if number not in bad]
    assert (result.rows, result.quarantined) == (ROWS - len(bad), len(bad))
    assert len(bad) == len(pd.read_csv(tmp_path / "out.parquet.quarantine.csv"))
    assert not list(tmp_path.glob(".out*"))


def test_a_query_without_rows(model: Model, database: str, tmp_path: Path) -> None:
    """It is no error: the file and the table have the columns and no rows."""
    query = "SELECT * FROM new WHERE id < 0"
    result = score(model, tmp_path, database, str(tmp_path / "out.csv"), query)
    assert (result.rows, result.quarantined) == (0, 0)
    written = pd.read_csv(tmp_path / "out.csv")
    assert len(written) == 0
    assert {*new_rows().columns, "prediction"} <= {*written.columns}
    write(database, pd.DataFrame({"id": [7]}), "scored")
    score(model, tmp_path, database, f"{database}#scored", query, overwrite=True)
    assert len(read(database, "scored")) == 0
    assert {*new_rows().columns, "prediction"} <= {*read(database, "scored").columns}


def test_a_lost_connection_leaves_the_old_table(
    model: Model, postgres: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same command then writes the table without repeated scoring."""
    write(postgres, new_rows(), "new")
    write(postgres, pd.DataFrame({"id": [7]}), "scored")
    real, calls = table_output._as_csv, list[int]()

    def lose_connection(batch: Any) -> bytes:
        calls.append(len(batch))
        if len(calls) == 2:
            engine = create_engine(postgres)
            with engine.begin() as connection:
                connection.exec_driver_sql(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'COPY%'"
                )
            engine.dispose()
        return real(batch)

    monkeypatch.setattr(table_output, "_BATCH_ROWS", 100)
    monkeypatch.setattr(table_output, "_as_csv", lose_connection)
    with pytest.raises(TransientError, match=r"not written|does not answer") as caught:
        score(model, tmp_path, f"{postgres}#new", f"{postgres}#scored", overwrite=True)
    assert str(make_url(postgres).password) not in str(caught.value)
    assert read(postgres, "scored")["id"].tolist() == [7]
    monkeypatch.setattr(table_output, "_as_csv", real)
    monkeypatch.setattr(type(model.scorer), "predict_columns", None)
    result = score(model, tmp_path, f"{postgres}#new", f"{postgres}#scored", overwrite=True)
    assert result.rows == len(read(postgres, "scored")) == ROWS


def test_wrong_addresses(model: Model, database: str, tmp_path: Path) -> None:
    """The error names each before a row is scored, without its password."""
    output = str(tmp_path / "out.csv")
    with pytest.raises(ConfigError, match="neither a table nor a query"):
        score(model, tmp_path, database, output)
    with pytest.raises(ConfigError, match="only a database has queries"):
        score(model, tmp_path, "new.csv", output, "SELECT 1")
    with pytest.raises(ConfigError, match="names no table"):
        score(model, tmp_path, f"{database}#new", database)
    with pytest.raises(DataError, match="nowhere"):
        score(model, tmp_path, f"{database}#nowhere", output)
    with pytest.raises(DataError, match=r"the statement returns no rows|syntax error"):
        score(model, tmp_path, database, output, "DELETE FROM new WHERE id < 0")
    with pytest.raises(DataError, match="size") as missing:
        score(model, tmp_path, database, output, "SELECT id, zip FROM new")
    assert missing.value.where == make_url(database).render_as_string(hide_password=True)
    with pytest.raises(TransientError, match="does not answer") as down:
        score(model, tmp_path, "postgresql://me:s3cret@127.0.0.1:1/shop#new", output)
    assert "s3cret" not in str(down.value)
    assert [path for path in tmp_path.glob("*out.csv*") if [*path.rglob("*.parquet")]] == []
