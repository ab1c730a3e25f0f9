"""Histograms of Prometheus, whose buckets are cumulative samples, as counts by bucket."""

from collections.abc import Iterable
from typing import NamedTuple

from prometheus_client import Metric


class HistogramSeries(NamedTuple):
    """A histogram of one set of labels.

    Attributes:
        labels: without ``le``.
        bounds: (k,) upper bounds of the buckets, without +inf.
        counts: (k + 1,) values in each bucket.
        sum: of all values.
    """

    labels: dict[str, str]
    bounds: list[float]
    counts: list[int]
    sum: float


def read_histograms(family: Metric) -> list[HistogramSeries]:
    """The histograms of a family, one for each set of labels."""
    cumulative: dict[tuple[tuple[str, str], ...], dict[float, int]] = {}
    sums: dict[tuple[tuple[str, str], ...], float] = {}
    for sample in family.samples:
        labels = tuple((name, value) for name, value in sample.labels.items() if name != "le")
        if sample.name.endswith("_bucket"):
            cumulative.setdefault(labels, {})[float(sample.labels["le"])] = int(sample.value)
        elif sample.name.endswith("_sum"):
            sums[labels] = sample.value
    return [
        HistogramSeries(dict(labels), sorted(buckets)[:-1], _differences(buckets), sums[labels])
        for labels, buckets in cumulative.items()
    ]


def quantile(bounds: list[float], counts: Iterable[int], share: float) -> float:
    """The value below which a share of the values is, interpolated within its bucket as Prometheus does.

    Example:
        >>> quantile([1.0, 2.0], [2, 2, 0], 0.75)
        1.5
    """
    counts = list(counts)
    rank, below = share * sum(counts), 0
    for place, count in enumerate(counts):
        if below + count >= rank and count:
            if place == len(bounds):
                break
            low = bounds[place - 1] if place else min(0.0, bounds[0])
            return low + (bounds[place] - low) * (rank - below) / count
        below += count
    return bounds[-1]


def _differences(buckets: dict[float, int]) -> list[int]:
    ordered = [buckets[bound] for bound in sorted(buckets)]
    return [count - before for before, count in zip([0, *ordered], ordered, strict=False)]
