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
    from towline.registry.ledger import Ledger

    settings = Settings.from_environment()
    return settings, Ledger(settings.ledger_url)


def _known(ledger: "Ledger", name: str) -> str:
    from difflib import get_close_matches

    known = ledger.models()
    if name in known:
        return name
    near = get_close_matches(name, known, 1)
    remedy = f"did you mean {near[0]}?" if near else _those(known)
    raise ConfigError(f"no model called {name!r}", where="command line", remedy=remedy)


def only() -> str:
    """The name of the store's one model.

    Raises:
        ConfigError: there is none, or more than one.
    """
    return _only(stores()[1])


def _only(ledger: "Ledger") -> str:
    known = ledger.models()
    if len(known) != 1:
        raise ConfigError("which model?", where="command line", remedy=_those(known))
    return known[0]


def _those(known: "Sequence[str]") -> str:
    return f"name one of: {', '.join(known)}" if known else "there is none yet: towline run CONFIG makes one"


def which(ledger: "Ledger", wanted: str) -> "Entry":
    """``NAME@3``, or ``3`` where there is one model, or ``NAME`` for its champion."""
    name, at, number = wanted.partition("@")
    if not at and wanted.isdigit():
        name, number = _only(ledger), wanted
    name = _known(ledger, name)
    if at and not number.isdigit():
        raise ConfigError(f"not a version: {number!r}", where="command line", remedy=f"write {name}@3")
    entry = ledger.entry(name, int(number)) if number else ledger.champion(name)
    if entry is None:
        there = ", ".join(str(version.version) for version in ledger.versions(name))
        raise ConfigError(
            f"{name} has no version {number}" if number else f"{name} has no champion yet",
            where="command line",
            remedy=f"its versions: {there}",
        )
    return entry


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
    settings, ledger = stores()
    rows = []
    for model in [_known(ledger, name)] if name else ledger.models():
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
    from towline.release.manifest import read

    serves = champion is not None and champion.version == entry.version
    row: dict[str, object] = {
        "model": entry.model,
        "version": entry.version,
        "state": ledger.state(entry.model, entry.version),
        "since": (champion if serves and champion else entry).time[:16].replace("T", " "),
        "release": entry.release,
    }
    try:
        manifest = read(settings.store / entry.release)
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
    from towline.release.manifest import verify

    settings, ledger = stores()
    entry = which(ledger, version)
    directory = settings.store / entry.release
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

    The ledger, newest first, after its hash chain is checked: versions registered, promoted, refused and rolled back,
    and what the watch decided.

    \b
    Examples:
      towline history
      towline history bike-demand --limit 5
    """
    _, ledger = stores()
    ledger.verify()
    rows = ledger.history(_known(ledger, name) if name else None)
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
@click.argument("version")
@click.option("--reason", required=True, help="Why; kept in the ledger.")
@json_option
def promote(version: str, reason: str, as_json: bool) -> None:
    """Makes a version that passed the champion.

    \b
    Example:
      towline promote bike-demand@3 --reason "holds better at weekends"
    """
    from towline.registry.ledger import actor
    from towline.release.manifest import verify

    settings, ledger = stores()
    wanted = which(ledger, version)
    verify(settings.store / wanted.release)
    champion = ledger.champion(wanted.model)
    entry = ledger.promote_again(wanted.model, wanted.version, champion.version if champion else None, actor(), reason)
    _told(settings, ledger, entry, as_json)


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
    from towline.release.manifest import verify

    settings, ledger = stores()
    model = _known(ledger, name) if name else _only(ledger)
    verify(settings.store / ledger.rollback_target(model).release)
    _told(settings, ledger, ledger.rollback(model, actor(), reason), as_json)


def _told(settings: "Settings", ledger: "Ledger", entry: "Entry", as_json: bool) -> None:
    """Tells the change, then mirrors it to MLflow's aliases; what serves does not wait for MLflow."""
    instead = f" instead of {entry.previous}" if entry.previous else ""
    emit(entry.model_dump(), as_json, lambda: f"{entry.model}: version {entry.version} serves now{instead}")
    from towline.errors import Unavailable

    try:
        from towline.registry.tracking import align

        align(settings, entry.model, ledger.aliases(entry.model))
    except (Unavailable, ImportError) as error:
        click.echo(f"note: MLflow's aliases still say otherwise ({error}); the next run mirrors them", err=True)
