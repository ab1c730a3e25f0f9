"""The load and the result of a load test."""

from dataclasses import dataclass
from typing import Any

from towline.operations.loadtest.service_under_test import ServiceUnderTest

MAX_LATE_SHARE = 0.01  # of requests sent more than 10 ms late; above it the latencies include the generator's own delay
MAX_GENERATOR_CORES = 0.9


@dataclass(frozen=True)
class Load:
    """The load: ``users`` that wait for their responses, or a ``rate`` in requests/s (open loop). The other is None."""

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
        service: the service.
        load: users or rate.
        seconds: from the start to the last answer.
        requests: number of requests that have an answer or an error.
        errors: number of failed requests by the kind of error.
        latency_ms: percentiles and maximum in ms.
        late: share of the requests that were sent more than 10 ms late.
        server: cores and memory of the service, or the reason why they are unknown.
        cores: cores that the generator used.
        interrupted: whether the test was stopped early.
    """

    service: ServiceUnderTest
    load: Load
    seconds: float
    requests: int
    errors: dict[str, int]
    latency_ms: dict[str, float]
    late: float
    server: dict[str, float | str]
    cores: float
    interrupted: bool

    @property
    def warnings(self) -> list[str]:
        """Reasons why the figures may not be those of the service."""
        warnings = []
        if self.late > MAX_LATE_SHARE:
            warnings.append(
                f"the load generator sent {self.late:.0%} of the requests more than 10 ms late: "
                "its machine is busy, and its own delay is included in these latencies"
            )
        if self.cores > MAX_GENERATOR_CORES:
            warnings.append(f"the load generator used {self.cores:.2f} of 1 core: the service may be faster than this")
        if self.interrupted:
            warnings.append(f"stopped before the end of the {self.load.seconds:g} s")
        return warnings

    def document(self) -> dict[str, Any]:
        failed = sum(self.errors.values())
        return {
            "url": self.service.url,
            "model": self.service.model,
            "users": self.load.users,
            "rate": self.load.rate,
            "seconds": round(self.seconds, 3),
            "requests": self.requests,
            "failed": failed,
            "errors": self.errors,
            "latency_ms": self.latency_ms,
            "answered_per_second": round((self.requests - failed) / self.seconds, 2),
            "server": self.server,
            "generator_cores": round(self.cores, 3),
            "interrupted": self.interrupted,
            "warnings": self.warnings,
        }
