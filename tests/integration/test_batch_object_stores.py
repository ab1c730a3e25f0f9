"""Batch scoring from and to an S3 server and web servers."""

import json
import logging
import os
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tests.support.batch import (
    kill_at_shard,
    make_customer_table,
    score,
    score_addresses,
    train_customer_model,
    use_small_shards,
)
from tests.support.object_store import BUCKET, SECRET_KEY, ExpiredHandler, FileHandler, run_web_server, running_s3
from tests.support.paths import TOWLINE
from towline import remote_files
from towline.errors import ConfigError, DataError, TransientError
from towline.inference.predictor import Model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return train_customer_model(tmp_path_factory.mktemp("customers"))


@pytest.fixture(scope="module")
def server() -> Iterator[dict[str, str]]:
    with running_s3() as environment:
        yield environment


@pytest.fixture
def s3(server: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """The file system of the S3 server."""
    import s3fs

    for name, value in server.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    return s3fs.S3FileSystem(use_listings_cache=False)


def table(rows: int = 200) -> pd.DataFrame:
    return make_customer_table(rows, seed=3).drop(columns="bought")


@pytest.mark.parametrize(("name", "target"), [("in.csv", "out.csv"), ("in.parquet", "out.parquet"), ("in.csv", "out")])
def test_s3_gives_the_bytes_of_local_files(
    tmp_path: Path, model: Model, s3: Any, monkeypatch: pytest.MonkeyPatch, name: str, target: str
) -> None:
    """Source and output in S3: the bytes are those of local files, and the same command does not score again."""
    use_small_shards(monkeypatch, size=4_000, block=1_000)
    table().to_csv(tmp_path / "in.csv", index=False)
    table().to_parquet(tmp_path / "in.parquet")
    s3.put_file(str(tmp_path / name), f"{BUCKET}/new/{name}")
    local = score(model, tmp_path / name, tmp_path / "local" / target)
    source, output = f"s3://{BUCKET}/new/*{Path(name).suffix}", f"s3://{BUCKET}/scored/{target}"
    remote = score_addresses(model, source, output, tmp_path, overwrite=True)
    assert remote.output_digest == local.output_digest
    if target != "out":
        assert s3.cat(f"{BUCKET}/scored/{target}") == (tmp_path / "local" / target).read_bytes()
    assert json.loads(s3.cat(f"{BUCKET}/scored/{target}.summary.json"))["rows"] == 200
    assert score_addresses(model, source, output, tmp_path).unchanged
    s3.pipe(f"{BUCKET}/scored/{target}" if target != "out" else f"{BUCKET}/scored/out/part-000000.parquet", b"")
    with pytest.raises(ConfigError, match="the output exists"):
        score_addresses(model, source, output, tmp_path)


def test_an_object_that_changes_is_an_error(tmp_path: Path, model: Model, s3: Any) -> None:
    """Ranges of two versions of an object are never mixed."""
    s3.pipe(f"{BUCKET}/changing.csv", table().to_csv(index=False).encode())
    (file,) = remote_files.list_remote_files(f"s3://{BUCKET}/changing.csv", (), "IN")
    with file.open() as stream:
        stream.read(10)
        s3.pipe(f"{BUCKET}/changing.csv", table(100).to_csv(index=False).encode())
        with pytest.raises(DataError, match=r"(?s)has changed.*s3://rows/changing.csv"):
            stream.read(10)


@pytest.mark.parametrize(
    ("source", "output", "error", "expected"),
    [
        (f"s3://{BUCKET}/none.csv", "out.csv", DataError, "no such file"),
        ("s3://no-such-bucket/*.csv", "out.csv", DataError, "bucket does not exist"),
        ("in.csv", "s3://no-such-bucket/out.csv", DataError, "bucket does not exist"),
        ("in.csv", f"s3://{BUCKET}", ConfigError, "OUT names a bucket"),
    ],
)
def test_missing_objects_and_buckets(
    tmp_path: Path, model: Model, s3: Any, source: str, output: str, error: type[Exception], expected: str
) -> None:
    """The error names each before a row is read."""
    table().to_csv(tmp_path / "in.csv", index=False)
    output = output if "://" in output else str(tmp_path / output)
    with pytest.raises(error, match=expected):
        score_addresses(model, source, output, tmp_path)


def test_no_access(
    tmp_path: Path, model: Model, s3: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Missing credentials, an expired token and a server that is down are named, without a secret in error or log."""
    caplog.set_level(logging.INFO)
    table().to_csv(tmp_path / "in.csv", index=False)
    shown = []

    def fail(source: str, output: str, error: type[Exception], expected: str) -> None:
        type(s3).clear_instance_cache()
        with pytest.raises(error, match=expected) as caught:
            score_addresses(model, source, output, tmp_path)
        shown.append(str(caught.value))

    with run_web_server(ExpiredHandler) as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        fail(f"s3://{BUCKET}/in.csv", str(tmp_path / "out.csv"), ConfigError, "(?s)no access.*token has expired")
        fail("in.csv", f"s3://{BUCKET}/out.csv", ConfigError, "no access")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    fail(f"s3://{BUCKET}/in.csv", str(tmp_path / "out.csv"), TransientError, "does not answer")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    fail(f"s3://{BUCKET}/in.csv", str(tmp_path / "out.csv"), ConfigError, "(?s)no access.*credentials")
    assert SECRET_KEY not in caplog.text + "".join(shown)
    assert not list(tmp_path.glob("*out.csv*"))


def test_web_servers(
    tmp_path: Path, model: Model, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Servers support ranges, do not, or refuse the request; the signature in the URL is in no output."""
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(FileHandler, "files", {"/in.csv": table().to_csv(index=False).encode()})
    with run_web_server(FileHandler) as address:
        results = [
            score_addresses(model, f"{address}{path}?sig={SECRET_KEY}", str(tmp_path / f"{number}.csv"), tmp_path)
            for number, path in enumerate(("/in.csv", "/ranges/in.csv"))
        ]
        assert results[0].output_digest == results[1].output_digest
        assert [result.rows for result in results] == [200, 200]
        wrong = SECRET_KEY[::-1]
        with pytest.raises(ConfigError, match="no access") as caught:
            score_addresses(model, f"{address}/in.csv?sig={wrong}", str(tmp_path / "out.csv"), tmp_path)
        with pytest.raises(DataError, match="no such file") as missing:
            score_addresses(model, f"{address}/none.csv?sig={wrong}", str(tmp_path / "out.csv"), tmp_path)
    with pytest.raises(TransientError, match="does not answer") as down:
        score_addresses(model, f"{address}/in.csv?sig={wrong}", str(tmp_path / "out.csv"), tmp_path)
    texts = [path.read_text() for path in tmp_path.rglob("*.json")]
    shown = caplog.text + "".join([str(error.value) for error in (caught, missing, down)] + texts)
    assert SECRET_KEY not in shown
    assert wrong not in shown


@pytest.mark.slow
def test_a_killed_command_resumes(tmp_path: Path, model: Model, server: dict[str, str], s3: Any) -> None:
    """Killed at several times: the object is missing or complete, and the last attempt gives the expected bytes."""
    for number in range(6):
        rows = make_customer_table(4_000, seed=number).drop(columns="bought")
        s3.pipe(f"{BUCKET}/many/part-{number}.csv", rows.to_csv(index=False).encode())
    expected = score_addresses(model, f"s3://{BUCKET}/many", str(tmp_path / "expected.csv"), tmp_path)
    words = [TOWLINE, "score", f"s3://{BUCKET}/many", f"s3://{BUCKET}/killed.csv", "--model", model.directory]
    environment = {**os.environ, **server, "TOWLINE_STORE": str(tmp_path / "store")}
    command, kills = [*map(str, words), "--workers", "2"], 0
    shard_results = partial(tmp_path.glob, "store/scored/uploads/*/.*/*.json")
    for finished in (1, 3, 6):
        kills += kill_at_shard(command, shard_results, finished, env=environment, cwd=tmp_path)
        whole = (tmp_path / "expected.csv").read_bytes()
        assert not s3.exists(f"{BUCKET}/killed.csv") or s3.cat(f"{BUCKET}/killed.csv") == whole
    assert kills
    subprocess.run(command, check=True, env=environment, cwd=tmp_path)
    assert s3.cat(f"{BUCKET}/killed.csv") == whole
    assert json.loads(s3.cat(f"{BUCKET}/killed.csv.summary.json"))["output_digest"] == expected.output_digest
