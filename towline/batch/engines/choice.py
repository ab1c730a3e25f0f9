"""Opens the engine of a job."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from towline import files
from towline.batch.engines.engine import Engine
from towline.batch.engines.process_pool import ProcessEngine
from towline.batch.engines.worker_check import shared_paths
from towline.batch.job_options import BatchRequest
from towline.config import suggest
from towline.errors import ConfigError

ENGINES = ("processes", "dask", "ray")


@contextmanager
def open_engine(request: BatchRequest, release: Path) -> Iterator[Engine]:
    """The engine of a job; a cluster is checked before the source is read.

    Args:
        request: names the engine and its scheduler.
        release: folder of the release, which the workers read.

    Raises:
        ConfigError: there is no such engine, its extra is missing, or a worker of the cluster is not suitable.
        TransientError: the cluster does not answer.
    """
    engine = _open(request, release)
    try:
        yield engine
    finally:
        engine.close()


def _open(request: BatchRequest, release: Path) -> Engine:
    if isinstance(request.engine, str) and request.engine not in ENGINES:
        remedy = suggest(request.engine, ENGINES)
        raise ConfigError(f"no engine {request.engine!r}", where="--engine", remedy=remedy)
    if request.scheduler is not None and request.engine not in ("dask", "ray"):
        remedy = "add --engine dask or --engine ray, or leave out --scheduler"
        raise ConfigError("only a cluster of Dask or Ray has a scheduler", where="--scheduler", remedy=remedy)
    if request.engine == "processes":
        return ProcessEngine(request.workers)
    output, source = request.output.absolute().parent, (request.folder or Path.cwd()) / request.source
    with files.disk(output):
        output.mkdir(parents=True, exist_ok=True)
    others = [release, *([source] if source.exists() else [])]
    with shared_paths(output, others) as paths:
        if not isinstance(request.engine, str):
            engine: Engine = request.engine(request.workers, paths)
            return engine
        if request.engine == "dask":
            from towline.batch.engines.dask_cluster import DaskEngine

            return DaskEngine(request.scheduler, request.workers, paths)
        from towline.batch.engines.ray_cluster import RayEngine

        return RayEngine(request.scheduler, request.workers, paths)
