"""What a running stack answers while its parts are taken away, one after the other, under load.

    docker compose up -d && python benchmarks/faults.py --key tl_… --seconds 60

Sends rows to the API without pause and counts every answer; a prediction that fails is one that is not 200, or none.
"""

import argparse
import collections
import http.client
import json
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

CALLERS = 6
ROW = {
    "datetime": "2012-12-18T08:00:00", "season": "fall", "hour": 8, "weekday": "Tue", "holiday": 0, "workingday": 1,
    "weather": "mist", "temp_c": 12.7, "feels_like_c": 13.0, "humidity": 94, "windspeed_kmh": 9.0,
}  # fmt: skip


class Counted(NamedTuple):
    """How often each status came (0: no answer), and how long answers took, in milliseconds."""

    statuses: dict[int, int]
    p99: float
    longest: float

    @property
    def failed(self) -> int:
        return sum(count for status, count in self.statuses.items() if status != 200)


class Load:
    """Callers that wait for their answer and send the next row; they begin with the block and end with it."""

    def __init__(self, port: int, key: str, rows: Sequence[object]) -> None:
        self._port, self._body = port, json.dumps({"rows": rows})
        self._headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
        self._statuses: collections.Counter[int] = collections.Counter()
        self._seconds: list[float] = []
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._go) for _ in range(CALLERS)]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def counted(self) -> Counted:
        ordered = sorted(self._seconds)
        return Counted(dict(self._statuses), ordered[int(len(ordered) * 0.99)] * 1e3, ordered[-1] * 1e3)

    def _go(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=15)
        while not self._ended.is_set():
            began = time.perf_counter()
            try:
                connection.request("POST", "/predict", self._body, self._headers)
                answer = connection.getresponse()
                answer.read()
                status = answer.status
            except (OSError, http.client.HTTPException):
                connection.close()
                status = 0
            self._seconds.append(time.perf_counter() - began)
            self._statuses[status] += 1
            time.sleep(0.01)


Docker = Callable[..., object]


def away(docker: Docker, part: str, seconds: float) -> None:
    """Stops a container for a while and starts it again."""
    docker("stop", "--time", "5", part)
    time.sleep(seconds)
    docker("start", part)


def killed(docker: Docker, part: str, seconds: float) -> None:
    """Kills a container, as a lack of memory would, and starts it again after a while."""
    docker("kill", part)
    time.sleep(seconds)
    docker("start", part)


FAULTS: tuple[tuple[str, str, Callable[[Docker, str, float], None]], ...] = (
    ("PostgreSQL stopped", "postgres", away),
    ("MLflow stopped", "mlflow", away),
    ("Prefect stopped", "prefect", away),
    ("a service stopped", "service-a", away),
    ("a service killed", "service-b", killed),
)


def main() -> None:
    given = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given.add_argument("--port", type=int, default=8080)
    given.add_argument("--key", required=True)
    given.add_argument("--seconds", type=float, default=60)
    given.add_argument("--rows", type=Path, help="JSON with rows of your model; default: one of bike_demand")
    given.add_argument("--project", default=Path.cwd().name, help="the stack's name in Compose")
    options = given.parse_args()
    rows = json.loads(options.rows.read_bytes())["rows"][:1] if options.rows else [ROW]

    def docker(*words: str) -> None:
        subprocess.run(["docker", *words], check=True, capture_output=True)

    def container(service: str) -> str:
        mark = "label=com.docker.compose"
        command = ["docker", "ps", "-aq", "-f", f"{mark}.project={options.project}", "-f", f"{mark}.service={service}"]
        shown = subprocess.run(command, check=True, capture_output=True, text=True)
        return shown.stdout.split()[0]

    head = f"for {options.seconds:.0f} s"
    print(f"{head:<22}{'answers':>9}{'failed':>9}{'p99 ms':>9}{'longest ms':>12}")
    for name, service, fault in FAULTS:
        with Load(options.port, options.key, rows) as load:
            time.sleep(2)
            fault(docker, container(service), options.seconds)
            time.sleep(5)
        told = load.counted()
        print(f"{name:<22}{sum(told.statuses.values()):>9}{told.failed:>9}{told.p99:>9.1f}{told.longest:>12.0f}")


if __name__ == "__main__":
    main()
