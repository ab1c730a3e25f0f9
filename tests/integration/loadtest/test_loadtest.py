"""The load test sends the requested load, and reports what the service counted."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tests.support.commands import CommandResult
from tests.support.loadtest_service import FIELDS, ROW, FakeService
from tests.support.paths import REPOSITORY
from towline.cli import main
from towline.operations.loadtest.load_result import Load, LoadTestResult
from towline.operations.loadtest.service_under_test import ServiceUnderTest, vary_rows


def loadtest(*words: object) -> CommandResult:
    """The command in a separate process: Locust replaces blocking functions of Python."""
    command = [Path(sys.executable).with_name("towline"), "loadtest", *map(str, words)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    return CommandResult(result.returncode, result.stdout, result.stderr)


def load(fake: FakeService, *words: object) -> dict[str, Any]:
    result = loadtest(fake.url, *words, "--json")
    assert result.code == 0, result.err
    return dict(result.json)


def until(condition: Callable[[], object], every: float = 0.05) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "the condition was not met in time"
        time.sleep(every)


@pytest.mark.slow
def test_stall_raises_latencies_at_a_fixed_rate_but_not_with_users(fake: FakeService) -> None:
    """At a fixed rate, all requests due during a stall of the service are slow, each by the remaining time of the
    stall; with two users, only two requests are.
    """
    fake.hold_from, fake.hold_to = 21, 61  # one request is sent before the load
    result = load(fake, "--rate", 100, "--duration", "1s")
    assert fake.held_requests == 40
    assert (result["requests"], result["failed"]) == (100, 0)
    # request 21 is due 400 ms before request 61 ends the stall, the next one 390 ms before, and so on
    assert result["latency_ms"]["max"] >= 389
    assert result["latency_ms"]["p90"] >= 299

    fake.requests.clear()
    fake.hold_to, fake.held_requests = 61, 0
    fake._gate.clear()
    load(fake, "--users", 2, "--duration", "2s")
    assert fake.held_requests <= 2


@pytest.mark.slow
def test_users_wait_for_responses(fake: FakeService) -> None:
    """There are as many concurrent requests as users; the result has the service's count of requests."""
    fake.delay = 0.02
    result = loadtest(fake.url, "--users", 5, "--duration", "2s", "--json")
    assert result.code == 0, result.err
    assert fake.max_concurrent == 5
    assert result.json["model"] == "demo@3"
    assert result.json["failed"] == 0
    assert result.json["requests"] == len(fake.requests) - 1  # one request is sent before the load
    assert result.json["latency_ms"]["p50"] >= 20
    assert result.json["rate"] is None


@pytest.mark.slow
@pytest.mark.parametrize("kind", [("--users", 3), ("--rate", 120)])
def test_errors_are_counted_by_kind(fake: FakeService, kind: tuple[str, int]) -> None:
    """Refused requests by their title, and responses without predictions."""
    fake.refuse_every, fake.invalid_every = 5, 7
    result = load(fake, *kind, "--duration", "1.5s")
    tries = len(fake.requests) - result["requests"]
    numbers = range(tries + 1, len(fake.requests) + 1)
    refused = sum(number % 5 == 0 for number in numbers)
    strange = sum(number % 7 == 0 and number % 5 != 0 for number in numbers)
    assert result["errors"] == {
        "429 Too many requests with this key": refused,
        "an answer without predictions": strange,
    }
    assert result["failed"] == refused + strange > 0


def test_rows_are_within_the_ranges_of_training() -> None:
    """The example is first; the others have valid ranges, categories and nulls, and are the same every time."""
    rows = vary_rows(ROW, FIELDS)
    assert rows[0] == ROW
    assert rows == vary_rows(ROW, FIELDS)
    assert len({json.dumps(row) for row in rows}) > 50
    assert all(row.keys() == ROW.keys() for row in rows)
    assert all(isinstance(row["size"], int) and 1 <= row["size"] <= 40 for row in rows)
    assert {row["town"] for row in rows} == {"Ulm", "Köln", None}
    assert {row["at"] for row in rows} == {ROW["at"]}


@pytest.mark.slow
def test_report_counts_every_request(fake: FakeService, tmp_path: Path) -> None:
    """Locust's page and table have the same number of requests as the result."""
    result = loadtest(fake.url, "--rate", 50, "--duration", "1s", "--report", tmp_path / "load", "--json")
    assert result.code == 0, result.err
    assert "/predict" in Path(result.json["report"]).read_text()
    (row,) = (row for row in csv.DictReader((tmp_path / "load" / "loadtest_stats.csv").open()) if row["Type"])
    assert (row["Name"], row["Request Count"], row["Failure Count"]) == ("/predict", "50", "0")
    assert json.loads((tmp_path / "load" / "loadtest.json").read_text()) == result.json


@pytest.mark.slow
def test_cpu_and_memory_of_the_service(fake: FakeService, tmp_path: Path) -> None:
    """CPU and memory are sums over all workers."""
    fake.key = "sesame"
    result = loadtest(fake.url, "--rate", 50, "--duration", "2s", "--key", "sesame", "--json")
    server = result.json["server"]
    assert server["memory_before_mb"] == server["memory_max_mb"] == 70
    assert server["cores"] * result.json["seconds"] == pytest.approx(0.1, rel=0.05)  # one ms for each of 100 requests


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["http://127.0.0.1:9"], 5, "does not answer"),
        (["127.0.0.1:8080"], 2, "write http://127.0.0.1:8080"),
        (["URL", "--users", "2", "--rate", "3"], 2, "exclude each other"),
        (["URL", "--duration", "soon"], 2, "write e.g. 30s or 5m"),
    ],
)
def test_invalid_arguments_and_addresses_are_refused(
    fake: FakeService, arguments: list[str], code: int, message: str
) -> None:
    """One error with its remedy; no request is sent."""
    result = loadtest(*[fake.url if word == "URL" else word for word in arguments])
    assert (result.code, message in result.err) == (code, True), result.err
    assert fake.requests == []


@pytest.mark.slow
def test_a_wrong_key_and_another_server_are_refused(fake: FakeService) -> None:
    """In both cases no load is sent."""
    fake.key = "sesame"
    result = loadtest(fake.url, "--key", "guess")
    assert result.code == 2
    assert "TOWLINE_API_KEY" in result.err
    fake.is_another_server = True
    assert "not a service of towline" in loadtest(fake.url).err


def test_missing_locust_names_the_install_command(fake: FakeService, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the extra."""
    monkeypatch.setattr("towline.cli.extras.find_spec", lambda name: None if name == "locust" else 1)
    result = CliRunner().invoke(main, ["loadtest", fake.url])
    assert result.exit_code == 2
    assert "pip install 'towline[loadtest]'" in result.stderr


@pytest.mark.slow
def test_locustfile(fake: FakeService) -> None:
    """deployments/locustfile.py, with the key from the environment."""
    fake.key = "sesame"
    arguments = ["--headless", "--users", "2", "--run-time", "2s", "--host", fake.url, "--only-summary"]
    result = subprocess.run(
        [sys.executable, "-m", "locust", "--locustfile", REPOSITORY / "deployments" / "locustfile.py", *arguments],
        env={**os.environ, "TOWLINE_API_KEY": "sesame"}, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert len(fake.requests) > 10
    assert len({json.dumps(row) for row in fake.requests}) > 5


@pytest.mark.slow
def test_locustfile_reports_a_missing_key(fake: FakeService) -> None:
    """Locust ends with the exit code and the remedy of the error, and sends no prediction request."""
    fake.key = "sesame"
    arguments = ["--headless", "--users", "2", "--run-time", "5s", "--host", fake.url]
    result = subprocess.run(
        [sys.executable, "-m", "locust", "--locustfile", REPOSITORY / "deployments" / "locustfile.py", *arguments],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert result.returncode == 2
    assert "TOWLINE_API_KEY" in result.stdout + result.stderr
    assert fake.requests == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", [["--rate", "50"], ["--users", "2"]])
@pytest.mark.parametrize("name", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_or_killed_command_stops_its_load(
    fake: FakeService, kind: list[str], name: signal.Signals
) -> None:
    """Ctrl-C reports the requests so far, with exit code 130; after a kill no generator process remains."""
    fake.delay = 0.02
    command = [Path(sys.executable).with_name("towline"), "loadtest", fake.url, *kind, "--duration", "60s", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until(lambda: len(fake.requests) > 60)
    process.send_signal(name)
    out, err = process.communicate(timeout=30)
    if name == signal.SIGINT:
        assert process.returncode == 130, err
        report = json.loads(out)
        assert report["interrupted"]
        assert 0 < report["requests"] < 3000
        assert report["failed"] == 0
    counts = [-1]
    until(lambda: counts.append(len(fake.requests)) or counts[-1] == counts[-2], every=0.7)


def test_a_late_generator_is_reported(fake: FakeService) -> None:
    """If the load generator is late, its delay is not reported as latency of the service."""
    service = ServiceUnderTest(fake.url, "demo@3", ())
    result = LoadTestResult(service, Load(10, rate=10), 10.0, 100, {}, {}, 0.5, {"unknown": "-"}, 0.2, False)
    assert "its machine is busy" in result.document()["warnings"][0]
