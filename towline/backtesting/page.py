"""The report of a backtest: tables, and one HTML page that needs no other file."""

import base64
import tempfile
from pathlib import Path

from towline import __version__, files
from towline.backtesting.charts import draw_backtest
from towline.backtesting.results import BacktestResult, BacktestStep, PolicyResult
from towline.config import format_duration
from towline.formatting import format_number
from towline.html import render_page

SUMMARY_COLUMNS = (
    "policy", "value", "of never", "mean of steps, of never", "trainings", "promoted", "drift alarms", "CPU s",
    "CPU s of refits",
)  # fmt: skip
STEP_COLUMNS = ("from", "rows", "value", "model", "drift", "quality", "gain", "decision", "outcome")
MAX_ALARMS = 4


def write_page(result: BacktestResult, path: Path) -> None:
    """Writes the page.

    Raises:
        TransientError: the file cannot be written.
    """
    with tempfile.TemporaryDirectory() as folder:
        chart = Path(folder) / "backtest.png"
        draw_backtest(result, chart)
        encoded = base64.b64encode(chart.read_bytes()).decode()
    page = render_page(
        Path(__file__).parent / "backtest.html.jinja",
        result=result,
        delay=format_duration(result.delay),
        summary_columns=SUMMARY_COLUMNS,
        summary_rows=[
            (policy_result.policy == result.best, summary_row(result, policy_result))
            for policy_result in result.policies
        ],
        step_columns=STEP_COLUMNS,
        policies=[
            (policy_result.policy, [step_row(step) for step in policy_result.steps])
            for policy_result in result.policies
        ],
        chart=encoded,
        version=__version__,
    )
    files.write(path, page)


def summary_row(result: BacktestResult, policy: PolicyResult) -> list[str]:
    """A policy's cells under ``SUMMARY_COLUMNS``."""
    ratios = result.ratio_to_never(policy), result.ratio_to_never(policy, "mean_of_steps")
    return [
        policy.policy,
        format_number(policy.value),
        *("–" if ratio is None else f"{ratio:.1%}" for ratio in ratios),
        str(policy.retrainings),
        str(policy.promoted),
        str(policy.alarms),
        f"{policy.cpu_s:,.0f}",
        f"{policy.refit_cpu_s:,.0f}",
    ]


def step_row(step: BacktestStep) -> list[str]:
    """A step's cells under ``STEP_COLUMNS``."""
    columns = ", ".join(step.alarms[:MAX_ALARMS]) + (" …" if len(step.alarms) > MAX_ALARMS else "")
    return [
        f"{step.start:%Y-%m-%d}" if step.start.hour == 0 else f"{step.start:%Y-%m-%d %H:%M}",
        f"{step.rows:,}",
        format_number(step.value),
        f"{step.version}, until {step.trained_until:%Y-%m-%d}",
        f"{step.drift}: {columns}" if columns else step.drift,
        step.quality if step.measured is None else f"{step.quality} {format_number(step.measured)}",
        "–" if step.gain is None else f"{step.gain:+.1%}",
        f"{step.action} ({step.trigger})" if step.trigger and step.action != "nothing" else step.action,
        step.outcome,
    ]
