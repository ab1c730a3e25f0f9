"""The mirror is MLflow's list of a model's versions: this module reads it cheaply and writes it.

Versions are matched by their run key, since MLflow's own version numbers may differ from the ledger's.
"""

import base64
import contextlib
import json
import os
import sqlite3
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import Field

from towline.config import Frozen, Settings
from towline.config.passwords import mask_passwords
from towline.errors import TransientError
from towline.registry.mlflow.client import RUN_KEY, connect, create_version, ensure_experiment, sqlite_file

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

_TIMEOUT_S = 5.0  # seconds for an answer of the server


class VersionRecord(Frozen):
    """A version as MLflow should show it.

    Attributes:
        version: the ledger's number.
        run_key: of the run it belongs to.
        tags: of the version.
        folder: its release.
        params, metrics, description: of the run that is created from the release if the original run does not exist.
    """

    version: int
    run_key: str
    tags: dict[str, str]
    folder: Path
    params: dict[str, str] = Field(default_factory=dict)
    metrics: dict[str, float] = Field(default_factory=dict)
    description: str = ""


class MirroredVersion(NamedTuple):
    """A version in MLflow: MLflow's number and the tags."""

    number: str
    tags: dict[str, str]


class Mirror(NamedTuple):
    """A model in MLflow: versions by run key, and aliases with MLflow's numbers."""

    versions: dict[str, MirroredVersion]
    aliases: dict[str, str]


def is_quick_to_read(settings: Settings) -> bool:
    """Whether the list can be read without importing MLflow: from an SQLite file or a server."""
    return settings.tracking_uri.startswith(("sqlite:", "http://", "https://"))


def read(settings: Settings, model: str) -> Mirror:
    """Reads the list of versions.

    Raises:
        TransientError: the store cannot be read.
    """
    file = sqlite_file(settings)
    if file is not None:
        return _from_file(file, model) if file.exists() else Mirror({}, {})
    if settings.tracking_uri.startswith(("http://", "https://")):
        return _from_server(settings.tracking_uri, model)
    with connect(settings) as client:
        return _from_client(client, model)


def write(
    settings: Settings,
    model: str,
    description: str | None,
    records: Sequence[VersionRecord],
    aliases: Mapping[str, int | None],
) -> None:
    """Creates missing versions, and sets their tags and the model's aliases.

    A version whose run still exists is attached to the run; otherwise a run is created from the release.

    Args:
        settings: where MLflow is.
        model: its name.
        description: of the model; None leaves it as it is.
        records: the versions.
        aliases: name → the ledger's number of a version; None to delete the alias.

    Raises:
        TransientError: the store is locked, down, full or cannot be written.
    """
    with connect(settings) as client:
        experiment_id = ensure_experiment(client, settings, model, description)
        present = _from_client(client, model)
        for version in records:
            if version.run_key not in present.versions:
                number = _create(client, model, experiment_id, version)
                present.versions[version.run_key] = MirroredVersion(number, {})
            mirrored = present.versions[version.run_key]
            for name, value in version.tags.items():
                if mirrored.tags.get(name) != value:
                    client.set_model_version_tag(model, mirrored.number, name, value)
        numbers = {version.version: present.versions[version.run_key].number for version in records}
        for name, version_number in aliases.items():
            mlflow_number = None if version_number is None else numbers.get(version_number)
            if mlflow_number is None and name in present.aliases:
                client.delete_registered_model_alias(model, name)
            elif mlflow_number is not None and mlflow_number != present.aliases.get(name):
                client.set_registered_model_alias(model, name, mlflow_number)


def attach(settings: Settings, model: str, run_key: str, file: Path, folder: str) -> None:
    """Adds a file to the artifacts of the run behind a version.

    Raises:
        TransientError: MLflow has no such version, or the store cannot be written.
    """
    with connect(settings) as client:
        for version in client.search_model_versions(f"name = '{model}' and tags.`{RUN_KEY}` = '{run_key}'"):
            client.log_artifact(version.run_id, str(file), folder)
            return
    raise TransientError(
        f"MLflow has no version of {model} with the run key {run_key[:16]}",
        where=mask_passwords(settings.tracking_uri),
        remedy=f"towline status {model} adds it",
    )


def _create(client: "MlflowClient", model: str, experiment_id: str, version: VersionRecord) -> str:
    """Creates a missing version; returns MLflow's number."""
    tags = {RUN_KEY: version.run_key, **version.tags}
    query = f"tags.`{RUN_KEY}` = '{version.run_key}' and attributes.status = 'FINISHED'"
    for run in client.search_runs([experiment_id], query):
        models = run.outputs.model_outputs if run.outputs else ()
        if "mlflow.parentRunId" not in run.data.tags and models:
            model_id = models[0].model_id
            description = run.data.tags.get("mlflow.note.content", version.description)
            source = {"source": f"models:/{model_id}", "run_id": run.info.run_id, "model_id": model_id}
            return create_version(client, model, version.version, tags=tags, description=description, **source)
    run = _create_run(client, experiment_id, version, tags)
    source = {"source": f"{run.info.artifact_uri}/release", "run_id": run.info.run_id}
    return create_version(client, model, version.version, tags=tags, description=version.description, **source)


def _create_run(client: "MlflowClient", experiment_id: str, version: VersionRecord, tags: Mapping[str, str]) -> "Run":
    """Creates a run from the release of a version whose original run does not exist."""
    from mlflow.entities import Metric, Param

    run_tags = {**tags, "mlflow.source.name": "towline", "mlflow.note.content": version.description}
    run = client.create_run(experiment_id, tags=run_tags, run_name=f"{version.folder.name} from its release")
    now = int(time.time() * 1000)
    client.log_batch(
        run.info.run_id,
        metrics=[Metric(name, value, now, 0) for name, value in version.metrics.items()],
        params=[Param(name, value) for name, value in version.params.items()],
    )
    client.log_artifacts(run.info.run_id, str(version.folder), "release")
    if (version.folder / "plots").is_dir():
        client.log_artifacts(run.info.run_id, str(version.folder / "plots"), "plots")
    client.set_terminated(run.info.run_id)
    return run


def _mirror(versions: Sequence[tuple[str, dict[str, str]]], aliases: Mapping[str, str]) -> Mirror:
    """Indexes versions by run key; if a run has several versions, the newest counts."""
    by_key = {
        tags[RUN_KEY]: MirroredVersion(number, tags)
        for number, tags in sorted(versions, key=lambda version: int(version[0]))
        if RUN_KEY in tags
    }
    return Mirror(by_key, dict(aliases))


def _from_client(client: "MlflowClient", model: str) -> Mirror:
    registered = client.search_registered_models(f"name = '{model}'")
    versions = client.search_model_versions(f"name = '{model}'") if registered else []
    aliases = client.get_registered_model(model).aliases if registered else {}
    return _mirror([(str(item.version), dict(item.tags)) for item in versions], {k: str(v) for k, v in aliases.items()})


def _from_file(file: Path, model: str) -> Mirror:
    try:
        with contextlib.closing(
            sqlite3.connect(f"{file.absolute().as_uri()}?mode=rw", uri=True, timeout=1)
        ) as database:
            tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if not {"model_versions", "model_version_tags", "registered_model_aliases"} <= tables:
                return Mirror({}, {})
            query = "SELECT version FROM model_versions WHERE name = ? AND current_stage != 'Deleted_Internal'"
            tags: dict[str, dict[str, str]] = {str(number): {} for (number,) in database.execute(query, (model,))}
            query = "SELECT version, key, value FROM model_version_tags WHERE name = ?"
            for number, key, value in database.execute(query, (model,)):
                tags.get(str(number), {})[key] = value
            query = "SELECT alias, version FROM registered_model_aliases WHERE name = ?"
            aliases = {alias: str(number) for alias, number in database.execute(query, (model,))}
    except sqlite3.Error as error:
        raise TransientError(
            f"the MLflow store cannot be read: {error}",
            where=str(file),
            remedy="wait for the process that writes it, or restore it from a backup",
        ) from None
    return _mirror(list(tags.items()), aliases)


def _from_server(uri: str, model: str) -> Mirror:
    query = {"filter": f"name = '{model}'", "max_results": "10000"}
    versions = _get(uri, "model-versions/search", query).get("model_versions", [])
    registered = _get(uri, "registered-models/get", {"name": model}).get("registered_model", {}) if versions else {}
    try:
        tagged = [(v["version"], {tag["key"]: tag.get("value", "") for tag in v.get("tags", ())}) for v in versions]
        aliases = {alias["alias"]: alias["version"] for alias in registered.get("aliases", ())}
    except (KeyError, TypeError) as error:
        raise _unavailable(uri, f"this is not an MLflow response: {error}") from None
    return _mirror(tagged, aliases)


def _get(uri: str, endpoint: str, query: Mapping[str, str]) -> dict[str, Any]:
    parts = urllib.parse.urlsplit(uri)
    server = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"
    request = urllib.request.Request(f"{server}/api/2.0/mlflow/{endpoint}?{urllib.parse.urlencode(query)}")  # noqa: S310 - the user's own server
    user = urllib.parse.unquote(parts.username or os.environ.get("MLFLOW_TRACKING_USERNAME", ""))
    password = urllib.parse.unquote(parts.password or os.environ.get("MLFLOW_TRACKING_PASSWORD", ""))
    if user:
        pair = base64.b64encode(f"{user}:{password}".encode()).decode()
        request.add_header("Authorization", f"Basic {pair}")
    elif token := os.environ.get("MLFLOW_TRACKING_TOKEN"):
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:  # noqa: S310 - as above
            content: dict[str, Any] = json.load(response)
    except (OSError, ValueError) as error:
        raise _unavailable(uri, str(error)) from None
    return content


def _unavailable(uri: str, reason: str) -> TransientError:
    return TransientError(
        f"the MLflow server does not answer: {reason}",
        where=mask_passwords(uri),
        remedy="check that the MLflow server at TOWLINE_TRACKING_URI runs and accepts the user",
    )
