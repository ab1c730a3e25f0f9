"""Measured rates with their intervals, next to the rates in the config."""

import math

from towline.config import Frozen

DETECTED = 0.8  # share of trials from which on an effect counts as detected
Z = 1.959964  # of a 95 % interval


class MeasuredRate(Frozen):
    """How often something happened in repeated trials.

    Attributes:
        part: gate, drift, quality or rollout.
        case: the name of the judged case.
        event: the counted event, e.g. ``passes``.
        count, trials: of the event.
        low, high: 95 % interval (Wilson, 1927).
        expected: the rate that the config requires, e.g. "at most 5 %"; empty if it sets none.
        effect: size of what was planted; None without one.
    """

    part: str
    case: str
    event: str
    count: int
    trials: int
    low: float
    high: float
    expected: str = ""
    effect: float | None = None

    @property
    def rate(self) -> float:
        return self.count / self.trials if self.trials else math.nan

    def text(self) -> str:
        """The rate and its interval in percent."""
        return f"{self.rate:.0%} [{self.low:.0%}, {self.high:.0%}]" if self.trials else "not measured"


class SelftestResult(Frozen):
    """The measured rates of a pipeline.

    Attributes:
        model: name of the pipeline.
        candidate: that was fitted as the champion.
        rates: in the order of the report.
        notes: the smallest detected effects, and limits of the measurement.
    """

    model: str
    candidate: str
    rates: tuple[MeasuredRate, ...]
    notes: tuple[str, ...]


def measure_rate(
    part: str, case: str, event: str, outcomes: list[bool], *, expected: str = "", effect: float | None = None
) -> MeasuredRate:
    """The share of true outcomes with Wilson's interval.

    Example:
        >>> measure_rate("gate", "itself", "passes", [True] * 20).text()
        '100% [84%, 100%]'
    """
    count, trials = sum(outcomes), len(outcomes)
    low, high = wilson_interval(count, trials)
    return MeasuredRate(
        part=part,
        case=case,
        event=event,
        count=count,
        trials=trials,
        low=low,
        high=high,
        expected=expected,
        effect=effect,
    )


def wilson_interval(count: int, trials: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson, 1927); 0 to 1 without trials."""
    if not trials:
        return 0.0, 1.0
    share, square = count / trials, Z**2 / trials
    middle = (share + square / 2) / (1 + square)
    width = Z * math.sqrt(share * (1 - share) / trials + square / (4 * trials)) / (1 + square)
    return max(0.0, middle - width), min(1.0, middle + width)


def smallest_detected(rates: list[MeasuredRate]) -> float | None:
    """The smallest effect that is detected in at least 80 % of trials, as all larger ones are; else None."""
    smallest = None
    for rate in sorted(rates, key=lambda rate: -(rate.effect or 0.0)):
        if rate.rate < DETECTED:
            break
        smallest = rate.effect
    return smallest
