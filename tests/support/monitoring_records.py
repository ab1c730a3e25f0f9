"""Records of drift checks and of measured quality, as the journal holds them."""

import datetime as dt
import urllib.error
import urllib.request
from typing import Any

from towline.monitoring.evidence import Drift, Estimate, Finding, Quality
from towline.training.interval import Interval

NOW = dt.datetime.now(dt.UTC).replace(microsecond=0)
DAY = dt.timedelta(days=1)


def make_drift(ago: float = 0, state: Any = "quiet", column: str = "rooms", **more: Any) -> Drift:
    end = NOW - ago * DAY
    moved = state == "drift"
    found = Finding(column=column, what="distribution", value=0.6 if moved else 0.1, threshold=0.3, alarm=moved)
    facts = {"version": 1, "rows": 500, "findings": (found,), "budget": 4.0, "reason": f"{state} it is"}
    return Drift(state=state, **{**facts, "start": end - DAY, "end": end, **more})


def make_quality(ago: int = 0, state: Any = "good", **more: Any) -> Quality:
    end = NOW - ago * DAY
    facts = {
        "version": 1, "metric": "mae", "value": Interval(value=21.5, low=20.5, high=22.5), "holdout": 20.0,
        "bound": 25.0, "rows": 400, "labelled": 300, "due": 350, "reason": f"{state} it is",
        "estimate": Estimate(value=23.75, trusted=False, why="the inputs have drifted"),
    }  # fmt: skip
    return Quality(state=state, **{**facts, "start": end - DAY, "end": end, **more})


def get_page(url: str, **headers: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
