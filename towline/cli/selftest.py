"""towline selftest: what the gate, the alarms and the rollouts detect on the user's own table."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from towline.cli import emit, json_option
from towline.cli.run import config_argument, set_option

if TYPE_CHECKING:
    from towline.selftest.rates import SelftestResult


@click.command(short_help="Measures how well gate and monitoring detect changes.")
@config_argument
@set_option
@json_option
def selftest(config: Path, overrides: tuple[str, ...], as_json: bool) -> None:
    """Measures how well gate, drift alarm, quality state and rollouts detect changes of known size on your own table.

    A model is fitted as the champion. On many holdouts drawn from yours, the gate compares it with itself, a constant,
    models that were fitted on wrong labels and models that are worse by a known loss. The drift alarm checks windows
    without drift and windows with added drift of known size. The quality state is computed for windows with correct
    labels and with labels of other rows. A rollout compares versions that are equal, or worse or better by a known
    loss. The rates have 95 % intervals and are shown next to the rates that the config requires. No run, version or
    release is left behind.

    \b
    Examples:
      towline selftest configs/bike_demand.yaml
      towline selftest configs/bank_subscription.yaml --set gate.champion_margin=0.05
      towline selftest configs/bike_demand.yaml --json
    """
    from towline import extras
    from towline.cli import screen
    from towline.config import Settings, locating_errors, read_config

    extras.require("towline selftest", "pipeline")
    settings = Settings.from_environment()
    with screen.progress(settings.layout.log()), locating_errors(config, overrides):
        from towline.selftest.measurement import run_selftest

        result = run_selftest(read_config(config, overrides), settings.project)
    document = result.model_dump(mode="json")
    document["rates"] = [{**rate.model_dump(mode="json"), "rate": rate.rate} for rate in result.rates]
    emit(document, as_json, lambda: _text(result))


def _text(result: "SelftestResult") -> str:
    from towline.cli.screen import table

    parts = [f"{result.model}, with {result.candidate} as the champion; rates with 95 % intervals", ""]
    rows = [
        [rate.part, rate.case, f"{rate.event}: {rate.text()}", f"{rate.trials} trials", rate.expected]
        for rate in result.rates
    ]
    parts += [table(("", "case", "measured", "", "expected"), rows), ""]
    return "\n".join([*parts, *result.notes])
