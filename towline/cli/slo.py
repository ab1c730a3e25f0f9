"""towline slo: what the service promises, and how it stands."""

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
    from towline.monitoring.slo.burn_rate import Objective
    from towline.monitoring.slo.metrics_scraper import ServiceSample

_COLORS = {"met": "green", "burning": "red", "spent": "yellow", "unknown": "yellow"}


@click.command()
@config_argument
@click.option(
    "--service",
    "services",
    multiple=True,
    metavar="URL",
    help="Where it answers; once for each instance.  [default: what towline has started here]",
)
@click.option("--key", envvar="TOWLINE_API_KEY", metavar="KEY", help="Of scope admin; better in TOWLINE_API_KEY.")
@click.option("--quiet", is_flag=True, help="Tell nobody: no alert is opened or resolved.")
@set_option
@json_option
def slo(
    config: Path, services: tuple[str, ...], key: str | None, quiet: bool, overrides: tuple[str, ...], as_json: bool
) -> None:
    """Looks at a service once, and tells how its promises stand.

    The slo section of the config says what is promised. Each call keeps what the service's /metrics count, so that the
    error budget and how fast it burns are known of the time since the first call; call it once a minute. What burns
    too fast, or is spent, opens an alert: in the log, and at the webhook of the config.

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
    from towline.monitoring.slo.burn_rate import evaluate

    settings, pipeline = Settings.from_environment(), read_config(config, overrides)
    journal, now = Journal.of(settings, pipeline.name), dt.datetime.now(dt.UTC)
    looks = [
        slo_history.look(url, key or None, journal.folder, pipeline.name, pipeline.slo.period, now)
        for url in services or _started(settings, pipeline.name)
    ]
    found = evaluate(
        slo_history.read(journal.folder),
        pipeline.slo,
        now,
        quality=journal.quality(),
        metric=pipeline.evaluation.metric,
    )
    sent = notifications.DeliveryReport() if quiet else notifications.tell_objectives(settings, pipeline, found, now)
    document = {
        "model": pipeline.name,
        "at": now.isoformat(),
        "services": [one.model_dump(mode="json", exclude={"counts", "at"}) for one in looks],
        "objectives": [one.model_dump(mode="json") for one in found],
        "alerts": sent.model_dump(),
    }
    emit(document, as_json, lambda: _told(pipeline.name, looks, found, sent))


def _started(settings: "Settings", model: str) -> list[str]:
    from towline.operations.services import find

    if found := find(settings, model):
        return found
    raise ConfigError(
        f"towline has started no service of {model} on this machine",
        where=str(settings.store),
        remedy=f"towline serve {model}; or say where one answers: --service http://127.0.0.1:8080",
    )


def _told(model: str, looks: "list[ServiceSample]", found: "tuple[Objective, ...]", sent: "DeliveryReport") -> str:
    from towline.cli.screen import table

    lines = []
    for one in looks:
        state = f"serves version {one.version}" if one.version else "answers"
        lines.append(f"{one.service} {state if one.up else f'is away: {one.why}'}")
    rows = [
        [
            one.name,
            one.goal,
            one.shown or None,
            None if one.budget is None else f"{100 * one.budget:.0f} %",
            *(_rate(one.burn(window)) for window in ("1h", "6h", "3d")),
            click.style(one.state, fg=_COLORS[one.state]),
        ]
        for one in found
    ]
    head = ["objective", "target", "now", "budget left", "burn 1h", "6h", "3d", "state"]
    lines += ["", table(head, rows), ""] if rows else ["", f"the config of {model} promises nothing: see slo", ""]
    lines += [one.reason for one in found if one.state != "met"]
    return "\n".join([*lines, f"alerts: {sent.text()}"])


def _rate(rate: float | None) -> str | None:
    return None if rate is None else f"{rate:.3g}"
