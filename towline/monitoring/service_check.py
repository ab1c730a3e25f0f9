"""A look a minute at each service of ``towline up``: what is promised is kept count of, told of, and reacted to."""

import datetime as dt
import json
import os
import urllib.error
import urllib.request
from typing import Any

from towline.config import PipelineConfig, Settings
from towline.errors import TransientError

EVERY = 60.0  # seconds between two looks


def look(settings: Settings, config: PipelineConfig, service: str, api: str) -> str:
    """Looks at a model's service; what is to be said of it, empty if nothing.

    Where the config wants more than an alert, the reaction flow is started, once an hour while a budget burns.

    Raises:
        TransientError: the store cannot be written, or the Prefect server does not answer.
    """
    from towline.monitoring.alerts import notifications
    from towline.monitoring.journal import Journal
    from towline.monitoring.slo import slo_history
    from towline.monitoring.slo.burn_rate import breach, evaluate
    from towline.registry.ledger import open_ledger

    journal, now = Journal.of(settings, config.name), dt.datetime.now(dt.UTC)
    slo_history.look(service, os.environ.get("TOWLINE_API_KEY"), journal.folder, config.name, config.slo.period, now)
    history, metric = slo_history.read(journal.folder), config.evaluation.metric
    found = evaluate(history, config.slo, now, quality=journal.quality(), metric=metric)
    notifications.tell_objectives(settings, config, found, now)
    told = breach(found)
    serving = open_ledger(settings).champion(config.name)
    if told and config.slo.on_breach != "alert" and serving is not None:
        since = dt.datetime.fromisoformat(serving.time)  # what the version before did is no reason to act on this one
        own = breach(evaluate(history, config.slo, now, quality=journal.quality(), metric=metric, since=since))
        if own:
            _react(api, config, own, f"breach-{config.name}-{serving.version}-{now:%Y%m%d%H}")
    return told


def _react(api: str, config: PipelineConfig, told: str, cause: str) -> None:
    deployment = _ask(api, f"deployments/name/reaction/{config.name}")
    given = {"config": config.model_dump(mode="json"), "breach": told}
    _ask(api, f"deployments/{deployment['id']}/create_flow_run", {"parameters": given, "idempotency_key": cause})


def _ask(api: str, what: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    content = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{api}/{what}", content, {"Content-Type": "application/json"})  # noqa: S310 - our own server's
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=20) as answer:
            found: dict[str, Any] = json.load(answer)
    except (OSError, ValueError) as error:
        remedy = "read logs/prefect.log in the store"
        raise TransientError(f"the Prefect server does not answer: {error}", where=api, remedy=remedy) from error
    return found
