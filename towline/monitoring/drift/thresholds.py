"""Thresholds of drift checks: the value that a check exceeds by chance as rarely as the false-alarm budget allows.

Windows without drift are simulated from the release's blocks, which are counts of the training rows by day or by group.

1. Blocks show how far the shares of a day, or of as many groups as the window has, differ from those of all training
   rows. Only the spread beyond chance is used.
2. Rows are drawn from these shares, as many as the window has. The sampling error of the reference is added.
3. The threshold of a check is the quantile of the simulated values that its part of the budget leaves. Beyond the
   simulated values it is extrapolated with an exponential tail of the squares.

Sources: Bonferroni for the budget of several checks; Breiman, Stone and Kooperberg, Robust confidence bounds for
extreme upper quantiles (1990), for the tail; Donner and Klar, Design and analysis of cluster randomization trials
(2000), ch. 1, for the split of a variance between and within clusters.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from towline.data.blocks import CELLS, Blocks

DRAWS = 2_000
DRAWS_OF_WIDE_TABLES = 400
WIDE_TABLE_CHECKS = 400  # from this number of checks on a table is wide
MAX_CELLS_AT_ONCE = 4_000_000
BUDGET_SHARE = 0.75  # the rest of the budget is for what the simulation does not model
MIN_BLOCKS = 8
_TAIL_SHARES = (0.1, 0.02)  # shares of the simulated values that the tail is fitted to


class CheckThresholds(NamedTuple):
    """The thresholds of one column's checks.

    Attributes:
        distance: of the distance between the distributions.
        nulls: of the difference between the shares of nulls.
        share: of the largest difference between the shares of a category, or between the cumulative shares of numbers.
    """

    distance: float
    nulls: float
    share: float


class ReferenceColumn(NamedTuple):
    """A column of a release's reference: its profile, and the blocks of the same rows (None without blocks)."""

    name: str
    profile: Mapping[str, Any]
    blocks: Blocks | None

    @property
    def block_counts(self) -> np.ndarray | None:
        return self.blocks.counts.get(self.name) if self.blocks else None

    def counts(self) -> np.ndarray | None:
        """Reference counts: below, in (64 cells) and above the grid; or of the categories and the rest."""
        if "counts" in self.profile:
            return np.array([*self.profile["counts"].values(), self.profile["other"]], dtype=np.float64)
        grid = self.profile.get("grid")
        if grid is None:
            return None
        cells = np.array(grid["cells"], dtype=np.float64).reshape(CELLS, -1).sum(axis=1)
        return np.concatenate([[grid["below"]], cells, [grid["above"]]])


@dataclass(frozen=True)
class WindowSimulation:
    """Simulates windows without drift to find the thresholds of a window's checks.

    Args:
        days: length of the window; None if unknown.
        checks: number of checks that share the budget.
        alpha: probability that any check of a window without drift raises an alarm.
        seed: seed of the draws.
    """

    days: float | None
    checks: int
    alpha: float
    seed: int = 0

    @property
    def alpha_per_check(self) -> float:
        return BUDGET_SHARE * self.alpha / max(1, self.checks)

    @property
    def draws(self) -> int:
        return DRAWS if self.checks < WIDE_TABLE_CHECKS else DRAWS_OF_WIDE_TABLES

    def thresholds(self, column: ReferenceColumn, values: int, rows: int) -> CheckThresholds:
        """The thresholds of one column.

        Args:
            column: its reference.
            values: number of values in the window, without nulls.
            rows: number of rows in the window.
        """
        rng = np.random.default_rng([self.seed, *column.name.encode()])
        distance, share = self._value_thresholds(column, values, rng)
        return CheckThresholds(distance, self._null_threshold(column, rows, rng), share)

    def _value_thresholds(self, column: ReferenceColumn, values: int, rng: np.random.Generator) -> tuple[float, float]:
        profile, block_counts, reference = column.profile, column.block_counts, column.counts()
        if reference is None or not values or not profile["count"]:
            return 0.0, 0.0
        base = reference if block_counts is None else block_counts.sum(axis=0).astype(np.float64)
        shares = self._draw_shares(base, block_counts, column.blocks, values, rng)
        if len(base) != len(reference):
            shares = _split_other(shares, reference)
        reference_shares = reference / reference.sum()
        chunk = max(1, MAX_CELLS_AT_ONCE // len(reference))
        windows = [
            _draw_windows(shares[start : start + chunk], values, profile["count"], rng)
            for start in range(0, self.draws, chunk)
        ]
        rows = _effective_rows(values, profile["count"])
        distances = np.concatenate([_distances(profile, reference_shares, window, rows, rng) for window in windows])
        distance = _quantile(distances, self.alpha_per_check)
        differences = [window - reference_shares for window in windows]
        if profile["kind"] != "category":
            differences = [np.cumsum(difference, axis=1)[:, :-1] for difference in differences]
        largest = np.concatenate([np.abs(difference).max(axis=1) for difference in differences])
        return distance, _quantile(largest, self.alpha_per_check)

    def _null_threshold(self, column: ReferenceColumn, rows: int, rng: np.random.Generator) -> float:
        profile, blocks, block_counts = column.profile, column.blocks, column.block_counts
        training_rows = profile["count"] + profile["nulls"]
        if not training_rows:
            return 0.0
        null_counts = None
        if blocks is not None and block_counts is not None:
            present = block_counts.sum(axis=1)
            null_counts = np.stack([blocks.rows - present, present], axis=1)
        base = np.array([profile["nulls"], profile["count"]], dtype=np.float64)
        shares = self._draw_shares(base, null_counts, blocks, rows, rng)
        null_shares = _draw_windows(shares, rows, training_rows, rng)[:, 0]
        return _quantile(np.abs(null_shares - profile["nulls"] / training_rows), self.alpha_per_check)

    def _draw_shares(
        self,
        base: np.ndarray,
        block_counts: np.ndarray | None,
        blocks: Blocks | None,
        rows: int,
        rng: np.random.Generator,
    ) -> np.ndarray:
        """(draws, cells): the shares from which the rows of each simulated window are drawn."""
        reference = base / base.sum()
        equal = np.broadcast_to(reference, (self.draws, len(reference)))
        if block_counts is None or blocks is None:
            return equal
        sizes = block_counts.sum(axis=1)
        if (sizes > 0).sum() < MIN_BLOCKS:
            return equal
        counts, sizes = block_counts[sizes > 0].astype(np.float64), sizes[sizes > 0].astype(np.float64)
        if blocks.kind == "time":
            length = max(1, round(self.days)) if self.days else max(1, round(rows / sizes.mean()))
            length = min(length, max(1, len(counts) // 4))
            cumulative = np.cumsum(np.concatenate([np.zeros((1, len(reference))), counts]), axis=0)
            counts = cumulative[length:] - cumulative[:-length]
            sizes = counts.sum(axis=1)
            blocks_per_window = 1.0
        else:
            blocks_per_window = max(rows / sizes.mean(), 1e-9)
        deviations = counts / sizes[:, None] - reference
        spread = float((np.cumsum(deviations, axis=1)[:, :-1] ** 2).mean()) if len(reference) > 1 else 0.0
        cumulative_shares = np.cumsum(reference)[:-1]
        chance = 0.0
        if len(cumulative_shares):
            chance = float((cumulative_shares * (1 - cumulative_shares)).mean() * (1 / sizes).mean())
        between = max(0.0, spread - chance)
        if not between:
            return equal
        sampled = int(min(50, max(1, round(blocks_per_window))))
        picked = rng.integers(0, len(deviations), size=(self.draws, sampled))
        scale = math.sqrt(between / spread * sampled / blocks_per_window)
        shares = np.clip(reference + deviations[picked].mean(axis=1) * scale, 0.0, None)
        normalized: np.ndarray = shares / shares.sum(axis=1, keepdims=True)
        return normalized


def unseen_share_threshold(training_values: int, values: int, singletons: float, alpha: float) -> float:
    """The share of values never seen in training that a window without drift exceeds with probability ``alpha``.

    Args:
        training_values: number of values in the training rows.
        values: number of values in the window.
        singletons: number of training values that occurred once. The next value is new with the probability that a
            value is one of them (Good, The population frequencies of species and the estimation of population
            parameters, 1953). For the range of numbers use 1.
        alpha: probability of a false alarm of this check.
    """
    if not values or not training_values:
        return 1.0
    # the rate itself is estimated from few values: a gamma distribution of it, then Poisson; Chernoff bound of the tail
    mean, shape = values * (singletons + 1) / training_values, singletons + 1
    overdispersion = mean / shape
    log_odds = math.log(1 / alpha)
    high = mean + math.sqrt(2 * log_odds * mean * (1 + overdispersion)) + log_odds * (1 + overdispersion)
    return float(min(1.0, high / values))


def _split_other(shares: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Splits the share of the categories that blocks do not name among those that the profile names."""
    last = shares.shape[1] - 1
    rest = reference[last:]
    within = rest / rest.sum() if rest.sum() else np.full(len(rest), 1 / len(rest))
    return np.concatenate([shares[:, :last], shares[:, last:] * within], axis=1)


def _draw_windows(shares: np.ndarray, rows: int, training_rows: int, rng: np.random.Generator) -> np.ndarray:
    """(draws, cells): observed shares of simulated windows."""
    effective = _effective_rows(rows, training_rows)
    counts: np.ndarray = rng.multinomial(effective, shares)
    return counts / effective


def _effective_rows(rows: int, training_rows: int) -> int:
    """The number of rows whose sampling error is that of the window and of the reference together."""
    return max(1, round(1 / (1 / rows + 1 / max(training_rows, 1))))


def _distances(
    profile: Mapping[str, Any], reference: np.ndarray, drawn: np.ndarray, rows: int, rng: np.random.Generator
) -> np.ndarray:
    """As ``distances.distance``, for many windows at once; values outside the grid follow a gamma distribution."""
    if profile["kind"] == "category":
        mixture = (reference + drawn) / 2
        with np.errstate(divide="ignore", invalid="ignore"):
            left = np.where(reference > 0, reference * np.log2(reference / mixture), 0.0).sum(axis=1)
            right = np.where(drawn > 0, drawn * np.log2(drawn / mixture), 0.0).sum(axis=1)
        jensen_shannon: np.ndarray = np.sqrt(np.maximum(0.0, (left + right) / 2))
        return jensen_shannon
    if not profile["sd"]:
        other_share: np.ndarray = 1.0 - drawn[:, reference > 0].sum(axis=1)
        return other_share
    grid = profile["grid"]
    cdf_difference = np.abs(np.cumsum(drawn - reference, axis=1)[:, :-1])
    width = (grid["high"] - grid["low"]) / (len(reference) - 2)
    area = ((cdf_difference[:, :-1] + cdf_difference[:, 1:]) / 2).sum(axis=1) * width
    for side, edge, position in (("below", grid["low"], 0), ("above", grid["high"], -1)):
        mean = grid.get(f"{side}_mean")
        if mean is not None and mean != edge:
            excess, sd = abs(mean - edge), grid.get(f"{side}_sd")
            shape = 1.0 if not sd else min(1e3, (excess / sd) ** 2)
            sums = rng.gamma(drawn[:, position] * rows * shape, excess / shape) / rows
            area = area + np.abs(sums - reference[position] * excess)
    wasserstein: np.ndarray = area / profile["sd"]
    return wasserstein


def _quantile(values: np.ndarray, alpha: float) -> float:
    """The value that a share ``alpha`` of windows exceeds.

    Distances of many rows have normal tails, so their squares have exponential tails. A longer tail, as with few rows
    of a heavy-tailed column, shows in its far end: the larger of two fits is used.
    """
    squares = values**2
    quantile = 0.0
    for tail in _TAIL_SHARES:
        if alpha >= tail:
            fitted = float(np.quantile(squares, 1 - alpha))
        else:
            start = float(np.quantile(squares, 1 - tail))
            beyond = squares[squares > start]
            mean = float((beyond - start).mean()) if len(beyond) else 0.0
            fitted = start + mean * math.log(tail / alpha)
        quantile = max(quantile, fitted)
    return math.sqrt(quantile)
