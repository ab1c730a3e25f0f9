"""Open-loop load: requests at a fixed rate, whether or not earlier ones have been answered.

``python -m towline.operations.loadtest.arrivals URL RATE SECONDS SAMPLES``

Each is due at a fixed moment, and its latency counts from that moment. A service that stalls meets the requests that
went on arriving, as it would outside; users who wait for their answers would have spared it, and hidden the stall.
"""

import gc
import itertools
import os
import sys
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

import gevent
from gevent.event import Event
from geventhttpclient import HTTPClient

from towline.operations.loadtest import kinds
from towline.operations.loadtest.samples import Recorder
from towline.operations.loadtest.target import KEY, PATH, WAIT, Target, find, headers

CONNECTIONS = 800  # at most; below 1024, since the client's pool looks at its sockets with select()


def drive(target: Target, key: str | None, rate: float, seconds: float, recorder: Recorder) -> None:
    """Sends ``rate × seconds`` requests and returns when each has its answer or its error.

    A thread of its own tells when a request is due: the event loop's own timers are a millisecond late.
    """
    parts = urlsplit(target.url)
    tls = parts.scheme == "https"
    client = HTTPClient(
        str(parts.hostname), parts.port, ssl=tls, concurrency=CONNECTIONS,
        connection_timeout=WAIT, network_timeout=WAIT, headers=headers(key),
    )  # fmt: skip
    bodies, total = itertools.cycle(target.bodies), max(1, round(rate * seconds))
    left, over, loop = total, Event(), gevent.get_hub().loop
    epoch = time.time() - time.perf_counter()

    def one(due: float) -> None:
        nonlocal left
        began = time.perf_counter()
        try:
            answer = client.request("POST", PATH, next(bodies))
            error = kinds.of_answer(answer.status_code, answer.read())
        except Exception as problem:  # noqa: BLE001 - whatever a request meets is counted
            error = kinds.of_exception(problem)
        recorder.add(epoch + due, time.perf_counter() - due, began - due, error)
        left -= 1
        if not left:
            over.set()

    def arrive(due: float) -> None:
        gevent.spawn(one, due)

    def tick() -> None:
        begin = time.perf_counter() + 0.05
        for number in range(total):
            due = begin + number / rate
            if (wait := due - time.perf_counter()) > 0:
                time.sleep(wait)
            loop.run_callback_threadsafe(arrive, due)

    threading.Thread(target=tick, daemon=True).start()
    while not over.wait(0.25):
        recorder.flush()
    recorder.flush()
    client.close()


def main() -> None:
    url, rate, seconds, samples = sys.argv[1:]
    key = os.environ.get(KEY)
    target = find(url, key)
    gc.freeze()
    gc.set_threshold(100_000, 50, 50)  # its pauses would count as the service's
    drive(target, key, float(rate), float(seconds), Recorder(Path(samples)))


if __name__ == "__main__":
    main()
