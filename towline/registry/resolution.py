"""From the name of a model to the directory of its release; and whether the ledger knows of the releases there are."""

import re
import shlex
from pathlib import Path

from towline.config import Settings
from towline.errors import ReleaseError
from towline.manifest import ReleaseLocation
from towline.registry.ledger import Ledger, open_ledger

_FOLDER = re.compile(r"v(\d+)-[0-9a-f]{12}")
_MODEL = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")


def find(release: str | Path, settings: Settings | None = None) -> ReleaseLocation:
    """The release of ``NAME`` (its champion), ``NAME@VERSION``, or of a path to one.

    Raises:
        ReleaseError: there is no such release; or the ledger is not what was written, or was lost.
        TransientError: the ledger cannot be read.
    """
    if isinstance(release, Path) or Path(release).is_dir():
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


def highest(settings: Settings, model: str) -> int:
    """The highest version number among a model's releases in the store, 0 without any; the ledger is not asked."""
    folders = (_FOLDER.fullmatch(path.name) for path in (settings.layout.releases / model).glob("v*"))
    return max((int(folder[1]) for folder in folders if folder), default=0)


def check_recorded(settings: Settings, ledger: Ledger, model: str | None = None) -> None:
    """Refuses a ledger without a row of a model that has releases in the store: it is not a new one, it was lost.

    Args:
        settings: where the store is.
        ledger: its ledger.
        model: its name; None: every model with releases.

    Raises:
        ReleaseError: names the model, and how to go on.
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
            remedy="if TOWLINE_LEDGER_URL names another ledger, correct it; else bring the store back from a backup "
            f"(towline restore FILE --force), or begin again without these releases: {away}",
        )
