"""Compares the predictions of compiled LightGBM, XGBoost and CatBoost models with the libraries, in every mode.

Usage: boosters.py [--rows 100000] [--libraries lightgbm ...] [--native] [--work DIR]

For each library and each kind of target a model is trained on a table with nulls, categories of few and of many levels,
dates, and column names that the libraries do not accept. Random rows are then predicted: training values, nulls, unseen
categories, and numbers around the thresholds and beyond them. They are predicted

- by the library, through the stored model, and by the library alone on the model file of the release;
- by the compiled release in Python: one row at a time, and as a table;
- by `towline score`, from a Parquet file;
- by `towline serve`, in requests of 500 rows.

A prediction or a probability counts as different if it differs in the last bit. Only the library alone is compared by
labels, and by the largest difference: XGBoost computes probabilities in float32. With ``--native`` the trees also split
sets of categories.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.support.paths import TOWLINE
from tests.support.releases import train_run
from tests.support.serve_process import ServeProcess
from towline.data.schema.rows import RowReader
from towline.extras import BOOSTING_LIBRARIES
from towline.inference.compiled import codec, parity
from towline.inference.predictor import Model, open_release
from towline.training import model_io
from towline.training.boosting.libraries import Booster
from towline.training.estimators import pipeline_of
from towline.training.evaluation.metrics import predict
from towline.training.evaluation.predictions import Predictions

TARGETS: dict[str, list[Any]] = {
    "regression": [],
    "boolean": [False, True],
    "text": ["no", "yes"],
    "three classes": ["high", "low", "middle"],
}
BODY_ROWS = 500
TABLE_ROWS = 3_000
LARGEST = float(np.finfo(np.float32).max)


def make_table(classes: list[Any]) -> pd.DataFrame:
    rng = np.random.default_rng(8)
    x, kind = rng.normal(size=TABLE_ROWS), rng.choice(["a", "b", "ü", "<d>"], TABLE_ROWS)
    town = np.array([f"t{number}" for number in rng.integers(0, 60, TABLE_ROWS)], dtype=object)
    flag, day = rng.random(TABLE_ROWS) < 0.5, pd.Series(pd.date_range("2021-01-01", periods=TABLE_ROWS, freq="7h"))
    value = 2 * x + (kind == "b") * x + 0.5 * flag + 0.1 * day.dt.month.to_numpy() + rng.normal(0, 0.3, TABLE_ROWS)
    table = pd.DataFrame(
        {
            "a[b]<c": np.where(rng.random(TABLE_ROWS) < 0.1, np.nan, x),
            "größe": np.where(rng.random(TABLE_ROWS) < 0.1, None, kind),
            "x y": flag,
            "1": rng.lognormal(10, 4, TABLE_ROWS),
            '{"q":1}': rng.integers(-3, 9, TABLE_ROWS),
            "town": np.where(rng.random(TABLE_ROWS) < 0.05, None, town),
            "day": day,
        }
    )
    cuts = np.quantile(value, np.linspace(0, 1, len(classes) + 1)[1:-1]) if classes else []
    return table.assign(y=[classes[place] for place in np.digitize(value, cuts)] if classes else value)


def to_json_rows(features: pd.DataFrame) -> list[dict[str, Any]]:
    """Canonical features as the JSON rows that a client would send."""
    columns = {}
    for name, values in features.items():
        objects = values.astype(object).where(values.notna(), None).tolist()
        columns[name] = [value.isoformat() if isinstance(value, pd.Timestamp) else value for value in objects]
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def differences(answer: Predictions, expected: Predictions) -> int:
    """How many rows have another prediction or another probability."""
    different = np.array([a != b for a, b in zip(answer.labels.tolist(), expected.labels.tolist(), strict=True)])
    if expected.probabilities is not None:
        assert answer.probabilities is not None
        different |= (answer.probabilities != expected.probabilities).any(axis=1)
    return int(different.sum())


def predict_alone(model: Any, features: pd.DataFrame) -> Predictions:
    """By the library alone, with its own interface, on the model file."""
    booster = pipeline_of(model)[-1]
    assert isinstance(booster, Booster)
    values = pipeline_of(model)[:-1].transform(features).to_numpy().clip(-LARGEST, LARGEST)
    answer = np.asarray(booster._transformed(values), dtype=np.float64)
    if not hasattr(model, "classes"):
        return Predictions(answer.ravel())
    if answer.ndim == 1:
        answer = np.column_stack([1 - answer, answer])
    codes = answer.argmax(axis=1)
    if model.threshold is not None:
        positive = model.classes.index(model.positive)
        codes = np.where(answer[:, positive] >= model.threshold, positive, 1 - positive)
    return Predictions(np.array(model.classes, dtype=object)[codes], answer)


def by_http(address: str, rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for begin in range(0, len(rows), BODY_ROWS):
        body = json.dumps({"rows": rows[begin : begin + BODY_ROWS]}).encode()
        request = Request(f"{address}/predict", body, {"content-type": "application/json"})
        try:
            with urlopen(request, timeout=120) as answer:
                yield json.load(answer)
        except HTTPError as error:
            raise SystemExit(f"{error.code}: {error.read().decode()[:1000]}") from error


def as_predictions(labels: list[Any], shares: list[Any] | None, like: Predictions) -> Predictions:
    array = np.empty(len(labels), dtype=like.labels.dtype)
    array[:] = labels
    return Predictions(array, None if like.probabilities is None else np.array(shares))


def score_file(directory: Path, features: pd.DataFrame, work: Path, like: Predictions, opened: Model) -> Predictions:
    features.to_parquet(work / "rows.parquet", index=False)
    command = [TOWLINE, "score", work / "rows.parquet", work / "scored.parquet", "--model", directory]
    subprocess.run([str(word) for word in command], check=True, capture_output=True)
    scored = pd.read_parquet(work / "scored.parquet")
    shares = [f"probability_{name}" for name in (str(label) for label in opened.contract.classes)]
    columns = [name for name in scored if name.startswith("probability_")]
    assert len(shares) == len(columns)
    return as_predictions(scored["prediction"].tolist(), scored[columns].to_numpy().tolist(), like)


def compare(library: str, target: str, rows: int, work: Path, *, native: bool) -> dict[str, Any]:
    work.mkdir(parents=True)
    params, table = {"native_categories": native}, make_table(TARGETS[target])
    run = train_run(work, table, library, params=params, target="y", columns={"town": "category"})
    directory = run.settings.store / run.package().path
    opened = open_release(directory)
    certificate = json.loads((directory / "certificate.json").read_bytes())
    assert opened.compiled, certificate["reason"]
    model = model_io.load_model(directory / "model.skops")
    contract, plan = opened.contract, codec.read_plan(directory / codec.PLAN_FILE)
    train = run.work.subset("train").features
    generated = [
        parity._generate_rows(plan, contract, train, seed) for seed in range(1, 1 + -(-rows // parity.GENERATED_ROWS))
    ]
    features = pd.concat(generated, ignore_index=True).head(rows)
    json_rows = to_json_rows(features)
    canonical = RowReader(contract).read(json_rows)

    started = time.perf_counter()
    expected = predict(model, features, contract)
    library_many = time.perf_counter() - started
    started = time.perf_counter()
    many = opened.predict_frame(features)
    compiled_many = time.perf_counter() - started
    started = time.perf_counter()
    single = [opened.predict_canonical([row]) for row in canonical]
    compiled_one = time.perf_counter() - started
    started = time.perf_counter()
    for at in range(50):
        predict(model, features.iloc[[at]], contract)
    library_one = (time.perf_counter() - started) / 50
    alone = predict_alone(model, features)
    with ServeProcess(run.settings, str(directory)) as server:
        bodies = list(by_http(server.startup["address"], json_rows))
    labels = [label for body in bodies for label in body["predictions"]]
    shares = [share for body in bodies for share in body.get("probabilities") or []]
    if shares and isinstance(shares[0], dict):
        shares = [list(share.values()) for share in shares]
    single_predictions = as_predictions(
        [answer.predictions[0] for answer in single], [(answer.probabilities or [0])[0] for answer in single], expected
    )
    numbers = [each.labels if each.probabilities is None else each.probabilities for each in (alone, expected)]
    scale = np.maximum(1.0, np.abs(numbers[1]))
    return {
        "library": library,
        "target": target,
        "scorer": certificate["scorer"],
        "many": differences(many, expected),
        "single": differences(single_predictions, expected),
        "file": differences(score_file(directory, features, work, expected, opened), expected),
        "http": differences(as_predictions(labels, shares, expected), expected),
        "alone": int((alone.labels != expected.labels).sum()) if contract.classes else 0,
        "largest": float((np.abs(numbers[0] - numbers[1]) / scale).max()),
        "library_one": 1e6 * library_one,
        "compiled_one": 1e6 * compiled_one / rows,
        "library_many": 1e6 * library_many / rows,
        "compiled_many": 1e6 * compiled_many / rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--libraries", nargs="+", default=BOOSTING_LIBRARIES, choices=BOOSTING_LIBRARIES)
    parser.add_argument("--targets", nargs="+", default=list(TARGETS), choices=TARGETS)
    parser.add_argument("--native", action="store_true", help="without catboost, which is not compiled then")
    parser.add_argument("--work", type=Path, required=True, help="an empty folder")
    given = parser.parse_args()
    print(f"Different answers in {given.rows:,} rows each, and µs a row:\n")
    print(
        "| library | target | scorer | table | one by one | `score` | HTTP | library alone: labels, largest difference "
        "| one row: library | one row: compiled | in a table: library | in a table: compiled |"
    )
    print("|---|---|---|" + "---:|" * 9)
    libraries = [library for library in given.libraries if not (given.native and library == "catboost")]
    for library in libraries:
        for target in given.targets:
            work = given.work / f"{library}-{target.replace(' ', '-')}"
            row = compare(library, target, given.rows, work, native=given.native)
            counts = [f"{row[name]:,}" for name in ("many", "single", "file", "http")]
            times = [f"{row[name]:,.1f}" for name in ("library_one", "compiled_one", "library_many", "compiled_many")]
            cells = [library, target, row["scorer"], *counts, f"{row['alone']:,}, {row['largest']:.0e}", *times]
            print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
