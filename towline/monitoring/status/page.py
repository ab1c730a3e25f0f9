"""The status page: one HTML document that needs nothing but itself, and runs no script."""

import base64
import datetime as dt
import hashlib
from collections.abc import Sequence
from html import escape
from urllib.parse import quote

from towline.monitoring.results import DriftResult, QualityResult
from towline.monitoring.status import charts
from towline.monitoring.status.links import Links
from towline.monitoring.status.summary import Status
from towline.training.evaluation.predictions import Interval

_STYLE = """
:root { color-scheme: light dark; --ink: #1d2430; --soft: #5d6673; --line: #dfe3e8; --paper: #fff; --box: #f6f7f9;
  --mark: #0b5cad; --good: #1a7f4b; --warn: #945900; --bad: #c2342d; --track: #eceff2 }
@media (prefers-color-scheme: dark) { :root { --ink: #e3e6ea; --soft: #9aa3af; --line: #353b44; --paper: #16191e;
  --box: #1d2127; --mark: #7db8ff; --good: #5cc98f; --warn: #e0a84a; --bad: #ff7a70; --track: #272c34 } }
* { box-sizing: border-box }
body { font: 15px/1.55 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 0 auto;
  max-width: 66rem; padding: 2.2rem 1.5rem 4rem }
header { border-bottom: 1px solid var(--line); padding-bottom: 1.2rem; margin-bottom: 1.2rem }
h1 { font-size: 1.7rem; margin: 0; letter-spacing: -.01em; display: flex; align-items: center; gap: .8rem }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem }
p { margin: .3rem 0; max-width: 50rem } .soft { color: var(--soft) } a { color: var(--mark) }
.facts { display: flex; flex-wrap: wrap; gap: .4rem 1.6rem; margin: .9rem 0 0; padding: 0; list-style: none }
.facts b { font-weight: 600 } .wide { overflow-x: auto }
.pill { font-size: .8rem; font-weight: 600; padding: .1rem .7rem; border-radius: 1rem; color: var(--paper);
  white-space: nowrap; letter-spacing: 0 }
.pill.good { background: var(--good) } .pill.warn { background: var(--warn) } .pill.bad { background: var(--bad) }
.pill.unknown { background: var(--soft) }
.alarm { border-left: 4px solid var(--warn); background: var(--box); padding: .5rem .9rem; margin: .5rem 0;
  border-radius: 4px } .alarm.bad { border-color: var(--bad) } .alarm b { margin-right: .5rem }
.two { display: grid; grid-template-columns: repeat(auto-fit, minmax(22rem, 1fr)); gap: 0 2.5rem }
table { border-collapse: collapse; width: 100%; font-size: .9rem }
th { text-align: left; font-weight: 600; color: var(--soft); border-bottom: 1px solid var(--ink) }
th, td { padding: .38rem 1rem .38rem 0; vertical-align: top } td { border-bottom: 1px solid var(--line) }
th.number, td.number { text-align: right; font-variant-numeric: tabular-nums; padding-right: 1.6rem }
.time { white-space: nowrap }
b.good { color: var(--good) } b.warn { color: var(--warn) } b.bad { color: var(--bad) } b.soft { color: var(--soft) }
nav { display: flex; flex-wrap: wrap; gap: .3rem 1.4rem; font-size: .9rem; margin-bottom: 1.4rem }
nav b { margin-right: auto }
svg { display: block; width: 100%; height: auto; max-width: 100% } svg[width] { width: auto; margin-top: .45rem }
svg text { font: 11px system-ui, sans-serif; fill: var(--ink) } svg text.soft { fill: var(--soft) }
svg .axis { stroke: var(--soft) } svg .grid { stroke: var(--line) }
svg .change { stroke: var(--soft); stroke-dasharray: 3 3 }
svg .bar, svg .heat { fill: var(--mark) } svg .track { fill: var(--track) }
svg .good { fill: var(--good) } svg .warn { fill: var(--warn) } svg .bad { fill: var(--bad) }
svg .open { fill: var(--soft) }
svg .bound { stroke: var(--bad); stroke-width: 1.5; stroke-dasharray: 5 3 }
svg .whisker { stroke-width: 2 } svg .whisker.good { stroke: var(--good) } svg .whisker.bad { stroke: var(--bad) }
svg .whisker.open { stroke: var(--soft) }
svg .guess { fill: var(--paper); stroke: var(--mark); stroke-width: 2 }
svg .doubted { stroke-dasharray: 2 2; opacity: .6 }
.key { font-size: .85rem; color: var(--soft); margin: .2rem 0 .6rem } .key b { font-weight: 600 }
.key .mark { color: var(--mark) }
@media (max-width: 40rem) { body { padding: 1.2rem .9rem 3rem } }
"""
# nothing may be loaded, run, framed or sent: this page is text and one style
POLICY = (
    f"default-src 'none'; style-src 'sha256-{base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()}'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
ALL = "_all"  # the page of all models: no model can have the name
SHOWN = 8  # checks of the last night
_HEALTH = {"good": "all well", "warn": "look at it", "bad": "alarm", "unknown": "not watched yet"}
_COLOUR = {
    "ok": "good", "met": "good", "promoted": "good", "Completed": "good",
    "degraded": "bad", "drift": "bad", "invalid_schema": "bad", "burning": "bad", "block": "bad", "roll back": "bad",
    "rolled back": "bad", "Failed": "bad", "Crashed": "bad", "Data refused": "bad", "Block": "bad", "Roll back": "bad",
    "spent": "warn", "warn": "warn", "refused": "warn", "Refused": "warn", "Warn": "warn", "retrain": "warn",
    "Retrain": "warn", "Unchanged": "good",
}  # fmt: skip


def render(status: Status, links: Links | None = None) -> str:
    """One model's page as text; every value is escaped.

    Args:
        status: the model's.
        links: where the other interfaces answer, of a page that is served; None: a file, which links nowhere.
    """
    link = _Link(status.model, links)
    sections = [
        _head(status, link),
        *(_alarm(one.what, one.reason, one.since, one.bad) for one in status.alarms),
        f'<div class="two"><section>{_traffic(status)}</section><section>{_goals(status)}</section></div>',
        _quality(status.quality),
        _drift(status, link),
        _runs(status, link),
        _steps(status, link),
    ]
    return _document(status.model, "".join(sections), status.at, links)


def index(models: Sequence[Status], at: dt.datetime, links: Links | None = None) -> str:
    """All models, one line each; where ``links`` are given a model's page is below its name."""
    rows = []
    for one in models:
        link, serving = _Link(one.model, links), one.champion
        drift, quality = one.drift[-1] if one.drift else None, one.quality[-1] if one.quality else None
        rows.append(
            [
                link.here(),
                f'<span class="pill {one.health}">{_HEALTH[one.health]}</span>',
                f"#{link.card(serving.version)}" if serving else "#–",
                _nowrap(_time(serving.since)) if serving else "–",
                f"#{one.traffic.rows:,}",
                _mark(drift.state) if drift else "–",
                f"{escape(quality.metric)} {_interval(quality.value)}" if quality else "–",
                escape("; ".join(alarm.what for alarm in one.alarms)),
            ]
        )
    names = [
        "Model",
        "State",
        "#Version",
        "Serves since",
        "#Predictions in 30 days",
        "Drift",
        "Quality",
        "Open alarms",
    ]
    listed = _table(names, rows) if rows else "<p>No model yet: <code>towline run CONFIG</code> makes one.</p>"
    return _document("models", f"<header><h1>Models</h1></header>{listed}", at, links)


class _Link:
    """Makes links of what a page names; plain text in a file, and where nothing answers."""

    def __init__(self, model: str, links: Links | None) -> None:
        self.model, self.links = model, links

    def here(self) -> str:
        return self._to(f"/{quote(self.model)}" if self.links else "", self.model)

    def card(self, version: int) -> str:
        return self._to(f"/{quote(self.model)}/v{version}/card" if self.links else "", str(version))

    def report(self, drift: DriftResult, reports: Sequence[dt.date]) -> str:
        """Evidently's report of a night; one that did not alarm has none."""
        alarmed = drift.state in ("drift", "invalid_schema")
        if not (self.links and alarmed and drift.end and drift.end.date() in reports):
            return ""
        return self._to(f"/{quote(self.model)}/drift/{drift.end:%Y-%m-%d}", "report")

    def run(self, number: str, text: str) -> str:
        return self._to(self.links.run(number) if self.links else "", text)

    def others(self, version: int | None) -> str:
        """Pages of this model elsewhere."""
        if self.links is None:
            return ""
        pages = {"model card": f"/{quote(self.model)}/v{version}/card"} if version else {}
        pages["versions"] = self.links.model(self.model)
        if version:
            pages[f"version {version} in MLflow"] = self.links.version(self.model, version)
        pages["trainings with their metrics"] = self.links.trainings(self.model)
        pages["nights in Evidently"] = self.links.nights(self.model)
        return " · ".join(self._to(address, text) for text, address in pages.items() if address)

    @staticmethod
    def _to(address: str, text: str) -> str:
        return f'<a href="{escape(address)}">{escape(text)}</a>' if address else escape(text)


def _document(title: str, body: str, at: dt.datetime, links: Links | None) -> str:
    interfaces = {"All models": f"/{ALL}", **links.interfaces()} if links else {}
    listed = "".join(f'<a href="{escape(address)}">{escape(name)}</a>' for name, address in interfaces.items())
    nav = f"<nav><b>towline</b>{listed}</nav>" if links else ""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY.replace("; frame-ancestors 'none'", "")}">
<title>{escape(title)}: status</title><style>{_STYLE}</style></head><body>
{nav}{body}
<p class="soft">As of {_time(at)} UTC.</p>
</body></html>
"""


def _head(status: Status, link: _Link) -> str:
    facts = []
    if one := status.champion:
        facts += [
            ("version", link.card(one.version)),
            ("serves since", f"{_time(one.since)} ({_ago(status.at - one.since)})"),
        ]
        if one.trained:
            facts.append(("trained", f"{_time(one.trained)} ({_ago(status.at - one.trained)})"))
        if one.rows is not None:
            facts.append(("on", f"{one.rows:,} rows"))
        if one.estimator:
            facts.append(("estimator", escape(one.estimator)))
        if one.holdout:
            facts.append((f"{one.metric} on the holdout", one.holdout.text()))
        facts.append(("a rollback leads to", f"version {link.card(one.previous)}" if one.previous else "nothing"))
    told = "".join(f"<li><span class=soft>{escape(name)}</span> <b>{value}</b></li>" for name, value in facts)
    pill = f'<span class="pill {status.health}">{_HEALTH[status.health]}</span>'
    others = link.others(status.champion.version if status.champion else None)
    linked = f'<p class="key">{others}</p>' if others else ""
    return f'<header><h1>{escape(status.model)} {pill}</h1><ul class="facts">{told}</ul>{linked}</header>'


def _alarm(what: str, reason: str, since: dt.datetime | None, bad: bool) -> str:
    when = f' <span class="soft">since {_time(since)}</span>' if since else ""
    return f'<div class="alarm{" bad" if bad else ""}"><b>{escape(what)}</b>{escape(reason)}{when}</div>'


def _traffic(status: Status) -> str:
    found = status.traffic
    if not found.days:
        return "<h2>Traffic</h2><p class=soft>No prediction is logged yet.</p>"
    today = [day.rows for day in found.days if day.day == status.at.date()]
    told = f"{found.rows:,} predictions in 30 days, {sum(today):,} today"
    return f'<h2>Traffic</h2><p class="key">{told}</p>{charts.traffic(found.days, status.at.date())}'


def _goals(status: Status) -> str:
    rows = [
        [
            f'<span title="{escape(goal.reason)}">{escape(goal.target)}</span>',
            _nowrap(escape(goal.now) or "–"),
            charts.budget(goal.budget) or "–",
            "" if goal.budget is None else f"#{goal.budget:.0%}",
            _mark(goal.state),
        ]
        for goal in status.goals
    ]
    if not rows:
        return "<h2>Promises</h2><p class=soft>None is watched: <code>towline slo CONFIG</code> looks at a service.</p>"
    return "<h2>Promises</h2>" + _table(["Promise", "Now", "Error budget left", "#", "State"], rows)


def _quality(windows: Sequence[QualityResult]) -> str:
    if not windows:
        return "<h2>Quality</h2><p class=soft>No label was due yet.</p>"
    last = windows[-1]
    key = (
        f"{escape(last.metric)} by window with its 95 % interval: <b class=good>●</b> within the bound, "
        "<b class=bad>●</b> beyond it, ● not known well enough; <b class=bad>╌</b> the bound; "
        "<b class=mark>○</b> estimated without labels."
    )
    share = f"{last.labelled / last.rows:.0%}" if last.rows else "none"
    facts = [
        ("last window", f"{_time(last.start)} to {_time(last.end)}"),
        (last.metric, _interval(last.value)),
        ("bound", f"{last.bound:.4g}"),
        ("holdout", "–" if last.holdout is None else f"{last.holdout:.4g}"),
        ("labels", f"{last.labelled:,} of {last.rows:,} predictions ({share}), {last.due:,} are due"),
    ]
    if last.estimate:
        value = "none" if last.estimate.value is None else f"{last.estimate.value:.4g}"
        facts.append(("estimate without labels", f"{value}{'' if last.estimate.trusted else ', not to be trusted'}"))
    why = f"<p class=soft>{escape(last.estimate.why)}</p>" if last.estimate and last.estimate.why else ""
    told = "".join(f"<li><span class=soft>{escape(name)}</span> <b>{escape(value)}</b></li>" for name, value in facts)
    head = f"<p>{_mark(last.state)} {escape(last.reason)}</p>"
    return f'<h2>Quality</h2>{head}<p class="key">{key}</p>{charts.quality(windows)}<ul class="facts">{told}</ul>{why}'


def _drift(status: Status, link: _Link) -> str:
    nights = status.drift
    if not nights:
        return "<h2>Drift</h2><p class=soft>No night was looked at yet.</p>"
    last = nights[-1]
    found = [check for check in last.checks if check.threshold is not None or check.alarm or check.invalid]
    rows = [
        [
            f"<code>{escape(one.column)}</code>",
            escape(one.name),
            f"#{one.value:.4g}",
            "#–" if one.threshold is None else f"#{one.threshold:.4g}",
            _mark("drift", "alarm") if one.alarm or one.invalid else "",
            escape(one.detail),
        ]
        for one in found[:SHOWN]
    ]
    more = f"<p class=soft>and {len(found) - SHOWN} more checks</p>" if len(found) > SHOWN else ""
    key = (
        "Columns by nights: the fuller a cell, the nearer its worst check came to its threshold; "
        "<b class=bad>■</b> is an alarm, a dashed line a new version. At most "
        f"{last.budget:g} nights a year alarm with nothing changed."
    )
    listed = _table(["Column", "What", "#Value", "#Alarm from", "State", "Detail"], rows) if rows else ""
    report = link.report(last, status.reports)
    head = f"<p>{_mark(last.state)} {escape(last.reason)}{f' ({report})' if report else ''}</p>"
    span = f"<p class=soft>{last.rows:,} rows, {_time(last.start)} to {_time(last.end)}, version {last.version}:</p>"
    return (
        f'<h2>Drift</h2>{head}<p class="key">{key}</p><div class="wide">{charts.heat(nights)}</div>{span}{listed}{more}'
    )


def _runs(status: Status, link: _Link) -> str:
    rows = [
        [
            escape(run.flow),
            _nowrap(link.run(run.number, _time(run.started))),
            _mark(run.state),
            _nowrap(_time(run.next)),
        ]
        for run in status.runs
    ]
    return "<h2>Runs</h2>" + _table(["Flow", "Last (UTC)", "State", "Next (UTC)"], rows) if rows else ""


def _steps(status: Status, link: _Link) -> str:
    rows = [
        [
            _nowrap(_time(step.at)),
            _mark(step.what) + (f" {step.times}×" if step.times > 1 else ""),
            f"#{link.card(step.version)}",
            escape(step.reason),
            escape(step.actor),
        ]
        for step in status.steps
    ]
    calm = f"<p class=soft>{status.calm:,} rounds decided to do nothing.</p>" if status.calm else ""
    listed = _table(["Time (UTC)", "What", "#Version", "Why", "By"], rows) if rows else ""
    return f"<h2>Decisions</h2>{listed}{calm}" if listed or calm else ""


def _table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Cells are HTML; a leading # stands it at the right, as numbers do."""

    def cell(tag: str, text: str) -> str:
        number = ' class="number"' if text.startswith("#") else ""
        return f"<{tag}{number}>{text.removeprefix('#')}</{tag}>"

    head = "".join(cell("th", name) for name in names)
    body = "".join(f"<tr>{''.join(cell('td', text) for text in row)}</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _mark(state: str, told: str = "") -> str:
    return f'<b class="{_COLOUR.get(state, "soft")}">{escape(told or state)}</b>'


def _interval(value: Interval) -> str:
    return "unknown" if value.value is None else value.text()


def _time(moment: dt.datetime | None) -> str:
    return f"{moment:%Y-%m-%d %H:%M}" if moment else "–"


def _nowrap(text: str) -> str:
    return f'<span class="time">{text}</span>'


def _ago(span: dt.timedelta) -> str:
    """A span in its one telling unit."""
    hours = span.total_seconds() / 3600
    if hours < 1:
        return f"{max(0, round(hours * 60))} min"
    return f"{hours:.0f} h" if hours < 48 else f"{hours / 24:.0f} days"
