"""towline ui: the web interfaces over the store."""

import click

from towline.cli import emit, json_option


@click.command(short_help="Starts the web interfaces.")
@click.option("--stop", is_flag=True, help="Stop the servers instead.")
@json_option
def ui(stop: bool, as_json: bool) -> None:
    """Starts the web interfaces and prints the address of the status page.

    The status page has links to the runs in Prefect, the versions in MLflow and, after the first drift check, the
    reports in Evidently. The servers listen on loopback and stay in the background; `towline run` uses the same Prefect
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
    kinds: list[servers.Kind] = ["prefect", "mlflow", "status"]
    if settings.layout.evidently.is_dir() or any(settings.layout.drift_records()):
        kinds.append("evidently")
    started = [servers.start(settings, kind) for kind in kinds]
    click.echo("starting …", err=True)
    urls = {server.kind: servers.wait(settings, server).url for server in started}
    addresses = {
        "status": urls["status"],
        "runs": f"{urls['prefect']}/runs",
        "models": f"{urls['mlflow']}/{links.models()}",
        **({"drift": urls["evidently"]} if "evidently" in urls else {}),
    }
    others = ", ".join(
        ["runs (Prefect)", "versions (MLflow)", *(["drift (Evidently)"] if "drift" in addresses else [])]
    )
    text = f"open    {addresses['status']}   status of the models, with links to {others}\nstop    towline ui --stop"
    emit(addresses, as_json, lambda: text)
