"""A rollout in a real service under load: kills, changes of the weight, and broken challengers.

Usage: rollout_service.py [--kills 500] [--changes 100] [--only NAME]

Two versions of a small model are trained, whose predictions for any row are 1,000 apart. One is champion, the other is
rolled out. Each answer is compared with the prediction of the version that it names, and its version with the hash
that assigns its request id.

* kills: one of two workers is killed with SIGKILL, repeatedly, while half of the requests go to each version. A
  request that the killed worker had accepted gets no answer; clients send it again. A response with an error, an
  answer of the wrong version and wrong predictions count as failures.
* changes: the weight grows from 1 % to 99 % in steps, under load.
* broken challengers, at 25 % of 50 requests a second: one that raises, one with 5 % errors, one that takes 20 ms
  longer. Measured are the seconds from its first prediction until no worker uses it, and the failures
  that clients see. The faults are injected into the scorer of the challenger.
* shadow: requests per second, median latency and the service's CPU time a request, with and without shadow answers, in
  alternating turns. The load is that of Debian's ``wrk``, with one connection and with eight.
"""

import argparse
import asyncio
import datetime as dt
import json
import os
import random
import signal
import statistics
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.serving import wrk
from tests.support.load import RecordingLoad
from tests.support.sample_store import MODEL, SampleStore, make_sample_store
from tests.support.serve_process import ServeProcess
from towline.config import RolloutConfig
from towline.registry.rollouts import Rollout, active_rollout, change_rollout, end_rollout, start_rollout
from towline.rollout.assignment import key_position
from towline.rollout.service_counts import read_counts, stop_reason

FAULTS = """
import os, random, time
from towline.inference import predictor
predict = predictor.Model.predict_canonical
def predict_with_fault(self, canonical):
    if self.version == 2 and canonical and os.path.exists(os.environ["FAULTY"]):
        if any(random.random() < float(os.environ.get("FAULT_RATE", "0")) for _ in canonical):
            raise ValueError("injected fault")
        time.sleep(float(os.environ.get("FAULT_DELAY", "0")))
    return predict(self, canonical)
predictor.Model.predict_canonical = predict_with_fault
"""


def begin(store: SampleStore, *steps: float) -> Rollout:
    config = RolloutConfig(steps=(*steps, 100.0), bake=dt.timedelta(seconds=1), until=dt.timedelta(days=30))
    start_rollout(store.ledger, MODEL, 2, config, "benchmark", "benchmark")
    rollout = active_rollout(store.ledger.rows(MODEL))
    assert rollout is not None
    return rollout


def end(store: SampleStore) -> None:
    rollout = active_rollout(store.ledger.rows(MODEL))
    if rollout is not None:
        end_rollout(store.ledger, rollout, "aborted", "benchmark", "benchmark", {})


def read_pool(store: SampleStore) -> list[dict[str, object]]:
    return list(json.loads((store.release(1) / "probe.json").read_bytes())["rows"])


def load_while(
    store: SampleStore, port: int, work: Callable[[RecordingLoad], object], callers: int = 4
) -> RecordingLoad:
    load = RecordingLoad(port, read_pool(store))
    asyncio.run(load.run(callers, lambda: work(load)))
    return load


def is_error(failure: str) -> bool:
    """Whether a client got a response that is no answer; otherwise its connection was cut by the kill."""
    return "HTTP/1.1" in failure or "http/1.1" in failure


def measure_kills(store: SampleStore, kills: int) -> None:
    rollout = begin(store, 50.0)
    draw, killed = random.Random(7), 0

    def kill(load: RecordingLoad) -> None:
        nonlocal killed
        while killed < kills:
            time.sleep(draw.uniform(0.02, 0.3))
            workers = psutil.Process(service.process.pid).children()
            if len(workers) == 2:
                workers[draw.randrange(2)].send_signal(signal.SIGKILL)
                killed += 1
        answered = len(load.answers)
        while len(load.answers) < answered + 100:
            time.sleep(0.05)

    with ServeProcess(store.settings, MODEL, "--workers", "2") as service:
        load = load_while(store, service.port, kill)
    misplaced = [
        answer.request_id
        for answer in load.answers
        if (answer.version == 2) != (key_position(answer.request_id, rollout.id) < 0.5)
    ]
    wrong = load.find_wrong_predictions({1: store.release(1), 2: store.release(2)})
    errors = [failure for failure in load.failures if is_error(failure)]
    print(f"kills: {killed} × SIGKILL, {len(load.answers):,} answers")
    print(f"  responses with an error {len(errors)}, wrong predictions {len(wrong)}, wrong version {len(misplaced)}")
    print(f"  connections cut by a kill {len(load.failures) - len(errors)}, sent again")
    end(store)


def measure_changes(store: SampleStore, changes: int) -> None:
    weights = [1 + 98 * step / max(changes - 1, 1) for step in range(changes)]
    rollout = begin(store, *weights)

    def change(_: RecordingLoad) -> None:
        nonlocal rollout
        for step in range(1, changes):
            change_rollout(store.ledger, rollout, "benchmark", "next", step=step)
            present = active_rollout(store.ledger.rows(MODEL))
            assert present is not None
            rollout = present
            time.sleep(0.3)

    with ServeProcess(store.settings, MODEL, "--workers", "2") as service:
        load = load_while(store, service.port, change)
    wrong = load.find_wrong_predictions({1: store.release(1), 2: store.release(2)})
    positions = (key_position(each.request_id, rollout.id) for each in load.answers if each.version == 2)
    highest = max(positions, default=0.0)
    share = sum(each.version == 2 for each in load.answers) / len(load.answers)
    print(f"changes: {changes} weights from 1 % to 99 %, {len(load.answers):,} answers, {share:.0%} by the challenger")
    print(f"  failures {len(load.failures)}, wrong predictions {len(wrong)}, highest challenger position {highest:.3f}")
    end(store)


def measure_broken(store: SampleStore, name: str, **fault: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "sitecustomize.py").write_text(FAULTS)
        os.environ |= {"PYTHONPATH": folder, "FAULTY": f"{folder}/faulty", **fault}
        rollout = begin(store, 25.0)
        counts_folder = store.settings.layout.rollout(MODEL, rollout.id)
        seconds: list[float] = []

        def wait(_: RecordingLoad) -> None:
            time.sleep(5)  # answers without a fault
            (Path(folder) / "faulty").touch()
            fault_time = time.monotonic()
            while not stop_reason(counts_folder) and time.monotonic() - fault_time < 180:
                time.sleep(0.02)
            seconds.append(time.monotonic() - fault_time)
            time.sleep(1.5)
            before = read_counts(counts_folder).asked_rows
            time.sleep(3)
            seconds.append(read_counts(counts_folder).asked_rows - before)

        with ServeProcess(store.settings, MODEL, "--workers", "2") as service:
            load = load_at_rate(store, service.port, wait)
        for name_ in ("PYTHONPATH", "FAULTY", *fault):
            os.environ.pop(name_, None)
    reason = stop_reason(counts_folder) or "not stopped"
    print(f"{name}: stopped after {seconds[0]:.1f} s; asked for {seconds[1]:.0f} rows afterwards; {reason}")
    print(f"  {len(load.answers):,} answers, failures seen by clients {len(load.failures)}")
    end(store)


def load_at_rate(
    store: SampleStore, port: int, work: Callable[[RecordingLoad], object], rate: float = 50
) -> RecordingLoad:
    """Five clients that together send about ``rate`` requests a second."""
    load = RecordingLoad(port, read_pool(store))
    send_request = load._send_request

    async def send_slowly(*arguments: object) -> bool:
        await asyncio.sleep(5 / rate)
        return await send_request(*arguments)  # type: ignore[arg-type]

    load._send_request = send_slowly  # type: ignore[method-assign]
    asyncio.run(load.run(5, lambda: work(load)))
    return load


def measure_shadow(store: SampleStore, turns: int = 8) -> None:
    results: dict[tuple[int, bool], list[tuple[float, float, float]]] = {}
    with (
        tempfile.TemporaryDirectory() as folder,
        ServeProcess(store.settings, MODEL, "--workers", "1") as service,
    ):
        body = Path(folder) / "body.json"
        body.write_text(json.dumps({"rows": read_pool(store)[:1]}))
        environment = dict(os.environ) | {"BENCH_BODY": str(body)}
        for turn in range(2 * turns + 2):
            with_shadow = turn % 2 == 1
            if with_shadow:
                begin(store, 0.0)
            else:
                end(store)
            wait_for_rollout(service.port, body.read_bytes(), active=with_shadow)
            for connections in (1, 8):
                before = cpu_seconds(service)
                figures = wrk(f"http://127.0.0.1:{service.port}/predict", connections, 4, environment)
                used = (cpu_seconds(service) - before) / figures["requests"]
                if turn > 1:  # the first pair warms up
                    line = figures["rate"], figures["p50"], used
                    results.setdefault((connections, with_shadow), []).append(line)
    end(store)
    print(f"shadow: with against without, one worker, median of {turns} pairs")
    for connections in (1, 8):
        pairs = list(zip(results[connections, True], results[connections, False], strict=True))
        for place, name in enumerate(("throughput", "median latency", "CPU time a request")):
            ratios = [yes[place] / no[place] for yes, no in pairs]
            spread = f"({min(ratios):.3f} to {max(ratios):.3f})"
            print(f"  {connections} connections: {name} {statistics.median(ratios):.3f} {spread}")


def wait_for_rollout(port: int, body: bytes, *, active: bool) -> None:
    """Waits until the service has loaded the challenger, or has left the rollout: only then it names no version."""
    headers = {"Content-Type": "application/json"}
    for _ in range(120):
        request = urllib.request.Request(f"http://127.0.0.1:{port}/predict", body, headers)
        with urllib.request.urlopen(request, timeout=10) as response:
            if (response.headers["x-towline-version"] is not None) == active:
                return
        time.sleep(0.5)
    raise TimeoutError("the service does not follow the rollout")


def cpu_seconds(service: ServeProcess) -> float:
    """CPU time of a service with its workers."""
    root = psutil.Process(service.process.pid)
    times = [process.cpu_times() for process in (root, *root.children(recursive=True))]
    return sum(each.user + each.system for each in times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--changes", type=int, default=100)
    parser.add_argument("--only", default="", help="kills, changes, raises, errors, slow or shadow")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="towline rollout ") as folder:
        store = make_sample_store(Path(folder))
        parts: dict[str, Callable[[], None]] = {
            "kills": lambda: measure_kills(store, arguments.kills),
            "changes": lambda: measure_changes(store, arguments.changes),
            "raises": lambda: measure_broken(store, "raises", FAULT_RATE="1"),
            "errors": lambda: measure_broken(store, "5 % errors", FAULT_RATE="0.05"),
            "slow": lambda: measure_broken(store, "20 ms slower", FAULT_DELAY="0.02"),
            "shadow": lambda: measure_shadow(store),
        }
        for name, measure in parts.items():
            if arguments.only in ("", name):
                measure()


if __name__ == "__main__":
    main()
