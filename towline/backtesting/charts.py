"""A replay drawn: quality, drift, decisions and cost over time, one colour a policy."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from towline.backtesting.results import BacktestResult, PolicyResult
from towline.plot_style import DASHED, LINES, SOFT, blank, save, styled, title

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {"never": SOFT, "schedule": LINES[0], "drift": LINES[4], "quality": LINES[2], "both": LINES[3]}
QUIET, ALARM, UNKNOWN = "#ffffff", LINES[1], "#e4e8eb"


def draw(found: BacktestResult, path: Path) -> None:
    """Writes a PNG.

    Raises:
        TransientError: the disk takes it not.
    """
    from matplotlib.dates import ConciseDateFormatter

    lanes = 0.5 + 0.22 * len(found.lives)
    with styled():
        figure = blank(3.9 + 2 * lanes + 1.5, 7.6)
        quality, drift, decisions, cost = figure.subplots(4, 1, sharex=True, height_ratios=[3, lanes, lanes, 1.4])
        for life in found.lives:
            _quality(quality, life)
            times, values = _stairs(life, np.cumsum([step.cpu_s for step in life.steps]))
            cost.step(times, values, where="post", color=COLOURS[life.policy], **_stroke(life))
        quality.set_ylabel(f"{found.metric} a step")
        quality.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=len(found.lives), borderaxespad=0.2)
        _drift(drift, found)
        _decisions(decisions, found)
        cost.set_ylabel("CPU s\nof training")
        cost.set_ylim(bottom=0)
        cost.set_xlim(_day(found.start), _day(found.end))
        cost.xaxis_date()
        cost.xaxis.set_major_formatter(ConciseDateFormatter(cost.xaxis.get_major_locator()))
        best = next(life for life in found.lives if life.policy == found.best)
        ratio = found.ratio(best)
        share = f", {ratio:.0%} of never" if ratio is not None and best.policy != "never" else ""
        value = "–" if best.value is None else f"{best.value:.4g}"
        title(figure, f"{found.model}, replayed by {found.step}: best by {best.policy}, {found.metric} {value}{share}")
        figure.align_ylabels()
        save(figure, path)


def _stroke(life: PolicyResult) -> dict[str, Any]:
    """Lives often run together: what is drawn later leaves what is below to be seen."""
    widths = {"never": 1.2, "schedule": 3.2, "drift": 2.2, "quality": 2.0}
    dashes = {"linestyle": DASHED} if life.policy == "both" else {}
    return {"linewidth": widths.get(life.policy, 1.4), **dashes}


def _stairs(life: PolicyResult, values: np.ndarray) -> tuple[list[float], np.ndarray]:
    """What was reached by the end of each step, from nothing at the beginning."""
    return [_day(life.steps[0].start), *(_day(step.end) for step in life.steps)], np.concatenate([[0.0], values])


def _quality(axes: Axes, life: PolicyResult) -> None:
    middles = [_day(step.start + (step.end - step.start) / 2) for step in life.steps]
    values = np.array([np.nan if step.value is None else step.value for step in life.steps])
    few = len(middles) <= 40
    axes.plot(
        middles, values, color=COLOURS[life.policy], label=life.policy, marker="o" if few else "", markersize=3,
        **_stroke(life),
    )  # fmt: skip


def _drift(axes: Axes, found: BacktestResult) -> None:
    """A lane a policy: red where the round alarmed, grey where it could say nothing."""
    for lane, life in enumerate(found.lives):
        for step in life.steps:
            colour = {"ok": QUIET, "unknown": UNKNOWN}.get(step.drift, ALARM)
            width = (step.end - step.start).total_seconds() / 86400
            axes.barh(lane, width, left=_day(step.start), height=0.62, color=colour)
    _lanes(axes, found, "drift\nalarms")


def _decisions(axes: Axes, found: BacktestResult) -> None:
    """A lane a policy: a full mark is a training that was promoted, a hollow one came to nothing."""
    for lane, life in enumerate(found.lives):
        colour = COLOURS[life.policy]
        for step in life.steps:
            done = step.outcome.startswith("promoted")
            if step.trained:
                face = colour if done else "white"
                axes.plot([_day(step.end)], [lane], marker="o", markersize=5, color=face, markeredgecolor=colour)
            elif step.outcome.startswith("rolled back"):
                axes.plot([_day(step.end)], [lane], marker="<", markersize=5, color=colour)
            elif step.action == "block":
                axes.plot([_day(step.end)], [lane], marker="x", markersize=5, color=ALARM)
    _lanes(axes, found, "trainings,\nhollow: refused")


def _lanes(axes: Axes, found: BacktestResult, label: str) -> None:
    axes.set_yticks(range(len(found.lives)), [life.policy for life in found.lives])
    axes.set_ylim(len(found.lives) - 0.4, -0.6)
    axes.set_ylabel(label)
    axes.tick_params(left=False)
    axes.grid(visible=False, axis="y")


def _day(moment: dt.datetime) -> float:
    from matplotlib.dates import date2num

    return float(date2num(moment))
