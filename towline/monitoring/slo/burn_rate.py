"""Service level objectives (SLOs): error budgets and burn rates.

An SLO is a share of good events, such as 99.9 % of requests. The other 0.1 % over a period are its error budget. The
burn rate is the speed at which the budget is used: at 1 it lasts for the period. An alert needs a high burn rate in a
long window, so that it is significant, and in a short one, so that it ends soon after the problem.

Windows and rates are those of "The Site Reliability Workbook" (Beyer et al., O'Reilly 2018), chapter 5, "Alerting on
SLOs": for a period of 30 days, 2 % of the budget in an hour, 5 % in six hours, 10 % in three days. The Prometheus
rules in deployments/prometheus use the same table, ``BURN_RATE_ALERTS``.
"""

import bisect
import datetime as dt
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Literal, NamedTuple

from towline.config import GREATER_IS_BETTER, Frozen, SloConfig
from towline.monitoring.results import QualityResult
from towline.monitoring.slo.slo_history import CounterTotals

SloName = Literal["availability", "reachability", "latency", "metric"]
SloState = Literal["met", "burning", "exhausted", "unknown"]
Severity = Literal["page", "ticket"]

HOUR = dt.timedelta(hours=1)
WINDOWS = {"5m": HOUR / 12, "30m": HOUR / 2, "1h": HOUR, "6h": 6 * HOUR, "3d": 72 * HOUR}
MIN_EVENTS = 10  # of a period; with fewer, the state is unknown
MIN_BAD_EVENTS = 3  # in the long window; fewer are chance
MAX_AGE = 6 * HOUR  # of the last scrape
LATENCY_TARGET = 0.95  # share of requests within p95_ms
METRIC_TARGET = 0.9  # share of quality windows within the metric's bound


class BurnRateAlert(NamedTuple):
    """An alert if the burn rate is at least ``rate`` in both windows."""

    rate: float
    long: str
    short: str
    severity: Severity


BURN_RATE_ALERTS = (
    BurnRateAlert(14.4, "1h", "5m", "page"),
    BurnRateAlert(6.0, "6h", "30m", "page"),
    BurnRateAlert(1.0, "3d", "6h", "ticket"),
)


class BurnRate(Frozen):
    """The burn rate in a window of ``WINDOWS``; None if there were no events."""

    window: str
    rate: float | None


class SloStatus(Frozen):
    """The status of one SLO.

    Attributes:
        name: availability (requests without a 5xx response), reachability (scrapes that reached the service), latency,
            metric.
        state: ``burning`` is a breach; ``exhausted`` a budget that is used up but does not burn any more.
        goal: the SLO in words.
        target: share of events that must be good.
        good: share of events that were good in the period; None without events.
        total, bad: number of requests, scrapes or windows in the period.
        current: value in the last hour or window, in words.
        budget: share of the error budget that is left; negative if more failed than allowed. While less than a period
            is known, the known part is used for all.
        burns: by window, shortest first; none for metric, which is measured once a day.
        severity: of a breach.
        reason: the state in words.
    """

    name: SloName
    state: SloState
    goal: str
    target: float
    period: dt.timedelta
    good: float | None = None
    total: float = 0.0
    bad: float = 0.0
    current: str = ""
    budget: float | None = None
    burns: tuple[BurnRate, ...] = ()
    severity: Severity | None = None
    reason: str = ""

    def burn_rate(self, window: str) -> float | None:
        return next((burn.rate for burn in self.burns if burn.window == window), None)


class _Events(NamedTuple):
    total: float
    bad: float

    @property
    def good_share(self) -> float | None:
        return 1 - self.bad / self.total if self.total > 0 else None


_Count = Callable[[Sequence[CounterTotals], dt.datetime, dt.datetime], _Events]


class _Slo(NamedTuple):
    """An SLO of the config: its events, in words, and a function that counts those of one service between two times."""

    name: SloName
    goal: str
    target: float
    events: str
    failure: str
    count_events: _Count


def evaluate_slos(
    history: Sequence[CounterTotals],
    config: SloConfig,
    now: dt.datetime,
    *,
    quality: Sequence[QualityResult] = (),
    metric: str | None = None,
    since: dt.datetime | None = None,
) -> tuple[SloStatus, ...]:
    """The status of each SLO of the config.

    Counters are interpolated linearly between two scrapes. Before the first scrape nothing is known; windows that start
    earlier use what there is. Requests slower than a limit between two histogram bounds are interpolated, too; beyond
    the last finite bound all requests count as too slow.

    Args:
        history: of one service or several, which are added up.
        config: the SLOs.
        now: time of the evaluation.
        quality: quality results, in any order.
        metric: name of the bounded metric; default: that of the last window.
        since: ignore everything before it. A decision about a champion uses the time since it serves.
    """
    history = sorted((totals for totals in history if totals.at <= now), key=lambda totals: totals.at)
    if since is not None:
        history = [totals for totals in history if totals.at >= since]
    statuses = [_evaluate(slo, history, config, now) for slo in _configured_slos(config)]
    if config.p95_ms is not None:
        p95 = latency_quantile(history, now - HOUR, now, LATENCY_TARGET)
        current = "" if p95 is None else f"p95 {_format_milliseconds(p95)}"
        statuses[-1] = statuses[-1].model_copy(update={"current": current})
    if config.metric is not None:
        windows = [window for window in quality if since is None or (window.end and window.end > since)]
        statuses.append(_evaluate_metric(windows, config, config.metric, metric, now))
    return tuple(statuses)


def describe_breaches(statuses: Iterable[SloStatus]) -> str:
    """The breaches, as ``policy.Evidence.breach`` holds them; empty if there are none.

    A service that cannot be reached is left out: neither another version nor a training repairs a machine.
    """
    return "; ".join(
        status.reason for status in statuses if status.state == "burning" and status.name != "reachability"
    )


def latency_quantile(
    history: Sequence[CounterTotals], start: dt.datetime, end: dt.datetime, share: float
) -> float | None:
    """Seconds within which a share of requests was answered, like Prometheus's ``histogram_quantile``.

    It is interpolated linearly within a bucket and never exceeds the last finite bound. None without requests. Only
    histograms with the newest bounds are used.
    """
    newest = next((totals.counters.edges for totals in reversed(history) if totals.counters.edges), ())
    within = [0.0] * len(newest)
    for totals in _split_services(history):
        edges, increase = _histogram_increase(totals, start, end)
        if edges == newest:
            within = [a + b for a, b in zip(within, increase, strict=True)]
    if not within or within[-1] <= 0:
        return None
    rank, low, below = share * within[-1], 0.0, 0.0
    for edge, count in zip(newest, within, strict=True):
        if edge is None:
            break
        if count >= rank:
            return low + (edge - low) * (rank - below) / (count - below) if count > below else edge
        low, below = edge, count
    return low


def _configured_slos(config: SloConfig) -> Iterator[_Slo]:
    """The SLOs on requests and scrapes; that on latency comes last."""
    if config.availability is not None:
        share, target = _format_share(config.availability), config.availability
        goal = f"{share} of requests without a 5xx"
        yield _Slo("availability", goal, target, "requests", "failed", _count_requests)
        goal = f"{share} of scrapes reach the service"
        yield _Slo("reachability", goal, target, "scrapes", "did not reach the service", _count_scrapes)
    if config.p95_ms is not None:
        count = partial(_count_slow, config.p95_ms / 1000)
        goal = f"95 % of requests within {config.p95_ms:g} ms"
        yield _Slo("latency", goal, LATENCY_TARGET, "requests", "were too slow", count)


def _evaluate(slo: _Slo, history: Sequence[CounterTotals], config: SloConfig, now: dt.datetime) -> SloStatus:
    status = partial(SloStatus, name=slo.name, goal=slo.goal, target=slo.target, period=config.period)
    if not history:
        return status(state="unknown", reason=f"{slo.name}: no service was scraped yet")
    if (last := history[-1].at) < now - MAX_AGE:
        return status(state="unknown", reason=f"{slo.name}: the last scrape was {last:%Y-%m-%d %H:%M} UTC")
    count = partial(_count_all, _split_services(history), slo.count_events)
    allowed, days, whole = 1 - slo.target, config.period.days, count(now - config.period, now)
    windows = {name: count(now - length, now) for name, length in WINDOWS.items()}
    rates = {
        name: events.bad / events.total / allowed if events.total > 0 else None for name, events in windows.items()
    }
    good, known = whole.good_share, min(1.0, (now - history[0].at) / config.period)
    budget = None if good is None else 1 - (1 - good) / allowed * known
    last_hour = windows["1h"].good_share
    status = partial(
        status,
        good=good,
        total=whole.total,
        bad=whole.bad,
        budget=budget,
        burns=tuple(BurnRate(window=name, rate=rate) for name, rate in rates.items()),
        current="" if last_hour is None else _format_share(last_hour),
    )
    if alert := next((each for each in BURN_RATE_ALERTS if _is_burning(each, rates, windows, allowed)), None):
        events, rate = windows[alert.long], rates[alert.long]
        reason = (
            f"{slo.name}: {_format_share(events.bad / events.total)} of {slo.events} {slo.failure} in the last "
            f"{alert.long}, burn rate {rate:.3g} (1 lasts {days} days); {_describe_budget(budget)}"
        )
        return status(state="burning", severity=alert.severity, reason=reason)
    if good is None or budget is None or whole.total < MIN_EVENTS:
        reason = f"{slo.name}: {whole.total:.0f} {slo.events} in {days} days, {MIN_EVENTS} are needed"
        return status(state="unknown", reason=reason)
    state: SloState = "exhausted" if budget <= 0 and whole.bad >= MIN_BAD_EVENTS else "met"
    share = f"{_format_share(good)} of {whole.total:,.0f} {slo.events}"
    reason = f"{slo.name}: {share} were good in {days} days; {_describe_budget(budget)}"
    return status(state=state, reason=reason)


def _is_burning(
    alert: BurnRateAlert, rates: dict[str, float | None], windows: dict[str, _Events], allowed: float
) -> bool:
    """Whether both windows burn. If the target is so low that no rate is that high, all events must have failed."""
    long, short = rates[alert.long], rates[alert.short]
    if long is None or short is None or windows[alert.long].bad < MIN_BAD_EVENTS:
        return False
    return min(long, short) >= min(alert.rate, 1 / allowed) * (1 - 1e-9)


def _evaluate_metric(
    windows: Sequence[QualityResult], config: SloConfig, bound: float, metric: str | None, now: dt.datetime
) -> SloStatus:
    """A tenth of the windows may miss the bound with their whole interval; more are a breach if the last one does."""
    measured = _select_measured(windows, bound, now - config.period, now)
    name = metric or (windows[-1].metric if windows else "the metric")
    greater_is_better = windows[-1].greater_is_better if windows else GREATER_IS_BETTER.get(name, False)
    side = "at least" if greater_is_better else "at most"
    goal = f"{name} {side} {bound:g} in {_format_share(METRIC_TARGET)} of windows"
    status = partial(SloStatus, name="metric", goal=goal, target=METRIC_TARGET, period=config.period)
    days = config.period.days
    if not measured:
        return status(state="unknown", reason=f"metric: no quality was measured in the last {days} days")
    missed = [_misses_bound(window, bound) for window in measured]
    events = _Events(len(missed), sum(missed))
    good = 1 - events.bad / events.total
    budget = 1 - (1 - good) / (1 - METRIC_TARGET)
    exhausted = budget <= 1e-9 and events.bad >= MIN_BAD_EVENTS
    state: SloState = "burning" if exhausted and missed[-1] else "exhausted" if exhausted else "met"
    current = f"{name} {measured[-1].value.text()}"
    counted = f"{sum(missed)} of {len(missed)} windows in {days} days missed {name} {bound:g}"
    return status(
        state=state,
        good=good,
        total=events.total,
        bad=events.bad,
        current=current,
        budget=budget,
        severity="ticket" if state == "burning" else None,
        reason=f"metric: {counted}, last {current}; {_describe_budget(budget)}",
    )


def _select_measured(
    windows: Sequence[QualityResult], bound: float, start: dt.datetime, now: dt.datetime
) -> list[QualityResult]:
    """The measured windows that ended after ``start``, oldest first; of a window that is still open, the last result.

    A window without a verdict, for example with few labels, is not counted as missing the bound.
    """
    ended = [(window.end, window) for window in windows if window.end and start < window.end <= now]
    latest = {(each.version, each.start): each for _, each in sorted(ended, key=lambda pair: pair[0])}
    measured = [window for window in latest.values() if window.value.value is not None]
    decided = [window for window in measured if window.state != "unknown" or not _misses_bound(window, bound)]
    return sorted(decided, key=lambda window: window.end or now)


def _misses_bound(window: QualityResult, bound: float) -> bool:
    value = window.value
    if window.greater_is_better:
        best = value.value if value.high is None else value.high
        return best is not None and best < bound
    best = value.value if value.low is None else value.low
    return best is not None and best > bound


_Vector = tuple[float, ...]


def _split_services(history: Sequence[CounterTotals]) -> list[list[CounterTotals]]:
    services: dict[str, list[CounterTotals]] = {}
    for totals in history:
        services.setdefault(totals.service, []).append(totals)
    return list(services.values())


def _count_all(
    services: Sequence[Sequence[CounterTotals]], count: _Count, start: dt.datetime, end: dt.datetime
) -> _Events:
    """Events of all services between two times."""
    events = [count(history, start, end) for history in services]
    return _Events(sum(each.total for each in events), sum(each.bad for each in events))


def _count_requests(history: Sequence[CounterTotals], start: dt.datetime, end: dt.datetime) -> _Events:
    return _Events(*_increase(history, start, end, lambda totals: (totals.counters.requests, totals.counters.errors)))


def _count_scrapes(history: Sequence[CounterTotals], start: dt.datetime, end: dt.datetime) -> _Events:
    return _Events(*_increase(history, start, end, lambda totals: (totals.scrapes, totals.missed)))


def _count_slow(seconds: float, history: Sequence[CounterTotals], start: dt.datetime, end: dt.datetime) -> _Events:
    edges, within = _histogram_increase(history, start, end)
    if not edges:
        return _Events(0.0, 0.0)
    fast, low, below = 0.0, 0.0, 0.0
    for edge, count in zip(edges, within, strict=True):
        if edge is None:
            fast = below
            break
        if seconds <= edge:
            fast = below + (count - below) * (seconds - low) / (edge - low)
            break
        low, below = edge, count
    return _Events(within[-1], within[-1] - fast)


def _histogram_increase(
    history: Sequence[CounterTotals], start: dt.datetime, end: dt.datetime
) -> tuple[tuple[float | None, ...], _Vector]:
    """The newest bounds, and the increase of requests within each. Totals with other bounds are left out."""
    edges = history[-1].counters.edges
    if not edges:
        return (), ()
    first = next((i for i in range(len(history), 0, -1) if history[i - 1].counters.edges not in (edges, ())), 0)
    zeros = (0.0,) * len(edges)
    return edges, _increase(history[first:], start, end, lambda totals: totals.counters.within or zeros)


def _increase(
    history: Sequence[CounterTotals], start: dt.datetime, end: dt.datetime, read: Callable[[CounterTotals], _Vector]
) -> _Vector:
    before, after = _interpolate(history, start, read), _interpolate(history, end, read)
    return tuple(b - a for a, b in zip(before, after, strict=True))


def _interpolate(
    history: Sequence[CounterTotals], moment: dt.datetime, read: Callable[[CounterTotals], _Vector]
) -> _Vector:
    """Counters at a time, interpolated between two scrapes; constant before the first and after the last."""
    position = bisect.bisect_left(history, moment, key=lambda totals: totals.at)
    if position == 0:
        return read(history[0])
    if position == len(history):
        return read(history[-1])
    before, after = history[position - 1], history[position]
    share = (moment - before.at) / (after.at - before.at)
    return tuple(a + (b - a) * share for a, b in zip(read(before), read(after), strict=True))


def _format_share(share: float) -> str:
    """With enough digits that a share below 1 does not look like 100 %: 99.9 %, 99.95 %."""
    text = f"{share:.1%}" if abs(share - 1) > 0.02 else f"{share:.4%}"
    number = text.removesuffix("%")
    return f"{number.rstrip('0').rstrip('.') if '.' in number else number} %"


def _format_milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.3g} ms" if seconds < 1 else f"{seconds * 1000:,.0f} ms"


def _describe_budget(budget: float | None) -> str:
    if budget is None:
        return "the budget is unknown"
    return f"{100 * budget:.0f} % of the budget is left" if budget > 0 else f"the budget is used {1 - budget:.1f} times"
