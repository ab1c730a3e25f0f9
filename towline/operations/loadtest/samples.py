"""What happened to each request: written while the load goes on, read while it does and when it is over."""

import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

FIELDS = "at,seconds,late,error"
PERCENTILES = (50.0, 90.0, 95.0, 99.0, 99.9)


class Recorder:
    """Appends requests to a file, a line each, whenever ``flush`` is called.

    It belongs to a load generator: once the process that started that is gone, ``flush`` ends it, so that no load goes
    on that nobody watches.
    """

    def __init__(self, path: Path) -> None:
        self._parent = os.getppid()
        self._file = path.open("w", encoding="utf-8")
        self._lines = [FIELDS]

    def add(self, at: float, seconds: float, late: float = 0.0, error: str = "") -> None:
        """One request.

        Args:
            at: when it was due, in seconds since the epoch.
            seconds: from then until its answer had come, or its error.
            late: seconds that the load generator itself sent it after it was due.
            error: kind of error; empty for a right answer.
        """
        self._lines.append(f"{at:.6f},{seconds:.6f},{late:.6f},{' '.join(error.replace(',', ' ').split())}")

    def flush(self) -> None:
        if os.getppid() != self._parent:
            os._exit(0)
        if self._lines:
            self._file.write("\n".join(self._lines) + "\n")
            self._file.flush()
            self._lines.clear()


@dataclass(frozen=True)
class Samples:
    """Requests in the order they were due; arrays (n,), seconds."""

    at: np.ndarray
    seconds: np.ndarray
    late: np.ndarray
    errors: tuple[str, ...]

    @classmethod
    def of(cls, lines: Sequence[str]) -> "Samples":
        rows = sorted((line.split(",", 3) for line in lines if line and line != FIELDS), key=lambda row: float(row[0]))
        numbers = np.array([[float(cell) for cell in row[:3]] for row in rows]).reshape(len(rows), 3)
        return cls(numbers[:, 0], numbers[:, 1], numbers[:, 2], tuple(row[3] for row in rows))

    @classmethod
    def read(cls, path: Path) -> "Samples":
        return cls.of(path.read_text(encoding="utf-8").splitlines())

    def __len__(self) -> int:
        return len(self.at)

    @property
    def failed(self) -> np.ndarray:
        return np.array([bool(error) for error in self.errors], dtype=bool)

    def kinds(self) -> dict[str, int]:
        """Errors by kind, the commonest first."""
        return dict(Counter(error for error in self.errors if error).most_common())

    def percentiles(self) -> dict[str, float]:
        """Milliseconds: p50 … p99.9 and max, of all requests; a failed one counts with the time it took to fail."""
        if not len(self):
            return {}
        found = np.percentile(self.seconds, PERCENTILES, method="higher") * 1e3
        named = {f"p{share:g}": round(float(value), 3) for share, value in zip(PERCENTILES, found, strict=True)}
        return named | {"max": round(float(self.seconds.max()) * 1e3, 3)}


@dataclass(frozen=True)
class Interval:
    """Requests due in ``seconds`` from ``start`` (seconds after the first); milliseconds, None without requests."""

    start: float
    seconds: float
    requests: int
    failed: int
    p50: float | None
    p95: float | None
    p99: float | None


def intervals(samples: Samples, most: int = 120) -> list[Interval]:
    """The load over time, in whole seconds or as many of them as make ``most`` intervals."""
    if not len(samples):
        return []
    since = samples.at - samples.at[0]
    step = max(1.0, math.ceil(float(since[-1]) / most))
    place = (since // step).astype(int)
    failed = samples.failed
    found = []
    for position in range(int(place[-1]) + 1):
        here = place == position
        seconds = samples.seconds[here]
        shares: list[float | None] = [None] * 3
        if len(seconds):
            shares = [round(float(v) * 1e3, 3) for v in np.percentile(seconds, (50, 95, 99), method="higher")]
        counts = int(here.sum()), int(failed[here].sum())
        found.append(Interval(position * step, step, *counts, *shares))
    return found
