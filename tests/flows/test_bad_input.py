"""Invalid input to the commands: one short error with problem, place and remedy, and unchanged stores."""

import errno
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from tests.support.checks import at_least_one
from tests.support.commands import CommandResult
from tests.support.paths import REPOSITORY
from towline import helper_process
from towline.config import Settings, read_config
from towline.errors import TransientError
from towline.operations import servers
from towline.orchestration import flow_runner
from towline.registry.mlflow import client

Command = Callable[..., CommandResult]
Source = bytes | pd.DataFrame | None


@pytest.fixture
def databases() -> None:
    """None: these tests check what an error leaves in a new store."""


def taxis(rows: int = 150) -> pd.DataFrame:
    rng = np.random.default_rng(7)
    miles = rng.gamma(2.0, 2.0, rows).round(2)
    time_of_day = rng.choice(["day", "night"], rows)
    price = (3 + 2.5 * miles + 2 * (time_of_day == "night") + rng.normal(0, 0.5, rows)).round(2)
    start = pd.Timestamp("2024-03-01") + pd.to_timedelta(np.arange(rows), unit="h")
    return pd.DataFrame({"start": start, "miles": miles, "time_of_day": time_of_day, "price": price})


def paid(table: pd.DataFrame) -> pd.DataFrame:
    """The same rows with a class to predict, alternately yes and no."""
    return table.drop(columns="price").assign(tip=np.where(np.arange(len(table)) % 2, "yes", "no"))


RAW: dict[str, Any] = {
    "name": "taxis",
    "data": {"source": "taxis.csv", "target": "price", "time": "start"},
    "candidates": ["linear"],
    "cross_validation": {"folds": 3},
}
TIP: dict[str, Any] = {**RAW, "data": {"source": "taxis.csv", "target": "tip", "time": "start"}}


def csv(table: pd.DataFrame, **options: Any) -> bytes:
    return table.to_csv(index=False, **options).encode()


def _where(column: str, value: object, row: int = 12) -> pd.DataFrame:
    table = taxis().astype({column: object})
    table.loc[row - 1, column] = value
    return table


BAD: dict[str, tuple[Source, dict[str, Any] | str, int, list[str]]] = {
    "missing file": (None, RAW, 2, ["no such file", "taxis.csv", "data.source"]),
    "empty file": (b"", RAW, 2, ["the file is empty", "taxis.csv", "header"]),
    "header only": (b"start,miles,time_of_day,price\n", RAW, 2, ["a header, but no row", "taxis.csv"]),
    "wrong separator": (csv(taxis(), sep=";"), RAW, 2, ["';'", "taxis.csv:1", "set data.separator to ';'"]),
    "not UTF-8": (
        csv(taxis()).replace(b"time_of_day,", b"\xed\xee\xf7\xfc,", 1),  # text in Windows-1251
        RAW,
        2,
        ["0xed", "taxis.csv:1", "iconv"],
    ),
    "target missing": (
        taxis().rename(columns={"price": "prices"}), RAW, 2,
        ["no column 'price'", "data.target", "did you mean prices?"],
    ),
    "target all null": (taxis().assign(price=None), RAW, 2, ["price", "150 rows", "data.target"]),
    "target constant": (taxis().assign(price=9.5), RAW, 3, ["price", "two different values", "observed 1"]),
    "class constant": (paid(taxis()).assign(tip="yes"), TIP, 3, ["tip", "two different values", "observed 1"]),
    "one class in a fold": (
        paid(taxis()).assign(tip=["yes"] * 75 + ["no", "yes"] * 37 + ["no"]), TIP, 3,
        ["1 of 3 folds have training rows of two classes", "remedy: set split.by: random, lower cross_validation"],
    ),
    "column all null": (taxis().assign(miles=None), RAW, 3, ["miles", "data.drop"]),
    "numbers that are too large": (_where("miles", 1e200), RAW, 3, ["miles", "row 12: 1e+200", "null"]),
    "many rows without a target": (
        taxis().assign(price=np.where(np.arange(150) < 60, np.nan, 9.5)), RAW, 2,
        ["40.0% of the rows have no target", "data.max_unlabelled: 0.4"],
    ),
    "dates that do not parse": (
        _where("start", "1 March, noon"), RAW, 2, ["'start'", "row 12: '1 March, noon'", "2026-01-31"],
    ),
    "one row": (taxis(1), RAW, 3, ["at least 20 rows", "observed 1"]),
    "fewer rows than folds": (
        taxis(6), {**RAW, "cross_validation": {"folds": 8}, "validation": {"min_rows": 2}}, 3,
        ["at least 12 rows for 8 folds and a holdout", "observed 6"],
    ),
    "unknown config key": (
        taxis(), {**RAW, "cross_validaton": {}}, 2, ["cross_validaton: unknown key", "did you mean cross_validation?"],
    ),
    "gate metric of another task": (
        taxis(), {**RAW, "task": "binary", "gate": {"max": {"mae": 3}}}, 2,
        ["mae is not a metric of this task", "gate.max.mae", "use one of roc_auc"],
    ),
    "bad YAML": (
        taxis(), "name: taxis\ndata:\n  source: [taxis.csv\n  target: price\n", 2, ["line 3", "taxis.yaml:4"],
    ),
    "a program as estimator": (
        taxis(), {**RAW, "candidates": ["linear", {"estimator": "subprocess.Popen", "params": {"args": ["true"]}}]}, 2,
        ["subprocess.Popen may not be called: it is part of Python", "candidates.Popen.estimator",
         "name a class of scikit-learn"],
    ),
    "unknown estimator": (
        taxis(), {**RAW, "candidates": ["linear", "boostin"]}, 2,
        ["unknown estimator 'boostin'", "did you mean boosting?"],
    ),
    "import path that fails": (
        taxis(), {**RAW, "candidates": ["linear", "sklearn.svn.SVR"]}, 2,
        ["cannot import 'sklearn.svn'", "SVR.estimator"],
    ),
    "no such class": (
        taxis(), {**RAW, "candidates": ["sklearn.svm.SVRR"]}, 2, ["no class 'SVRR'", "did you mean SVR?"],
    ),
}  # fmt: skip


@pytest.fixture
def make(tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Writes a table and a config; returns the config's path."""

    def made(source: Source, raw: dict[str, Any] | str) -> Path:
        if source is not None:
            content = source if isinstance(source, bytes) else csv(source)
            (tmp_path / "taxis.csv").write_bytes(content)
        if isinstance(raw, dict):
            raw = yaml.safe_dump({**raw, "data": {**raw["data"], "source": str(tmp_path / "taxis.csv")}})
        (tmp_path / "taxis.yaml").write_text(raw)
        return tmp_path / "taxis.yaml"

    return made


def error_lines(result: CommandResult) -> list[str]:
    """The lines of the error on the screen, without the steps before it."""
    lines = result.err.splitlines()
    return lines[next(place for place, line in enumerate(lines) if line.startswith("error T")) :]


@pytest.mark.parametrize("case", BAD)
def test_invalid_input_gives_one_screen(case: str, towline: Command, make: Callable[..., Path], store: Path) -> None:
    """Exit code, message and remedy as documented; no traceback, no ledger, no release, no MLflow store."""
    source, raw, code, words = BAD[case]
    result = towline("run", make(source, raw), "--json")
    print(result.err)
    assert result.code == code, result.err
    lines = error_lines(result)
    assert len(lines) <= 25
    assert max(map(len, lines)) < 400
    for word in at_least_one(words):
        assert word in "\n".join(lines)
    assert "Traceback" not in result.err
    error = result.json
    assert error["what"]
    assert error["where"]
    assert error["remedy"]
    assert {2: error["code"] in ("T100", "T200", "T400"), 3: error["code"] == "T300"}[code]
    assert not [name for name in ("ledger.db", "mlflow.db", "releases", "artifacts") if (store / name).exists()]


@pytest.mark.parametrize("case", ["unknown estimator", "import path that fails", "gate metric of another task"])
@pytest.mark.parametrize("name", ["run", "validate"])
def test_an_invalid_config_is_reported_before_anything_runs(
    name: str, case: str, towline: Command, make: Callable[..., Path], store: Path, prefect: str
) -> None:
    """Neither command loads the table, which does not exist, and Prefect has no failed run."""
    _, raw, code, words = BAD[case]
    before = _count_runs(prefect)
    result = towline(name, make(None, raw), "--json")
    assert result.code == code, result.err
    for word in at_least_one(words):
        assert word in "\n".join(error_lines(result))
    assert _count_runs(prefect) == before
    assert not (store / "datasets").exists()


def _count_runs(prefect: str) -> int:
    request = urllib.request.Request(f"{prefect}/api/flow_runs/count", b"{}", {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as response:
        return int(json.load(response))


def test_a_second_run_of_a_config_starts_no_process(
    command: Command, make: Callable[..., Path], store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While one process has the lock, another starts neither a helper nor a server; another config may run."""
    started: list[str] = []

    def start(what: str) -> Callable[..., None]:
        def stop(*_: object) -> None:
            started.append(what)
            raise TransientError("started")

        return stop

    monkeypatch.setattr(helper_process, "start", start("helper process"))
    monkeypatch.setattr(servers, "start", start("server"))
    config = make(taxis(), RAW)
    settings = Settings.from_environment()
    with flow_runner._exclusive_run(settings, read_config(config), None):
        result = command("run", config, "--json")
        assert (result.code, result.json["code"]) == (5, "T900")
        assert "under way in another process" in result.json["what"]
        assert "run the same command again" in result.json["remedy"]
        assert started == []
        command("run", config, "--set", "seed=7")
        assert len(started) == 1
    command("run", config)
    assert len(started) == 2


def test_the_remedy_for_a_class_that_occurs_late_works(towline: Command, make: Callable[..., Path]) -> None:
    """A fold by time lacks a class; with the setting of the remedy the table is trained on."""
    config = make(*BAD["one class in a fold"][:2])
    result = towline("run", config, "--json")
    key, value = re.match(r"set ([\w.]+): (\w+),", result.json["remedy"]).groups()
    result = towline("run", config, "--set", f"{key}={value}", "--json")
    assert result.code in (0, 4), result.err
    assert result.json["split"]["by"] == "random"


@contextmanager
def full_disk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A folder on a disk that is too small for a release: a real disk if mounting is allowed, else a simulated one."""
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0 if os.geteuid() == 0 else False
    replace = os.replace

    def refused(source: Any, target: Any) -> None:
        if folder in Path(target).parents and Path(target).name == "model.skops":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
        replace(source, target)

    if not mounted:
        monkeypatch.setattr(os, "replace", refused)
    try:
        yield
        assert not [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    finally:
        monkeypatch.setattr(os, "replace", replace)
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)


def versions(towline: Command) -> list[tuple[str, int]]:
    return [(row["event"], row["version"]) for row in towline("history", "--json").json]


def test_a_full_disk_leaves_no_incomplete_file(
    towline: Command, make: Callable[..., Path], store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Packaging on a full disk ends with exit code 5 and no file; with free space the same command succeeds."""
    config = make(taxis(), RAW)
    with full_disk(store / "releases", monkeypatch):
        result = towline("run", config, "--json")
        print(result.err)
        assert result.code == 5, result.err
        assert (result.json["code"], result.json["where"].startswith(str(store))) == ("T900", True)
        assert "No space left" in result.json["what"]
        assert "free some disk space" in result.json["remedy"]
        assert versions(towline) == [("registered", 1)]  # it has a number but no verdict
    result = towline("run", config, "--json")
    assert result.code == 0, result.err
    assert versions(towline) == [("promoted", 1), ("registered", 1)]


def test_a_locked_mlflow_store(
    towline: Command, make: Callable[..., Path], store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While another process locks the store: exit code 5 within a minute. Afterwards there is version 1 only."""
    monkeypatch.setattr(client, "_TIMEOUT_S", 1)  # seconds for each of three attempts
    config = make(taxis(), RAW)
    store.mkdir()
    with closing(sqlite3.connect(store / "mlflow.db", isolation_level=None)) as other:
        other.execute("CREATE TABLE held (x)")
        other.execute("BEGIN EXCLUSIVE")
        begin = time.monotonic()
        result = towline("run", config, "--json")
        print(result.err, time.monotonic() - begin)
        assert time.monotonic() - begin < 60
        assert result.code == 5, result.err
        assert result.json["code"] == "T900"
        assert "locked" in result.json["what"]
        assert "mlflow.db" in result.json["where"]
        assert "run the same command again" in result.json["remedy"]
        assert versions(towline) == [("registered", 1)]  # it has a number but no verdict
    result = towline("run", config, "--json")
    assert result.code == 0, result.err
    from mlflow import MlflowClient

    uri = f"sqlite:///{store}/mlflow.db"
    assert [version.version for version in MlflowClient(uri, uri).search_model_versions()] == [1]


def test_a_file_at_the_path_of_the_store(towline: Command, make: Callable[..., Path], store: Path) -> None:
    """Exit code 5, and the file is unchanged."""
    store.write_text("mine")
    result = towline("run", make(taxis(), RAW), "--json")
    print(result.err)
    assert result.code == 5
    assert "TOWLINE_STORE" in result.json["remedy"]
    assert store.read_text() == "mine"


def test_a_store_without_write_permission(make: Callable[..., Path], store: Path) -> None:
    """Exit code 5 with the remedy, and nothing is written."""
    config = make(taxis(), RAW)
    store.mkdir()
    store.chmod(0o555)
    # root may write anywhere without this restriction
    without_privileges = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
    if without_privileges and not shutil.which("setpriv"):
        pytest.skip("needs setpriv to lay down the rights of root")
    result = subprocess.run(
        [
            *without_privileges,
            sys.executable,
            "-c",
            "from towline.cli import main; main()",
            "run",
            str(config),
            "--json",
        ],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    print(result.stderr)
    assert result.returncode == 5, result.stderr
    assert "TOWLINE_STORE" in result.stdout
    assert "Traceback" not in result.stderr
    assert not list(store.iterdir())
