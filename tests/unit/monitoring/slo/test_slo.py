"""SLO evaluation: counters over restarts, outages, gaps and downsampling."""

import datetime as dt
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support.monitoring_records import accumulate_samples
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
from towline.monitoring.slo.slo_history import append_sample, downsample
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


def unreachable_sample(at: dt.datetime) -> ServiceSample:
    return ServiceSample(at=at, service="http://a", up=False, why="Connection refused")


def minutely(rates: Callable[[int], tuple[float, float]], count: int) -> list[ServiceSample]:
    """One scrape a minute until now; ``rates`` gives requests and errors of the minute this many minutes ago."""
    requests = errors = 0.0
    result = [sample(NOW - count * MINUTE)]
    for ago in reversed(range(count)):
        more, wrong = rates(ago)
        requests, errors = requests + more, errors + wrong
        result.append(sample(NOW - ago * MINUTE, requests, errors))
    return result


def evaluate(
    samples: Sequence[ServiceSample], name: str = "availability", now: dt.datetime = NOW, **config: Any
) -> SloStatus:
    result = evaluate_slos(accumulate_samples(samples), SloConfig(**config), now)
    return next(objective for objective in result if objective.name == name)


def test_burn_rates_and_the_budget() -> None:
    """1 % of requests failed in the last two hours at 99.9 %: the burn rate is 10, and less over longer windows."""
    result = evaluate(minutely(lambda ago: (100, 1 if ago < 120 else 0), 72 * 60))
    assert result.burn_rate("1h") == pytest.approx(10)
    assert result.burn_rate("5m") == pytest.approx(10)
    assert result.burn_rate("6h") == pytest.approx(10 / 3)
    assert result.burn_rate("3d") == pytest.approx(10 * 2 / 72)
    assert (result.total, result.bad) == (pytest.approx(432_000), pytest.approx(120))
    assert result.budget == pytest.approx(1 - 120 / 4320)  # of the requests of thirty days at this rate
    assert (result.state, result.current) == ("met", "99 %")


@pytest.mark.parametrize(
    ("share", "minutes", "severity", "window"),
    [(0.0144, 60, "page", "1h"), (0.0143, 60, None, ""), (0.006, 360, "page", "6h"), (0.001, 4320, "ticket", "3d")],
)
def test_a_breach_needs_the_burn_rate_of_the_alert(
    share: float, minutes: int, severity: str | None, window: str
) -> None:
    """14.4 over an hour, 6 over six hours, 1 over three days; slightly below 14.4 is no breach."""
    result = evaluate(minutely(lambda ago: (10_000, 10_000 * share if ago < minutes else 0), 72 * 60))
    assert result.severity == severity
    assert result.state == ("burning" if severity else "met")
    assert (f"in the last {window}, " in result.reason) == bool(severity)
    assert (describe_breaches([result]) == result.reason) == bool(severity)


def test_a_problem_that_is_over_is_a_ticket() -> None:
    """The last hour has a burn rate of 33, the last five and thirty minutes have 0: no page."""
    result = evaluate(minutely(lambda ago: (100, 10 if 40 <= ago < 60 else 0), 600))
    assert [result.burn_rate(window) for window in ("5m", "30m", "1h")] == [0, 0, pytest.approx(100 / 3)]
    assert result.severity == "ticket"


def test_an_exhausted_budget_without_failures_is_no_breach() -> None:
    """The budget was used up a day ago without failures since: the state is exhausted."""
    result = evaluate(minutely(lambda ago: (100, 100 if 2000 <= ago < 2060 else 0), 4000))
    assert result.budget is not None
    assert result.budget < 0
    assert result.state == "exhausted"
    assert describe_breaches([result]) == ""


def test_the_budget_is_that_of_the_whole_period() -> None:
    """Three minutes of outage are 7 % of the 43 minutes that 99.9 % of 30 days allow, also in a short history."""
    result = evaluate(
        [*minutely(lambda _: (100, 0), 7), *(unreachable_sample(NOW + at * MINUTE) for at in (1, 2, 3))],
        "reachability",
        NOW + 3 * MINUTE,
    )
    assert result.budget == pytest.approx(1 - 3 / 43.2)
    assert "93 % of the budget is left" in result.reason


def test_counters_continue_after_a_restart() -> None:
    """The start time shows the restart, whether counters are lower or already higher than before."""
    samples = [
        sample(NOW - 50 * MINUTE, 1000, 10),
        sample(NOW - 40 * MINUTE, 1100, 11),
        sample(NOW - 30 * MINUTE, 40, 1, started=2.0),  # lower than before the restart
        sample(NOW - 20 * MINUTE, 50, 1, started=2.0),
        sample(NOW - 10 * MINUTE, 60, 2, started=3.0),  # higher than before, although the counter was reset
        sample(NOW, 70, 2, started=3.0),
    ]
    result = evaluate(samples)
    assert (result.total, result.bad) == (100 + 40 + 10 + 60 + 10, 1 + 1 + 0 + 2 + 0)


def test_decreasing_counters_show_a_restart() -> None:
    """Without a start time, a decrease is a restart, as in Prometheus."""
    result = evaluate(
        [sample(NOW - at * MINUTE, count, started=None) for at, count in ((30, 500), (20, 520), (10, 5), (0, 25))]
    )
    assert result.total == 20 + 5 + 20


def test_counts_before_the_first_scrape_are_ignored() -> None:
    """The first scrape of a service that has run for months does not use this month's budget."""
    result = evaluate([sample(NOW - MINUTE, 10_000_000, 5_000_000), sample(NOW, 10_000_050, 5_000_000)])
    assert (result.total, result.bad, result.budget) == (50, 0, 1)


def test_instances_are_added_up() -> None:
    """Two services have separate counters; a restart of one does not change those of the other."""
    samples = [
        sample(NOW - 2 * MINUTE, 1000, 0, service="http://a"),
        sample(NOW - 2 * MINUTE, 10, 0, service="http://b"),
        sample(NOW - MINUTE, 1100, 0, service="http://a"),
        sample(NOW - MINUTE, 60, 20, service="http://b"),
    ]
    result = evaluate(samples)
    assert (result.total, result.bad) == (150, 20)


def test_no_traffic_is_unknown() -> None:
    """Without requests nothing is divided by zero."""
    result = evaluate(minutely(lambda _: (0, 0), 60))
    assert (result.state, result.good, result.budget, result.burn_rate("1h")) == ("unknown", None, None, None)
    assert "0 requests" in result.reason


def test_without_scrapes_every_state_is_unknown() -> None:
    """The history is empty, or the service was never reached."""
    for samples in ([], [unreachable_sample(NOW - MINUTE), unreachable_sample(NOW)]):
        result = evaluate_slos(accumulate_samples(samples), SloConfig(p95_ms=50, metric=60), NOW)
        assert [objective.state for objective in result] == ["unknown"] * 4
        assert describe_breaches(result) == ""


def test_few_failures_are_no_breach() -> None:
    """Two failures of twelve requests may be chance; twelve failures are a breach."""
    assert evaluate(minutely(lambda ago: (1, 1 if ago < 2 else 0), 12)).state != "burning"
    assert evaluate(minutely(lambda _: (1, 1), 12)).state == "burning"


def test_old_scrapes_make_the_state_unknown() -> None:
    """The state of yesterday is not reported as the current state."""
    result = evaluate(minutely(lambda _: (100, 0), 60), now=NOW + DAY)
    assert result.state == "unknown"
    assert "the last scrape was 2026-03-10 12:00" in result.reason


def test_an_unreachable_service_uses_the_budget_of_reachability() -> None:
    """The alert is a page, but causes no rollback and no training."""
    here = minutely(lambda ago: (100, 0), 600)
    unreachable = [unreachable_sample(NOW + at * MINUTE) for at in range(1, 6)]
    now = NOW + 5 * MINUTE
    result = evaluate_slos(accumulate_samples([*here, *unreachable]), SloConfig(), now)
    states = {objective.name: objective.state for objective in result}
    assert states == {"availability": "met", "reachability": "burning"}
    assert result[1].severity == "page"
    assert result[1].bad == 5
    assert describe_breaches(result) == ""


def test_one_failed_scrape_is_no_page() -> None:
    """A scrape may fail during a restart."""
    result = evaluate(
        [*minutely(lambda _: (100, 0), 600), unreachable_sample(NOW + MINUTE)], "reachability", NOW + MINUTE
    )
    assert result.state == "met"
    assert result.bad == 1


def test_counting_continues_after_an_outage() -> None:
    """Requests between failed scrapes are counted with the next successful scrape."""
    samples = [
        sample(NOW - 3 * MINUTE, 100),
        unreachable_sample(NOW - 2 * MINUTE),
        unreachable_sample(NOW - MINUTE),
        sample(NOW, 180),
    ]
    assert evaluate(samples).total == 80
    assert evaluate(samples, "reachability").bad == 2


def test_a_service_that_answers_without_its_metrics_is_reached() -> None:
    """It limits the requests, or is slow to read them; its counters continue with the next scrape."""
    limited = ServiceSample(at=NOW - MINUTE, service="http://a", up=True, why="/metrics returns 429")
    samples = [sample(NOW - 12 * MINUTE + at * MINUTE, 100 + at) for at in range(11)]
    samples += [limited, sample(NOW, 180)]
    reached = evaluate(samples, "reachability")
    assert (reached.total, reached.bad) == (12, 0)
    assert evaluate(samples).total == 80


def test_a_gap_is_filled_evenly() -> None:
    """Between scrapes six hours apart, a window of one hour has a sixth of the requests."""
    result = evaluate([sample(NOW - 6 * HOUR), sample(NOW, 6000, 6)])
    assert result.burn_rate("1h") == pytest.approx(1)
    assert result.burn_rate("6h") == pytest.approx(1)


@pytest.mark.parametrize(
    ("p95_ms", "slow"),
    [(10, 60), (100, 10), (55, 35), (5, 80), (5000, 10)],
    ids=["edge", "last", "half", "first", "beyond"],
)
def test_slow_requests_are_interpolated_in_the_histogram(p95_ms: float, slow: float) -> None:
    """Exact at a bound, linear between bounds; beyond the last finite bound every request is too slow."""
    result = evaluate(
        [sample(NOW - MINUTE, 1, 0, (0, 0, 0)), sample(NOW, 101, 0, (40, 90, 100))], "latency", p95_ms=p95_ms
    )
    assert result.total == 100
    assert result.bad == pytest.approx(slow)
    assert result.target == 0.95


def test_p95_is_that_of_the_last_hour() -> None:
    """The latency is interpolated between two bounds; beyond the last finite bound it is that bound."""
    history = accumulate_samples([sample(NOW - MINUTE, 0, 0, (0, 0, 0)), sample(NOW, 100, 0, (90, 100, 100))])
    assert burn_rate.latency_quantile(history, NOW - HOUR, NOW, 0.95) == pytest.approx(0.055)
    late = accumulate_samples([sample(NOW - MINUTE, 0, 0, (0, 0, 0)), sample(NOW, 100, 0, (0, 10, 100))])
    assert burn_rate.latency_quantile(late, NOW - HOUR, NOW, 0.95) == pytest.approx(0.1)
    assert burn_rate.latency_quantile(history, NOW, NOW + HOUR, 0.95) is None
    assert (
        evaluate(
            [sample(NOW - MINUTE, 0, 0, (0, 0, 0)), sample(NOW, 100, 0, (90, 100, 100))], "latency", p95_ms=9
        ).current
        == "p95 55 ms"
    )


def test_slow_requests_are_a_breach() -> None:
    """Three quarters of the requests of an hour are too slow: the burn rate of the 5 % budget is 15."""
    samples = [
        sample(NOW - at * MINUTE, 100 * (60 - at), 0, (10 * (60 - at), 25 * (60 - at), 100 * (60 - at)))
        for at in range(60, -1, -1)
    ]
    result = evaluate(samples, "latency", p95_ms=100)
    assert (result.state, result.severity) == ("burning", "page")
    assert result.burn_rate("1h") == pytest.approx(15)
    assert "75 % of requests were too slow" in result.reason


def test_histograms_with_other_bounds_are_not_mixed() -> None:
    """After a change of the bounds the histogram starts again."""
    samples = [
        sample(NOW - 3 * MINUTE, 0, 0, (0, 0, 0)),
        sample(NOW - 2 * MINUTE, 100, 0, (0, 0, 100)),
        sample(NOW - MINUTE, 10, 0, (10, 10), started=2.0, edges=(0.5, None)),
        sample(NOW, 60, 0, (60, 60), started=2.0, edges=(0.5, None)),
    ]
    result = evaluate(samples, "latency", p95_ms=500)
    assert (result.total, result.bad) == (50, 0)
    assert evaluate(samples).total == 160


def test_a_low_target_can_still_be_breached() -> None:
    """At 90 % no burn rate reaches 14.4: if all requests fail, it is a page; if half fail, a ticket."""
    assert evaluate(minutely(lambda _: (10, 10), 90), availability=0.9).severity == "page"
    assert evaluate(minutely(lambda _: (10, 5), 90), availability=0.9).severity == "ticket"


def test_since_ignores_failures_of_an_earlier_champion() -> None:
    """After a rollback, errors of the version before lead to no second rollback."""
    history = accumulate_samples(minutely(lambda ago: (100, 50 if ago >= 3 else 0), 120))
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
    """A tenth of the windows may miss the bound; the third bad window of nine is a breach if it is the last."""
    good, bad = (50.0, 48.0, 52.0), (90.0, 80.0, 99.0)
    nine = [window(v, ago, low, high) for ago, (v, low, high) in enumerate([bad, bad, bad, *[good] * 6])]
    result = metric(nine)
    assert (result.state, result.severity, result.bad, result.total) == ("burning", "ticket", 3, 9)
    assert result.budget == pytest.approx(1 - 3 / 9 / 0.1)
    assert "mae 90 [80, 99]" in result.current
    assert "3 of 9 windows" in describe_breaches([result])
    over = metric([window(50, 0, 48, 52), *(window(90, ago, 80, 99) for ago in (1, 2, 3))])
    assert over.state == "exhausted"
    assert metric(nine[2:]).state == "met"  # one bad window is no breach


def test_a_window_misses_the_bound_with_its_whole_interval() -> None:
    """For an error the lower end counts, for a score the upper end."""
    assert metric([window(61, 0, 58, 64)]).bad == 0
    assert metric([window(61, 0, 60.5, 64)]).bad == 1
    assert metric([window(0.7, 0, 0.65, 0.75, "roc_auc")], 0.8).bad == 1
    assert metric([window(0.79, 0, 0.7, 0.85, "roc_auc")], 0.8).bad == 0
    assert metric([window(0.9, 0, 0.85, 0.95, "roc_auc")], 0.8).goal.startswith("roc_auc at least 0.8")


def test_a_window_is_counted_once() -> None:
    """Each run measures an open window again; without a verdict, it does not miss the bound."""
    results = [
        window(90, ago, 80, 99).model_copy(update={"start": NOW - 30 * DAY, "state": "degraded"}) for ago in (2, 1, 0)
    ]
    assert (metric(results).state, metric(results).bad, metric(results).total) == ("met", 1, 1)
    early = [window(90, ago, 80, 99).model_copy(update={"state": "unknown"}) for ago in (2, 1, 0)]
    assert metric(early).state == "unknown"


def test_a_metric_without_labels_is_unknown() -> None:
    """Cases: no window, no window with a value, and only a window before the period."""
    for windows in ([], [window(None, 0)], [window(90, 40, 80, 99)]):
        assert metric(windows).state == "unknown"


def test_stored_totals_equal_those_in_memory(tmp_path: Path) -> None:
    """Over a restart and an outage, the file gives the same result as the scrapes."""
    samples = [
        sample(NOW - 4 * MINUTE, 5, 0, (1, 4, 5)),
        sample(NOW - 3 * MINUTE, 45, 3, (11, 34, 45)),
        unreachable_sample(NOW - 2 * MINUTE),
        sample(NOW - MINUTE, 30, 3, (10, 20, 30), started=2.0),
        sample(NOW, 60, 3, (20, 40, 60), started=2.0),
    ]
    for each in samples:
        append_sample(each, tmp_path, PERIOD)
    config = SloConfig(p95_ms=100)
    assert evaluate_slos(slo_history.read_history(tmp_path), config, NOW) == evaluate_slos(
        accumulate_samples(samples), config, NOW
    )
    assert evaluate_slos(accumulate_samples(samples), config, NOW)[0].total == 100


@pytest.mark.slow
def test_downsampling_bounds_the_file(tmp_path: Path) -> None:
    """Of scrapes every ten minutes for six days, one an hour is stored for four days; no request is lost."""
    period, count, requests = 4 * DAY, 6 * 144, 0.0
    for number in range(count):
        at = NOW - (count - 1 - number) * 10 * MINUTE
        requests = (requests if number % 100 else 0) + 10
        append_sample(sample(at, requests, requests / 100, started=float(number // 100)), tmp_path, period)
    remaining = slo_history.read_history(tmp_path)
    assert len(remaining) < 3 * 24 + 144 + 110
    assert NOW - period - DAY < remaining[0].at <= NOW - period
    result = evaluate_slos(remaining, SloConfig(period=period), NOW)[0]
    assert result.total == pytest.approx(4 * 144 * 10)
    assert result.bad == pytest.approx(4 * 144 / 10)


def test_downsampling_changes_no_count_of_a_window() -> None:
    """Restarts between two stored lines are included in the totals."""
    samples = [
        sample(NOW - at * MINUTE, 10 * (5 - at % 5), 0, started=float(-(at // 5))) for at in range(5 * 24 * 60, -1, -1)
    ]
    whole = accumulate_samples(samples)
    reduced = downsample(whole, NOW, PERIOD)
    assert len(reduced) < len(whole) / 3
    for hours in (1, 6, 72):
        now, before = (burn_rate._count_requests(each, NOW - hours * HOUR, NOW).total for each in (reduced, whole))
        assert now == pytest.approx(before, rel=0.002)


def test_a_partial_line_is_skipped(tmp_path: Path) -> None:
    """Half a line at the end is no error and does not damage the next line."""
    append_sample(sample(NOW - 2 * MINUTE, 10), tmp_path, PERIOD)
    append_sample(sample(NOW - MINUTE, 30), tmp_path, PERIOD)
    path = tmp_path / slo_history.FILE
    path.write_bytes(path.read_bytes()[:-20])
    append_sample(sample(NOW, 60), tmp_path, PERIOD)
    assert slo_history.read_history(tmp_path)[-1].counters.requests == 50


def test_a_clock_that_was_set_back_loses_no_counts(tmp_path: Path) -> None:
    """Lines dated in the future are removed, the totals continue; two scrapes at the same time count once."""
    for at, requests in ((0, 10), (60, 70)):
        append_sample(sample(NOW + at * MINUTE, requests), tmp_path, PERIOD)
    append_sample(sample(NOW + 60 * MINUTE - dt.timedelta(seconds=1), 65), tmp_path, PERIOD)
    assert [total.counters.requests for total in slo_history.read_history(tmp_path)] == [0, 60]
    append_sample(sample(NOW + 5 * MINUTE, 90), tmp_path, PERIOD)
    assert [total.at for total in slo_history.read_history(tmp_path)] == [NOW, NOW + 5 * MINUTE]
    assert slo_history.read_history(tmp_path)[-1].counters.requests == 80


def test_metrics_of_the_service_are_parsed(tmp_path: Path) -> None:
    """Only prediction requests count, not probes and pages."""
    model = FakeModel(make_contract(CLASSES), tmp_path)
    with run_service(model) as service:
        for _ in range(3):
            service.client.post("/predict", {"rows": [ROW]})
        service.client.post("/invocations", {"dataframe_records": [ROW]})
        service.client.post("/predict", {"rows": [{}]})
        service.client.get("/readyz")
        service.client.get("/metadata")
        service.log.drops = 4
        service.reloader.model = None
        service.client.post("/predict", {"rows": [ROW]})  # 503
        service.client.get("/readyz")
        service.reloader.model = model
        result = parse_metrics(service.client.get("/metrics").text, "http://x", NOW)
        predicting = {endpoint.path for endpoint in service.app.endpoints if endpoint.path.endswith(PREDICTION_ROUTES)}
        assert predicting == {endpoint.path for endpoint in service.app.endpoints if endpoint.method == "POST"}
    assert result.counters is not None
    assert (result.counters.requests, result.counters.errors, result.counters.dropped) == (6, 1, 4)
    assert result.counters.edges == (*LATENCY_BUCKETS_S, None)
    assert result.counters.within[-1] == 5
    assert (result.model, result.version) == ("house-price", 3)
    assert result.started is not None
    assert 0 <= dt.datetime.now(dt.UTC).timestamp() - result.started < 60


@pytest.mark.parametrize(
    "url",
    ["", "localhost:8080", "ftp://x", "http://", "http://u:secret@x", "http://x/metrics", "http://x:y", "http://["],
)
def test_invalid_addresses_are_refused(url: str) -> None:
    """No request is sent, and the error does not repeat a password."""
    with pytest.raises(ConfigError) as caught:
        scrape_metrics(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "hello", "node_cpu_seconds_total 5\n", "<html>{", "towline_x{le=} 1"])
def test_metrics_of_another_exporter_are_refused(text: str) -> None:
    """The metrics must be those of towline."""
    with pytest.raises(ConfigError, match="not that of a towline service"):
        parse_metrics(text, "http://x", NOW)


def test_shares_have_enough_digits() -> None:
    """A share below 1 is not shown as 100 %."""
    texts = [burn_rate._format_share(share) for share in (1.0, 0.9999, 0.99952, 0.5, 0.0, 0.031)]
    assert texts == ["100 %", "99.99 %", "99.952 %", "50 %", "0 %", "3.1 %"]
