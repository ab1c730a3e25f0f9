"""Runs a flow for a command: with progress on stderr, on a worker if the command line names a profile."""

from datetime import datetime
from pathlib import Path

import click

from towline import api
from towline.cli import screen
from towline.config import Settings, read_config
from towline.orchestration.flow_runner import FlowName, FlowResult


def run(
    name: FlowName, config: Path, as_of: datetime | None, overrides: tuple[str, ...], **parameters: object
) -> FlowResult:
    """Runs the flow with this config; an interrupt leaves a run on a worker as it is."""
    settings = Settings.from_environment()
    pipeline = read_config(config, overrides)
    context = click.get_current_context(silent=True)
    profile = context.find_root().obj if context else None
    with screen.progress(settings.layout.log()):
        try:
            return api.run_flow(settings, name, {"config": pipeline, "as_of": as_of, **parameters}, profile)
        except KeyboardInterrupt:
            if profile:
                raise click.exceptions.Exit(130) from None
            raise
