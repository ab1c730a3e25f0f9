"""Features of the config: equal values on every path, the same as DuckDB's, and their cost in a service.

Usage: features.py [--pairs 1000000] [--served 1000000] [--seed 1] [--seconds 3] [--cache DIR]

Random expressions are evaluated on random rows (nulls, Unicode, times near changes of daylight saving time): row by
row, as in a request, and as columns, as in training and in a file. The values must be equal to the last bit. DuckDB
(``pip install duckdb``), if it is installed, must agree: exactly, but for expressions with exp, ln, log10 or power,
where one unit in the last place is allowed.

Then models are trained on tables of such rows, with the expressions as features. The predictions for the training rows
must be equal to the last bit: by scikit-learn from the training table, by `towline.load` row by row, by `towline score`
from the file, and by `towline serve` from JSON.

Then one row a request is posted by wrk to a service of a model without features and to one of the same model with 20
features, alternately. ``--pairs 0``, ``--served 0`` and ``--seconds 0`` leave out a part.
"""

import argparse
import contextlib
import json
import math
import random
import statistics
import struct
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from boosters import as_predictions, by_http, differences, score_file
from peers import prepare
from peers.environments import CACHE
from peers.servers import SERVERS
from serving import Running, free_ports, settle, wrong_answers

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.support.expressions import KINDS, MACROS, RandomExpression, build_contract, draw_feature, draw_row
from tests.support.releases import train_run
from tests.support.serve_process import ServeProcess
from towline.data.schema.rows import RowReader
from towline.expressions.compilation import LARGEST
from towline.inference.predictor import open_release
from towline.training import model_io
from towline.training.evaluation.metrics import predict

ROWS = 250  # for each expression
BATCH = 20  # expressions of one contract
SERVED_ROWS = 1_000  # of each trained table
CONNECTIONS, ROUNDS = 32, 15
FEATURES = {
    "balance_per_year": "balance / nullif(age, 0)",
    "log_balance": "ln(greatest(balance, 1))",
    "owes": "balance < 0",
    "age_group": "bucket(age, 25, 35, 45, 55, 65)",
    "is_retired": "job = 'retired' or age >= 65",
    "is_student": "job = 'student'",
    "debts": "case when housing_loan = personal_loan then 2 when housing_loan = 'yes' then 1 else 0 end",
    "calls": "campaign + previous",
    "calls_per_success": "campaign / nullif(previous, 0)",
    "was_called": "previous > 0",
    "success": "poutcome = 'success'",
    "is_manager": "job like 'manage%'",
    "job_length": "length(job)",
    "family": "case marital when 'married' then 'couple' else 'alone' end",
    "schooling": "substring(education, 1, 3)",
    "rounded_balance": "round(balance / 1000, 1)",
    "wealth": "sqrt(greatest(balance, 0))",
    "month_part": "coalesce(pdays, 0) % 30",
    "recent": "pdays between 0 and 90",
    "many_calls": "campaign > 3 and not coalesce(previous > 0, false)",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=1_000_000)
    parser.add_argument("--served", type=int, default=1_000_000, help="pairs that reach a model")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=3, help="of each load; there are 16 for each service")
    parser.add_argument("--cache", type=Path, default=CACHE)
    given = parser.parse_args()
    if given.pairs:
        print("| compared | pairs | different |\n|---|---:|---:|")
        for name, (pairs, different) in compare_paths(given.pairs, given.seed).items():
            print(f"| {name} | {pairs:,} | {different:,} |")
    if given.served:
        print("\n| compared with training | pairs | different rows |\n|---|---:|---:|")
        for name, (pairs, different) in compare_served(given.served, given.seed).items():
            print(f"| {name} | {pairs:,} | {different:,} |")
    if given.seconds:
        measure_throughput(given.cache, given.seconds)


def measure_throughput(cache: Path, seconds: float) -> None:
    """Requests per second with and without the features."""
    store = cache / "features"
    try:
        samples = [
            prepare.train(store, "bench-boosting", prepare.BOOSTING),
            prepare.train(store, "bench-features", (*prepare.BOOSTING, f"features={json.dumps(FEATURES)}")),
        ]
        key = prepare.key(store)
    finally:
        prepare.stop_servers(store)
    with contextlib.ExitStack() as stack:
        services = [stack.enter_context(_serve(sample, store, key)) for sample in samples]
        loads: list[list[dict[str, float]]] = [[], []]
        for number in range(ROUNDS + 1):
            for place, (running, environ) in enumerate(services):
                load = running.load(f"http://127.0.0.1:{running.port}/predict", CONNECTIONS, seconds, environ)
                if load["refused"] or load["broken"]:
                    raise RuntimeError(f"requests failed: {load}")
                if number:  # the first round warms up
                    loads[place].append(load)
    print(
        f"\n| {CONNECTIONS} connections, median of {ROUNDS} rounds | requests/s | CPU µs a request |\n|---|---:|---:|"
    )
    for name, values in zip(("without features", f"with {len(FEATURES)} features"), loads, strict=True):
        rate, cpu = (statistics.median(load[key] for load in values) for key in ("rate", "cpu"))
        print(f"| {name} | {rate:,.0f} | {cpu:,.1f} |")
    rates = [b["rate"] / a["rate"] for a, b in zip(*loads, strict=True)]
    costs = [a["cpu"] / b["cpu"] for a, b in zip(*loads, strict=True)]
    print(f"| ratio, median of the rounds | {statistics.median(rates):.3f} | {statistics.median(costs):.3f} |")


@contextlib.contextmanager
def _serve(sample: prepare.Sample, store: Path, key: str) -> Iterator[tuple[Running, dict[str, str]]]:
    """A service with one worker, and the environment for wrk."""
    work = store / f"work-{sample.name}"
    work.mkdir(exist_ok=True)
    (work / "rows.json").write_text(json.dumps(sample.rows))
    (port,) = free_ports(1)
    environ = prepare.environment(store) | {"OMP_NUM_THREADS": "1", "BENCH_KEY": key}
    environ |= {"BENCH_ROWS": str(work / "rows.json"), "BENCH_BODY": str(work / "body.json")}
    server = next(each for each in SERVERS if each.name == "towline, 1 worker")
    body = json.dumps(server.body(sample.rows[:1])).encode()
    (work / "body.json").write_bytes(body)
    command = [prepare.TOWLINE, "serve", sample.name, "--port", str(port), "--workers", "1"]
    running = Running(command, environ, work, port)
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    try:
        running.first_answer(server, body, headers)
        if wrong := wrong_answers(running, server, sample, headers):
            raise RuntimeError(f"{wrong} wrong predictions of {sample.name}")
        yield running, environ
    finally:
        running.stop()
        settle(store)


def compare_served(pairs: int, seed: int) -> dict[str, tuple[int, int]]:
    """For each mode, the numbers of (expression, row) pairs and of rows with another prediction."""
    rng = random.Random(seed)
    counts = {"towline.load, row by row": [0, 0], "towline score": [0, 0], "towline serve": [0, 0]}
    while counts["towline serve"][0] < pairs:
        with tempfile.TemporaryDirectory(prefix="features-") as folder:
            different = _compare_release(Path(folder), rng)
        for name, rows in zip(counts, different, strict=True):
            counts[name][0] += BATCH * SERVED_ROWS
            counts[name][1] += rows
    return {name: (compared, different) for name, (compared, different) in counts.items()}


def _compare_release(folder: Path, rng: random.Random) -> list[int]:
    """Trains a model on random rows and features, and predicts with it in three modes."""
    rows = [_without_nul(draw_row(rng)) for _ in range(SERVED_ROWS)]
    features = {f"f{place}": draw_feature(rng).text for place in range(BATCH)}
    table = pd.DataFrame(rows, dtype=object).assign(y=[rng.gauss(0, 1) for _ in rows])
    run = train_run(folder, _as_typed(table), target="y", columns=dict(KINDS), features=features)
    directory = run.settings.store / run.package().path
    opened = open_release(directory)
    trained = opened.contract.features(run.work.table())
    expected = predict(model_io.load_model(directory / "model.skops"), trained, opened.contract)
    with ServeProcess(run.settings, str(directory)) as server:
        served = [label for body in by_http(server.startup["address"], rows) for label in body["predictions"]]
    single = [opened.predict([row])[0] for row in rows]
    scored = score_file(directory, _as_typed(table), folder, expected, opened)
    answers = (as_predictions(single, None, expected), scored, as_predictions(served, None, expected))
    return [differences(answer, expected) for answer in answers]


def _without_nul(row: dict[str, Any]) -> dict[str, Any]:
    """A service refuses texts with NUL characters."""
    return {name: value.replace("\0", "0") if isinstance(value, str) else value for name, value in row.items()}


def _as_typed(table: pd.DataFrame) -> pd.DataFrame:
    """Random rows as columns of a Parquet file: numbers as floats, times as texts."""
    types = {"numeric": "float64", "boolean": "boolean"}
    return table.astype({name: types[kind] for name, kind in KINDS.items() if kind in types})


def compare_paths(pairs: int, seed: int) -> dict[str, tuple[int, int]]:
    """For each comparison the numbers of pairs and of differences."""
    rng = random.Random(seed)
    try:
        import duckdb

        database: Any = duckdb.connect()
        database.execute("SET TimeZone='UTC'")
        database.execute(MACROS)
    except ImportError:
        database = None
    counts = {
        "row by row and columns": [0, 0],
        "DuckDB, exact operations": [0, 0],
        "DuckDB, exp, ln, log10, power": [0, 0],
    }
    while counts["row by row and columns"][0] < pairs:
        rows = [draw_row(rng) for _ in range(ROWS)]
        drawn = [draw_feature(rng) for _ in range(BATCH)]
        features = {f"f{place}": each.text for place, each in enumerate(drawn)}
        contract = build_contract(features)
        reader = RowReader(contract)
        canonical = reader.read(rows)
        frame = contract.features(pd.DataFrame(rows, dtype=object))
        for place, name in enumerate(features, len(KINDS)):
            left, right = [row[place] for row in canonical], frame[name].to_numpy().tolist()
            counts["row by row and columns"][0] += ROWS
            bad = [k for k in range(ROWS) if bits(left[k]) != bits(as_row(frame[name].iloc[k]))]
            counts["row by row and columns"][1] += len(bad)
            if bad:
                print("different:", features[name], rows[bad[0]], left[bad[0]], right[bad[0]])
        if database is not None:
            compare_duckdb(database, drawn, canonical, counts)
    return {name: (pairs, different) for name, (pairs, different) in counts.items() if pairs}


def as_row(value: Any) -> Any:
    """A value of a frame as in a canonical row."""
    if isinstance(value, pd.Timestamp):
        return value.to_pydatetime()
    return None if value is pd.NaT else value


def bits(value: Any) -> Any:
    """A value with its bits; null is None for every type."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    return struct.pack("<d", value) if isinstance(value, float) else value


def compare_duckdb(
    database: Any, drawn: list[RandomExpression], canonical: list[list[Any]], counts: dict[str, list[int]]
) -> None:
    table = pd.DataFrame(
        {
            name: pd.Series([row[place] for row in canonical], dtype="float64" if kind == "numeric" else "object")
            for place, (name, kind) in enumerate(KINDS.items())
        }
    )
    table["flag"] = pd.array([None if math.isnan(value) else value == 1.0 for value in table["flag"]], dtype="boolean")
    for name in ("at", "until"):
        table[name] = np.array(table[name].tolist(), dtype="datetime64[us]")
    for name in ("a", "b", "c"):
        table[name] = table[name].astype("Float64")
    database.register("rows_", table)
    for place, each in enumerate(drawn, len(KINDS)):
        if each.sql is None:
            continue
        name = "DuckDB, exact operations" if each.exact else "DuckDB, exp, ln, log10, power"
        try:
            results = [row[0] for row in database.execute(f"SELECT {each.sql} FROM rows_").fetchall()]
        except RuntimeError as error:
            print("DuckDB refuses:", each.sql, str(error)[:200])
            continue
        for row, result in zip(canonical, results, strict=True):
            expected = as_feature(result)
            counts[name][0] += 1
            if not agree(row[place], expected, exact=each.exact):
                counts[name][1] += 1
                if counts[name][1] <= 20:
                    print("DuckDB differs:", each.text, "|", row, row[place], expected)


def as_feature(value: Any) -> Any:
    """DuckDB's result by the rules of features: numbers up to 1e38, no blank texts."""
    if isinstance(value, bool):
        return float(value)
    if isinstance(value, float | int):
        return None if not abs(value) <= LARGEST else float(value)
    return None if isinstance(value, str) and not value.strip() else value


def agree(value: Any, expected: Any, *, exact: bool) -> bool:
    value = None if isinstance(value, float) and math.isnan(value) else value
    if value == expected:
        return True
    if exact or not (isinstance(value, float) and isinstance(expected, float)):
        return False
    return abs(value - expected) <= math.ulp(expected)


if __name__ == "__main__":
    main()
