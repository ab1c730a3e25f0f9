"""A Prefect server for the flows that tests run in this process."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.paths import REPOSITORY
from towline.config import Settings
from towline.operations import servers


@contextmanager
def run_prefect(store: Path) -> Iterator[str]:
    """Starts a server with its database in a store, points this process at it, and yields its address."""
    settings = Settings.from_environment({"TOWLINE_STORE": str(store)}, cwd=REPOSITORY)
    server = servers.start(settings, "prefect")
    environment = servers.prefect_environment(settings) | {"PREFECT_API_URL": f"{server.url}/api"}
    os.environ.update(environment)
    try:
        servers.wait(settings, server)
        yield server.url
    finally:
        servers.stop(settings)
        for name in environment.keys() - servers.TELEMETRY_OFF.keys():
            os.environ.pop(name, None)
