"""towline drift and towline quality: one monitoring run."""

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from towline.cli import emit, json_option
from towline.cli.arguments import check_file
from towline.cli.run import as_of_option, config_argument, set_option
from towline.formatting import format_number

if TYPE_CHECKING:
    from towline.monitoring.policy import MonitoringRun
    from towline.monitoring.results import DriftResult
    from towline.training.evaluation.predictions import Interval

MAX_CHECKS = 15


@click.command(short_help="Compares current rows with the training rows.")
@config_argument
@click.option("--current", metavar="FILE", type=click.Path(path_type=Path), help="Check a table instead of the log.")
@click.option("--report", is_flag=True, help="With --current: write an Evidently report even without an alarm.")
@as_of_option
@set_option
@json_option
def drift(
    config: Path, current: Path | None, report: bool, as_of: datetime | None, overrides: tuple[str, ...], as_json: bool
) -> None:
    """Compares current rows with the training rows (drift detection).

    Without --current it runs the drift flow: it checks the predictions since the last window, writes an Evidently
    report if there is an alarm, and applies the policy of the config: nothing, a warning, a training, a rollback or a
    block. With --current it checks a table, without a decision.

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
            raise ConfigError("--report needs --current", where="command line", remedy="leave it out")
        _run_flow(config, "drift", as_of, overrides, as_json)
        return
    check_file(current, "--current")
    settings = Settings.from_environment()
    with screen.progress(settings.layout.log()):
        run = api.drift(config, current=current, report=report, as_of=as_of, overrides=overrides)
    if result := run.drift:
        emit(
            {**result.model_dump(mode="json"), "report": run.report},
            as_json,
            lambda: _describe_drift(result, run.report),
        )


@click.command()
@config_argument
@as_of_option
@set_option
@json_option
def quality(config: Path, as_of: datetime | None, overrides: tuple[str, ...], as_json: bool) -> None:
    """Compares predictions with ground-truth labels (quality).

    It runs the quality flow: it measures the predictions that are old enough to have a label, with an interval and by
    slice, estimates the metric of newer ones, and applies the policy of the config.

    \b
    Examples:
      towline quality configs/bike_demand.yaml
      towline quality configs/bike_demand.yaml --set quality.delay=30d
    """
    _run_flow(config, "quality", as_of, overrides, as_json)


def _run_flow(
    config: Path, name: Literal["drift", "quality"], as_of: datetime | None, overrides: tuple[str, ...], as_json: bool
) -> None:
    from towline.cli.run import run_flow

    flow_run = run_flow(name, config, as_of, overrides)
    page = {"page": flow_run.page} if flow_run.page else {}
    emit(flow_run.value.model_dump(mode="json") | page, as_json, lambda: _describe_run(flow_run.value))


def _describe_run(run: "MonitoringRun") -> str:
    from towline.cli.screen import table

    lines = [f"{run.model} version {run.version}"]
    if run.drift:
        lines.append(_describe_drift(run.drift, run.report))
    if quality := run.quality:
        lines.append(f"quality  {quality.state}: {quality.reason}")
        if quality.estimate:
            lines.append(f"estimate {format_number(quality.estimate.value)}: {quality.estimate.why}")
        rows = [[part.column, part.value, part.rows, _format_interval(part.metric)] for part in quality.slices]
        lines += [table(["slice", "value", "rows", quality.metric], rows, "  ")] if rows else []
    if run.gain:
        lines.append(f"gain     {run.gain.state}: {run.gain.reason}")
    if run.decision:
        lines.append(f"decision {run.decision.action}: {run.decision.reason}")
    return "\n".join([*lines, *([run.done] if run.done else [])])


def _describe_drift(drift: "DriftResult", report: str) -> str:
    from towline.cli.screen import table

    rows = [
        [
            check.column,
            check.name,
            format_number(check.value),
            format_number(check.threshold),
            "alarm" if check.alarm else "",
            check.detail,
        ]
        for check in drift.checks[:MAX_CHECKS]
    ]
    lines = [f"drift    {drift.state}, {drift.rows:,} rows: {drift.reason}"]
    lines += [table(["column", "check", "value", "threshold", "", "detail"], rows, "  ")] if rows else []
    return "\n".join([*lines, *([f"report   {report}"] if report else [])])


def _format_interval(interval: "Interval") -> str:
    value = format_number(interval.value)
    if interval.low is None:
        return value
    return f"{value} ({format_number(interval.low)} … {format_number(interval.high)})"
