"""Records of drift checks and measured quality, as in the journal."""

import datetime as dt
import urllib.error
import urllib.request
from collections.abc import Iterable
from typing import Any

from towline.monitoring.results import (
    DriftCheckResult,
    DriftResult,
    GainResult,
    PerformanceEstimate,
    QualityResult,
)
from towline.monitoring.slo.metrics_scraper import ServiceSample
from towline.monitoring.slo.slo_history import CounterTotals, advance
from towline.training.evaluation.predictions import Interval

NOW = dt.datetime.now(dt.UTC).replace(microsecond=0)
DAY = dt.timedelta(days=1)


def make_drift(ago: float = 0, state: Any = "ok", column: str = "rooms", **more: Any) -> DriftResult:
    end = NOW - ago * DAY
    moved = state == "drift"
    result = DriftCheckResult(
        column=column, name="distribution", value=0.6 if moved else 0.1, threshold=0.3, alarm=moved
    )
    facts = {"version": 1, "rows": 500, "checks": (result,), "budget": 4.0, "reason": f"{state} it is"}
    return DriftResult(state=state, **{**facts, "start": end - DAY, "end": end, **more})


def make_quality(ago: int = 0, state: Any = "ok", **more: Any) -> QualityResult:
    end = NOW - ago * DAY
    facts = {
        "version": 1, "metric": "mae", "value": Interval(value=21.5, low=20.5, high=22.5), "holdout": 20.0,
        "bound": 25.0, "rows": 400, "labelled": 300, "due": 350, "reason": f"{state} it is",
        "estimate": PerformanceEstimate(value=23.75, trusted=False, why="the inputs have drifted"),
    }  # fmt: skip
    return QualityResult(state=state, **{**facts, "start": end - DAY, "end": end, **more})


def make_gain_windows(until: dt.datetime, refit: float) -> list[GainResult]:
    """Three windows before a time, in which the refit's loss is this multiple of the champion's."""
    blocks = tuple((1 + number / 10, refit * (1 + number / 10)) for number in range(10))
    champion = sum(block[0] for block in blocks) / len(blocks)
    return [
        GainResult(
            state="measured", version=1, start=until - (ago + 1) * DAY, end=until - ago * DAY, rows=300,
            loss="absolute error", champion=champion, refit=refit * champion, blocks=blocks, fitted_rows=900, reason="",
        )
        for ago in (2, 1, 0)
    ]  # fmt: skip


def get_page(url: str, **headers: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=30) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def accumulate_samples(samples: Iterable[ServiceSample]) -> tuple[CounterTotals, ...]:
    """The totals after each scrape; the scrapes are in time order."""
    newest: dict[str, CounterTotals] = {}
    history = []
    for sample in samples:
        totals = advance(newest.get(sample.service), sample)
        if totals is not None:
            newest[sample.service] = totals
            history.append(totals)
    return tuple(history)
