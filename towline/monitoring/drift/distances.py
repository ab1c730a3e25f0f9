"""How far current rows are from a profile, column by column. Distances only: what is too far is decided elsewhere."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from towline.monitoring.drift.histograms import ColumnStats, Levels, Numbers


def distance(facts: Mapping[str, Any], seen: ColumnStats) -> float | None:
    """The distance of a column's values from its profile; nulls are another matter.

    Args:
        facts: the column in ``profile.json``.
        seen: the same column of current rows.

    Returns:
        For numbers the Wasserstein distance in standard deviations of the profile, for categories the Jensen-Shannon
        distance (base 2, 0 to 1). None where one side has no value, and for times.
    """
    if not seen.count or not facts["count"]:
        return None
    if seen.levels is not None:
        return jensen_shannon(facts, seen.levels)
    return None if seen.numbers is None else wasserstein(facts, seen.numbers)


def wasserstein(facts: Mapping[str, Any], seen: Numbers) -> float:
    """Wasserstein-1 distance in standard deviations: the area between the two distribution functions.

    Within a cell of the grid values count as evenly spread. Beyond the grid only the means count, which is exact unless
    the two functions cross there. Against a profile of one value alone it is the share of other values.

    Source: Vallender, Calculation of the Wasserstein distance between probability distributions on the line (1974).
    """
    grid = facts["grid"]
    then = np.array([grid["below"], *grid["cells"], grid["above"]], dtype=np.float64)
    now = np.array([seen.below, *seen.cells.tolist(), seen.above], dtype=np.float64)
    then, now = then / then.sum(), now / now.sum()
    if not facts["sd"]:
        return float(1.0 - now[then > 0].sum())
    gap = np.cumsum(now - then)[:-1]  # at the edges
    left, right = np.abs(gap[:-1]), np.abs(gap[1:])
    both = left + right
    crossing = gap[:-1] * gap[1:] < 0
    areas = both / 2
    areas[crossing] = (left[crossing] ** 2 + right[crossing] ** 2) / (2 * both[crossing])
    width = (grid["high"] - grid["low"]) / len(grid["cells"])
    count = seen.below + seen.above + int(seen.cells.sum())
    tails = abs(_short(seen.below, seen.below_sum, grid["low"]) / count - _told(facts, "below"))
    tails += abs(_short(seen.above, seen.above_sum, grid["high"]) / count - _told(facts, "above"))
    return float((areas.sum() * width + tails) / facts["sd"])


def kolmogorov_smirnov(facts: Mapping[str, Any], seen: Numbers, edges: int) -> float:
    """The largest difference between the shares below any of so many edges of the grid: 0 for the same, 1 at most.

    It hangs on ranks alone, so it sees a move in the middle of a column whose deviation is that of a few far values.

    Source: Smirnov, Table for estimating the goodness of fit of empirical distributions (1948).
    """
    grid = facts["grid"]
    then = np.array([grid["below"], *grid["cells"]], dtype=np.float64)
    now = np.array([seen.below, *seen.cells.tolist()], dtype=np.float64)
    gap = np.cumsum(now / (now.sum() + seen.above) - then / (then.sum() + grid["above"]))
    return float(np.abs(gap[:: len(grid["cells"]) // edges]).max())


def jensen_shannon(facts: Mapping[str, Any], seen: Levels) -> float:
    """Jensen-Shannon distance between the shares of levels, base 2: 0 for the same, 1 for nothing in common.

    Source: Endres and Schindelin, A new metric for probability distributions (2003).
    """
    names = list(facts["counts"])
    then = np.array([*facts["counts"].values(), facts["other"], 0], dtype=np.float64)
    now = np.array([*(seen.counts[name] for name in names), seen.other - seen.unseen, seen.unseen], dtype=np.float64)
    then, now = then / then.sum(), now / now.sum()
    middle = (then + now) / 2
    divergence = (_relative(then, middle) + _relative(now, middle)) / 2
    return math.sqrt(max(0.0, divergence))


def _relative(shares: np.ndarray, of: np.ndarray) -> float:
    there = shares > 0
    return float((shares[there] * np.log2(shares[there] / of[there])).sum())


def _short(count: int, total: float, edge: float) -> float:
    """How far values beyond an edge are from it, all together."""
    return abs(total - count * edge)


def _told(facts: Mapping[str, Any], side: str) -> float:
    grid = facts["grid"]
    edge = grid["low"] if side == "below" else grid["high"]
    mean = grid.get(f"{side}_mean")
    return 0.0 if mean is None else grid[side] * abs(mean - edge) / facts["count"]
