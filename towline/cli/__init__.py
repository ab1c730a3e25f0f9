"""The commands: thin, and quick to start, since each imports what it needs when it runs."""

import json
import sys
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from towline import __version__
from towline.errors import TowlineError

EXIT_CODES = """\b
Exit codes:
  0  done
  1  a fault in towline itself
  2  bad input: the command line, the config, or a table that cannot be read
  3  data refused: the table breaks its contract
  4  gate refused: the model did not pass, or may not be promoted
  5  a store or a server is away, locked or full; run the same command again
  6  a release is not what its manifest says
  130  interrupted
"""


class Commands(click.Group):
    """A group whose commands end in a one-screen error and a documented exit code, never in a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except TowlineError as error:
            report(error)
            ctx.exit(error.exit_code)
        except KeyboardInterrupt:
            click.echo("interrupted; the same command goes on where it stopped", err=True)
            ctx.exit(130)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:  # noqa: BLE001 - the last stop before the user
            log = Path.cwd() / "towline-fault.log"
            log.write_text(f"{datetime.now(UTC).isoformat()} towline {__version__} {sys.argv}\n{traceback.format_exc()}")
            fault = TowlineError(
                f"a fault in towline: {type(error).__name__}: {str(error)[:300]}",
                where=str(log),
                remedy="the file holds what is needed to report it; nothing was promoted",
            )
            report(fault)
            ctx.exit(1)


def report(error: TowlineError) -> None:
    """Tells an error: to people on stderr, to scripts (``--json``) as the one document on stdout."""
    context = click.get_current_context(silent=True)
    while context and "as_json" not in context.params and context.parent:
        context = context.parent
    if "--json" in sys.argv[1:]:
        click.echo(json.dumps(error.as_dict(), indent=2, ensure_ascii=False))
    click.echo(click.style(f"error {error.code}: ", fg="red", bold=True, reset=True) + str(error), err=True)


def emit(document: object, as_json: bool, text: Callable[[], str]) -> None:
    """Prints a result: one JSON document for scripts, or text for people."""
    if as_json:
        click.echo(json.dumps(document, indent=2, ensure_ascii=False, default=str))
    else:
        click.echo(text())


json_option = click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout, all else on stderr.")


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=EXIT_CODES,
)
@click.version_option(__version__, prog_name="towline")
def main() -> None:
    """Pulls a tabular model from data to production and keeps it there.

    \b
    Examples:
      towline run configs/bike_demand.yaml    train, judge and promote a model
      towline ui                              look at runs and versions
      towline models                          what serves, and since when
    """


def _register() -> None:
    from towline.cli import config, models, run, ui

    for command in (
        run.run,
        run.validate,
        ui.ui,
        models.models,
        models.show,
        models.history,
        models.promote,
        models.rollback,
        config.config,
    ):
        main.add_command(command)


_register()
