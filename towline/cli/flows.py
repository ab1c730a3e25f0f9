"""A flow of the project, run in this process from the command line."""

import importlib
import os
import sys
from collections.abc import Mapping
from typing import Any, Literal

from towline import sidecar
from towline.cli import servers
from towline.config import Settings
from towline.errors import ConfigError


def run(settings: Settings, name: Literal["training", "drift", "quality"], parameters: Mapping[str, Any]) -> Any:
    """Runs ``flows.<name>``; imports, the second process and the server start side by side: each takes seconds.

    Raises:
        ConfigError: no project stands here.
        TowlineError: whatever the flow raises.
    """
    os.environ.update(servers.QUIET)
    if not (settings.project / "flows" / "training.py").is_file():
        raise ConfigError(
            "no flows here",
            where=str(settings.project),
            remedy="stand in a towline project, or set TOWLINE_PROJECT to one",
        )
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
