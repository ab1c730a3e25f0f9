"""The commands. Each imports what it needs when it runs, so that the command line starts quickly."""

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
  1  a bug in towline
  2  invalid input: the command line, the config, or a table that cannot be read
  3  data refused: the table violates its contract
  4  promotion refused: the model did not pass the gate
  5  a store or a server is down, locked or full; run the same command again
  6  a release, a backup or the ledger was changed or lost
  130  interrupted
"""


class Commands(click.Group):
    """A group whose commands end with a short error and a documented exit code, never with a traceback.

    Attributes:
        purposes: heading of the help → names of commands.
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

        arguments = list(sys.argv[1:] if args is None else args)
        try:
            with private_files():
                sys.exit(super().main(arguments, *rest, **{**extra, "standalone_mode": False}) or 0)
        except TowlineError as error:
            failure = error
        except click.exceptions.NoArgsIsHelpError as error:
            error.show()
            sys.exit(error.exit_code)
        except click.ClickException as error:
            context = getattr(error, "ctx", None)
            remedy = f"see `{context.command_path} --help`" if context else ""
            failure = ConfigError(error.format_message().rstrip("."), where="command line", remedy=remedy)
        except ModuleNotFoundError as error:
            command = " ".join(["towline", *[word for word in arguments if word in self.commands][:1]])
            failure = extras.not_installed(error, command) or _internal_error(error)
        except click.Abort:
            click.echo("interrupted; run the same command again: it resumes from the last completed step", err=True)
            sys.exit(130)
        except Exception as error:  # noqa: BLE001 - no traceback for the user
            failure = _internal_error(error)
        report(failure, as_json="--json" in arguments)
        sys.exit(failure.exit_code)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise click.Abort from None  # click itself would print an empty line first


def _internal_error(error: Exception) -> TowlineError:
    from towline.config.passwords import mask_passwords

    name = f"towline-fault-{datetime.now(UTC):%Y%m%dT%H%M%S}.log"
    log = next(folder for folder in (Path.cwd(), Path(tempfile.gettempdir())) if os.access(folder, os.W_OK)) / name
    arguments = [mask_passwords(word) for word in sys.argv]
    log.write_text(f"towline {__version__} {arguments}\n{''.join(traceback.format_exception(error))}", encoding="utf-8")
    return TowlineError(
        f"a bug in towline: {type(error).__name__}: {str(error)[:300]}",
        where=str(log),
        remedy="attach this file to your report; nothing was promoted",
    )


def report(error: TowlineError, *, as_json: bool) -> None:
    """Prints an error on stderr; with ``as_json`` also as one JSON document on stdout."""
    if as_json:
        click.echo(json.dumps(error.as_dict(), indent=2, ensure_ascii=False))
    click.echo(click.style(f"error {error.code}: ", fg="red", bold=True, reset=True) + str(error), err=True)


def emit(document: object, as_json: bool, text: Callable[[], str]) -> None:
    """Prints a result: one JSON document for scripts, or text for people."""
    if as_json:
        click.echo(json.dumps(document, indent=2, ensure_ascii=False, default=str))
    else:
        click.echo(text())


json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON document on stdout, everything else on stderr."
)


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
    help="Run on a worker of the profile profiles/NAME.env, or of compose.  [env: TOWLINE_PROFILE]",
)
@click.pass_context
def main(ctx: click.Context, profile: str | None) -> None:
    """Trains, serves and monitors models for tabular data.

    \b
    Examples:
      towline run configs/bike_demand.yaml    train, evaluate and promote a model
      towline ui                              start the web interfaces
      towline models                          list the champions
      towline status                          show traffic, quality, drift and alarms
      towline score new.csv scored.csv        predict a file of rows
    """
    from towline.config import Settings

    sys.path.append(str(Settings.from_environment().project))  # for estimators of the project
    if profile:
        from towline.orchestration import profiles

        profiles.check(profile, ctx.invoked_subcommand)
        ctx.obj = profile


def _register() -> None:
    from towline.cli import (
        approve,
        backtest,
        backup,
        config,
        data,
        doctor,
        export,
        init,
        keys,
        labels,
        loadtest,
        log,
        models,
        monitoring,
        package,
        rollout,
        run,
        score,
        selftest,
        serve,
        served_at,
        slo,
        status,
        ui,
        up,
        verify,
        worker,
    )

    purposes: dict[str, tuple[click.Command, ...]] = {
        "Train": (init.init, run.validate, run.run, backtest.backtest, selftest.selftest, data.data, config.config),
        "Decide": (
            models.models,
            models.show,
            models.history,
            models.promote,
            rollout.rollout,
            models.rollback,
            approve.approve,
            approve.approvals,
        ),
        "Audit": (served_at.served_at, verify.verify),
        "Serve": (serve.serve, score.score, keys.keys, package.package, export.export, loadtest.loadtest),
        "Monitor": (status.status, monitoring.drift, monitoring.quality, labels.labels, slo.slo, log.log),
        "Operate": (up.up, ui.ui, doctor.doctor, worker.worker, backup.backup, backup.restore),
    }
    for purpose, commands in purposes.items():
        for command in commands:
            main.add_command(command)
            main.purposes.setdefault(purpose, []).append(command.name or "")


_register()
