"""towline up: servers, schedules and services on one machine, until a stop signal."""

import contextlib
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from towline import extras
from towline.cli import emit, json_option
from towline.errors import ConfigError, TransientError

if TYPE_CHECKING:
    from towline.config import PipelineConfig, Settings
    from towline.operations.up_state import UpState

MAX_PORT = 65535
#: variables, besides the settings, that a unit for systemd needs; those of ``_SECRETS`` are not written into it
_SECRETS = ("PREFECT_API_KEY", "PREFECT_API_AUTH_STRING", "TOWLINE_API_KEY")
_INHERITED = ("PREFECT_API_URL", *_SECRETS)
_UNIT = """\
[Unit]
Description=towline: {models}
After=network-online.target
Wants=network-online.target

[Service]
WorkingDirectory={folder}
{environment}
ExecStart={command}
Restart=always
RestartSec=5
KillMode=mixed
TimeoutStopSec=60

[Install]
WantedBy=default.target
"""


@click.command(short_help="Runs web interfaces, schedules and services.")
@click.argument("configs", nargs=-1, required=True, metavar="CONFIG...", type=click.Path(path_type=Path))
@click.option(
    "--port",
    default=8080,
    show_default=True,
    type=click.IntRange(1, MAX_PORT),
    help="Port of the first model's service; further models get the ports after it.",
)
@click.option("--no-service", is_flag=True, help="Start no service.")
@click.option("--open", "browse", is_flag=True, help="Open the web interface in a browser.")
@click.option("--systemd", is_flag=True, help="Print a systemd unit that runs this command, and exit.")
@json_option
def up(configs: tuple[Path, ...], port: int, no_service: bool, browse: bool, systemd: bool, as_json: bool) -> None:
    """Runs web interfaces, schedules and services, and restarts failed processes.

    Each config's flows run by its schedule; a model without a version is trained immediately. A model's service starts
    with the first version. SIGTERM and Ctrl-C stop all processes in order. After a restart, also after a crash, one run
    replaces the scheduled runs that were missed.

    \b
    Examples:
      towline up configs/bike_demand.yaml
      towline up configs/*.yaml --port 9000 --open
      towline up configs/bike_demand.yaml --systemd > ~/.config/systemd/user/towline.service
    """
    from towline import files
    from towline.config import Settings
    from towline.operations import up_state
    from towline.operations.supervisor import Supervisor
    from towline.registry.ledger import open_ledger
    from towline.registry.selection import check_recorded

    settings = Settings.from_environment()
    pipelines = _read(settings, configs, serving=not no_service)
    with contextlib.suppress(TransientError):  # a ledger that is down may recover
        for pipeline in pipelines:
            check_recorded(settings, open_ledger(settings), pipeline.name)
    if systemd:
        click.echo(_unit(settings, pipelines), nl=False)
        return
    ports = [] if no_service else [port + number for number in range(len(pipelines))]
    if ports and ports[-1] > MAX_PORT:
        problem = f"{len(ports)} services from port {port} on need ports above {MAX_PORT}"
        raise ConfigError(problem, where="--port", remedy=f"choose {MAX_PORT + 1 - len(ports)} or a lower one")
    supervisor = Supervisor(settings, configs, pipelines, ports, lambda line: click.echo(line, err=True))

    def ready(state: "UpState") -> None:
        emit(state.model_dump(mode="json"), as_json, lambda: _describe(state, pipelines, settings))
        sys.stdout.flush()
        if browse and state.pages:
            click.launch(state.pages.get("status") or next(iter(state.pages.values())))

    click.echo("starting …", err=True)
    with files.exclusive_lock(up_state.path(settings).with_suffix(".lock"), wait=False) as acquired:
        if not acquired:
            record = up_state.find_running(settings)
            since = f", process {record.pid}, since {record.since:%Y-%m-%d %H:%M} UTC" if record else ""
            raise ConfigError(
                f"towline up already runs on this store{since}",
                where=str(settings.store),
                remedy="stop it first; one command takes several configs: towline up a.yaml b.yaml",
            )
        supervisor.run(ready)


def _read(settings: "Settings", configs: Sequence[Path], *, serving: bool) -> "list[PipelineConfig]":
    from towline.config import read_config
    from towline.orchestration.flow_runner import prepare_project

    extras.require("towline up", "pipeline", *(["serve"] if serving else []))
    prepare_project(settings, "deployments")
    pipelines = [read_config(path) for path in configs]
    names = [config.name for config in pipelines]
    if duplicates := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(
            f"two configs are called {duplicates[0]!r}", where="command line", remedy="give each model its own name"
        )
    return pipelines


def _describe(state: "UpState", configs: "Sequence[PipelineConfig]", settings: "Settings") -> str:
    paths = {"prefect": "/runs", "mlflow": "/#/models"}
    lines = [f"{kind:<10}{url}{paths.get(kind, '')}" for kind, url in state.pages.items()]
    processes = {process.name: process for process in state.processes}
    for config in configs:
        service, schedule = processes.get(f"service of {config.name}"), config.schedule
        lines.append(f"{config.name}")
        if service:
            note = "" if service.status == "runs" else "   starts with the first version"
            lines.append(f"  service {service.url}{note}")
        when = ", ".join(
            f"{flow} {line or 'never'}"
            for flow, line in (("training", schedule.train), ("drift", schedule.drift), ("quality", schedule.quality))
        )
        lines.append(f"  flows   {when}   ({schedule.timezone})")
    return "\n".join([*lines, f"{'logs':<10}{settings.layout.logs}", f"{'stop':<10}Ctrl-C"])


def _unit(settings: "Settings", configs: "Sequence[PipelineConfig]") -> str:
    from towline.config.passwords import mask_passwords

    arguments = [word for word in sys.argv[1:] if word != "--systemd"]
    paths = {str(path): str(path.resolve()) for path in map(Path, arguments) if path.is_file()}
    command = [str(Path(sys.executable).with_name("towline")), *(paths.get(word, word) for word in arguments)]
    variables = settings.environment() | {name: os.environ[name] for name in _INHERITED if os.environ.get(name)}
    secret = [name for name, value in variables.items() if name in _SECRETS or mask_passwords(value) != value]
    environment = [f'Environment="{name}={value}"' for name, value in variables.items() if name not in secret]
    if secret:
        file = settings.project / "towline.env"
        environment.append(f"EnvironmentFile={file}")
        click.echo(f"note: write these variables, NAME=VALUE, to {file} (mode 600): {', '.join(secret)}", err=True)
    return _UNIT.format(
        models=", ".join(config.name for config in configs),
        folder=settings.project,
        environment="\n".join(environment),
        command=shlex.join(command),
    ).replace("%", "%%")
