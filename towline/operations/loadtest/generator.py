"""The load generator, a Locust file: users who wait for each answer, or requests that arrive at a fixed rate.

``Client`` is a closed loop: a user sends the next request when the answer has arrived. ``Arrivals`` is an open loop:
each request is due at a fixed time, whether or not earlier ones were answered, and its latency counts from that time.
If the service stalls, the open loop shows the delay of all requests that were due meanwhile; waiting users hide it.

The API key comes from ``TOWLINE_API_KEY``. ``--results FILE`` writes exact latencies and errors as JSON: twice a second
while the test runs, and at its end.
"""

import contextlib
import gc
import itertools
import json
import os
import threading
import time
from array import array
from collections import Counter
from pathlib import Path
from typing import Any

import gevent
import numpy as np
from gevent.event import Event
from locust import FastHttpUser, constant, events, task
from locust.stats import CSV_STATS_INTERVAL_SEC

from towline import files
from towline.errors import TowlineError
from towline.operations.loadtest.target import KEY, PATH, TIMEOUT_S, find_target, has_prediction, request_headers

CONNECTIONS = 800  # at most; the client's pool uses select(), which is limited to 1,024 sockets
LATE_S = 0.01  # a request sent later than that is counted as late
PERCENTILES = (50.0, 90.0, 95.0, 99.0, 99.9)
_bodies: dict[str, "itertools.cycle[str]"] = {}  # by host


class Recorder:
    """Collects the exact latency of each request (Locust rounds to milliseconds) and writes a summary to a file."""

    def __init__(self, path: Path) -> None:
        self._path, self._parent = path, os.getppid()
        self._latencies, self._errors = array("d"), Counter[str]()
        self._first, self._last, self._late, self._reported = float("inf"), 0.0, 0, 0

    def add(self, start_time: float, response_time: float, exception: Any, context: Any, **_: Any) -> None:
        """Listener of Locust's request event; ``response_time`` in milliseconds."""
        self._latencies.append(response_time)
        self._first = min(self._first, start_time)
        self._last = max(self._last, start_time + response_time / 1e3)
        self._late += context.get("late", 0.0) > LATE_S
        if exception:
            self._errors[str(exception)] += 1

    def write(self, *, final: bool = False) -> None:
        """Writes the summary; percentiles are those of the requests since the last call, or of all if ``final``."""
        if os.getppid() != self._parent:
            os._exit(0)  # the command was killed: no load without it
        latencies = np.array(self._latencies[0 if final else self._reported :])
        self._reported = len(self._latencies)
        if not self._reported:
            return
        names = [*(f"p{share:g}" for share in PERCENTILES), "max"]
        values = np.percentile(latencies, [*PERCENTILES, 100], method="higher").round(3) if len(latencies) else ()
        summary = {
            "requests": self._reported, "failed": self._errors.total(), "errors": dict(self._errors.most_common()),
            "latency_ms": dict(zip(names, map(float, values), strict=False)),
            "first": self._first, "last": self._last, "late": self._late / self._reported,
        }  # fmt: skip
        files.write(self._path, json.dumps(summary))

    def write_periodically(self) -> None:
        while True:
            gevent.sleep(0.5)
            self.write()


@events.init_command_line_parser.add_listener  # type: ignore[untyped-decorator]
def _add_arguments(parser: Any) -> None:
    parser.add_argument("--results", default="", help="file for exact latencies and errors, as JSON")
    parser.add_argument("--rate", type=float, default=0.0, help="requests per second of the open loop")
    parser.add_argument("--seconds", type=float, default=0.0, help="duration of the open loop")


@events.init.add_listener  # type: ignore[untyped-decorator]
def _prepare(environment: Any, **_: Any) -> None:
    """Fetches the rows before the test starts: its duration includes what is done after that."""
    with contextlib.suppress(TowlineError):  # reported when the test starts
        _fetch_rows(environment.host or "")


@events.test_start.add_listener  # type: ignore[untyped-decorator]
def _start(environment: Any, **_: Any) -> None:
    host, options = environment.host or "", environment.parsed_options
    try:
        if host not in _bodies:
            _fetch_rows(host)
    except TowlineError as error:
        print(error)
        environment.process_exit_code = error.exit_code
        environment.runner.quit()
        return
    if options and options.results:
        recorder = Recorder(Path(options.results))
        environment.events.request.add_listener(recorder.add)
        environment.events.quitting.add_listener(lambda **_: recorder.write(final=True))
        if options.csv_prefix:  # Locust writes its CSV files once a second, and not at the end
            environment.events.quitting.add_listener(lambda **_: gevent.sleep(CSV_STATS_INTERVAL_SEC + 0.1))
        gevent.spawn(recorder.write_periodically)


def _fetch_rows(host: str) -> None:
    bodies = find_target(host, os.environ.get(KEY)).bodies
    _bodies[host] = itertools.cycle([body.decode() for body in bodies])


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
                latency = time.perf_counter() - due
                answer.request_meta |= {"response_time": latency * 1e3, "start_time": time.time() - latency}
            error = (
                describe_answer(answer.status_code, answer.content or b"")
                if answer.status_code
                else describe_exception(answer.error)
            )
            if error:
                answer.failure(error)
            else:
                answer.success()


class Client(PredictionUser):
    """A user who sends the next request as soon as the last one is answered."""

    @task
    def predict(self) -> None:
        self.send()


class Arrivals(PredictionUser):
    """Sends ``--rate × --seconds`` requests on time, and ends the test when each has its answer or error."""

    fixed_count = 1
    concurrency = CONNECTIONS

    @task
    def predict(self) -> None:
        options = self.environment.parsed_options
        total, loop, finished = max(1, round(options.rate * options.seconds)), gevent.get_hub().loop, Event()
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
                due = start + number / options.rate
                if (wait := due - time.perf_counter()) > 0:
                    time.sleep(wait)
                loop.run_callback_threadsafe(gevent.spawn, send, due)

        threading.Thread(target=tick, daemon=True).start()
        finished.wait()
        gevent.spawn(self.environment.runner.quit)
        Event().wait()  # until quit() ends this user: a task that returns runs again


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
