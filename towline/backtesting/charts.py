"""The chart of a backtest: quality, drift, decisions and cost over time, one color per policy."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from towline.backtesting.results import BacktestResult, PolicyResult
from towline.plot_style import DASHED, LINES, SOFT, blank, save, styled, title

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLORS = {
    "never": SOFT,
    "schedule": LINES[0],
    "drift": LINES[4],
    "quality": LINES[2],
    "both": LINES[3],
    "gain": LINES[1],
}
# lines often overlap: a line drawn later is thinner or dashed, so that the one below stays visible
WIDTHS = {"never": 1.2, "schedule": 3.2, "drift": 2.2, "quality": 2.0, "both": 1.4, "gain": 1.8}
OK, ALARM, UNKNOWN = "#ffffff", LINES[1], "#e4e8eb"
MAX_MARKERS = 40


def draw_backtest(result: BacktestResult, path: Path) -> None:
    """Writes a PNG.

    Raises:
        TransientError: the file cannot be written.
    """
    from matplotlib.dates import ConciseDateFormatter

    lane_height = 0.5 + 0.22 * len(result.policies)
    with styled():
        figure = blank(3.9 + 2 * lane_height + 1.5, 7.6)
        heights = [3, lane_height, lane_height, 1.4]
        quality, drift, decisions, cost = figure.subplots(4, 1, sharex=True, height_ratios=heights)
        for policy in result.policies:
            _draw_quality(quality, policy)
            _draw_cost(cost, policy)
        quality.set_ylabel(f"{result.metric} per step")
        quality.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=len(result.policies), borderaxespad=0.2)
        _draw_drift(drift, result)
        _draw_decisions(decisions, result)
        cost.set_ylabel("CPU s\nof training")
        cost.set_ylim(bottom=0)
        cost.set_xlim(_to_date_number(result.start), _to_date_number(result.end))
        cost.xaxis_date()
        cost.xaxis.set_major_formatter(ConciseDateFormatter(cost.xaxis.get_major_locator()))
        title(figure, _chart_title(result))
        figure.align_ylabels()
        save(figure, path)


def _chart_title(result: BacktestResult) -> str:
    best = next(policy for policy in result.policies if policy.policy == result.best)
    ratio = result.ratio_to_never(best)
    share = f", {ratio:.0%} of never" if ratio is not None and best.policy != "never" else ""
    value = "–" if best.value is None else f"{best.value:.4g}"
    return f"{result.model}, backtest in steps of {result.step}: best is {best.policy}, {result.metric} {value}{share}"


def _line_style(policy: PolicyResult) -> dict[str, Any]:
    dashes = {"linestyle": DASHED} if policy.policy == "both" else {}
    return {"color": COLORS[policy.policy], "linewidth": WIDTHS[policy.policy], **dashes}


def _draw_quality(axes: Axes, policy: PolicyResult) -> None:
    middles = [_to_date_number(step.start + (step.end - step.start) / 2) for step in policy.steps]
    values = np.array([np.nan if step.value is None else step.value for step in policy.steps])
    marker = "o" if len(middles) <= MAX_MARKERS else ""
    axes.plot(middles, values, label=policy.policy, marker=marker, markersize=3, **_line_style(policy))


def _draw_cost(axes: Axes, policy: PolicyResult) -> None:
    times = [_to_date_number(policy.steps[0].start), *(_to_date_number(step.end) for step in policy.steps)]
    seconds = np.cumsum([0.0, *(step.cpu_s for step in policy.steps)])
    axes.step(times, seconds, where="post", **_line_style(policy))


def _draw_drift(axes: Axes, result: BacktestResult) -> None:
    """One lane per policy: red for an alarm, grey for unknown."""
    for lane, policy in enumerate(result.policies):
        for step in policy.steps:
            color = {"ok": OK, "unknown": UNKNOWN}.get(step.drift, ALARM)
            width = (step.end - step.start).total_seconds() / 86400
            axes.barh(lane, width, left=_to_date_number(step.start), height=0.62, color=color)
    _label_lanes(axes, result, "drift\nalarms")


def _draw_decisions(axes: Axes, result: BacktestResult) -> None:
    """One lane per policy: a filled marker is a promoted training, a hollow one was not promoted."""
    for lane, policy in enumerate(result.policies):
        color = COLORS[policy.policy]
        for step in policy.steps:
            time = [_to_date_number(step.end)]
            if step.has_training:
                face = color if step.outcome.startswith("promoted") else "white"
                axes.plot(time, [lane], marker="o", markersize=5, color=face, markeredgecolor=color)
            elif step.outcome.startswith("rolled back"):
                axes.plot(time, [lane], marker="<", markersize=5, color=color)
            elif step.action == "block":
                axes.plot(time, [lane], marker="x", markersize=5, color=ALARM)
    _label_lanes(axes, result, "trainings,\nhollow: refused")


def _label_lanes(axes: Axes, result: BacktestResult, label: str) -> None:
    axes.set_yticks(range(len(result.policies)), [policy.policy for policy in result.policies])
    axes.set_ylim(len(result.policies) - 0.4, -0.6)
    axes.set_ylabel(label)
    axes.tick_params(left=False)
    axes.grid(visible=False, axis="y")


def _to_date_number(moment: dt.datetime) -> float:
    from matplotlib.dates import date2num

    return float(date2num(moment))
