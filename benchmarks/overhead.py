"""The overhead of Prefect and towline over a plain script with the same fits, expectations and MLflow records.

Usage: overhead.py [--pairs 5] [--samples bike bank]

Both run alternately on this machine in this call: the ratio of each pair counts, not the seconds. The plain script is
plain.py in this folder. towline's first run, which starts a Prefect server, is
reported separately.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
CONFIGS = {"bike": "configs/bike_demand.yaml", "bank": "configs/bank_subscription.yaml"}
TOWLINE = str(Path(sys.executable).with_name("towline"))


def timed(command: list[str], environ: dict[str, str]) -> tuple[float, float]:
    """Wall and CPU seconds of a command and everything it waited for."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, cwd=HERE.parent, env=environ, capture_output=True, text=True, check=False)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def compare(sample: str, pairs: int, folder: Path) -> None:
    store = folder / sample
    environ = {**os.environ, "TOWLINE_STORE": str(store), "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
    run = [TOWLINE, "run", CONFIGS[sample], "--force", "--json"]
    # the plain script uses the suite that towline makes from the config
    timed([TOWLINE, "validate", CONFIGS[sample]], environ)
    (suite,) = store.glob("work/*/suite.json")
    suite = suite.rename(folder / f"{sample}.json")
    try:
        first = timed(run, environ)[0]
        walls: dict[str, list[float]] = {"plain": [], "towline": []}
        cpus: dict[str, list[float]] = {"plain": [], "towline": []}
        plain_first = 0.0
        for number in range(pairs + 1):
            plain_store = folder / f"{sample}-plain"
            plain_store.mkdir(exist_ok=True)
            plain = [sys.executable, str(HERE / "plain.py"), sample, str(suite), str(plain_store)]
            wall, cpu = timed(plain, environ)
            subprocess.run(["rm", "-r", str(plain_store / "plots")], check=True)
            if number == 0:
                plain_first = wall
                continue
            walls["plain"].append(wall)
            cpus["plain"].append(cpu)
            wall, cpu = timed(run, environ)
            walls["towline"].append(wall)
            cpus["towline"].append(cpu)
    finally:
        subprocess.run([TOWLINE, "ui", "--stop"], cwd=HERE.parent, env=environ, capture_output=True, check=False)
    ratios = [ours / theirs for ours, theirs in zip(walls["towline"], walls["plain"], strict=True)]
    busy = [ours / theirs for ours, theirs in zip(cpus["towline"], cpus["plain"], strict=True)]
    middle = {name: statistics.median(values) for name, values in walls.items()}
    print(
        f"| {sample} | {middle['plain']:.1f} | {middle['towline']:.1f} | {statistics.median(ratios):.2f} "
        f"({min(ratios):.2f} to {max(ratios):.2f}) | {statistics.median(busy):.2f} | "
        f"{first:.1f} = {plain_first:.1f} x 1.15 {first - 1.15 * plain_first:+.1f} |",
        flush=True,
    )


def commands(folder: Path) -> None:
    environ = {**os.environ, "TOWLINE_STORE": str(folder / "bike")}
    for words in (["--help"], ["models"], ["history"]):
        taken = sorted(timed([TOWLINE, *words], environ)[0] for _ in range(11))
        print(f"| towline {' '.join(words)} | {taken[0]:.2f} | {taken[5]:.2f} | {taken[-1]:.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--samples", nargs="+", choices=CONFIGS, default=list(CONFIGS))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        print("| sample | plain, s | towline, s | wall ratio (range) | CPU ratio | towline's first run, s |")
        print("|---|---|---|---|---|---|")
        for sample in arguments.samples:
            compare(sample, arguments.pairs, Path(name))
        print("\n| command | fastest, s | median, s | slowest, s |\n|---|---|---|---|")
        commands(Path(name))


if __name__ == "__main__":
    main()
