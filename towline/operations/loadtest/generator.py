"""The load generator: Locust users that wait for each response, or requests that arrive at a fixed rate.

A ``ClosedLoopUser`` sends the next request when the answer has arrived. With ``OpenLoopUser`` each request is due at a
fixed time, whether or not earlier ones were answered, and its latency counts from that time. If the service stalls, the
open loop shows the delay of all requests that were due during a stall; waiting users hide it.

Import this module before ``ssl`` and ``http.client``: Locust replaces the blocking functions of Python.
"""

import gc
import itertools
import json
import os
import signal
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gevent
import locust.stats
from gevent.event import Event
from gevent.monkey import get_original
from locust import FastHttpUser, constant, events, task
from locust.env import Environment
from locust.html import get_html_report

from towline import files
from towline.errors import TowlineError, TransientError
from towline.operations.loadtest.load_result import Load, LoadTestResult
from towline.operations.loadtest.service_under_test import (
    KEY,
    PATH,
    TIMEOUT_S,
    ResourceMeter,
    ServiceUnderTest,
    has_prediction,
    query_service,
    request_headers,
)

CONNECTIONS = 800  # at most; the client's pool uses select(), which is limited to 1,024 sockets
LATE_S = 0.01  # a request sent later than that is counted as late
PERCENTILES = (50.0, 90.0, 95.0, 99.0, 99.9)
_bodies: dict[str, "itertools.cycle[str]"] = {}  # by host


def _round_latency(milliseconds: float) -> float:
    """Three digits: Locust's own function rounds to whole milliseconds."""
    return float(f"{milliseconds:.3g}")


locust.stats.bucket_response_time = _round_latency  # type: ignore[assignment]


class PredictionUser(FastHttpUser):
    """Sends prediction requests. It has no task: Locust would run the tasks of a base class too."""

    abstract = True
    wait_time = constant(0)
    connection_timeout = network_timeout = TIMEOUT_S
    insecure = False

    def on_start(self) -> None:
        self._headers, self._rows = request_headers(os.environ.get(KEY)), _bodies[self.host or ""]

    def send(self, due: float | None = None) -> None:
        """Sends a request. With ``due`` (``time.perf_counter``) its latency counts from then."""
        late = 0.0 if due is None else time.perf_counter() - due
        response = self.client.post(
            PATH, data=next(self._rows), headers=self._headers, catch_response=True, context={"late": late}
        )
        with response as answer:
            if due is not None:
                answer.request_meta["response_time"] = (time.perf_counter() - due) * 1e3
            error = (
                describe_answer(answer.status_code, answer.content or b"")
                if answer.status_code
                else describe_exception(answer.error)
            )
            if error:
                answer.failure(error)
            else:
                answer.success()


class ClosedLoopUser(PredictionUser):
    """A user that sends the next request when the last one is answered."""

    @task
    def predict(self) -> None:
        self.send()


class OpenLoopUser(PredictionUser):
    """Sends ``rate × seconds`` requests on time, and ends the test when each has its answer or error."""

    concurrency = CONNECTIONS

    @task
    def predict(self) -> None:
        load = self.environment.parsed_options.load
        total, loop, finished = max(1, round(load.rate * load.seconds)), gevent.get_hub().loop, Event()
        gc.freeze()
        gc.set_threshold(100_000, 50, 50)  # collections would count as latency of the service
        remaining = itertools.count(total - 1, -1)

        def send(due: float) -> None:
            self.send(due)
            if not next(remaining):
                finished.set()

        def tick() -> None:  # a thread: timers of the event loop are a millisecond late
            start = time.perf_counter() + 0.05
            for number in range(total):
                due = start + number / load.rate
                if (wait := due - time.perf_counter()) > 0:
                    get_original("time", "sleep")(wait)
                loop.run_callback_threadsafe(gevent.spawn, send, due)

        get_original("_thread", "start_new_thread")(tick, ())
        finished.wait()
        gevent.spawn(self.environment.runner.quit)
        Event().wait()  # until quit() ends this user: a task that returns runs again


def run_load_test(
    service: ServiceUnderTest, load: Load, key: str | None, show: Callable[[str], None], report: Path | None = None
) -> LoadTestResult:
    """Runs a load test in this process. Ctrl-C ends it early; the result is then that of the requests until then.

    Args:
        service: the service.
        load: users or rate, and the duration.
        key: API key; with the scope admin the resources of the service are measured too.
        show: called with a line of progress twice a second.
        report: folder for Locust's HTML report and CSV files.

    Raises:
        TransientError: no request was sent.
    """
    os.environ.update({KEY: key} if key else {})
    _bodies[service.url] = itertools.cycle([body.decode() for body in service.bodies])
    kind = OpenLoopUser if load.rate else ClosedLoopUser
    options = Namespace(load=load, headless=True, enable_rebalancing=False)
    environment = Environment(
        user_classes=[kind], host=service.url, stop_timeout=TIMEOUT_S if load.users else 0.0, parsed_options=options
    )
    runner, meter, late_requests = environment.create_local_runner(), ResourceMeter(service.url, key), [0]

    def count_late(context: Any, **_: Any) -> None:
        late_requests[0] += context.get("late", 0.0) > LATE_S

    environment.events.request.add_listener(count_late)  # type: ignore[no-untyped-call]
    csv_writer = _start_report(environment, report) if report else None
    meter.measure()
    interrupted = Event()

    def interrupt() -> None:
        interrupted.set()
        runner.quit()

    handler = gevent.signal_handler(signal.SIGINT, interrupt)
    cpu_before = time.process_time()
    runner.start(load.users or 1, spawn_rate=load.users or 1)
    if load.users:
        gevent.spawn_later(load.seconds, runner.quit)
    while not runner.greenlet.join(timeout=0.5):
        if meter.measurements:
            meter.measure()
        show(_progress(environment, load))
    handler.cancel()
    cores = time.process_time() - cpu_before
    total = environment.stats.total
    if not total.num_requests:
        raise TransientError("no request was sent in that time", where="towline loadtest", remedy="increase --duration")
    gevent.sleep(0.6 if meter.measurements else 0)  # workers update their CPU metric twice a second
    meter.measure()
    if report and csv_writer:
        gevent.sleep(locust.stats.CSV_STATS_INTERVAL_SEC + 0.1)  # it writes once a second
        csv_writer.close_files()
        files.write(report / "loadtest.html", get_html_report(environment))  # type: ignore[no-untyped-call]
    seconds = max((total.last_request_timestamp or 0) - total.start_time, 1e-9)
    latency = {f"p{share:g}": float(total.get_response_time_percentile(share / 100)) for share in PERCENTILES}
    return LoadTestResult(
        service,
        load,
        seconds,
        total.num_requests,
        {str(error.error): error.occurrences for error in environment.stats.errors.values()},
        latency | {"max": round(total.max_response_time, 3)},
        late_requests[0] / total.num_requests,
        meter.usage(seconds),
        cores / seconds,
        interrupted.is_set(),
    )


def _start_report(environment: Environment, folder: Path) -> locust.stats.StatsCSVFileWriter:
    writer = locust.stats.StatsCSVFileWriter(environment, locust.stats.PERCENTILES_TO_REPORT, str(folder / "loadtest"))
    gevent.spawn(locust.stats.stats_history, environment.runner)
    gevent.spawn(writer.stats_writer)
    return writer


def _progress(environment: Environment, load: Load) -> str:
    total = environment.stats.total
    passed = time.time() - total.start_time
    return (
        f"{min(load.seconds, passed):4.0f} of {load.seconds:g} s   {total.num_requests:,} requests   "
        f"{total.num_requests / max(passed, 0.5):,.0f}/s   "
        f"p99 now {total.get_current_response_time_percentile(0.99) or 0:,.1f} ms   {total.num_failures:,} failed"
    )


@events.test_start.add_listener  # type: ignore[untyped-decorator]
def _start_locustfile(environment: Any, **_: Any) -> None:
    """Fetches the rows if ``locust`` runs ``deployments/locustfile.py``; ends with the exit code of an error."""
    host = environment.host or ""
    try:
        _bodies[host] = itertools.cycle([body.decode() for body in query_service(host, os.environ.get(KEY)).bodies])
    except TowlineError as error:
        print(error)
        environment.process_exit_code = error.exit_code
        environment.runner.quit()


def describe_answer(status: int, body: bytes) -> str:
    """The kind of error of an answer, e.g. ``429 Too many requests``; empty for a prediction."""
    try:
        document: Any = json.loads(body)
    except ValueError:
        document = None
    if status == 200:
        return "" if has_prediction(document) else "an answer without predictions"
    title = document.get("title") if isinstance(document, dict) else None
    return f"{status} {title}" if title else str(status)


def describe_exception(error: BaseException) -> str:
    """The kind of error of a request without an answer."""
    name = type(error).__name__
    if isinstance(error, TimeoutError):
        return f"no answer in {TIMEOUT_S:g} s"
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    if isinstance(error, ConnectionError) or name in ("HTTPConnectionClosed", "RemoteDisconnected"):
        return "connection closed"
    return f"{name}: {error}"[:80]
