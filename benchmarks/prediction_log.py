"""The cost of the prediction log for a service, compared with the logging module for the same lines.

Usage: prediction_log.py [--rounds 5] [--rows 100000] [--rate 5000]

All run alternately in one process on the rows of the bike sample: the ratios count, not the microseconds.
"""

import argparse
import errno
import gc
import logging
import logging.handlers
import os
import queue
import resource
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import orjson
import pandas as pd
import yaml

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from towline.config import PipelineConfig, read_config  # noqa: E402
from towline.data.profile import profile_features  # noqa: E402
from towline.data.schema.inference import infer_contract  # noqa: E402
from towline.inference.scorer import RowPredictions  # noqa: E402
from towline.prediction_log import segments  # noqa: E402
from towline.prediction_log.writer import PredictionLog  # noqa: E402

POLICIES: dict[str, dict[str, Any]] = {
    "all kept": {},
    "3 hashed, 2 in buckets, 1 dropped": {
        "join_on": ["customer"],
        "pii": ["humidity"],
        "columns": {"weather": "hash", "hour": "hash", "temp_c": "bucket", "feels_like_c": "bucket"},
    },
}
CHUNK = 4_000  # rows sent at a stretch, then waited for: no queue is ever full
Write = Callable[[int], None]


def release(folder: Path, table: pd.DataFrame, privacy: dict[str, Any]) -> Any:
    """The attributes of a release that the log uses."""
    config = read_config(HERE.parent / "configs" / "bike_demand.yaml")
    config = PipelineConfig.model_validate({**config.model_dump(), "privacy": privacy})
    contract = infer_contract(table, config)
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    (folder / "profile.json").write_bytes(orjson.dumps(profile_features(contract.features(table), contract)))
    return SimpleNamespace(directory=folder, contract=contract, name="bike-demand", version=1)


def cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


@contextmanager
def ours(folder: Path, model: Any, rows: list[dict[str, Any]]) -> Iterator[tuple[Write, Callable[[], bool]]]:
    log = PredictionLog(folder, "bench", capacity=2 * CHUNK, convert=False)
    answer = RowPredictions([120.5], None)

    def write(number: int) -> None:
        log.write("0123456789abcdef", 1.79e9, model, [rows[number % len(rows)]], answer)

    try:
        yield write, lambda: not log.depth
    finally:
        log.close()
        assert log.drops == 0


@contextmanager
def stdlib(folder: Path, rows: list[dict[str, Any]], queued: bool) -> Iterator[tuple[Write, Callable[[], bool]]]:
    """The logging module in common use: the caller formats a line; the caller or a listener's thread writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    logger = logging.getLogger(f"predictions.{folder.name}")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    file = logging.FileHandler(folder / "log.jsonl")
    waiting: queue.SimpleQueue[Any] = queue.SimpleQueue()
    listener = logging.handlers.QueueListener(waiting, file)  # type: ignore[arg-type]
    logger.addHandler(logging.handlers.QueueHandler(waiting) if queued else file)  # type: ignore[arg-type]
    if queued:
        listener.start()

    def write(number: int) -> None:
        row = rows[number % len(rows)]
        line = {"id": "0123456789abcdef", "at": 1790000000000000, "of": 1, "first": 0, "rows": [list(row.values())],
                "predictions": [120.5], "probabilities": None}  # fmt: skip
        logger.info("%s", orjson.dumps(line).decode())

    try:
        yield write, waiting.empty
    finally:
        if queued:
            listener.stop()
        file.close()


def throughput(write: Write, idle: Callable[[], bool], count: int) -> tuple[float, float, float]:
    """Microseconds a call in the caller's own CPU time, rows a second to the end, CPU s for 100,000 rows in all."""
    gc.collect()
    spent, before, start = 0.0, cpu(), time.perf_counter()
    for first in range(0, count, CHUNK):
        began = time.thread_time()
        for number in range(first, first + CHUNK):
            write(number)
        spent += time.thread_time() - began
        while not idle():
            time.sleep(0.002)
    wall = time.perf_counter() - start
    return spent / count * 1e6, count / wall, (cpu() - before) / count * 1e5


def latency(write: Write, rate: float, seconds: float) -> list[float]:
    """Microseconds of a piece of work and the call after it, at a steady rate, as in a request."""
    taken = []
    start = time.perf_counter()
    for number in range(int(rate * seconds)):
        due = start + number / rate
        while (left := due - time.perf_counter()) > 0:
            time.sleep(left)
        began = time.perf_counter_ns()
        sum(range(2_000))
        write(number)
        taken.append((time.perf_counter_ns() - began) / 1e3)
    return taken


def full(_: int, __: bytes) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--rows", type=int, default=100_000)
    options.add_argument("--rate", type=float, default=5_000)
    arguments = options.parse_args()
    table = pd.read_parquet(HERE.parent / "data" / "bike_hourly.parquet").drop(columns=["casual", "registered"])
    sent = orjson.loads(table.drop(columns="rentals").head(2_000).to_json(orient="records", date_format="iso"))
    rows = [{**row, "customer": number} for number, row in enumerate(sent)]
    throughputs: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
    waited: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        models = {policy: release(folder / f"r{n}", table, POLICIES[policy]) for n, policy in enumerate(POLICIES)}
        for number in range(arguments.rounds):
            for policy, model in models.items():
                with ours(folder / f"o{number}{policy[0]}", model, rows) as (write, idle):
                    throughputs[f"towline, {policy}"].append(throughput(write, idle, arguments.rows))
            for queued in (False, True):
                with stdlib(folder / f"s{number}{queued}", sent, queued) as (write, idle):
                    throughputs["logging, QueueHandler" if queued else "logging, FileHandler"].append(
                        throughput(write, idle, arguments.rows)
                    )
            waited["no log"] += latency(lambda _: None, arguments.rate, 4)
            log = PredictionLog(folder / f"l{number}", "bench", convert=False)
            answer, model = RowPredictions([120.5], None), models["all kept"]

            def write(
                number: int, log: PredictionLog = log, model: Any = model, answer: RowPredictions = answer
            ) -> None:
                log.write("0123456789abcdef", 1.79e9, model, [rows[number % len(rows)]], answer)

            waited["log"] += latency(write, arguments.rate, 4)
            segments.os.write, os_write = full, os.write  # type: ignore[attr-defined]
            waited["log, disk full"] += latency(write, arguments.rate, 4)
            segments.os.write = os_write  # type: ignore[attr-defined]
            log.close()
            print(f"round {number + 1}: after the disk was full {log.written:,} written, {log.drops:,} dropped")
    print(f"\n{arguments.rows:,} rows, median of {arguments.rounds} rounds (lowest … highest)")
    print(f"{'':<45}{'µs a call':>22}{'rows/s':>26}{'CPU s / 100,000 rows':>24}")
    for way, results in throughputs.items():
        cells = [(statistics.median(each), min(each), max(each)) for each in zip(*results, strict=True)]
        shown = [f"{m:,.{d}f} ({a:,.{d}f} … {b:,.{d}f})" for (m, a, b), d in zip(cells, (2, 0, 2), strict=True)]
        print(f"{way:<45}{shown[0]:>22}{shown[1]:>26}{shown[2]:>24}")
    print(f"\nwork of about 20 µs and one call, {arguments.rate:,.0f} times a second: µs")
    for way, each in waited.items():
        cuts = statistics.quantiles(each, n=1000)
        print(f"{way:<45}p50 {cuts[499]:>8.1f}   p99 {cuts[989]:>8.1f}   p99.9 {cuts[998]:>8.1f}")


if __name__ == "__main__":
    main()
