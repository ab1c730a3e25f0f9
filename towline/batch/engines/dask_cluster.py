"""The engine of Dask: shards are scored by a local cluster, or by the workers of a scheduler."""

from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from typing import Any

from towline import extras
from towline.batch.engines.worker_check import check_workers, inspect_worker
from towline.batch.input.shards import Shard
from towline.batch.job_options import ShardTask
from towline.batch.shard_scoring import Report, score_shard
from towline.batch.work_folder import ShardResult
from towline.errors import ConfigError, TransientError

CONNECT_S, WORKERS_S = 15, 60


class DaskEngine:
    """Scores shards on a Dask cluster; the scheduler gives the shards of a lost worker to another one.

    Args:
        scheduler: its address; None: a local cluster.
        workers: number of processes of a local cluster.
        paths: that all workers of the scheduler must see.

    Raises:
        ConfigError: Dask is not installed, the address is not valid, or a worker is not suitable.
        TransientError: the scheduler does not answer, or has no worker.
    """

    def __init__(self, scheduler: str | None, workers: int, paths: Sequence[str]) -> None:
        extras.require("--engine dask", "dask")
        self._scheduler, self._workers = scheduler, workers
        self._client: Any = None
        self._cluster: Any = None
        if scheduler is not None:
            self._client = _connect(scheduler)
            try:
                _check(self._client, scheduler, paths)
            except BaseException:
                self.close()
                raise

    def prepare(self, shards: Sequence[Shard], task: ShardTask) -> None:  # noqa: ARG002
        if self._client is None:
            from distributed import Client, LocalCluster

            self._cluster = LocalCluster(
                n_workers=max(1, min(self._workers, len(shards))),
                threads_per_worker=1,
                processes=True,
                dashboard_address=None,
                memory_limit=0,
            )
            self._client = Client(self._cluster)

    def slots(self) -> int:
        threads: dict[str, int] = self._client.nthreads()
        return max(1, sum(threads.values()))

    def submit(self, shard: Shard, task: ShardTask, report: Report) -> Any:  # noqa: ARG002
        with _lost_cluster(self._address):
            return self._client.submit(score_shard, shard, task, pure=False)

    def result(self, handle: Any) -> ShardResult:
        with _lost_cluster(self._address):
            result: ShardResult = handle.result()
            return result

    def close(self) -> None:
        for opened in (self._client, self._cluster):
            if opened is not None:
                opened.close()

    @property
    def _address(self) -> str:
        return self._scheduler or "the local Dask cluster"


def _connect(scheduler: str) -> Any:
    from distributed import Client

    try:
        return Client(scheduler, timeout=CONNECT_S, set_as_default=False)
    except (ValueError, TypeError) as error:
        remedy = "write it as tcp://HOST:8786"
        raise ConfigError(f"not the address of a Dask scheduler: {error}", where=scheduler, remedy=remedy) from None
    except OSError as error:
        raise TransientError(
            f"the Dask scheduler does not answer: {str(error).splitlines()[0] if str(error) else 'no connection'}",
            where=scheduler,
            remedy="check that it runs, and its address; or leave out --scheduler for a cluster on this machine",
        ) from None


def _check(client: Any, scheduler: str, paths: Sequence[str]) -> None:
    try:
        client.wait_for_workers(1, timeout=WORKERS_S)
    except TimeoutError:
        remedy = f"start one: dask worker {scheduler}"
        raise TransientError("the Dask scheduler has no worker", where=scheduler, remedy=remedy) from None
    try:
        answers = client.run(inspect_worker, tuple(paths), on_error="return")
    except (ImportError, AttributeError) as error:  # a worker cannot even load the function
        answers = {"(unknown)": error}
    check_workers(answers, scheduler)


@contextmanager
def _lost_cluster(address: str) -> Iterator[None]:
    from distributed import KilledWorker

    try:
        yield
    except KilledWorker as error:
        what = f"workers ended while they scored the same part: {str(error).splitlines()[0]}"
        remedy = "run the same command again: finished parts are not scored again; give the workers more memory"
        raise TransientError(what, where=address, remedy=remedy) from None
    except (CancelledError, OSError) as error:
        remedy = "run the same command again when it runs: finished parts are not scored again"
        raise TransientError(f"the Dask cluster was lost: {error}", where=address, remedy=remedy) from None
