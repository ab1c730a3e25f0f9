"""CPU time of the streaming pass over a large table against Great Expectations, side by side on the same snapshot.

Usage: validation.py [--rows 5_000_000]

50 expectations on 12 columns, of which some fail. Both read the same Parquet file, and their verdicts, counts and
first rows are compared.
"""

import argparse
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parents[1]))

from towline.data.snapshot import SnapshotColumns, snapshot_to_frame
from towline.data.validation import streaming, suite
from towline.data.validation.custom_rules import RowExamples

NUMBERS = [f"x{number}" for number in range(6)]
TEXTS = ["town", "kind", "code"]


def make_table(rows: int) -> pa.Table:
    rng = np.random.default_rng(0)
    columns: dict[str, Any] = {
        "id": np.arange(rows),
        "at": np.datetime64("2020-01-01", "us") + np.sort(rng.integers(0, 10**12, rows)),
        "count": rng.poisson(3, rows),
    }
    for name in NUMBERS:
        columns[name] = pa.array(rng.normal(size=rows), mask=rng.random(rows) < 0.02)
    for name, levels in zip(TEXTS, (4, 30, 900), strict=True):
        names = np.array([f"{name} {level}" for level in range(levels)])
        columns[name] = pa.array(names[rng.integers(0, levels, rows)], pa.large_string())
    return pa.table(columns)


def make_suite() -> list[dict[str, Any]]:
    rules: list[tuple[str, dict[str, Any]]] = [("table_row_count_to_be_between", {"min_value": 100})]
    rules += [("column_values_to_not_be_null", {"column": name}) for name in ["id", "at", "count", *TEXTS, "x0"]]
    share = {"min_value": 0, "strict_min": True}
    rules += [("column_proportion_of_non_null_values_to_be_between", {"column": name, **share}) for name in NUMBERS]
    ends = {"min_value": -4, "max_value": 4, "mostly": 0.99}
    rules += [("column_values_to_be_between", {"column": name, **ends}) for name in NUMBERS]
    rules += [("column_values_to_be_between", {"column": name, "min_value": -9, "max_value": 9}) for name in NUMBERS]
    rules += [("column_min_to_be_between", {"column": name, "max_value": 0}) for name in NUMBERS]
    rules += [("column_values_to_be_between", {"column": "count", "min_value": 0, "max_value": 12})]
    rules += [("column_values_to_be_in_set", {"column": "count", "value_set": list(range(12))})]
    for name, levels in zip(TEXTS, (4, 29, 900), strict=True):
        members = [f"{name} {level}" for level in range(levels)]
        rules += [
            ("column_values_to_be_in_set", {"column": name, "value_set": members}),
            ("column_values_to_match_regex", {"column": name, "regex": r"^[a-z]+ \d+$"}),
            ("column_value_lengths_to_be_between", {"column": name, "min_value": 5, "max_value": 8}),
            ("column_unique_value_count_to_be_between", {"column": name, "min_value": 2, "max_value": 1_000}),
        ]
    rules += [
        ("column_values_to_be_unique", {"column": "id"}),
        ("compound_columns_to_be_unique", {"column_list": ["town", "id"]}),
        ("column_values_to_be_increasing", {"column": "at"}),
        ("column_pair_values_a_to_be_greater_than_b", {"column_A": "x0", "column_B": "x1", "mostly": 0.4}),
    ]
    meta = {"detail": "", "where": "benchmark"}
    return [
        {
            "type": f"expect_{name}",
            "kwargs": kwargs,
            "severity": "critical",
            "meta": {"towline": {**meta, "id": number}},
        }
        for number, (name, kwargs) in enumerate(rules)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=5_000_000)
    rows, expectations = parser.parse_args().rows, make_suite()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.parquet"
        pq.write_table(make_table(rows), path, compression="zstd")
        built = suite._build(expectations)  # imports Great Expectations, which is not measured
        started = time.process_time()
        results = streaming.check_table(SnapshotColumns(path), expectations)
        streamed = time.process_time() - started
        started = time.process_time()
        frame = snapshot_to_frame(pq.read_table(path))
        read = time.process_time() - started
        reference = suite._run_great_expectations(frame, built, expectations, RowExamples(frame))
        by_great_expectations = time.process_time() - started
    different = [
        expectation["type"]
        for number, expectation in enumerate(expectations)
        if (number not in results)
        or (results[number].passed, results[number].broken) != (reference[number].passed, reference[number].broken)
        or (not results[number].passed and results[number].rows != reference[number].rows)
    ]
    failed = sum(not result.passed for result in reference.values())
    print(f"{len(expectations)} expectations ({failed} fail) on {rows:,} rows × 12 columns, CPU seconds")
    print(f"streaming pass, reading included      {streamed:6.2f}")
    print(f"Great Expectations, reading included  {by_great_expectations:6.2f}  (reading {read:.2f})")
    print(f"ratio 1/{by_great_expectations / streamed:.1f}")
    print(f"different verdicts, counts or rows: {different or 'none'}")
    if different:
        sys.exit(1)


if __name__ == "__main__":
    main()
