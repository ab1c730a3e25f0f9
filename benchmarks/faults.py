"""Responses of a running stack under load while its services are stopped, one after the other.

    docker compose up -d && python benchmarks/faults.py --key tl_… --seconds 60

Sends rows to the API without a pause and counts every response; a prediction fails without a response of status 200.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.support.load import BIKE_ROW, CountingLoad

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
    rows = json.loads(options.rows.read_bytes())["rows"][:1] if options.rows else [BIKE_ROW]

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
        with CountingLoad(options.port, options.key, rows) as load:
            time.sleep(2)
            fault(docker, container(service), options.seconds)
            time.sleep(5)
        counts = load.counts()
        print(
            f"{name:<22}{sum(counts.statuses.values()):>9}{counts.failed:>9}{counts.p99:>9.1f}{counts.longest:>12.0f}"
        )


if __name__ == "__main__":
    main()
