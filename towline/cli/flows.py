"""Runs a flow of the project for a command: in this process, or on a worker if a profile is chosen."""

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


class FlowResult(NamedTuple):
    """The result of a flow, and the URL of its run's page; the URL is empty for a run in this process."""

    value: Any
    page: str = ""


def run(settings: Settings, name: Literal["training", "drift", "quality"], parameters: Mapping[str, Any]) -> FlowResult:
    """Runs ``flows.<name>`` in this process or, with ``--profile``, on a worker.

    Raises:
        ConfigError: there is no project, a package is missing, or the profile is not valid.
        TransientError: the same training is under way in another process.
        TowlineError: the error that the flow raised.
    """
    os.environ.update(servers.TELEMETRY_OFF)
    extras.require(f"towline {'run' if name == 'training' else name}", "pipeline")
    if not (settings.project / "flows" / "training.py").is_file():
        raise ConfigError(
            "there are no flows in this folder",
            where=str(settings.project),
            remedy="change to the folder of a towline project, or set TOWLINE_PROJECT to it",
        )
    context = click.get_current_context(silent=True)
    if context and (profile := context.find_root().obj):
        return _run_remote(settings, profiles.read(profile, settings), name, parameters)
    if name != "training":
        return FlowResult(_run_local(settings, name, parameters))
    with _single_training(settings, parameters["config"], parameters["as_of"]):
        return FlowResult(_run_local(settings, name, parameters))


@contextmanager
def _single_training(settings: Settings, config: PipelineConfig, as_of: object) -> Iterator[None]:
    """Refuses a second training of the same config before it starts a server or imports large packages.

    The data is not loaded yet, so this is an early check only: the lock of the workspace decides.

    Raises:
        TransientError: one is under way in another process.
    """
    key = hashlib.sha256(f"{config.digest} {as_of}".encode()).hexdigest()[:16]
    lock = settings.layout.run_lock(key)
    with files.exclusive_lock(lock, wait=False) as acquired:
        if not acquired:
            raise TransientError(
                "a run of this config is under way in another process",
                where=str(settings.store),
                remedy="wait for it to end, then run the same command again to see its result",
            )
        lock.touch()
        files.sweep(lock.parent)
        yield


def _run_local(settings: Settings, name: str, parameters: Mapping[str, Any]) -> Any:
    """Imports packages while the sidecar and the Prefect server start: each takes seconds."""
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
        return importlib.import_module("towline.orchestration.local_run").run_local(flow, parameters)
    finally:
        sidecar.stop()


def _run_remote(settings: Settings, profile: profiles.Profile, name: str, parameters: Mapping[str, Any]) -> FlowResult:
    os.environ.update(servers.prefect_environment(settings))
    sys.path.insert(0, str(settings.project))
    remote_run = importlib.import_module("towline.orchestration.remote_run")
    target = remote_run.RemoteTarget(profile.url, profile.auth, profile.pool)

    def deployments() -> Any:  # imported only for a model without a deployment: it takes a second or two
        return importlib.import_module("flows.deployments").deployments(parameters["config"], pool=profile.pool)

    try:
        value, page = remote_run.run_remote(
            name, target, parameters, deployments, lambda line: click.echo(line, err=True)
        )
    except KeyboardInterrupt:
        raise click.exceptions.Exit(130) from None
    return FlowResult(value, page)
