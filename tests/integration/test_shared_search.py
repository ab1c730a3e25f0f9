"""A hyperparameter search whose trials are evaluated by several processes."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import yaml

from tests.support.paths import REPOSITORY
from tests.support.training import make_mixed_table, prepare_workspace
from tests.support.waiting import wait_until
from towline.config import read_config
from towline.data.workspace import Workspace

# logs each fit before it starts; slow enough that a process can be killed during the fit
ESTIMATOR = """
import os, time
from sklearn.linear_model import Ridge

class SlowRidge(Ridge):
    def fit(self, X, y, sample_weight=None):
        with open(os.environ["FITS"], "a") as file:
            file.write(f"{os.getpid()} {self.alpha}\\n")
        time.sleep(float(os.environ.get("DELAY", "0")))
        return super().fit(X, y, sample_weight)
"""
RUN = """
import json, sys
from pathlib import Path
from towline.config import Settings, read_config
from towline.data.workspace import Workspace
from towline.training.model_selection import shared_study
from towline.training.model_selection.cross_validation import cross_validate
shared_study.HEARTBEAT_S, shared_study.GRACE_S = 1, 5
config = read_config(Path(sys.argv[1])).training
settings = Settings.from_environment()
sys.path.append(str(settings.project))
work = Workspace.model_validate_json(Path(sys.argv[2]).read_text())
result = cross_validate(work, config, config.single_candidates[0], None, settings)
print(json.dumps({"params": result.params, "trials": result.trials, "folds": result.folds, "failed": result.failed}))
"""
WORKER = """
import sys
from towline.training.model_selection import shared_study
shared_study.HEARTBEAT_S, shared_study.GRACE_S = 1, 5
from towline.cli import main
main(["worker", "search", *sys.argv[1:]])
"""


class SearchFolder:
    """A project, its store with the workspace of a run, and the processes of one search."""

    def __init__(self, folder: Path, batch: int, url: str = "") -> None:
        folder.mkdir()
        self.folder, self.url, self.fits_file = folder, url, folder / "fits.txt"
        (folder / "slow_model.py").write_text(ESTIMATOR)
        search = {"trials": 16, "batch": batch, "space": {"alpha": {"low": 0.01, "high": 1000.0, "log": True}}}
        candidates = [{"estimator": "slow_model.SlowRidge", "name": "ridge", "search": search}]
        raw = {"cross_validation": {"folds": 2}, "candidates": candidates}
        sys.path.append(str(folder))
        try:
            work, config = prepare_workspace(folder, make_mixed_table("value", 300), **raw)
        finally:
            sys.path.remove(str(folder))
        work.file("token").write_text(work.token)
        self.work: Workspace = work
        self.config = folder / "config.yaml"
        self.config.write_text(yaml.safe_dump(config.model_dump(mode="json", exclude_unset=True)))
        assert read_config(self.config).training.digest == config.training.digest
        (folder / "workspace.json").write_text(work.model_dump_json())

    def start(self, code: str, *arguments: str, delay: float = 0.0) -> "subprocess.Popen[str]":
        environ = {name: value for name, value in os.environ.items() if not name.startswith("TOWLINE_")}
        environ |= {"TOWLINE_PROJECT": str(self.folder), "TOWLINE_STORE": "store", "FITS": str(self.fits_file)}
        environ |= {"DELAY": str(delay), "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
        if self.url:
            environ["TOWLINE_SEARCH_URL"] = self.url
        command = [sys.executable, "-c", textwrap.dedent(code), str(self.config), *arguments]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, env=environ, cwd=self.folder, stdout=pipe, stderr=pipe, text=True)

    def start_run(self, delay: float = 0.0) -> "subprocess.Popen[str]":
        return self.start(RUN, str(self.folder / "workspace.json"), delay=delay)

    def start_worker(self, *options: str, delay: float = 0.0) -> "subprocess.Popen[str]":
        """Returns when the worker has started to look for searches."""
        process, engine = self.start(WORKER, *options, delay=delay), sa.create_engine(self.url)
        try:
            wait_until(lambda: sa.inspect(engine).has_table("trials") or process.poll() is not None)
        finally:
            engine.dispose()
        return process

    def fits(self) -> list[tuple[int, float]]:
        lines = self.fits_file.read_text().splitlines() if self.fits_file.exists() else []
        return [(int(line.split()[0]), float(line.split()[1])) for line in lines]


def finish(process: "subprocess.Popen[str]") -> dict[str, Any]:
    output, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    result: dict[str, Any] = json.loads(output)
    return result


def end(*processes: "subprocess.Popen[str]") -> None:
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("database", ["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
@pytest.mark.slow
def test_a_shared_search_with_a_killed_worker_equals_that_of_one_process(
    tmp_path: Path, database: str, request: pytest.FixtureRequest
) -> None:
    """One of several processes is killed during a trial: parameters, folds and trials are those of one process."""
    single = SearchFolder(tmp_path / "single", batch=4)
    alone = finish(single.start_run())
    url = f"sqlite:///{tmp_path}/search.db"
    if database == "postgresql":
        url = request.getfixturevalue("postgres")
    shared = SearchFolder(tmp_path / "shared", batch=4, url=url)
    killed = shared.start_worker(delay=0.3)
    run = shared.start_run(delay=0.3)
    try:
        wait_until(lambda: sum(pid == killed.pid for pid, _ in shared.fits()) >= 3)
        killed.send_signal(signal.SIGKILL)
        together = finish(run)
    finally:
        end(run, killed)
    assert alone == together
    assert (together["trials"], together["failed"]) == (16, "")
    assert {alpha for _, alpha in shared.fits()} == {alpha for _, alpha in single.fits()}
    assert {pid for pid, _ in shared.fits()} == {run.pid, killed.pid}, "each process has evaluated trials"
    assert shared.work.file("search-ridge.json").exists()


@pytest.mark.slow
def test_a_stopped_worker_releases_its_trial(tmp_path: Path) -> None:
    """SIGTERM during a trial: the worker ends after the current fits, and another process evaluates the trial."""
    shared = SearchFolder(tmp_path / "shared", batch=4, url=f"sqlite:///{tmp_path}/search.db")
    worker = shared.start_worker(delay=3.0)
    run = shared.start_run(delay=0.2)
    try:
        wait_until(lambda: any(pid == worker.pid for pid, _ in shared.fits()))
        worker.send_signal(signal.SIGTERM)
        _, errors = worker.communicate(timeout=60)
        assert "another process takes over" in errors
        assert worker.returncode == 0
        assert finish(run)["trials"] == 16
    finally:
        end(run, worker)
    started_trials = {alpha for pid, alpha in shared.fits() if pid == worker.pid}
    assert started_trials <= {alpha for pid, alpha in shared.fits() if pid != worker.pid}


@pytest.mark.slow
def test_an_interrupted_run_continues_the_shared_search(tmp_path: Path) -> None:
    """The run is killed: the worker evaluates the open trials, and the next run continues with all complete trials."""
    shared = SearchFolder(tmp_path / "shared", batch=4, url=f"sqlite:///{tmp_path}/search.db")
    worker = shared.start_worker(delay=0.1)
    run = shared.start_run(delay=0.1)
    try:
        wait_until(lambda: len({alpha for pid, alpha in shared.fits() if pid == run.pid}) >= 3)
        run.kill()
        run.communicate()
        run = shared.start_run()
        assert finish(run)["trials"] == 16
    finally:
        end(run, worker)
    repeated = [alpha for alpha, count in Counter(alpha for _, alpha in shared.fits()).items() if count > 4]
    assert len(repeated) <= 2, "only trials under way, and the best one, are fitted again"


@pytest.mark.slow
def test_a_worker_with_another_config_is_refused(tmp_path: Path) -> None:
    """It evaluates no trial, and its error has a remedy; without a database it does not start."""
    shared = SearchFolder(tmp_path / "shared", batch=4, url=f"sqlite:///{tmp_path}/search.db")
    other = shared.start_worker("--set", "seed=7", "--idle", "20", "--json")
    run = shared.start_run(delay=0.2)
    try:
        output, _ = other.communicate(timeout=120)
        assert other.returncode == 2
        assert json.loads(output)["what"] == "the run has another config than this worker"
        assert {pid for pid, _ in shared.fits()} == {run.pid}
        shared.url = ""
        without_database = shared.start(WORKER, "--json")
        output, _ = without_database.communicate(timeout=120)
        assert (without_database.returncode, json.loads(output)["where"]) == (2, "TOWLINE_SEARCH_URL")
    finally:
        end(run, other)
