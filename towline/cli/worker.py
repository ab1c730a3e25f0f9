"""towline worker: takes over a part of the work of runs on other machines."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from towline import extras
from towline.cli import emit, json_option, report
from towline.cli.arguments import NumberRange
from towline.cli.run import config_argument, set_option
from towline.errors import TowlineError

if TYPE_CHECKING:
    from towline.training.model_selection.shared_study import TrialResult


@click.group()
def worker() -> None:
    """Runs a worker for hyperparameter searches.

    \b
    Example:
      towline worker search configs/bike_demand.yaml
    """


@worker.command()
@config_argument
@set_option
@click.option("--idle", type=NumberRange(min=1), metavar="SECONDS", help="End after this many seconds without a trial.")
@json_option
def search(config: Path, overrides: tuple[str, ...], idle: float | None, as_json: bool) -> None:
    """Evaluates trials of the hyperparameter searches of a config.

    `towline run CONFIG` with the same TOWLINE_SEARCH_URL adds the trials and evaluates some of them, too. The worker
    needs the store of the run, the same code and the same config. Start any number, on any machine. Ctrl-C and SIGTERM
    end it after the current fits, and give the trial back.

    \b
    Examples:
      towline worker search configs/bike_demand.yaml
      towline worker search configs/bike_demand.yaml --idle 600
    """
    import signal

    from towline.config import Settings, read_config

    extras.require("towline worker", "pipeline")
    from towline.training.model_selection.search_worker import evaluate_trials

    def show(candidate: str, number: int, trial: "TrialResult") -> None:
        score = f"{trial.score:.6g}" if trial.score is not None else f"failed: {trial.error}"
        click.echo(f"{candidate}, trial {number + 1}: {score} in {trial.seconds:.1f} s", err=True)

    def warn(error: TowlineError) -> None:
        report(error, as_json=False)

    pipeline, settings = read_config(config, overrides), Settings.from_environment()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        count = evaluate_trials(settings, pipeline, show, warn, idle)
    except KeyboardInterrupt:
        click.echo("ended; another process takes over the trial under way", err=True)
        click.get_current_context().exit(0)
    emit({"trials": count}, as_json, lambda: f"{count} trials")
