"""A load test told: a picture, a page of Markdown, and every request as CSV."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from towline import __version__, files
from towline.operations.loadtest.run import Result
from towline.operations.loadtest.samples import FIELDS, Interval, intervals
from towline.plot_style import BEFORE, DASHED, INK, MODEL, blank, save, styled, title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

PAGE, PICTURE, TABLE = "loadtest.md", "loadtest.png", "requests.csv"
SHADES = {"p50": "#9cc3dc", "p95": "#4f94bf", "p99": MODEL}


def write(result: Result, folder: Path) -> Path:
    """Writes the page, its picture and the requests; returns the page.

    Raises:
        TransientError: the disk takes them not.
    """
    with files.disk(folder):
        folder.mkdir(parents=True, exist_ok=True)
    draw(result, folder / PICTURE)
    samples = result.samples
    since = samples.at - samples.at[0] if len(samples) else samples.at
    rows = zip(since, samples.seconds, samples.late, samples.errors, strict=True)
    lines = [f"{at:.6f},{seconds:.6f},{late:.6f},{error}" for at, seconds, late, error in rows]
    files.write(folder / TABLE, "\n".join([FIELDS, *lines, ""]))
    files.write(folder / PAGE, page(result))
    return folder / PAGE


def page(result: Result) -> str:
    """The Markdown."""
    samples, load = result.samples, result.load
    how = (
        "Users wait for each answer before they ask again; a slow service is asked less."
        if load.users
        else "Requests arrive whether or not the service keeps up; latency counts from when each was due."
    )
    lines = [
        f"# Load test of {result.target.model}",
        f"{load.text()} on {result.target.url}, one row a request, by towline {__version__}. {how}",
        "",
        f"![Latency and requests over time]({PICTURE})",
        "",
        *(f"**Note:** {warning}.\n" for warning in result.warnings),
        "| | |",
        "|---|---:|",
        f"| requests | {len(samples):,} in {result.seconds:.1f} s |",
        f"| right answers a second | {result.answered_rate:,.1f} |",
        f"| failed | {result.failed:,} ({result.failed / max(len(samples), 1):.2%}) |",
        *(f"| {name}, ms | {value:,.2f} |" for name, value in samples.percentiles().items()),
        *server_lines(result),
        f"| load generator, cores | {result.cores:.2f} |",
    ]
    if kinds := samples.kinds():
        lines += ["", "| error | requests |", "|---|---:|", *(f"| {kind} | {n:,} |" for kind, n in kinds.items())]
    lines += [
        "",
        f"Every request is in [{TABLE}]({TABLE}): seconds when it was due, taken and sent late, and its error.",
        "",
    ]
    return "\n".join(lines)


def server_lines(result: Result) -> list[str]:
    told = result.server
    if "unknown" in told:
        return [f"| service, cores and memory | not known: {told['unknown']} |"]
    memory = " → ".join(f"{told[f'memory_{when}_mb']:.0f}" for when in ("before", "most", "after"))
    return [f"| service, cores | {told['cores']:.2f} |", f"| service, MB before → most → after | {memory} |"]


def draw(result: Result, path: Path) -> None:
    """Latency percentiles over time, requests over time, and how latencies are spread."""
    over_time = intervals(result.samples)
    latency = result.samples.percentiles()
    with styled():
        figure = blank(7.2, 7.2)
        top, middle, bottom = figure.subplots(3, 1, height_ratios=[3, 2, 2.4])
        top.sharex(middle)
        _latency(top, over_time)
        _requests(middle, over_time, result)
        _spread(bottom, result.samples.seconds * 1e3, latency)
        errors = f"{result.failed:,} of {len(result.samples):,} failed" if result.failed else "none failed"
        name = f"{result.target.model}, {result.load.text()}"
        title(figure, f"{name}: p99 {_ms(latency.get('p99', 0.0))}, {errors}")
        save(figure, path)


def _middles(over_time: list[Interval]) -> np.ndarray:
    return np.array([interval.start + interval.seconds / 2 for interval in over_time])


def _latency(axes: Axes, over_time: list[Interval]) -> None:
    x = _middles(over_time)
    for name, colour in SHADES.items():
        y = np.array([getattr(interval, name) or np.nan for interval in over_time])
        axes.plot(x, y, color=colour, linewidth=1.6, marker="o" if len(x) <= 40 else "", markersize=3, label=name)
    axes.set_yscale("log")
    axes.set_ylabel("latency, ms")
    _plain(axes.yaxis)
    _legend_above(axes)


def _requests(axes: Axes, over_time: list[Interval], result: Result) -> None:
    x, width = _middles(over_time), np.array([interval.seconds for interval in over_time])
    failed = np.array([interval.failed for interval in over_time]) / width
    right = np.array([interval.requests for interval in over_time]) / width - failed
    axes.bar(x, right, width * 0.94, color=MODEL, label="answered")
    if failed.any():
        axes.bar(x, failed, width * 0.94, bottom=right, color=BEFORE, label="failed")
    if result.load.rate:
        axes.axhline(result.load.rate, color=INK, linewidth=0.9, linestyle=DASHED, label="asked for")
    axes.set(xlabel="seconds, when requests were due", ylabel="requests/s", xlim=(0, x[-1] + width[-1] / 2))
    axes.margins(y=0.12)
    _legend_above(axes)


def _spread(axes: Axes, milliseconds: np.ndarray, latency: dict[str, float]) -> None:
    low, high = max(milliseconds.min(), 1e-3), max(milliseconds.max(), 2e-3)
    edges = np.geomspace(low * 0.98, high * 1.02, 70).tolist()
    axes.hist(np.maximum(milliseconds, low), edges, color=MODEL, log=True)
    axes.set_xscale("log")
    axes.set_ylim(bottom=0.7)
    _plain(axes.xaxis)
    _plain(axes.yaxis)
    for name, alignment in (("p50", "right"), ("p99", "left")):
        axes.axvline(latency[name], color=INK, linewidth=0.9, linestyle=DASHED)
        text, place = f" {name} {_ms(latency[name])} ", (latency[name], 1.02)
        axes.annotate(text, place, xycoords=("data", "axes fraction"), ha=alignment, va="bottom", fontsize=8)
    axes.set(xlabel="latency, ms", ylabel="requests")


def _legend_above(axes: Axes) -> None:
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1.01), ncols=3, borderaxespad=0, borderpad=0.2)


def _plain(axis: Axis) -> None:
    """Ones, twos and fives as people write them; tens alone where there are many."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axis.get_view_interval()
    subs = (1.0, 2.0, 5.0) if high / low < 1e3 else (1.0,)
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axis.set_minor_formatter(NullFormatter())


def _ms(value: float) -> str:
    return f"{value:.3g} ms" if value < 1000 else f"{value / 1e3:.3g} s"
