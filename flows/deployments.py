"""Deployments: which flow of which config runs, and on which schedule.

``python -m flows.deployments CONFIG…`` is the scheduler of ``towline up``.
``python -m flows.deployments --pool NAME [CONFIG…]`` is a worker of a work pool; a pool can have any number of them.
"""

import argparse
import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
from prefect.deployments.runner import RunnerDeployment
from prefect.flows import Flow
from prefect.schedules import Cron
from prefect.types.entrypoint import EntrypointType

from flows.drift import drift_flow
from flows.quality import quality_flow
from flows.reaction import reaction_flow
from flows.rollout import rollout_flow
from flows.scoring import scoring_flow
from flows.scoring_shards import scoring_shards_flow
from flows.training import training_flow
from towline.config import PipelineConfig, Settings, read_config
from towline.config.messages import cron_error
from towline.orchestration import crash_detection, scheduler, worker
from towline.orchestration.crash_detection import DEPLOYMENT_TAG
from towline.orchestration.process_setup import SHARDS_FLOW
from towline.processes import private_files
from towline.registry.ledger import open_ledger

_ONE_AT_A_TIME = ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.ENQUEUE)  # the others wait
FLOWS: tuple[Flow[..., Any], ...] = (
    training_flow,
    drift_flow,
    quality_flow,
    reaction_flow,
    rollout_flow,
    scoring_flow,
    scoring_shards_flow,
)


def deployments(
    config: PipelineConfig, store_tag: str = DEPLOYMENT_TAG, pool: str | None = None
) -> list[RunnerDeployment]:
    """The deployments of a config: ``training/<name>``, ``drift/<name>`` and one for each other flow.

    Args:
        config: of the model.
        store_tag: a tag of all deployments of one store.
        pool: the work pool, for workers; None for the scheduler of ``towline up``.

    Returns:
        One deployment for each flow; a flow without a schedule runs only on request.

    Raises:
        ConfigError: a cron line of the schedule is not valid.
    """
    schedule = config.schedule
    cron_lines = {
        "training": schedule.train,
        "drift": schedule.drift,
        "quality": schedule.quality,
        "rollout": schedule.rollout,
    }
    result = []
    for flow in FLOWS:
        name, line = flow.name, cron_lines.get(flow.name)
        parameters = {"trigger": "schedule"} if name == "training" else {}
        try:
            cron = Cron(line, timezone=schedule.timezone, parameters=parameters) if line else None
        except ValueError as error:
            key = "train" if name == "training" else name
            raise cron_error(line, f"{config.name}: schedule.{key}", error) from None
        is_part = name == SHARDS_FLOW  # several workers run it at the same time for one job, which gives the parameters
        deployment = flow.to_deployment(
            config.name,
            schedules=[cron] if cron else [],
            parameters={} if is_part else {"config": config.model_dump(mode="json")},
            concurrency_limit=None if is_part else _ONE_AT_A_TIME,
            tags=list(dict.fromkeys([DEPLOYMENT_TAG, store_tag])),
            paused=False,
            enforce_parameter_schema=False,
            work_pool_name=pool,
            entrypoint_type=EntrypointType.MODULE_PATH,
        )
        if not isinstance(deployment, RunnerDeployment):
            raise TypeError("deployments is not for coroutines")
        result.append(deployment)
    return result


def run_scheduler(paths: Sequence[str]) -> None:
    """Runs the flows of these configs until a stop signal; a model without a champion is trained immediately."""
    settings = Settings.from_environment()
    store_tag = f"store:{hashlib.sha256(str(settings.store).encode()).hexdigest()[:12]}"

    def read_deployments() -> list[RunnerDeployment]:
        return [item for path in paths for item in deployments(read_config(Path(path)), store_tag)]

    present = read_deployments()
    deployment_ids = scheduler.deploy(present, store_tag)
    with get_client(sync_client=True) as client:
        for deployment_id in deployment_ids:
            scheduler.catch_up(client, deployment_id)
        for name in dict.fromkeys(item.name for item in present):
            if open_ledger(settings).champion(name) is None:
                scheduler.start_run(client, client.read_deployment_by_name(f"training/{name}"))
    scheduler.serve(present, lambda: scheduler.deploy(read_deployments(), store_tag))


def run_worker(pool: str, paths: Sequence[str], limit: int | None = None) -> None:
    """Works for a pool until a stop signal: executes the runs that are due, of these configs and of all others.

    The pool and the crash automations are created if they are missing. A model without a champion waits for its
    schedule, or until a run is requested.

    Args:
        pool: its name.
        paths: of the configs.
        limit: number of runs at the same time; None: any number.
    """
    settings = Settings.from_environment()

    def deploy() -> None:
        configs = [read_config(Path(path)) for path in paths]
        scheduler.deploy([item for config in configs for item in deployments(config, pool=pool)], None)

    with get_client(sync_client=True) as client:
        worker.create_pool(client, pool)
        crash_detection.create_crash_automations(client)
    deploy()
    worker.serve(pool, settings, deploy, limit)


if __name__ == "__main__":
    logging.basicConfig(format="%(asctime)s %(message)s")
    logging.getLogger("towline").setLevel(logging.INFO)
    parser = argparse.ArgumentParser(prog="python -m flows.deployments", description=__doc__)
    parser.add_argument("--pool", metavar="NAME", help="work for this work pool of Prefect")
    parser.add_argument("--limit", metavar="N", type=int, help="runs of a worker at the same time")
    parser.add_argument("configs", nargs="*", metavar="CONFIG")
    options = parser.parse_args()
    with private_files():
        if options.pool:
            run_worker(options.pool, options.configs, options.limit)
        else:
            run_scheduler(options.configs)
