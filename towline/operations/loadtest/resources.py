"""What the service's processes use while the load goes on, from its own ``/metrics``."""

import threading
import time
import urllib.request
from dataclasses import dataclass

from towline.operations.loadtest.target import headers

CPU, MEMORY = "process_cpu_seconds_total", "process_resident_memory_bytes"


@dataclass(frozen=True)
class Usage:
    """At ``at`` seconds since the epoch: CPU seconds so far and resident bytes, of all workers together."""

    at: float
    cpu: float
    memory: float


class Watch:
    """Reads the metrics once a second in a thread, from ``start`` to ``stop``. ``why`` tells why there are none."""

    def __init__(self, url: str, key: str | None) -> None:
        self._request = urllib.request.Request(f"{url}/metrics", headers=headers(key))  # noqa: S310 - http or https
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._often, daemon=True)
        self.seen: list[Usage] = []
        self.why = ""

    def start(self) -> None:
        self._look()
        if self.seen:
            self._thread.start()

    def stop(self) -> None:
        self._over.set()
        if self.seen:
            self._thread.join(5)
            time.sleep(0.6)  # workers tell their CPU twice a second
            self._look()

    def told(self, begin: float, end: float) -> dict[str, float | str]:
        """Cores used between two moments, and MB before, at the most and after; or why that is not known."""
        if len(self.seen) < 2:
            return {"unknown": self.why or "the load was too short"}
        first, last = self.seen[0], self.seen[-1]
        during = [usage for usage in self.seen if begin <= usage.at <= end] or [last]
        return {
            "cores": round((last.cpu - first.cpu) / max(end - begin, 1e-9), 3),
            "memory_before_mb": round(first.memory / 1e6, 1),
            "memory_most_mb": round(max(usage.memory for usage in [first, *during, last]) / 1e6, 1),
            "memory_after_mb": round(last.memory / 1e6, 1),
        }

    def _often(self) -> None:
        while not self._over.wait(1.0):
            self._look()

    def _look(self) -> None:
        try:
            with self._opener.open(self._request, timeout=2) as answer:
                text = answer.read().decode()
        except OSError as error:
            self.why = f"/metrics: {error}"
            return
        cpu, memory = _total(text, CPU), _total(text, MEMORY)
        if cpu is None or memory is None:
            self.why = "/metrics tells neither CPU nor memory"
        else:
            self.seen.append(Usage(time.time(), cpu, memory))


def _total(text: str, name: str) -> float | None:
    """The sum of a metric over its labels, whatever its name begins with."""
    found = None
    for line in text.splitlines():
        metric = line.partition("{")[0].partition(" ")[0]
        if not line.startswith("#") and metric.endswith(name):
            found = (found or 0.0) + float(line.rsplit(" ", 1)[1])
    return found
