"""The Prometheus metrics of the service."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.metrics import Samples, parse_samples, sample_value
from tests.support.serving import CLASSES, ROW, FakeLog, FakeModel, RunningService, make_contract, run_service


@pytest.fixture
def service(tmp_path: Path) -> Iterator[RunningService]:
    with run_service(FakeModel(make_contract(), tmp_path)) as running:
        yield running


def read(service: RunningService) -> Samples:
    return parse_samples(service.client.get("/metrics").text)


def test_requests_and_errors_are_counted(service: RunningService) -> None:
    """Requests are counted by route and status, errors by code."""
    for _ in range(3):
        service.client.post("/predict", {"rows": [ROW, ROW]})
    service.client.post("/predict", {"rows": [{}]})
    service.client.send(b"{")
    service.client.get("/nope")
    service.client.get("/nope/7")
    scrape = read(service)
    assert sample_value(scrape, "requests_total", route="/predict", status="200") == 3
    assert sample_value(scrape, "requests_total", route="/predict", status="422") == 1
    assert sample_value(scrape, "requests_total", route="/predict", status="400") == 1
    assert sample_value(scrape, "requests_total", route="unknown", status="404") == 2
    assert sample_value(scrape, "errors_total", code="T210") == 1
    assert sample_value(scrape, "errors_total", code="malformed-json") == 1
    assert sample_value(scrape, "input_rows_total", version="3") == 6
    assert sample_value(scrape, "in_flight") == 1  # this request
    read(service)
    assert sample_value(read(service), "requests_total", route="/predict", status="200") == 3


def test_latency_is_observed_by_route_and_version(service: RunningService) -> None:
    """Each request is in the histogram once, in seconds."""
    for _ in range(5):
        service.client.post("/predict", {"rows": [ROW]})
    scrape = read(service)
    where = {"route": "/predict", "version": "3"}
    assert sample_value(scrape, "request_seconds_count", **where) == 5
    assert sample_value(scrape, "request_seconds_bucket", le="+Inf", **where) == 5
    assert sample_value(scrape, "request_seconds_bucket", le="10.0", **where) == 5
    assert 0 < sample_value(scrape, "request_seconds_sum", **where) < 50


def test_input_anomalies_are_counted(service: RunningService) -> None:
    """Anomalies are nulls, values out of range and unseen categories, by column."""
    service.client.post("/predict", {"rows": [{**ROW, "size": 500, "kind": "castle"}, {**ROW, "size": None}, ROW]})
    scrape = read(service)
    assert sample_value(scrape, "input_anomalies_total", version="3", column="size", kind="out_of_range") == 1
    assert sample_value(scrape, "input_anomalies_total", version="3", column="size", kind="null") == 1
    assert sample_value(scrape, "input_anomalies_total", version="3", column="kind", kind="unseen") == 1
    assert sample_value(scrape, "input_anomalies_total", version="3", column="sunny", kind="null") == 0


def test_predicted_values_are_in_a_histogram(service: RunningService) -> None:
    """Its buckets cover the target's training range; a value on an edge belongs to the lower bucket."""
    service.client.post("/predict", {"rows": [{**ROW, "size": size} for size in (-50, 5, 5.5, 100, 1000)]})
    scrape = read(service)
    cells = {
        le: sample_value(scrape, "predictions_bucket", version="3", le=le)
        for le in ("0.0", "10.0", "20.0", "200.0", "+Inf")
    }
    assert cells == {"0.0": 1, "10.0": 2, "20.0": 3, "200.0": 4, "+Inf": 5}
    assert sample_value(scrape, "predictions_sum", version="3") == -100 + 10 + 11 + 200 + 2000


def test_predicted_labels_are_counted(tmp_path: Path) -> None:
    with run_service(FakeModel(make_contract(CLASSES), tmp_path)) as service:
        service.client.post("/predict", {"rows": [{**ROW, "size": size} for size in (1, 2, 90)]})
        scrape = read(service)
    assert sample_value(scrape, "predicted_labels_total", version="3", label="no") == 2
    assert sample_value(scrape, "predicted_labels_total", version="3", label="yes") == 1


def test_versions_are_counted_separately(service: RunningService, tmp_path: Path) -> None:
    service.client.post("/predict", {"rows": [ROW]})
    folder = tmp_path / "newer"
    folder.mkdir()
    service.reloader.model = FakeModel(make_contract(), folder, version=4)
    service.client.post("/predict", {"rows": [ROW, ROW]})
    scrape = read(service)
    assert sample_value(scrape, "input_rows_total", version="3") == 1
    assert sample_value(scrape, "input_rows_total", version="4") == 2
    assert sample_value(scrape, "request_seconds_count", route="/predict", version="4") == 1
    assert sample_value(scrape, "model_version", name="house-price") == 4


def test_the_log_and_the_process_have_metrics(service: RunningService) -> None:
    """Queue depth, dropped rows, CPU and memory."""
    service.log.depth, service.log.drops = 7, 2
    scrape = read(service)
    assert sample_value(scrape, "queue_depth", queue="log") == 7
    assert sample_value(scrape, "log_dropped_total") == 2
    assert sample_value(scrape, "process_cpu_seconds_total") > 0
    assert sample_value(scrape, "process_resident_memory_bytes") > 10_000_000
    service.log.drops = 5
    assert sample_value(read(service), "log_dropped_total") == 5


def test_predictions_that_are_dropped_during_a_scrape_are_counted(
    service: RunningService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log's thread may drop rows at any time; the next scrape counts those after the last one."""
    drops = list[int]()

    def drop_one(_: FakeLog) -> int:
        drops.append(len(drops))
        return drops[-1]

    monkeypatch.setattr(FakeLog, "drops", property(drop_one))
    for _ in range(5):
        scrape = read(service)
        assert sample_value(scrape, "log_dropped_total") == drops[-1]


def test_metrics_are_flushed_without_a_scrape(service: RunningService) -> None:
    """The scrape of another worker then includes them."""

    async def serve() -> None:
        async with service.app.router.lifespan_context(service.app):
            await service.client.post_async("/predict", {"rows": [ROW]})
            await asyncio.sleep(0)
            metrics = service.app.endpoints[0]._metrics
            for _ in range(200):
                if metrics.registry.get_sample_value("towline_input_rows_total", {"version": "3"}):
                    return
                await asyncio.sleep(0.05)
            pytest.fail("nothing was counted")

    service.client.run(serve())
