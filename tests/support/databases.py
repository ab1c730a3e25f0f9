"""Empty databases of Prefect and MLflow, created once: their migrations take five seconds of CPU in each new store."""

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from importlib.metadata import version
from pathlib import Path

from tests.support.paths import REPOSITORY
from towline.config import Settings
from towline.operations import servers

CONNECT = """
from towline.config import Settings
from towline.registry.mlflow.client import connect
with connect(Settings.from_environment()):
    pass
"""


def copy_databases(settings: Settings) -> None:
    """Copies both databases into a new store, readable by the user alone."""
    template = _template()
    settings.store.mkdir(mode=0o700, parents=True)
    for path in (settings.layout.prefect / "prefect.db", settings.layout.mlflow_database):
        path.parent.mkdir(mode=0o700, exist_ok=True)
        shutil.copy(template.store / path.relative_to(settings.store), path)
        path.chmod(0o600)


@cache
def _template() -> Settings:
    """A store with the databases of the installed versions; the processes of a test run share it."""
    name = "-".join(f"{package}{version(package)}" for package in ("prefect", "mlflow"))
    folder = Path(tempfile.gettempdir()) / f"towline-tests-{name}"
    folder.mkdir(exist_ok=True)
    settings = Settings.from_environment({"TOWLINE_STORE": str(folder / "store")}, cwd=REPOSITORY)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "complete").exists():
            shutil.rmtree(settings.store, ignore_errors=True)
            environment = os.environ | settings.environment() | servers.prefect_environment(settings)
            for command in (["-c", CONNECT], ["-m", "prefect", "server", "database", "upgrade", "-y"]):
                subprocess.run([sys.executable, *command], env=environment, check=True, capture_output=True)
            (folder / "complete").touch()
    return settings
