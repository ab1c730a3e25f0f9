"""What is run of each config, and when: ``python -m flows.deployments CONFIG…`` is the scheduler of ``towline up``.

``python -m flows.deployments --pool NAME [CONFIG…]`` is a worker of a work pool, one of any number.
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
from flows.scoring import scoring_flow
from flows.training import training_flow
from towline.config import PipelineConfig, Settings, read_config
from towline.errors import ConfigError
from towline.operations.up_state import TAG
from towline.orchestration import crash_detection, scheduler, worker
from towline.processes import private
from towline.registry.ledger import open_ledger

_ONE = ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.ENQUEUE)  # no run is lost
FLOWS: tuple[Flow[..., Any], ...] = (training_flow, drift_flow, quality_flow, reaction_flow, scoring_flow)


def deployments(config: PipelineConfig, mark: str = TAG, pool: str | None = None) -> list[RunnerDeployment]:
    """``training/<name>``, and so for drift, quality, reaction and scoring; one without a line waits to be asked.

    Raises:
        ConfigError: a line of the schedule is none.
    """
    schedule = config.schedule
    lines = {"training": schedule.train, "drift": schedule.drift, "quality": schedule.quality}
    found = []
    for flow in FLOWS:
        name, line = flow.name, lines.get(flow.name)
        given = {"trigger": "schedule"} if name == "training" else {}
        try:
            cron = Cron(line, timezone=schedule.timezone, parameters=given) if line else None
        except ValueError as error:
            key = "train" if name == "training" else name
            raise ConfigError(
                f"no cron line: {line!r}: {error}",
                where=f"{config.name}: schedule.{key}",
                remedy='five fields, such as "0 2 * * *": every night at two',
            ) from None
        deployment = flow.to_deployment(
            config.name,
            schedules=[cron] if cron else [],
            parameters={"config": config.model_dump(mode="json")},
            concurrency_limit=_ONE,
            tags=list(dict.fromkeys([TAG, mark])),
            paused=False,
            enforce_parameter_schema=False,
            work_pool_name=pool,
            entrypoint_type=EntrypointType.MODULE_PATH,
        )
        if not isinstance(deployment, RunnerDeployment):
            raise TypeError("deployments is not for coroutines")
        found.append(deployment)
    return found


def main(paths: Sequence[str]) -> None:
    """Runs the flows of these configs until it is told to end; a model without a champion is trained at once."""
    settings = Settings.from_environment()
    mark = f"store:{hashlib.sha256(str(settings.store).encode()).hexdigest()[:12]}"

    def wanted() -> list[RunnerDeployment]:
        return [one for path in paths for one in deployments(read_config(Path(path)), mark)]

    found = wanted()
    numbers = scheduler.deploy(found, mark)
    with get_client(sync_client=True) as client:
        for number in numbers:
            scheduler.catch_up(client, number)
        for name in dict.fromkeys(one.name for one in found):
            if open_ledger(settings).champion(name) is None:
                scheduler.begin(client, client.read_deployment_by_name(f"training/{name}"))
    scheduler.serve(found, lambda: scheduler.deploy(wanted(), mark))


def work(name: str, paths: Sequence[str]) -> None:
    """Is a worker of a pool until it is told to end: runs what is due, of these configs and of all else in the pool.

    The pool is made if it is missing, and with it what ends runs whose worker was lost. A model without a champion
    waits for its schedule, or to be asked for.
    """
    settings = Settings.from_environment()

    def deploy() -> None:
        configs = [read_config(Path(path)) for path in paths]
        scheduler.deploy([one for config in configs for one in deployments(config, pool=name)], None)

    with get_client(sync_client=True) as client:
        worker.make(client, name)
        crash_detection.watch(client)
    deploy()
    worker.serve(name, settings, deploy)


if __name__ == "__main__":
    logging.basicConfig(format="%(asctime)s %(message)s")
    logging.getLogger("towline").setLevel(logging.INFO)
    parser = argparse.ArgumentParser(prog="python -m flows.deployments", description=__doc__)
    parser.add_argument("--pool", metavar="NAME", help="be a worker of this work pool of Prefect's")
    parser.add_argument("configs", nargs="*", metavar="CONFIG")
    given = parser.parse_args()
    with private():
        if given.pool:
            work(given.pool, given.configs)
        else:
            main(given.configs)
