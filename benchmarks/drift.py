"""Drift detection: false alarms, detected changes, and the cost of a window.

Usage: drift.py [--quick] [--only alarms year power cost real]

Ten columns: five of numbers (normal, skewed, heavy-tailed, counts, whole numbers), a flag, three categories (3, 10 and
60 levels) and the model's prediction; some with nulls. Each comes from a separate normal latent variable, so that
rows can be drawn independently, in clusters (20 rows of one entity, intra-class correlation 0.2) or by day (a season of
0.7 sd, and 0.3 sd of weather that lasts for days). A release is the reference alone: no model is trained.

Thresholds depend on the number of rows and the reference only; they are computed once for each.
"""

import argparse
import datetime as dt
import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import pyarrow as pa  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402

from benchmarks.simulated_data import DAYS, ROWS, Years, alone, clustered, columns, release  # noqa: E402

BUDGET = 4.0
SIZES = (50, 200, 1_000, 10_000, 100_000)
KINDS = ("alone", "clustered", "daily")


def cache_thresholds() -> None:
    """Computes the thresholds once for each column and number of rows, not for each number of values."""
    from towline.monitoring.drift.thresholds import WindowSimulation

    compute, known = WindowSimulation.thresholds, {}

    def thresholds(simulation: Any, column: Any, values: int, rows: int) -> Any:
        profile = column.profile
        key = (id(column.blocks), profile["count"], profile.get("mean"), column.name, rows, simulation)
        if key not in known:
            known[key] = compute(simulation, column, values, rows), column.blocks
        return known[key][0]

    WindowSimulation.thresholds = thresholds


def check_window(
    made: Path,
    kind: str,
    size: int,
    years: Years,
    day: int,
    rng: np.random.Generator,
    budget: float = BUDGET,
    spoilt: str = "",
) -> Any:
    from towline.config import DriftConfig
    from towline.monitoring.drift import detector

    latent = years.rows(day, size, rng) if kind == "daily" else (clustered if kind == "clustered" else alone)(size, rng)
    at = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    table = columns(latent, rng, spoilt)
    return detector.detect(made, [table], DriftConfig(false_alarms_per_year=budget), start=at,
                        end=at + dt.timedelta(days=1))  # fmt: skip


def cache_reference() -> None:
    """Reads the reference once per release, not once per window."""
    from towline.monitoring.drift import detector

    detector.read_reference = functools.lru_cache(maxsize=2)(detector.read_reference)


def alarms(quick: bool, seed: int = 1) -> None:
    """Share of windows with a false alarm, by the number of rows."""
    print(f"\nNo drift: share of windows with an alarm; budget {BUDGET:g} a year = {BUDGET / 365:.2%} of windows")
    print(f"{'rows':>8} " + " ".join(f"{kind:>22}" for kind in KINDS))
    references, windows = (4, 25) if quick else (20, 100)
    for size in SIZES:
        several = windows if size < 100_000 else max(5, windows // 5)
        line = []
        for kind in KINDS:
            rng, bad, why = np.random.default_rng([seed, size]), 0, Counter[str]()
            for _ in range(references):
                with tempfile.TemporaryDirectory() as folder:
                    made, years = release(Path(folder), kind, rng)
                    for _ in range(several):
                        result = check_window(made, kind, size, years, DAYS + int(rng.integers(0, 365)), rng)
                        bad += result.state != "ok"
                        why.update(f"{f.column} {f.name}" for f in result.checks if f.alarm)
            count = references * several
            line.append(f"{bad / count:7.2%} ({bad} of {count:,})")
            if why:
                print(f"#{size:>8} {kind}: {why.most_common(4)}", file=sys.stderr)
        print(f"{size:8,} " + " ".join(f"{text:>22}" for text in line), flush=True)


def year(quick: bool, seed: int = 2) -> None:
    """Whole years of windows of 1,000 rows."""
    years_of, rows = (2, 200) if quick else (10, 1_000)
    print(f"\nNo drift: alarms a year, {years_of} years of 365 windows of {rows:,} rows, by budget")
    for kind in KINDS:
        for budget in (4.0, 12.0):
            rng, alarms_per_year = np.random.default_rng([seed, int(budget)]), []
            for _ in range(years_of):
                with tempfile.TemporaryDirectory() as folder:
                    made, years = release(Path(folder), kind, rng)
                    states = [
                        check_window(made, kind, rows, years, DAYS + day, rng, budget).state for day in range(365)
                    ]
                alarms_per_year.append(sum(state != "ok" for state in states))
            print(
                f"{kind:>10} budget {budget:4g}: {np.mean(alarms_per_year):5.2f} (years: {sorted(alarms_per_year)})",
                flush=True,
            )


CHANGES = (
    "shift normal", "shift skewed", "shift whole", "shift prediction", "nulls normal", "nulls skewed", "nulls flag",
    "share three 0", "share three 2", "share ten 0", "share ten 4", "share sixty 0",
)  # fmt: skip


def power(quick: bool, seed: int = 3) -> None:
    """One column changes; the window is detected if this column has an alarm."""
    print("\nOne column changed: share of windows detected (independent rows)")
    references, windows = (2, 20) if quick else (10, 40)
    sizes = (1_000, 10_000)
    print(f"{'':22} " + " ".join(f"{size:>8,}" for size in sizes))
    for change in CHANGES:
        line = []
        for size in sizes:
            rng, hits = np.random.default_rng([seed, size]), 0
            for _ in range(references):
                with tempfile.TemporaryDirectory() as folder:
                    made, years = release(Path(folder), "alone", rng)
                    for _ in range(windows):
                        result = check_window(made, "alone", size, years, 0, rng, spoilt=change)
                        hits += any(f.alarm and f.column == change.split()[1] for f in result.checks)
            line.append(f"{hits / references / windows:8.1%}")
        print(f"{change:22} " + " ".join(line), flush=True)


# not ru_maxrss: that of a child begins with its parent's
PEAK = """
class Peak:
    def __str__(self):
        with open("/proc/self/status") as file:
            return str(next(int(line.split()[1]) // 1024 for line in file if line.startswith("VmHWM")))
peak = Peak()
"""
BARE = (
    PEAK
    + """
import sys, time, pyarrow.parquet as pq
begun = time.process_time()
rows = sum(batch.num_rows for batch in pq.ParquetFile(sys.argv[1]).iter_batches(131_072))
print(time.process_time() - begun, time.process_time(), peak, rows)
"""
)
OURS = (
    PEAK
    + """
import sys, time
from pathlib import Path
from towline.config import DriftConfig
from towline.data.schema.contract import Contract
from towline.monitoring.drift.current_rows import read_table
from towline.monitoring.drift.detector import detect
begun = time.process_time()
contract = Contract.model_validate_json(Path(sys.argv[2], "contract.json").read_bytes())
result = detect(Path(sys.argv[2]), read_table(Path(sys.argv[1]), contract), DriftConfig())
assert result.state == "ok", result
assert "evidently" not in sys.modules
print(time.process_time() - begun, time.process_time(), peak,
      result.rows)
"""
)
THEIRS = (
    PEAK
    + """
import sys, time
import pandas as pd
from evidently import DataDefinition, Dataset, Report
from evidently.presets import DataDriftPreset
current, reference = (pd.read_parquet(path) for path in sys.argv[1:3])
for frame in (current, reference):
    for name in frame.columns:
        if frame[name].dtype.name == "category":
            frame[name] = frame[name].astype(object)
begun = time.process_time()
Report([DataDriftPreset()]).run(current, reference)
print(time.process_time() - begun, time.process_time(), peak,
      len(current))
"""
)


def measured(code: str, *words: object) -> tuple[float, float, int, float]:
    """CPU seconds of the work, of the whole process, peak MiB and seconds."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "DO_NOT_TRACK": "true"}
    begun = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True, env=environment, check=False
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    cpu, whole, peak, _ = done.stdout.split()[-4:]
    return float(cpu), float(whole), int(peak), time.perf_counter() - begun


def batches(rows: int, rng: np.random.Generator) -> Iterator[pa.Table]:
    for start in range(0, rows, 500_000):
        yield columns(alone(min(500_000, rows - start), rng), rng)


def decode_categories(part: pa.Table) -> pa.Table:
    """Categories as strings, which is how pandas writes them."""
    names = part.column_names
    return pa.table({n: part[n].cast(pa.string()) if pa.types.is_dictionary(part[n].type) else part[n] for n in names})


def cost(quick: bool, seed: int = 4) -> None:
    """A window in its own process, compared with reading the same file and with Evidently's preset."""
    rng, tries = np.random.default_rng(seed), 1 if quick else 3
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made, _ = release(folder, "alone", rng)
        print(f"\nCost, the least of {tries}: CPU s of the work | of the whole process | peak MiB | s in all")
        for rows in (1_000_000,) if quick else (1_000_000, 10_000_000):
            path = folder / f"{rows}.parquet"
            with pq.ParquetWriter(path, decode_categories(columns(alone(1, rng), rng)).schema) as writer:
                for part in batches(rows, rng):
                    writer.write_table(decode_categories(part), row_group_size=131_072)
            kinds = {"bare read": (BARE, path), "detect": (OURS, path, made)}
            if rows == 1_000_000:
                pq.write_table(columns(alone(ROWS, rng), rng), folder / "reference.parquet")
                kinds["Evidently preset"] = (THEIRS, path, folder / "reference.parquet")
            taken = {}
            for kind, (code, *words) in kinds.items():
                several = 1 if "Evidently" in kind else tries
                taken[kind] = min(measured(code, *words) for _ in range(several))
                print(f"{rows:12,} {kind:17}" + " | ".join(f"{value:8.2f}" for value in taken[kind]), flush=True)
            print(f"{rows:12,} detect / bare read {taken['detect'][0] / taken['bare read'][0]:.2f}")
            if "Evidently preset" in taken:
                print(f"{rows:12,} Evidently / detect {taken['Evidently preset'][0] / taken['detect'][0]:.0f}")


def real(_: bool) -> None:
    """Windows of the sample tables after half a year of training: which have an alarm."""
    import pandas as pd

    from towline.config import DriftConfig, PipelineConfig
    from towline.data import blocks
    from towline.data.profile import profile_features
    from towline.data.schema.inference import infer_contract
    from towline.monitoring.drift.detector import detect

    for name, source, time_of, target, drop, months in (
        ("bike", "bike_hourly", "datetime", "rentals", ["casual", "registered"], 6),
        ("bike", "bike_hourly", "datetime", "rentals", ["casual", "registered"], 12),
        ("bank", "bank_marketing", "date", "subscribed", ["id", "duration"], 6),
    ):
        rows = pd.read_parquet(ROOT / f"data/{source}.parquet").drop(columns=drop)
        times = pd.to_datetime(rows[time_of])
        cut = times.min().normalize() + pd.DateOffset(months=months)
        then = rows[times < cut].reset_index(drop=True)
        config = PipelineConfig.model_validate(
            {"name": "x", "data": {"source": "t", "target": target, "time": time_of}}
        )
        contract = infer_contract(then, config)
        features = contract.features(then)
        facts = profile_features(features, contract)
        by, unit = blocks.assign_blocks(pd.to_datetime(then[time_of]), None, len(features.columns))
        with tempfile.TemporaryDirectory() as folder:
            made = Path(folder) / "v1-0123456789ab"
            made.mkdir()
            (made / "contract.json").write_text(contract.model_dump_json())
            (made / "profile.json").write_text(json.dumps(facts))
            parts = {"inputs": blocks.count_blocks(features, facts["columns"], by, unit)}
            (made / "blocks.npz").write_bytes(blocks.serialize_blocks(parts))
            print(f"\n{name}, {months} months of training until {cut:%Y-%m-%d} ({len(then):,} rows), windows of a week")
            later = rows[times >= cut]
            for start in pd.date_range(cut, times.max(), freq="7D")[:26]:
                end = start + pd.Timedelta(days=7)
                week = later[(times[later.index] >= start) & (times[later.index] < end)]
                table = pa.Table.from_pandas(week.drop(columns=target), preserve_index=False)
                result = detect(made, [table], DriftConfig(), start=start.to_pydatetime(), end=end.to_pydatetime())
                print(f"{start:%Y-%m-%d} {len(week):6,} rows {result.state:8} {result.reason[:110]}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parts = {"alarms": alarms, "year": year, "power": power, "cost": cost, "real": real}
    parser.add_argument("--only", nargs="+", choices=parts, default=list(parts))
    chosen = parser.parse_args()
    cache_thresholds()
    cache_reference()
    for name in chosen.only:
        parts[name](chosen.quick)


if __name__ == "__main__":
    main()
