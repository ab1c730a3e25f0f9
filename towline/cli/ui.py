"""towline ui: the web interfaces over the store."""

from typing import get_args

import click

from towline.cli import emit, json_option


@click.command(short_help="Starts the web interfaces.")
@click.option("--stop", is_flag=True, help="Stop the servers instead.")
@json_option
def ui(stop: bool, as_json: bool) -> None:
    """Starts the web interfaces and prints the address of the status page.

    The status page has links to the runs in Prefect, the versions in MLflow and, after the first drift check, the
    reports in Evidently. The servers listen on loopback and run in the background; `towline run` uses the same Prefect
    server.

    \b
    Examples:
      towline ui
      towline ui --stop
    """
    from towline import extras
    from towline.config import Settings
    from towline.operations import servers
    from towline.registry.mlflow import links

    settings = Settings.from_environment()
    if stop:
        stopped = servers.stop(settings)
        kinds_text = ", ".join(server.kind for server in stopped) or "no server was running"
        emit([server.model_dump() for server in stopped], as_json, lambda: f"stopped: {kinds_text}")
        return
    extras.require("towline ui", "pipeline")
    kinds = servers.list_own_servers(settings)
    if not settings.layout.evidently.is_dir() and not any(settings.layout.drift_records()):
        kinds.remove("evidently")
    started = [servers.start(settings, kind) for kind in kinds]
    click.echo("starting …", err=True)
    urls = {kind: url for kind in get_args(servers.Kind) if (url := servers.find_named_server(settings, kind))}
    urls |= {server.kind: servers.wait(settings, server).url for server in started}
    pages = {
        "status": ("status", "", ""),
        "runs": ("prefect", "/runs", "runs (Prefect)"),
        "models": ("mlflow", f"/{links.models()}", "versions (MLflow)"),
        "drift": ("evidently", "", "drift (Evidently)"),
    }
    addresses = {name: urls[kind] + path for name, (kind, path, _) in pages.items() if kind in urls}
    others = ", ".join(title for name, (*_, title) in pages.items() if title and name in addresses)
    text = f"open    {addresses['status']}   status of the models, with links to {others}\nstop    towline ui --stop"
    emit(addresses, as_json, lambda: text)
