"""Counts of a rollout in the service: rows, failures, slow answers, disagreements; the file that stops a challenger.

Each worker counts and writes its own file; the sum over all files is the evidence of the service. A worker that was
killed leaves its last counts. ``stopped.json`` takes the challenger out in every worker, and after a restart.
"""

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from towline import files
from towline.config import RolloutConfig
from towline.errors import TowlineError
from towline.rollout.confidence_sequences import rate_limits

STOP_PROBABILITY = 0.01  # of stopping a challenger whose rates are exactly the accepted ones
MAX_SLOW_EXCESS = 0.2  # accepted share of slow answers above that of the champion
MIN_TIMED = 50  # answers of the champion before the challenger's durations are judged
_STOPPED = "stopped.json"
_logger = logging.getLogger(__name__)


@dataclass
class ServiceCounts:
    """Counts since the start of a rollout.

    Attributes:
        assignments: weight → ids of requests assigned to champion and challenger; none with a key column. Requests
            with the same id are one assignment. Workers apply a change of the weight at different times.
        champion_rows, challenger_rows: rows answered to clients by each version.
        champion_attempts: requests, or rows of one, that the champion was asked for clients.
        champion_errors: those of them that failed with a 5xx error.
        asked_rows: rows that the challenger was asked, also in shadow.
        failed_rows: those of them that it could not answer: an exception, no answer in time, an infinite number or NaN.
        attempts: requests, or consecutive rows of one, that the challenger was asked, also in shadow. Their rows fail
            together, so they count once.
        failures: those of the attempts that failed.
        nonfinite: those of the failures with an infinite number or NaN.
        shadow_attempts, shadow_failures: those of the attempts and failures that were in shadow.
        timed, champion_timed: answers to clients whose duration was measured.
        slow, champion_slow: those of them that took 1.5 times as long as the champion's median, and 0.5 ms longer.
        compared: rows that both versions answered.
        disagreements: those of them with another label, or a number that differs by more than 10 %.
        skipped: rows that were not answered in shadow: the service was busy.
    """

    assignments: dict[str, list[int]] = field(default_factory=dict)
    champion_rows: int = 0
    challenger_rows: int = 0
    champion_attempts: int = 0
    champion_errors: int = 0
    asked_rows: int = 0
    failed_rows: int = 0
    attempts: int = 0
    failures: int = 0
    nonfinite: int = 0
    shadow_attempts: int = 0
    shadow_failures: int = 0
    timed: int = 0
    slow: int = 0
    champion_timed: int = 0
    champion_slow: int = 0
    compared: int = 0
    disagreements: int = 0
    skipped: int = 0

    def __add__(self, other: "ServiceCounts") -> "ServiceCounts":
        total = ServiceCounts()
        for name in _NAMES:
            setattr(total, name, getattr(self, name) + getattr(other, name))
        for counts in (self, other):
            for weight, (champion, challenger) in list(counts.assignments.items()):
                if champion or challenger:
                    pair = total.at_weight(float(weight))
                    pair[0] += champion
                    pair[1] += challenger
        return total

    def at_weight(self, weight: float) -> list[int]:
        """The assignments to champion and challenger at a weight; the caller may increase them."""
        return self.assignments.setdefault(str(float(weight)), [0, 0])

    def totals(self) -> dict[str, int]:
        """All counts, those of assignments as sums over the weights."""
        champion, challenger = (sum(pair[arm] for pair in self.assignments.values()) for arm in (0, 1))
        requests = {"champion_requests": champion, "challenger_requests": challenger}
        return requests | {name: getattr(self, name) for name in _NAMES}

    def fault(self, config: RolloutConfig) -> str:
        """Why the challenger must not answer any more; empty if it may.

        The tests may be repeated after each row: the probability that one of them ever stops a challenger whose rates
        are at most the accepted ones is ``STOP_PROBABILITY``.
        """
        # apart, since a fault that comes and goes is rarer in shadow, where a failed batch is asked part by part
        shadow = self.shadow_failures, self.shadow_attempts
        clients = self.failures - self.shadow_failures, self.attempts - self.shadow_attempts
        for failures, attempts in (clients, shadow):
            if _is_above(failures, attempts, config.max_error_rate):
                limit = f"more than {config.max_error_rate:.2%}"
                return f"{failures} of {attempts} answers failed or are not finite, {limit}"
        if self.champion_timed < MIN_TIMED:
            return ""
        usual = self.champion_slow / self.champion_timed
        if _is_above(self.slow, self.timed, usual + MAX_SLOW_EXCESS):
            return f"{self.slow / self.timed:.0%} of {self.timed} answers are slow, of the champion's {usual:.0%}"
        return ""


def _is_above(events: int, trials: int, accepted: float) -> bool:
    """Whether the probability of an event is above the accepted one, by a confidence sequence."""
    return events > accepted * trials and rate_limits(events, trials, STOP_PROBABILITY / 3).lower > accepted


_NAMES = tuple(each.name for each in fields(ServiceCounts) if each.name != "assignments")


def write_counts(folder: Path, worker: str, counts: ServiceCounts) -> None:
    """Writes the counts of one worker."""
    files.write(folder / "counts" / f"{worker}.json", json.dumps(asdict(counts)))


def read_counts(folder: Path, without: str = "") -> ServiceCounts:
    """The sum over all workers but ``without``."""
    total = ServiceCounts()
    for path in sorted((folder / "counts").glob("*.json")):
        if path.stem != without:
            for document in _read(path):
                total += _parse(document)
    return total


def stop_challenger(folder: Path, reason: str) -> None:
    """Stops the challenger in all workers; a later reason does not replace the first."""
    if not stop_reason(folder):
        try:
            files.write(folder / _STOPPED, json.dumps({"reason": reason}))
        except (TowlineError, OSError) as error:
            _logger.warning("cannot tell the other workers to stop the challenger: %s", error)


def stop_reason(folder: Path) -> str:
    """Why the challenger was taken out; empty if it was not."""
    return next((str(document.get("reason", "stopped")) for document in _read(folder / _STOPPED)), "")


def _parse(document: Mapping[str, Any]) -> ServiceCounts:
    counts = ServiceCounts()
    for name in _NAMES:
        setattr(counts, name, int(document.get(name, 0)))
    for weight, pair in document.get("assignments", {}).items():
        counts.at_weight(float(weight))[:] = map(int, pair)
    return counts


def _read(path: Path) -> Iterator[dict[str, Any]]:
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return
    if isinstance(document, dict):
        yield document
