"""Error rates of the gate: verdicts on challengers with a known true quality.

Usage: gate.py [--trials 400] [--rows 200 1000 5000] [--alike 0.9]

Each trial draws a holdout, a champion and a challenger that is equally good, or worse by a share of the primary metric,
and applies the gate (`towline.promotion.gate`, default margins, all checks, two columns to slice by). Regression
is judged by mae, with normal errors; binary by roc_auc, with one row in five positive and a champion of AUC 0.8. The
errors of the two models correlate (`--alike`), as those of a model and its retrained successor do. Rows are independent
of each other and new to the champion.
"""

import argparse
import math
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[1]))

from towline.config import PipelineConfig
from towline.data.schema.contract import Column, Contract
from towline.promotion.gate import ChampionPredictions, Holdout, SmokeTestResult, apply_gate
from towline.training.evaluation.holdout import Evaluation
from towline.training.evaluation.metrics import Predictions, compute_metrics
from towline.training.evaluation.predictions import Interval

AUC = 0.8
SHARE = 0.2
WELL = SmokeTestResult(identical=True, rows=0, latency_ms=1.0, seconds=0.1, peak_mb=1.0, modules=())
COLUMN: dict[str, Any] = {"nullable": False, "min": None, "max": None, "categories": None, "levels": 4}
SLICED = tuple(Column(name=name, kind="category", role="feature", **COLUMN) for name in ("region", "size"))


class Case(NamedTuple):
    contract: Contract
    truth: np.ndarray
    baseline: Predictions
    champion: Predictions
    challenger: Predictions


def errors(rows: int, alike: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Two standard normal samples with this correlation."""
    common, own, other = rng.normal(size=(3, rows))
    return tuple(math.sqrt(alike) * common + math.sqrt(1 - alike) * alone for alone in (own, other))


def regression(rows: int, worse: float, alike: float, rng: np.random.Generator) -> Case:
    truth, (first, second) = 3 * rng.normal(size=rows), errors(rows, alike, rng)
    contract = Contract(target="y", task="regression", columns=SLICED)
    constant = Predictions(np.full(rows, np.median(truth)))
    return Case(contract, truth, constant, Predictions(truth + first), Predictions(truth + (1 + worse) * second))


def binary(rows: int, worse: float, alike: float, rng: np.random.Generator) -> Case:
    positive, (first, second) = rng.random(rows) < SHARE, errors(rows, alike, rng)
    contract = Contract(target="y", task="binary", columns=SLICED, classes=("no", "yes"), positive="yes")

    def scored(noise: np.ndarray, auc: float) -> Predictions:
        apart = math.sqrt(2) * NormalDist().inv_cdf(auc)  # of two normal scores, the AUC is Phi(d / sqrt 2)
        chance = 1 / (1 + np.exp(-(apart * positive + noise - 1)))
        return Predictions(_named(chance > 0.5), np.column_stack([1 - chance, chance]))

    flat = Predictions(_named(np.zeros(rows, dtype=bool)), np.tile([1 - SHARE, SHARE], (rows, 1)))
    return Case(contract, _named(positive), flat, scored(first, AUC), scored(second, AUC * (1 - worse)))


def _named(positive: np.ndarray) -> np.ndarray:
    return np.where(positive, "yes", "no").astype(object)


def verdict(case: Case, metric: str, seed: int, rng: np.random.Generator) -> str:
    rows = pd.DataFrame({column.name: rng.choice(list("abcd"), len(case.truth)) for column in SLICED})
    config = PipelineConfig.model_validate({"name": "t", "seed": seed, "data": {"source": "x", "target": "y"}})
    measured = compute_metrics(case.truth, case.challenger, case.contract)
    evaluation = Evaluation(
        task=case.contract.task, primary=metric, rows=len(rows), baseline={}, slices=(), importance=(), notes=(),
        metrics={name: Interval(value=value) for name, value in measured.items()},
    )  # fmt: skip
    champion = ChampionPredictions(1, case.champion, np.ones(len(rows), dtype=bool))
    holdout = Holdout(case.contract, rows, case.truth, case.challenger, case.baseline, champion)
    return apply_gate(config, evaluation, WELL, holdout).outcome


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=400)
    parser.add_argument("--rows", nargs="+", type=int, default=[200, 1000, 5000])
    parser.add_argument("--worse", nargs="+", type=float, default=[0.0, 0.02, 0.05, 0.1])
    parser.add_argument("--alike", type=float, default=0.9)
    arguments = parser.parse_args()
    kinds: dict[str, tuple[str, Callable[..., Holdout]]] = {
        "regression": ("mae", regression),
        "binary": ("roc_auc", binary),
    }
    print("| task | holdout rows | challenger | passed | inconclusive | failed |\n|---|---|---|---|---|---|")
    for task, (metric, draw) in kinds.items():
        for rows in arguments.rows:
            for worse in arguments.worse:
                rng = np.random.default_rng(rows)
                outcomes = Counter(
                    verdict(draw(rows, worse, arguments.alike, rng), metric, trial, rng)
                    for trial in range(arguments.trials)
                )
                share = " | ".join(
                    f"{outcomes[word] / arguments.trials:.1%}" for word in ("pass", "inconclusive", "fail")
                )
                challenger = f"{worse:.0%} worse" if worse else "as good"
                print(f"| {task}, {metric} | {rows:,} | {challenger} | {share} |", flush=True)


if __name__ == "__main__":
    main()
