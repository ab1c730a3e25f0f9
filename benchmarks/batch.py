"""Batch scoring against chunked scikit-learn and mlflow.pyfunc on pandas, side by side in one run; and its kills.

    python benchmarks/batch.py --rows 1000000                     # the table of costs
    python benchmarks/batch.py --rows 1000000 10000000 --mlflow   # growth of time and memory, and mlflow.pyfunc
    python benchmarks/batch.py --rows 10000000 --workers 2        # scaling of two processes, and of Dask
    python benchmarks/batch.py --kills 200 --rows 300000          # SIGKILL at random moments

The table is generated: eight numbers, two categories and an id, as a CSV. Each way reads the CSV and writes a CSV with
all columns and the predictions; each runs in a process of its own, with one thread. The peers have a plain pipeline of
scikit-learn with the same estimator: 50,000 rows at a time, or by mlflow.pyfunc on the whole table. CPU is user and
system time of the process tree with its start; memory is the peak of the sum of its resident sets, read every 20 ms.
"""

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.support.paths import TOWLINE
from tests.support.releases import train_run

NUMBERS, CATEGORIES = [f"x{number}" for number in range(8)], ["colour", "town"]
ESTIMATORS = {
    "linear": "linear",
    "boosting": "sklearn.ensemble.HistGradientBoostingClassifier",
}
TRAINING_ROWS, CHUNK_ROWS, BLOCK_ROWS = 20_000, 50_000, 500_000
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "ARROW_NUM_THREADS"), "1")


class Cost(NamedTuple):
    wall_s: float
    cpu_s: float
    peak_mb: float


def make_table(rows: int, seed: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    table = pd.DataFrame({name: rng.normal(size=rows).round(4) for name in NUMBERS})
    table["colour"] = rng.choice(["red", "green", "blue", "grey"], rows)
    table["town"] = rng.choice([f"t{number}" for number in range(40)], rows)
    value = 2 * table["x0"] + table["x1"] * table["x2"] + 2 * (table["colour"] == "red") + rng.normal(size=rows)
    return table.assign(sold=np.where(value > 0.5, "yes", "no"))


def write_csv(path: Path, rows: int) -> Path:
    for first in range(0, rows, BLOCK_ROWS):
        count = min(BLOCK_ROWS, rows - first)
        block = make_table(count, seed=100 + first).drop(columns="sold")
        block.insert(0, "id", np.arange(first, first + count))
        block.to_csv(path, index=False, header=first == 0, mode="a" if first else "w")
    return path


def make_peer(estimator: str, folder: Path) -> None:
    """A plain pipeline, stored for joblib and for MLflow."""
    import joblib
    import mlflow.sklearn
    from sklearn.compose import make_column_transformer
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler

    table = make_table(TRAINING_ROWS, 1)
    if estimator == "linear":
        columns = make_column_transformer(
            (StandardScaler(), NUMBERS), (OneHotEncoder(handle_unknown="ignore"), CATEGORIES)
        )
        model = make_pipeline(columns, LogisticRegression(max_iter=500))
    else:
        encoder = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=np.nan)
        columns = make_column_transformer((encoder, CATEGORIES), remainder="passthrough")
        model = make_pipeline(columns, HistGradientBoostingClassifier(categorical_features=[0, 1], random_state=7))
    model.fit(table.drop(columns="sold"), table["sold"])
    joblib.dump(model, folder / "peer.joblib")
    mlflow.sklearn.save_model(model, folder / "mlflow", pip_requirements=[], serialization_format="cloudpickle")


def score_in_chunks(model_file: str, source: str, output: str) -> None:
    import joblib

    model = joblib.load(model_file)
    for number, chunk in enumerate(pd.read_csv(source, chunksize=CHUNK_ROWS)):
        probabilities = model.predict_proba(chunk)
        labels = model.classes_[probabilities.argmax(axis=1)]
        scored = chunk.assign(
            prediction=labels, probability_no=probabilities[:, 0], probability_yes=probabilities[:, 1]
        )
        scored.to_csv(output, index=False, header=number == 0, mode="a" if number else "w")


def score_with_pyfunc(model_folder: str, source: str, output: str) -> None:
    import mlflow.pyfunc

    model = mlflow.pyfunc.load_model(model_folder)
    table = pd.read_csv(source)
    table.assign(prediction=model.predict(table)).to_csv(output, index=False)


def measure(command: Sequence[str | Path]) -> Cost:
    """The cost of a process with its children."""
    began, before = time.monotonic(), os.times()
    process = subprocess.Popen(
        [str(word) for word in command], env={**os.environ, **ONE_THREAD}, stdout=subprocess.DEVNULL
    )
    peak, ended = [0.0], threading.Event()
    watch = threading.Thread(target=watch_memory, args=(process.pid, peak, ended))
    watch.start()
    code = process.wait()
    ended.set()
    watch.join()
    if code:
        raise SystemExit(f"{command} failed")
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return Cost(round(time.monotonic() - began, 2), round(cpu, 2), round(peak[0], 1))


def watch_memory(pid: int, peak: list[float], ended: threading.Event) -> None:
    page = os.sysconf("SC_PAGE_SIZE") / 1e6
    while not ended.wait(0.02):
        total, pending = 0.0, [pid]
        while pending:
            number = pending.pop()
            try:
                total += int(Path(f"/proc/{number}/statm").read_text().split()[1]) * page
                pending += map(int, Path(f"/proc/{number}/task/{number}/children").read_text().split())
            except OSError:
                continue  # it has ended
        peak[0] = max(peak[0], total)


def compare(arguments: argparse.Namespace, work: Path) -> list[dict[str, object]]:
    lines = []
    for estimator, ours in ESTIMATORS.items():
        folder = work / estimator
        run = train_run(folder, make_table(TRAINING_ROWS, 1), ours, target="sold")
        release = run.settings.store / run.package().path
        make_peer(estimator, folder)
        for rows in arguments.rows:
            source, output = write_csv(work / f"{rows}.csv", rows), work / "scored.csv"
            towline = [TOWLINE, "score", source, output, "--model", release, "--overwrite"]
            script = [sys.executable, __file__]
            ways: dict[str, list[str | Path]] = {
                "scikit-learn in chunks": [*script, "chunks", folder / "peer.joblib", source, output],
                "towline": towline,
            }
            if arguments.mlflow:
                ways["mlflow.pyfunc"] = [*script, "pyfunc", folder / "mlflow", source, output]
            if arguments.workers > 1:
                several = [*towline, "--workers", str(arguments.workers)]
                ways[f"towline, {arguments.workers} workers"] = several
                ways[f"towline, {arguments.workers} of Dask"] = [*several, "--engine", "dask"]
            for way, command in ways.items():
                output.unlink(missing_ok=True)
                cost = measure(command)
                line = {"estimator": estimator, "rows": rows, "way": way, **cost._asdict()}
                line |= {"digest": hashlib.sha256(output.read_bytes()).hexdigest()[:8]}
                lines.append(line)
                per_row = cost.cpu_s / rows * 1e6
                print(
                    f"{estimator:9} {rows:>12,} rows  {way:24} {rows / cost.wall_s:>10,.0f} rows/s  "
                    f"{per_row:7.2f} µs CPU/row  {cost.peak_mb:7.0f} MB",
                    flush=True,
                )
            print_ratios(lines, estimator, rows)
    return lines


def print_ratios(lines: Sequence[dict[str, object]], estimator: str, rows: int) -> None:
    costs = {line["way"]: line for line in lines if (line["estimator"], line["rows"]) == (estimator, rows)}
    ours = costs["towline"]
    for way, line in costs.items():
        if way != "towline":
            cpu, wall = (float(str(line[key])) / float(str(ours[key])) for key in ("cpu_s", "wall_s"))
            print(f"{'':9} {way} / towline: CPU {cpu:.1f} ×, time {wall:.1f} ×", flush=True)


def count_kills(arguments: argparse.Namespace, work: Path) -> dict[str, int]:
    """Kills a job at random moments until it ends; then compares its output with that of a job without kills."""
    run = train_run(work / "model", make_table(TRAINING_ROWS, 1), "linear", target="sold")
    release, rows = run.settings.store / run.package().path, arguments.rows[0]
    source, draw = write_csv(work / "in.csv", rows), random.Random(arguments.seed)
    counts = dict.fromkeys(("kills", "jobs", "outputs that differ", "lost or repeated rows", "partial outputs"), 0)

    def command(output: Path) -> list[str]:
        words = [TOWLINE, "score", source, output, "--model", release, "--workers", arguments.workers]
        return [str(word) for word in words]

    began = time.monotonic()
    subprocess.run(command(work / "expected.csv"), check=True, stdout=subprocess.DEVNULL)
    whole, expected = time.monotonic() - began, (work / "expected.csv").read_bytes()
    while counts["kills"] < arguments.kills:
        output = work / f"out{counts['jobs']}.csv"
        for _ in range(draw.randint(1, 6)):
            process = subprocess.Popen(command(output), stdout=subprocess.DEVNULL, start_new_session=True)
            try:
                process.wait(draw.uniform(0, whole))
                break
            except subprocess.TimeoutExpired:
                if draw.random() < 0.5:
                    os.killpg(process.pid, signal.SIGKILL)
                else:
                    process.kill()
                process.wait()
                counts["kills"] += 1
            counts["partial outputs"] += output.exists() and output.read_bytes() != expected
        subprocess.run(command(output), check=True, stdout=subprocess.DEVNULL)
        counts["jobs"] += 1
        counts["outputs that differ"] += output.read_bytes() != expected
        ids = pd.read_csv(output, usecols=["id"])["id"].to_numpy()
        counts["lost or repeated rows"] += not np.array_equal(ids, np.arange(rows))
        output.unlink()
        print(json.dumps(counts), flush=True)
    counts["leftover folders"] = len(list(work.glob(".*.towline-batch-*")))
    return counts


def main() -> None:
    if sys.argv[1:2] in (["chunks"], ["pyfunc"]):
        {"chunks": score_in_chunks, "pyfunc": score_with_pyfunc}[sys.argv[1]](*sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000])
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--mlflow", action="store_true")
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="towline batch ") as folder:
        result: object
        result = count_kills(arguments, Path(folder)) if arguments.kills else compare(arguments, Path(folder))
    print(json.dumps(result, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
