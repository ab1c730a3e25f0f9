"""Charts of the status page as SVG text: they use the page's style and no script; every value is escaped."""

import datetime as dt
from collections.abc import Callable, Mapping, Sequence
from html import escape
from math import isfinite
from typing import Any

from towline.monitoring.results import DriftCheckResult, DriftResult, QualityResult
from towline.monitoring.rollout_history import RolloutEvaluation

WIDTH = 920
MAX_COLUMNS = 24  # of the heat map
_LABEL_WIDTH = 170  # px
_MAX_LABEL = 24  # characters


def draw_traffic(counts: Mapping[dt.date, int], today: dt.date, span: int = 30) -> str:
    """Bars: predictions by day."""
    width, height = 440, 120
    calendar = [today - dt.timedelta(days=back) for back in range(span - 1, -1, -1)]
    most = max([counts.get(day, 0) for day in calendar] + [1])
    step = width / span
    parts = [_line(0, height - 20, width, height - 20, "axis")]
    for place, day in enumerate(calendar):
        rows = counts.get(day, 0)
        tall = rows / most * (height - 40)
        tooltip = f"{day}: {rows:,} predictions"
        parts.append(_box(place * step + 1, height - 20 - tall, step - 2, tall, "bar", tooltip))
    parts.append(_text(0, 12, f"at most {most:,} a day", "soft"))
    parts.append(_text(0, height - 4, f"{calendar[0]:%b %d}", "soft"))
    parts.append(_text(width, height - 4, f"{calendar[-1]:%b %d}", "soft", "end"))
    return _svg(width, height, parts, "predictions by day")


def draw_budget(left: float | None) -> str:
    """A bar: the share of an error budget that is left."""
    if left is None:
        return ""
    width, height = 120, 10
    share = min(1.0, max(0.0, left))
    kind = "ok" if left > 0.25 else "warning" if left > 0 else "alarm"
    parts = [_box(0, 0, width, height, "track"), _box(0, 0, max(share * width, 2), height, kind, f"{left:.0%} left")]
    return _svg(width, height, parts, f"{left:.0%} of the budget is left", fixed=True)


def draw_drift(windows: Sequence[DriftResult]) -> str:
    """A heat map, columns by windows: a darker cell is nearer to its threshold; alarms are red."""
    worst = [_worst(window) for window in windows]
    names = _ranked(worst)[:MAX_COLUMNS]
    if not names:
        return ""
    cell = min(26.0, (WIDTH - _LABEL_WIDTH) / len(windows))
    tall, top = 20, 18
    parts: list[str] = []
    for row, name in enumerate(names):
        y = top + row * tall
        parts.append(_text(_LABEL_WIDTH - 10, y + 14, _shorten(name), "name", "end", name))
        for place, window in enumerate(windows):
            tooltip, kind, opacity = _cell(window, worst[place].get(name))
            parts.append(_box(_LABEL_WIDTH + place * cell, y, cell - 2, tall - 2, kind, f"{name}, {tooltip}", opacity))
    bottom = top + len(names) * tall
    for place in range(1, len(windows)):
        if windows[place].version != windows[place - 1].version:
            x = _LABEL_WIDTH + place * cell - 1
            parts.append(_line(x, 2, x, bottom, "change"))
            parts.append(_text(x + 3, 12, f"version {windows[place].version}", "soft"))
    parts += _dates([window.end for window in windows], _LABEL_WIDTH, cell, bottom + 14)
    return _svg(WIDTH, bottom + 22, parts, "drift by column and window")


def draw_quality(windows: Sequence[QualityResult]) -> str:
    """The metric with its interval and bound by window, estimates without labels, and the share of labels."""
    values = [
        value
        for window in windows
        for value in (
            window.value.value,
            window.value.low,
            window.value.high,
            window.bound,
            window.estimate.value if window.estimate else None,
        )
        if value is not None
    ]
    if not values:
        return ""
    low, high = min(values), max(values)
    pad = (high - low or abs(high) or 1.0) * 0.1
    low, high = low - pad, high + pad
    plot, cover, left = 190, 40, 60
    step = min(80.0, (WIDTH - left - 10) / len(windows))

    def y(value: float) -> float:
        return 8 + (high - value) / (high - low) * plot

    parts = [_line(left, y(tick), WIDTH, y(tick), "grid") for tick in _ticks(low, high)]
    parts += [_text(left - 8, y(tick) + 4, f"{tick:.4g}", "soft", "end") for tick in _ticks(low, high)]
    base = plot + 24 + cover
    parts.append(_line(left, base, WIDTH, base, "axis"))
    parts.append(_text(left - 8, base - cover / 2 + 4, "labels", "soft", "end"))
    for place, window in enumerate(windows):
        x, bar = left + (place + 0.5) * step, min(step - 3, 24)
        parts.append(_line(x - step / 2, y(window.bound), x + step / 2, y(window.bound), "bound"))
        parts += _quality_marks(window, x, y)
        share = window.labelled / window.rows if window.rows else 0.0
        parts.append(_box(x - bar / 2, base - cover, bar, cover, "track"))
        parts.append(_box(x - bar / 2, base - share * cover, bar, share * cover, "bar", f"{share:.0%} have a label"))
    parts += _dates([window.end for window in windows], left, step, base + 15)
    return _svg(WIDTH, base + 22, parts, "quality by window")


def draw_rollout(evaluations: Sequence[RolloutEvaluation]) -> str:
    """The challenger's weight, and below it the confidence sequence of the relative difference of the losses."""
    losses = [next((check for check in each.checks if check["name"] == "loss"), {}) for each in evaluations]
    limits = [value for loss in losses for name in ("lower", "upper") if (value := _limit(loss, name)) is not None]
    high = max([abs(value) for value in limits] + [0.05]) * 1.1
    top, plot, left, gap = 60, 150, 60, 26
    step = (WIDTH - left - 10) / max(len(evaluations), 1)
    base = top + gap + plot

    def y(value: float) -> float:
        return top + gap + (high - value) / (2 * high) * plot

    parts = [_line(left, top, WIDTH, top, "axis"), _text(left - 8, 14, "100 %", "soft", "end")]
    parts += [_text(left - 8, top, "weight", "soft", "end"), _text(left - 8, y(0) + 4, "loss", "soft", "end")]
    parts += [_line(left, y(0), WIDTH, y(0), "bound")]
    parts += [_text(left - 8, y(edge) + 4, f"{edge:+.0%}", "soft", "end") for edge in (0.9 * high, -0.9 * high)]
    for place, (evaluation, loss) in enumerate(zip(evaluations, losses, strict=True)):
        x, tall = left + place * step, max(evaluation.weight * (top - 10), 1.0)
        when = f"{_day(evaluation.at)}: {evaluation.action}: {evaluation.reason}"
        parts.append(_box(x, top - tall, max(step - 1, 0.5), tall, "bar", f"{evaluation.weight:.0%}, {when}"))
        lower, upper = _limit(loss, "lower"), _limit(loss, "upper")
        if lower is None or upper is None:
            continue
        state = {"promote": "ok", "abort": "alarm"}.get(str(loss["verdict"]), "unknown")
        text = f"{loss['estimate']:+.1%} ({lower:+.1%} to {upper:+.1%}), {loss['observations']:,} labels"
        kind = {"ok": "ok", "alarm": "alarm"}.get(state, "heat")
        top_edge = y(min(upper, high))
        parts.append(_box(x, top_edge, max(step - 1, 0.5), y(max(lower, -high)) - top_edge, kind, text, 0.45))
        if (estimate := _limit(loss, "estimate")) is not None and abs(estimate) <= high:
            parts.append(_dot(x + step / 2, y(estimate), 2.5, f"dot {state}", text))
    parts += _dates([each.at for each in evaluations], left, step, base + 15)
    return _svg(WIDTH, base + 22, parts, "weight and confidence sequence of the loss by evaluation")


def _limit(check: Mapping[str, Any], name: str) -> float | None:
    """A finite number of a check, at most 10: a limit before the first labels is much larger."""
    value = check.get(name)
    return None if value is None or not isfinite(value) else max(-10.0, min(10.0, float(value)))


def _quality_marks(window: QualityResult, x: float, y: Callable[[float], float]) -> list[str]:
    """The interval, value and estimate of a window."""
    value, marks = window.value, list[str]()
    state = {"ok": "ok", "degraded": "alarm"}.get(window.state, "unknown")
    tooltip = (
        f"until {_day(window.end)}: {window.metric} {value.text()}, bound {window.bound:.4g}, {window.labelled:,} "
        f"labels of {window.rows:,}, version {window.version}, {window.state}"
    )
    if value.low is not None and value.high is not None:
        marks.append(_line(x, y(value.low), x, y(value.high), f"whisker {state}"))
    if value.value is not None:
        marks.append(_dot(x, y(value.value), 4, f"dot {state}", tooltip))
    if window.estimate and window.estimate.value is not None:
        kind = "estimate" if window.estimate.trusted else "estimate untrusted"
        tooltip = f"estimate {window.estimate.value:.4g}: {window.estimate.why}"
        marks.append(_dot(x + 9, y(window.estimate.value), 4, kind, tooltip))
    return marks


def _worst(window: DriftResult) -> dict[str, DriftCheckResult]:
    """The check of each column that raises an alarm, else the one nearest to its threshold."""
    worst: dict[str, DriftCheckResult] = {}
    for check in window.checks:
        known = worst.get(check.column)
        if known is None or _nearness(check) > _nearness(known):
            worst[check.column] = check
    return worst


def _nearness(check: DriftCheckResult) -> float:
    if check.invalid or check.alarm:
        return 2.0 + check.invalid
    return min(1.0, check.value / check.threshold) if check.threshold else 0.0


def _ranked(worst: Sequence[dict[str, DriftCheckResult]]) -> list[str]:
    """Columns with recent or frequent alarms come first."""
    score: dict[str, float] = {}
    for place, window in enumerate(worst):
        for name, check in window.items():
            weight = 1.0 + place / len(worst)
            score[name] = score.get(name, 0.0) + weight * _nearness(check) ** 2
    return sorted(score, key=lambda name: (-score[name], name))


def _cell(window: DriftResult, check: DriftCheckResult | None) -> tuple[str, str, float]:
    """Tooltip, class and opacity."""
    day = _day(window.end)
    if check is None:
        return f"{day}: {window.reason if window.state == 'unknown' else 'not checked'}", "track", 1.0
    threshold = f", threshold {check.threshold:.4g}" if check.threshold is not None else ""
    tooltip = f"{day}: {check.name} {check.value:.4g}{threshold}" + (f"; {check.detail}" if check.detail else "")
    if check.invalid or check.alarm:
        return tooltip, "alarm", 1.0
    return tooltip, "heat", 0.08 + 0.62 * _nearness(check)


def _dates(moments: Sequence[dt.datetime | None], left: float, step: float, y: float) -> list[str]:
    """As many dates as fit; times of day if all are of less than two days."""
    every = max(1, round(60 / step + 0.5))
    present = [moment for moment in moments if moment]
    form = "%H:%M" if len(present) > 1 and present[-1] - present[0] < dt.timedelta(days=2) else "%b %d"
    return [
        _text(left + (place + 0.5) * step, y, f"{moment:{form}}", "soft", "middle")
        for place, moment in enumerate(moments)
        if moment and place % every == 0
    ]


def _ticks(low: float, high: float) -> list[float]:
    """Three to six round numbers between two values."""
    from math import ceil, floor, log10

    size = 10 ** floor(log10(high - low))
    step = next(size * part for part in (1, 0.5, 0.2, 0.1) if (high - low) / (size * part) >= 3)
    return [place * step for place in range(ceil(low / step), floor(high / step) + 1)]


def _day(moment: dt.datetime | None) -> str:
    return f"{moment:%Y-%m-%d %H:%M}" if moment else "no time"


def _shorten(name: str) -> str:
    return name if len(name) <= _MAX_LABEL else name[: _MAX_LABEL - 1] + "…"


def _box(x: float, y: float, wide: float, tall: float, kind: str, tooltip: str = "", opacity: float = 1.0) -> str:
    faint = f' fill-opacity="{opacity:.2f}"' if opacity < 1 else ""
    wide, tall = max(0.0, wide), max(0.0, tall)
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{wide:.1f}" height="{tall:.1f}" class="{kind}"{faint} rx="2">'
        f"{_title(tooltip)}</rect>"
    )


def _dot(x: float, y: float, radius: float, kind: str, tooltip: str) -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" class="{kind}">{_title(tooltip)}</circle>'


def _line(x: float, y: float, to_x: float, to_y: float, kind: str) -> str:
    return f'<line x1="{x:.1f}" y1="{y:.1f}" x2="{to_x:.1f}" y2="{to_y:.1f}" class="{kind}"/>'


def _text(x: float, y: float, text: str, kind: str, anchor: str = "start", tooltip: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">{_title(tooltip)}{escape(text)}</text>'


def _title(tooltip: str) -> str:
    return f"<title>{escape(tooltip)}</title>" if tooltip else ""


def _svg(width: float, height: float, parts: Sequence[str], label: str, fixed: bool = False) -> str:
    size = f' width="{width}" height="{height}"' if fixed else ""
    box = f'viewBox="0 0 {width:.0f} {height:.0f}"{size}'
    return f'<svg {box} role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'
