"""From which distance on a night is too far: what nights without a change would show, drawn from the release's blocks.

A night's shares are drawn in two steps. Blocks of the training rows say how far the shares of a day, or of as many
groups as the night has, stand from those of all rows; of their spread only what goes beyond chance is used. Then rows
are drawn from these shares, as many as the night had, with the chance that is in the reference itself added. The limit
of a check is where its share of the budget leaves it, beyond the draws by an exponential tail of the squares.

Sources: Bonferroni for the sum of checks; Breiman, Stone and Kooperberg, Robust confidence bounds for extreme upper
quantiles (1990), for the tail; the split of a variance between and within clusters as in Donner and Klar, Design and
analysis of cluster randomization trials (2000), ch. 1.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from towline.data.blocks import CELLS, Blocks

DRAWS = 2_000
WIDE = 400  # draws where there are more than a hundred columns
CHUNK = 4_000_000  # cells of draws at once
SPARE = 0.75  # of the budget; the rest is for what the draws do not know
_TAILS = (0.1, 0.02)  # shares of the draws that the tail is read from


class CheckThresholds(NamedTuple):
    """What a normal night exceeds as rarely as is asked.

    Attributes:
        distance: of the distribution.
        nulls: difference of their shares.
        jump: the largest difference of the shares of a level, or of those below a number.
    """

    distance: float
    nulls: float
    jump: float


class Window(NamedTuple):
    """What is drawn for: rows, how long they took in days (None: not known), how many checks share ``alpha``."""

    days: float | None
    checks: int
    alpha: float

    @property
    def each(self) -> float:
        """The share of one check."""
        return SPARE * self.alpha / max(1, self.checks)


def limits(
    facts: Mapping[str, Any],
    blocks: Blocks | None,
    name: str,
    count: int,
    rows: int,
    window: Window,
    draws: int,
    seed: int,
) -> CheckThresholds:
    """The limits of one column.

    Args:
        facts: the column in the profile.
        blocks: of the same rows; None where there are none.
        name: the column.
        count: values of the night.
        rows: of the night, nulls included.
        window: the rest about it.
        draws: how many nights are drawn.
        seed: of the draws.
    """
    rng = np.random.default_rng([seed, *name.encode()])
    told = facts["count"] + facts["nulls"]
    table = blocks.counts.get(name) if blocks else None
    of = blocks if table is not None else None
    distance, jump, share = 0.0, 0.0, facts["nulls"] / max(told, 1)
    reference = cells(facts)
    if reference is not None and count and facts["count"]:
        of_blocks = reference if table is None else table.sum(axis=0).astype(np.float64)
        shares = _shares(of_blocks, table, of, count, window, draws, rng)
        if len(of_blocks) != len(reference):
            shares = _named(shares, reference)
        base = reference / reference.sum()
        several = max(1, CHUNK // len(base))
        nights = [_drawn(shares[at : at + several], count, facts["count"], rng) for at in range(0, draws, several)]
        effective = _effective(count, facts["count"])
        distance = _limit(np.concatenate([_distances(facts, base, n, effective, rng) for n in nights]), window.each)
        off = [n - base if facts["kind"] == "category" else np.cumsum(n - base, axis=1)[:, :-1] for n in nights]
        jump = _limit(np.concatenate([np.abs(each).max(axis=1) for each in off]), window.each)
    if told:
        present = None if table is None or blocks is None else table.sum(axis=1)
        two = None if present is None or blocks is None else np.stack([blocks.rows - present, present], axis=1)
        base = np.array([facts["nulls"], facts["count"]], dtype=np.float64)
        shares = _shares(base, two, of, rows, window, draws, rng)
        nulls = np.abs(_drawn(shares, rows, told, rng)[:, 0] - share)
        return CheckThresholds(distance, _limit(nulls, window.each), jump)
    return CheckThresholds(distance, 0.0, jump)


def rare(training: int, rows: int, seen: float, each: float) -> float:
    """The share of values that training never saw from which on there are too many.

    Args:
        training: values of the training rows.
        rows: values of the night.
        seen: training values that stood alone: of as many kinds the next one is new (Good, The population frequencies
            of species and the estimation of population parameters, 1953), and two of them are the ends of a range.
        each: the chance that is left to this check.
    """
    if not rows or not training:
        return 1.0
    # the share itself is only known from these few: gamma, then Poisson; its tail by the Chernoff bound
    mean, shape = rows * (seen + 1) / training, seen + 1
    extra = mean / shape
    target = math.log(1 / each)
    high = mean + math.sqrt(2 * target * mean * (1 + extra)) + target * (1 + extra)
    return float(min(1.0, high / rows))


def cells(facts: Mapping[str, Any]) -> np.ndarray | None:
    """A column's reference counts: below, on (in 64 cells) and above the grid; or of levels and the rest."""
    if "counts" in facts:
        return np.array([*facts["counts"].values(), facts["other"]], dtype=np.float64)
    grid = facts.get("grid")
    if grid is None:
        return None
    inner = np.array(grid["cells"], dtype=np.float64).reshape(CELLS, -1).sum(axis=1)
    return np.concatenate([[grid["below"]], inner, [grid["above"]]])


def _shares(
    base: np.ndarray, table: np.ndarray | None, blocks: Blocks | None, rows: int, window: Window, draws: int,
    rng: np.random.Generator,
) -> np.ndarray:  # fmt: skip
    """(draws, cells): the shares that nights are drawn from."""
    reference = base / base.sum()
    if table is None or blocks is None:
        return np.broadcast_to(reference, (draws, len(reference)))
    sizes = table.sum(axis=1)
    kept = sizes > 0
    if kept.sum() < 8:
        return np.broadcast_to(reference, (draws, len(reference)))
    together, sizes = table[kept].astype(np.float64), sizes[kept].astype(np.float64)
    if blocks.kind == "time":
        length = max(1, round(window.days)) if window.days else max(1, round(rows / sizes.mean()))
        length = min(length, max(1, len(together) // 4))
        summed = np.cumsum(np.concatenate([np.zeros((1, len(reference))), together]), axis=0)
        together = summed[length:] - summed[:-length]
        sizes = together.sum(axis=1)
        many = 1.0
    else:
        many = max(rows / sizes.mean(), 1e-9)  # blocks that a night has rows of
    off = together / sizes[:, None] - reference
    spread = float((np.cumsum(off, axis=1)[:, :-1] ** 2).mean()) if len(reference) > 1 else 0.0
    steps = np.cumsum(reference)[:-1]
    chance = float((steps * (1 - steps)).mean() * (1 / sizes).mean()) if len(steps) else 0.0
    between = max(0.0, spread - chance)
    if not between:
        return np.broadcast_to(reference, (draws, len(reference)))
    taken = int(min(50, max(1, round(many))))
    picked = rng.integers(0, len(off), size=(draws, taken))
    moved = off[picked].mean(axis=1) * math.sqrt(between / spread * taken / many)
    shares = np.clip(reference + moved, 0.0, None)
    summed_up: np.ndarray = shares / shares.sum(axis=1, keepdims=True)
    return summed_up


def _named(shares: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Shares of the levels that blocks keep, handed down to all that the profile names: the rest move alike."""
    last = shares.shape[1] - 1
    rest = reference[last:]
    within = rest / rest.sum() if rest.sum() else np.full(len(rest), 1 / len(rest))
    return np.concatenate([shares[:, :last], shares[:, last:] * within], axis=1)


def _drawn(shares: np.ndarray, rows: int, training: int, rng: np.random.Generator) -> np.ndarray:
    """Shares of drawn nights; the reference, too, is only so many rows."""
    effective = _effective(rows, training)
    counts: np.ndarray = rng.multinomial(effective, shares)
    return counts / effective


def _effective(rows: int, training: int) -> int:
    return max(1, round(1 / (1 / rows + 1 / max(training, 1))))


def _distances(
    facts: Mapping[str, Any], base: np.ndarray, drawn: np.ndarray, rows: int, rng: np.random.Generator
) -> np.ndarray:
    """What ``scores.distance`` gives, for many nights of so many rows at once; values beyond the grid are gamma."""
    if facts["kind"] == "category":
        middle = (base + drawn) / 2
        with np.errstate(divide="ignore", invalid="ignore"):
            left = np.where(base > 0, base * np.log2(base / middle), 0.0).sum(axis=1)
            right = np.where(drawn > 0, drawn * np.log2(drawn / middle), 0.0).sum(axis=1)
        far: np.ndarray = np.sqrt(np.maximum(0.0, (left + right) / 2))
        return far
    if not facts["sd"]:
        other: np.ndarray = 1.0 - drawn[:, base > 0].sum(axis=1)
        return other
    grid = facts["grid"]
    gap = np.abs(np.cumsum(drawn - base, axis=1)[:, :-1])
    width = (grid["high"] - grid["low"]) / (len(base) - 2)
    area = ((gap[:, :-1] + gap[:, 1:]) / 2).sum(axis=1) * width
    for side, edge, place in (("below", grid["low"], 0), ("above", grid["high"], -1)):
        mean = grid.get(f"{side}_mean")
        if mean is not None and mean != edge:
            usual, sd = abs(mean - edge), grid.get(f"{side}_sd")
            shape = 1.0 if not sd else min(1e3, (usual / sd) ** 2)
            summed = rng.gamma(drawn[:, place] * rows * shape, usual / shape) / rows
            area = area + np.abs(summed - base[place] * usual)
    scaled: np.ndarray = area / facts["sd"]
    return scaled


def _limit(drawn: np.ndarray, each: float) -> float:
    """The value that a share ``each`` of nights exceeds.

    Distances of many rows have normal tails, their squares exponential ones. Where the tail is longer, as with few rows
    of a heavy-tailed column, it shows in its far end: the larger of two readings counts.
    """
    squares = drawn**2
    limit = 0.0
    for tail in _TAILS:
        if each >= tail:
            found = float(np.quantile(squares, 1 - each))
        else:
            start = float(np.quantile(squares, 1 - tail))
            beyond = squares[squares > start]
            mean = float((beyond - start).mean()) if len(beyond) else 0.0
            found = start + mean * math.log(tail / each)
        limit = max(limit, found)
    return math.sqrt(limit)
