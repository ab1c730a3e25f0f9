"""The commands: thin, and quick to start, since each imports what it needs when it runs."""

import json
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

import click

from towline import __version__, extras
from towline.errors import ConfigError, TowlineError

EXIT_CODES = """\b
Exit codes:
  0  done
  1  a fault in towline itself
  2  bad input: the command line, the config, or a table that cannot be read
  3  data refused: the table breaks its contract
  4  gate refused: the model did not pass, or may not be promoted
  5  a store or a server is away, locked or full; run the same command again
  6  a release, or a backup, is not what its manifest says
  130  interrupted
"""


class Commands(click.Group):
    """A group whose commands end in a one-screen error and a documented exit code, never in a traceback.

    Attributes:
        purposes: what for → names of commands, as the help lists them.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.purposes: dict[str, list[str]] = {}

    def format_commands(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        width = formatter.width - 6 - max(map(len, self.commands), default=0)
        for purpose, names in self.purposes.items():
            with formatter.section(purpose):
                formatter.write_dl([(name, self.commands[name].get_short_help_str(width)) for name in names])

    def main(self, args: Sequence[str] | None = None, *rest: Any, **extra: Any) -> NoReturn:
        from towline.processes import private_files

        words = list(sys.argv[1:] if args is None else args)
        try:
            with private_files():
                sys.exit(super().main(words, *rest, **{**extra, "standalone_mode": False}) or 0)
        except TowlineError as error:
            wrong = error
        except click.exceptions.NoArgsIsHelpError as error:
            error.show()
            sys.exit(error.exit_code)
        except click.ClickException as error:
            context = getattr(error, "ctx", None)
            remedy = f"see `{context.command_path} --help`" if context else ""
            wrong = ConfigError(error.format_message().rstrip("."), where="command line", remedy=remedy)
        except ModuleNotFoundError as error:
            command = " ".join(["towline", *[word for word in words if word in self.commands][:1]])
            wrong = extras.not_installed(error, command) or _fault(error)
        except click.Abort:
            click.echo("interrupted; run the same command again: it resumes from the last completed step", err=True)
            sys.exit(130)
        except Exception as error:  # noqa: BLE001 - the last stop before the user
            wrong = _fault(error)
        report(wrong, as_json="--json" in words)
        sys.exit(wrong.exit_code)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise click.Abort from None  # click itself would print an empty line first


def _fault(error: Exception) -> TowlineError:
    from towline.config.passwords import mask_passwords

    name = f"towline-fault-{datetime.now(UTC):%Y%m%dT%H%M%S}.log"
    log = next(folder for folder in (Path.cwd(), Path(tempfile.gettempdir())) if os.access(folder, os.W_OK)) / name
    words = [mask_passwords(word) for word in sys.argv]
    log.write_text(f"towline {__version__} {words}\n{''.join(traceback.format_exception(error))}", encoding="utf-8")
    return TowlineError(
        f"a fault in towline: {type(error).__name__}: {str(error)[:300]}",
        where=str(log),
        remedy="the file holds what is needed to report it; nothing was promoted",
    )


def report(error: TowlineError, *, as_json: bool) -> None:
    """Tells an error: to people on stderr, to scripts also as the one document on stdout."""
    if as_json:
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
@click.option(
    "--profile",
    metavar="NAME",
    envvar="TOWLINE_PROFILE",
    help="Run on a worker elsewhere: the profile profiles/NAME.env, or compose.  [env: TOWLINE_PROFILE]",
)
@click.pass_context
def main(ctx: click.Context, profile: str | None) -> None:
    """Pulls a tabular model from data to production and keeps it there.

    \b
    Examples:
      towline run configs/bike_demand.yaml    train, judge and promote a model
      towline ui                              look at runs and versions
      towline models                          what serves, and since when
      towline status                          how it does: traffic, quality, drift, alarms
      towline score new.csv scored.csv        predictions for a file of rows
    """
    from towline.config import Settings

    sys.path.append(str(Settings.from_environment().project))  # models of the project's own estimators are read too
    if profile:
        from towline.orchestration import profiles

        profiles.check(profile, ctx.invoked_subcommand)
        ctx.obj = profile


def _register() -> None:
    from towline.cli import (
        backtest,
        backup,
        config,
        keys,
        labels,
        loadtest,
        log,
        models,
        monitoring,
        package,
        run,
        score,
        serve,
        slo,
        status,
        ui,
        up,
    )

    purposes: dict[str, tuple[click.Command, ...]] = {
        "Train": (run.validate, run.run, backtest.backtest, config.config),
        "Decide": (models.models, models.show, models.history, models.promote, models.rollback),
        "Serve": (serve.serve, score.score, keys.keys, package.package, loadtest.loadtest),
        "Watch": (status.status, monitoring.drift, monitoring.quality, labels.labels, slo.slo, log.log),
        "Operate": (up.up, ui.ui, backup.backup, backup.restore),
    }
    for purpose, commands in purposes.items():
        for command in commands:
            main.add_command(command)
            main.purposes.setdefault(purpose, []).append(command.name or "")


_register()
