"""A load test: runs the load generator in a process of its own, and measures the resources of the service meanwhile."""

import contextlib
import json
import math
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.client import OK
from pathlib import Path
from typing import Any

from towline.errors import TowlineError, TransientError
from towline.http_request import HttpRequestError, send_request
from towline.operations.loadtest.target import KEY, TIMEOUT_S, Target, request_headers

MAX_LATE_SHARE = 0.01  # of requests sent more than 10 ms late; above it the latencies include the generator's own delay
MAX_GENERATOR_CORES = 0.9


@dataclass(frozen=True)
class Load:
    """The load: ``users`` who wait for their answers, or a ``rate`` in requests/s (open loop). The other is None."""

    seconds: float
    users: int | None = None
    rate: float | None = None

    def text(self) -> str:
        load = f"{self.users} users" if self.users else f"{self.rate:g} requests/s"
        return f"{load} for {self.seconds:g} s"


@dataclass(frozen=True)
class LoadTestResult:
    """The result of a load test.

    Attributes:
        target: the service.
        load: users or rate.
        requests: the generator's summary: counts, errors, percentiles in ms, share of late requests.
        server: cores and memory of the service, or the reason why they are unknown.
        cores: cores that the generator used.
        interrupted: whether the test was stopped early.
    """

    target: Target
    load: Load
    requests: dict[str, Any]
    server: dict[str, float | str]
    cores: float
    interrupted: bool

    @property
    def warnings(self) -> list[str]:
        """Reasons why the figures may not be those of the service."""
        warnings = []
        if self.requests["late"] > MAX_LATE_SHARE:
            warnings.append(
                f"the load generator sent {self.requests['late']:.0%} of the requests more than 10 ms late: "
                "its machine is busy, and its own delay is included in these latencies"
            )
        if self.cores > MAX_GENERATOR_CORES:
            warnings.append(f"the load generator used {self.cores:.2f} of 1 core: the service may be faster than this")
        if self.interrupted:
            warnings.append(f"stopped before the end of the {self.load.seconds:g} s")
        return warnings

    def document(self) -> dict[str, Any]:
        seconds = self.requests["last"] - self.requests["first"]
        answered = self.requests["requests"] - self.requests["failed"]
        return {
            "url": self.target.url,
            "model": self.target.model,
            "users": self.load.users,
            "rate": self.load.rate,
            "seconds": round(seconds, 3),
            **{name: self.requests[name] for name in ("requests", "failed", "errors", "latency_ms")},
            "answered_per_second": round(answered / max(seconds, 1e-9), 2),
            "server": self.server,
            "generator_cores": round(self.cores, 3),
            "interrupted": self.interrupted,
            "warnings": self.warnings,
        }


def run_load_test(
    target: Target, load: Load, key: str | None, show: Callable[[str], None], report: Path | None = None
) -> LoadTestResult:
    """Runs a load test. Ctrl-C ends it early; the result is then that of the requests until then.

    Args:
        target: the service.
        load: users or rate, and the duration.
        key: API key; with the scope admin the resources of the service are measured too.
        show: called with a line of progress twice a second.
        report: folder for Locust's HTML report and CSV files.

    Raises:
        TransientError: no request was sent.
        TowlineError: the load generator failed; with the last lines of its output.
    """
    meter = ResourceMeter(target.url, key)
    meter.measure()
    cpu_before = _children_cpu()
    interrupted = False
    with tempfile.TemporaryDirectory() as folder:
        results, output = Path(folder) / "results.json", Path(folder) / "output.txt"
        with output.open("wb") as stream:
            process = subprocess.Popen(
                _command(target, load, results, report),
                env={**os.environ, "PYTHONUNBUFFERED": "1"} | ({KEY: key} if key else {}),
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                start_new_session=True,  # Ctrl-C reaches this process only
            )
            try:
                _follow(process, results, load, show, meter)
            except KeyboardInterrupt:
                interrupted = True
            finally:
                _stop(process)
        summary = _read_summary(results)
        if summary is None or (process.returncode and not interrupted):
            raise _generator_error(process.returncode, output.read_text(errors="replace"), target)
    time.sleep(0.6 if meter.measurements else 0)  # workers update their CPU metric twice a second
    meter.measure()
    seconds = max(summary["last"] - summary["first"], 1e-9)
    cores = (_children_cpu() - cpu_before) / seconds
    return LoadTestResult(target, load, summary, meter.usage(seconds), cores, interrupted)


class ResourceMeter:
    """Reads CPU seconds and resident bytes of a service, summed over its workers, from its ``/metrics``."""

    def __init__(self, url: str, key: str | None) -> None:
        self._url, self._headers = f"{url}/metrics", request_headers(key)
        self._error = "the test was too short"
        self.measurements: list[tuple[float, float]] = []

    def measure(self) -> None:
        try:
            response = send_request(self._url, 2, headers=self._headers)
        except HttpRequestError as error:
            self._error = f"/metrics: {error}"
            return
        lines = response.body.decode(errors="replace").splitlines() if response.status == OK else []
        cpu, memory = (_sum_metric(lines, f"process_{name}") for name in ("cpu_seconds_total", "resident_memory_bytes"))
        if cpu and memory:
            self.measurements.append((cpu, memory))
        else:
            self._error = f"/metrics, HTTP status {response.status}, has neither CPU nor memory"

    def usage(self, seconds: float) -> dict[str, float | str]:
        """Cores used over a test of so many seconds, and memory in MB before, at most and after."""
        if len(self.measurements) < 2:
            return {"unknown": self._error}
        cpu, memory = zip(*self.measurements, strict=True)
        sizes = {"before": memory[0], "most": max(memory), "after": memory[-1]}
        return {"cores": round((cpu[-1] - cpu[0]) / seconds, 3)} | {
            f"memory_{name}_mb": round(size / 1e6, 1) for name, size in sizes.items()
        }


def _sum_metric(lines: list[str], suffix: str) -> float:
    """The sum of a metric over its labels, with any prefix of its name; 0 without it."""
    samples = (line.rsplit(" ", 1) for line in lines if line and not line.startswith("#"))
    return sum(float(value) for name, value in samples if name.partition("{")[0].endswith(suffix))


def _command(target: Target, load: Load, results: Path, report: Path | None) -> list[str]:
    generator = str(Path(__file__).with_name("generator.py"))
    command = [
        sys.executable, "-m", "locust", "--headless", "--locustfile", generator, "--host", target.url,
        "--results", str(results), "--only-summary", "--loglevel", "WARNING", "--exit-code-on-error", "0",
    ]  # fmt: skip
    if load.rate:
        command += ["--rate", repr(load.rate), "--seconds", repr(load.seconds), "Arrivals"]
    else:
        users = str(load.users)
        command += ["--users", users, "--spawn-rate", users, "--run-time", f"{math.ceil(load.seconds)}s"]
        command += ["--stop-timeout", f"{TIMEOUT_S:g}", "Client"]
    if report:
        command[-1:-1] = ["--html", str(report / "loadtest.html"), "--csv", str(report / "loadtest")]
    return command


def _follow(
    process: "subprocess.Popen[bytes]", results: Path, load: Load, show: Callable[[str], None], meter: ResourceMeter
) -> None:
    while process.poll() is None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.5)
        if meter.measurements:
            meter.measure()
        if summary := _read_summary(results):
            passed = time.time() - summary["first"]
            show(
                f"{min(load.seconds, passed):4.0f} of {load.seconds:g} s   {summary['requests']:,} requests   "
                f"{summary['requests'] / max(passed, 0.5):,.0f}/s   "
                f"p99 now {summary['latency_ms'].get('p99', 0.0):,.1f} ms   {summary['failed']:,} failed"
            )


def _read_summary(results: Path) -> dict[str, Any] | None:
    try:
        summary: dict[str, Any] = json.loads(results.read_bytes())
    except FileNotFoundError:
        return None
    return summary


def _stop(process: "subprocess.Popen[bytes]") -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(TIMEOUT_S + 5)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait()


def _children_cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _generator_error(code: int, output: str, target: Target) -> TowlineError:
    if code == TransientError.exit_code:
        return TransientError("the service stopped before the load test began", where=target.url, remedy="try again")
    if not code:
        remedy = "increase --duration"
        return TransientError("no request was sent in that time", where="towline loadtest", remedy=remedy)
    details = tuple(output.strip().splitlines()[-8:])
    return TowlineError(f"the load generator ended with code {code}", where="towline loadtest", details=details)
