"""towline replay."""

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from towline.cli import emit, json_option
from towline.cli.dates import Moment
from towline.cli.run import config_argument, set_option

if TYPE_CHECKING:
    import datetime as dt

    from towline.backtesting.results import BacktestResult, PolicyName

_DATE = Moment()
NAMES = ("never", "schedule", "drift", "quality", "both")


class _Names(click.ParamType[tuple[str, ...]]):
    name = "names"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        names = tuple(dict.fromkeys(part.strip() for part in str(value).split(",") if part.strip()))
        if not names or not set(names) <= set(NAMES):
            self.fail(f"{value!r} names no policies; choose of {', '.join(NAMES)}", param, ctx)
        return names


class _Delay(click.ParamType["dt.timedelta"]):
    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> "dt.timedelta":
        from pydantic import TypeAdapter, ValidationError

        from towline.config import Duration

        try:
            found: dt.timedelta = TypeAdapter(Duration).validate_python(value)
        except ValidationError:
            self.fail(f"{value!r} is no duration; write 1d, 12h or 2w", param, ctx)
        return found


@click.command()
@config_argument
@click.option("--from", "start", required=True, metavar="DATE", type=_DATE, help="The first day that is lived again.")
@click.option("--to", "end", required=True, metavar="DATE", type=_DATE, help="The day after the last one.")
@click.option("--step", default="1mo", show_default=True, help="Time between rounds of the watch: 1mo, 2w, 1d, 12h.")
@click.option("--policies", type=_Names(), default=",".join(NAMES), show_default=True, help="What to compare.")
@click.option("--label-delay", "delay", type=_Delay(), help="After it a label is known.  [default: quality.delay]")
@click.option("--plot", metavar="FILE", type=click.Path(path_type=Path, dir_okay=False), help="Draw it as a PNG.")
@click.option("--html", metavar="FILE", type=click.Path(path_type=Path, dir_okay=False), help="Write it as a page.")
@set_option
@json_option
def replay(
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
    """Lives through history again, and compares policies of retraining.

    At the end of each step the rows that were answered in it are looked at for drift, those whose labels are due for
    quality; the policy decides, and a training as of that moment passes the same gate. Each training is done once for
    all policies, in a folder that is thrown away: no run, version or release is left behind. Policies: never; schedule,
    a training each step; drift, quality or both as the config's retrain section says.

    \b
    Examples:
      towline replay configs/bike_demand.yaml --from 2011-07-01 --to 2013-01-01
      towline replay configs/bike_demand.yaml --from 2012-01-01 --to 2012-07-01 --step 1w --policies never,quality
      towline replay configs/bike_demand.yaml --from 2012-01-01 --to 2012-07-01 --html replay.html
    """
    from towline import api
    from towline.cli import screen
    from towline.config import Settings

    settings = Settings.from_environment()
    with screen.progress(settings.layout.log()):
        names = cast("tuple[PolicyName, ...]", policies)
        found = api.backtest(config, start, end, step=step, policies=names, label_delay=delay, overrides=overrides)
        from towline.backtesting import charts, page

        if plot:
            charts.draw(found, plot)
        if html:
            page.write(found, html)
    ratios = {life.policy: found.ratio(life) for life in found.lives}
    document = found.model_dump(mode="json") | {"of_never": ratios}
    emit(document, as_json, lambda: _text(found, [path for path in (plot, html) if path]))


def _text(found: "BacktestResult", written: list[Path]) -> str:
    from towline.backtesting.page import COLUMNS, HEADER, line, summary
    from towline.cli.screen import table
    from towline.config import format_duration

    parts = []
    for life in found.lives:
        parts += [click.style(life.policy, bold=True), table(COLUMNS, [line(step) for step in life.steps], "  "), ""]
    rows = [[*summary(found, life), "← best" if life.policy == found.best else ""] for life in found.lives]
    parts += [
        f"{found.model}, {found.start:%Y-%m-%d} to {found.end:%Y-%m-%d} by {found.step}, value: {found.metric}",
        f"labels after {format_duration(found.delay)}",
        table([*HEADER, ""], rows),
        *(click.style(f"note: {note}", fg="yellow") for note in found.notes),
        *(f"written: {path}" for path in written),
    ]
    return "\n".join(parts)
