"""What services have done since they are watched, restarts taken out: running totals, thinned as they age."""

import datetime as dt
from collections.abc import Iterable, Sequence
from pathlib import Path

import orjson

from towline import files
from towline.config import Frozen
from towline.errors import ConfigError
from towline.monitoring.slo.metrics_scraper import RequestCounters, ServiceSample, scrape

FILE = "service.jsonl"
_DAY = dt.timedelta(days=1)
_BACK = dt.timedelta(minutes=1)  # a look that is further back shows a clock that was set back
_SPARE = 100  # lines too many until the file is written anew


class CounterTotals(Frozen):
    """What one service had done by a moment, counted from the first look that found it.

    Attributes:
        looks: since that first one. missed: of these, found it away.
        counts: sums of increases. A counter begins again where the service was started again; what it counted between
            the last look and its end is lost, as it is to Prometheus.
        last: the last look that found it; kept with the newest total only.
    """

    at: dt.datetime
    service: str
    looks: int = 0
    missed: int = 0
    counts: RequestCounters
    last: ServiceSample | None = None


def look(url: str, key: str | None, folder: Path, model: str, period: dt.timedelta, now: dt.datetime) -> ServiceSample:
    """Looks at a service once, and keeps what it says.

    Args:
        url: the service's own address.
        key: with the scope admin, where the service has keys.
        folder: of the model's watch.
        model: what must be served there.
        period: how far back is kept.
        now: the moment of the look.

    Raises:
        ConfigError: what answers is no service of ours, serves another model, or refuses the key.
        TransientError: the store cannot be written.
    """
    sample = scrape(url, key, now=now)
    if sample.up and sample.model and sample.model != model:
        remedy = f"give the address of a service of `towline serve {model}`"
        raise ConfigError(f"it serves {sample.model!r}, not {model!r}", where=sample.service, remedy=remedy)
    keep(sample, folder, period)
    return sample


def keep(sample: ServiceSample, folder: Path, period: dt.timedelta) -> None:
    """Adds a look to the totals; one a minute is kept for a day, one an hour up to ``period``.

    Raises:
        TransientError: the store cannot be written.
    """
    path = folder / FILE
    with files.exclusive_lock(path.with_suffix(".lock")):
        totals = list(read(folder))
        mine = [total for total in totals if total.service == sample.service]
        newest = mine[-1] if mine else None
        if newest and newest.at - _BACK < sample.at <= newest.at:
            return  # another looked at the same time
        total = advance(newest, sample)
        if total is None:
            return
        kept = [one for one in totals if one.service != sample.service or one.at < sample.at]
        turned_back = len(kept) < len(totals)
        kept = thin([*kept, total], sample.at, period)
        if turned_back or len(kept) <= len(totals) + 1 - _SPARE:
            files.write(path, b"".join(map(_line, kept)))
        else:
            files.append(path, _line(total))


def read(folder: Path) -> tuple[CounterTotals, ...]:
    """All totals, oldest first. Lines that a killed writer left in parts are passed over."""
    return tuple(sorted(files.records(folder / FILE, CounterTotals), key=lambda total: total.at))


def totals(samples: Iterable[ServiceSample]) -> tuple[CounterTotals, ...]:
    """The totals of looks in the order of their time."""
    newest: dict[str, CounterTotals] = {}
    found = []
    for sample in samples:
        total = advance(newest.get(sample.service), sample)
        if total is not None:
            newest[sample.service] = total
            found.append(total)
    return tuple(found)


def advance(before: CounterTotals | None, sample: ServiceSample) -> CounterTotals | None:
    """The total after one more look; None while a service was never found. The first look is where counting begins."""
    if before is None:
        return (
            CounterTotals(at=sample.at, service=sample.service, counts=RequestCounters(), last=sample)
            if sample.counts
            else None
        )
    looked = before.model_copy(update={"at": sample.at, "looks": before.looks + 1})
    if sample.counts is None:
        return looked.model_copy(update={"missed": before.missed + 1})
    last = before.last
    if last is None or last.counts is None:  # a file that was tampered with: begin here
        return looked.model_copy(update={"last": sample})
    begun = RequestCounters() if _restarted(last, last.counts, sample, sample.counts) else last.counts
    counts = _added(before.counts, _increase(begun, sample.counts))
    return looked.model_copy(update={"counts": counts, "last": sample})


def thin(totals: Sequence[CounterTotals], now: dt.datetime, period: dt.timedelta) -> list[CounterTotals]:
    """The last total of each minute of a day, of each hour before, and the one with which the period begins."""
    kept: dict[tuple[str, str, int], CounterTotals] = {}
    newest = {total.service: total for total in totals}
    for total in totals:
        age, seconds = now - total.at, int(total.at.timestamp())
        slot = ("day", seconds // 60) if age <= _DAY else ("period", seconds // 3600) if age <= period else ("base", 0)
        if total is newest[total.service]:
            if age <= period:
                kept[total.service, *slot] = total
        else:
            kept[total.service, *slot] = total.model_copy(update={"last": None})
    alive = {service for service, total in newest.items() if now - total.at <= period}
    return [total for total in kept.values() if total.service in alive]


def _restarted(last: ServiceSample, before: RequestCounters, now: ServiceSample, counts: RequestCounters) -> bool:
    if last.started is not None and now.started is not None and now.started > last.started:
        return True
    return counts.requests < before.requests


def _increase(begun: RequestCounters, now: RequestCounters) -> RequestCounters:
    before = begun.within if begun.edges == now.edges else (0.0,) * len(now.within)
    return RequestCounters(
        requests=max(0.0, now.requests - begun.requests),
        errors=max(0.0, now.errors - begun.errors),
        edges=now.edges,
        within=tuple(max(0.0, b - a) for a, b in zip(before, now.within, strict=True)),
        dropped=max(0.0, now.dropped - begun.dropped),
    )


def _added(total: RequestCounters, more: RequestCounters) -> RequestCounters:
    """The sum. With other edges the histogram begins again."""
    edges, within = total.edges, total.within
    if more.edges:
        same = edges == more.edges
        within = tuple(a + b for a, b in zip(within, more.within, strict=True)) if same else more.within
        edges = more.edges
    return RequestCounters(
        requests=total.requests + more.requests,
        errors=total.errors + more.errors,
        edges=edges,
        within=within,
        dropped=total.dropped + more.dropped,
    )


def _line(total: CounterTotals) -> bytes:
    return orjson.dumps(total.model_dump(mode="json"), option=orjson.OPT_APPEND_NEWLINE)
