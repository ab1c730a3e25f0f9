"""The rates at which the search for leaks finds a planted leak, and rejects a table without a leak.

Usage: leaks.py [--tables 200] [--seed 5]

Each table has 200 to 5,000 rows and 4 to 15 legitimate columns: numbers, categories, dates and columns with nulls, some
of them strong (a score of up to R² 0.9 or AUC 0.97 alone). The target is a number, two classes (5 to 50 % positive) or
several classes. A leaky table has one more column of a kind that is rejected. A clean table has none; in half of the
clean tables one legitimate column explains most of the target, in half of these up to 99 % of its variance. Only leaks
that stop a run count; `strong` and `dominant` columns are warnings.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[1]))

from towline.config import build_config
from towline.data.schema.inference import infer_contract
from towline.data.validation.leakage import Leak, find_leaks

Plant = Callable[[pd.DataFrame, np.random.Generator], pd.DataFrame]


def make_table(task: str, rng: np.random.Generator, *, strong: bool, noisy: bool = True) -> pd.DataFrame:
    """Honest columns and a target ``y``; ``noisy``: a large part of the target is noise."""
    rows, columns = int(rng.integers(200, 5001)), int(rng.integers(4, 16))
    signal = np.zeros(rows)
    frame: dict[str, object] = {}
    for number in range(columns):
        kind = rng.choice(["number", "skewed", "count", "category", "date", "flag"])
        weight = rng.exponential(1.0) * rng.choice([0, 1, 1])
        if kind == "category":
            levels = int(rng.integers(2, 40))
            codes = rng.choice(levels, rows, p=rng.dirichlet(np.ones(levels)))
            values, effect = (
                np.array([f"level {code}" for code in range(levels)])[codes],
                rng.normal(size=levels)[codes],
            )
        elif kind == "date":
            days = rng.integers(0, 900, rows)
            values, effect = pd.Timestamp("2023-01-01") + pd.to_timedelta(days, "D"), np.sin(days / 58)
        elif kind == "flag":
            effect = rng.integers(0, 2, rows).astype(float)
            values = effect.astype(bool)
        else:
            effect = rng.normal(size=rows)
            values = {"number": effect, "skewed": np.exp(effect), "count": rng.poisson(np.exp(effect / 2))}[kind]
        if kind in ("number", "skewed") and rng.random() < 0.4:
            values = np.where(rng.random(rows) < rng.uniform(0.02, 0.6), np.nan, values)
        signal += weight * effect
        frame[f"x{number}"] = values
    if strong:
        effect = rng.normal(size=rows) * ((3 if noisy else 12) * signal.std() + 1)
        frame["strong"] = effect
        signal += effect
    noise = rng.uniform(0.4, 1.5) * (signal.std() + 0.3) if noisy else rng.uniform(0.07, 0.15) * signal.std()
    score = signal + rng.normal(size=rows) * noise
    if task == "regression":
        scale = rng.uniform(1, 100)
        positive = np.exp((score - score.mean()) / (2 * score.std()))
        frame["y"] = np.round(positive * scale, 3) if rng.random() < 0.5 else np.round(score * scale, 3)
    elif task == "binary":
        share = rng.uniform(0.05, 0.5)
        frame["y"] = np.where(score > np.quantile(score, 1 - share), "yes", "no")
    else:
        cuts = np.sort(rng.uniform(0.1, 0.9, int(rng.integers(2, 6))))
        frame["y"] = np.array(list("abcdefg"))[np.searchsorted(np.quantile(score, cuts), score)]
    return pd.DataFrame(frame)


def copy(frame: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    leak = frame["y"] * rng.uniform(0.1, 10) + 3 if frame["y"].dtype.kind == "f" else "the " + frame["y"].astype(str)
    return frame.assign(
        leak=leak.where(rng.random(len(frame)) > rng.choice([0, 0.3])) if leak.dtype.kind == "f" else leak
    )


def monotone(frame: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    values = frame["y"] - frame["y"].min() + 1
    return frame.assign(leak=rng.choice([np.log, np.sqrt, np.square])(values))


def parts(frame: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    first = frame["y"] * rng.uniform(0.2, 0.8, len(frame))
    return frame.assign(first=first, second=frame["y"] - first)


def filled_in_later(frame: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """A column that has values in most rows of the rarest class only."""
    rare = frame["y"].value_counts().index[-1]
    known = (frame["y"] == rare) & (rng.random(len(frame)) < 0.8)
    return frame.assign(leak=np.where(known, rng.normal(size=len(frame)), np.nan))


def nearly_the_target(frame: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """The target with a little noise: known after the event only."""
    if frame["y"].dtype.kind == "f":
        return frame.assign(leak=frame["y"] + rng.normal(size=len(frame)) * frame["y"].std() * 0.05)
    codes = pd.factorize(frame["y"], sort=True)[0]
    return frame.assign(leak=codes * 10 + rng.normal(size=len(frame)) * 0.8)


PLANTS: dict[str, dict[str, Plant]] = {
    "regression": {"copy": copy, "monotone": monotone, "sum": parts, "noisy copy": nearly_the_target},
    "binary": {"copy": copy, "nulls": filled_in_later, "noisy copy": nearly_the_target},
    "multiclass": {"copy": copy, "nulls": filled_in_later, "noisy copy": nearly_the_target},
}


def find(frame: pd.DataFrame) -> tuple[Leak, ...]:
    config = build_config({"name": "t", "data": {"source": "t.csv", "target": "y"}}, "t")
    return tuple(leak for leak in find_leaks(frame, infer_contract(frame, config), 42) if not leak.may_be_legitimate)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tables", type=int, default=200)
    parser.add_argument("--seed", type=int, default=5)
    arguments = parser.parse_args()
    rng = np.random.default_rng(arguments.seed)
    tasks = list(PLANTS)
    planted, detected, rejected, wrong = Counter[str](), Counter[str](), 0, Counter[str]()
    for number in range(arguments.tables):
        task = tasks[number % len(tasks)]
        names = list(PLANTS[task])
        name = names[number // len(tasks) % len(names)]
        leaks = find(PLANTS[task][name](make_table(task, rng, strong=False), rng))
        planted[name] += 1
        detected[name] += any({"leak", "first", "second"} & set(leak.columns) for leak in leaks)
    for number in range(arguments.tables):
        leaks = find(make_table(tasks[number % len(tasks)], rng, strong=number % 2 == 0, noisy=number % 4 != 0))
        rejected += bool(leaks)
        wrong.update(leak.kind for leak in leaks)
    for name, count in planted.items():
        print(f"{name:<12} {detected[name]:>4} of {count:>4} found")
    total = sum(planted.values())
    print(f"{'all':<12} {detected.total():>4} of {total:>4} found ({detected.total() / total:.1%})")
    print(f"clean tables rejected: {rejected} of {arguments.tables} ({rejected / arguments.tables:.1%}) {dict(wrong)}")


if __name__ == "__main__":
    main()
