"""Batch scoring against chunked scikit-learn and mlflow.pyfunc on pandas, side by side in one run; and its kills.

    python benchmarks/batch.py --rows 1000000                     # the table of costs
    python benchmarks/batch.py --rows 1000000 10000000 --mlflow   # growth of time and memory, and mlflow.pyfunc
    python benchmarks/batch.py --rows 1000000 --format parquet    # from Parquet to Parquet
    python benchmarks/batch.py --rows 1000000 10000000 --text     # growth with a column of text, towline alone
    python benchmarks/batch.py --rows 10000000 --workers 2 --dask # scaling of two processes, and of Dask
    python benchmarks/batch.py --kills 200 --rows 300000          # SIGKILL at random times

The table is generated: eight numbers, two categories and an id. Each way reads a file and writes a file of the same
format with all columns and the predictions; each runs in a separate process, with one thread. The peers have a plain
pipeline of scikit-learn with the same estimator: 50,000 rows at a time, or by mlflow.pyfunc on the whole table, with a
signature. mlflow.pyfunc writes no probabilities; `towline score --columns prediction` writes the same columns and is
measured, too. CPU is user and system time of all processes with their start; memory is the peak of the sum of their
resident sets, read every 20 ms.
"""

import argparse
import contextlib
import ctypes
import hashlib
import json
import os
import random
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.support.paths import TOWLINE
from tests.support.releases import train_run

NUMBERS, CATEGORIES = [f"x{number}" for number in range(8)], ["colour", "town"]
ESTIMATORS = {
    "linear": "linear",
    "boosting": "sklearn.ensemble.HistGradientBoostingClassifier",
}
WORDS = [f"{first}{second}" for first in ("ba", "de", "ki", "lo", "mu") for second in ("n", "r", "st", "la", "vo")]
TRAINING_ROWS, CHUNK_ROWS, BLOCK_ROWS = 20_000, 50_000, 500_000
PR_SET_CHILD_SUBREAPER = 36
INDEPENDENT = " independent jobs"  # at once: the limit of what several workers can gain on this machine
PREDICTION_ONLY = "prediction only"  # of towline: the columns that mlflow.pyfunc writes
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "ARROW_NUM_THREADS"), "1")


class Cost(NamedTuple):
    wall_s: float
    cpu_s: float
    peak_mb: float


def make_table(rows: int, seed: int, *, text: bool = False) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    table = pd.DataFrame({name: rng.normal(size=rows).round(4) for name in NUMBERS})
    table["colour"] = rng.choice(["red", "green", "blue", "grey"], rows)
    table["town"] = rng.choice([f"t{number}" for number in range(40)], rows)
    if text:
        table["note"] = [" ".join(words) for words in rng.choice(WORDS, (rows, 6)).tolist()]
    value = 2 * table["x0"] + table["x1"] * table["x2"] + 2 * (table["colour"] == "red") + rng.normal(size=rows)
    return table.assign(sold=np.where(value > 0.5, "yes", "no"))


def write_table(path: Path, rows: int, *, text: bool = False) -> Path:
    def blocks() -> Iterator[pd.DataFrame]:
        for first in range(0, rows, BLOCK_ROWS):
            count = min(BLOCK_ROWS, rows - first)
            block = make_table(count, seed=100 + first, text=text).drop(columns="sold")
            block.insert(0, "id", np.arange(first, first + count))
            yield block

    return write_blocks(path, blocks())


def write_blocks(path: Path, blocks: Iterable[pd.DataFrame]) -> Path:
    """Writes a CSV or a Parquet file block by block, as its name says."""
    writer = None
    for number, block in enumerate(blocks):
        if path.suffix == ".csv":
            block.to_csv(path, index=False, header=number == 0, mode="a" if number else "w")
            continue
        table = pa.Table.from_pandas(block, preserve_index=False)
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table)
    if writer:
        writer.close()
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
    inputs = table.drop(columns="sold")
    mlflow.sklearn.save_model(
        model,
        folder / "mlflow",
        pip_requirements=[],
        serialization_format="cloudpickle",
        signature=mlflow.models.infer_signature(inputs, model.predict(inputs)),
    )


def score_in_chunks(model_file: str, source: str, output: str) -> None:
    import joblib

    model = joblib.load(model_file)

    def scored() -> Iterator[pd.DataFrame]:
        for chunk in read_chunks(source):
            probabilities = model.predict_proba(chunk)
            labels = model.classes_[probabilities.argmax(axis=1)]
            yield chunk.assign(
                prediction=labels, probability_no=probabilities[:, 0], probability_yes=probabilities[:, 1]
            )

    write_blocks(Path(output), scored())


def read_chunks(source: str) -> Iterator[pd.DataFrame]:
    if source.endswith(".csv"):
        yield from pd.read_csv(source, chunksize=CHUNK_ROWS)
    else:
        with pq.ParquetFile(source) as file:
            for batch in file.iter_batches(CHUNK_ROWS, use_threads=False):
                yield batch.to_pandas()


def score_with_pyfunc(model_folder: str, source: str, output: str) -> None:
    import mlflow.pyfunc

    model = mlflow.pyfunc.load_model(model_folder)
    table = pd.read_csv(source) if source.endswith(".csv") else pd.read_parquet(source)
    scored = table.assign(prediction=model.predict(table))
    if output.endswith(".csv"):
        scored.to_csv(output, index=False)
    else:
        scored.to_parquet(output, index=False)


def measure(command: Sequence[str | Path]) -> Cost:
    """The cost of a process with all that it starts."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)  # processes that outlive their parent are waited for here
    # compiled modules are stored by the first start, as an installation does
    environment = {**os.environ, **ONE_THREAD, "PYTHONDONTWRITEBYTECODE": ""}
    began, before = time.monotonic(), os.times()
    process = subprocess.Popen([str(word) for word in command], env=environment, stdout=subprocess.DEVNULL)
    peak, ended = [0.0], threading.Event()
    watch = threading.Thread(target=watch_memory, args=(process.pid, peak, ended))
    watch.start()
    code, wall = process.wait(), time.monotonic() - began
    ended.set()
    watch.join()
    if code:
        raise SystemExit(f"{command} failed")
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, 0):
            pass
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return Cost(round(wall, 2), round(cpu, 2), round(peak[0], 1))


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
    lines: list[dict[str, object]] = []
    sources = {
        rows: write_table(work / f"{rows}.{arguments.format}", rows, text=arguments.text) for rows in arguments.rows
    }
    for estimator, ours in ESTIMATORS.items():
        folder, output = work / estimator, work / f"scored.{arguments.format}"
        run = train_run(folder, make_table(TRAINING_ROWS, 1, text=arguments.text), ours, target="sold")
        release = run.settings.store / run.package().path
        if not arguments.text:
            make_peer(estimator, folder)
        for rows, source in sources.items():
            for way, command in list_ways(arguments, source, output, folder, release).items():
                output.unlink(missing_ok=True)
                cost = measure(command)
                digest = hashlib.sha256(output.read_bytes()).hexdigest()[:8]
                lines.append({"estimator": estimator, "rows": rows, "way": way, **cost._asdict(), "digest": digest})
                print(
                    f"{estimator:9} {rows:>12,} rows  {way:24} {rows / cost.wall_s:>10,.0f} rows/s  "
                    f"{cost.cpu_s / rows * 1e6:7.2f} µs CPU/row  {cost.peak_mb:7.0f} MB  {digest}",
                    flush=True,
                )
            print_ratios([line for line in lines if (line["estimator"], line["rows"]) == (estimator, rows)])
        print_growth([line for line in lines if (line["estimator"], line["way"]) == (estimator, "towline")])
    return lines


def list_ways(
    arguments: argparse.Namespace, source: Path, output: Path, folder: Path, release: Path
) -> dict[str, list[str | Path]]:
    """The commands by the name of the way."""
    towline: list[str | Path] = [TOWLINE, "score", source, output, "--model", release, "--overwrite"]
    script: list[str | Path] = [sys.executable, __file__]
    ways = {"towline": towline}
    if not arguments.text:
        ways["scikit-learn in chunks"] = [*script, "chunks", folder / "peer.joblib", source, output]
    if arguments.mlflow and not arguments.text:
        ways["mlflow.pyfunc"] = [*script, "pyfunc", folder / "mlflow", source, output]
        ways[PREDICTION_ONLY] = [*towline, "--columns", "prediction"]
    if arguments.workers > 1:
        outputs = [output, *(output.with_stem(f"copy{number}") for number in range(1, arguments.workers))]
        jobs = [shlex.join(map(str, [*towline[:3], path, *towline[4:]])) for path in outputs]
        ways[f"{arguments.workers}{INDEPENDENT}"] = ["sh", "-c", " & ".join([*jobs, "wait"])]
        several = [*towline, "--workers", str(arguments.workers)]
        ways[f"towline, {arguments.workers} workers"] = several
        if PREDICTION_ONLY in ways:
            ways[f"{PREDICTION_ONLY}, {arguments.workers} workers"] = [*several, "--columns", "prediction"]
        if arguments.dask:
            ways[f"towline, {arguments.workers} of Dask"] = [*several, "--engine", "dask"]
    return ways


def print_ratios(lines: Sequence[dict[str, object]]) -> None:
    ours = next(line for line in lines if line["way"] == "towline")
    for line in lines:
        cpu, wall = (float(str(line[key])) / float(str(ours[key])) for key in ("cpu_s", "wall_s"))
        if str(line["way"]).startswith("towline,"):
            same = "the same bytes" if line["digest"] == ours["digest"] else "OTHER BYTES"
            print(f"{'':9} {line['way']}: {1 / wall:.2f} × as fast as 1, CPU {cpu:.2f} ×, {same}", flush=True)
        elif str(line["way"]).endswith(INDEPENDENT):
            count = int(str(line["way"]).split()[0])
            print(f"{'':9} {line['way']}: {count / wall:.2f} × the rows per second of one", flush=True)
        elif not str(line["way"]).startswith(PREDICTION_ONLY) and line is not ours:
            print(f"{'':9} {line['way']} / towline: CPU {cpu:.1f} ×, time {wall:.1f} ×", flush=True)
    for peer in (line for line in lines if line["way"] == "mlflow.pyfunc"):
        for line in (line for line in lines if str(line["way"]).startswith(PREDICTION_ONLY)):
            cpu, wall = (float(str(peer[key])) / float(str(line[key])) for key in ("cpu_s", "wall_s"))
            print(f"{'':9} mlflow.pyfunc / towline, {line['way']}: CPU {cpu:.1f} ×, time {wall:.1f} ×", flush=True)


def print_growth(lines: Sequence[dict[str, object]]) -> None:
    """Time and memory from the fewest to the most rows."""
    if len(lines) > 1:
        first, *_, last = sorted(lines, key=lambda line: int(str(line["rows"])))
        keys = ("rows", "wall_s", "cpu_s", "peak_mb")
        rows, wall, cpu, memory = (float(str(last[key])) / float(str(first[key])) for key in keys)
        print(f"{'':9} rows × {rows:.0f}: time × {wall:.1f}, CPU × {cpu:.1f}, memory × {memory:.2f}", flush=True)


def count_kills(arguments: argparse.Namespace, work: Path) -> dict[str, int]:
    """Kills a job at random times until it ends; then compares its output with that of a job without kills.

    Each run of a job has a random number of workers; all its processes are killed, or only the main one.
    """
    run = train_run(work / "model", make_table(TRAINING_ROWS, 1), "linear", target="sold")
    release, rows = run.settings.store / run.package().path, arguments.rows[0]
    source, draw = write_table(work / f"in.{arguments.format}", rows), random.Random(arguments.seed)
    counts = dict.fromkeys(("kills", "jobs", "outputs that differ", "lost or repeated rows", "partial outputs"), 0)

    def command(output: Path) -> list[str]:
        workers = draw.randint(1, arguments.workers)
        words = [TOWLINE, "score", source, output, "--model", release, "--workers", workers]
        return [str(word) for word in words]

    began, expected_output = time.monotonic(), work / f"expected.{arguments.format}"
    subprocess.run(command(expected_output), check=True, stdout=subprocess.DEVNULL)
    whole, expected = time.monotonic() - began, expected_output.read_bytes()
    while counts["kills"] < arguments.kills:
        output = work / f"out{counts['jobs']}.{arguments.format}"
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
        read = (
            pd.read_csv(output, usecols=["id"]) if output.suffix == ".csv" else pd.read_parquet(output, columns=["id"])
        )
        counts["lost or repeated rows"] += not np.array_equal(read["id"], np.arange(rows))
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
    parser.add_argument("--format", choices=["csv", "parquet"], default="csv")
    parser.add_argument("--mlflow", action="store_true")
    parser.add_argument("--dask", action="store_true")
    parser.add_argument("--text", action="store_true")
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
