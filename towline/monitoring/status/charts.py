"""Pictures of a page as SVG text: they take the page's colours, need no script, and every value in them is escaped."""

import datetime as dt
from collections.abc import Sequence
from html import escape

from towline.monitoring.results import DriftCheckResult, DriftResult, QualityResult
from towline.monitoring.status.summary import Day

WIDTH = 920
COLUMNS = 24  # of the heat map
_NAMES = 170  # px for what is written at the left
_SHORT = 24  # characters of a name there


def traffic(days: Sequence[Day], today: dt.date, span: int = 30) -> str:
    """Predictions by day, bars; days without any are empty."""
    width, height = 440, 120
    counts = {day.day: day.rows for day in days}
    shown = [today - dt.timedelta(days=back) for back in range(span - 1, -1, -1)]
    most = max([counts.get(day, 0) for day in shown] + [1])
    step = width / span
    parts = [_line(0, height - 20, width, height - 20, "axis")]
    for place, day in enumerate(shown):
        rows = counts.get(day, 0)
        tall = rows / most * (height - 40)
        told = f"{day}: {rows:,} predictions"
        parts.append(_box(place * step + 1, height - 20 - tall, step - 2, tall, "bar", told))
    parts.append(_text(0, 12, f"{most:,} a day at most", "soft"))
    parts.append(_text(0, height - 4, f"{shown[0]:%b %d}", "soft"))
    parts.append(_text(width, height - 4, f"{shown[-1]:%b %d}", "soft", "end"))
    return _svg(width, height, parts, "predictions by day")


def budget(left: float | None) -> str:
    """How much of an error budget is left, a bar."""
    if left is None:
        return ""
    width, height = 120, 10
    kept = min(1.0, max(0.0, left))
    kind = "good" if left > 0.25 else "warn" if left > 0 else "bad"
    parts = [_box(0, 0, width, height, "track"), _box(0, 0, max(kept * width, 2), height, kind, f"{left:.0%} left")]
    return _svg(width, height, parts, f"{left:.0%} of the budget is left", fixed=True)


def heat(nights: Sequence[DriftResult]) -> str:
    """Columns by nights: the fuller a cell, the nearer its worst check is to its threshold; alarms are filled red."""
    worst = [_worst(night) for night in nights]
    names = _ranked(worst)[:COLUMNS]
    if not names:
        return ""
    cell = min(26.0, (WIDTH - _NAMES) / len(nights))
    tall, top = 20, 18
    parts = [_text(0, 12, "", "soft")]
    for row, name in enumerate(names):
        y = top + row * tall
        parts.append(_text(_NAMES - 10, y + 14, _cut(name), "name", "end", name))
        for place, night in enumerate(nights):
            told, kind, opacity = _cell(night, worst[place].get(name))
            parts.append(_box(_NAMES + place * cell, y, cell - 2, tall - 2, kind, f"{name}, {told}", opacity))
    bottom = top + len(names) * tall
    for place in range(1, len(nights)):
        if nights[place].version != nights[place - 1].version:
            x = _NAMES + place * cell - 1
            parts.append(_line(x, 2, x, bottom, "change"))
            parts.append(_text(x + 3, 12, f"version {nights[place].version}", "soft"))
    parts += _dates([night.end for night in nights], _NAMES, cell, bottom + 14)
    return _svg(WIDTH, bottom + 22, parts, "drift by column and night")


def quality(windows: Sequence[QualityResult]) -> str:
    """The metric with its interval by window, its bound, the estimates without labels, and the share of labels."""
    values = [
        v for one in windows for v in (one.value.value, one.value.low, one.value.high, one.bound) if v is not None
    ]
    values += [one.estimate.value for one in windows if one.estimate and one.estimate.value is not None]
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
    for place, one in enumerate(windows):
        x = left + (place + 0.5) * step
        told = f"to {_day(one.end)}: {one.metric} {one.value.text()}, bound {one.bound:.4g}, {one.labelled:,} labels"
        told += f" of {one.rows:,}, version {one.version}, {one.state}"
        parts.append(_line(x - step / 2, y(one.bound), x + step / 2, y(one.bound), "bound"))
        if one.value.low is not None and one.value.high is not None:
            parts.append(_line(x, y(one.value.low), x, y(one.value.high), f"whisker {_state(one)}"))
        if one.value.value is not None:
            parts.append(_dot(x, y(one.value.value), 4, f"dot {_state(one)}", told))
        if one.estimate and one.estimate.value is not None:
            kind = "guess" if one.estimate.trusted else "guess doubted"
            parts.append(
                _dot(x + 9, y(one.estimate.value), 4, kind, f"estimate {one.estimate.value:.4g}: {one.estimate.why}")
            )
        share = one.labelled / one.rows if one.rows else 0.0
        wide = min(step - 3, 24)
        parts.append(_box(x - wide / 2, base - cover, wide, cover, "track"))
        parts.append(_box(x - wide / 2, base - share * cover, wide, share * cover, "bar", f"{share:.0%} have a label"))
    parts += _dates([one.end for one in windows], left, step, base + 15)
    return _svg(WIDTH, base + 22, parts, "quality by window")


def _worst(night: DriftResult) -> dict[str, DriftCheckResult]:
    """Of each column the check that alarms, else the one nearest to its threshold."""
    found: dict[str, DriftCheckResult] = {}
    for check in night.checks:
        known = found.get(check.column)
        if known is None or _near(check) > _near(known):
            found[check.column] = check
    return found


def _near(check: DriftCheckResult) -> float:
    if check.invalid or check.alarm:
        return 2.0 + check.invalid
    return min(1.0, check.value / check.threshold) if check.threshold else 0.0


def _ranked(worst: Sequence[dict[str, DriftCheckResult]]) -> list[str]:
    """Columns that alarmed lately or often come first."""
    score: dict[str, float] = {}
    for place, night in enumerate(worst):
        for name, check in night.items():
            weight = 1.0 + place / len(worst)
            score[name] = score.get(name, 0.0) + weight * _near(check) ** 2
    return sorted(score, key=lambda name: (-score[name], name))


def _cell(night: DriftResult, check: DriftCheckResult | None) -> tuple[str, str, float]:
    day = _day(night.end)
    if check is None:
        return f"{day}: {night.reason if night.state == 'unknown' else 'nothing was found'}", "track", 1.0
    limit = f", alarm from {check.threshold:.4g}" if check.threshold is not None else ""
    told = f"{day}: {check.name} {check.value:.4g}{limit}" + (f"; {check.detail}" if check.detail else "")
    if check.invalid or check.alarm:
        return told, "bad", 1.0
    return told, "heat", 0.08 + 0.62 * _near(check)


def _dates(moments: Sequence[dt.datetime | None], left: float, step: float, y: float) -> list[str]:
    """As many dates as there is room for."""
    every = max(1, round(60 / step + 0.5))
    return [
        _text(left + (place + 0.5) * step, y, f"{moment:%b %d}", "soft", "middle")
        for place, moment in enumerate(moments)
        if moment and place % every == 0
    ]


def _ticks(low: float, high: float) -> list[float]:
    """Three to six round numbers between two."""
    from math import ceil, floor, log10

    size = 10 ** floor(log10(high - low))
    step = next(size * part for part in (1, 0.5, 0.2, 0.1) if (high - low) / (size * part) >= 3)
    return [place * step for place in range(ceil(low / step), floor(high / step) + 1)]


def _state(window: QualityResult) -> str:
    return {"ok": "good", "degraded": "bad"}.get(window.state, "open")


def _day(moment: dt.datetime | None) -> str:
    return f"{moment:%Y-%m-%d %H:%M}" if moment else "no time"


def _cut(name: str) -> str:
    return name if len(name) <= _SHORT else name[: _SHORT - 1] + "…"


def _box(x: float, y: float, wide: float, tall: float, kind: str, told: str = "", opacity: float = 1.0) -> str:
    faint = f' fill-opacity="{opacity:.2f}"' if opacity < 1 else ""
    wide, tall = max(0.0, wide), max(0.0, tall)
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{wide:.1f}" height="{tall:.1f}" class="{kind}"{faint} rx="2">'
        f"{_told(told)}</rect>"
    )


def _dot(x: float, y: float, radius: float, kind: str, told: str) -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" class="{kind}">{_told(told)}</circle>'


def _line(x: float, y: float, to_x: float, to_y: float, kind: str) -> str:
    return f'<line x1="{x:.1f}" y1="{y:.1f}" x2="{to_x:.1f}" y2="{to_y:.1f}" class="{kind}"/>'


def _text(x: float, y: float, text: str, kind: str, anchor: str = "start", told: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">{_told(told)}{escape(text)}</text>'


def _told(told: str) -> str:
    return f"<title>{escape(told)}</title>" if told else ""


def _svg(width: float, height: float, parts: Sequence[str], told: str, fixed: bool = False) -> str:
    size = f' width="{width}" height="{height}"' if fixed else ""
    box = f'viewBox="0 0 {width:.0f} {height:.0f}"{size}'
    return f'<svg {box} role="img" aria-label="{escape(told)}">{"".join(parts)}</svg>'
