"""Backtests of the retraining policies on both sample tables: the summaries.

    python benchmarks/backtest.py [--only bike_demand] [--step 1w] [--out tables.json]

Each sample uses its shipped config. Takes about twenty minutes a sample on two idle cores.
"""

import argparse
import datetime as dt
import json
import logging
from pathlib import Path

from towline.backtesting.page import SUMMARY_COLUMNS, summary_row
from towline.backtesting.results import BacktestResult
from towline.backtesting.simulation import run_backtest
from towline.config import read_config

PROJECT = Path(__file__).parents[1]
PERIODS = {"bike_demand": ("2011-07-01", "2013-01-01"), "bank_subscription": ("2008-08-01", "2010-12-01")}


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
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("towline.steps").setLevel(logging.INFO)
    documents = {}
    for name in [given.only] if given.only else PERIODS:
        start, end = (dt.datetime.fromisoformat(day).replace(tzinfo=dt.UTC) for day in PERIODS[name])
        config = read_config(PROJECT / "configs" / f"{name}.yaml", given.overrides)
        result = run_backtest(config, PROJECT, start, end, given.step)
        print(f"\n{name}, {start:%Y-%m} to {end:%Y-%m} by {given.step}, value: {result.metric}\n\n{table(result)}")
        documents[name] = result.model_dump(mode="json")
    if given.out:
        given.out.write_text(json.dumps(documents, indent=1))


if __name__ == "__main__":
    main()
