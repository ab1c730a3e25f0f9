"""towline models, show, history, promote and rollback; they read the ledger and the releases, not MLflow."""

from typing import TYPE_CHECKING

import click

from towline.cli import emit, json_option
from towline.cli.arguments import reason_option
from towline.formatting import format_time

if TYPE_CHECKING:
    from towline.api import ChampionChange
    from towline.config import Settings
    from towline.registry.ledger import Ledger


def stores() -> "tuple[Settings, Ledger]":
    from towline.config import Settings
    from towline.registry.ledger import open_ledger

    settings = Settings.from_environment()
    return settings, open_ledger(settings)


@click.command(short_help="Lists the models, or the versions of one model.")
@click.argument("name", required=False)
@json_option
def models(name: str | None, as_json: bool) -> None:
    """Lists the models with their champions, or the versions of one model.

    \b
    Examples:
      towline models
      towline models bike-demand
    """
    from towline import api

    rows = [row.model_dump() for row in api.models(name)]

    def text() -> str:
        from towline.cli.screen import table

        if not rows:
            return "no models yet: towline run CONFIG trains one"
        return table(
            ["model", "version", "state", "since", "holdout", "rows", "estimator"],
            [[r["model"], r["version"], r["state"], r["since"], r["holdout"], r["rows"], r["estimator"]] for r in rows],
        )

    emit(rows, as_json, text)


@click.command()
@click.argument("version", metavar="NAME[@VERSION]")
@json_option
def show(version: str, as_json: bool) -> None:
    """Shows a version: data, metrics, history.

    \b
    Examples:
      towline show bike-demand         the champion
      towline show bike-demand@3
    """
    from towline import api

    details = api.show(version)

    def text() -> str:
        from towline.cli.screen import version_page

        return version_page(details.manifest, details.history, details.directory)

    history = [row.model_dump() for row in details.history]
    emit({"manifest": details.manifest.model_dump(mode="json"), "history": history}, as_json, text)


@click.command()
@click.argument("name", required=False)
@click.option("--limit", default=20, show_default=True, type=click.IntRange(1), help="Maximum number of rows.")
@click.option("--all", "everything", is_flag=True, help="Include decisions to do nothing.")
@json_option
def history(name: str | None, limit: int, everything: bool, as_json: bool) -> None:
    """Shows the ledger, newest rows first.

    Its rows are registrations, promotions, refusals, rollbacks, approvals, rollouts, images, scoring jobs and
    decisions.

    \b
    Examples:
      towline history
      towline history bike-demand --limit 5
    """
    from towline.registry.selection import check_recorded, require_model

    settings, ledger = stores()
    if not name:
        check_recorded(settings, ledger)
    rows = ledger.history(require_model(settings, ledger, name) if name else None)
    rows = [row for row in rows if everything or row.evidence.get("action") != "nothing"][:limit]

    def text() -> str:
        from towline.cli.screen import table, time_and_event

        if not rows:
            return "the ledger is empty: towline run CONFIG writes its first rows"
        return table(
            ["time (UTC)", "event", "model", "version", "instead of", "actor", "reason"],
            [[*time_and_event(row), row.model, row.version, row.previous, row.actor, row.reason] for row in rows],
        )

    emit([row.model_dump() for row in rows], as_json, text)


@click.command()
@click.argument("version", metavar="NAME@VERSION")
@reason_option(required=True)
@json_option
def promote(version: str, reason: str, as_json: bool) -> None:
    """Makes a version that has passed the gate the champion.

    \b
    Example:
      towline promote bike-demand@3 --reason "holds better at weekends"
    """
    from towline import api

    _print_change(api.promote(version, reason=reason), as_json)


@click.command()
@click.argument("name", required=False)
@reason_option(default="rolled back by hand", show_default=True)
@json_option
def rollback(name: str | None, reason: str, as_json: bool) -> None:
    """Makes the previous champion champion again.

    \b
    Examples:
      towline rollback
      towline rollback bike-demand --reason "errors on the new weather codes"
    """
    from towline import api

    _print_change(api.rollback(name, reason=reason), as_json)


def _print_change(change: "ChampionChange", as_json: bool) -> None:
    instead = f" instead of {change.previous}" if change.previous else ""
    text = f"{change.model}: version {change.version} serves now{instead}"
    if not change.changed:
        since = format_time(change.time)
        text = f"{change.model}: version {change.version} is the champion already, since {since} UTC"
    emit(change.row | {"changed": change.changed}, as_json, lambda: text)
    if change.note:
        click.echo(f"note: {change.note}", err=True)
