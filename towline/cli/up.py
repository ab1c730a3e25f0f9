"""towline up: the whole watch on one machine, until it is told to end."""

import contextlib
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
    from towline.operations.up_state import Up

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


@click.command()
@click.argument("configs", nargs=-1, required=True, metavar="CONFIG...", type=click.Path(path_type=Path))
@click.option(
    "--port",
    default=8080,
    show_default=True,
    type=click.IntRange(1, 65535),
    help="Of the first model's service; the next models' follow.",
)
@click.option("--no-service", is_flag=True, help="Serve nothing here.")
@click.option("--open", "browse", is_flag=True, help="Open the web interface in a browser.")
@click.option("--systemd", is_flag=True, help="Print a unit file that runs this command, and end.")
@json_option
def up(configs: tuple[Path, ...], port: int, no_service: bool, browse: bool, systemd: bool, as_json: bool) -> None:
    """Starts everything, and keeps it going.

    The web interfaces, the flows at the times of each config's schedule, and a service for each model, which begins
    with the model's first version. A model without a version is trained at once. Ends in order on SIGTERM and Ctrl-C;
    started again, also after a kill, it makes up once for what it missed.

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
    from towline.registry.resolution import check_recorded

    settings = Settings.from_environment()
    pipelines = _read(settings, configs, serving=not no_service)
    with contextlib.suppress(TransientError):  # a ledger that is away comes back
        for pipeline in pipelines:
            check_recorded(settings, open_ledger(settings), pipeline.name)
    if systemd:
        click.echo(_unit(settings, pipelines), nl=False)
        return
    ports = [] if no_service else [port + number for number in range(len(pipelines))]
    supervisor = Supervisor(settings, configs, pipelines, ports, lambda line: click.echo(line, err=True))

    def ready(state: "Up") -> None:
        emit(state.model_dump(mode="json"), as_json, lambda: _told(state, pipelines, settings))
        sys.stdout.flush()
        if browse and state.pages:
            click.launch(state.pages.get("status") or next(iter(state.pages.values())))

    click.echo("starting …", err=True)
    with files.locked(up_state.path(settings).with_suffix(".lock"), wait=False) as got:
        if not got:
            other = up_state.find(settings)
            since = f", process {other.pid}, since {other.since:%Y-%m-%d %H:%M} UTC" if other else ""
            raise ConfigError(
                f"towline up runs already on this store{since}",
                where=str(settings.store),
                remedy="end that one first; one takes several configs: towline up a.yaml b.yaml",
            )
        supervisor.run(ready)


def _read(settings: "Settings", configs: Sequence[Path], *, serving: bool) -> "list[PipelineConfig]":
    from towline.config import read_config

    extras.require("towline up", "pipeline", *(["serve"] if serving else []))
    if not (settings.project / "flows" / "deployments.py").is_file():
        raise ConfigError(
            "no flows here",
            where=str(settings.project),
            remedy="stand in a towline project, or set TOWLINE_PROJECT to one",
        )
    found = [read_config(path) for path in configs]
    names = [config.name for config in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(
            f"two configs are called {twice[0]!r}", where="command line", remedy="give each model a name of its own"
        )
    return found


def _told(state: "Up", configs: "Sequence[PipelineConfig]", settings: "Settings") -> str:
    named = {"prefect": "/runs", "mlflow": "/#/models"}
    lines = [f"{kind:<10}{url}{named.get(kind, '')}" for kind, url in state.pages.items()]
    parts = {part.name: part for part in state.parts}
    for config in configs:
        part, at = parts.get(f"service of {config.name}"), config.schedule
        lines.append(f"{config.name}")
        if part:
            waits = "" if part.state == "runs" else "   begins with the first version"
            lines.append(f"  service {part.url}{waits}")
        when = ", ".join(
            f"{flow} {line or 'never'}"
            for flow, line in (("training", at.train), ("drift", at.drift), ("quality", at.quality))
        )
        lines.append(f"  flows   {when}   ({at.timezone})")
    return "\n".join([*lines, f"{'logs':<10}{settings.layout.logs}", f"{'end':<10}Ctrl-C"])


def _unit(settings: "Settings", configs: "Sequence[PipelineConfig]") -> str:
    words = [word for word in sys.argv[1:] if word != "--systemd"]
    paths = {str(path): str(path.resolve()) for path in map(Path, words) if path.is_file()}
    command = [str(Path(sys.executable).with_name("towline")), *(paths.get(word, word) for word in words)]
    environment = [f'Environment="{name}={value}"' for name, value in settings.environment().items()]
    return _UNIT.format(
        models=", ".join(config.name for config in configs),
        folder=settings.project,
        environment="\n".join(environment),
        command=shlex.join(command),
    ).replace("%", "%%")
