"""towline keys: creates, lists and revokes API keys."""

import datetime as dt
from typing import TYPE_CHECKING, Any

import click

from towline.cli import emit, json_option
from towline.cli.arguments import DurationType
from towline.formatting import format_time

if TYPE_CHECKING:
    from towline.api_keys import ApiKey, Scope


@click.group()
def keys() -> None:
    """Manages the API keys of the services of this store.

    \b
    Examples:
      towline keys create shop --expires 90d
      towline keys list
      towline keys revoke 1f0c9a3e
    """


@keys.command()
@click.argument("name")
@click.option("--scope", "scopes", multiple=True, type=click.Choice(["predict", "admin"]), default=["predict"],
              show_default=True, help="Permission of the key; admin includes predict. Can be repeated.")  # fmt: skip
@click.option(
    "--expires", type=DurationType(positive=True), metavar="DURATION",
    help="Lifetime, e.g. 90d or 12h; default: unlimited.",
)  # fmt: skip
@json_option
def create(name: str, scopes: "tuple[Scope, ...]", expires: dt.timedelta | None, as_json: bool) -> None:
    """Creates a key for NAME and shows it once.

    \b
    Examples:
      towline keys create shop --scope predict --expires 90d
      towline keys create operator --scope admin
    """
    from towline.api_keys import create_key
    from towline.config import Settings

    text, key = create_key(Settings.from_environment().store, name, scopes, expires)

    def text_output() -> str:
        until = f", until {key.expires:%Y-%m-%d %H:%M} UTC" if key.expires else ""
        click.echo(f"key {key.id} for {key.name} ({', '.join(key.scopes)}{until}); it is not shown again", err=True)
        return text

    emit({"key": text, **_describe(key)}, as_json, text_output)


@keys.command("list")
@json_option
def list_keys(as_json: bool) -> None:
    """Lists the keys, without their text.

    \b
    Example:
      towline keys list
    """
    from towline.api_keys import read_keys
    from towline.config import Settings

    descriptions = [_describe(key) for key in read_keys(Settings.from_environment().store).keys]

    def text() -> str:
        from towline.cli.screen import table

        if not descriptions:
            return "no keys yet: `towline keys create NAME` creates one"
        head = ["id", "name", "scopes", "created", "expires", "state"]
        rows = [{**row, "scopes": ", ".join(row["scopes"])} for row in descriptions]
        return table(
            head,
            [
                [format_time(row[name]) if name in ("created", "expires") else row[name] for name in head]
                for row in rows
            ],
        )

    emit(descriptions, as_json, text)


@keys.command()
@click.argument("id")
@json_option
def revoke(id: str, as_json: bool) -> None:  # noqa: A002 - shown in the help
    """Revokes a key; running services refuse it within two seconds.

    \b
    Example:
      towline keys revoke 1f0c9a3e
    """
    from towline.api_keys import revoke_key
    from towline.config import Settings

    key = revoke_key(Settings.from_environment().store, id)
    emit(_describe(key), as_json, lambda: f"key {key.id} ({key.name}) is revoked")


def _describe(key: "ApiKey") -> dict[str, Any]:
    now = dt.datetime.now(dt.UTC)
    return {**key.model_dump(mode="json", exclude={"sha256"}), "state": key.state(now)}
