"""Backtests of the retraining policies on both sample tables, and on simulated tables: the summaries.

    python benchmarks/backtest.py [--only bike_demand] [--step 1w] [--policies never,gain] [--out tables.json]
    python benchmarks/backtest.py --simulated [--seeds 20]

Each sample uses its shipped config. Takes about twenty minutes a sample on two idle cores.

The simulated tables have 36 weeks of 300 rows, six inputs and a linear target with normal noise, and one table a seed:

- concept drift: each week the effect of a random input changes by a step that raises the loss of a model of the week
  before by 5 %; models learn from the last week
- no change
- covariate shift: the mean of an input moves by two standard deviations after 12 weeks, the effects do not change
"""

import argparse
import datetime as dt
import json
import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from towline.backtesting.page import SUMMARY_COLUMNS, summary_row
from towline.backtesting.results import POLICIES, BacktestResult
from towline.backtesting.simulation import run_backtest
from towline.config import build_config, read_config

PROJECT = Path(__file__).parents[1]
PERIODS = {"bike_demand": ("2011-07-01", "2013-01-01"), "bank_subscription": ("2008-08-01", "2010-12-01")}

WEEKS, HISTORY, ROWS, INPUTS, GROWTH = 36, 4, 300, 6, 0.05
SIMULATED = ("concept drift", "nothing changes", "covariate shift")


def simulate_table(kind: str, seed: int) -> pd.DataFrame:
    """(HISTORY + WEEKS) weeks of rows."""
    rng = np.random.default_rng(seed)
    step = np.sqrt((1 + GROWTH) ** 2 - 1)  # in standard deviations of the noise
    effects, parts = np.ones(INPUTS), []
    for week in range(HISTORY + WEEKS):
        inputs = rng.normal(size=(ROWS, INPUTS))
        if kind == "covariate shift" and week >= HISTORY + WEEKS // 3:
            inputs[:, 0] += 2
        if kind == "concept drift":
            effects[rng.integers(INPUTS)] += step * rng.choice([-1, 1])
        part = pd.DataFrame(inputs, columns=[f"x{number}" for number in range(INPUTS)])
        start = pd.Timestamp("2024-01-01") + pd.Timedelta(weeks=week)
        part["at"] = start + pd.to_timedelta(np.sort(rng.uniform(0, 7 * 86400, ROWS)).round(), unit="s")
        part["y"] = 20 + inputs @ effects + rng.normal(size=ROWS)
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def backtest_simulated(kind: str, seed: int) -> BacktestResult:
    """Weekly backtest of a simulated table; labels are known immediately."""
    recent = {"window": "7d"} if kind == "concept drift" else {}
    document = {
        "name": "simulated",
        "data": {"source": "table.parquet", "target": "y", "time": "at", "columns": {"at": "ignore"}, **recent},
        "split": {"holdout": "2d"},
        "candidates": ["linear"],
        "cross_validation": {"folds": 2},
        "evaluation": {"resamples": 50},
        "quality": {"delay": "0h", "window": "7d"},
        "retrain": {"bad_windows": 1, "recent_windows": 1},
    }
    start = dt.datetime(2024, 1, 1, tzinfo=dt.UTC) + dt.timedelta(weeks=HISTORY)
    policies = ("schedule", "gain") if kind == "concept drift" else ("gain",)
    with tempfile.TemporaryDirectory() as folder:
        simulate_table(kind, seed).to_parquet(Path(folder) / "table.parquet")
        config = build_config(document, "benchmark")
        return run_backtest(config, Path(folder), start, start + dt.timedelta(weeks=WEEKS), "1w", policies)


def report_simulated(kinds: Sequence[str], seeds: int) -> None:
    """Prints the trainings of each kind of table and, for concept drift, the loss against the schedule's."""
    for kind in kinds:
        results = [backtest_simulated(kind, seed) for seed in range(seeds)]
        gains = [result.policies[-1] for result in results]
        line = f"{kind}: {sum(gain.retrainings for gain in gains)} trainings in {seeds} runs of {WEEKS} windows"
        if kind == "concept drift":
            schedules = [result.policies[0] for result in results]
            ratios = [
                (gain.value or 0) / (schedule.value or 1) for gain, schedule in zip(gains, schedules, strict=True)
            ]
            line += f", schedule {sum(schedule.retrainings for schedule in schedules)}"
            line += f"; loss against the schedule {np.mean(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
        print(line, flush=True)


def table(result: BacktestResult) -> str:
    """The summary in Markdown."""
    lines = [f"| {' | '.join(SUMMARY_COLUMNS)} |", "|---|" + "---:|" * (len(SUMMARY_COLUMNS) - 1)]
    lines += [f"| {' | '.join(summary_row(result, policy))} |" for policy in result.policies]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=PERIODS)
    parser.add_argument("--step", default="1mo")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--policies", default=",".join(POLICIES))
    parser.add_argument("--simulated", nargs="*", choices=SIMULATED, help="default: all of them")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("towline.steps").setLevel(logging.INFO)
    if given.simulated is not None:
        logging.getLogger("towline.steps").setLevel(logging.WARNING)
        report_simulated(given.simulated or SIMULATED, given.seeds)
        return
    policies = [policy for policy in POLICIES if policy in given.policies.split(",")]
    documents = {}
    for name in [given.only] if given.only else PERIODS:
        start, end = (dt.datetime.fromisoformat(day).replace(tzinfo=dt.UTC) for day in PERIODS[name])
        config = read_config(PROJECT / "configs" / f"{name}.yaml", given.overrides)
        result = run_backtest(config, PROJECT, start, end, given.step, policies)
        print(f"\n{name}, {start:%Y-%m} to {end:%Y-%m} by {given.step}, value: {result.metric}\n\n{table(result)}")
        documents[name] = result.model_dump(mode="json")
    if given.out:
        given.out.write_text(json.dumps(documents, indent=1))


if __name__ == "__main__":
    main()
