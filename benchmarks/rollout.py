"""Verdicts on simulated rollouts with a known truth: their error rates, and the number of labels that they need.

Usage: rollout.py [--trials 2000] [--power-trials 200] [--seed 1] [--parts identical power dependent speed]

Two tasks have losses with heavy tails: the absolute error of a regression (noise: Student's t with 3 degrees of
freedom), and the log loss of a binary classifier. For each task, two models of gradient boosting are fitted on two
samples of 5,000 rows, and predict 200,000 others. A trial draws rows of them.

* identical: in each row, chance decides which of the two models is the champion. So both arms have the same
  distribution of losses, and losses of a row correlate as those of a model and its retrained successor.
* worse, better: noise in the predictions of one arm raises its mean loss, so that the challenger's is 10 % higher
  (lower) than the champion's.

Verdicts are those of `towline.rollout.analysis.analyse`, with all checks: errors, non-finite answers, disagreement,
sample ratio, loss, loss in four slices. For the identical pairs, the criteria are the hardest ones: no margins, a true
rate of disagreement that equals the accepted one. A verdict on losses stays, so it was given at some label before the
last if it is given at the last; the label is found by bisection. Counts are analysed at each request at which a verdict
is possible.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

sys.path.insert(0, str(Path(__file__).parents[1]))

from towline.rollout.analysis import ArmCounts, Criteria, RolloutEvidence, RolloutVerdict, WeightPeriod, analyse
from towline.rollout.loss_series import choose_loss_bound

PARTS = ("identical", "power", "dependent", "speed")
POOL = 200_000
FITTED = 5_000
HOLDOUT = 5_000  # rows that choose the bound
DIFFERENCE = 0.1
IDENTICAL_LABELS = 5_000
RUNS = (1, 20, 100)  # rows that depend on each other
PAIRED_LABELS = 10_000
UNPAIRED_LABELS = 60_000  # of both arms
SIZES = (500, 1_000, 2_000, 3_000, 5_000, 10_000)
ERROR_RATE = 0.005
DISAGREEMENT = 0.05
HARDEST = Criteria(slice_margin=0.0, max_disagreement=DISAGREEMENT, max_error_rate_increase=0.0)


class Task(NamedTuple):
    """Losses of two models and of a worse one on the same rows, the slices of the rows, and the bound."""

    name: str
    first: np.ndarray
    second: np.ndarray
    worse: np.ndarray
    slices: np.ndarray
    bound: float


def signal(X: np.ndarray) -> np.ndarray:
    return X[:, 0] + np.sin(3 * X[:, 1]) + X[:, 2] * X[:, 3] + 0.5 * np.abs(X[:, 4])


def regression(rng: np.random.Generator) -> Task:
    def draw(rows: int) -> tuple[np.ndarray, np.ndarray]:
        X = rng.normal(size=(rows, 8))
        return X, signal(X) + 0.7 * rng.standard_t(3, size=rows)

    models = [HistGradientBoostingRegressor(random_state=1).fit(*draw(FITTED)) for _ in range(2)]
    X, truth = draw(POOL)
    first, second = (model.predict(X) for model in models)
    return make_task("absolute error", X, lambda shift: np.abs(truth - first - shift), np.abs(truth - second), rng)


def binary(rng: np.random.Generator) -> Task:
    def draw(rows: int) -> tuple[np.ndarray, np.ndarray]:
        X = rng.normal(size=(rows, 8))
        return X, rng.random(rows) < 1 / (1 + np.exp(3 - 1.5 * signal(X)))

    models = [HistGradientBoostingClassifier(max_iter=50, random_state=1).fit(*draw(FITTED)) for _ in range(2)]
    X, truth = draw(POOL)
    first, second = (np.log(chance / (1 - chance)) for chance in (model.predict_proba(X)[:, 1] for model in models))

    def loss(odds: np.ndarray) -> np.ndarray:
        return np.logaddexp(0, np.where(truth, -odds, odds))

    return make_task("log loss", X, lambda shift: loss(first + shift), loss(second), rng)


def make_task(
    name: str, X: np.ndarray, loss: Callable[[np.ndarray], np.ndarray], second: np.ndarray, rng: np.random.Generator
) -> Task:
    """Finds the noise that makes the first model's mean loss 10 % higher than the second's."""
    noise, low, high = rng.normal(size=len(X)), 0.0, 5.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (low, middle) if loss(middle * noise).mean() > (1 + DIFFERENCE) * second.mean() else (middle, high)
    slices = np.stack([X[:, 0] > 0, X[:, 0] <= 0, X[:, 5] > 1, X[:, 5] <= 1])
    return Task(name, loss(0 * noise), second, loss(high * noise), slices, choose_loss_bound(second[:HOLDOUT]))


def evidence_of(task: Task, champion: np.ndarray, challenger: np.ndarray, slices: np.ndarray) -> RolloutEvidence:
    counts, named = ArmCounts(len(champion)), {str(number): row for number, row in enumerate(slices)}
    return RolloutEvidence(
        counts, counts, champion_loss=champion, challenger_loss=challenger, slices=named, loss_bound=task.bound
    )


def identical_verdict(task: Task, rng: np.random.Generator) -> tuple[str, bool]:
    """The verdict on a pair of identical arms, and whether a t-test at 5 % after each label would have given one."""
    rows = rng.integers(HOLDOUT, POOL, IDENTICAL_LABELS)
    swapped = rng.random(IDENTICAL_LABELS) < 0.5
    first, second = task.first[rows], task.second[rows]
    champion, challenger = np.where(swapped, second, first), np.where(swapped, first, second)
    verdict = analyse(evidence_of(task, champion, challenger, task.slices[:, rows]), HARDEST).verdict
    difference, n = challenger - champion, np.arange(1, IDENTICAL_LABELS + 1)
    mean, square = np.cumsum(difference) / n, np.cumsum(difference**2) / n
    t = np.abs(mean) / np.sqrt(np.maximum(square - mean**2, 1e-12) / n)
    return verdict if verdict != "waiting" else counts_verdict(rng), bool((t[30:] > 1.96).any())


def counts_verdict(rng: np.random.Generator) -> str:
    """The verdict of the counts of identical arms, looked at after each request."""
    rows = IDENTICAL_LABELS
    failed, n = rng.random((2, rows)) < ERROR_RATE, np.arange(1, rows + 1)
    errors, differing = np.cumsum(failed, axis=1), np.cumsum(rng.random(rows) < DISAGREEMENT)
    served = np.cumsum(rng.random(rows) < 0.5)
    unusual = np.abs(served - n / 2) > 2.5 * np.sqrt(n / 4)  # below, no verdict is possible: the odds need 3.4
    unusual |= differing - n * DISAGREEMENT > 2.5 * np.sqrt(n * DISAGREEMENT * (1 - DISAGREEMENT))
    for at in np.nonzero(unusual | failed[1])[0]:
        total = int(n[at])
        arms = [ArmCounts(total, int(count)) for count in errors[:, at]]
        period = WeightPeriod(0.5, total - int(served[at]), int(served[at]))
        verdict = analyse(RolloutEvidence(*arms, (period,), int(differing[at]), total), HARDEST).verdict
        if verdict != "waiting":
            return verdict
    return "waiting"


def decide_paired(
    task: Task, champion: np.ndarray, challenger: np.ndarray, rows: np.ndarray, criteria: Criteria
) -> tuple[str, int]:
    """The paired verdict, and after how many labels it is given."""
    losses, slices = (champion[rows], challenger[rows]), task.slices[:, rows]

    def at(labels: int) -> RolloutVerdict:
        return analyse(evidence_of(task, losses[0][:labels], losses[1][:labels], slices[:, :labels]), criteria)

    return first_label(at, len(rows))


def decide_unpaired(
    task: Task, champion: np.ndarray, challenger: np.ndarray, rows: np.ndarray, criteria: Criteria
) -> tuple[str, int]:
    """The verdict if each row is answered by one arm, and after how many labels of both it is given."""
    losses = champion[rows[::2]], challenger[rows[1::2]]

    def at(labels: int) -> RolloutVerdict:
        half = labels // 2
        counts = ArmCounts(half)
        period = WeightPeriod(0.5, half, half)
        arms = {"champion_loss": losses[0][:half], "challenger_loss": losses[1][:half]}
        return analyse(
            RolloutEvidence(counts, counts, (period,), **arms, loss_bound=task.bound, paired=False), criteria
        )

    return first_label(at, len(rows))


def first_label(at: Callable[[int], RolloutVerdict], labels: int) -> tuple[str, int]:
    verdict = at(labels).verdict
    if verdict == "waiting":
        return verdict, labels + 1
    low, high = 0, labels
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if at(middle).verdict == "waiting" else (low, middle)
    return at(high).verdict, high


def share(flags: np.ndarray) -> str:
    """A share with its 95 % interval (Wilson)."""
    n, p, z = len(flags), float(np.mean(flags)), 1.96
    middle, half = p + z * z / (2 * n), z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)
    return f"{p:.1%} ({max(low, 0):.1%} to {high:.1%})"


def report_identical(tasks: list[Task], trials: int, rng: np.random.Generator) -> None:
    print(f"\nidentical pairs, {IDENTICAL_LABELS:,} labels, looked at after each of them, all checks\n")
    print("| loss | pairs | wrong abort | wrong promotion | wrong | a t-test after each label |")
    print("|---|---|---|---|---|---|")
    total = []
    for task in tasks:
        results = [identical_verdict(task, rng) for _ in range(trials // len(tasks))]
        total += results
        print_identical(task.name, results)
    print_identical("both", total)


def print_identical(name: str, results: list[tuple[str, bool]]) -> None:
    verdicts, tests = np.array([verdict for verdict, _ in results]), np.array([wrong for _, wrong in results])
    aborts, promotions = (np.mean(verdicts == verdict) for verdict in ("abort", "promote"))
    wrong = share(verdicts != "waiting")
    print(f"| {name} | {len(results):,} | {aborts:.2%} | {promotions:.2%} | {wrong} | {tests.mean():.0%} |", flush=True)


def report_power(tasks: list[Task], trials: int, rng: np.random.Generator) -> None:
    print(f"\nlabels until the verdict: {trials} pairs in each line; labels are those of both arms\n")
    columns = " | ".join(f"by {size:,}" for size in SIZES)
    print(f"| loss | challenger | design | verdict | {columns} | in the end | wrong | median labels | 90 % |")
    print("|---" * (8 + len(SIZES)) + "|")
    for task in tasks:
        swapped = rng.random(POOL) < 0.5
        pair = np.where(swapped, task.second, task.first), np.where(swapped, task.first, task.second)
        cases = (
            ("10 % worse", "abort", task.second, task.worse, Criteria()),
            ("10 % better", "promote", task.worse, task.second, Criteria()),
            ("identical, not_worse by 5 %", "promote", *pair, Criteria(promote_if="not_worse", margin=0.05)),
        )
        for name, right, champion, challenger, criteria in cases:
            for design, decide, labels in (
                ("paired", decide_paired, PAIRED_LABELS),
                ("unpaired", decide_unpaired, UNPAIRED_LABELS),
            ):
                results = [
                    decide(task, champion, challenger, rng.integers(HOLDOUT, POOL, labels), criteria)
                    for _ in range(trials)
                ]
                print_power(f"{task.name} | {name} | {design} | {right}", right, labels, results)


def print_power(line: str, right: str, most: int, results: list[tuple[str, int]]) -> None:
    verdicts, labels = np.array([verdict for verdict, _ in results]), np.array([number for _, number in results])
    is_right = verdicts == right
    by_size = " | ".join(f"{np.mean(is_right & (labels <= size)):.0%}" if size <= most else "" for size in SIZES)
    wrong = np.mean(~is_right & (verdicts != "waiting"))
    needed = np.where(is_right, labels, most + 1)
    quantiles = (f"{value:,.0f}" if value <= most else f"> {most:,}" for value in np.quantile(needed, [0.5, 0.9]))
    print(f"| {line} | {by_size} | {share(is_right)} | {wrong:.1%} | {' | '.join(quantiles)} |", flush=True)


def report_dependent(tasks: list[Task], trials: int, rng: np.random.Generator) -> None:
    """Identical arms whose rows depend on each other: one of them is 10 % worse for a run of rows, chosen by chance."""
    print(f"\nwrong verdicts if either model is 10 % worse for whole runs of rows, {trials} pairs each\n")
    print("| loss | rows of a run | wrong |\n|---|---|---|")
    for task in tasks:
        for size in RUNS:
            wrong = []
            for _ in range(trials):
                rows = rng.integers(HOLDOUT, POOL, IDENTICAL_LABELS)
                swapped = np.repeat(rng.random(IDENTICAL_LABELS // size) < 0.5, size)
                second, worse = task.second[rows], task.worse[rows]
                arms = np.where(swapped, second, worse), np.where(swapped, worse, second)
                verdict = analyse(evidence_of(task, *arms, task.slices[:, rows]), Criteria()).verdict
                wrong.append(verdict != "waiting")
            print(f"| {task.name} | {size} | {share(np.array(wrong))} |", flush=True)


def report_speed(rng: np.random.Generator) -> None:
    losses = rng.exponential(size=(2, 100_000))
    slices = {str(number): rng.random(100_000) < 0.25 for number in range(10)}
    for name, used in (("without slices", {}), ("with ten slices of 25,000", slices)):
        evidence = RolloutEvidence(
            ArmCounts(1), ArmCounts(1), champion_loss=losses[0], challenger_loss=losses[1], slices=used, loss_bound=5.0
        )
        begin = time.perf_counter()
        analyse(evidence, Criteria())
        print(f"one analysis of 100,000 labels {name}: {time.perf_counter() - begin:.2f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=2000, help="identical pairs")
    parser.add_argument("--power-trials", type=int, default=200, help="pairs in each line of the other tables")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS)
    arguments = parser.parse_args()
    rng = np.random.default_rng(arguments.seed)
    tasks = [regression(rng), binary(rng)]
    for task in tasks:
        correlation = np.corrcoef(task.second, task.worse)[0, 1]
        clipped = np.minimum(task.worse, task.bound).mean() / np.minimum(task.second, task.bound).mean() - 1
        print(
            f"{task.name}: mean {task.second.mean():.3f}, largest {task.second.max():.1f}, bound {task.bound:.2f}; "
            f"the worse model: {task.worse.mean() / task.second.mean() - 1:+.1%}, clipped {clipped:+.1%}, "
            f"correlation {correlation:.2f}"
        )
    if "identical" in arguments.parts:
        report_identical(tasks, arguments.trials, rng)
    if "power" in arguments.parts:
        report_power(tasks, arguments.power_trials, rng)
    if "dependent" in arguments.parts:
        report_dependent(tasks, arguments.power_trials, rng)
    if "speed" in arguments.parts:
        report_speed(rng)


if __name__ == "__main__":
    main()
