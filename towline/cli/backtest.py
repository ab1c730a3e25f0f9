"""towline backtest: retraining policies on historical data."""

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from towline.cli import emit, json_option
from towline.cli.arguments import DurationType, TimeType
from towline.cli.run import config_argument, set_option

if TYPE_CHECKING:
    import datetime as dt

    from towline.backtesting.results import BacktestResult, PolicyName

_DATE = TimeType()
POLICIES = ("never", "schedule", "drift", "quality", "both", "gain")


class _PolicyNames(click.ParamType[tuple[str, ...]]):
    name = "names"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        names = tuple(dict.fromkeys(part.strip() for part in str(value).split(",") if part.strip()))
        if not names or not set(names) <= set(POLICIES):
            self.fail(f"{value!r} is not a list of policies; choose from {', '.join(POLICIES)}", param, ctx)
        return names


@click.command()
@config_argument
@click.option("--from", "start", required=True, metavar="DATE", type=_DATE, help="The first day.")
@click.option("--to", "end", required=True, metavar="DATE", type=_DATE, help="The day after the last day.")
@click.option("--step", default="1mo", show_default=True, help="Time between monitoring runs: 1mo, 2w, 1d, 12h.")
@click.option(
    "--policies", type=_PolicyNames(), default=",".join(POLICIES), show_default=True, help="Policies to compare."
)
@click.option(
    "--label-delay", "delay", type=DurationType(), help="Time until a label is known.  [default: quality.delay]"
)
@click.option("--plot", metavar="FILE", type=click.Path(path_type=Path, dir_okay=False), help="Write a chart (PNG).")
@click.option("--html", metavar="FILE", type=click.Path(path_type=Path, dir_okay=False), help="Write a report (HTML).")
@set_option
@json_option
def backtest(
    config: Path,
    start: datetime,
    end: datetime,
    step: str,
    policies: tuple[str, ...],
    delay: "dt.timedelta | None",
    plot: Path | None,
    html: Path | None,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Backtests retraining policies on your own history.

    At the end of each step, drift and quality are measured as in production, and the policy decides. A training uses
    the rows that were known by then and passes the same gate. Trainings run in a temporary folder: no run, version or
    release is left behind. Policies: never; schedule, a training in each step; drift, quality, both or gain, as the
    config's retrain section specifies.

    \b
    Examples:
      towline backtest configs/bike_demand.yaml --from 2011-07-01 --to 2013-01-01
      towline backtest configs/bike_demand.yaml --from 2012-01-01 --to 2012-07-01 --step 1w --policies never,quality
      towline backtest configs/bike_demand.yaml --from 2012-01-01 --to 2012-07-01 --html backtest.html
    """
    from towline import api
    from towline.cli import screen
    from towline.config import Settings

    settings = Settings.from_environment()
    with screen.progress(settings.layout.log()):
        names = cast("tuple[PolicyName, ...]", policies)
        result = api.backtest(config, start, end, step=step, policies=names, label_delay=delay, overrides=overrides)
        from towline.backtesting import charts, page

        if plot:
            charts.draw_backtest(result, plot)
        if html:
            page.write_page(result, html)
    ratios = {policy.policy: result.ratio_to_never(policy) for policy in result.policies}
    document = result.model_dump(mode="json") | {"of_never": ratios}
    emit(document, as_json, lambda: _text(result, [path for path in (plot, html) if path]))


def _text(result: "BacktestResult", written: list[Path]) -> str:
    from towline.backtesting.page import STEP_COLUMNS, SUMMARY_COLUMNS, step_row, summary_row
    from towline.cli.screen import table
    from towline.config import format_duration

    parts = []
    for policy in result.policies:
        rows = [step_row(step) for step in policy.steps]
        parts += [click.style(policy.policy, bold=True), table(STEP_COLUMNS, rows, "  "), ""]
    summary = [
        [*summary_row(result, policy), "← best" if policy.policy == result.best else ""] for policy in result.policies
    ]
    parts += [
        f"{result.model}, {result.start:%Y-%m-%d} to {result.end:%Y-%m-%d} in steps of {result.step}",
        f"value: {result.metric}, labels are known after {format_duration(result.delay)}",
        table([*SUMMARY_COLUMNS, ""], summary),
        *(click.style(f"note: {note}", fg="yellow") for note in result.notes),
        *(f"written: {path}" for path in written),
    ]
    return "\n".join(parts)
