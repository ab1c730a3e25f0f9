"""The client of MLflow: connects to MLflow's store, creates experiments and versions, and names towline's tags.

MLflow is imported when a connection is opened, since that takes seconds.
"""

import logging
import os
import sqlite3
import warnings
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from towline import files
from towline.config import Settings
from towline.config.passwords import mask_passwords
from towline.errors import TowlineError, TransientError

if TYPE_CHECKING:
    from mlflow import MlflowClient

RUN_KEY = "towline.run_key"
VERSION = "towline.version"
_PLACEHOLDER = "towline.placeholder"
_TIMEOUT_S = 5  # for a lock on the store or an answer of the server


@contextmanager
def connect(settings: Settings) -> Iterator["MlflowClient"]:
    """A client of MLflow's store, which is created if it is missing; errors of the store become TransientError."""
    defaults = {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": str(_TIMEOUT_S),
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
        "GIT_PYTHON_REFRESH": "quiet",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    file = sqlite_file(settings)
    if file:
        _check_writable(file if file.exists() else _draft(file))
    import sqlalchemy.exc
    from alembic.util import CommandError
    from mlflow import MlflowClient, set_tracking_uri
    from mlflow.exceptions import MlflowException

    loggers = [logging.getLogger(name) for name in ("mlflow", "alembic", "urllib3")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), files.disk(settings.store):
            warnings.simplefilter("ignore")
            set_tracking_uri(
                settings.tracking_uri
            )  # MLflow looks up a version's model there, not in the client's store
            if file and not file.exists():
                with files.exclusive_lock(settings.layout.mlflow_lock):
                    _create_database(file)
            client = MlflowClient(settings.tracking_uri, settings.tracking_uri)
            yield client
    except TowlineError:
        raise
    except (MlflowException, CommandError, sqlalchemy.exc.SQLAlchemyError) as error:
        raise _unavailable(settings.tracking_uri, str(error)) from error
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _draft(file: Path) -> Path:
    return file.with_name(f".{file.name}.new")


def _create_database(file: Path) -> None:
    """Creates an SQLite store under another name and renames it: MLflow cannot use a store that is half created."""
    from mlflow import MlflowClient

    if file.exists():
        return
    draft = _draft(file)
    draft.unlink(missing_ok=True)
    client = MlflowClient(f"sqlite:///{draft}", f"sqlite:///{draft}")
    client.search_experiments(max_results=1)
    client.search_registered_models(max_results=1)
    with suppress(FileExistsError):  # an MLflow server was faster
        file.hardlink_to(draft)
    draft.unlink()


def _check_writable(file: Path) -> None:
    """Takes SQLite's write lock once: MLflow itself would retry for minutes."""
    with files.disk(file):
        file.parent.mkdir(parents=True, exist_ok=True)
    try:
        with closing(sqlite3.connect(file, timeout=_TIMEOUT_S, isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("PRAGMA schema_version")
    except sqlite3.Error as error:
        raise _unavailable(f"sqlite:///{file}", str(error)) from error


def _unavailable(uri: str, reason: str) -> TransientError:
    remedy = "check that TOWLINE_TRACKING_URI names a running MLflow server that accepts the user; then run it again"
    if "schema" in reason or "revision" in reason:
        remedy = "another version of MLflow wrote this database: install that version, migrate it (mlflow db upgrade), "
        remedy += "or move the database away: towline makes it again from the ledger and the releases"
    elif uri.startswith("sqlite:"):
        remedy = "make the store's file and folder writable, or point TOWLINE_STORE at one that is"
        if "locked" in reason:
            remedy = "another process locks the store: wait for it to end, then run the same command again"
        elif "not a database" in reason or "malformed" in reason:
            remedy = "the file is damaged: restore it from a backup, or move it away"
    problem = next((line.strip() for line in reason.splitlines() if line.strip()), "no answer")[:200]
    return TransientError(
        f"the MLflow store cannot be used: {mask_passwords(problem)}", where=mask_passwords(uri), remedy=remedy
    )


def sqlite_file(settings: Settings) -> Path | None:
    """The file of MLflow's SQLite database; None for another kind of store."""
    if not settings.tracking_uri.startswith("sqlite:"):
        return None
    from sqlalchemy import make_url

    database = make_url(settings.tracking_uri).database
    return Path(database) if database else None


def ensure_experiment(client: "MlflowClient", settings: Settings, name: str, description: str | None) -> str:
    """Creates the experiment and the registered model if they are missing; returns the experiment's id.

    A description of None leaves the model's description as it is.
    """
    with files.exclusive_lock(settings.layout.mlflow_lock):
        if not client.search_registered_models(f"name = '{name}'"):
            client.create_registered_model(name, description=description)
        elif description is not None and client.get_registered_model(name).description != description:
            client.update_registered_model(name, description)
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            location = str(settings.layout.mlflow_artifacts) if sqlite_file(settings) else None
            return str(client.create_experiment(name, artifact_location=location))
    if experiment.lifecycle_stage == "deleted":
        client.restore_experiment(experiment.experiment_id)
    return str(experiment.experiment_id)


def create_version(client: "MlflowClient", name: str, number: int, *, tags: Mapping[str, str], **options: Any) -> str:
    """Creates a version and returns MLflow's number, which is ``number`` unless MLflow has counted further.

    If MLflow has counted less far, placeholder versions are created and deleted.
    """
    present = client.search_model_versions(f"name = '{name}'")
    for leftover in [item for item in present if _PLACEHOLDER in item.tags]:  # of a killed run
        client.delete_model_version(name, leftover.version)
    last, placeholders = max([0, *(int(item.version) for item in present)]), []
    while last < number - 1:
        placeholder = client.create_model_version(name, _PLACEHOLDER, tags={_PLACEHOLDER: str(number)})
        placeholders.append(placeholder.version)
        last = int(placeholder.version)
    created = client.create_model_version(name, tags={**tags, VERSION: str(number)}, **options)
    for version in placeholders:
        client.delete_model_version(name, version)
    return str(created.version)
