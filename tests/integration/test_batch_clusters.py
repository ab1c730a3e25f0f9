"""Batch scoring on real Dask and Ray clusters."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.batch import make_customer_table, score, train_customer_model, use_small_shards
from towline.batch.engines import dask_cluster, worker_check
from towline.batch.input import records
from towline.errors import ConfigError, TransientError
from towline.inference.predictor import Model

distributed = pytest.importorskip("distributed")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return train_customer_model(tmp_path_factory.mktemp("customers"))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "new.csv"
    make_customer_table(600, seed=8).drop(columns="bought").to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, memory_limit=0
    ) as cluster:
        yield cluster


@pytest.mark.slow
def test_a_dask_cluster_gives_the_same_bytes_although_a_worker_is_killed(
    tmp_path: Path, model: Model, source: Path, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_small_shards(monkeypatch)
    score(model, source, tmp_path / "alone.csv")
    with distributed.Client(cluster, set_as_default=False) as client:
        pids = list(client.run(os.getpid).values())
    killed: list[int] = []

    def kill_once(progress: Any) -> None:
        if not killed and 0 < progress.share < 1:
            killed.append(pids[0])
            os.kill(pids[0], signal.SIGKILL)

    address = cluster.scheduler_address
    result = score(model, source, tmp_path / "dask.csv", engine="dask", scheduler=address, show=kill_once)
    assert killed
    assert result.rows_in == result.rows + result.quarantined == 600
    assert (tmp_path / "dask.csv").read_bytes() == (tmp_path / "alone.csv").read_bytes()
    with distributed.Client(cluster, set_as_default=False) as client:
        client.wait_for_workers(2, timeout=120)
        assert set(client.run(os.getpid).values()) != set(pids)


@pytest.mark.slow
def test_dask_on_this_machine_gives_the_same_bytes(
    tmp_path: Path, model: Model, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_small_shards(monkeypatch, size=5000, block=records.BLOCK_BYTES)  # workers read blocks of this size
    score(model, source, tmp_path / "alone.parquet")
    score(model, source, tmp_path / "dask.parquet", engine="dask", workers=2)
    assert (tmp_path / "dask.parquet").read_bytes() == (tmp_path / "alone.parquet").read_bytes()


@pytest.mark.slow
def test_workers_with_another_version_or_other_files_are_refused(
    tmp_path: Path, model: Model, source: Path, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error is raised before the source is read, which is no valid CSV."""
    options = {"engine": "dask", "scheduler": cluster.scheduler_address}
    source.write_bytes(b"")
    with monkeypatch.context() as patch:
        patch.setattr(worker_check, "__version__", "0.0.1")
        with pytest.raises(ConfigError, match=r"the worker has towline .*, this command is of towline 0\.0\.1"):
            score(model, source, tmp_path / "out.csv", **options)
    with monkeypatch.context() as patch:
        unseen = str(tmp_path / "unseen" / ".towline-shared-1")
        patch.setattr(dask_cluster, "inspect_worker", _inspect_another_machine)
        with pytest.raises(ConfigError, match=f"the worker does not see {Path(unseen).parent.parent}"):
            score(model, source, tmp_path / "out.csv", **options)
    assert not (tmp_path / "out.csv").exists()


def _inspect_another_machine(paths: tuple[str, ...]) -> worker_check.WorkerFacts:
    facts = worker_check.inspect_worker(paths)
    return facts._replace(missing=(*facts.missing, *paths[:1]))


@pytest.mark.slow
def test_a_scheduler_that_does_not_answer_is_named(
    tmp_path: Path, model: Model, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dask_cluster, "CONNECT_S", 1)
    source.write_bytes(b"")
    with pytest.raises(TransientError, match="the Dask scheduler does not answer") as error:
        score(model, source, tmp_path / "out.csv", engine="dask", scheduler="tcp://127.0.0.1:9")
    assert error.value.where == "tcp://127.0.0.1:9"
    with pytest.raises(ConfigError, match="not the address of a Dask scheduler"):
        score(model, source, tmp_path / "out.csv", engine="dask", scheduler="nonsense://somewhere")


@pytest.mark.slow
def test_ray_gives_the_same_bytes(tmp_path: Path, model: Model, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    use_small_shards(monkeypatch, size=5000)
    score(model, source, tmp_path / "alone.csv")
    score(model, source, tmp_path / "ray.csv", engine="ray", workers=2)
    assert (tmp_path / "ray.csv").read_bytes() == (tmp_path / "alone.csv").read_bytes()
