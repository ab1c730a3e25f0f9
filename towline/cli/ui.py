"""towline ui: the web interfaces over the store."""

from typing import TYPE_CHECKING

import click

from towline.cli import emit, json_option

if TYPE_CHECKING:
    from towline.config import Settings


@click.command()
@click.option("--stop", is_flag=True, help="Stop the servers instead.")
@json_option
def ui(stop: bool, as_json: bool) -> None:
    """Starts the web interfaces.

    Prefect's, MLflow's, the status page and, once the watch has looked at a night, Evidently's, on loopback; prints
    their addresses. They go on in the background; `towline run` reuses the Prefect one.

    \b
    Examples:
      towline ui
      towline ui --stop
    """
    from towline.cli import servers
    from towline.config import Settings

    settings = Settings.from_environment()
    if stop:
        stopped = servers.stop(settings)
        told = ", ".join(server.kind for server in stopped) or "none ran"
        emit([server.model_dump() for server in stopped], as_json, lambda: f"stopped: {told}")
        return
    started = [servers.start(settings, kind) for kind in ("prefect", "mlflow", "status")]
    click.echo("starting …", err=True)
    if _nights(settings):
        started.append(servers.start(settings, "evidently"))
    urls = {server.kind: servers.wait(settings, server).url for server in started}
    addresses = {"runs": f"{urls['prefect']}/runs", "models": f"{urls['mlflow']}/#/models", "status": urls["status"]}
    by = {"runs": "Prefect", "models": "MLflow", "status": "towline"}
    if "evidently" in urls:
        addresses["drift"], by["drift"] = urls["evidently"], "Evidently"
    lines = [f"{what:<8}{address}   ({by[what]})" for what, address in addresses.items()]
    emit(addresses, as_json, lambda: "\n".join([*lines, "stop    towline ui --stop"]))


def _nights(settings: "Settings") -> bool:
    """Whether there is a workspace; nights that are not in it yet are added first, which takes Evidently's import."""
    journals = sorted(settings.store.glob("watch/*/drift.jsonl"))
    if journals:
        import datetime as dt

        from towline.monitoring.journal import Journal
        from towline.monitoring.report import catch_up

        for path in journals:
            nights = Journal(path.parent).drift()
            catch_up(nights, settings.evidently, path.parent.name, dt.datetime.now(dt.UTC))
    return settings.evidently.is_dir()
