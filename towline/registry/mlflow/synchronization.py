"""MLflow as the mirror of the ledger: what it lacks, and how it is brought back.

Nothing is decided by what MLflow says. What it lacks (a version, an alias, a tag, the whole store) is put back from the
ledger and the releases.
"""

import json
import sys
from collections.abc import Sequence
from typing import Any

from towline import files
from towline.config import Settings, read_config
from towline.errors import ReleaseError, TowlineError, TransientError
from towline.manifest import MANIFEST, verify_release
from towline.registry.ledger import Entry, open_ledger
from towline.registry.mlflow import mirror
from towline.registry.mlflow.mirror import VERSION, Mirror, Shown


def find_differences(settings: Settings, model: str) -> tuple[str, ...]:
    """What MLflow does not show as the ledger has it, one sentence each; nothing where no MLflow is set.

    It is cheap where ``mirror.is_quick_to_read`` says so.

    Raises:
        ReleaseError: the ledger is not what was written.
        TransientError: the ledger or MLflow cannot be read.
    """
    if not settings.tracking_uri:
        return ()
    ledger = open_ledger(settings)
    shown, aliases = _shown(settings, ledger.rows(model)), ledger.aliases(model)
    return _differences(shown, aliases, mirror.read(settings, model)) if shown else ()


def synchronize(settings: Settings, model: str) -> tuple[str, ...]:
    """Puts back what MLflow does not show as the ledger has it; returns what that was and what came of it.

    Raises:
        ReleaseError: the ledger is not what was written.
        TransientError: the ledger or MLflow is away, locked or full.
    """
    if not find_differences(settings, model):
        return ()
    with files.exclusive_lock(settings.layout.synchronization_lock):
        lacking = find_differences(settings, model)
        if lacking:
            ledger = open_ledger(settings)
            shown, aliases = _shown(settings, ledger.rows(model)), ledger.aliases(model)
            present = mirror.read(settings, model).versions
            versions = [one if one.run_key in present else _described(one) for one in shown]
            mirror.write(settings, model, _description(shown), [one for one in versions if one], aliases)
        left = find_differences(settings, model) if lacking else ()
    return tuple(f"{one}: {'its release is damaged' if one in left else 'put back'}" for one in lacking)


def unsynchronized_note(error: TransientError) -> str:
    """What a run, or a command, says where MLflow could not be told: what was decided stands all the same."""
    return f"MLflow does not show this yet ({error.what}); the next run, `towline status` or `towline up` puts it there"


def _shown(settings: Settings, rows: Sequence[Entry]) -> list[Shown]:
    """The versions with a release in the store, by number, with the tags that the ledger's rows make."""
    versions: dict[int, dict[str, Any]] = {}
    for row in rows:
        if row.event == "registered":
            versions[row.version] = {"run_key": row.run_key, "tags": {VERSION: str(row.version)}}
        version = versions.get(row.version)
        if version is None or not row.release or row.event == "decided":
            continue
        version["folder"] = settings.layout.release(row.release)
        if row.event == "packaged":
            version["tags"] |= {name: str(row.evidence[name]) for name in ("image", "image_id")}
        elif row.event in ("promoted", "refused"):
            verdict = str(row.evidence.get("verdict", ""))
            version["tags"] |= {"verdict": verdict, "release": version["folder"].name}
    return [
        Shown(version=number, **version)
        for number, version in sorted(versions.items())
        if "folder" in version and (version["folder"] / MANIFEST).is_file()
    ]


def _differences(shown: Sequence[Shown], aliases: dict[str, int | None], present: Mirror) -> tuple[str, ...]:
    numbers = {version.version: present.versions.get(version.run_key) for version in shown}
    lacking = []
    for version in shown:
        mirrored = present.versions.get(version.run_key)
        serves = ", which serves," if version.version == aliases["champion"] else ""
        if mirrored is None:
            lacking.append(f"version {version.version}{serves} is missing")
        elif any(mirrored.tags.get(name) != value for name, value in version.tags.items()):
            lacking.append(f"version {version.version}{serves} has other tags")
    for name, wanted in aliases.items():
        mirrored = None if wanted is None else numbers.get(wanted)
        if present.aliases.get(name) != (mirrored.number if mirrored else None):
            lacking.append(
                f"the alias {name} is not on version {wanted}" if wanted else f"the alias {name} is too much"
            )
    return tuple(lacking)


def _described(version: Shown) -> Shown | None:
    """A version with what its release says of it, under the names that a run has; None where that is damaged."""
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


def _description(shown: Sequence[Shown]) -> str | None:
    """What the newest release's config says of the model; None where that cannot be read."""
    try:
        return read_config(shown[-1].folder / "config.yaml").description
    except TowlineError:
        return None


if __name__ == "__main__":  # a process of its own: its caller is not to carry MLflow
    for name in sys.argv[1:]:
        synchronize(Settings.from_environment(), name)
