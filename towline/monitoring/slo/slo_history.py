"""The history of a service's counters: running totals that continue across restarts.

Old totals are kept at a lower resolution.
"""

import datetime as dt
from collections.abc import Sequence
from pathlib import Path

import orjson

from towline import files
from towline.config import Frozen
from towline.errors import ConfigError
from towline.monitoring.slo.metrics_scraper import RequestCounters, ServiceSample, scrape_metrics

FILE = "service.jsonl"
_DAY = dt.timedelta(days=1)
_CLOCK_TOLERANCE = dt.timedelta(minutes=1)  # an earlier scrape means that the clock was set back
_REWRITE_AFTER = 100  # superfluous lines until the file is rewritten


class CounterTotals(Frozen):
    """The counters of one service at a time, counted from the first successful scrape.

    Attributes:
        scrapes: number of scrapes since the first.
        missed: number of those scrapes that failed because the service was down.
        counters: sums of increases. A restart begins at 0 again; increases between the last scrape and the end of
            the process are lost, as in Prometheus.
        last: the last successful scrape; stored with the newest totals only.
    """

    at: dt.datetime
    service: str
    scrapes: int = 0
    missed: int = 0
    counters: RequestCounters
    last: ServiceSample | None = None


def record_scrape(
    url: str, key: str | None, folder: Path, model: str, period: dt.timedelta, now: dt.datetime
) -> ServiceSample:
    """Scrapes a service once and records the result.

    Args:
        url: address of the service.
        key: API key with the scope admin, if the service has keys.
        folder: monitoring folder of the model.
        model: model that must be served there.
        period: how long totals are kept.
        now: time of the scrape.

    Raises:
        ConfigError: the address is not that of a towline service, it serves another model, or it refuses the key.
        TransientError: the store cannot be written.
    """
    sample = scrape_metrics(url, key, now=now)
    if sample.up and sample.model and sample.model != model:
        remedy = f"give the address of a service of `towline serve {model}`"
        raise ConfigError(f"it serves {sample.model!r}, not {model!r}", where=sample.service, remedy=remedy)
    append_sample(sample, folder, period)
    return sample


def append_sample(sample: ServiceSample, folder: Path, period: dt.timedelta) -> None:
    """Adds a scrape to the totals; they are kept per minute for a day, and per hour for ``period``.

    Raises:
        TransientError: the store cannot be written.
    """
    path = folder / FILE
    with files.exclusive_lock(path.with_suffix(".lock")):
        history = list(read_history(folder))
        newest = next((totals for totals in reversed(history) if totals.service == sample.service), None)
        if newest and newest.at - _CLOCK_TOLERANCE < sample.at <= newest.at:
            return  # another process scraped at the same time
        totals = advance(newest, sample)
        if totals is None:
            return
        reduced = [each for each in history if each.service != sample.service or each.at < sample.at]
        clock_set_back = len(reduced) < len(history)
        reduced = downsample([*reduced, totals], sample.at, period)
        if clock_set_back or len(reduced) <= len(history) + 1 - _REWRITE_AFTER:
            files.write(path, b"".join(map(_to_line, reduced)))
        else:
            files.append(path, _to_line(totals))


def read_history(folder: Path) -> tuple[CounterTotals, ...]:
    """All totals, oldest first. Partial lines of an interrupted write are skipped."""
    return tuple(sorted(files.read_records(folder / FILE, CounterTotals), key=lambda totals: totals.at))


def advance(before: CounterTotals | None, sample: ServiceSample) -> CounterTotals | None:
    """The totals after one more scrape; None until a scrape reaches the service."""
    if before is None:
        if sample.counters is None:
            return None
        return CounterTotals(at=sample.at, service=sample.service, counters=RequestCounters(), last=sample)
    totals = before.model_copy(update={"at": sample.at, "scrapes": before.scrapes + 1})
    if sample.counters is None:
        return totals.model_copy(update={"missed": before.missed + (not sample.up)})
    last = before.last
    if last is None or last.counters is None:  # the file was edited: start again here
        return totals.model_copy(update={"last": sample})
    base = RequestCounters() if _restarted(last, last.counters, sample, sample.counters) else last.counters
    counters = _add(before.counters, _increase(base, sample.counters))
    return totals.model_copy(update={"counters": counters, "last": sample})


def downsample(history: Sequence[CounterTotals], now: dt.datetime, period: dt.timedelta) -> list[CounterTotals]:
    """Keeps the last totals of each minute of the last day and of each hour before, and those at the period's start."""
    reduced: dict[tuple[str, str, int], CounterTotals] = {}
    newest = {totals.service: totals for totals in history}
    for totals in history:
        age, seconds = now - totals.at, int(totals.at.timestamp())
        slot = ("day", seconds // 60) if age <= _DAY else ("period", seconds // 3600) if age <= period else ("base", 0)
        if totals is newest[totals.service]:
            if age <= period:
                reduced[totals.service, *slot] = totals
        else:
            reduced[totals.service, *slot] = totals.model_copy(update={"last": None})
    active = {service for service, totals in newest.items() if now - totals.at <= period}
    return [totals for totals in reduced.values() if totals.service in active]


def _restarted(last: ServiceSample, before: RequestCounters, sample: ServiceSample, counters: RequestCounters) -> bool:
    if last.started is not None and sample.started is not None and sample.started > last.started:
        return True
    return counters.requests < before.requests


def _increase(base: RequestCounters, counters: RequestCounters) -> RequestCounters:
    within = base.within if base.edges == counters.edges else (0.0,) * len(counters.within)
    return RequestCounters(
        requests=max(0.0, counters.requests - base.requests),
        errors=max(0.0, counters.errors - base.errors),
        edges=counters.edges,
        within=tuple(max(0.0, b - a) for a, b in zip(within, counters.within, strict=True)),
        dropped=max(0.0, counters.dropped - base.dropped),
    )


def _add(total: RequestCounters, increase: RequestCounters) -> RequestCounters:
    """The sum. With other bounds, the histogram starts again."""
    edges, within = total.edges, total.within
    if increase.edges:
        same = edges == increase.edges
        within = tuple(a + b for a, b in zip(within, increase.within, strict=True)) if same else increase.within
        edges = increase.edges
    return RequestCounters(
        requests=total.requests + increase.requests,
        errors=total.errors + increase.errors,
        edges=edges,
        within=within,
        dropped=total.dropped + increase.dropped,
    )


def _to_line(totals: CounterTotals) -> bytes:
    return orjson.dumps(totals.model_dump(mode="json"), option=orjson.OPT_APPEND_NEWLINE)
