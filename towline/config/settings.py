"""Settings: the locations of project, store, MLflow, the ledger, its key and shared searches, from the environment."""

import os
import re
from collections.abc import Mapping
from pathlib import Path

from towline.config.record import Frozen, suggest
from towline.errors import ConfigError
from towline.store import StoreLayout

# read by the commands that need them; they are not locations
_OF_COMMANDS = {"TOWLINE_API_KEY", "TOWLINE_BACKUP_DATABASES", "TOWLINE_BACKUP_FOLDERS", "TOWLINE_PROFILE"}


class Settings(Frozen):
    """The locations that a process uses."""

    project: Path
    store: Path
    tracking_uri: str
    ledger_url: str
    ledger_key: Path | None = None
    search_url: str = ""

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None, cwd: Path | None = None) -> "Settings":
        """Reads ``TOWLINE_PROJECT``, ``…_STORE``, ``…_TRACKING_URI``, ``…_LEDGER_URL``, ``…_LEDGER_KEY`` and others.

        The project defaults to the nearest folder upwards that holds ``flows/training.py``, else the working folder.
        Relative paths start there. A variable without a value counts as not set; without a value of
        ``TOWLINE_TRACKING_URI`` there is no MLflow.

        Raises:
            ConfigError: a ``TOWLINE_*`` variable that does not exist, or a store whose path contains ``?``.
        """
        env = os.environ if environ is None else environ
        names = ("PROJECT", "STORE", "TRACKING_URI", "LEDGER_URL", "LEDGER_KEY", "SEARCH_URL")
        known = {f"TOWLINE_{name}" for name in names}
        for name in sorted(env.keys() - _OF_COMMANDS):
            if name.startswith("TOWLINE_") and name not in known:
                raise ConfigError(f"unknown setting {name}", where="environment", remedy=suggest(name, known))
        here = (cwd or Path.cwd()).resolve()
        nearest = next((d for d in (here, *here.parents) if (d / "flows" / "training.py").is_file()), here)
        project = Path(env.get("TOWLINE_PROJECT") or nearest).resolve()
        store = (project / (env.get("TOWLINE_STORE") or "mlruns")).resolve()
        if "?" in str(store):
            what = f"the store's path contains a question mark, which the URL of a database cannot: {store}"
            raise ConfigError(what, where="TOWLINE_STORE", remedy="set TOWLINE_STORE to a folder without ? in its path")
        layout = StoreLayout(store)
        tracking_uri = env.get("TOWLINE_TRACKING_URI", f"sqlite:///{layout.mlflow_database}")
        ledger_url = env.get("TOWLINE_LEDGER_URL") or f"sqlite:///{layout.ledger_database}"
        return cls(
            project=project,
            store=store,
            tracking_uri=_with_absolute_path(tracking_uri, project),
            ledger_url=_with_absolute_path(ledger_url, project),
            ledger_key=(project / env["TOWLINE_LEDGER_KEY"]).resolve() if env.get("TOWLINE_LEDGER_KEY") else None,
            search_url=_with_absolute_path(env.get("TOWLINE_SEARCH_URL", ""), project),
        )

    def environment(self) -> dict[str, str]:
        """The environment variables that give another process these settings."""
        return {
            "TOWLINE_PROJECT": str(self.project),
            "TOWLINE_STORE": str(self.store),
            "TOWLINE_TRACKING_URI": self.tracking_uri,
            "TOWLINE_LEDGER_URL": self.ledger_url,
            **({"TOWLINE_LEDGER_KEY": str(self.ledger_key)} if self.ledger_key else {}),
            **({"TOWLINE_SEARCH_URL": self.search_url} if self.search_url else {}),
        }

    @property
    def layout(self) -> StoreLayout:
        """The paths within the store."""
        return StoreLayout(self.store)


def _with_absolute_path(url: str, project: Path) -> str:
    """The URL of an SQLite file whose relative path starts at the project, as other paths do; other URLs unchanged."""
    match = re.fullmatch(r"(sqlite(?:\+\w+)?:///)(?!/|:|file:)([^?]+)(.*)", url)
    return f"{match[1]}{project / match[2]}{match[3]}" if match else url
