"""towline approve and towline approvals: people decide on a version that has passed the gate."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from towline.cli import emit, json_option
from towline.cli.arguments import reason_option
from towline.errors import ConfigError
from towline.formatting import format_time

if TYPE_CHECKING:
    from towline.promotion.approval_decision import ApprovalStatus


@click.command(short_help="Approves a version that waits for approval.")
@click.argument("version", metavar="NAME@VERSION")
@reason_option(default="approved", show_default=True)
@click.option("--key-file", type=click.Path(path_type=Path), help="File with your API key, scope admin.")
@json_option
def approve(version: str, reason: str, key_file: Path | None, as_json: bool) -> None:
    """Approves a version that waits for approval; the last required approval promotes it.

    The approval is signed with your API key and is valid for exactly this release. The key comes from --key-file, from
    TOWLINE_API_KEY, or from a prompt; it is not an argument, because other users can read arguments.

    \b
    Examples:
      towline approve bike-demand@3
      towline approve bike-demand@3 --key-file ~/.towline-key --reason "numbers checked"
    """
    from towline import accountability

    status, note = accountability.approve_with_note(version, key=_read_key(key_file), reason=reason)
    emit({**status.model_dump(mode="json"), "mlflow": note}, as_json, lambda: describe(status))
    if note:
        click.echo(f"note: {note}", err=True)


@click.command(short_help="Lists the versions that need approvals.")
@click.argument("name")
@json_option
def approvals(name: str, as_json: bool) -> None:
    """Lists the versions that need approvals, with the users who have approved them.

    \b
    Example:
      towline approvals bike-demand
    """
    from towline import accountability

    statuses = accountability.approvals(name)
    nothing = f"no version of {name} needs an approval; `approval` in the config requires it"
    emit(
        [status.model_dump(mode="json") for status in statuses],
        as_json,
        lambda: "\n".join(map(describe, statuses)) or nothing,
    )


def describe(status: "ApprovalStatus") -> str:
    """A version and its approvals, for people."""
    name, count = f"{status.model}@{status.version}", f"{len(status.approvals)} of {status.required} approvals"
    until = f", until {format_time(status.expires)} UTC" if status.state == "waiting" else ""
    lines = [f"{name}: {status.state}, {count}{until}; release sha256 {status.digest[:12]}…, run by {status.starter}"]
    lines += [
        f"  {format_time(approval.time)} UTC  "
        f"{approval.holder} (key {approval.key}, user {approval.actor}): {approval.reason}"
        for approval in status.approvals
    ]
    return "\n".join([*lines, *([f"  {status.note}"] if status.note else [])])


def _read_key(file: Path | None) -> str:
    if file is not None:
        try:
            return file.expanduser().read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            remedy = "write the key into a file that only you can read"
            raise ConfigError(f"cannot read the key: {error}", where="--key-file", remedy=remedy) from None
    if key := os.environ.get("TOWLINE_API_KEY"):
        return key
    if not sys.stdin.isatty():
        raise ConfigError(
            "an approval needs an API key", where="command line", remedy="set TOWLINE_API_KEY, or give --key-file FILE"
        )
    return str(click.prompt("API key", hide_input=True, err=True))
