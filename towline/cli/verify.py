"""towline verify: checks the ledger, the releases and MLflow against each other."""

from typing import TYPE_CHECKING

import click

from towline.cli import emit, json_option
from towline.cli.arguments import reason_option
from towline.errors import ConfigError, ReleaseError, TransientError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from towline.registry.verification import IntegrityCheck

_MARKS = {"ok": ("✓", "green"), "note": ("·", "cyan"), "fault": ("✗", "red"), "unknown": ("?", "yellow")}


@click.command(short_help="Checks the ledger, its seals, the releases and MLflow.")
@click.argument("name", required=False)
@click.option("--accept", is_flag=True, help="Trust the current rows: sign and anchor them again. Needs --reason.")
@reason_option("With --accept: reason; recorded in the ledger.")
@json_option
def verify(name: str | None, accept: bool, reason: str | None, as_json: bool) -> None:
    """Checks the ledger, its seals, the releases and MLflow against each other.

    Each fault is shown with its location and the remedy. The exit code is 0 if all checks pass, 6 if there is a fault,
    5 if a check could not be made. --accept is for rows that were removed on purpose, or a lost key; it writes a row
    with the faults that it accepts. Rows whose digests are wrong are never accepted.

    \b
    Examples:
      towline verify
      towline verify bike-demand --json
      towline verify bike-demand --accept --reason "the key was lost"
    """
    from towline import accountability

    if accept != bool(reason):
        missing = "--reason" if accept else "--accept"
        raise ConfigError(
            "--accept and --reason belong together", where="command line", remedy=f"add {missing}, or leave both out"
        )
    if accept and reason:
        rows = accountability.accept(name, reason=reason)
        if name and not rows:  # the ledger was lost: the model is not known any more
            click.echo(f"{name}: the ledger has no row, so the anchor of its last row is removed", err=True)
            name = None
        for row in rows:
            click.echo(f"{row.model}: {row.seq} rows are signed and anchored; recorded as row {row.seq}", err=True)
    checks = accountability.verify(name)
    emit([check.model_dump() for check in checks], as_json, lambda: "\n".join(_lines(checks)))
    states = {check.state for check in checks}
    if states & {"fault", "unknown"}:
        error = ReleaseError if "fault" in states else TransientError
        click.get_current_context().exit(error.exit_code)


def _lines(checks: "Sequence[IntegrityCheck]") -> list[str]:
    lines, model = [], ""
    for check in checks:
        if check.model != model:
            model = check.model
            lines.append(click.style(model, bold=True))
        mark, color = _MARKS[check.state]
        lines.append(f"{click.style(mark, fg=color)} {check.name:<10} {check.what}")
        if check.state in ("fault", "unknown"):
            lines += [f"  {'':<10} where:  {check.where}"] if check.where else []
        if check.remedy:
            lines.append(f"  {'':<10} remedy: {check.remedy}")
    faults = sum(check.state == "fault" for check in checks)
    unknown = sum(check.state == "unknown" for check in checks)
    summary = f"{faults} fault{'' if faults == 1 else 's'}" if faults else "no fault"
    return [*lines, "", summary + (f", {unknown} checks could not be made" if unknown else "")]
