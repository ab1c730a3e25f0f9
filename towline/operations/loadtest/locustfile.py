"""Users who ask one row after another, each waiting for its answer. Locust runs this file.

The key comes from ``TOWLINE_API_KEY``. ``--samples`` writes every request to a file.
"""

import contextlib
import itertools
import os
from pathlib import Path
from typing import Any

import gevent
from locust import FastHttpUser, constant, events, task

from towline.errors import TowlineError
from towline.operations.loadtest import kinds
from towline.operations.loadtest.samples import Recorder
from towline.operations.loadtest.target import KEY, PATH, WAIT, find, headers

_bodies: dict[str, "itertools.cycle[str]"] = {}  # by host


def _arguments(parser: Any) -> None:
    parser.add_argument("--samples", default="", help="file that every request is written to")


def _ready(environment: Any, **_: Any) -> None:
    """Fetches the rows before the time of the run counts; what is wrong is told when it begins."""
    with contextlib.suppress(TowlineError):
        _fetch(environment.host or "")


def _start(environment: Any, **_: Any) -> None:
    host = environment.host or ""
    try:
        if host not in _bodies:
            _fetch(host)
    except TowlineError as error:
        print(error)
        environment.process_exit_code = error.exit_code
        environment.runner.quit()
        return
    if environment.parsed_options and environment.parsed_options.samples:
        _record(environment, Recorder(Path(environment.parsed_options.samples)))


def _fetch(host: str) -> None:
    bodies = find(host, os.environ.get(KEY)).bodies
    _bodies[host] = itertools.cycle([body.decode() for body in bodies])


def _record(environment: Any, recorder: Recorder) -> None:
    def add(start_time: float, response_time: float, exception: Any, **_: Any) -> None:
        recorder.add(start_time, response_time / 1e3, 0.0, str(exception or ""))

    def often() -> None:
        while True:
            gevent.sleep(0.25)
            recorder.flush()

    environment.events.request.add_listener(add)
    environment.events.quitting.add_listener(lambda **_: recorder.flush())
    gevent.spawn(often)


events.init_command_line_parser.add_listener(_arguments)  # type: ignore[no-untyped-call]
events.init.add_listener(_ready)  # type: ignore[no-untyped-call]
events.test_start.add_listener(_start)  # type: ignore[no-untyped-call]


class Client(FastHttpUser):
    """Asks for predictions without a pause: as many requests are under way as there are users."""

    wait_time = constant(0)
    connection_timeout = network_timeout = WAIT
    insecure = False

    def on_start(self) -> None:
        self._headers, self._rows = headers(os.environ.get(KEY)), _bodies[self.host or ""]

    @task
    def predict(self) -> None:
        with self.client.post(PATH, data=next(self._rows), headers=self._headers, catch_response=True) as answer:
            if answer.status_code:
                error = kinds.of_answer(answer.status_code, answer.content or b"")
            else:
                error = kinds.of_exception(answer.error)
            if error:
                answer.failure(error)
            else:
                answer.success()
