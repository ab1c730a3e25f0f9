"""towline ui: the two web interfaces over the store."""

import click

from towline.cli import emit, json_option


@click.command()
@click.option("--stop", is_flag=True, help="Stop the servers instead.")
@json_option
def ui(stop: bool, as_json: bool) -> None:
    """Starts the web interfaces.

    Prefect's and MLflow's, on loopback; prints their addresses. They go on in the background; `towline run` reuses the
    Prefect one.

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
    started = [servers.start(settings, "prefect"), servers.start(settings, "mlflow")]
    click.echo("starting …", err=True)
    prefect, mlflow = (servers.wait(settings, server) for server in started)
    addresses = {"runs": f"{prefect.url}/runs", "models": f"{mlflow.url}/#/models"}
    emit(
        addresses,
        as_json,
        lambda: (
            f"runs    {addresses['runs']}   (Prefect)\nmodels  {addresses['models']}   (MLflow)\n"
            "stop    towline ui --stop"
        ),
    )
