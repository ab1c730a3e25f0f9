"""Time for one row and for 10,000 rows, and differences from scikit-learn: the pipeline, treelite, ONNX, towline.

Usage: scorer.py [--samples bank bike] [--estimators linear forest boosting] [--rows 100000] [--onnx] [--json FILE]

Each model is fitted on a whole sample and predicts 100,000 generated rows: nulls, unseen categories, values at the
trees' thresholds and the numbers nearest to them. treelite and ONNX have the trees only: their input is preprocessed
by scikit-learn, which is not in their time. The time of scikit-learn and of towline is from dicts to predictions;
towline's includes the check against the contract. One thread.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import joblib
import numpy as np
import pandas as pd
from peers.environments import bin_of
from peers.rows import generate
from threadpoolctl import threadpool_limits

from towline.config import read_config
from towline.data.schema.contract import Contract
from towline.data.schema.inference import infer_contract
from towline.data.schema.rows import RowReader
from towline.inference.compiled.compiler import compile_plan
from towline.inference.compiled.scorer import CompiledScorer
from towline.training.estimators import build_model

PROJECT = Path(__file__).parents[1]
CONFIGS = {"bank": "configs/bank_subscription.yaml", "bike": "configs/bike_demand.yaml"}
MANY = 10_000


class Fitted(NamedTuple):
    model: Any
    contract: Contract
    table: pd.DataFrame


class Result(NamedTuple):
    """µs a row, alone and among 10,000; the largest difference of any value or probability, relative where it is
    beyond 1; labels that differ."""

    scorer: str
    single: float
    many: float
    difference: float
    labels: int


def fit(sample: str, estimator: str) -> Fitted:
    config = read_config(PROJECT / CONFIGS[sample], [f"candidates=[{estimator}]"])
    table = pd.read_parquet(PROJECT / str(config.data.source)).drop(columns=list(config.data.drop))
    contract = infer_contract(table, config)
    model = build_model(config.candidates[0], contract, config.seed)
    model.fit(contract.features(table), contract.labels(table))
    return Fitted(model, contract, table)


def alone(ask: Callable[[int], object], count: int) -> float:
    """Median µs of so many calls, after some to warm up."""
    for position in range(20):
        ask(position)
    taken = []
    for position in range(count):
        begin = time.perf_counter()
        ask(position)
        taken.append(time.perf_counter() - begin)
    return 1e6 * statistics.median(taken)


def together(ask: Callable[[], object]) -> float:
    """µs for a row, the best of three calls with 10,000 rows."""
    taken = []
    for _ in range(3):
        begin = time.perf_counter()
        ask()
        taken.append(time.perf_counter() - begin)
    return 1e6 * min(taken) / MANY


def differences(truth: np.ndarray, predicted: np.ndarray) -> tuple[float, int]:
    """Of values (n,), or of probabilities (n, classes) and the labels they come to."""
    predicted = predicted.reshape(truth.shape)
    labels = int((truth.argmax(axis=1) != predicted.argmax(axis=1)).sum()) if truth.ndim == 2 else 0
    return float((np.abs(truth - predicted) / np.maximum(1, np.abs(truth))).max()), labels


def sklearn(fitted: Fitted, rows: list[dict[str, Any]]) -> tuple[Result, np.ndarray]:
    model, contract, _ = fitted
    ask = model.predict_proba if contract.classes else model.predict
    truth = np.asarray(ask(contract.features(pd.DataFrame(rows))), dtype=np.float64)
    single = alone(lambda at: ask(contract.features(pd.DataFrame([rows[at]]))), 200)
    many = together(lambda: ask(contract.features(pd.DataFrame(rows[:MANY]))))
    return Result("scikit-learn", single, many, 0.0, 0), truth


def towline(fitted: Fitted, rows: list[dict[str, Any]], truth: np.ndarray) -> Result:
    model, contract, _ = fitted
    reader = RowReader(contract)
    compiled = CompiledScorer(compile_plan(model, contract), contract, reader)

    def ask(some: list[dict[str, Any]]) -> Any:
        answer = compiled.predict_rows(reader.read(some))
        return answer.predictions if answer.probabilities is None else answer.probabilities

    each = np.array([ask([row])[0] for row in rows])
    block = np.array(ask(rows))
    worst = max(differences(truth, each), differences(truth, block))
    return Result("towline", alone(lambda at: ask([rows[at]]), 5000), together(lambda: ask(rows[:MANY])), *worst)


def treelite(fitted: Fitted, design: np.ndarray, truth: np.ndarray) -> Result | None:
    """None where it is missing, or the model has no trees."""
    estimator = fitted.model.named_steps["estimate"]
    try:
        import treelite
        from treelite import gtil
    except ImportError:
        return None
    if hasattr(estimator, "estimators_"):
        design = design.astype(np.float32)  # scikit-learn's forests see their rows so
    try:
        model = treelite.sklearn.import_model(estimator)
    except (NotImplementedError, AttributeError, treelite.TreeliteError):
        return None
    predicted = np.asarray(gtil.predict(model, design, nthread=1), dtype=np.float64).reshape(len(design), -1)
    if truth.ndim == 2 and predicted.shape[1] == 1:
        predicted = np.hstack([1 - predicted, predicted])
    single = alone(lambda at: gtil.predict(model, design[at : at + 1], nthread=1), 2000)
    many = together(lambda: gtil.predict(model, design[:MANY], nthread=1))
    return Result("treelite, trees alone", single, many, *differences(truth, predicted))


def onnx(fitted: Fitted, design: np.ndarray, truth: np.ndarray, bin_: Path) -> Result:
    with tempfile.TemporaryDirectory() as folder:
        model, rows, out = (Path(folder) / name for name in ("model.joblib", "design.npy", "answers.npz"))
        joblib.dump(fitted.model.named_steps["estimate"], model)
        np.save(rows, design)
        command = [bin_ / "python", Path(__file__).parent / "peers" / "onnx" / "score.py", model, rows, out]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"onnx: {done.stderr[-1500:]}")
        taken = json.loads(done.stdout.splitlines()[-1])
        with np.load(out) as answers:
            predicted = answers["last"]
    return Result("ONNX (float32), estimator alone", taken["single"], taken["many"], *differences(truth, predicted))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", nargs="+", choices=CONFIGS, default=list(CONFIGS))
    parser.add_argument("--estimators", nargs="+", default=["linear", "forest", "boosting"])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--onnx", action="store_true", help="with onnxruntime, in an environment made for it")
    parser.add_argument("--json", type=Path, help="all figures, into this file")
    given = parser.parse_args()
    print("| model | scorer | one row, µs | of 10,000, µs a row | largest difference | labels that differ |")
    print("|---|---|---:|---:|---:|---:|")
    records = []
    threadpool_limits(1)
    for sample in given.samples:
        for estimator in given.estimators:
            fitted = fit(sample, estimator)
            rows = generate(fitted.table, fitted.contract, fitted.model, given.rows)
            first, truth = sklearn(fitted, rows)
            features = fitted.contract.features(pd.DataFrame(rows))
            design = np.ascontiguousarray(fitted.model.named_steps["prepare"].transform(features))
            results = [first, treelite(fitted, design, truth), towline(fitted, rows, truth)]
            if given.onnx:
                results.append(onnx(fitted, design, truth, bin_of("onnx")))
            for result in results:
                if result:
                    labels = f"{result.labels:,} of {given.rows:,}" if truth.ndim == 2 else ""
                    figures = f"{result.single:,.1f} | {result.many:,.2f} | {result.difference:.1e} | {labels}"
                    print(f"| {sample} {estimator} | {result.scorer} | {figures} |", flush=True)
                    records.append({"sample": sample, "estimator": estimator, **result._asdict()})
    if given.json:
        given.json.write_text(json.dumps(records, indent=1))


if __name__ == "__main__":
    main()
