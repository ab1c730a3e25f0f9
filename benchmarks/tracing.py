"""The cost of exporting traces and metrics for a service: CPU time and rate of requests, measured alternately.

Usage: tracing.py [--turns 10] [--requests 3000] [--checkout PATH]

Services of one small model run side by side: without export, with a span for each request, and with spans for one
request in a hundred. In each turn Apache Bench sends the same requests to each of them, in a random order, on 4
connections. The collector runs in this process. CPU time is that of the service, so other load on the machine matters
little. ``--checkout`` adds a service of another checkout without export, e.g. of an earlier commit.
"""

import argparse
import contextlib
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.support.otlp_receiver import run_receiver
from tests.support.sample_store import MODEL, make_sample_store
from tests.support.serve_process import ServeProcess


def cpu_seconds(service: ServeProcess) -> float:
    used = psutil.Process(service.process.pid).cpu_times()
    return used.user + used.system


def send(service: ServeProcess, body: Path, requests: int) -> tuple[float, float]:
    """Requests per second, and CPU µs of the service for each."""
    url = f"http://127.0.0.1:{service.port}/predict"
    before = cpu_seconds(service)
    command = ["ab", "-q", "-k", "-n", str(requests), "-c", "4", "-p", str(body), "-T", "application/json", url]
    report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    failed = re.search(r"Failed requests:\s+(\d+)", report)
    if failed is None or failed[1] != "0" or "Non-2xx" in report:
        sys.exit(report)
    rate = re.search(r"Requests per second:\s+([\d.]+)", report)
    assert rate is not None
    return float(rate[1]), 1e6 * (cpu_seconds(service) - before) / requests


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--requests", type=int, default=3_000, help="to each service in each turn")
    parser.add_argument("--checkout", help="another checkout of towline, measured without export")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        store = make_sample_store(folder)
        body = folder / "row.json"
        rows = json.loads((store.release(1) / "probe.json").read_bytes())["rows"]
        body.write_text(json.dumps({"row": rows[0]}))
        endpoint = {"OTEL_EXPORTER_OTLP_ENDPOINT": stack.enter_context(run_receiver()).endpoint}
        sampled = {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.01"}
        variants = {"without export": {}, "a span for each request": endpoint, "1 in 100": endpoint | sampled}
        if options.checkout:
            variants[f"{options.checkout}, without export"] = {"PYTHONPATH": options.checkout}
        services = {}
        for name, environ in variants.items():
            saved = os.environ.copy()
            os.environ |= environ
            services[name] = stack.enter_context(ServeProcess(store.settings, MODEL, "--no-log"))
            os.environ.clear()
            os.environ |= saved
        for service in services.values():
            send(service, body, 500)
        results: dict[str, list[tuple[float, float]]] = {name: [] for name in services}
        draw = random.Random(7)
        for _ in range(options.turns):
            for name in draw.sample(list(services), len(services)):
                results[name].append(send(services[name], body, options.requests))
    base = results["without export"]
    for name, turns in results.items():
        rate, cpu = (statistics.median(values) for values in zip(*turns, strict=True))
        ratios = [turn[1] / other[1] for turn, other in zip(turns, base, strict=True)]
        print(
            f"{name}: {rate:,.0f} requests/s, {cpu:.0f} CPU µs a request, {statistics.median(ratios):.2f} × the first"
        )


if __name__ == "__main__":
    main()
