"""Files behind URLs give the results of local files; an output there is complete or absent; no secret is shown."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.local import LocalFileSystem

from tests.support.batch import Interrupted, make_customer_table, score, score_addresses, use_small_shards
from towline import remote_files
from towline.batch.input import source as batch_source
from towline.errors import ConfigError, DataError, TowlineError, TransientError
from towline.inference.predictor import Model

SECRET = "s3cr3t-v4lue"


@pytest.fixture
def bucket() -> Iterator[Any]:
    """The file system of memory:// URLs."""
    memory = fsspec.filesystem("memory")
    yield memory
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> pd.DataFrame:
    use_small_shards(monkeypatch)
    return make_customer_table(200, seed=3).drop(columns="bought")


def write(rows: pd.DataFrame, path: Path) -> None:
    """Writes rows in the format of the name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if ".parquet" in path.name:
        pq.write_table(pa.Table.from_pandas(rows, preserve_index=False), path, row_group_size=40)
    elif ".jsonl" in path.name:
        rows.to_json(path, orient="records", lines=True, date_format="iso")
    else:
        rows.to_csv(path, index=False, encoding="utf-16" if "utf16" in path.name else "utf-8")


@pytest.mark.parametrize("name", ["in.csv", "in.csv.gz", "in.utf16.csv", "in.jsonl", "in.parquet"])
def test_a_remote_file_gives_the_output_of_a_local_file(
    tmp_path: Path, model: Model, rows: pd.DataFrame, bucket: Any, name: str
) -> None:
    """The output has the same bytes, and no copy of the input remains."""
    write(rows, tmp_path / name)
    bucket.put_file(str(tmp_path / name), f"/bucket/{name}")
    output = "out.parquet" if "parquet" in name else "out.jsonl" if "jsonl" in name else "out.csv"
    local = score(model, tmp_path / name, tmp_path / "local" / output)
    remote = score_addresses(model, f"memory://bucket/{name}", str(tmp_path / "remote" / output), tmp_path)
    assert remote.output_digest == local.output_digest
    assert (remote.rows, remote.rows_in) == (local.rows, local.rows_in) == (200, 200)
    assert sorted(path.name for path in (tmp_path / "remote").iterdir()) == [output, f"{output}.summary.json"]


@pytest.mark.parametrize("address", ["memory://bucket/new", "memory://bucket/new/", "memory://bucket/n*/*part-?.csv"])
def test_folders_and_patterns(tmp_path: Path, model: Model, rows: pd.DataFrame, bucket: Any, address: str) -> None:
    """The files are read in the order of their names; other files of the folder are not read."""
    for number in range(3):
        write(rows[number * 60 : (number + 1) * 60], tmp_path / "new" / f"part-{number}.csv")
    (tmp_path / "new" / "_SUCCESS").touch()
    (tmp_path / "new" / ".part-0.csv").write_text("not,a,table\n")
    bucket.put(f"{tmp_path}/new", "/bucket/new", recursive=True)
    local = score(model, tmp_path / "new" / "*.csv", tmp_path / "local.csv")
    remote = score_addresses(model, address, str(tmp_path / "remote.csv"), tmp_path)
    assert remote.output_digest == local.output_digest
    assert remote.rows == 180


def test_a_file_url_is_a_path(tmp_path: Path, model: Model, rows: pd.DataFrame) -> None:
    """Escaped characters are decoded; the output is at the path."""
    write(rows, tmp_path / "new rows.csv")
    score_addresses(model, f"file://{tmp_path}/new%20rows.csv", f"file://{tmp_path}/out.csv", tmp_path)
    assert len(pd.read_csv(tmp_path / "out.csv")) == 200
    with pytest.raises(ConfigError, match="another host"):
        score_addresses(model, "file://elsewhere/new.csv", str(tmp_path / "out.csv"), tmp_path)


def test_only_needed_columns_of_parquet_are_read(
    tmp_path: Path, model: Model, rows: pd.DataFrame, bucket: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large column that neither the model nor the output needs is not transferred."""
    rows["noise"] = [np.random.default_rng(row).bytes(4_000).hex() for row in range(len(rows))]
    write(rows, tmp_path / "in.parquet")
    bucket.put_file(str(tmp_path / "in.parquet"), "/bucket/in.parquet")
    sizes, real = list[int](), remote_files._RangeStream.read

    def read_and_note(stream: Any, size: int = -1) -> bytes:
        data = real(stream, size)
        sizes.append(len(data))
        return data

    monkeypatch.setattr(remote_files._RangeStream, "read", read_and_note)
    score_addresses(model, "memory://bucket/in.parquet", str(tmp_path / "out.parquet"), tmp_path, keep=("zip",))
    assert 0 < sum(sizes) < (tmp_path / "in.parquet").stat().st_size / 4


@pytest.mark.parametrize("name", ["out.csv", "out.csv.zst", "out.parquet", "out.jsonl", "out"])
def test_an_output_behind_a_url(
    tmp_path: Path, model: Model, rows: pd.DataFrame, bucket: Any, scored_shards: list[int], name: str
) -> None:
    """Output, quarantine and summary are uploaded; the same command does not score again."""
    rows["flag"] = rows["flag"].astype(str)
    rows.loc[7, "flag"] = "perhaps"
    write(rows, tmp_path / "in.csv")
    local = score(model, tmp_path / "in.csv", tmp_path / "local" / name)
    address, store = f"memory://bucket/{name}", tmp_path / "store"
    first = score_addresses(model, str(tmp_path / "in.csv"), address, store)
    assert (first.output, first.quarantine) == (address, f"{address}.quarantine.csv")
    bucket.get(f"/bucket/{name}", str(tmp_path / "got" / name), recursive=True)
    if name == "out":
        assert (tmp_path / "got" / name / "_SUCCESS").exists()
        (tmp_path / "got" / name / "_SUCCESS").unlink()
        assert len(pd.read_parquet(tmp_path / "got" / name)) == 199
    else:
        assert (tmp_path / "got" / name).read_bytes() == (tmp_path / "local" / name).read_bytes()
    assert first.output_digest == local.output_digest
    assert "perhaps" in bucket.cat(f"/bucket/{name}.quarantine.csv").decode()
    assert json.loads(bucket.cat(f"/bucket/{name}.summary.json"))["output"] == address
    assert not bucket.exists(f"/bucket/{name}.towline-check")
    left = [path.name for path in store.rglob("*") if path.is_file() and path.name != "lock"]
    assert left == [f"{name}.uploaded.json"]
    scored_shards.clear()
    again = score_addresses(model, str(tmp_path / "in.csv"), address, store)
    assert again.unchanged
    assert again.output_digest == first.output_digest
    assert not scored_shards


def test_an_existing_output_needs_overwrite(tmp_path: Path, model: Model, rows: pd.DataFrame, bucket: Any) -> None:
    """Also an output that was changed after the upload; a folder is replaced completely."""
    write(rows, tmp_path / "in.csv")
    source = str(tmp_path / "in.csv")
    score_addresses(model, source, "memory://bucket/out.csv", tmp_path)
    bucket.pipe("/bucket/out.csv", b"of somebody else")
    with pytest.raises(ConfigError, match="the output exists"):
        score_addresses(model, source, "memory://bucket/out.csv", tmp_path)
    assert bucket.cat("/bucket/out.csv") == b"of somebody else"
    score_addresses(model, source, "memory://bucket/out.csv", tmp_path, overwrite=True)
    assert bucket.cat("/bucket/out.csv").count(b"\n") > 200
    bucket.pipe("/bucket/folder/earlier.parquet", b"old")
    bucket.pipe("/bucket/folder/notes.txt", b"mine")
    score_addresses(model, source, "memory://bucket/folder", tmp_path, overwrite=True)
    assert not bucket.exists("/bucket/folder/earlier.parquet")
    assert bucket.cat("/bucket/folder/notes.txt") == b"mine"
    assert bucket.exists("/bucket/folder/part-000000.parquet")


@pytest.mark.parametrize(("name", "after"), [("out.csv", 0), ("out.csv", 1), ("out", 0), ("out", 1), ("out", 3)])
def test_an_interrupted_upload_resumes(
    tmp_path: Path, model: Model, rows: pd.DataFrame, bucket: Any, scored_shards: list[int],
    monkeypatch: pytest.MonkeyPatch, after: int, name: str,
) -> None:  # fmt: skip
    """The same command uploads again without scoring; until then a folder has no marker, and an old file remains."""
    write(rows, tmp_path / "in.csv")
    source, address = str(tmp_path / "in.csv"), f"memory://bucket/{name}"
    bucket.pipe("/bucket/out/_SUCCESS" if name == "out" else "/bucket/out.csv", b"old")
    real, calls = remote_files.upload, list[str]()

    def interrupt(path: Path, url: str) -> str:
        calls.append(url)
        if len(calls) > after:
            raise Interrupted
        return real(path, url)

    monkeypatch.setattr(remote_files, "upload", interrupt)
    with pytest.raises(Interrupted):
        score_addresses(model, source, address, tmp_path, overwrite=True)
    if name == "out":
        assert not bucket.exists("/bucket/out/_SUCCESS")
    elif after == 0:
        assert bucket.cat("/bucket/out.csv") == b"old"
    monkeypatch.setattr(remote_files, "upload", real)
    scored_shards.clear()
    result = score_addresses(model, source, address, tmp_path, overwrite=True)
    assert not scored_shards
    assert result.output_digest == score(model, source, tmp_path / "local" / name).output_digest
    assert bucket.exists(f"/bucket/{name}.summary.json")


def test_a_store_without_atomic_uploads(
    tmp_path: Path, model: Model, rows: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If an upload is visible while it grows, it has another name until it is complete."""

    class Disk(LocalFileSystem):
        protocol = ("disk",)

        @classmethod
        def _strip_protocol(cls, path: str) -> str:
            return super()._strip_protocol(path.removeprefix("disk://"))

    fsspec.register_implementation("disk", Disk, clobber=True)
    write(rows, tmp_path / "in.csv")
    output = tmp_path / "far" / "out.csv"
    output.parent.mkdir()
    output.write_text("old")

    def full(*_: Any, **__: Any) -> None:
        raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(Disk, "mv", full)
        with pytest.raises(Interrupted):
            score_addresses(model, str(tmp_path / "in.csv"), f"disk://{output}", tmp_path, overwrite=True)
        assert output.read_text() == "old"
    score_addresses(model, str(tmp_path / "in.csv"), f"disk://{output}", tmp_path, overwrite=True)
    assert output.read_bytes().count(b"\n") > 200


@pytest.mark.parametrize("name", ["in.csv", "in.parquet"])
def test_a_source_that_changes_is_an_error(
    tmp_path: Path, model: Model, rows: pd.DataFrame, bucket: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A change during the scoring is an error without output; the next run scores the new rows."""
    write(rows, tmp_path / name)
    bucket.put_file(str(tmp_path / name), f"/bucket/{name}")
    method = "_read_parquet" if "parquet" in name else "_read_text"
    real = getattr(batch_source.ShardedFiles, method)
    write(rows[:100], tmp_path / name)

    def change_and_read(self: Any, *arguments: Any) -> Any:
        yield from real(self, *arguments)
        bucket.put_file(str(tmp_path / name), f"/bucket/{name}")

    with monkeypatch.context() as patch:
        patch.setattr(batch_source.ShardedFiles, method, change_and_read)
        with pytest.raises(DataError, match=r"(?s)has changed.*memory://bucket/in"):
            score_addresses(model, f"memory://bucket/{name}", str(tmp_path / "out.csv"), tmp_path)
    assert not (tmp_path / "out.csv").exists()
    assert score_addresses(model, f"memory://bucket/{name}", str(tmp_path / "out.csv"), tmp_path).rows == 100


def test_faults_of_a_copied_file_name_the_file(tmp_path: Path, model: Model, bucket: Any) -> None:
    """Not its temporary copy, which the user does not know."""
    bucket.pipe("/bucket/new.csv.gz", gzip.compress(b"zip,word\n1,2\n")[:-9])
    with pytest.raises(DataError) as caught:
        score_addresses(model, "memory://bucket/new.csv.gz", str(tmp_path / "out.csv"), tmp_path)
    assert caught.value.where == "new.csv.gz"


@pytest.mark.parametrize(
    ("source", "output", "expected"),
    [
        ("s4://bucket/in.csv", "out.csv", r"(?s)unknown scheme s4://.*did you mean s3"),
        ("gs://bucket/in.csv", "out.csv", r"(?s)not installed.*pip install gcsfs"),
        ("s3://key:s3cr3t-v4lue@bucket/in.csv", "out.csv", r"(?s)no user or password.*AWS_ACCESS_KEY_ID"),
        ("memory://bucket/none.csv", "out.csv", "no such file"),
        ("memory://bucket/*.csv", "out.csv", "no such file"),
        ("memory://${TOWLINE_TEST_UNSET}/in.csv", "out.csv", r"(?s)TOWLINE_TEST_UNSET is not set.*IN"),
        ("in.csv", "https://host/out.csv", "https:// cannot be written"),
        ("in.csv", "s4://bucket/out.csv", "unknown scheme"),
        ("memory://bucket/out.csv", "memory://bucket/out.csv", "would replace the input"),
        ("memory://bucket/new/*.csv", "memory://bucket/new/a.csv", "would replace the input"),
        ("memory://bucket/new/a.csv", "memory://bucket/new/", "would replace the input"),
        ("sqlite:///shop.db#rows", "sqlite:///shop.db#rows", "would replace the input"),
        ("in.csv", "memory://bucket/out.xlsx", "unknown output format"),
    ],
)
def test_bad_urls(
    tmp_path: Path, model: Model, rows: pd.DataFrame, bucket: Any, source: str, output: str, expected: str
) -> None:
    """The error names each before a row is read, with a remedy and without the secret."""
    write(rows, tmp_path / "in.csv")
    bucket.put_file(str(tmp_path / "in.csv"), "/bucket/new/a.csv")
    output = output if "://" in output else str(tmp_path / output)
    with pytest.raises(TowlineError, match=expected) as caught:
        score_addresses(model, source, output, tmp_path)
    assert caught.value.remedy
    assert SECRET not in str(caught.value)


class SecretError(Exception):
    """An error of a provider's library that contains a secret."""


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (PermissionError("denied"), ConfigError),
        (FileNotFoundError("nothing"), DataError),
        (TimeoutError("late"), TransientError),
        (SecretError("odd"), TransientError),
    ],
)
def test_errors_show_no_secret(monkeypatch: pytest.MonkeyPatch, error: Exception, expected: type[Exception]) -> None:
    """Neither a secret of the URL nor one of the environment, whatever the provider's library writes."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("TOKEN_OF_URL", "another-t0ken")
    url = f"https://me:{SECRET}@host/in.csv?X-Amz-Signature={SECRET}&t=${{TOKEN_OF_URL}}"
    full = url.replace("${TOKEN_OF_URL}", "another-t0ken")
    error.args = (f"{error.args[0]}: GET {full} with {SECRET}",)
    with pytest.raises(expected) as caught, remote_files.remote_errors(remote_files.hide_passwords(url)):
        raise error
    shown = str(caught.value)
    assert SECRET not in shown
    assert "another-t0ken" not in shown
    assert "host/in.csv" in shown
    assert caught.value.__suppress_context__
