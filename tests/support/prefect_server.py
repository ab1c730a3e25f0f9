"""A Prefect server for flows in this process."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.databases import copy_databases
from tests.support.paths import REPOSITORY
from towline.config import Settings
from towline.operations import servers


@contextmanager
def run_prefect(store: Path) -> Iterator[str]:
    """Starts a server with its database in a new store, sets its address in this process, and yields the address."""
    settings = Settings.from_environment({"TOWLINE_STORE": str(store)}, cwd=REPOSITORY)
    copy_databases(settings)
    server = servers.start(settings, "prefect")
    environment = servers.prefect_environment(settings) | {"PREFECT_API_URL": f"{server.url}/api"}
    os.environ.update(environment)
    _read_settings_again()
    try:
        servers.wait(settings, server)
        yield server.url
    finally:
        servers.stop(settings)
        for name in environment.keys() - servers.TELEMETRY_OFF.keys():
            os.environ.pop(name, None)
        _read_settings_again()


def _read_settings_again() -> None:
    """Prefect reads the environment when it is imported, which another test may already have done."""
    if "prefect" in sys.modules:
        from prefect import context

        context.GLOBAL_SETTINGS_CONTEXT = context.root_settings_context()
