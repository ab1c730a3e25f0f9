"""Processes of the `towline` command on a store, and checks of the store after a killed run."""

import json
import os
import signal
import sqlite3
import subprocess
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

from tests.support.databases import copy_databases
from tests.support.paths import REPOSITORY, TOWLINE
from towline.config import Settings
from towline.errors import TowlineError
from towline.manifest import verify_release
from towline.operations import servers
from towline.registry.ledger import Ledger

MODEL = "bikes"


def write_bike_config(folder: Path, **changes: Any) -> Path:
    """Writes four weeks of bike rentals and a config with quick candidates.

    Args:
        folder: for both files.
        changes: sections of the config to replace.

    Returns:
        The config's path.
    """
    table = pq.read_table(REPOSITORY / "data" / "bike_hourly.parquet").slice(0, 600).to_pandas()
    table.to_csv(folder / "bikes.csv", index=False)
    source = {"source": str(folder / "bikes.csv"), "target": "rentals", "time": "datetime"}
    raw = {
        "name": MODEL,
        "data": {**source, "drop": ["casual", "registered"]},
        "candidates": [
            "linear",
            {"estimator": "boosting", "params": {"max_iter": 10, "early_stopping": False, "max_leaf_nodes": 31}},
        ],
        "cross_validation": {"folds": 2},
        "evaluation": {"resamples": 50},
        "gate": {"champion_margin": 1, "slice_margin": 5},
        **changes,
    }
    path = folder / "bikes.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


class StoreCommands:
    """Runs the installed `towline` command on a store.

    Args:
        store: the folder of the store.
        config: the pipeline config for `towline run`.
        databases: whether a new store gets empty databases of Prefect and MLflow; else a run creates them.

    Attributes:
        environment: the environment variables of the command.
    """

    def __init__(self, store: Path, config: Path, *, databases: bool = True) -> None:
        self.store, self.config = store, config
        hidden = ("PREFECT_", "COLUMNS")  # pytest-xdist sets the width of a terminal
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
        self.environment |= {"TOWLINE_STORE": str(store), "TOWLINE_PROJECT": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
        self.settings = Settings.from_environment(self.environment)
        if databases and not store.exists():
            copy_databases(self.settings)
        self.ledger = Ledger(self.settings.ledger_url)
        # a shell that runs the tests in the background ignores SIGINT, which the commands would inherit
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def start(self, *words: str, command: str = "run") -> "subprocess.Popen[str]":
        """Starts a command, `towline run` by default, in a new process group and session."""
        arguments = [str(self.config), *words] if command == "run" else list(words)
        return subprocess.Popen(
            [TOWLINE, command, *arguments],
            env=self.environment,
            cwd=self.config.parent,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, *words: str, command: str = "run") -> tuple[int, str, str]:
        """Runs a command to its end and returns exit code, stdout and stderr."""
        process = self.start(*words, command=command)
        out, err = process.communicate(timeout=600)
        return process.returncode, out, err

    def kill_run_when(self, when: Callable[[], bool], *words: str, group: bool = True) -> bool:
        """Starts a run and kills it as soon as ``when()`` is true.

        Returns:
            Whether the run had not ended before.
        """
        process = self.start(*words)
        while process.poll() is None and not when():
            time.sleep(0.0005)
        is_running = process.poll() is None
        if is_running:
            (os.killpg if group else os.kill)(process.pid, signal.SIGKILL)
        process.communicate()
        return is_running

    def log_gained(self, text: str) -> Callable[[], bool]:
        """Returns a function that checks whether a text was added to the store's log after this call."""
        log = self.store / "logs" / "towline.log"
        start = log.stat().st_size if log.exists() else 0

        def has_gained() -> bool:
            if not log.exists():
                return False
            with log.open("rb") as file:
                file.seek(start)
                return text.encode() in file.read()

        return has_gained

    def query_prefect(self, kind: str, **filters: Any) -> list[dict[str, Any]]:
        """Flow runs or task runs in the Prefect server of the store or of the environment, newest first."""
        server = servers.find_server(self.settings, "prefect")
        address = f"{server.url}/api" if server else self.environment.get("PREFECT_API_URL")
        if address is None:
            return []
        body = json.dumps({**filters, "limit": 200, "sort": "EXPECTED_START_TIME_DESC"}).encode()
        request = urllib.request.Request(f"{address}/{kind}/filter", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as response:
            return list(json.load(response))

    def count_task_states(self) -> Counter[str]:
        """Counts the tasks of the newest flow run by state."""
        newest = {"flow_runs": {"id": {"any_": [self.query_prefect("flow_runs")[0]["id"]]}}}
        for _ in range(40):  # the server reads states of tasks from a queue
            states = Counter(task["state_name"] for task in self.query_prefect("task_runs", **newest))
            if states["Completed"] and not states.keys() & {"Running", "Pending"}:
                break
            time.sleep(0.25)
        return states

    def query_mlflow(self, query: str, *values: str) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(self.store / "mlflow.db", timeout=30)) as connection:
            return connection.execute(query, values).fetchall()

    def running_processes(self) -> list[str]:
        """Command lines of remaining processes of runs on this store, and of smoke tests without a parent."""
        return [words for _, words in _find_processes(str(self.store))]

    def find_faults(self) -> dict[str, list[str]]:
        """Inconsistencies after a run has ended, by kind."""
        faults: dict[str, list[str]] = {
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
        numbers = {run_id: int(number) for run_id, number in self.query_mlflow(tag, "towline.version", MODEL)}
        for run_id, key in self.query_mlflow(
            tag, "towline.run_key", MODEL
        ):  # MLflow may have higher numbers than the ledger
            keys.setdefault(key, set()).add(numbers[run_id])
        faults["second versions"] += [f"{key[:8]}: {versions}" for key, versions in keys.items() if len(versions) > 1]
        for event in ("registered", "promoted", "refused"):
            times = Counter(row.run_key for row in rows if row.event == event)
            faults["second versions"] += [f"{key[:8]}: {event} {n} times" for key, n in times.items() if n > 1]
        releases = Counter(path.name.partition("-")[0] for path in (self.store / "releases" / MODEL).iterdir())
        faults["second versions"] += [f"{n} releases of {name}" for name, n in releases.items() if n > 1]
        for row in rows:
            if row.event == "promoted" and row.evidence["verdict"] != "pass":
                faults["champions without a pass"].append(f"version {row.version}")
            if row.event == "registered":  # it has no release yet
                continue
            try:
                verify_release(self.store / row.release)
            except TowlineError as error:
                faults["unreadable files"].append(str(error))
        aliases = {
            name: numbers[n] for name, n in self.query_mlflow("select alias, version from registered_model_aliases")
        }
        ours = {name: version for name, version in self.ledger.aliases(MODEL).items() if version}
        if aliases != ours:
            faults["aliases that differ"].append(f"MLflow {aliases}, ledger {ours}")
        open_runs = self.query_mlflow("select run_uuid, status from runs where status = 'RUNNING'")
        faults["runs left open"] += [f"MLflow {run}" for run in open_runs]
        self.count_task_states()  # waits for the server
        states = {"state": {"type": {"any_": ["RUNNING", "PENDING", "SCHEDULED"]}}}
        faults["runs left open"] += [
            f"flow run {run['name']}" for run in self.query_prefect("flow_runs", flow_runs=states)
        ]
        faults["runs left open"] += [
            f"task run {run['name']}" for run in self.query_prefect("task_runs", task_runs=states)
        ]
        faults["leftovers"] += [str(path) for path in (self.store / "work").glob(".gone-*")]
        faults["leftovers"] += [str(path) for path in (self.store / "work").glob("*/verdict-*.json")]
        faults["leftovers"] += [str(path) for path in (self.store / "releases").rglob(".draft-*")]
        faults["leftovers"] += self.running_processes()
        faults["unreadable files"] += self.find_unreadable_files()
        return faults

    def find_unreadable_files(self) -> list[str]:
        """Files of the store that cannot be read to the end, without unfinished files under a temporary name."""
        deleted = {run for (run,) in self.query_mlflow("select run_uuid from runs where lifecycle_stage = 'deleted'")}
        unreadable = []
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
            except Exception as error:
                unreadable.append(f"{path.relative_to(self.store)}: {error}")
        return unreadable

    def _deleted_model(self, inside: tuple[str, ...]) -> bool:
        deleted = self.query_mlflow(
            "select model_id from logged_models where lifecycle_stage = 'deleted' or status != 2"
        )
        return bool({model for (model,) in deleted} & set(inside))


def wait_for_orphans(commands: StoreCommands) -> list[str]:
    """Waits up to two minutes until the processes of a killed run have ended; returns those that are still running."""
    deadline = time.monotonic() + 120
    while (orphans := commands.running_processes()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return orphans


def _read(path: Path) -> None:
    inside = path.parts
    if "storage" in inside:  # Prefect's records of finished steps
        content = path.read_bytes()
        if not content or content.startswith(b"{"):  # an error is stored in another format
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


def _find_processes(store: str) -> Iterator[tuple[int, str]]:
    """Processes of runs on a store: the helper process by its environment, the smoke test by its parent."""
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
