"""What ``towline up`` runs of each config, and when: ``python -m flows.deployments CONFIG…`` is its scheduler."""

import hashlib
import logging
import sys
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
from flows.training import training_flow
from tasks import scheduling
from towline.config import PipelineConfig, Settings, read_config
from towline.errors import ConfigError
from towline.monitoring.running import TAG
from towline.registry.ledger import Ledger

_ONE = ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.ENQUEUE)  # no run is lost
FLOWS: tuple[Flow[..., Any], ...] = (training_flow, drift_flow, quality_flow, reaction_flow)


def deployments(config: PipelineConfig, mark: str = TAG) -> list[RunnerDeployment]:
    """``training/<name>``, ``drift/<name>``, ``quality/<name>``, ``reaction/<name>``; one without a line waits.

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
            tags=[TAG, mark],
            paused=False,
            enforce_parameter_schema=False,
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
    numbers = scheduling.deploy(found, mark)
    with get_client(sync_client=True) as client:
        for number in numbers:
            scheduling.catch_up(client, number)
        for name in dict.fromkeys(one.name for one in found):
            if Ledger(settings.ledger_url).champion(name) is None:
                scheduling.begin(client, client.read_deployment_by_name(f"training/{name}"))
    scheduling.serve(found, lambda: scheduling.deploy(wanted(), mark))


if __name__ == "__main__":
    logging.getLogger("towline").setLevel(logging.INFO)
    main(sys.argv[1:])
