"""Synchronization compares MLflow with the ledger, and adds the versions, tags and aliases that MLflow lacks.

MLflow is not used for decisions. If it lost data, even its whole store, it is rebuilt from the ledger and the releases.
"""

import json
import sys
from collections.abc import Sequence
from typing import Any

from towline import files
from towline.config import Settings, read_config
from towline.errors import ReleaseError, TowlineError, TransientError
from towline.manifest import MANIFEST, verify_release
from towline.registry.ledger import VERDICTS, open_ledger
from towline.registry.mlflow import mirror
from towline.registry.mlflow.client import VERSION
from towline.registry.mlflow.mirror import Mirror, VersionRecord


def find_differences(settings: Settings, model: str) -> tuple[str, ...]:
    """The differences between MLflow and the ledger, one phrase each; none if no MLflow is set.

    This is cheap if ``mirror.is_quick_to_read`` holds.

    Raises:
        ReleaseError: the ledger was changed.
        TransientError: the ledger or MLflow cannot be read.
    """
    if not settings.tracking_uri:
        return ()
    records, aliases = _expected(settings, model)
    return _compare(records, aliases, mirror.read(settings, model)) if records else ()


def synchronize(settings: Settings, model: str) -> tuple[str, ...]:
    """Removes the differences between MLflow and the ledger; returns them with the result for each.

    Raises:
        ReleaseError: the ledger was changed.
        TransientError: the ledger or MLflow is down, locked or full.
    """
    if not find_differences(settings, model):
        return ()
    with files.exclusive_lock(settings.layout.synchronization_lock):
        differences = find_differences(settings, model)
        if differences:
            records, aliases = _expected(settings, model)
            present = mirror.read(settings, model).versions
            versions = [record if record.run_key in present else _with_run(record) for record in records]
            mirror.write(settings, model, _description(records), [record for record in versions if record], aliases)
        remaining = find_differences(settings, model) if differences else ()
    results = {item: "its release is damaged" if item in remaining else "put back" for item in differences}
    return tuple(f"{item}: {result}" for item, result in results.items())


def update_mlflow(settings: Settings, model: str) -> str:
    """Copies the state of the ledger to MLflow; returns a message if that fails, else an empty text."""
    try:
        synchronize(settings, model)
    except TransientError as error:
        return unsynchronized_note(error)
    except ImportError as error:
        return f"MLflow was not updated, it is not installed here: {error}"
    return ""


def unsynchronized_note(error: TransientError) -> str:
    """The note of a run or command that could not update MLflow; its decision is in the ledger all the same."""
    return f"MLflow does not show this yet ({error.what}); the next run, `towline status` or `towline up` updates it"


def _expected(settings: Settings, model: str) -> tuple[list[VersionRecord], dict[str, int | None]]:
    """The versions with a release in the store, by number, with the tags from the ledger; and the aliases."""
    ledger = open_ledger(settings)
    versions: dict[int, dict[str, Any]] = {}
    for row in ledger.rows(model):
        if row.event == "registered":
            versions[row.version] = {"run_key": row.run_key, "tags": {VERSION: str(row.version)}}
        version = versions.get(row.version)
        if version is None or not row.release or row.event == "decided":
            continue
        version["folder"] = settings.layout.release(row.release)
        if row.event == "packaged":
            version["tags"] |= {name: str(row.evidence[name]) for name in ("image", "image_id")}
        elif row.event in VERDICTS:
            verdict = str(row.evidence.get("verdict", ""))
            version["tags"] |= {"verdict": verdict, "release": version["folder"].name}
    records = [
        VersionRecord(version=number, **version)
        for number, version in sorted(versions.items())
        if "folder" in version and (version["folder"] / MANIFEST).is_file()
    ]
    return records, ledger.aliases(model)


def _compare(records: Sequence[VersionRecord], aliases: dict[str, int | None], present: Mirror) -> tuple[str, ...]:
    numbers = {version.version: present.versions.get(version.run_key) for version in records}
    differences = []
    for version in records:
        mirrored = present.versions.get(version.run_key)
        serves = ", which serves," if version.version == aliases["champion"] else ""
        if mirrored is None:
            differences.append(f"version {version.version}{serves} is missing")
        elif any(mirrored.tags.get(name) != value for name, value in version.tags.items()):
            differences.append(f"version {version.version}{serves} has other tags")
    for name, number in aliases.items():
        mirrored = None if number is None else numbers.get(number)
        if present.aliases.get(name) != (mirrored.number if mirrored else None):
            differences.append(
                f"the alias {name} is not on version {number}" if number else f"the alias {name} should not exist"
            )
    return tuple(differences)


def _with_run(version: VersionRecord) -> VersionRecord | None:
    """A version with the parameters and metrics of its release, named as in a run; None if the release is damaged."""
    try:
        manifest = verify_release(version.folder)
    except ReleaseError:
        return None
    metrics: dict[str, float] = {}
    for name, interval in manifest.metrics.items():
        values = {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}
        metrics |= {key: value for key, value in values.items() if value is not None}
    params = {
        "estimator": manifest.estimator,
        "hyperparameters": json.dumps(manifest.params, default=str),
        "task": manifest.task,
        "rows": str(manifest.dataset["rows"]),
        "seed": str(manifest.seeds["run"]),
    }
    best = manifest.metrics[manifest.primary]
    text = (
        f"{manifest.estimator.rpartition('.')[2]}: {manifest.primary} {best.text()}\n\n"
        f"Made from the release `{version.folder.name}`: the original run is no longer in MLflow.\n\n"
        f"Data: `{manifest.dataset['source']}`, sha256 `{manifest.dataset['digest']}`"
    )
    short = {name: value[:6000] for name, value in params.items()}
    return version.model_copy(update={"params": short, "metrics": metrics, "description": text})


def _description(records: Sequence[VersionRecord]) -> str | None:
    """The model's description in the newest release's config; None if the config cannot be read."""
    try:
        return read_config(records[-1].folder / "config.yaml").description
    except TowlineError:
        return None


if __name__ == "__main__":  # a separate process, so that its caller does not import MLflow
    for name in sys.argv[1:]:
        synchronize(Settings.from_environment(), name)
