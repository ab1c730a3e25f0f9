"""What a service exports: traces and metrics by OTLP, and metrics in CloudWatch's embedded format."""

import json
import os
import signal
import socket
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import jsonschema
import pytest

from tests.support.checks import at_least_one
from tests.support.otlp_receiver import OtlpReceiver, run_receiver
from tests.support.paths import REPOSITORY
from tests.support.sample_store import MODEL, SampleStore
from tests.support.serve_process import ServeProcess
from tests.support.waiting import wait_until
from towline.prediction_log.parquet_store import read_predictions

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SCHEMA = json.loads((REPOSITORY / "tests" / "support" / "embedded_metric_format.json").read_bytes())


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[OtlpReceiver]:
    with run_receiver() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.endpoint)
        yield receiver


def send(serving: ServeProcess, document: object, **headers: str) -> httpx.Response:
    url = f"http://127.0.0.1:{serving.port}/predict"
    return httpx.post(url, json=document, headers={name.replace("_", "-"): text for name, text in headers.items()})


def logged_traces(store: SampleStore) -> Counter[str | None]:
    table = read_predictions(store.settings.layout.predictions(MODEL))
    return Counter(table["trace_id"].to_pylist())


def test_the_trace_of_a_request_continues_to_the_prediction_log(
    sample_store: SampleStore, receiver: OtlpReceiver
) -> None:
    """A span continues the caller's trace, whose id is in response and log; a request without a trace gets its own."""
    row = sample_store.probe_rows()[0]
    with ServeProcess(sample_store.settings, MODEL, "--workers", "2") as serving:
        continued = send(serving, {"row": row}, traceparent=f"00-{TRACE}-{PARENT}-01")
        own = send(serving, {"row": row})
        refused = send(serving, {"row": {}}, traceparent=f"00-{TRACE}-{PARENT}-01")
        httpx.get(f"http://127.0.0.1:{serving.port}/readyz")
        serving.stop()
    assert (continued.status_code, own.status_code, refused.status_code) == (200, 200, 422)
    by_request = {attributes["towline.request_id"]: (span, attributes) for _, span, attributes in receiver.spans}
    assert by_request.keys() == {answer.headers["x-request-id"] for answer in (continued, own, refused)}
    span, attributes = by_request[continued.json()["request_id"]]
    assert (span.trace_id.hex(), span.parent_span_id.hex(), span.name) == (TRACE, PARENT, "POST /predict")
    assert continued.headers["traceresponse"] == f"00-{TRACE}-{span.span_id.hex()}-01"
    assert attributes["http.response.status_code"] == 200
    assert attributes["towline.model.version"] == str(continued.json()["model"]["version"])
    assert by_request[refused.headers["x-request-id"]][1]["http.response.status_code"] == 422
    other = own.headers["traceresponse"].split("-")[1]
    assert other != TRACE
    assert by_request[own.json()["request_id"]][0].parent_span_id == b""
    assert {resource["service.name"] for resource, _, _ in receiver.spans} == {MODEL}
    assert logged_traces(sample_store) == {TRACE: 1, other: 1}


def test_a_trace_that_is_not_sampled_is_logged_but_not_sent(sample_store: SampleStore, receiver: OtlpReceiver) -> None:
    """The caller decides about sampling, by the flag of its traceparent."""
    with ServeProcess(sample_store.settings, MODEL) as serving:
        response = send(serving, {"row": sample_store.probe_rows()[0]}, traceparent=f"00-{TRACE}-{PARENT}-00")
        serving.stop()
    assert response.headers["traceresponse"].startswith(f"00-{TRACE}-")
    assert response.headers["traceresponse"].endswith("-00")
    assert receiver.spans == []
    assert logged_traces(sample_store) == {TRACE: 1}


def test_metrics_are_exported_by_otlp(
    sample_store: SampleStore, receiver: OtlpReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counters, gauges and histograms of /metrics are sent at intervals, and a last time at shutdown."""
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "200")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
    rows = sample_store.probe_rows()[:3]
    with ServeProcess(sample_store.settings, MODEL) as serving:
        requests = ("towline_requests", (("route", "/predict"), ("status", "200")))
        send(serving, {"rows": rows})
        wait_until(lambda: receiver.points.get(requests) == 1)
        send(serving, {"rows": rows})
        serving.stop()
    assert receiver.points[requests] == 2
    assert receiver.points["towline_input_rows", (("version", "1"),)] == 6
    latency = receiver.points["towline_request_seconds", (("route", "/predict"), ("version", "1"))]
    assert latency.count == sum(latency.bucket_counts) == 2
    assert len(latency.bucket_counts) == len(latency.explicit_bounds) + 1
    assert not latency.HasField("max")
    assert (receiver.kinds["towline_requests"], receiver.kinds["towline_in_flight"]) == ("sum", "gauge")
    assert receiver.resources[0]["service.name"] == MODEL
    assert receiver.resources[0]["deployment.environment.name"] == "test"


def test_a_collector_that_is_down_changes_no_answer(sample_store: SampleStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests are answered, and the service ends within its drain period. Without an address nothing is sent."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{unused.getsockname()[1]}")
        monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "100")
        with ServeProcess(sample_store.settings, MODEL) as serving:
            for _ in range(20):
                assert send(serving, {"row": sample_store.probe_rows()[0]}).status_code == 200
            assert serving.stop() == 0


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4318", "http://localhost:4318"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", "http/protobuf"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "60s", "milliseconds"),
    ],
)
def test_invalid_variables_are_refused(
    sample_store: SampleStore, monkeypatch: pytest.MonkeyPatch, name: str, value: str, words: str
) -> None:
    """The service does not start; the error names the variable and a valid value."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318")
    monkeypatch.setenv(name, value)
    with ServeProcess(sample_store.settings, MODEL, wait=False) as serving:
        assert serving.process.stdout is not None
        output = serving.process.stdout.read()
        assert serving.process.wait(timeout=120) == 2
        error = json.loads(output)
    assert (error["code"], error["where"]) == ("T100", name)
    assert words in error["remedy"]


def test_lines_of_the_embedded_metric_format(sample_store: SampleStore) -> None:
    """Each line after the start is valid by CloudWatch's schema; increases add up over workers and intervals."""
    row = sample_store.probe_rows()[0]
    options = ("--metrics", "emf", "--metrics-interval", "1", "--workers", "2")
    lines: list[dict[str, Any]] = []
    with ServeProcess(sample_store.settings, MODEL, *options) as serving:
        assert serving.process.stdout is not None
        for sent in (5, 10, 15):
            for _ in range(5):
                assert send(serving, {"row": row}).status_code == 200
            while sum(line.get("requests", 0) for line in lines) < sent:
                lines.append(json.loads(serving.process.stdout.readline()))
        send(serving, {"row": {}})
        serving.process.send_signal(signal.SIGTERM)
        lines += map(json.loads, serving.process.stdout.read().splitlines())
    validator = jsonschema.Draft7Validator(SCHEMA)
    assert [error.message for line in at_least_one(lines) for error in validator.iter_errors(line)] == []
    totals: Counter[tuple[str, ...]] = Counter()
    for line in lines:
        assert abs(line["_aws"]["Timestamp"] / 1000 - time.time()) < 3600
        (directive,) = line["_aws"]["CloudWatchMetrics"]
        assert directive["Namespace"] == "towline"
        (dimensions,) = directive["Dimensions"]
        assert line["model"] == MODEL
        assert "worker" in line
        assert "worker" not in dimensions
        assert all(isinstance(line[metric["Name"]], int | float) for metric in directive["Metrics"])
        for metric in directive["Metrics"]:
            totals[metric["Name"], *(line[name] for name in dimensions)] += line[metric["Name"]]
    assert totals["requests", MODEL, "/predict", "200"] == 15
    assert totals["requests", MODEL, "/predict", "422"] == 1
    assert totals["request_seconds_count", MODEL, "/predict", "1"] == 16
    assert totals["request_seconds_sum", MODEL, "/predict", "1"] > 0
    units = {
        metric["Name"]: metric["Unit"] for line in lines for metric in line["_aws"]["CloudWatchMetrics"][0]["Metrics"]
    }
    assert units["requests"] == "Count"
    assert units["request_seconds_p95"] == "Seconds"
    assert units["process_resident_memory_bytes"] == "Bytes"


def test_without_options_stdout_has_only_the_startup_line(sample_store: SampleStore) -> None:
    """No metrics are written without the option, and no response has a trace."""
    assert "OTEL_EXPORTER_OTLP_ENDPOINT" not in os.environ
    with ServeProcess(sample_store.settings, MODEL) as serving:
        response = send(serving, {"row": sample_store.probe_rows()[0]})
        serving.process.send_signal(signal.SIGTERM)
        assert serving.process.stdout is not None
        assert serving.process.stdout.read() == ""
    assert "traceresponse" not in response.headers
    assert logged_traces(sample_store) == {None: 1}
