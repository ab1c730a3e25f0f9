"""The check of a service's SLOs that ``towline up`` runs every minute.

It scrapes the service's metrics, updates the error budgets, notifies of SLO breaches and starts the reaction flow.
"""

import datetime as dt
import os
from typing import Any

from towline.config import PipelineConfig, Settings
from towline.errors import TransientError
from towline.http_request import HttpRequestError, request_json

INTERVAL = 60.0  # seconds
TIMEOUT = 20.0  # seconds


def check_service_slo(settings: Settings, config: PipelineConfig, service: str, api: str) -> str:
    """Checks the SLOs of a model's service once; returns the breaches, or an empty text.

    If ``slo.on_breach`` is not ``alert``, the reaction flow is started, once an hour during a breach.

    Args:
        settings: for the store.
        config: the model's config.
        service: address of the service.
        api: address of the Prefect server's API.

    Raises:
        TransientError: the store cannot be written, or the Prefect server does not respond.
    """
    from towline.monitoring.alerts import notifications
    from towline.monitoring.journal import Journal
    from towline.monitoring.slo import slo_history
    from towline.monitoring.slo.burn_rate import describe_breaches, evaluate_slos
    from towline.registry.ledger import open_ledger

    journal, now = Journal.of(settings, config.name), dt.datetime.now(dt.UTC)
    slo_history.record_scrape(
        service, os.environ.get("TOWLINE_API_KEY"), journal.folder, config.name, config.slo.period, now
    )
    history, metric = slo_history.read_history(journal.folder), config.evaluation.metric
    statuses = evaluate_slos(history, config.slo, now, quality=journal.quality(), metric=metric)
    notifications.notify_slos(settings, config, statuses, now)
    breaches = describe_breaches(statuses)
    champion = open_ledger(settings).champion(config.name)
    if breaches and config.slo.on_breach != "alert" and champion is not None:
        since = dt.datetime.fromisoformat(champion.time)  # failures of the version before do not count
        statuses = evaluate_slos(history, config.slo, now, quality=journal.quality(), metric=metric, since=since)
        if champion_breaches := describe_breaches(statuses):
            _start_reaction(api, config, champion_breaches, f"breach-{config.name}-{champion.version}-{now:%Y%m%d%H}")
    return breaches


def start_due_rollout(settings: Settings, config: PipelineConfig, api: str, now: dt.datetime) -> bool:
    """Starts the rollout flow if a rollout is under way or waits, once in ``rollout.every``; whether one was due.

    Raises:
        TransientError: the Prefect server does not respond, or the ledger cannot be read.
    """
    from towline.registry.ledger import open_ledger
    from towline.registry.rollouts import active_rollout, waiting_version

    rows = open_ledger(settings).rows(config.name)
    rollout = active_rollout(rows)
    settings_of_rollout = rollout.config if rollout else config.rollout
    if settings_of_rollout is None or (rollout is None and waiting_version(rows) is None):
        return False
    period = int(now.timestamp() // settings_of_rollout.every.total_seconds())
    parameters = {"config": config.model_dump(mode="json")}
    _start_run(api, f"rollout/{config.name}", parameters, f"rollout-{config.name}-{period}")
    return True


def _start_reaction(api: str, config: PipelineConfig, breaches: str, cause: str) -> None:
    parameters = {"config": config.model_dump(mode="json"), "breach": breaches}
    _start_run(api, f"reaction/{config.name}", parameters, cause)


def _start_run(api: str, deployment_name: str, parameters: dict[str, Any], idempotency_key: str) -> None:
    run = {"parameters": parameters, "idempotency_key": idempotency_key}
    try:
        deployment = request_json(f"{api}/deployments/name/{deployment_name}", TIMEOUT)
        request_json(f"{api}/deployments/{deployment['id']}/create_flow_run", TIMEOUT, run)
    except HttpRequestError as error:
        remedy = "read logs/prefect.log in the store"
        raise TransientError(f"the Prefect server does not respond: {error}", where=api, remedy=remedy) from error
