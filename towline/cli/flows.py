"""A flow of the project: run in this process from the command line, or by a worker elsewhere."""

import importlib
import os
import sys
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import click

from towline import sidecar
from towline.cli import profiles, servers
from towline.config import Settings
from towline.errors import ConfigError


class Ended(NamedTuple):
    """What a flow returned; ``page`` is that of its run where a worker ran it, else empty."""

    value: Any
    page: str = ""


def run(settings: Settings, name: Literal["training", "drift", "quality"], parameters: Mapping[str, Any]) -> Ended:
    """Runs ``flows.<name>``, here or, where the command line names a profile, on a worker there.

    Raises:
        ConfigError: no project stands here, or the profile is none.
        TowlineError: whatever the flow raises.
    """
    os.environ.update(servers.QUIET)
    if not (settings.project / "flows" / "training.py").is_file():
        raise ConfigError(
            "no flows here",
            where=str(settings.project),
            remedy="stand in a towline project, or set TOWLINE_PROJECT to one",
        )
    context = click.get_current_context(silent=True)
    if context and (profile := context.find_root().obj):
        return _there(settings, profiles.read(profile, settings), name, parameters)
    return Ended(_here(settings, name, parameters))


def _here(settings: Settings, name: str, parameters: Mapping[str, Any]) -> Any:
    """Imports, the second process and the server start side by side: each takes seconds."""
    sidecar.start(settings.store / "logs" / "towline.log")
    if name == "training":
        sidecar.begin(importlib.import_module, "great_expectations")
    server = None
    if "PREFECT_API_URL" not in os.environ:
        server = servers.start(settings, "prefect")
        os.environ.update(servers.prefect_environment(settings), PREFECT_API_URL=f"{server.url}/api")
    try:
        sys.path.insert(0, str(settings.project))
        flow = getattr(importlib.import_module(f"flows.{name}"), f"{name}_flow")
        if server:
            servers.wait(settings, server)
        return importlib.import_module("tasks.embedded").run_here(flow, parameters)
    finally:
        sidecar.stop()


def _there(settings: Settings, profile: profiles.Profile, name: str, parameters: Mapping[str, Any]) -> Ended:
    os.environ.update(servers.prefect_environment(settings))
    sys.path.insert(0, str(settings.project))
    submission = importlib.import_module("tasks.submission")
    there = submission.There(profile.url, profile.auth, profile.pool)

    def deployments() -> Any:  # a second or two of imports, for a model that has none yet
        return importlib.import_module("flows.deployments").deployments(parameters["config"], pool=profile.pool)

    try:
        done = submission.run_there(name, there, parameters, deployments, lambda line: click.echo(line, err=True))
    except KeyboardInterrupt:
        raise click.exceptions.Exit(130) from None
    return Ended(done.value, done.page)
