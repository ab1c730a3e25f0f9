"""Peak memory of the steps before and after training on a table that is larger than memory.

Usage: out_of_core.py [--rows 20_000_000] [--columns 12] [--limit-mb 4096] [--folder DIR] [--source parquet|csv]

Writes a table, then runs load, validate, split, fit (linear), evaluate and refit, each in a process of its own whose
address space is limited, and prints the time and the largest resident memory of each.
"""

import argparse
import datetime as dt
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parents[1]))

BLOCK = 500_000
ADDRESS_SPACE = 2.0  # times the limit: libraries reserve addresses that they do not use


def write_table(path: Path, rows: int, columns: int) -> None:
    """A time, a category, numbers and a binary target, block by block."""
    names = [f"x{number}" for number in range(columns - 4)]
    writer: Any = None
    for start in range(0, rows, BLOCK):
        rng, count = np.random.default_rng(start), min(BLOCK, rows - start)
        numbers = {name: np.round(rng.normal(size=count), 4) for name in names}
        score = numbers["x0"] + 0.5 * numbers["x1"] + rng.logistic(size=count)
        times = np.datetime64("2015-01-01", "us") + (start + np.arange(count)) * np.timedelta64(5, "s")
        table = pa.table(
            {
                "at": times,
                "town": rng.choice(["north", "south", "east", "west"], count),
                "kind": rng.integers(0, 50, count),
                **{name: pa.array(v, mask=rng.random(count) < 0.01) for name, v in numbers.items()},
                "bought": np.where(score > 2, "yes", "no"),
            }
        )
        if writer is None:
            is_csv = path.suffix == ".csv"
            writer = (pyarrow.csv.CSVWriter if is_csv else pq.ParquetWriter)(path, table.schema)
        writer.write_table(table)
    writer.close()


def _run(step: Callable[[Path, Path, dict[str, Any]], dict[str, Any]], *arguments: Any) -> None:
    folder, source, state, limit, pipe = arguments
    if limit:
        resource.setrlimit(resource.RLIMIT_AS, (int(limit * ADDRESS_SPACE), int(limit * ADDRESS_SPACE)))
    started = time.perf_counter(), time.process_time()
    result = step(folder, source, state)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    pipe.send((result, time.perf_counter() - started[0], time.process_time() - started[1], peak))


def _config(source: Path) -> Any:
    from towline.config import PipelineConfig

    data = {"source": str(source), "target": "bought", "time": "at"}
    return PipelineConfig.model_validate(
        {"name": "large", "data": data, "candidates": ["linear"], "budget": None, "evaluation": {"resamples": 100}}
    )


def _work(folder: Path, state: dict[str, Any]) -> Any:
    from towline.data.workspace import Workspace

    work = Workspace(store=folder / "store", key="0" * 16, token="t", dataset=state["dataset"])
    work.path.mkdir(parents=True, exist_ok=True)
    return work


def load(folder: Path, source: Path, _: dict[str, Any]) -> dict[str, Any]:
    from towline.data.sources import load_dataset

    return {"dataset": load_dataset(_config(source).data, folder, folder / "store", None)}


def validate(folder: Path, source: Path, state: dict[str, Any]) -> dict[str, Any]:
    from towline.data.validation.suite import validate_table

    config = _config(source)
    now = dt.datetime.now(dt.UTC).replace(tzinfo=None)
    validation = validate_table(_work(folder, state), config, config.validation, None, now)
    return {"note": validation.text()}


def split(folder: Path, source: Path, state: dict[str, Any]) -> dict[str, Any]:
    from towline.data.splits import split_table

    summary = split_table(_work(folder, state), _config(source))
    return {"note": f"{summary.training_rows}, {summary.holdout:,} held out"}


def fit(folder: Path, source: Path, state: dict[str, Any]) -> dict[str, Any]:
    from towline.training import final_fit
    from towline.training.model_selection.cross_validation import cross_validate

    config, work = _config(source), _work(folder, state)
    chosen = cross_validate(work, config, config.candidates[0])
    return {"chosen": chosen, "fitted": final_fit.fit(work, config, chosen)}


def evaluate(folder: Path, source: Path, state: dict[str, Any]) -> dict[str, Any]:
    from towline.training.evaluation.holdout import evaluate as measure

    evaluation = measure(_work(folder, state), _config(source), state["fitted"])
    return {"note": f"{evaluation.primary} {evaluation.metrics[evaluation.primary].text()} on {evaluation.rows:,} rows"}


def refit(folder: Path, source: Path, state: dict[str, Any]) -> dict[str, Any]:
    from towline.training import final_fit

    model = final_fit.refit(_work(folder, state), _config(source), state["chosen"], state["fitted"])
    return {"note": f"trained on {model.rows:,} of {model.rows_available:,} rows"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000_000)
    parser.add_argument("--columns", type=int, default=12)
    parser.add_argument("--limit-mb", type=int, default=4096, help="0: no limit")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--source", choices=("parquet", "csv"), default="parquet")
    arguments = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder, source = Path(name), Path(name) / f"table.{arguments.source}"
        write_table(source, arguments.rows, arguments.columns)
        print(
            f"{arguments.rows:,} × {arguments.columns}, {source.stat().st_size / 2**20:,.0f} MB of {arguments.source}"
        )
        state: dict[str, Any] = {}
        peaks = []
        for step in (load, validate, split, fit, evaluate, refit):
            receiver, sender = context.Pipe(duplex=False)
            job = (step, folder, source, state, arguments.limit_mb * 2**20, sender)
            process = context.Process(target=_run, args=job)
            process.start()
            sender.close()
            try:
                result, seconds, cpu, peak = receiver.recv()
            except EOFError:
                sys.exit(f"{step.__name__} failed")
            process.join()
            state |= result
            peaks.append(peak)
            print(
                f"{step.__name__:10} {seconds:7.1f} s {cpu:7.1f} CPU s {peak:7,.0f} MB  {result.get('note', '')}",
                flush=True,
            )
        print(f"largest resident memory of a step: {max(peaks):,.0f} MB")
        if arguments.limit_mb and max(peaks) > arguments.limit_mb:
            sys.exit(f"above {arguments.limit_mb:,} MB")


if __name__ == "__main__":
    main()
