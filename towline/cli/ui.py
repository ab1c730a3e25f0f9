"""towline ui: the web interfaces over the store."""

import click

from towline.cli import emit, json_option


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
    kinds: list[servers.Kind] = ["prefect", "mlflow", "status"]
    if settings.evidently.is_dir() or any(settings.store.glob("watch/*/drift.jsonl")):
        kinds.append("evidently")
    started = [servers.start(settings, kind) for kind in kinds]
    click.echo("starting …", err=True)
    urls = {server.kind: servers.wait(settings, server).url for server in started}
    addresses = {"runs": f"{urls['prefect']}/runs", "models": f"{urls['mlflow']}/#/models", "status": urls["status"]}
    by = {"runs": "Prefect", "models": "MLflow", "status": "towline"}
    if "evidently" in urls:
        addresses["drift"], by["drift"] = urls["evidently"], "Evidently"
    lines = [f"{what:<8}{address}   ({by[what]})" for what, address in addresses.items()]
    emit(addresses, as_json, lambda: "\n".join([*lines, "stop    towline ui --stop"]))
