"""The engine of Ray: shards are scored by Ray on this machine, or by the nodes of a cluster."""

from collections.abc import Sequence
from typing import Any

from towline import extras
from towline.batch.engines.worker_check import check_workers, inspect_worker
from towline.batch.input.shards import Shard
from towline.batch.job_options import ShardTask
from towline.batch.shard_scoring import Report, score_shard
from towline.batch.work_folder import ShardResult
from towline.errors import TowlineError, TransientError

MAX_RETRIES = 3  # of a shard whose worker is lost


class RayEngine:
    """Scores shards on Ray; Ray runs the shard of a lost worker again.

    Args:
        scheduler: address of a cluster, such as ``ray://HOST:10001``; None: Ray on this machine.
        workers: number of processes on this machine.
        paths: that all nodes of the cluster must see.

    Raises:
        ConfigError: Ray is not installed, or a node is not suitable.
        TransientError: the cluster does not answer.
    """

    def __init__(self, scheduler: str | None, workers: int, paths: Sequence[str]) -> None:
        extras.require("--engine ray", "ray")
        self._scheduler, self._workers = scheduler, workers
        self._remote: Any = None
        if scheduler is not None:
            self._start(address=scheduler)
            try:
                _check(scheduler, paths)
            except BaseException:
                self.close()
                raise

    def prepare(self, shards: Sequence[Shard], task: ShardTask) -> None:  # noqa: ARG002
        if self._remote is None:
            self._start(address="local", num_cpus=max(1, min(self._workers, len(shards))), include_dashboard=False)

    def _start(self, address: str, **options: Any) -> None:
        import ray

        try:
            ray.init(address, log_to_driver=False, logging_level="ERROR", **options)
        except (OSError, RuntimeError, ValueError) as error:  # ConnectionError is an OSError
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            remedy = "check that the cluster runs, and its address; or leave out --scheduler for Ray on this machine"
            raise TransientError(f"Ray does not answer: {reason}", where=address, remedy=remedy) from None
        self._remote = ray.remote(num_cpus=1, max_retries=MAX_RETRIES)(score_shard)

    def slots(self) -> int:
        import ray

        return max(1, int(ray.cluster_resources().get("CPU", 1)))

    def submit(self, shard: Shard, task: ShardTask, report: Report) -> Any:  # noqa: ARG002
        return self._remote.remote(shard, task)

    def result(self, handle: Any) -> ShardResult:
        import ray

        try:
            result: ShardResult = ray.get(handle)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, TowlineError):
                raise error.cause from None
            raise
        except ray.exceptions.RayError as error:
            what = f"Ray lost the workers of a part: {str(error).splitlines()[0]}"
            remedy = "run the same command again: finished parts are not scored again"
            raise TransientError(what, where=self._scheduler or "--engine ray", remedy=remedy) from None
        return result

    def close(self) -> None:
        import ray

        ray.shutdown()


def _check(scheduler: str, paths: Sequence[str]) -> None:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    inspect, answers = ray.remote(num_cpus=0)(inspect_worker), dict[str, object]()
    for node in (node for node in ray.nodes() if node["Alive"]):
        strategy = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        try:
            answers[node["NodeManagerAddress"]] = ray.get(
                inspect.options(scheduling_strategy=strategy).remote(tuple(paths))
            )
        except ray.exceptions.RayTaskError as error:
            answers[node["NodeManagerAddress"]] = error.cause
        except ray.exceptions.RayError as error:
            answers[node["NodeManagerAddress"]] = error
    check_workers(answers, scheduler)
