"""The stack's Prometheus configuration on a real Prometheus, with a real service and a real status server."""

import contextlib
import json
import secrets
import signal
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.checks import at_least_one
from tests.support.monitoring_records import DAY, NOW, make_drift, make_quality
from tests.support.prometheus import DASHBOARDS, PROMETHEUS, prometheus_command
from tests.support.sample_store import MODEL, SampleStore, make_sample_store
from tests.support.serving import CLASSES, ROW, FakeModel, make_contract, make_rollout, run_service
from tests.support.waiting import free_port
from towline.cli.status_server import StatusServer
from towline.config import AlertConfig
from towline.inference.scorer import RowPredictions
from towline.monitoring.alerts.notifications import Alert, AlertStore
from towline.monitoring.journal import Journal

KEY = "key-of-prometheus"
BOARDS = sorted(DASHBOARDS.glob("*.json"))
WAIT = 60.0


class Failing(FakeModel):
    """Raises an error for sizes above 900."""

    def predict_canonical(self, canonical: Any) -> RowPredictions:
        if any(row[0] > 900 for row in canonical):
            raise RuntimeError
        return super().predict_canonical(canonical)


class ScrapedService(HTTPServer):
    """The application over HTTP, with a rollout. Each scrape first sends predictions, some of which fail, and drops
    log rows.
    """

    def __init__(self, folder: Path, classes: tuple[str, ...]) -> None:
        super().__init__(("127.0.0.1", 0), _ScrapeHandler)
        folder.mkdir()
        model = Failing(make_contract(classes), folder, name=MODEL, version=2)
        challenger = FakeModel(make_contract(classes), folder, name=MODEL, version=3)
        self.rollout = make_rollout(folder, challenger, champion=2, steps=(0.0, 100.0))  # shadow
        self.running = run_service(model, {KEY: frozenset({"admin", "predict"})})
        self.refused = 0


class _ScrapeHandler(BaseHTTPRequestHandler):
    server: ScrapedService

    def do_GET(self) -> None:
        service, authorization = self.server.service, self.headers.get("Authorization", "")
        if authorization:
            for size in (5, 60, 150, None, 950):
                service.client.post("/predict", {"rows": [{**ROW, "size": size}]}, Authorization=authorization)
            service.log.drops += 3
            service.reloader.rejections = 1
        response = service.client.get(self.path, Authorization=authorization)
        self.send_response(response.status_code)
        self.send_header("Content-Type", response.headers["content-type"])
        self.end_headers()
        self.wfile.write(response.content)
        self.server.refused += response.status_code == 401

    def log_message(self, *words: Any) -> None:
        pass


@contextlib.contextmanager
def listening(server: HTTPServer) -> Iterator[str]:
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class PrometheusApi:
    """The HTTP API of a Prometheus server."""

    def __init__(self, address: str) -> None:
        self.address = address

    def get(self, path: str, **parameters: str) -> Any:
        url = f"http://{self.address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=10) as response:
            return json.load(response)["data"]

    def values(self, query: str) -> list[tuple[dict[str, str], float]]:
        return [(sample["metric"], float(sample["value"][1])) for sample in self.get("query", query=query)["result"]]


def write_configuration(folder: Path, services: dict[str, str], status: str, address: str) -> Path:
    """Writes the stack's Prometheus files with these addresses and intervals of one second."""
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    jobs = {job["job_name"]: job for job in config["scrape_configs"]}
    (folder / "key").write_text(KEY)
    jobs["service"]["authorization"] = {"credentials_file": str(folder / "key")}
    jobs["service"]["static_configs"] = [{"targets": [services["service"]]}]
    labels = {**jobs["service"], "job_name": "service-labels", "static_configs": [{"targets": [services["labels"]]}]}
    jobs["status"]["static_configs"] = [{"targets": [status]}]
    jobs["prometheus"]["static_configs"] = [{"targets": [address]}]
    config["scrape_configs"] = [jobs["service"], labels, jobs["status"], jobs["prometheus"]]
    config["alerting"] = {}
    for path in (PROMETHEUS / "rules").glob("*.yml"):
        (folder / path.name).write_text(path.read_text().replace("interval: 5m", "interval: 1s"))
    config["rule_files"] = [f"{folder}/{path.name}" for path in (PROMETHEUS / "rules").glob("*.yml")]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    return folder / "prometheus.yml"


def add_monitoring_results(sample_store: SampleStore) -> None:
    """Adds drift windows, quality windows and an alert to the champion."""
    path = sample_store.release(1) / "config.yaml"
    sections = {"slo": {"availability": 0.99, "p95_ms": 50}, "schedule": {"drift": "0 2 * * *"}}
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | sections))
    journal = Journal.of(sample_store.settings, MODEL)
    journal.add(make_drift(3, "drift"), NOW - 3 * DAY)
    journal.add(make_quality(3, "degraded"), NOW - 3 * DAY)
    alert = Alert(model=MODEL, kind="reaction", severity="ticket", title="t", at=NOW)
    AlertStore(sample_store.settings.store, alert.model, AlertConfig()).replace(alert.kind, [alert], alert.at)


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrometheusApi]:
    folder = tmp_path_factory.mktemp("prometheus")
    sample_store = make_sample_store(tmp_path_factory.mktemp("sample_store"))
    add_monitoring_results(sample_store)
    address = f"127.0.0.1:{free_port()}"
    with contextlib.ExitStack() as stack:
        services = {}
        for name, classes in (("service", ()), ("labels", CLASSES)):
            server = ScrapedService(folder / name, classes)
            server.service = stack.enter_context(server.running)
            server.service.reloader.rollout = server.rollout
            services[name] = stack.enter_context(listening(server))
        status = stack.enter_context(listening(StatusServer(0, sample_store.settings)))
        words = [
            f"--config.file={write_configuration(folder, services, status, address)}",
            f"--storage.tsdb.path={folder}/data",
            f"--web.listen-address={address}",
        ]
        name = f"towline-test-{secrets.token_hex(4)}"
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                prometheus_command("prometheus", words, folder, name=name),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        stack.callback(_stop, process)
        yield _wait_until_ready(PrometheusApi(address), process, folder / "log")


def _wait_until_ready(server: PrometheusApi, process: "subprocess.Popen[bytes]", log: Path) -> PrometheusApi:
    """Returns the server once it has scraped and evaluated for a while."""
    end = time.monotonic() + WAIT
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(OSError):
            if server.values("count_over_time(towline:slo_budget:remaining[1m]) > 3"):
                return server
        time.sleep(0.3)
    pytest.fail(log.read_text()[-3000:])


def _stop(process: "subprocess.Popen[bytes]") -> None:
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=60)


def test_all_targets_are_scraped(prometheus: PrometheusApi) -> None:
    """The service with the key from its file, the status server without a key."""
    targets = prometheus.get("targets", state="active")["activeTargets"]
    assert {target["labels"]["job"]: (target["health"], target["lastError"]) for target in targets} == dict.fromkeys(
        ("service", "service-labels", "status", "prometheus"), ("up", "")
    )
    groups = prometheus.get("rules")["groups"]
    assert {rule["lastError"] for group in groups for rule in group["rules"] if rule.get("lastError")} == set()


@pytest.mark.parametrize("path", BOARDS, ids=lambda path: path.stem)
def test_every_panel_shows_data(prometheus: PrometheusApi, path: Path) -> None:
    """Each query of each panel returns data of a service with traffic and of a monitored model."""
    variables = {"$__rate_interval": "10s", "$job": "service.*", "$model": MODEL}
    panel_queries = []
    for panel in json.loads(path.read_text())["panels"]:
        for target in panel["targets"]:
            query = target["expr"]
            for name, value in variables.items():
                query = query.replace(name, value)
            panel_queries.append((panel["title"], query))
    end = time.monotonic() + WAIT
    while True:
        empty = [(title, query) for title, query in panel_queries if not _has_number(prometheus.values(query))]
        if not empty or time.monotonic() > end:
            break
        time.sleep(0.5)
    assert empty == []
    for variable in at_least_one(json.loads(path.read_text())["templating"]["list"]):
        if variable["type"] == "query":
            query, _, label = variable["definition"].removeprefix("label_values(").removesuffix(")").rpartition(", ")
            assert {metric[label] for metric, _ in prometheus.values(query.replace("$model", MODEL))}


def _has_number(values: list[tuple[dict[str, str], float]]) -> bool:
    return any(value == value for _, value in values)


def test_slo_targets_come_from_the_config(prometheus: PrometheusApi) -> None:
    """Availability and latency are those of the champion's release, not the defaults of the rules."""
    assert prometheus.values('towline:slo:target{objective="availability"}')[0][1] == 0.99
    assert prometheus.values("towline:slo_latency:edge_seconds")[0][1] == 0.05
    assert {metric["le"] for metric, _ in prometheus.values("towline:slo_latency:edge")} == {"0.05"}


def test_failed_requests_are_recorded_and_burn_the_error_budget(prometheus: PrometheusApi) -> None:
    """A fifth of the requests fails: Prometheus records this share, and the alerts fire."""
    query = 'towline:slo_bad:ratio_rate5m{objective="availability",job="service"}'
    assert prometheus.values(query)[0][1] == pytest.approx(0.2, abs=0.01)
    firing = {
        (alert["labels"]["alertname"], alert["labels"]["severity"])
        for alert in prometheus.get("alerts")["alerts"]
        if alert["state"] == "firing"
    }
    assert firing >= {
        ("AvailabilityBurns", "page"),
        ("LogDrops", "ticket"),
        ("InputDrift", "ticket"),
        ("QualityBelowSlo", "ticket"),
        ("RunMissed", "ticket"),
    }
    assert not {name for name, _ in firing} & {"ServiceDown", "NoTraffic", "LatencyBurns", "InputInvalid", "LedgerDown"}
