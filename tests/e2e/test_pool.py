"""A Prefect work pool: deployed from prefect.yaml, with a client on another machine and a worker that is killed."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pyarrow.parquet as pq
import pytest
import yaml

from tests.support.paths import REPOSITORY
from tests.support.store_commands import write_bike_config
from towline.processes import child_pids

if TYPE_CHECKING:  # the fixture sets the server's address before Prefect is imported
    from prefect.client.orchestration import SyncPrefectClient

POOL, MODEL = "towline", "bike-demand"


class WorkPool:
    """A pool with the shipped prefect.yaml and a quick config, one worker, and a client on another machine."""

    def __init__(self, folder: Path, server: str, client: "SyncPrefectClient") -> None:
        self.project, self.store, self.client = folder / "project", folder / "store", client
        for name in ("configs", "data"):
            (self.project / name).mkdir(parents=True)
        for name in ("flows", "tasks", "deployments"):
            (self.project / name).symlink_to(REPOSITORY / name)
        config = yaml.safe_load(write_bike_config(folder).read_text()) | {"name": MODEL, "candidates": ["linear"]}
        config["data"]["source"] = "data/bike_hourly.parquet"
        rows = pq.read_table(REPOSITORY / "data" / "bike_hourly.parquet").slice(0, 600)
        pq.write_table(rows, self.project / "data" / "bike_hourly.parquet")
        (self.project / "configs" / "bike_demand.yaml").write_text(yaml.safe_dump(config))
        (self.project / ".env").write_text(f"PREFECT_AUTH_STRING=me:secret\nPREFECT_PORT={urlsplit(server).port}\n")
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        self.client_environment = environment | {
            "TOWLINE_PROJECT": str(self.project),
            "TOWLINE_STORE": str(folder / "elsewhere"),
        }
        self.worker_environment = self.client_environment | {
            "TOWLINE_STORE": str(self.store),
            "PREFECT_API_URL": f"{server}/api",
        }
        self.worker_environment |= {"PREFECT_HOME": str(self.store / "prefect"), "OMP_NUM_THREADS": "1"}
        self.log = folder / "worker.log"
        self.worker: subprocess.Popen[str] | None = None

    def start(self) -> None:
        with self.log.open("a") as log:
            self.worker = subprocess.Popen(
                [sys.executable, "-m", "flows.deployments", "--pool", POOL],
                env=self.worker_environment, cwd=self.project, stdout=log, stderr=log, text=True,
            )  # fmt: skip
        begin = self.log.stat().st_size
        self.until(lambda: "started!" in self.log.read_text()[begin:])

    def kill(self) -> None:
        """Kills the worker and its runs, so that nothing reports their end."""
        assert self.worker is not None
        for pid in (self.worker.pid, *child_pids(self.worker.pid)):
            os.kill(pid, signal.SIGKILL)
        self.worker.wait()

    def run_client(self, *arguments: str) -> "subprocess.Popen[str]":
        """Runs `towline --profile compose …` on the client's machine."""
        command = [str(Path(sys.executable).with_name("towline")), "--profile", "compose", *arguments]
        return subprocess.Popen(
            command,
            env=self.client_environment,
            cwd=self.project,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def prefect(self, *arguments: str) -> str:
        command = [sys.executable, "-m", "prefect", "--no-prompt", *arguments]
        result = subprocess.run(
            command, env=self.worker_environment, cwd=self.project, capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    def read_deployments(self) -> dict[str, Any]:
        """The settings of each deployment, by its flow."""
        from prefect.client.schemas.filters import DeploymentFilter

        by_name = DeploymentFilter.model_validate({"name": {"any_": [MODEL]}})
        fields = {"id", "entrypoint", "work_pool_name", "parameters", "tags", "concurrency_options"}
        return {
            deployment.entrypoint.split(".")[1]: deployment.model_dump(include=fields)
            | {
                "limit": (limit := deployment.global_concurrency_limit) and limit.limit,
                "lines": [(plan.schedule.cron, plan.parameters) for plan in deployment.schedules],
            }
            for deployment in self.client.read_deployments(deployment_filter=by_name)
        }

    def runs(self, flow: str) -> list[Any]:
        """The deployment's runs of a flow that have started, oldest first."""
        from prefect.client.schemas.filters import DeploymentFilter, FlowFilter

        runs = self.client.read_flow_runs(
            flow_filter=FlowFilter.model_validate({"name": {"any_": [flow]}}),
            deployment_filter=DeploymentFilter.model_validate({"name": {"any_": [MODEL]}}),
        )
        return sorted((run for run in runs if run.start_time), key=lambda run: run.start_time)

    def tasks(self, run: Any) -> dict[str, str]:
        from prefect.client.schemas.filters import FlowRunFilter

        mine = FlowRunFilter.model_validate({"id": {"any_": [run.id]}})
        return {task.name: task.state_name for task in self.client.read_task_runs(flow_run_filter=mine)}

    def until(self, condition: Callable[[], Any], seconds: float = 600) -> Any:
        deadline = time.monotonic() + seconds
        while not (value := condition()):
            assert self.worker is None or self.worker.poll() in (None, -9), self.log.read_text()
            assert time.monotonic() < deadline, f"the condition was not met in time:\n{self.log.read_text()}"
            time.sleep(0.2)
        return value

    def delete_automations(self) -> None:
        """Deletes the automation that ends silent runs; the next worker creates it again."""
        for automation in self.client.read_automations():
            if automation.name.startswith("towline: "):
                self.client.delete_automation(automation.id)

    def end(self) -> None:
        if self.worker is not None and self.worker.poll() is None:
            self.kill()
        self.delete_automations()
        for deployment in self.read_deployments().values():
            self.client.delete_deployment(deployment["id"])


@pytest.fixture
def work_pool(tmp_path: Path, prefect: str) -> Iterator[WorkPool]:
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        work_pool = WorkPool(tmp_path, prefect, client)
        try:
            yield work_pool
        finally:
            work_pool.end()


def test_another_worker_resumes_the_run_of_a_lost_worker(work_pool: WorkPool) -> None:
    """The server ends the run, the waiting client gets an error, and another worker resumes the run."""
    from towline.orchestration import crash_detection, worker

    crash_detection.create_crash_automations(work_pool.client, silence_limit=timedelta(seconds=20))
    worker.create_pool(work_pool.client, POOL)
    work_pool.prefect("deploy", "--all", "--prefect-file", "deployments/prefect.yaml")
    deployed = work_pool.read_deployments()
    assert {flow: deployment["lines"] for flow, deployment in deployed.items()} == {
        "training": [("0 1 * * *", {"trigger": "schedule"})],
        "drift": [("0 2 * * *", {})],
        "quality": [("0 4 * * *", {})],
        "reaction": [],
        "rollout": [],
        "scoring": [],
        "scoring_shards": [],
    }
    assert {deployment["work_pool_name"] for deployment in deployed.values()} == {POOL}
    assert {flow for flow, deployment in deployed.items() if deployment["limit"] != 1} == {"scoring_shards"}

    first = work_pool.run_client("run", "configs/bike_demand.yaml", "--json")
    work_pool.start()
    work_pool.until(lambda: work_pool.runs("training"))
    (run,) = work_pool.runs("training")
    work_pool.until(
        lambda: [name for name, state in work_pool.tasks(run).items() if (name[:5], state) == ("split", "Completed")]
    )
    work_pool.kill()
    work_pool.prefect("deploy", "--all", "--prefect-file", "deployments/prefect.yaml")
    assert work_pool.read_deployments() == deployed
    out, err = first.communicate(timeout=600)
    assert (first.returncode, json.loads(out)["code"]) == (5, "T900"), err
    assert "the process of the run has ended unexpectedly: no heartbeat for 20 s" in err
    assert "✓ load" in err
    assert work_pool.runs("training")[0].state_name == "Crashed"

    work_pool.delete_automations()
    work_pool.start()
    second = work_pool.run_client("run", "configs/bike_demand.yaml", "--json")
    out, err = second.communicate(timeout=600)
    assert second.returncode == 0, err
    outcome = json.loads(out)
    assert (outcome["model"], outcome["version"], outcome["event"]) == (MODEL, 1, "promoted")
    assert outcome["repeated"]  # it waited for the run that replaced the crashed run
    lost, repeated, waiting = work_pool.runs("training")
    assert [run.state_name for run in (lost, repeated, waiting)] == ["Crashed", "Completed", "Unchanged"]
    assert waiting.start_time >= repeated.end_time
    assert outcome["page"].endswith(f"/runs/flow-run/{waiting.id}")
    resumed = {name.rpartition("-")[0]: state for name, state in work_pool.tasks(repeated).items()}
    assert (resumed["validate"], resumed["split"]) == ("Cached", "Cached")
    assert "Completed" in resumed.values()  # the last steps; fits may have completed before the kill
    assert set(work_pool.tasks(lost).values()) <= {"Completed", "Crashed"}

    scoring = work_pool.client.create_flow_run_from_deployment(deployed["scoring"]["id"])
    state = work_pool.until(
        lambda: (now := work_pool.client.read_flow_run(scoring.id).state) and now.is_final() and now
    )
    assert state.name == "Completed", state.message
    assert "600 rows scored by version 1 of bike-demand" in state.message
    scored = pq.read_table(work_pool.store / "scored" / MODEL / "bike_hourly.parquet")
    assert scored.num_rows == 600
    assert "prediction" in scored.column_names

    assert work_pool.worker is not None
    work_pool.worker.send_signal(signal.SIGTERM)
    assert work_pool.worker.wait(timeout=300) == 0
