"""Kills runs with SIGKILL at random moments, gives the same command again, and counts what came of it.

    python benchmarks/kill.py --kills 60

Every other kill takes the run's own process alone, as a machine short of memory does; the rest its whole group. A run
is killed one to three times before it may end. The Prefect server of the store lives on, as it does for a user.
"""

import argparse
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import yaml

REPOSITORY = Path(__file__).parents[1]
sys.path.insert(0, str(REPOSITORY))

from towline.config import Settings  # noqa: E402
from towline.errors import TowlineError  # noqa: E402
from towline.manifest import verify_release  # noqa: E402
from towline.operations import servers  # noqa: E402
from towline.registry.ledger import Ledger  # noqa: E402

MODEL = "bikes"


def write_config(folder: Path, **changes: Any) -> Path:
    """Four weeks of bike rentals and a quick set of candidates."""
    table = pq.read_table(REPOSITORY / "data" / "bike_hourly.parquet").slice(0, 600).to_pandas()
    table.to_csv(folder / "bikes.csv", index=False)
    source = {"source": str(folder / "bikes.csv"), "target": "rentals", "time": "datetime"}
    raw = {
        "name": MODEL,
        "data": {**source, "drop": ["casual", "registered"]},
        "candidates": ["linear", {"estimator": "boosting", "params": {"max_iter": 10}}],
        "cross_validation": {"folds": 2},
        "evaluation": {"resamples": 50},
        "gate": {"champion_margin": 1, "slice_margin": 5},
        **changes,
    }
    path = folder / "bikes.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


class Line:
    """A store, and the towline command on it in processes of its own."""

    def __init__(self, store: Path, config: Path) -> None:
        self.store, self.config = store, config
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        self.environment |= {"TOWLINE_STORE": str(store), "TOWLINE_PROJECT": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
        self.settings = Settings.from_environment(self.environment)
        self.ledger = Ledger(self.settings.ledger_url)
        # a shell that runs us in the background has had SIGINT ignored, which the commands would inherit
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def start(self, *words: str, command: str = "run") -> "subprocess.Popen[str]":
        """A command, by default the run, as a group and a session of its own."""
        given = [str(self.config), *words] if command == "run" else list(words)
        return subprocess.Popen(
            [str(Path(sys.executable).with_name("towline")), command, *given],
            env=self.environment,
            cwd=self.config.parent,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, *words: str, command: str = "run") -> tuple[int, str, str]:
        """A command to its end: exit code, stdout, stderr."""
        process = self.start(*words, command=command)
        out, err = process.communicate(timeout=300)
        return process.returncode, out, err

    def kill(self, when: Callable[[], bool], *words: str, group: bool = True) -> bool:
        """Starts a run and kills it as soon as ``when`` holds; whether it was still going."""
        process = self.start(*words)
        while process.poll() is None and not when():
            time.sleep(0.0005)
        going = process.poll() is None
        if going:
            (os.killpg if group else os.kill)(process.pid, signal.SIGKILL)
        process.communicate()
        return going

    def told(self, text: str) -> Callable[[], bool]:
        """Whether the log has gained a text since now."""
        log = self.store / "logs" / "towline.log"
        begin = log.stat().st_size if log.exists() else 0

        def found() -> bool:
            if not log.exists():
                return False
            with log.open("rb") as file:
                file.seek(begin)
                return text.encode() in file.read()

        return found

    def api(self, what: str, **filters: Any) -> list[dict[str, Any]]:
        """Runs in Prefect, newest first."""
        server = servers.find(self.settings, "prefect")
        if server is None:
            return []
        body = json.dumps({**filters, "limit": 200, "sort": "EXPECTED_START_TIME_DESC"}).encode()
        request = urllib.request.Request(f"{server.url}/api/{what}/filter", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            return list(json.load(answer))

    def tasks(self) -> Counter[str]:
        """How many tasks of the newest flow run ended in which state."""
        newest = {"flow_runs": {"id": {"any_": [self.api("flow_runs")[0]["id"]]}}}
        for _ in range(40):  # the server takes tasks' states in from a queue
            states = Counter(task["state_name"] for task in self.api("task_runs", **newest))
            if states["Completed"] and not states.keys() & {"Running", "Pending"}:
                break
            time.sleep(0.25)
        return states

    def mlflow(self, query: str, *values: str) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(self.store / "mlflow.db", timeout=30)) as connection:
            return connection.execute(query, values).fetchall()

    def processes(self) -> list[str]:
        """What still runs of a run on this store, and testers of any run whose parent is gone."""
        return [told for _, told in _living(str(self.store))]

    def faults(self) -> dict[str, list[str]]:
        """What must not be after a run has ended, by kind."""
        found: dict[str, list[str]] = {
            "second versions": [],
            "champions without a pass": [],
            "aliases that differ": [],
            "runs left open": [],
            "leftovers": [],
            "unreadable files": [],
        }
        rows = self.ledger.history(MODEL)
        self.ledger.verify()
        keys: dict[str, set[int]] = {}
        for row in rows:
            keys.setdefault(row.run_key, set()).add(row.version)
        tag = "select version, value from model_version_tags where key = ? and name = ?"
        numbers = {own: int(number) for own, number in self.mlflow(tag, "towline.version", MODEL)}
        for own, key in self.mlflow(tag, "towline.run_key", MODEL):  # MLflow may have counted further than the ledger
            keys.setdefault(key, set()).add(numbers[own])
        found["second versions"] += [f"{key[:8]}: {versions}" for key, versions in keys.items() if len(versions) > 1]
        for event in ("registered", "promoted", "refused"):
            times = Counter(row.run_key for row in rows if row.event == event)
            found["second versions"] += [f"{key[:8]}: {event} {n} times" for key, n in times.items() if n > 1]
        releases = Counter(path.name.partition("-")[0] for path in (self.store / "releases" / MODEL).iterdir())
        found["second versions"] += [f"{n} releases of {name}" for name, n in releases.items() if n > 1]
        for row in rows:
            if row.event == "promoted" and row.evidence["verdict"] != "pass":
                found["champions without a pass"].append(f"version {row.version}")
            if row.event == "registered":  # it has no release yet
                continue
            try:
                verify_release(self.store / row.release)
            except TowlineError as error:
                found["unreadable files"].append(str(error))
        aliases = {name: numbers[n] for name, n in self.mlflow("select alias, version from registered_model_aliases")}
        ours = {name: version for name, version in self.ledger.aliases(MODEL).items() if version}
        if aliases != ours:
            found["aliases that differ"].append(f"MLflow {aliases}, ledger {ours}")
        open_runs = self.mlflow("select run_uuid, status from runs where status = 'RUNNING'")
        found["runs left open"] += [f"MLflow {run}" for run in open_runs]
        self.tasks()  # waits for the server
        states = {"state": {"type": {"any_": ["RUNNING", "PENDING", "SCHEDULED"]}}}
        found["runs left open"] += [f"flow run {run['name']}" for run in self.api("flow_runs", flow_runs=states)]
        found["runs left open"] += [f"task run {run['name']}" for run in self.api("task_runs", task_runs=states)]
        found["leftovers"] += [str(path) for path in (self.store / "work").glob(".gone-*")]
        found["leftovers"] += [str(path) for path in (self.store / "work").glob("*/verdict-*.json")]
        found["leftovers"] += [str(path) for path in (self.store / "releases").rglob(".draft-*")]
        found["leftovers"] += self.processes()
        found["unreadable files"] += self.unreadable()
        return found

    def unreadable(self) -> list[str]:
        """Files in the store, but for unfinished ones under a name of their own, that cannot be read to the end."""
        deleted = {run for (run,) in self.mlflow("select run_uuid from runs where lifecycle_stage = 'deleted'")}
        found = []
        for path in sorted(self.store.rglob("*")):
            inside = path.relative_to(self.store).parts
            if not path.is_file() or deleted & set(inside) or any(part.startswith(".") for part in inside):
                continue
            if "models" in inside and self._deleted_model(inside):
                continue
            try:
                _read(path)
            except FileNotFoundError:
                continue
            except Exception as error:  # noqa: BLE001 - whatever a reader says of a broken file
                found.append(f"{path.relative_to(self.store)}: {error}")
        return found

    def _deleted_model(self, inside: tuple[str, ...]) -> bool:
        gone = self.mlflow("select model_id from logged_models where lifecycle_stage = 'deleted' or status != 2")
        return bool({model for (model,) in gone} & set(inside))


def _read(path: Path) -> None:
    inside = path.parts
    if "storage" in inside:  # Prefect's records of finished steps
        content = path.read_bytes()
        if not content or content.startswith(b"{"):  # an error it keeps in another format
            json.loads(content)
    elif path.suffix == ".json":
        json.loads(path.read_bytes())
    elif path.suffix in (".yaml", ".yml"):
        yaml.safe_load(path.read_text(encoding="utf-8"))
    elif path.suffix == ".parquet":
        pq.read_table(path)
    elif path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            for name in arrays.files:
                arrays[name]
    elif path.suffix == ".db":
        with closing(sqlite3.connect(path, timeout=30)) as connection:
            if connection.execute("pragma quick_check").fetchone() != ("ok",):
                raise ValueError("damaged")


def _living(store: str) -> Iterator[tuple[int, str]]:
    """Processes of runs on a store: the sidecar by its environment, the tester by its parent."""
    for entry in Path("/proc").iterdir():
        try:
            environment = (entry / "environ").read_bytes().split(b"\0")
            words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            continue
        ours = f"TOWLINE_STORE={store}".encode() in environment and "towline" in words and " server" not in words
        if ours or ("towline.release.smoke_test" in words and parent == 1):
            yield int(entry.name), words.strip()


def wait_for_orphans(line: Line, seconds: float = 30) -> list[str]:
    """What a killed run leaves going ends by itself, for its standard input has ended."""
    deadline = time.monotonic() + seconds
    while (left := line.processes()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return left


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    draw = random.Random(arguments.seed)
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="towline kill ") as folder:
        line = Line(Path(folder) / "store", write_config(Path(folder)))
        try:
            begin = time.monotonic()
            line.run("--set", "seed=100000")
            whole = time.monotonic() - begin
            while counts["kills"] < arguments.kills:
                words = ("--set", f"seed={counts['runs']}")
                for _ in range(min(draw.randint(1, 3), arguments.kills - counts["kills"])):
                    moment = time.monotonic() + draw.uniform(0, whole)
                    group = draw.random() < 0.5
                    counts["kills"] += line.kill(lambda moment=moment: time.monotonic() > moment, *words, group=group)
                    if not group:
                        counts["orphans after 30 s"] += len(wait_for_orphans(line))
                begin = time.monotonic()
                code, _, told = line.run(*words)
                whole = max(whole * 0.9, time.monotonic() - begin)
                counts["runs"] += 1
                if code:
                    counts["reruns that failed"] += 1
                    print(told, file=sys.stderr)
                    continue
                counts["steps skipped on the rerun"] += line.tasks()["Cached"]
                for kind, faults in line.faults().items():
                    counts[kind] += len(faults)
                    for fault in faults:
                        print(f"{kind}: {fault}", file=sys.stderr)
                print(f"{counts['kills']} kills, {counts['runs']} runs", file=sys.stderr, flush=True)
        finally:
            servers.stop(line.settings)
    for name in (
        "kills",
        "runs",
        "steps skipped on the rerun",
        "reruns that failed",
        *line_kinds(),
        "orphans after 30 s",
    ):
        print(f"{name:<28}{counts[name]:>6}")


def line_kinds() -> tuple[str, ...]:
    return (
        "second versions",
        "champions without a pass",
        "aliases that differ",
        "runs left open",
        "leftovers",
        "unreadable files",
    )


if __name__ == "__main__":
    main()
