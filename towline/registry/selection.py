"""Selects a model or a version by the text a user gives: ``NAME``, ``NAME@3`` or, in a store with one model, ``3``."""

from collections.abc import Sequence
from difflib import get_close_matches

from towline.config import Settings
from towline.errors import ConfigError, ReleaseError
from towline.manifest import REMEDY, verify_release
from towline.registry.ledger import Entry, Ledger
from towline.registry.resolution import check_recorded


def require_model(settings: Settings, ledger: Ledger, name: str) -> str:
    """Returns ``name`` if the ledger has this model.

    Raises:
        ConfigError: there is no such model; names the nearest one.
        ReleaseError: the ledger lost its rows of the model.
    """
    known = ledger.models()
    if name in known:
        return name
    check_recorded(settings, ledger, name)
    near = get_close_matches(name, known, 1)
    remedy = f"did you mean {near[0]}?" if near else _choices(known)
    raise ConfigError(f"no model called {name!r}", where=f"model {name}", remedy=remedy)


def only_model(settings: Settings, ledger: Ledger) -> str:
    """Returns the name of the only model in the store.

    Raises:
        ConfigError: there is none, or more than one.
        ReleaseError: the ledger lost its rows of a model.
    """
    check_recorded(settings, ledger)
    known = ledger.models()
    if len(known) != 1:
        raise ConfigError("which model?", where="model", remedy=_choices(known))
    return known[0]


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
            remedy=f"its versions: {_versions(ledger, name)}",
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
            "the release is not the one that was judged: name, version, run key or digest differ from the ledger's",
            where=str(directory),
            remedy=REMEDY,
        )


def _choices(known: Sequence[str]) -> str:
    return f"name one of: {', '.join(known)}" if known else "there is none yet: towline run CONFIG makes one"


def _versions(ledger: Ledger, name: str) -> str:
    return ", ".join(f"{name}@{row.version} ({ledger.state(name, row.version)})" for row in ledger.versions(name))
