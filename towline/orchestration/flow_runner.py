"""Runs a flow of the project: in this process, or on a worker of a remote Prefect server."""

import gc
import hashlib
import importlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from towline import extras, files, helper_process
from towline.config import PipelineConfig, Settings
from towline.errors import ConfigError, TransientError
from towline.operations import servers
from towline.orchestration import profiles
from towline.orchestration.profiles import Profile

if TYPE_CHECKING:
    from towline.batch.job_options import OpenEngine

FlowName = Literal["training", "drift", "quality", "rollout"]


class FlowResult(NamedTuple):
    """The return value of a flow, and the page of its run in Prefect (empty for a run in this process)."""

    value: Any
    page: str = ""


def run_flow(
    settings: Settings,
    name: FlowName,
    parameters: Mapping[str, Any],
    profile: Profile | None = None,
    notify: Callable[[str], object] = print,
) -> FlowResult:
    """Runs ``flows.<name>`` and waits for it.

    Args:
        settings: the project and its store.
        name: of the flow.
        parameters: of the flow; ``config`` is a PipelineConfig.
        profile: the Prefect server and work pool that run it; None: this process.
        notify: receives progress messages of a remote run.

    Raises:
        ConfigError: the project has no flows, or a package is missing.
        TransientError: the same training runs in another process, or a server is down.
        TowlineError: any error of the flow.
    """
    os.environ.update(servers.TELEMETRY_OFF)
    extras.require(f"towline {'run' if name == 'training' else name}", "pipeline")
    prepare_project(settings, "training")
    if profile:
        return _run_on_worker(settings, profile, name, parameters, notify)
    if name != "training":
        return FlowResult(_run_in_process(settings, name, parameters))
    with _exclusive_run(settings, parameters["config"], parameters["as_of"]):
        return FlowResult(_run_in_process(settings, name, parameters))


def open_pool_engine(settings: Settings, model: str, profile: str | None) -> "OpenEngine":
    """The engine of batch scoring on the workers of a Prefect work pool; its messages go to stderr.

    Args:
        settings: of the project.
        model: name of the model.
        profile: name of the profile with the server; None: the server that PREFECT_API_URL names.

    Raises:
        ConfigError: there is no such profile, or a package is missing.
    """
    os.environ.update(servers.prefect_environment(settings))
    extras.require("--engine prefect", "pipeline")
    module = importlib.import_module("towline.orchestration.pool_engine")
    chosen = profiles.read(profile, settings) if profile else None
    engine: OpenEngine = module.pool_engine(model, chosen, partial(print, file=sys.stderr))
    return engine


def prepare_project(settings: Settings, module: str) -> None:
    """Makes the flows of the project importable.

    Args:
        settings: of the project.
        module: of ``flows`` that is needed.

    Raises:
        ConfigError: the project does not have it.
    """
    flows = settings.project / "flows"
    if not (flows / f"{module}.py").is_file():
        if flows.is_dir():
            what, remedy = f"there is no flows/{module}.py in this project", "towline init --update adds it"
        else:
            what = "there are no flows in this folder"
            remedy = "change to the folder of a towline project, or set TOWLINE_PROJECT to one"
        raise ConfigError(what, where=str(settings.project), remedy=remedy)
    if str(settings.project) not in sys.path:
        sys.path.insert(0, str(settings.project))


@contextmanager
def _exclusive_run(settings: Settings, config: PipelineConfig, as_of: object) -> Iterator[None]:
    """Rejects a second training of the same config before it starts a server or imports large packages.

    The data is not loaded yet, so this check is only an early answer: the lock of the workspace is the safe one.

    Raises:
        TransientError: another process trains the same config.
    """
    key = hashlib.sha256(f"{config.digest} {as_of}".encode()).hexdigest()[:16]
    lock = settings.layout.run_lock(key)
    with files.exclusive_lock(lock, wait=False) as acquired:
        if not acquired:
            raise TransientError(
                "a run of this config is under way in another process",
                where=str(settings.store),
                remedy="wait until it ends, then run the same command again: it reports the result",
            )
        lock.touch()
        files.sweep(lock.parent)
        yield


def _run_in_process(settings: Settings, name: str, parameters: Mapping[str, Any]) -> Any:
    """Imports the flow, starts the helper process and the Prefect server in parallel: each takes seconds."""
    gc.set_threshold(
        50_000, 20, 20
    )  # else garbage collections that free no object take a fifth of the time of the imports
    own_server = "PREFECT_API_URL" not in os.environ
    if own_server:
        server = servers.start(settings, "prefect")
        os.environ.update(servers.prefect_environment(settings), PREFECT_API_URL=f"{server.url}/api")
    try:
        helper_process.start(settings.layout.log())
        if name == "training":
            helper_process.submit(importlib.import_module, "great_expectations")
        flow = getattr(importlib.import_module(f"flows.{name}"), f"{name}_flow")
        if name == "training":  # an invalid config leaves no failed run
            importlib.import_module("towline.training.model_selection.config_checks").check_config(parameters["config"])
        if own_server:
            servers.wait(settings, server)
        return importlib.import_module("towline.orchestration.local_run").run_local(flow, parameters)
    finally:
        helper_process.stop()
        if own_server:
            del os.environ["PREFECT_API_URL"]  # the next run may be on another store


def _run_on_worker(
    settings: Settings, profile: Profile, name: str, parameters: Mapping[str, Any], notify: Callable[[str], object]
) -> FlowResult:
    os.environ.update(servers.prefect_environment(settings))
    remote_run = importlib.import_module("towline.orchestration.remote_run")
    target = remote_run.RemoteTarget(profile.url, profile.auth, profile.pool)

    def deployments() -> Any:  # imported only for a model without a deployment: it takes a second or two
        return importlib.import_module("flows.deployments").deployments(parameters["config"], pool=profile.pool)

    return FlowResult(*remote_run.run_remote(name, target, parameters, deployments, notify))
