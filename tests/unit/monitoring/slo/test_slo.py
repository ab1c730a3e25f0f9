"""Promises are counted right: over restarts, absences, gaps and thinning."""

import datetime as dt
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support.serving import CLASSES, ROW, FakeModel, make_contract, run_service
from towline.config import SloConfig
from towline.config.monitoring import LATENCY_BUCKETS_S
from towline.errors import ConfigError
from towline.monitoring.results import QualityResult
from towline.monitoring.slo import burn_rate, slo_history
from towline.monitoring.slo.burn_rate import SloStatus, describe_breaches, evaluate_slos
from towline.monitoring.slo.metrics_scraper import (
    PREDICTION_ROUTES,
    RequestCounters,
    ServiceSample,
    parse_metrics,
    scrape_metrics,
)
from towline.monitoring.slo.slo_history import accumulate, append_sample, downsample
from towline.training.evaluation.predictions import Interval

NOW = dt.datetime(2026, 3, 10, 12, tzinfo=dt.UTC)
MINUTE, HOUR, DAY = dt.timedelta(minutes=1), dt.timedelta(hours=1), dt.timedelta(days=1)
EDGES = (0.01, 0.1, None)
PERIOD = 30 * DAY


def sample(
    at: dt.datetime,
    requests: float = 0,
    errors: float = 0,
    within: Sequence[float] = (),
    *,
    started: float | None = 1.0,
    service: str = "http://a",
    edges: tuple[float | None, ...] = EDGES,
) -> ServiceSample:
    counts = RequestCounters(requests=requests, errors=errors, edges=edges if within else (), within=tuple(within))
    return ServiceSample(at=at, service=service, up=True, started=started, model="demo", version=1, counters=counts)


def away(at: dt.datetime) -> ServiceSample:
    return ServiceSample(at=at, service="http://a", up=False, why="Connection refused")


def minutely(rates: Callable[[int], tuple[float, float]], count: int) -> list[ServiceSample]:
    """Looks each minute up to now; ``rates`` gives requests and errors of the minute that is so long ago."""
    requests = errors = 0.0
    found = [sample(NOW - count * MINUTE)]
    for ago in reversed(range(count)):
        more, wrong = rates(ago)
        requests, errors = requests + more, errors + wrong
        found.append(sample(NOW - ago * MINUTE, requests, errors))
    return found


def one(
    samples: Sequence[ServiceSample], name: str = "availability", now: dt.datetime = NOW, **config: Any
) -> SloStatus:
    found = evaluate_slos(accumulate(samples), SloConfig(**config), now)
    return next(objective for objective in found if objective.name == name)


def test_burn_rates_and_the_budget() -> None:
    """1 % of requests failed in the last two hours at 99.9 %: ten times too fast, less over longer windows."""
    found = one(minutely(lambda ago: (100, 1 if ago < 120 else 0), 72 * 60))
    assert found.burn_rate("1h") == pytest.approx(10)
    assert found.burn_rate("5m") == pytest.approx(10)
    assert found.burn_rate("6h") == pytest.approx(10 / 3)
    assert found.burn_rate("3d") == pytest.approx(10 * 2 / 72)
    assert (found.total, found.bad) == (pytest.approx(432_000), pytest.approx(120))
    assert found.budget == pytest.approx(1 - 120 / 4320)  # of the requests of thirty such days
    assert (found.state, found.current) == ("met", "99 %")


@pytest.mark.parametrize(
    ("share", "minutes", "severity", "window"),
    [(0.0144, 60, "page", "1h"), (0.0143, 60, None, ""), (0.006, 360, "page", "6h"), (0.001, 4320, "ticket", "3d")],
)
def test_a_breach_needs_the_rate_of_its_pair(share: float, minutes: int, severity: str | None, window: str) -> None:
    """14.4 over an hour, 6 over six, 1 over three days; just below 14.4 an hour is no breach."""
    found = one(minutely(lambda ago: (10_000, 10_000 * share if ago < minutes else 0), 72 * 60))
    assert found.severity == severity
    assert found.state == ("burning" if severity else "met")
    assert (f"in the last {window}, " in found.reason) == bool(severity)
    assert (describe_breaches([found]) == found.reason) == bool(severity)


def test_trouble_that_is_over_wakes_nobody() -> None:
    """The last hour burns at 33, the last five minutes and half hour do not: what is gone is a ticket."""
    found = one(minutely(lambda ago: (100, 10 if 40 <= ago < 60 else 0), 600))
    assert [found.burn_rate(window) for window in ("5m", "30m", "1h")] == [0, 0, pytest.approx(100 / 3)]
    assert found.severity == "ticket"


def test_a_budget_that_is_gone_is_told_without_a_breach() -> None:
    """Spent a day ago, quiet since: known, and no reason to act."""
    found = one(minutely(lambda ago: (100, 100 if 2000 <= ago < 2060 else 0), 4000))
    assert found.budget is not None
    assert found.budget < 0
    assert found.state == "exhausted"
    assert describe_breaches([found]) == ""


def test_the_first_failures_do_not_spend_the_month() -> None:
    """Three minutes away are 7 % of the 43 that 99.9 % of thirty days allow, however short the watch is."""
    found = one(
        [*minutely(lambda _: (100, 0), 7), *(away(NOW + at * MINUTE) for at in (1, 2, 3))],
        "reachability",
        NOW + 3 * MINUTE,
    )
    assert found.budget == pytest.approx(1 - 3 / 43.2)
    assert "93 % of the budget is left" in found.reason


def test_a_restart_begins_counters_again_and_loses_nothing_that_was_seen() -> None:
    """Counters fall to 0, or have already outgrown what they were: the time of the start tells it."""
    samples = [
        sample(NOW - 50 * MINUTE, 1000, 10),
        sample(NOW - 40 * MINUTE, 1100, 11),
        sample(NOW - 30 * MINUTE, 40, 1, started=2.0),  # lower than before
        sample(NOW - 20 * MINUTE, 50, 1, started=2.0),
        sample(NOW - 10 * MINUTE, 60, 2, started=3.0),  # higher than before, and yet begun again
        sample(NOW, 70, 2, started=3.0),
    ]
    found = one(samples)
    assert (found.total, found.bad) == (100 + 40 + 10 + 60 + 10, 1 + 1 + 0 + 2 + 0)


def test_a_service_that_does_not_say_when_it_started_is_known_by_counters_that_fall() -> None:
    """As Prometheus does."""
    found = one(
        [sample(NOW - at * MINUTE, count, started=None) for at, count in ((30, 500), (20, 520), (10, 5), (0, 25))]
    )
    assert found.total == 20 + 5 + 20


def test_what_was_counted_before_the_first_look_is_not_ours() -> None:
    """A service that has run for months does not spend this month's budget with its first sample."""
    found = one([sample(NOW - MINUTE, 10_000_000, 5_000_000), sample(NOW, 10_000_050, 5_000_000)])
    assert (found.total, found.bad, found.budget) == (50, 0, 1)


def test_instances_are_added_up() -> None:
    """Two services with counters of their own; a falling total of both is no restart."""
    samples = [
        sample(NOW - 2 * MINUTE, 1000, 0, service="http://a"),
        sample(NOW - 2 * MINUTE, 10, 0, service="http://b"),
        sample(NOW - MINUTE, 1100, 0, service="http://a"),
        sample(NOW - MINUTE, 60, 20, service="http://b"),
    ]
    found = one(samples)
    assert (found.total, found.bad) == (150, 20)


def test_no_traffic_is_unknown() -> None:
    """Neither met nor broken, and no division by nothing."""
    found = one(minutely(lambda _: (0, 0), 60))
    assert (found.state, found.good, found.budget, found.burn_rate("1h")) == ("unknown", None, None, None)
    assert "0 requests" in found.reason


def test_before_any_look_everything_is_unknown() -> None:
    """An empty history, or one of a service that was never there."""
    for samples in ([], [away(NOW - MINUTE), away(NOW)]):
        found = evaluate_slos(accumulate(samples), SloConfig(p95_ms=50, metric=60), NOW)
        assert [objective.state for objective in found] == ["unknown"] * 4
        assert describe_breaches(found) == ""


def test_few_failures_wake_nobody() -> None:
    """Two of twelve requests are far beyond the budget, and may be chance; all of twelve are not."""
    assert one(minutely(lambda ago: (1, 1 if ago < 2 else 0), 12)).state != "burning"
    assert one(minutely(lambda _: (1, 1), 12)).state == "burning"


def test_old_scrapes_make_the_state_unknown() -> None:
    """A state of yesterday is not shown as that of now."""
    found = one(minutely(lambda _: (100, 0), 60), now=NOW + DAY)
    assert found.state == "unknown"
    assert "the last scrape was 2026-03-10 12:00" in found.reason


def test_a_service_that_is_away_burns_its_own_budget() -> None:
    """It pages; it is no reason to roll back or to train."""
    here = minutely(lambda ago: (100, 0), 600)
    gone = [away(NOW + at * MINUTE) for at in range(1, 6)]
    now = NOW + 5 * MINUTE
    found = evaluate_slos(accumulate([*here, *gone]), SloConfig(), now)
    states = {objective.name: objective.state for objective in found}
    assert states == {"availability": "met", "reachability": "burning"}
    assert found[1].severity == "page"
    assert found[1].bad == 5
    assert describe_breaches(found) == ""


def test_one_missed_look_is_no_page() -> None:
    """A restart that a look happens to meet."""
    found = one([*minutely(lambda _: (100, 0), 600), away(NOW + MINUTE)], "reachability", NOW + MINUTE)
    assert found.state == "met"
    assert found.bad == 1


def test_after_an_absence_counting_goes_on() -> None:
    """Requests answered between two looks that failed are counted when it is found again."""
    samples = [sample(NOW - 3 * MINUTE, 100), away(NOW - 2 * MINUTE), away(NOW - MINUTE), sample(NOW, 180)]
    assert one(samples).total == 80
    assert one(samples, "reachability").bad == 2


def test_a_gap_is_filled_evenly() -> None:
    """Looks six hours apart: a window of one hour holds a sixth."""
    found = one([sample(NOW - 6 * HOUR), sample(NOW, 6000, 6)])
    assert found.burn_rate("1h") == pytest.approx(1)
    assert found.burn_rate("6h") == pytest.approx(1)


@pytest.mark.parametrize(
    ("p95_ms", "slow"),
    [(10, 60), (100, 10), (55, 35), (5, 80), (5000, 10)],
    ids=["edge", "last", "half", "first", "beyond"],
)
def test_slow_requests_are_told_from_the_histogram(p95_ms: float, slow: float) -> None:
    """Exact on an edge, a straight line between two; beyond the last finite edge whatever lies there is too slow."""
    found = one([sample(NOW - MINUTE, 1, 0, (0, 0, 0)), sample(NOW, 101, 0, (40, 90, 100))], "latency", p95_ms=p95_ms)
    assert found.total == 100
    assert found.bad == pytest.approx(slow)
    assert found.target == 0.95


def test_p95_is_that_of_the_last_hour() -> None:
    """95 of 100: halfway between the edges where half the rest lies; none beyond the last finite edge."""
    history = accumulate([sample(NOW - MINUTE, 0, 0, (0, 0, 0)), sample(NOW, 100, 0, (90, 100, 100))])
    assert burn_rate.latency_quantile(history, NOW - HOUR, NOW, 0.95) == pytest.approx(0.055)
    late = accumulate([sample(NOW - MINUTE, 0, 0, (0, 0, 0)), sample(NOW, 100, 0, (0, 10, 100))])
    assert burn_rate.latency_quantile(late, NOW - HOUR, NOW, 0.95) == pytest.approx(0.1)
    assert burn_rate.latency_quantile(history, NOW, NOW + HOUR, 0.95) is None
    assert (
        one([sample(NOW - MINUTE, 0, 0, (0, 0, 0)), sample(NOW, 100, 0, (90, 100, 100))], "latency", p95_ms=9).current
        == "p95 55 ms"
    )


def test_latency_that_everyone_feels_is_a_breach() -> None:
    """Three quarters of requests too slow for an hour: the budget of 5 % goes 15 times too fast."""
    samples = [
        sample(NOW - at * MINUTE, 100 * (60 - at), 0, (10 * (60 - at), 25 * (60 - at), 100 * (60 - at)))
        for at in range(60, -1, -1)
    ]
    found = one(samples, "latency", p95_ms=100)
    assert (found.state, found.severity) == ("burning", "page")
    assert found.burn_rate("1h") == pytest.approx(15)
    assert "75 % of requests were too slow" in found.reason


def test_the_histogram_of_another_release_begins_again() -> None:
    """Other edges are never mixed with those before."""
    samples = [
        sample(NOW - 3 * MINUTE, 0, 0, (0, 0, 0)),
        sample(NOW - 2 * MINUTE, 100, 0, (0, 0, 100)),
        sample(NOW - MINUTE, 10, 0, (10, 10), started=2.0, edges=(0.5, None)),
        sample(NOW, 60, 0, (60, 60), started=2.0, edges=(0.5, None)),
    ]
    found = one(samples, "latency", p95_ms=500)
    assert (found.total, found.bad) == (50, 0)
    assert one(samples).total == 160


def test_a_low_target_can_still_be_breached() -> None:
    """At 90 % no rate reaches 14.4: all requests must have failed; half of them are a ticket."""
    assert one(minutely(lambda _: (10, 10), 90), availability=0.9).severity == "page"
    assert one(minutely(lambda _: (10, 5), 90), availability=0.9).severity == "ticket"


def test_since_forgets_what_another_champion_did() -> None:
    """After a rollback the errors of the version before lead to no second one."""
    history = accumulate(minutely(lambda ago: (100, 50 if ago >= 3 else 0), 120))
    assert describe_breaches(evaluate_slos(history, SloConfig(), NOW))
    assert describe_breaches(evaluate_slos(history, SloConfig(), NOW, since=NOW - 3 * MINUTE)) == ""


def window(
    value: float | None, ago: int, low: float | None = None, high: float | None = None, metric: str = "mae"
) -> QualityResult:
    interval = Interval(value=value, low=low, high=high)
    return QualityResult(
        state="ok", version=1, metric=metric, value=interval, holdout=50, bound=60, rows=500, labelled=400, due=500,
        start=NOW - (ago + 7) * DAY, end=NOW - ago * DAY, reason="",
    )  # fmt: skip


def metric(windows: Sequence[QualityResult], bound: float = 60) -> SloStatus:
    return evaluate_slos((), SloConfig(availability=None, metric=bound), NOW, quality=windows)[0]


def test_the_metric_has_a_budget_of_windows() -> None:
    """A tenth of the windows may miss the bound; the third bad one of nine, being the last, is a breach."""
    good, bad = (50.0, 48.0, 52.0), (90.0, 80.0, 99.0)
    nine = [window(v, ago, low, high) for ago, (v, low, high) in enumerate([bad, bad, bad, *[good] * 6])]
    found = metric(nine)
    assert (found.state, found.severity, found.bad, found.total) == ("burning", "ticket", 3, 9)
    assert found.budget == pytest.approx(1 - 3 / 9 / 0.1)
    assert "mae 90 [80, 99]" in found.current
    assert "3 of 9 windows" in describe_breaches([found])
    over = metric([window(50, 0, 48, 52), *(window(90, ago, 80, 99) for ago in (1, 2, 3))])
    assert over.state == "exhausted"
    assert metric(nine[2:]).state == "met"  # one bad window wakes nobody


def test_a_metric_misses_with_its_whole_interval_and_in_its_direction() -> None:
    """61 with an interval down to 58 may be within 60; for roc_auc it is the upper end that counts."""
    assert metric([window(61, 0, 58, 64)]).bad == 0
    assert metric([window(61, 0, 60.5, 64)]).bad == 1
    assert metric([window(0.7, 0, 0.65, 0.75, "roc_auc")], 0.8).bad == 1
    assert metric([window(0.79, 0, 0.7, 0.85, "roc_auc")], 0.8).bad == 0
    assert metric([window(0.9, 0, 0.85, 0.95, "roc_auc")], 0.8).goal.startswith("roc_auc at least 0.8")


def test_a_metric_without_labels_is_unknown() -> None:
    """No window, one without a value, or only one of another season."""
    for windows in ([], [window(None, 0)], [window(90, 40, 80, 99)]):
        assert metric(windows).state == "unknown"


def test_totals_outlast_the_file(tmp_path: Path) -> None:
    """What is kept and read again tells the same as the looks themselves, over a restart and an absence."""
    samples = [
        sample(NOW - 4 * MINUTE, 5, 0, (1, 4, 5)),
        sample(NOW - 3 * MINUTE, 45, 3, (11, 34, 45)),
        away(NOW - 2 * MINUTE),
        sample(NOW - MINUTE, 30, 3, (10, 20, 30), started=2.0),
        sample(NOW, 60, 3, (20, 40, 60), started=2.0),
    ]
    for each in samples:
        append_sample(each, tmp_path, PERIOD)
    config = SloConfig(p95_ms=100)
    assert evaluate_slos(slo_history.read_history(tmp_path), config, NOW) == evaluate_slos(
        accumulate(samples), config, NOW
    )
    assert evaluate_slos(accumulate(samples), config, NOW)[0].total == 100


def test_the_file_stays_small_and_says_the_same(tmp_path: Path) -> None:
    """Six days of looks each ten minutes, of which four are kept, a line an hour; no count of them is lost."""
    period, count, requests = 4 * DAY, 6 * 144, 0.0
    for number in range(count):
        at = NOW - (count - 1 - number) * 10 * MINUTE
        requests = (requests if number % 100 else 0) + 10
        append_sample(sample(at, requests, requests / 100, started=float(number // 100)), tmp_path, period)
    kept = slo_history.read_history(tmp_path)
    assert len(kept) < 3 * 24 + 144 + 110
    assert NOW - period - DAY < kept[0].at <= NOW - period
    found = evaluate_slos(kept, SloConfig(period=period), NOW)[0]
    assert found.total == pytest.approx(4 * 144 * 10)
    assert found.bad == pytest.approx(4 * 144 / 10)


def test_thinning_changes_no_count_of_a_whole_window() -> None:
    """Restarts between two lines that are left are in their totals."""
    samples = [
        sample(NOW - at * MINUTE, 10 * (5 - at % 5), 0, started=float(-(at // 5))) for at in range(5 * 24 * 60, -1, -1)
    ]
    whole = accumulate(samples)
    reduced = downsample(whole, NOW, PERIOD)
    assert len(reduced) < len(whole) / 3
    for hours in (1, 6, 72):
        now, before = (burn_rate._count_requests(each, NOW - hours * HOUR, NOW).total for each in (reduced, whole))
        assert now == pytest.approx(before, rel=0.002)


def test_a_line_that_a_killed_writer_left_is_passed_over(tmp_path: Path) -> None:
    """Half a line at the end is neither an error nor does it spoil the next."""
    append_sample(sample(NOW - 2 * MINUTE, 10), tmp_path, PERIOD)
    append_sample(sample(NOW - MINUTE, 30), tmp_path, PERIOD)
    path = tmp_path / slo_history.FILE
    path.write_bytes(path.read_bytes()[:-20])
    append_sample(sample(NOW, 60), tmp_path, PERIOD)
    assert slo_history.read_history(tmp_path)[-1].counters.requests == 50


def test_a_clock_that_was_set_back_loses_no_counts(tmp_path: Path) -> None:
    """Lines from the future go, the totals go on; a look at the same moment by another process is not counted twice."""
    for at, requests in ((0, 10), (60, 70)):
        append_sample(sample(NOW + at * MINUTE, requests), tmp_path, PERIOD)
    append_sample(sample(NOW + 60 * MINUTE - dt.timedelta(seconds=1), 65), tmp_path, PERIOD)
    assert [total.counters.requests for total in slo_history.read_history(tmp_path)] == [0, 60]
    append_sample(sample(NOW + 5 * MINUTE, 90), tmp_path, PERIOD)
    assert [total.at for total in slo_history.read_history(tmp_path)] == [NOW, NOW + 5 * MINUTE]
    assert slo_history.read_history(tmp_path)[-1].counters.requests == 80


def test_the_real_metrics_are_understood(tmp_path: Path) -> None:
    """Requests for predictions only: probes and pages are no part of a promise."""
    model = FakeModel(make_contract(CLASSES), tmp_path)
    with run_service(model) as service:
        for _ in range(3):
            service.client.post("/predict", {"rows": [ROW]})
        service.client.post("/invocations", {"dataframe_records": [ROW]})
        service.client.post("/predict", {"rows": [{}]})
        service.client.get("/readyz")
        service.client.get("/metadata")
        service.log.drops = 4
        service.live.model = None
        service.client.post("/predict", {"rows": [ROW]})  # 503
        service.client.get("/readyz")
        service.live.model = model
        found = parse_metrics(service.client.get("/metrics").text, "http://x", NOW)
        predicting = {endpoint.path for endpoint in service.app.endpoints if endpoint.path.endswith(PREDICTION_ROUTES)}
        assert predicting == {endpoint.path for endpoint in service.app.endpoints if endpoint.method == "POST"}
    assert found.counters is not None
    assert (found.counters.requests, found.counters.errors, found.counters.dropped) == (6, 1, 4)
    assert found.counters.edges == (*LATENCY_BUCKETS_S, None)
    assert found.counters.within[-1] == 5
    assert (found.model, found.version) == ("house-price", 3)
    assert found.started is not None
    assert 0 <= dt.datetime.now(dt.UTC).timestamp() - found.started < 60


@pytest.mark.parametrize(
    "url",
    ["", "localhost:8080", "ftp://x", "http://", "http://u:secret@x", "http://x/metrics", "http://x:y", "http://["],
)
def test_an_address_that_is_none_is_refused(url: str) -> None:
    """Before anything is asked, and without repeating what may be a password."""
    with pytest.raises(ConfigError) as refused:
        scrape_metrics(url)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("text", ["", "hello", "node_cpu_seconds_total 5\n", "<html>{", "towline_x{le=} 1"])
def test_metrics_of_others_are_refused(text: str) -> None:
    """Any exporter has /metrics."""
    with pytest.raises(ConfigError, match="not that of a towline service"):
        parse_metrics(text, "http://x", NOW)


def test_shares_are_shown_with_the_digits_that_matter() -> None:
    """What is not whole does not look whole."""
    shown = [burn_rate._format_share(share) for share in (1.0, 0.9999, 0.99952, 0.5, 0.0, 0.031)]
    assert shown == ["100 %", "99.99 %", "99.952 %", "50 %", "0 %", "3.1 %"]
