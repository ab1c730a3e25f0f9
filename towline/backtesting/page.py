"""A replay as one HTML page that needs no other file."""

import base64
import tempfile
from pathlib import Path

from towline import __version__, files
from towline.backtesting.charts import draw
from towline.backtesting.results import BacktestResult, PolicyResult, Step
from towline.config import format_duration

TEMPLATES = Path(__file__).parent
HEADER = ("policy", "value", "of never", "by step, of never", "trainings", "promoted", "drift alarms", "CPU s")


def write(found: BacktestResult, path: Path) -> None:
    """Writes the page.

    Raises:
        TransientError: the disk takes it not.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    with tempfile.TemporaryDirectory() as folder:
        draw(found, Path(folder) / "replay.png")
        picture = base64.b64encode((Path(folder) / "replay.png").read_bytes()).decode()
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    facts = {
        "found": found,
        "delay": format_duration(found.delay),
        "header": HEADER,
        "rows": [(life.policy == found.best, summary(found, life)) for life in found.lives],
        "lives": [(life.policy, [line(step) for step in life.steps]) for life in found.lives],
        "columns": COLUMNS,
        "picture": picture,
        "version": __version__,
    }
    files.write(path, environment.get_template("backtest.html.jinja").render(facts))


COLUMNS = ("from", "rows", "value", "model", "drift", "quality", "decision", "what came of it")


def summary(found: BacktestResult, life: PolicyResult) -> list[str]:
    """One policy under ``HEADER``."""
    ratios = found.ratio(life), found.ratio(life, "by_step")
    return [
        life.policy,
        number(life.value),
        *("–" if ratio is None else f"{ratio:.1%}" for ratio in ratios),
        str(life.retrainings),
        str(life.promoted),
        str(life.alarms),
        f"{life.cpu_s:,.0f}",
    ]


def line(step: Step) -> list[str]:
    """One step under ``COLUMNS``."""
    short = f"{step.start:%Y-%m-%d}" if step.start.hour == 0 else f"{step.start:%Y-%m-%d %H:%M}"
    alarms = f": {', '.join(step.alarms[:4])}{' …' if len(step.alarms) > 4 else ''}" if step.alarms else ""
    measured = "" if step.measured is None else f" {number(step.measured)}"
    by = f" ({step.trigger})" if step.trigger and step.action != "nothing" else ""
    return [
        short,
        f"{step.rows:,}",
        number(step.value),
        f"{step.version}, to {step.learnt_to:%Y-%m-%d}",
        step.drift + alarms,
        step.quality + measured,
        step.action + by,
        step.outcome,
    ]


def number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"
