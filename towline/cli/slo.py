"""towline slo: the service level objectives of a service."""

import datetime as dt
from pathlib import Path
from typing import TYPE_CHECKING

import click

from towline import extras
from towline.cli import emit, json_option
from towline.cli.run import config_argument, set_option
from towline.errors import ConfigError

if TYPE_CHECKING:
    from towline.config import Settings
    from towline.monitoring.alerts.notifications import DeliveryReport
    from towline.monitoring.slo.burn_rate import SloStatus
    from towline.monitoring.slo.metrics_scraper import ServiceSample

_COLORS = {"met": "green", "burning": "red", "exhausted": "yellow", "unknown": "yellow"}


@click.command()
@config_argument
@click.option(
    "--service",
    "services",
    multiple=True,
    metavar="URL",
    help="Address of the service; repeat it for each instance.  [default: services started on this machine]",
)
@click.option(
    "--key", envvar="TOWLINE_API_KEY", metavar="KEY", help="API key with scope admin; prefer TOWLINE_API_KEY."
)
@click.option("--quiet", is_flag=True, help="Do not open or resolve alerts.")
@set_option
@json_option
def slo(
    config: Path, services: tuple[str, ...], key: str | None, quiet: bool, overrides: tuple[str, ...], as_json: bool
) -> None:
    """Checks the SLOs of a service once.

    The slo section of the config defines the SLOs. Each call records the counters of the service's /metrics, so that
    the error budgets and burn rates are known since the first call; call it once a minute. A budget that burns too
    fast or is exhausted opens an alert: in the log, and at the webhook of the config.

    \b
    Examples:
      towline slo configs/bike_demand.yaml
      towline slo configs/bike_demand.yaml --service http://10.0.0.5:8080 --service http://10.0.0.6:8080
      towline slo configs/bike_demand.yaml --set slo.p95_ms=50 --json
    """
    from towline.config import Settings, read_config

    extras.require("towline slo", "serve")
    from towline.monitoring.alerts import notifications
    from towline.monitoring.journal import Journal
    from towline.monitoring.slo import slo_history
    from towline.monitoring.slo.burn_rate import evaluate_slos

    settings, pipeline = Settings.from_environment(), read_config(config, overrides)
    journal, now = Journal.of(settings, pipeline.name), dt.datetime.now(dt.UTC)
    samples = [
        slo_history.record_scrape(url, key or None, journal.folder, pipeline.name, pipeline.slo.period, now)
        for url in services or _find_services(settings, pipeline.name)
    ]
    history, metric = slo_history.read_history(journal.folder), pipeline.evaluation.metric
    statuses = evaluate_slos(history, pipeline.slo, now, quality=journal.quality(), metric=metric)
    delivery = notifications.DeliveryReport()
    if not quiet:
        delivery = notifications.notify_slos(settings, pipeline, statuses, now)
    document = {
        "model": pipeline.name,
        "at": now.isoformat(),
        "services": [sample.model_dump(mode="json", exclude={"counters", "at"}) for sample in samples],
        "slos": [status.model_dump(mode="json") for status in statuses],
        "alerts": delivery.model_dump(),
    }
    emit(document, as_json, lambda: _text(pipeline.name, samples, statuses, delivery))


def _find_services(settings: "Settings", model: str) -> list[str]:
    from towline.operations.services import find_service_addresses

    if addresses := find_service_addresses(settings, model):
        return addresses
    raise ConfigError(
        f"no service of {model} was started on this machine",
        where=str(settings.store),
        remedy=f"towline serve {model}; or give the address of a service: --service http://127.0.0.1:8080",
    )


def _text(
    model: str, samples: "list[ServiceSample]", statuses: "tuple[SloStatus, ...]", delivery: "DeliveryReport"
) -> str:
    from towline.cli.screen import table

    lines = []
    for sample in samples:
        state = f"serves version {sample.version}" if sample.version else f"is {'up' if sample.up else 'down'}"
        lines.append(f"{sample.service} {state}{f': {sample.why}' if sample.why else ''}")
    rows = [
        [
            status.name,
            status.goal,
            status.current or None,
            None if status.budget is None else f"{100 * status.budget:.0f} %",
            *(_format_rate(status.burn_rate(window)) for window in ("1h", "6h", "3d")),
            click.style(status.state, fg=_COLORS[status.state]),
        ]
        for status in statuses
    ]
    header = ["SLO", "target", "now", "budget left", "burn 1h", "6h", "3d", "state"]
    lines += ["", table(header, rows) if rows else f"the config of {model} has no SLOs: see its slo section", ""]
    lines += [status.reason for status in statuses if status.state != "met"]
    return "\n".join([*lines, f"alerts: {delivery.text()}"])


def _format_rate(rate: float | None) -> str | None:
    return None if rate is None else f"{rate:.3g}"
