"""Selection finds the model, version or release that a user names: ``NAME``, ``NAME@3`` or a release's folder.

In a store with one model, ``3`` is enough. It also checks that the ledger has rows for the releases in the store.
"""

import re
import shlex
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from towline.config import Settings
from towline.errors import ConfigError, ReleaseError
from towline.manifest import MANIFEST, REMEDY, ReleaseLocation, verify_release
from towline.registry.ledger import Entry, Ledger, open_ledger

_FOLDER = re.compile(r"v(\d+)-[0-9a-f]{12}")
_MODEL = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")


def require_model(settings: Settings, ledger: Ledger, name: str) -> str:
    """Returns ``name`` if the ledger has this model.

    Raises:
        ConfigError: there is no such model; names the nearest one.
        ReleaseError: the ledger lost its rows of the model.
    """
    models = ledger.models()
    if name in models:
        return name
    check_recorded(settings, ledger, name)
    near = get_close_matches(name, models, 1)
    remedy = f"did you mean {near[0]}?" if near else _choices(models)
    raise ConfigError(f"no model called {name!r}", where=f"model {name}", remedy=remedy)


def only_model(settings: Settings, ledger: Ledger) -> str:
    """Returns the name of the only model in the store.

    Raises:
        ConfigError: there is no model, or more than one.
        ReleaseError: the ledger lost its rows of a model.
    """
    check_recorded(settings, ledger)
    models = ledger.models()
    if len(models) != 1:
        raise ConfigError(
            "no model is named, and the store does not have exactly one", where="model", remedy=_choices(models)
        )
    return models[0]


def select_version(settings: Settings, ledger: Ledger, text: str, *, numbered: bool = False) -> Entry:
    """Returns the ledger's row of a version.

    Args:
        settings: the store.
        ledger: its ledger.
        text: ``NAME@3``; ``3`` in a store with one model; ``NAME`` for the champion.
        numbered: require a version number: reject ``NAME`` alone.

    Raises:
        ConfigError: there is no such model or version; lists the versions that exist.
        ReleaseError: the ledger lost its rows of the model.
    """
    name, at, number = text.partition("@")
    if not at and text.isdigit():
        name, number = only_model(settings, ledger), text
    name = require_model(settings, ledger, name)
    if (at and not number.isdigit()) or (numbered and not at):
        raise ConfigError(
            f"not a version: {text!r}",
            where=f"model {name}",
            remedy=f"write {name}@VERSION; the versions of {name}: {_versions(ledger, name)}",
        )
    entry = ledger.entry(name, int(number)) if number else ledger.champion(name)
    if entry is None:
        raise ConfigError(
            f"{name} has no version {number}" if number else f"{name} has no champion yet",
            where=f"model {name}",
            remedy=f"name one of its versions: {_versions(ledger, name)}",
        )
    return entry


def require_release(entry: Entry) -> Entry:
    """Returns the same row if its version has a release.

    Raises:
        ConfigError: its run has not ended.
    """
    if not entry.release:
        raise ConfigError(
            f"{entry.model}@{entry.version} has no release yet: its run has not ended",
            where=f"model {entry.model}",
            remedy="wait until the run ends; if it was interrupted, run its command again",
        )
    return entry


def find_release(release: str | Path, settings: Settings | None = None) -> ReleaseLocation:
    """The release of ``NAME`` (its champion), ``NAME@VERSION``, or of a path to one.

    Raises:
        ConfigError: there is no such model or version, or it has no release yet; lists the versions that exist.
        ReleaseError: the ledger was changed or lost.
        TransientError: the ledger cannot be read.
    """
    if isinstance(release, Path) or _is_release_folder(release):
        return ReleaseLocation(Path(release))
    settings = settings or Settings.from_environment()
    ledger = open_ledger(settings)
    entry = require_release(select_version(settings, ledger, release))
    return ReleaseLocation(settings.layout.release(entry.release), ledger.digest(entry))


def check_judged_release(settings: Settings, entry: Entry) -> None:
    """Checks that a version's release is complete and is the release that the gate judged.

    Raises:
        ReleaseError: a file, the name, the version, the run key or the digest differs.
    """
    if not entry.release:  # the ledger rejects a version without a verdict
        return
    directory = settings.layout.release(entry.release)
    manifest = verify_release(directory)
    recorded = (entry.model, entry.version, entry.run_key, entry.evidence.get("release", manifest.digest))
    if (manifest.name, manifest.version, manifest.run_key, manifest.digest) != recorded:
        raise ReleaseError(
            "the gate did not check this release: name, version, run key or digest differ from the ledger's",
            where=str(directory),
            remedy=REMEDY,
        )


def highest_version(settings: Settings, model: str) -> int:
    """The highest version number among a model's releases in the store, 0 without releases; the ledger is not read."""
    folders = (_FOLDER.fullmatch(path.name) for path in (settings.layout.releases / model).glob("v*"))
    return max((int(folder[1]) for folder in folders if folder), default=0)


def check_recorded(settings: Settings, ledger: Ledger, model: str | None = None) -> None:
    """Checks that the ledger has rows of each model with releases in the store: otherwise the ledger was lost.

    Args:
        settings: where the store is.
        ledger: its ledger.
        model: its name; None: every model with releases.

    Raises:
        ReleaseError: the ledger has no row of a model; has the remedy.
        TransientError: the ledger cannot be read.
    """
    home = settings.layout.releases
    names = [model] if model else sorted(path.name for path in home.glob("*") if _MODEL.fullmatch(path.name))
    missing = [name for name in names if highest_version(settings, name)]
    missing = sorted(set(missing) - set(ledger.models())) if missing else []
    if missing:
        name = missing[0]
        command = shlex.join(["mv", str(home / name), str(home / f"{name}.lost")])
        raise ReleaseError(
            f"the ledger has no row of {name}, but the store holds its releases up to version "
            f"{highest_version(settings, name)}: the ledger was lost, or is another one",
            where=str(home / name),
            remedy="if TOWLINE_LEDGER_URL names another ledger, correct it; else restore the store from a backup "
            f"(towline restore FILE --force), or start again without these releases: {command}",
        )


def _is_release_folder(text: str) -> bool:
    """Whether text names a folder; a folder that merely has the name of a model does not count."""
    folder = Path(text)
    return folder.is_dir() and (not _MODEL.fullmatch(text) or (folder / MANIFEST).exists())


def _choices(models: Sequence[str]) -> str:
    return f"name one of: {', '.join(models)}" if models else "no model exists yet: towline run CONFIG trains one"


def _versions(ledger: Ledger, name: str) -> str:
    return ", ".join(f"{name}@{row.version} ({ledger.state(name, row.version)})" for row in ledger.versions(name))
