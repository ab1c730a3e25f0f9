"""A flow of the project: run in this process from the command line, or by a worker elsewhere."""

import hashlib
import importlib
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import click

from towline import files, sidecar
from towline.cli import extras, profiles
from towline.config import PipelineConfig, Settings
from towline.errors import ConfigError, TransientError
from towline.operations import servers


class Ended(NamedTuple):
    """What a flow returned; ``page`` is that of its run where a worker ran it, else empty."""

    value: Any
    page: str = ""


def run(settings: Settings, name: Literal["training", "drift", "quality"], parameters: Mapping[str, Any]) -> Ended:
    """Runs ``flows.<name>``, here or, where the command line names a profile, on a worker there.

    Raises:
        ConfigError: no project stands here, a package is missing, or the profile is none.
        TransientError: the same training is under way in another process.
        TowlineError: whatever the flow raises.
    """
    os.environ.update(servers.QUIET)
    extras.require(f"towline {'run' if name == 'training' else name}", "pipeline")
    if not (settings.project / "flows" / "training.py").is_file():
        raise ConfigError(
            "no flows here",
            where=str(settings.project),
            remedy="stand in a towline project, or set TOWLINE_PROJECT to one",
        )
    context = click.get_current_context(silent=True)
    if context and (profile := context.find_root().obj):
        return _there(settings, profiles.read(profile, settings), name, parameters)
    if name != "training":
        return Ended(_here(settings, name, parameters))
    with _only_one(settings, parameters["config"], parameters["as_of"]):
        return Ended(_here(settings, name, parameters))


@contextmanager
def _only_one(settings: Settings, config: PipelineConfig, as_of: object) -> Iterator[None]:
    """Ends a second training of the same config before it starts servers or helpers, or imports what takes memory.

    The data is not known yet, so this is no more than an early answer: the lock of the workspace is what decides.

    Raises:
        TransientError: one is under way in another process.
    """
    key = hashlib.sha256(f"{config.digest} {as_of}".encode()).hexdigest()[:16]
    lock = settings.layout.run_lock(key)
    with files.locked(lock, wait=False) as mine:
        if not mine:
            raise TransientError(
                "a run of this config is under way in another process",
                where=str(settings.store),
                remedy="wait for it to end, then run the same command again: it tells what came of it",
            )
        lock.touch()
        files.sweep(lock.parent)
        yield


def _here(settings: Settings, name: str, parameters: Mapping[str, Any]) -> Any:
    """Imports, the second process and the server start side by side: each takes seconds."""
    sidecar.start(settings.layout.log())
    if name == "training":
        sidecar.begin(importlib.import_module, "great_expectations")
    server = None
    if "PREFECT_API_URL" not in os.environ:
        server = servers.start(settings, "prefect")
        os.environ.update(servers.prefect_environment(settings), PREFECT_API_URL=f"{server.url}/api")
    try:
        sys.path.insert(0, str(settings.project))
        flow = getattr(importlib.import_module(f"flows.{name}"), f"{name}_flow")
        if name == "training":  # a config that cannot run leaves no failed run
            importlib.import_module("towline.training.config_checks").check_config(parameters["config"])
        if server:
            servers.wait(settings, server)
        return importlib.import_module("towline.orchestration.local_run").run_here(flow, parameters)
    finally:
        sidecar.stop()


def _there(settings: Settings, profile: profiles.Profile, name: str, parameters: Mapping[str, Any]) -> Ended:
    os.environ.update(servers.prefect_environment(settings))
    sys.path.insert(0, str(settings.project))
    submission = importlib.import_module("towline.orchestration.remote_run")
    there = submission.There(profile.url, profile.auth, profile.pool)

    def deployments() -> Any:  # a second or two of imports, for a model that has none yet
        return importlib.import_module("flows.deployments").deployments(parameters["config"], pool=profile.pool)

    try:
        done = submission.run_there(name, there, parameters, deployments, lambda line: click.echo(line, err=True))
    except KeyboardInterrupt:
        raise click.exceptions.Exit(130) from None
    return Ended(done.value, done.page)
