"""Peak memory of the steps before and after training on a table that is larger than memory.

Usage: out_of_core.py [--flow] [--rows 20_000_000] [--columns 12] [--limit-mb 4096] [--folder DIR]
                      [--source parquet|csv]

Writes a table, then runs load, validate, split, fit (linear), evaluate and refit, each in a separate process whose
address space is limited, and prints the time and the largest resident memory of each.

With --flow it runs `towline init` and `towline run` with the config that init writes, and `towline data profile`. It
prints for each step the seconds, the seconds of CPU, and the largest memory (PSS, measured every half second) of all
processes together: the command, its helper process, the processes of its fits, and Prefect's server. If it may make a
control group, the kernel limits the memory of all of them to --limit-mb, and ends the run if they need more.
"""

import argparse
import contextlib
import datetime as dt
import json
import multiprocessing
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
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
    from towline.data.source.sources import load_dataset

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
    return {"note": f"{summary.describe_training_rows()}, {summary.holdout:,} held out"}


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


class ProcessTree:
    """A command with all processes that it starts: their memory is limited and measured.

    Args:
        command: what to run.
        project: its working folder.
        limit: bytes of all processes together; 0: no limit.
    """

    def __init__(self, command: list[str], project: Path, limit: int) -> None:
        self.group = _make_control_group(limit) if limit else None
        self.peak, self.costs = 0.0, dict[str, dict[str, Any]]()
        self._started = dict[int, psutil.Process]()
        self._project = project
        environment = os.environ | {"PREFECT_HOME": str(project / ".prefect"), "PYTHONUNBUFFERED": "1"}
        if self.group:  # a shell enters the group, and becomes the command
            command = ["sh", "-c", 'echo $$ > "$0"; exec "$@"', str(self.group / "cgroup.procs"), *command]
        self.process = subprocess.Popen(
            command,
            cwd=project,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        threading.Thread(target=self._watch, daemon=True).start()

    def take_peak(self) -> float:
        """The largest memory (MB) since the last call."""
        self._measure()
        peak, self.peak = self.peak, 0.0
        return peak

    def end(self) -> int:
        """Ends processes that are left, and returns the exit code."""
        code = self.process.wait()
        for process in self._started.values():
            with contextlib.suppress(psutil.Error):
                process.send_signal(signal.SIGTERM)
        psutil.wait_procs(list(self._started.values()), timeout=30)
        if self.group:
            with contextlib.suppress(OSError):
                self.group.rmdir()
        return code

    def _watch(self) -> None:
        while self.process.poll() is None:
            self._measure()
            time.sleep(0.5)

    def _measure(self) -> None:
        with contextlib.suppress(psutil.Error):
            root = psutil.Process(self.process.pid)
            self._started |= {process.pid: process for process in (root, *root.children(recursive=True))}
        total = 0
        for process in list(self._started.values()):
            with contextlib.suppress(psutil.Error):
                total += process.memory_full_info().pss
        self.peak = max(self.peak, total / 2**20)
        for file in self._project.glob("mlruns/work/*/costs-*.json"):  # the workspace is removed at the end
            with contextlib.suppress(OSError, ValueError):
                cost = json.loads(file.read_text())
                self.costs[cost["step"]] = cost


def _make_control_group(limit: int) -> Path | None:
    """A control group (v1 or v2) whose memory is limited; None if this user may not create one."""
    for root, setting in (("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")):
        group = Path(root, f"out-of-core-{os.getpid()}")
        try:
            group.mkdir()
            (group / setting).write_text(str(limit))
        except OSError:
            with contextlib.suppress(OSError):
                group.rmdir()
        else:
            return group
    return None


def run_flow(source: Path, project: Path, limit: int) -> None:
    """Runs ``towline init``, ``towline run`` and ``towline data profile``; prints time and memory of each step."""
    project.mkdir()
    towline = str(Path(sys.executable).with_name("towline"))
    profile = [towline, "data", "profile", str(source), "--target", "bought"]
    commands = {
        "init": [towline, "init", str(source), "--target", "bought", "--yes"],
        "run": [towline, "run", f"configs/{source.stem}.yaml"],
        "profile": profile,
    }
    peaks = []
    for name, command in commands.items():
        started = time.perf_counter()
        tree = ProcessTree(command, project, limit)
        if name == "init":
            print(f"limit of all processes: {limit // 2**20:,} MB, {'by the kernel' if tree.group else 'not enforced'}")
        lines = list[str]()
        for line in tree.process.stdout or ():
            lines.append(line)
            if step := re.match(r"✓ (.+?) {2,}([\d.]+) s\s*(.*)", line):
                peaks.append(tree.take_peak())
                cpu = tree.costs.get(step[1], {}).get("cpu_s")
                cost = "        " if cpu is None else f"{cpu:8.1f}"
                print(f"{step[1]:26} {step[2]:>7} s {cost} CPU s {peaks[-1]:7,.0f} MB  {step[3]}", flush=True)
        peaks.append(tree.take_peak())
        if code := tree.end():
            sys.exit(f"towline {name} ended with {code}:\n{''.join(lines[-15:])}")
        seconds = time.perf_counter() - started
        print(f"towline {name}: {seconds:.0f} s; {peaks[-1]:,.0f} MB since its last step", flush=True)
    print(f"largest memory of all processes: {max(peaks):,.0f} MB")
    if limit and max(peaks) > limit / 2**20:
        sys.exit(f"above {limit // 2**20:,} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000_000)
    parser.add_argument("--columns", type=int, default=12)
    parser.add_argument("--limit-mb", type=int, default=4096, help="0: no limit")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--source", choices=("parquet", "csv"), default="parquet")
    parser.add_argument("--flow", action="store_true", help="run towline init and towline run")
    arguments = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder, source = Path(name), Path(name) / f"table.{arguments.source}"
        write_table(source, arguments.rows, arguments.columns)
        print(
            f"{arguments.rows:,} × {arguments.columns}, {source.stat().st_size / 2**20:,.0f} MB of {arguments.source}"
        )
        if arguments.flow:
            run_flow(source, folder / "project", arguments.limit_mb * 2**20)
            return
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
