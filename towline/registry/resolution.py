"""Resolution finds the release of a model's name; it also checks that the ledger knows the releases in the store."""

import re
import shlex
from pathlib import Path

from towline.config import Settings
from towline.errors import ReleaseError
from towline.manifest import MANIFEST, ReleaseLocation
from towline.registry.ledger import Ledger, open_ledger

_FOLDER = re.compile(r"v(\d+)-[0-9a-f]{12}")
_MODEL = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")


def find(release: str | Path, settings: Settings | None = None) -> ReleaseLocation:
    """The release of ``NAME`` (its champion), ``NAME@VERSION``, or of a path to one.

    Raises:
        ReleaseError: there is no such release, or the ledger was changed or lost.
        TransientError: the ledger cannot be read.
    """
    if isinstance(release, Path) or _is_release_folder(release):
        return ReleaseLocation(Path(release))
    settings = settings or Settings.from_environment()
    ledger = open_ledger(settings)
    name, at, version = release.partition("@")
    if at and not version.isdecimal():
        raise ReleaseError(f"not a version: {version!r}", where=release, remedy=f"write {name}@3")
    entry = ledger.entry(name, int(version)) if at else ledger.champion(name)
    if entry is None:
        check_recorded(settings, ledger, name)
        there = ", ".join(f"{name}@{row.version}" for row in ledger.versions(name)) or ", ".join(ledger.models())
        what = f"{name} has no version {version}" if at else f"no model called {name!r} serves"
        raise ReleaseError(what, where=str(settings.store), remedy=f"there are: {there or 'none yet'}")
    if not entry.release:
        raise ReleaseError(
            f"{release} has no release yet: its run has not ended",
            where=str(settings.store),
            remedy="wait for the run to end, or run its command again: it resumes from the last completed step",
        )
    return ReleaseLocation(settings.layout.release(entry.release), ledger.digest(entry))


def _is_release_folder(text: str) -> bool:
    """Whether text names a folder; a folder that merely has the name of a model does not count."""
    folder = Path(text)
    return folder.is_dir() and (not _MODEL.fullmatch(text) or (folder / MANIFEST).exists())


def highest(settings: Settings, model: str) -> int:
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
        ReleaseError: the ledger has no row of a model; says what to do.
        TransientError: the ledger cannot be read.
    """
    home = settings.layout.releases
    names = [model] if model else sorted(path.name for path in home.glob("*") if _MODEL.fullmatch(path.name))
    missing = [name for name in names if highest(settings, name)]
    missing = sorted(set(missing) - set(ledger.models())) if missing else []
    if missing:
        name = missing[0]
        away = shlex.join(["mv", str(home / name), str(home / f"{name}.lost")])
        raise ReleaseError(
            f"the ledger has no row of {name}, but the store holds its releases up to version "
            f"{highest(settings, name)}: the ledger was lost, or is another one",
            where=str(home / name),
            remedy="if TOWLINE_LEDGER_URL names another ledger, correct it; else restore the store from a backup "
            f"(towline restore FILE --force), or start again without these releases: {away}",
        )
