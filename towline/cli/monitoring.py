"""towline drift and towline quality: one round of the watch, now."""

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from towline.cli import emit, json_option
from towline.cli.run import as_of_option, config_argument, set_option
from towline.cli.tables import check_file

if TYPE_CHECKING:
    from towline.monitoring.policy import MonitoringRun
    from towline.monitoring.results import DriftResult


@click.command()
@config_argument
@click.option(
    "--current", metavar="FILE", type=click.Path(path_type=Path), help="A table to look at instead of the log."
)
@click.option("--report", is_flag=True, help="With --current: write an Evidently report although nothing alarms.")
@as_of_option
@set_option
@json_option
def drift(
    config: Path, current: Path | None, report: bool, as_of: datetime | None, overrides: tuple[str, ...], as_json: bool
) -> None:
    """Compares what the model was asked with what it was trained on.

    Without --current it is the nightly flow: the predictions since the last night are looked at, an alarm is reported
    with Evidently, and the policy of the config decides: nothing, a warning, a training, a rollback or a block. With
    --current a table is looked at, and nothing is decided.

    \b
    Examples:
      towline drift configs/bike_demand.yaml
      towline drift configs/bike_demand.yaml --current last_week.parquet
      towline drift configs/bike_demand.yaml --set drift.false_alarms_per_year=1
    """
    from towline import api
    from towline.cli import screen
    from towline.config import Settings
    from towline.errors import ConfigError

    if current is None:
        if report:
            raise ConfigError("--report goes with --current", where="command line", remedy="leave it out")
        _run_flow(config, "drift", as_of, overrides, as_json)
        return
    check_file(current, "--current")
    settings = Settings.from_environment()
    with screen.progress(settings.layout.log()):
        done = api.drift(config, current=current, report=report, as_of=as_of, overrides=overrides)
    if result := done.drift:
        emit({**result.model_dump(mode="json"), "report": done.report}, as_json, lambda: _drift(result, done.report))


@click.command()
@config_argument
@as_of_option
@set_option
@json_option
def quality(config: Path, as_of: datetime | None, overrides: tuple[str, ...], as_json: bool) -> None:
    """Compares predictions with what turned out to be true.

    The daily flow: predictions old enough to have a label are measured, with an interval and by slice; for younger ones
    the metric is estimated. The policy of the config decides what is done.

    \b
    Examples:
      towline quality configs/bike_demand.yaml
      towline quality configs/bike_demand.yaml --set quality.delay=30d
    """
    _run_flow(config, "quality", as_of, overrides, as_json)


def _run_flow(
    config: Path, name: Literal["drift", "quality"], as_of: datetime | None, overrides: tuple[str, ...], as_json: bool
) -> None:
    from towline.cli import flows

    done = flows.run(name, config, as_of, overrides)
    page = {"page": done.page} if done.page else {}
    emit(done.value.model_dump(mode="json") | page, as_json, lambda: _told(done.value))


def _told(seen: "MonitoringRun") -> str:
    from towline.cli.screen import table

    lines = []
    if seen.drift:
        lines.append(_drift(seen.drift, seen.report))
    if seen.quality:
        found = seen.quality
        rows = [[one.column, one.value, one.rows, _interval(one.metric)] for one in found.slices]
        lines.append(f"quality  {found.state}: {found.reason}")
        if found.estimate:
            lines.append(f"estimate {_number(found.estimate.value)}: {found.estimate.why}")
        lines += [table(["slice", "value", "rows", found.metric], rows, "  ")] if rows else []
    if seen.decision:
        lines.append(f"decision {seen.decision.action}: {seen.decision.reason}")
    return "\n".join([f"{seen.model} version {seen.version}", *lines, *([seen.done] if seen.done else [])])


def _drift(found: "DriftResult", page: str) -> str:
    from towline.cli.screen import table

    rows = [
        [f.column, f.name, _number(f.value), _number(f.threshold), "alarm" if f.alarm else "", f.detail]
        for f in found.checks[:15]
    ]
    head = f"drift    {found.state}, {found.rows:,} rows: {found.reason}"
    listed = [table(["column", "what", "value", "threshold", "", "detail"], rows, "  ")] if rows else []
    return "\n".join([head, *listed, *([f"report   {page}"] if page else [])])


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _interval(value: object) -> str:
    low, high = getattr(value, "low", None), getattr(value, "high", None)
    told = _number(getattr(value, "value", None))
    return told if low is None else f"{told} ({_number(low)} … {_number(high)})"
