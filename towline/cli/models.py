"""towline models, show, history, promote, rollback: all from the ledger and the releases, without MLflow."""

from typing import TYPE_CHECKING

import click

from towline.cli import emit, json_option
from towline.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from towline.config import Settings
    from towline.registry.ledger import Entry, Ledger


def stores() -> "tuple[Settings, Ledger]":
    from towline.config import Settings
    from towline.registry.ledger import open_ledger

    settings = Settings.from_environment()
    return settings, open_ledger(settings)


def _known(settings: "Settings", ledger: "Ledger", name: str) -> str:
    from difflib import get_close_matches

    from towline.registry.resolution import check_recorded

    known = ledger.models()
    if name in known:
        return name
    check_recorded(settings, ledger, name)
    near = get_close_matches(name, known, 1)
    remedy = f"did you mean {near[0]}?" if near else _those(known)
    raise ConfigError(f"no model called {name!r}", where="command line", remedy=remedy)


def only() -> str:
    """The name of the store's one model.

    Raises:
        ConfigError: there is none, or more than one.
        ReleaseError: the ledger was lost.
    """
    return _only(*stores())


def _only(settings: "Settings", ledger: "Ledger") -> str:
    from towline.registry.resolution import check_recorded

    check_recorded(settings, ledger)
    known = ledger.models()
    if len(known) != 1:
        raise ConfigError("which model?", where="command line", remedy=_those(known))
    return known[0]


def _those(known: "Sequence[str]") -> str:
    return f"name one of: {', '.join(known)}" if known else "there is none yet: towline run CONFIG makes one"


def which(settings: "Settings", ledger: "Ledger", wanted: str) -> "Entry":
    """``NAME@3``, or ``3`` where there is one model, or ``NAME`` for its champion."""
    name, at, number = wanted.partition("@")
    if not at and wanted.isdigit():
        name, number = _only(settings, ledger), wanted
    name = _known(settings, ledger, name)
    if at and not number.isdigit():
        raise ConfigError(f"not a version: {number!r}", where="command line", remedy=f"write {name}@3")
    entry = ledger.entry(name, int(number)) if number else ledger.champion(name)
    if entry is None:
        raise ConfigError(
            f"{name} has no version {number}" if number else f"{name} has no champion yet",
            where="command line",
            remedy=f"its versions: {_versions(ledger, name)}",
        )
    return entry


def released(entry: "Entry") -> "Entry":
    """The same row; ConfigError where its version has no release."""
    if not entry.release:
        raise ConfigError(
            f"{entry.model}@{entry.version} has no release yet: its run has not ended",
            where="command line",
            remedy="wait for the run to end, or give its command again: it goes on where it stopped",
        )
    return entry


def _versions(ledger: "Ledger", name: str) -> str:
    return ", ".join(f"{name}@{row.version} ({ledger.state(name, row.version)})" for row in ledger.versions(name))


def mirror(settings: "Settings", model: str) -> None:
    """Has MLflow show what the ledger says; what serves does not wait for MLflow."""
    from towline.errors import TransientError
    from towline.registry.mlflow.synchronization import mend, note

    try:
        mend(settings, model)
    except TransientError as error:
        click.echo(f"note: {note(error)}", err=True)
    except ImportError as error:
        click.echo(f"note: MLflow is not told, it is not installed here: {error}", err=True)


@click.command()
@click.argument("name", required=False)
@json_option
def models(name: str | None, as_json: bool) -> None:
    """Lists what serves, or one model's versions.

    \b
    Examples:
      towline models
      towline models bike-demand
    """
    from towline.registry.resolution import check_recorded

    settings, ledger = stores()
    if not name:
        check_recorded(settings, ledger)
    rows = []
    for model in [_known(settings, ledger, name)] if name else ledger.models():
        champion, versions = ledger.champion(model), ledger.versions(model)
        if not name:  # one row a model: its champion, else its newest
            versions = [entry for entry in versions if champion and entry.version == champion.version] or versions[-1:]
        rows += [_row(settings, ledger, entry, champion) for entry in versions]

    def text() -> str:
        from towline.cli.screen import table

        if not rows:
            return "no models yet: towline run CONFIG makes one"
        return table(
            ["model", "version", "state", "since", "holdout", "rows", "estimator"],
            [[r["model"], r["version"], r["state"], r["since"], r["holdout"], r["rows"], r["estimator"]] for r in rows],
        )

    emit(rows, as_json, text)


def _row(settings: "Settings", ledger: "Ledger", entry: "Entry", champion: "Entry | None") -> dict[str, object]:
    from towline.errors import ReleaseError
    from towline.manifest import read

    serves = champion is not None and champion.version == entry.version
    row: dict[str, object] = {
        "model": entry.model,
        "version": entry.version,
        "state": ledger.state(entry.model, entry.version),
        "since": (champion if serves and champion else entry).time[:16].replace("T", " "),
        "release": entry.release,
    }
    if not entry.release:
        return row | {"holdout": "no release yet", "rows": None, "estimator": None}
    try:
        manifest = read(settings.layout.release(entry.release))
    except ReleaseError:
        return row | {"holdout": "release gone", "rows": None, "estimator": None}
    holdout = f"{manifest.primary} {manifest.metrics[manifest.primary].text()}"
    return row | {"holdout": holdout, "rows": manifest.dataset["rows"], "estimator": manifest.estimator}


@click.command()
@click.argument("version")
@json_option
def show(version: str, as_json: bool) -> None:
    """Shows a version: data, metrics, history.

    \b
    Examples:
      towline show bike-demand         the champion
      towline show bike-demand@3
    """
    from towline.manifest import verify

    settings, ledger = stores()
    entry = released(which(settings, ledger, version))
    directory = settings.layout.release(entry.release)
    manifest = verify(directory)
    past = [row for row in ledger.history(entry.model) if row.version == entry.version]

    def text() -> str:
        from towline.cli.screen import version_page

        return version_page(manifest, past, directory)

    emit({"manifest": manifest.model_dump(mode="json"), "history": [row.model_dump() for row in past]}, as_json, text)


@click.command()
@click.argument("name", required=False)
@click.option("--limit", default=20, show_default=True, help="How many rows at most.")
@click.option("--all", "everything", is_flag=True, help="Also decisions to do nothing.")
@json_option
def history(name: str | None, limit: int, everything: bool, as_json: bool) -> None:
    """Who served, when and why.

    The ledger, newest first: versions registered, promoted, refused and rolled back, and what the watch decided.

    \b
    Examples:
      towline history
      towline history bike-demand --limit 5
    """
    from towline.registry.resolution import check_recorded

    settings, ledger = stores()
    if not name:
        check_recorded(settings, ledger)
    rows = ledger.history(_known(settings, ledger, name) if name else None)
    rows = [row for row in rows if everything or row.evidence.get("action") != "nothing"][:limit]

    def text() -> str:
        from towline.cli.screen import moment, table

        if not rows:
            return "nothing has happened yet: towline run CONFIG begins"
        return table(
            ["time (UTC)", "event", "model", "version", "instead of", "actor", "reason"],
            [[*moment(row), row.model, row.version, row.previous, row.actor, row.reason] for row in rows],
        )

    emit([row.model_dump() for row in rows], as_json, text)


@click.command()
@click.argument("version", metavar="NAME@VERSION")
@click.option("--reason", required=True, help="Why; kept in the ledger.")
@json_option
def promote(version: str, reason: str, as_json: bool) -> None:
    """Makes a version that passed the champion.

    \b
    Example:
      towline promote bike-demand@3 --reason "holds better at weekends"
    """
    from towline.registry.ledger import actor

    settings, ledger = stores()
    wanted = which(settings, ledger, _numbered(settings, ledger, version))
    champion = ledger.champion(wanted.model)
    if champion is None or champion.version != wanted.version:
        _judged_release(settings, wanted)
    entry = ledger.promote_again(wanted.model, wanted.version, champion.version if champion else None, actor(), reason)
    _told(settings, entry, as_json, changed=champion is None or entry.seq != champion.seq)


def _numbered(settings: "Settings", ledger: "Ledger", version: str) -> str:
    """NAME@3 as it was given; ConfigError where it names no version."""
    name, at, number = version.partition("@")
    if at and number:
        return version
    name = _only(settings, ledger) if name.isdigit() else _known(settings, ledger, name)
    raise ConfigError(
        f"not a version: {version!r}",
        where="command line",
        remedy=f"write NAME@VERSION; the versions of {name}: {_versions(ledger, name)}",
    )


def _judged_release(settings: "Settings", entry: "Entry") -> None:
    """Checks that the release a row names is whole, and the very one that was judged."""
    from towline.errors import ReleaseError
    from towline.manifest import REMEDY, verify

    if not entry.release:  # the ledger refuses what was never judged
        return
    manifest = verify(settings.layout.release(entry.release))
    recorded = (entry.model, entry.version, entry.run_key, entry.evidence.get("release", manifest.digest))
    if (manifest.name, manifest.version, manifest.run_key, manifest.digest) != recorded:
        raise ReleaseError(
            "the release is not the one that was judged: name, version, run key or digest differ from the ledger's",
            where=str(settings.layout.release(entry.release)),
            remedy=REMEDY,
        )


@click.command()
@click.argument("name", required=False)
@click.option("--reason", default="rolled back by hand", show_default=True, help="Why; kept in the ledger.")
@json_option
def rollback(name: str | None, reason: str, as_json: bool) -> None:
    """Puts the champion before the present one back.

    \b
    Examples:
      towline rollback
      towline rollback bike-demand --reason "errors on the new weather codes"
    """
    from towline.registry.ledger import actor

    settings, ledger = stores()
    model = _known(settings, ledger, name) if name else _only(settings, ledger)
    _judged_release(settings, ledger.rollback_target(model))
    _told(settings, ledger.rollback(model, actor(), reason), as_json)


def _told(settings: "Settings", entry: "Entry", as_json: bool, *, changed: bool = True) -> None:
    """Tells what serves, then has MLflow show it."""
    instead = f" instead of {entry.previous}" if entry.previous else ""
    text = f"{entry.model}: version {entry.version} serves now{instead}"
    if not changed:
        text = f"{entry.model}: version {entry.version} serves already, since {entry.time[:16].replace('T', ' ')} UTC"
    emit(entry.model_dump() | {"changed": changed}, as_json, lambda: text)
    mirror(settings, entry.model)
