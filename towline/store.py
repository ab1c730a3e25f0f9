"""A store is the folder that holds everything towline writes; ``StoreLayout`` spells each path in it.

::

    ledger.db  mlflow.db         the ledger and MLflow's database, unless the settings name others
    ledger.key  anchors/         the key that signs the ledger's rows, unless the settings name another; last rows
    datasets/                    snapshots of training data, named by the digest of their content
    tables/                      tables given to the Python API instead of a source, named the same way
    work/<workspace key>/        workspaces of runs
    releases/<model>/v<N>-…/     releases
    artifacts/                   MLflow's artifacts
    predictions/<model>/         prediction logs
    labels/<model>/              ground-truth labels
    monitoring/<model>/          monitoring results, alerts, time of the last training; monitoring/up.json: the
                                 `towline up` of the store
    rollouts/<model>/<id>/       counts, shadow answers and evaluations of a rollout
    serving/                     API keys, and the last version of each service
    scored/<model>/              output of the scoring flow
    evidently/  prefect/         Evidently's workspace; Prefect's database and task results
    servers/  locks/  logs/      processes of this machine, locks between runs, log files
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class StoreLayout:
    """The paths of a store; this module reads and creates no file.

    Args:
        root: the store's folder.

    Example:
        >>> StoreLayout(Path("/srv/mlruns")).predictions("bike-demand").as_posix()
        '/srv/mlruns/predictions/bike-demand'
    """

    root: Path

    @property
    def ledger_database(self) -> Path:
        return self.root / "ledger.db"

    @property
    def ledger_key(self) -> Path:
        """The key that signs the ledger's rows."""
        return self.root / "ledger.key"

    @property
    def ledger_anchors(self) -> Path:
        """One signed file for each model: its last row in the ledger."""
        return self.root / "anchors"

    @property
    def mlflow_database(self) -> Path:
        return self.root / "mlflow.db"

    @property
    def mlflow_artifacts(self) -> Path:
        return self.root / "artifacts"

    @property
    def mlflow_lock(self) -> Path:
        """Held while MLflow's database, an experiment or a registered model is created."""
        return self.root / ".tracking.lock"

    @property
    def synchronization_lock(self) -> Path:
        """Held while MLflow is brought in line with the ledger."""
        return self.root / ".mirror.lock"

    def dataset(self, relative: str) -> Path:
        """The file of a snapshot, whose path within the store its record holds."""
        return self.root / relative

    def staged_table(self, address: str) -> Path:
        """The file with the rows of a table of a database until they are loaded."""
        return self.root / "scored" / "tables" / f"{hashlib.sha256(address.encode()).hexdigest()[:16]}.parquet"

    def staged_upload(self, address: str, name: str) -> Path:
        """The output of a job until it is uploaded to an address; ``name`` is the last part of it."""
        return self.root / "scored" / "uploads" / hashlib.sha256(address.encode()).hexdigest()[:16] / name

    def table(self, digest: str) -> Path:
        """The file of a table that the Python API was given."""
        return self.root / "tables" / f"{digest[:16]}.parquet"

    @staticmethod
    def dataset_name(stem: str) -> str:
        """The path, within the store, of the snapshot with a digest."""
        return f"datasets/{stem}.parquet"

    def workspace(self, key: str) -> Path:
        return self.root / "work" / key[:16]

    def run_lock(self, digest: str) -> Path:
        """Held by a process for as long as it trains one config."""
        return self.root / "locks" / f".{digest}"

    @property
    def releases(self) -> Path:
        return self.root / "releases"

    def release(self, relative: str) -> Path:
        """A release's folder, whose path within the store the ledger holds."""
        return self.root / relative

    @property
    def prediction_logs(self) -> Path:
        return self.root / "predictions"

    def predictions(self, model: str) -> Path:
        return self.prediction_logs / model

    @property
    def all_labels(self) -> Path:
        return self.root / "labels"

    def labels(self, model: str) -> Path:
        return self.all_labels / model

    def monitoring(self, model: str) -> Path:
        return self.root / "monitoring" / model

    def last_training(self, model: str) -> Path:
        """The time at which a training run of the model last ended."""
        return self.monitoring(model) / "last-training"

    def drift_records(self) -> Iterator[Path]:
        """The records of drift checks that there are, one file for each model."""
        yield from sorted(self.root.glob("monitoring/*/drift.jsonl"))

    def drift_report(self, model: str, day: str) -> Path:
        return self.monitoring(model) / f"drift-{day}.html"

    @property
    def up_state(self) -> Path:
        return self.root / "monitoring" / "up.json"

    @property
    def servers(self) -> Path:
        """One JSON file for each server and each service of this machine."""
        return self.root / "servers"

    @property
    def serving(self) -> Path:
        return self.root / "serving"

    @property
    def api_keys(self) -> Path:
        return self.serving / "keys.json"

    def rollout(self, model: str, rollout_id: str) -> Path:
        """Counts, shadow answers and evaluations of one rollout."""
        return self.root / "rollouts" / model / rollout_id

    def shadow_logs(self, model: str) -> list[Path]:
        """The folders of shadow answers of all rollouts of a model."""
        return sorted((self.root / "rollouts" / model).glob("*/shadow"))

    @property
    def scored(self) -> Path:
        return self.root / "scored"

    @property
    def evidently(self) -> Path:
        return self.root / "evidently"

    @property
    def prefect(self) -> Path:
        return self.root / "prefect"

    @property
    def prefect_results(self) -> Path:
        """Where Prefect keeps the results of cached tasks."""
        return self.prefect / "storage"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    def log(self, process: str = "towline") -> Path:
        return self.logs / f"{process}.log"
