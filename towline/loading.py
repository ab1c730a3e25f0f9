"""From the name of a model to the directory of its release."""

from pathlib import Path

from towline.config import Settings
from towline.errors import ReleaseError
from towline.release.manifest import Recorded


def find(release: str | Path, settings: Settings | None = None) -> Recorded:
    """The release of ``NAME`` (its champion), ``NAME@VERSION``, or of a path to one.

    Raises:
        ReleaseError: there is no such release.
        Unavailable: the ledger cannot be read.
    """
    from towline.registry.ledger import Ledger

    if isinstance(release, Path) or Path(release).is_dir():
        return Recorded(Path(release))
    settings = settings or Settings.from_environment()
    ledger = Ledger(settings.ledger_url)
    name, at, version = release.partition("@")
    if at and not version.isdecimal():
        raise ReleaseError(f"not a version: {version!r}", where=release, remedy=f"write {name}@3")
    entry = ledger.entry(name, int(version)) if at else ledger.champion(name)
    if entry is None:
        there = ", ".join(f"{name}@{row.version}" for row in ledger.versions(name)) or ", ".join(ledger.models())
        what = f"{name} has no version {version}" if at else f"no model called {name!r} serves"
        raise ReleaseError(what, where=str(settings.store), remedy=f"there are: {there or 'none yet'}")
    return Recorded(settings.store / entry.release, ledger.digest(entry))
