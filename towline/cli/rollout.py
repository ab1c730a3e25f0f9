"""towline rollout: begins, shows, pauses, resumes, aborts and promotes rollouts."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from towline.cli import emit, json_option
from towline.cli.arguments import NumberRange, reason_option
from towline.cli.run import config_argument, set_option

if TYPE_CHECKING:
    from towline.config import Settings
    from towline.monitoring.rollout_history import RolloutRun
    from towline.operations.rollout_control import RolloutStatus

REASON = reason_option(default="by hand", show_default=True)


class _RolloutGroup(click.Group):
    """``towline rollout NAME@V`` is ``towline rollout start NAME@V``."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in self.commands and "@" in args[0]:
            args = ["start", *args]
        return super().resolve_command(ctx, args)


@click.group(cls=_RolloutGroup, short_help="Replaces the champion step by step.")
def rollout() -> None:
    """Replaces the champion step by step: shadow, canary, blue/green, A/B.

    The service answers with both versions. Labels and failures decide whether the new version replaces the
    champion.

    \b
    Examples:
      towline rollout start bike-demand@4                start, with the config in the champion's release
      towline rollout start bike-demand@4 --strategy shadow
      towline rollout status bike-demand
      towline rollout abort bike-demand --reason "complaints"
    """


@rollout.command(short_help="Starts the rollout of a version.")
@click.argument("version", metavar="NAME@VERSION")
@click.option(
    "--strategy", type=click.Choice(["canary", "shadow", "blue-green", "ab"]), help="Default: that of the config."
)
@click.option("--key", help="Column whose value decides which version answers a row.")
@click.option("--step", "steps", multiple=True, type=NumberRange(), help="Weight of a canary in percent; repeat it.")
@click.option("--bake", help="Minimum time of a step, e.g. 1h.")
@click.option("--until", help="Maximum time of the rollout, e.g. 14d.")
@click.option(
    "--fields", type=click.Choice(["same", "both"]), help="both: requests must have the fields of both versions."
)
@click.option("--replace", is_flag=True, help="Replace the challenger of the current rollout.")
@REASON
@json_option
def start(version: str, replace: bool, reason: str, as_json: bool, **options: Any) -> None:
    """Starts the rollout of a version that has passed the gate; `start` is optional.

    \b
    Examples:
      towline rollout start bike-demand@4
      towline rollout bike-demand@4 --strategy canary --step 5 --step 50 --step 100 --bake 10m
    """
    from towline.operations import rollout_control

    changes = {name: value for name, value in options.items() if value}
    _print(rollout_control.start(_settings(), version, changes, replace=replace, reason=reason), as_json)


@rollout.command()
@click.argument("name", required=False)
@json_option
def status(name: str | None, as_json: bool) -> None:
    """Shows the current rollout and its last evaluation.

    \b
    Example:
      towline rollout status bike-demand
    """
    from towline.operations import rollout_control

    _print(rollout_control.read_rollout_status(_settings(), name), as_json)


@rollout.command()
@click.argument("name")
@REASON
@json_option
def pause(name: str, reason: str, as_json: bool) -> None:
    """Keeps the weight as it is. A challenger that fails or is worse is still aborted.

    \b
    Example:
      towline rollout pause bike-demand --reason "holiday"
    """
    from towline.operations import rollout_control

    _print(rollout_control.pause(_settings(), name, paused=True, reason=reason), as_json)


@rollout.command()
@click.argument("name")
@REASON
@json_option
def resume(name: str, reason: str, as_json: bool) -> None:
    """Lets the weight increase again.

    \b
    Example:
      towline rollout resume bike-demand
    """
    from towline.operations import rollout_control

    _print(rollout_control.pause(_settings(), name, paused=False, reason=reason), as_json)


@rollout.command()
@click.argument("name")
@REASON
@json_option
def abort(name: str, reason: str, as_json: bool) -> None:
    """Ends the rollout now; the champion answers all requests.

    \b
    Example:
      towline rollout abort bike-demand --reason "complaints"
    """
    from towline.operations import rollout_control

    _print(rollout_control.end(_settings(), name, "aborted", reason=reason), as_json)


@rollout.command()
@click.argument("name")
@REASON
@json_option
def promote(name: str, reason: str, as_json: bool) -> None:
    """Makes the challenger the champion now, without a verdict.

    \b
    Example:
      towline rollout promote bike-demand --reason "the old version must be replaced today"
    """
    from towline.operations import rollout_control

    _print(rollout_control.end(_settings(), name, "promoted", reason=reason), as_json)


@rollout.command()
@config_argument
@set_option
@json_option
def evaluate(config: Path, overrides: tuple[str, ...], as_json: bool) -> None:
    """Runs the rollout flow once: compares both versions and acts. `towline up` does it automatically.

    \b
    Example:
      towline rollout evaluate configs/bike_demand.yaml
    """
    from towline import api
    from towline.cli import screen
    from towline.config import read_config

    settings = _settings()
    with screen.progress(settings.layout.log()):
        parameters = {"config": read_config(config, overrides)}
        run: RolloutRun = api.run_flow(settings, "rollout", parameters).value

    def text() -> str:
        if run.evaluation is None:
            return run.done or "no rollout is under way"
        return "\n".join(filter(None, (describe_evaluation(run.evaluation.model_dump()), run.done)))

    emit(run.model_dump(mode="json"), as_json, text)


def _settings() -> "Settings":
    from towline.config import Settings

    return Settings.from_environment()


def _print(status: "RolloutStatus", as_json: bool) -> None:
    def text() -> str:
        lines = [f"{status.model}: {status.text}"]
        if status.evaluation is not None:
            lines.append(describe_evaluation(status.evaluation.model_dump()))
        return "\n".join([*lines, *([f"note: {status.note}"] if status.note else [])])

    emit(status.model_dump(mode="json"), as_json, text)


def describe_evaluation(evaluation: dict[str, Any]) -> str:
    """The checks of an evaluation as a table, and what follows."""
    from towline.cli.screen import table

    rows = [
        [
            check["name"],
            check["verdict"],
            _number(check["estimate"]),
            f"{_number(check['lower'])} … {_number(check['upper'])}" if _number(check["lower"]) else "",
            f"{check['observations']:,}",
        ]
        for check in evaluation["checks"]
    ]
    text = table(["check", "verdict", "estimate", "confidence sequence", "observations"], rows, "  ")
    needed = ""
    if evaluation["labels_needed"]:
        needed = f"; about {evaluation['labels_needed']:,} more labels"
        needed += f", {evaluation['days_needed']:.1f} days" if evaluation["days_needed"] is not None else ""
    at = f"{evaluation['at']:%Y-%m-%d %H:%M:%S}"
    return f"{text}\n  {at} UTC: {evaluation['action']}: {evaluation['reason']}{needed}"


def _number(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.4g}"
