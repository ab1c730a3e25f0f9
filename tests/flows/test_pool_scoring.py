"""Batch scoring on the workers of a Prefect work pool."""

import contextlib
import datetime as dt
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest

import towline
from tests.support.batch import make_customer_table, score, train_customer_model, use_small_shards
from tests.support.paths import REPOSITORY
from tests.support.releases import make_house_table
from tests.support.sample_store import MODEL, SampleStore
from towline.batch.input import records
from towline.config import build_config
from towline.inference.predictor import Model
from towline.processes import child_pids

if TYPE_CHECKING:  # the fixture sets the server's address before Prefect is imported
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun

ROWS, SHARD_BYTES = 120_000, 150_000
POOL = "scoring"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return train_customer_model(tmp_path_factory.mktemp("customers"))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("in") / "new.csv"
    make_customer_table(ROWS, seed=8).drop(columns="bought").to_csv(path, index=False)
    return path


@pytest.fixture
def deployment(client: "SyncPrefectClient", model: Model) -> Iterator[Any]:
    """The deployment of the model in its own pool; lost runs are ended sooner than in production."""
    from flows.deployments import deployments
    from towline.orchestration import crash_detection, scheduler, worker

    config = build_config({"name": model.name, "data": {"source": "x.csv", "target": "y"}}, "test")
    worker.create_pool(client, POOL)
    delete_automations(client)
    limits = {"silence_limit": dt.timedelta(seconds=45), "pending_limit": dt.timedelta(seconds=90)}
    crash_detection.create_crash_automations(client, **limits)
    parts = [item for item in deployments(config, pool=POOL) if item.flow_name == "scoring-shards"]
    (deployment_id,) = scheduler.deploy(parts, None)
    yield deployment_id
    client.delete_deployment(deployment_id)
    client.delete_work_pool(POOL)
    delete_automations(client)


@pytest.fixture
def start_worker(prefect: str, store: Path, tmp_path: Path) -> "Iterator[Callable[[], subprocess.Popen[bytes]]]":
    """Starts workers of the pool, which run one part of a job at a time."""
    words = [sys.executable, "-m", "flows.deployments", "--pool", POOL, "--limit", "1"]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    with ExitStack() as stack:
        log = stack.enter_context((tmp_path / "workers.log").open("ab"))

        def start() -> "subprocess.Popen[bytes]":
            process = subprocess.Popen(words, env=env, cwd=REPOSITORY, stdout=log, stderr=log)
            stack.callback(kill, process)
            return process

        yield start


def kill(worker: "subprocess.Popen[bytes]") -> None:
    """Kills a worker and its runs, so that nothing reports their end."""
    for pid in (worker.pid, *child_pids(worker.pid)):
        with contextlib.suppress(ProcessLookupError):  # its run has ended with the worker
            os.kill(pid, signal.SIGKILL)
    worker.wait()


def delete_automations(client: "SyncPrefectClient") -> None:
    for automation in client.read_automations():
        if automation.name.startswith("towline: "):
            client.delete_automation(automation.id)


def wait_for_workers(client: "SyncPrefectClient", count: int) -> None:
    deadline = time.monotonic() + 300
    while len(client.read_workers_for_work_pool(POOL)) < count:
        assert time.monotonic() < deadline, "the workers do not start"
        time.sleep(0.2)


def runs_of(client: "SyncPrefectClient", deployment: Any) -> "list[FlowRun]":
    """The runs that score shards, oldest first."""
    from prefect.client.schemas.filters import FlowRunFilter

    of_deployment = FlowRunFilter.model_validate({"deployment_id": {"any_": [deployment]}})
    runs = [run for run in client.read_flow_runs(flow_run_filter=of_deployment) if run.parameters["shards"]]
    return sorted(runs, key=lambda run: run.created or dt.datetime.min.replace(tzinfo=dt.UTC))


@pytest.mark.slow
def test_a_pool_gives_the_same_bytes_although_a_worker_is_killed(
    tmp_path: Path,
    model: Model,
    source: Path,
    client: "SyncPrefectClient",
    deployment: Any,
    start_worker: "Callable[[], subprocess.Popen[bytes]]",
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Another worker scores the shards of the killed one."""
    monkeypatch.setenv("PREFECT_HOME", os.environ["PREFECT_HOME"])  # the command changes the environment
    use_small_shards(monkeypatch, size=SHARD_BYTES, block=records.BLOCK_BYTES)
    score(model, source, tmp_path / "alone.csv")
    workers = [start_worker(), start_worker()]
    wait_for_workers(client, 2)
    killed: list[int] = []

    def kill_once(progress: Any) -> None:
        if not killed and 0 < progress.share < 1 and child_pids(workers[0].pid):
            kill(workers[0])
            killed.append(workers[0].pid)

    result = towline.score(
        source, tmp_path / "pool.csv", model=model.directory, engine="prefect", workers=2, show=kill_once
    )
    assert killed
    assert result.rows_in == result.rows + result.quarantined == ROWS
    assert (tmp_path / "pool.csv").read_bytes() == (tmp_path / "alone.csv").read_bytes()
    states = [str(run.state_name) for run in runs_of(client, deployment)]
    assert states[:2].count("Crashed") == 1
    assert len(states) > 2


@pytest.mark.slow
def test_the_scoring_flow_is_the_parent_of_its_runs(
    tmp_path: Path,
    sample_store: SampleStore,
    client: "SyncPrefectClient",
    deployment: Any,
    start_worker: "Callable[[], subprocess.Popen[bytes]]",
) -> None:
    """With ``scoring.engine: prefect`` the champion scores on the pool."""
    from flows.scoring import scoring_flow
    from towline.orchestration.end_states import state_value

    make_house_table(300).drop(columns=["value", "sold"]).to_csv(tmp_path / "new.csv", index=False)
    start_worker()
    wait_for_workers(client, 1)
    raw = {"name": MODEL, "data": {"source": "x.csv", "target": "y"}, "scoring": {"engine": "prefect"}}
    result = state_value(scoring_flow(build_config(raw, "test"), str(tmp_path / "new.csv"), return_state=True))
    assert (result.rows, result.version) == (300, 1)
    assert Path(result.output).is_relative_to(sample_store.settings.store)
    (run,) = runs_of(client, deployment)
    parent = client.read_task_run(UUID(str(run.parent_task_run_id)))
    assert client.read_flow_run(UUID(str(parent.flow_run_id))).name == MODEL
