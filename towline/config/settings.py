"""Settings: the locations of project, store, MLflow, the ledger, its key and shared searches, from the environment."""

import os
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

        Raises:
            ConfigError: a ``TOWLINE_*`` variable that does not exist.
        """
        env = os.environ if environ is None else environ
        names = ("PROJECT", "STORE", "TRACKING_URI", "LEDGER_URL", "LEDGER_KEY", "SEARCH_URL")
        known = {f"TOWLINE_{name}" for name in names}
        for name in sorted(env.keys() - _OF_COMMANDS):
            if name.startswith("TOWLINE_") and name not in known:
                raise ConfigError(f"unknown setting {name}", where="environment", remedy=suggest(name, known))
        here = (cwd or Path.cwd()).resolve()
        nearest = next((d for d in (here, *here.parents) if (d / "flows" / "training.py").is_file()), here)
        project = Path(env.get("TOWLINE_PROJECT", nearest)).resolve()
        store = (project / env.get("TOWLINE_STORE", "mlruns")).resolve()
        layout = StoreLayout(store)
        return cls(
            project=project,
            store=store,
            tracking_uri=env.get("TOWLINE_TRACKING_URI", f"sqlite:///{layout.mlflow_database}"),
            ledger_url=env.get("TOWLINE_LEDGER_URL", f"sqlite:///{layout.ledger_database}"),
            ledger_key=(project / env["TOWLINE_LEDGER_KEY"]).resolve() if env.get("TOWLINE_LEDGER_KEY") else None,
            search_url=env.get("TOWLINE_SEARCH_URL", ""),
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
