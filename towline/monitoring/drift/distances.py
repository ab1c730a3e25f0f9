"""Distances between the values of current rows and a reference profile, column by column.

Only distances are computed here. ``thresholds`` decides which distance counts as drift.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from towline.monitoring.drift.histograms import CategoryCounts, ColumnStats, NumericHistogram


def distance(profile: Mapping[str, Any], stats: ColumnStats) -> float | None:
    """The distance of a column's values from its profile. Nulls are not part of it.

    Args:
        profile: the column in ``profile.json``.
        stats: statistics of the same column in current rows.

    Returns:
        For numbers the Wasserstein distance in standard deviations of the profile, for categories the Jensen-Shannon
        distance (base 2, 0 to 1). None for datetimes, and if one side has no values.
    """
    if not stats.count or not profile["count"]:
        return None
    if stats.categories is not None:
        return jensen_shannon(profile, stats.categories)
    return None if stats.histogram is None else wasserstein(profile, stats.histogram)


def wasserstein(profile: Mapping[str, Any], current: NumericHistogram) -> float:
    """Wasserstein-1 distance in standard deviations: the area between the two cumulative distribution functions.

    Values are assumed to be evenly spread within a cell of the grid. Outside the grid only the means are compared,
    which is exact unless the two functions cross there. If the profile has a single value, the result is the share of
    other values.

    Source: Vallender, Calculation of the Wasserstein distance between probability distributions on the line (1974).
    """
    grid = profile["grid"]
    reference_shares = np.array([grid["below"], *grid["cells"], grid["above"]], dtype=np.float64)
    current_shares = np.array([current.below, *current.cells.tolist(), current.above], dtype=np.float64)
    reference_shares, current_shares = reference_shares / reference_shares.sum(), current_shares / current_shares.sum()
    if not profile["sd"]:
        return float(1.0 - current_shares[reference_shares > 0].sum())
    cdf_difference = np.cumsum(current_shares - reference_shares)[:-1]  # at the edges of the cells
    left, right = np.abs(cdf_difference[:-1]), np.abs(cdf_difference[1:])
    both = left + right
    crossing = cdf_difference[:-1] * cdf_difference[1:] < 0
    areas = both / 2
    areas[crossing] = (left[crossing] ** 2 + right[crossing] ** 2) / (2 * both[crossing])
    width = (grid["high"] - grid["low"]) / len(grid["cells"])
    count = current.below + current.above + int(current.cells.sum())
    tails = abs(abs(current.below_sum - current.below * grid["low"]) / count - _profile_tail(profile, "below"))
    tails += abs(abs(current.above_sum - current.above * grid["high"]) / count - _profile_tail(profile, "above"))
    return float((areas.sum() * width + tails) / profile["sd"])


def kolmogorov_smirnov(profile: Mapping[str, Any], current: NumericHistogram, edges: int) -> float:
    """Kolmogorov-Smirnov distance, 0 to 1: the largest difference of the cumulative shares at ``edges`` of the grid.

    It depends on ranks only. So it sees a move in the middle of a column whose standard deviation comes from a few far
    values.

    Source: Smirnov, Table for estimating the goodness of fit of empirical distributions (1948).
    """
    grid = profile["grid"]
    reference_counts = np.array([grid["below"], *grid["cells"]], dtype=np.float64)
    current_counts = np.array([current.below, *current.cells.tolist()], dtype=np.float64)
    current_shares = current_counts / (current_counts.sum() + current.above)
    cdf_difference = np.cumsum(current_shares - reference_counts / (reference_counts.sum() + grid["above"]))
    return float(np.abs(cdf_difference[:: len(grid["cells"]) // edges]).max())


def jensen_shannon(profile: Mapping[str, Any], current: CategoryCounts) -> float:
    """Jensen-Shannon distance (base 2) between the shares of categories: 0 if equal, 1 if they have none in common.

    Source: Endres and Schindelin, A new metric for probability distributions (2003).
    """
    names = list(profile["counts"])
    seen_other = current.other - current.unseen
    reference_shares = np.array([*profile["counts"].values(), profile["other"], 0], dtype=np.float64)
    current_shares = np.array([*(current.counts[name] for name in names), seen_other, current.unseen], dtype=np.float64)
    reference_shares, current_shares = reference_shares / reference_shares.sum(), current_shares / current_shares.sum()
    mixture = (reference_shares + current_shares) / 2
    divergence = (_kullback_leibler(reference_shares, mixture) + _kullback_leibler(current_shares, mixture)) / 2
    return math.sqrt(max(0.0, divergence))


def _kullback_leibler(shares: np.ndarray, mixture: np.ndarray) -> float:
    present = shares > 0
    return float((shares[present] * np.log2(shares[present] / mixture[present])).sum())


def _profile_tail(profile: Mapping[str, Any], side: str) -> float:
    """Mean distance from the edge of the grid of the profile's values outside it, over all values."""
    grid = profile["grid"]
    edge = grid["low"] if side == "below" else grid["high"]
    mean = grid.get(f"{side}_mean")
    return 0.0 if mean is None else grid[side] * abs(mean - edge) / profile["count"]
