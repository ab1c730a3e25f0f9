"""What a service promises, and how fast it uses up what may go wrong.

An objective is a share of good events, such as 99.9 % of requests. The other 0.1 % are its error budget over a
period. The burn rate is how many times faster than evenly the budget goes: at 1 it lasts the period. An alarm wants
both a long window, so that it tells of something that matters, and a short one, so that it ends when the trouble does.
Windows and rates are those of "The Site Reliability Workbook" (Beyer and others, O'Reilly 2018), chapter 5, "Alerting
on SLOs"; of a period of 30 days they stand for 2 % of the budget gone in an hour, 5 % in six, 10 % in three days.
"""

import bisect
import datetime as dt
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple

from towline.config import GREATER_IS_BETTER, Frozen, SloConfig
from towline.monitoring.results import QualityResult
from towline.monitoring.slo.slo_history import CounterTotals

Name = Literal["availability", "answering", "latency", "metric"]
State = Literal["met", "burning", "spent", "unknown"]
Severity = Literal["page", "ticket"]

HOUR = dt.timedelta(hours=1)
WINDOWS = {"5m": HOUR / 12, "30m": HOUR / 2, "1h": HOUR, "6h": 6 * HOUR, "3d": 72 * HOUR}
FEW = 10  # events in a period; fewer say nothing
FEW_BAD = 3  # bad ones in the long window; fewer are chance, and wake nobody
STALE = 6 * HOUR  # after it nobody knows how the service does
QUICK = 0.95  # of requests must be within p95_ms
SOUND = 0.9  # of quality windows must keep the metric's bound


class BurnRateAlert(NamedTuple):
    """Both windows must burn at ``rate``."""

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
    """How fast the budget goes in a window of ``WINDOWS``; None where nothing happened in it."""

    window: str
    rate: float | None


class Objective(Frozen):
    """One promise, and how it stands.

    Attributes:
        name: availability (requests without a 5xx), answering (looks that found the service), latency, metric.
        state: ``burning`` is a breach, ``spent`` a budget that is gone but burns no more.
        goal, reason: in words.
        target: share that must be good.
        good: share that was, over the period; None where nothing happened.
        total, bad: requests, looks or windows of the period.
        shown: how it is now, in words: of the last hour, or of the last window.
        budget: share that is left of the period's; negative where more went wrong than was allowed. As long as less
            than a period was watched, what was seen stands for what is to come.
        burns: by window, the shortest first; none for metric, which is looked at once a day.
        severity: of a breach.
    """

    name: Name
    state: State
    goal: str
    target: float
    period: dt.timedelta
    good: float | None = None
    total: float = 0.0
    bad: float = 0.0
    shown: str = ""
    budget: float | None = None
    burns: tuple[BurnRate, ...] = ()
    severity: Severity | None = None
    reason: str = ""

    def burn(self, window: str) -> float | None:
        return next((burn.rate for burn in self.burns if burn.window == window), None)


class _Count(NamedTuple):
    total: float
    bad: float


_Counting = Callable[[dt.datetime, dt.datetime], _Count]


def evaluate(
    history: Sequence[CounterTotals],
    config: SloConfig,
    now: dt.datetime,
    *,
    quality: Sequence[QualityResult] = (),
    metric: str | None = None,
    since: dt.datetime | None = None,
) -> tuple[Objective, ...]:
    """How each objective of the config stands.

    Between two looks a counter is taken to have grown evenly; before the first nothing is known, and windows that begin
    earlier hold what there is. Requests slower than a bound between two edges of the histogram are told by a straight
    line between the edges; beyond the last finite edge all count as too slow.

    Args:
        history: of ``traffic.read`` or ``traffic.totals``; of several services, these are added up.
        config: the promises.
        now: the moment.
        quality: windows, in any order.
        metric: the one that is bounded; None takes that of the last window.
        since: look at nothing before it. A decision about a champion asks since when it serves: what the one before
            did is no reason to take this one away.
    """
    history = sorted((total for total in history if total.at <= now), key=lambda total: total.at)
    if since is not None:
        history = [total for total in history if total.at >= since]
    found = []
    if config.availability is not None:
        goal = f"{_percent(config.availability)} of requests without a 5xx"
        ask = _Ask("availability", goal, config.availability, "requests", "failed")
        found.append(_objective(ask, history, config, now, _by(history, _requests)))
        ask = _Ask(
            "answering",
            f"{_percent(config.availability)} of looks find the service",
            config.availability,
            "looks",
            "found nobody",
        )
        found.append(_objective(ask, history, config, now, _by(history, _looks)))
    if config.p95_ms is not None:
        ask = _Ask("latency", f"95 % of requests within {config.p95_ms:g} ms", QUICK, "requests", "were too slow")
        one = _objective(ask, history, config, now, _by(history, _slow(config.p95_ms / 1000)))
        p95 = quantile(history, now - HOUR, now, QUICK)
        found.append(one.model_copy(update={"shown": "" if p95 is None else f"p95 {_milliseconds(p95)}"}))
    if config.metric is not None:
        windows = [one for one in quality if since is None or (one.end and one.end > since)]
        found.append(_metric(windows, config, config.metric, metric, now))
    return tuple(found)


def breach(objectives: Iterable[Objective]) -> str:
    """What burns too fast, as ``policy.Evidence.breach`` takes it; empty if nothing does.

    A service that does not answer is not among it: neither another version nor training mends a machine.
    """
    return "; ".join(one.reason for one in objectives if one.state == "burning" and one.name != "answering")


def quantile(history: Sequence[CounterTotals], start: dt.datetime, end: dt.datetime, share: float) -> float | None:
    """Seconds within which a share of requests was answered, as Prometheus's ``histogram_quantile`` tells it.

    It is told by a straight line between the edges around it, and never beyond the last finite one; None where nothing
    was asked. Only histograms with the edges of the newest count.
    """
    newest = next((total.counts.edges for total in reversed(history) if total.counts.edges), ())
    within = [0.0] * len(newest)
    for totals in _services(history):
        edges, more = _within(totals, start, end)
        if edges == newest:
            within = [a + b for a, b in zip(within, more, strict=True)]
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


class _Ask(NamedTuple):
    """An objective as it is asked for: name, goal, target, what is counted, and what is wrong with bad ones."""

    name: Name
    goal: str
    target: float
    what: str
    wrong: str


def _objective(
    ask: _Ask, history: Sequence[CounterTotals], config: SloConfig, now: dt.datetime, count: _Counting
) -> Objective:
    allowed, days = 1 - ask.target, config.period.days
    whole = count(now - config.period, now)
    one = Objective(name=ask.name, state="unknown", goal=ask.goal, target=ask.target, period=config.period)
    if not history:
        return one.model_copy(update={"reason": f"{ask.name}: no service was found yet"})
    if (last := history[-1].at) < now - STALE:
        return one.model_copy(update={"reason": f"{ask.name}: nobody has looked since {last:%Y-%m-%d %H:%M} UTC"})
    counts = {window: count(now - length, now) for window, length in WINDOWS.items()}
    rates = {window: found.bad / found.total / allowed if found.total > 0 else None for window, found in counts.items()}
    good = 1 - whole.bad / whole.total if whole.total > 0 else None
    watched = min(1.0, (now - history[0].at) / config.period)
    budget = None if good is None else 1 - (1 - good) / allowed * watched
    hour = counts["1h"]
    one = one.model_copy(
        update={
            "good": good,
            "total": whole.total,
            "bad": whole.bad,
            "budget": budget,
            "burns": tuple(BurnRate(window=window, rate=rate) for window, rate in rates.items()),
            "shown": _percent(1 - hour.bad / hour.total) if hour.total > 0 else "",
        }
    )
    if pair := next((pair for pair in BURN_RATE_ALERTS if _burns(pair, rates, counts, allowed)), None):
        found, rate = counts[pair.long], rates[pair.long]
        reason = (
            f"{ask.name}: {_percent(found.bad / found.total)} of {ask.what} {ask.wrong} in the last {pair.long}, "
            f"{rate:.3g} times what lasts {days} days; {_left(budget)}"
        )
        return one.model_copy(update={"state": "burning", "severity": pair.severity, "reason": reason})
    if good is None or budget is None or whole.total < FEW:
        reason = f"{ask.name}: {whole.total:.0f} {ask.what} in {days} days, {FEW} are needed"
        return one.model_copy(update={"reason": reason})
    state: State = "spent" if budget <= 0 and whole.bad >= FEW_BAD else "met"
    reason = f"{ask.name}: {_percent(good)} of {whole.total:,.0f} {ask.what} were good in {days} days; {_left(budget)}"
    return one.model_copy(update={"state": state, "reason": reason})


def _burns(pair: BurnRateAlert, rates: dict[str, float | None], counts: dict[str, _Count], allowed: float) -> bool:
    """Whether both windows do. Where a low target lets no rate be so high, all must have gone wrong."""
    long, short = rates[pair.long], rates[pair.short]
    if long is None or short is None or counts[pair.long].bad < FEW_BAD:
        return False
    rate = min(pair.rate, 1 / allowed)
    return min(long, short) >= rate * (1 - 1e-9)


def _metric(
    windows: Sequence[QualityResult], config: SloConfig, bound: float, metric: str | None, now: dt.datetime
) -> Objective:
    """A tenth of the windows may miss the bound with their whole interval; more are a breach if the last one does."""
    ended = [(one.end, one) for one in windows if one.end and now - config.period < one.end <= now]
    known = [one for _, one in sorted(ended, key=lambda pair: pair[0]) if one.value.value is not None]
    name = metric or (windows[-1].metric if windows else "the metric")
    side = "at least" if GREATER_IS_BETTER.get(name, False) else "at most"
    goal = f"{name} {side} {bound:g} in {_percent(SOUND)} of windows"
    one = Objective(name="metric", state="unknown", goal=goal, target=SOUND, period=config.period)
    days = config.period.days
    if not known:
        return one.model_copy(update={"reason": f"metric: no quality is known of the last {days} days"})
    missed = [_misses(window, bound) for window in known]
    good = 1 - sum(missed) / len(missed)
    budget = 1 - (1 - good) / (1 - SOUND)
    spent = budget <= 1e-9 and sum(missed) >= FEW_BAD
    state: State = "burning" if spent and missed[-1] else "spent" if spent else "met"
    told = f"{name} {known[-1].value.text()}"
    reason = f"metric: {sum(missed)} of {len(missed)} windows in {days} days missed {name} {bound:g}, last {told}"
    return one.model_copy(
        update={
            "state": state,
            "good": good,
            "total": len(missed),
            "bad": sum(missed),
            "shown": told,
            "budget": budget,
            "severity": "ticket" if state == "burning" else None,
            "reason": f"{reason}; {_left(budget)}",
        }
    )


def _misses(window: QualityResult, bound: float) -> bool:
    value = window.value
    if GREATER_IS_BETTER.get(window.metric, False):
        best = value.value if value.high is None else value.high
        return best is not None and best < bound
    best = value.value if value.low is None else value.low
    return best is not None and best > bound


_Vector = tuple[float, ...]


def _services(history: Sequence[CounterTotals]) -> list[list[CounterTotals]]:
    found: dict[str, list[CounterTotals]] = {}
    for total in history:
        found.setdefault(total.service, []).append(total)
    return list(found.values())


def _by(
    history: Sequence[CounterTotals], one: Callable[[Sequence[CounterTotals], dt.datetime, dt.datetime], _Count]
) -> _Counting:
    """Counts of all services together between two moments."""
    services = _services(history)

    def count(start: dt.datetime, end: dt.datetime) -> _Count:
        found = [one(totals, start, end) for totals in services]
        return _Count(sum(each.total for each in found), sum(each.bad for each in found))

    return count


def _requests(totals: Sequence[CounterTotals], start: dt.datetime, end: dt.datetime) -> _Count:
    return _Count(*_grown(totals, start, end, lambda total: (total.counts.requests, total.counts.errors)))


def _looks(totals: Sequence[CounterTotals], start: dt.datetime, end: dt.datetime) -> _Count:
    return _Count(*_grown(totals, start, end, lambda total: (total.looks, total.missed)))


def _slow(seconds: float) -> Callable[[Sequence[CounterTotals], dt.datetime, dt.datetime], _Count]:
    def count(totals: Sequence[CounterTotals], start: dt.datetime, end: dt.datetime) -> _Count:
        edges, within = _within(totals, start, end)
        if not edges:
            return _Count(0.0, 0.0)
        quick, low, below = 0.0, 0.0, 0.0
        for edge, upto in zip(edges, within, strict=True):
            if edge is None:
                quick = below
                break
            if seconds <= edge:
                quick = below + (upto - below) * (seconds - low) / (edge - low)
                break
            low, below = edge, upto
        return _Count(within[-1], within[-1] - quick)

    return count


def _within(
    totals: Sequence[CounterTotals], start: dt.datetime, end: dt.datetime
) -> tuple[tuple[float | None, ...], _Vector]:
    """The newest edges, and how many more requests took no longer than each. What had other edges is left out."""
    edges = totals[-1].counts.edges
    if not edges:
        return (), ()
    alike = next((place for place in range(len(totals), 0, -1) if totals[place - 1].counts.edges not in (edges, ())), 0)
    none = (0.0,) * len(edges)
    return edges, _grown(totals[alike:], start, end, lambda total: total.counts.within or none)


def _grown(
    totals: Sequence[CounterTotals], start: dt.datetime, end: dt.datetime, read: Callable[[CounterTotals], _Vector]
) -> _Vector:
    return tuple(b - a for a, b in zip(_at(totals, start, read), _at(totals, end, read), strict=True))


def _at(totals: Sequence[CounterTotals], moment: dt.datetime, read: Callable[[CounterTotals], _Vector]) -> _Vector:
    """Counters at a moment, on a straight line between two looks; before the first look and after the last, theirs."""
    place = bisect.bisect_left(totals, moment, key=lambda total: total.at)
    if place == 0:
        return read(totals[0])
    if place == len(totals):
        return read(totals[-1])
    before, after = totals[place - 1], totals[place]
    share = (moment - before.at) / (after.at - before.at)
    return tuple(a + (b - a) * share for a, b in zip(read(before), read(after), strict=True))


def _percent(share: float) -> str:
    """Enough digits that what is not whole does not look whole: 99.9 %, 99.95 %."""
    text = f"{share:.1%}" if abs(share - 1) > 0.02 else f"{share:.4%}"
    number = text.removesuffix("%")
    return f"{number.rstrip('0').rstrip('.') if '.' in number else number} %"


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.3g} ms" if seconds < 1 else f"{seconds * 1000:,.0f} ms"


def _left(budget: float | None) -> str:
    if budget is None:
        return "nothing is known of the budget"
    return (
        f"{100 * budget:.0f} % of the budget is left" if budget > 0 else f"the budget is spent {1 - budget:.1f} times"
    )
