"""SLOs of running services."""

import datetime as dt
import json
import threading
import urllib.request
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.support.commands import CommandResult
from tests.support.monitoring_records import accumulate_samples
from tests.support.sample_store import MODEL, SampleStore
from tests.support.serve_process import ServeProcess
from towline.api_keys import create_key
from towline.config import SloConfig
from towline.errors import ConfigError
from towline.monitoring.slo.burn_rate import SloStatus, evaluate_slos
from towline.monitoring.slo.metrics_scraper import (
    ServiceSample,
    scrape_metrics,
)

NOW = dt.datetime(2026, 3, 10, 12, tzinfo=dt.UTC)


def evaluate(
    samples: Sequence[ServiceSample], name: str = "availability", now: dt.datetime = NOW, **config: Any
) -> SloStatus:
    result = evaluate_slos(accumulate_samples(samples), SloConfig(**config), now)
    return next(objective for objective in result if objective.name == name)


@pytest.mark.parametrize("workers", [pytest.param("1", marks=pytest.mark.slow), "2"])
def test_a_running_service_is_scraped(sample_store: SampleStore, workers: str) -> None:
    """The service has one worker or two; its restart and its end are detected."""
    rows = json.loads((sample_store.release(1) / "probe.json").read_bytes())["rows"]
    scrapes = []
    with ServeProcess(sample_store.settings, MODEL, "--workers", workers) as serving:
        url = f"http://127.0.0.1:{serving.port}"
        scrapes.append(scrape_metrics(url))
        for _ in range(20):
            assert post(url, {"rows": rows[:1]}) == 200
        scrapes.append(scrape_when_complete(url, 20))
        serving.stop()
        scrapes.append(scrape_metrics(url))
        port = str(serving.port)
    with ServeProcess(sample_store.settings, MODEL, "--workers", workers, "--port", port):
        for _ in range(30):
            post(url, {"rows": rows[:1]})
        scrapes.append(scrape_when_complete(url, 30))
    assert [each.up for each in scrapes] == [True, True, False, True]
    assert scrapes[2].why == "Connection refused"
    assert {each.version for each in scrapes if each.up} == {1}
    history = accumulate_samples(scrapes)
    assert history[-1].counters.requests == 50
    assert history[-1].counters.errors == 0
    assert history[-1].counters.within[-1] == 50
    assert (history[-1].scrapes, history[-1].missed) == (3, 1)


def scrape_when_complete(url: str, requests: int) -> ServiceSample:
    """Scrapes once the workers have exchanged their counters, which they do twice a second."""
    end = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=20)
    while (result := scrape_metrics(url)).counters is None or result.counters.requests < requests:
        assert dt.datetime.now(dt.UTC) < end, result
    return result


def post(url: str, document: object) -> int:
    request = urllib.request.Request(
        f"{url}/predict", json.dumps(document).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=20) as response:
        return int(response.status)


def test_a_service_with_keys_needs_the_scope_admin(sample_store: SampleStore) -> None:
    """Without such a key, the error has the remedy, and the service does not count as down."""
    admin = create_key(sample_store.settings.store, "watch", ("admin",))[0]
    caller = create_key(sample_store.settings.store, "shop", ("predict",))[0]
    with ServeProcess(sample_store.settings, MODEL) as serving:
        url = f"http://127.0.0.1:{serving.port}"
        for wrong in (None, caller, "tl_00000000_none"):
            with pytest.raises(ConfigError, match="key") as caught:
                scrape_metrics(url, wrong)
            assert "--scope admin" in caught.value.remedy
            assert str(wrong) not in str(caught.value)
        assert scrape_metrics(url, admin).up


@pytest.mark.parametrize(
    ("status", "why"),
    [
        (503, "/metrics returns 503"),
        (429, "/metrics returns 429"),
        (408, "/metrics returns 408"),
        (302, None),
        (404, None),
        (401, None),
    ],
)
def test_other_responses(status: int, why: str | None) -> None:
    """A 5xx counts as down, too many requests do not; a redirect is not followed, and the key is not sent on."""
    received = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            received.append((self.path, self.headers["authorization"]))
            self.send_response(status)
            self.send_header("location", "/elsewhere")
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}"
        if why is None:
            with pytest.raises(ConfigError):
                scrape_metrics(url, "key")
        else:
            result = scrape_metrics(url, "key")
            assert (result.up, result.why, result.counters) == (status < 500, why, None)
    finally:
        server.shutdown()
        server.server_close()
    assert received == [("/metrics", "Bearer key")]


def test_the_slo_command(
    sample_store: SampleStore, command: Callable[..., CommandResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The output is text or JSON; a service that is down opens one alert; the service of another model is refused."""
    monkeypatch.setenv("TOWLINE_STORE", str(sample_store.settings.store))
    config = tmp_path / "house.yaml"
    config.write_text(
        json.dumps({"name": MODEL, "data": {"source": "x.csv", "target": "value"}, "slo": {"p95_ms": 500}})
    )
    other = tmp_path / "other.yaml"
    other.write_text(json.dumps({"name": "other", "data": {"source": "x.csv", "target": "value"}}))
    rows = json.loads((sample_store.release(1) / "probe.json").read_bytes())["rows"]
    with ServeProcess(sample_store.settings, MODEL) as serving:
        url = f"http://127.0.0.1:{serving.port}"
        assert command("slo", config, "--service", url).code == 0
        for _ in range(20):
            post(url, {"rows": rows[:1]})
        texts = command("slo", config, "--service", url, "--json")
        text = command("slo", config, "--service", url)
        refused = command("slo", other, "--service", url)
    assert texts.code == 0
    availability, reachability, latency = texts.json["slos"]
    assert (availability["state"], availability["total"], availability["budget"]) == ("met", 20, 1)
    assert (latency["state"], latency["total"]) == ("met", 20)
    assert reachability["state"] == "unknown"
    assert "99.9 % of requests without a 5xx" in text.out
    assert "serves version 1" in text.out
    assert refused.code == 2
    assert MODEL in refused.err
    for _ in range(3):
        gone = command("slo", config, "--service", url, "--json")
    assert gone.code == 0
    assert [each["up"] for each in gone.json["services"]] == [False]
    assert gone.json["slos"][1]["state"] == "burning"
    assert gone.json["alerts"]["opened"] == 1
    assert command("slo", config, "--service", url, "--json").json["alerts"]["opened"] == 0
    assert "down: Connection refused" in command("slo", config, "--service", url).out
