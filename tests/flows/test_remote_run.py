"""The end and the steps of a run on another machine, as the caller gets them."""

import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from towline.errors import ConfigError, DataValidationError, TowlineError, TransientError

if TYPE_CHECKING:  # the fixture sets the server's address before Prefect is imported
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun


def make_ended_run(client: "SyncPrefectClient", name: str, kind: str, message: str = "") -> "FlowRun":
    """A run of the training flow with this end state."""
    from prefect.client.schemas.objects import State, StateType

    from flows.training import training_flow

    run = client.create_flow_run(training_flow)
    client.set_flow_run_state(run.id, State(type=StateType(kind), name=name, message=message), force=True)
    return client.read_flow_run(run.id)


def test_the_error_of_a_remote_run_is_raised_here(client: "SyncPrefectClient") -> None:
    """Text and exit code are those of a run in this process."""
    from prefect.client.schemas.actions import ArtifactCreate

    from towline.orchestration import end_states, remote_run

    run = make_ended_run(client, "Data refused", "FAILED")
    document = DataValidationError("the table breaks 1 rule", where="a.csv", details=("hour: 25",)).as_dict()
    left = ArtifactCreate(
        key=end_states.result_artifact_key("training"),
        type="markdown",
        data=end_states.encode_result(document),
        flow_run_id=run.id,
    )
    client.create_artifact(left)
    with pytest.raises(DataValidationError, match="the table breaks 1 rule") as caught:
        remote_run._read_result(client, "training", run, "http://page")
    assert (caught.value.exit_code, caught.value.details) == (3, ("hour: 25",))


@pytest.mark.parametrize(
    ("name", "kind", "error", "what"),
    [
        ("Crashed", "CRASHED", TransientError, "the process of the run has ended unexpectedly: gone"),
        ("Cancelled", "CANCELLED", TransientError, "the run was cancelled"),
        ("Failed", "FAILED", TowlineError, "the run ended as Failed and left no result: gone"),
    ],
)
def test_a_remote_run_without_a_result(
    client: "SyncPrefectClient", name: str, kind: str, error: type[TowlineError], what: str
) -> None:
    """The error has the end state and the address of the run's page."""
    from towline.orchestration import remote_run

    run = make_ended_run(client, name, kind, "gone")
    with pytest.raises(error) as caught:
        remote_run._read_result(client, "training", run, "http://page")
    assert (caught.value.what, caught.value.where) == (what, "http://page")


@pytest.mark.parametrize("polls", ["after each record", "at the end"])
def test_steps_of_a_remote_run_are_logged_here(
    client: "SyncPrefectClient", caplog: pytest.LogCaptureFixture, polls: str
) -> None:
    """Start and end of each step are logged once with duration and note, however often the run is polled."""
    from flows.training import training_flow
    from towline.orchestration.step_table import StepTableReader, publish_steps
    from towline.steps import step

    run = client.create_flow_run(training_flow)
    reader = StepTableReader(client, "training", run.id)
    caplog.set_level(logging.INFO, "towline.steps")

    def run_steps() -> None:
        with step("cross-validate linear") as running:
            running.note = "mae 22.46 ± 0.32: done in 3.2 s, failed: none …"
        with pytest.raises(TransientError), step("register"):
            raise TransientError("the server went away")

    with publish_steps("training", run.id):
        run_steps()
    written = _steps(caplog)
    assert [status for _, status, _, _ in written] == ["begin", "done", "begin", "failed"]
    caplog.clear()
    for _ in range(2 if polls == "after each record" else 1):
        reader.log_new_steps()
    assert _steps(caplog) == written


def _steps(caplog: pytest.LogCaptureFixture) -> list[tuple[object, ...]]:
    names = ("step", "status", "note", "seconds")
    return [tuple(record.__dict__.get(name) for name in names) for record in caplog.records]


def test_waiting_for_the_worker_of_a_pool(client: "SyncPrefectClient", prefect: str, tmp_path: Path) -> None:
    """The command waits until the worker has started, e.g. after ``docker compose up -d``."""
    from towline.orchestration import remote_run

    words = [sys.executable, "-m", "flows.deployments", "--pool", "starting"]
    env = os.environ | {"TOWLINE_STORE": str(tmp_path)}
    messages: list[str] = []
    with subprocess.Popen(words, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as worker:
        try:
            remote_run._wait_for_pool(client, remote_run.RemoteTarget(prefect, "", "starting"), messages.append)
            assert remote_run.pool_has_worker(client, "starting")
        finally:
            worker.terminate()
    assert ["no work pool 'starting' yet" in line for line in messages] == [True]


def test_an_unknown_pool_is_rejected(client: "SyncPrefectClient", monkeypatch: pytest.MonkeyPatch) -> None:
    """The error lists the existing pools, and has a remedy."""
    from prefect.client.schemas.actions import WorkPoolCreate

    from towline.orchestration import remote_run

    client.create_work_pool(WorkPoolCreate(name="nightly", type="process"))
    monkeypatch.setattr(remote_run, "_POOL_TIMEOUT_S", 1.0)
    messages: list[str] = []
    with pytest.raises(ConfigError, match="no work pool 'nigthly'") as caught:
        remote_run._wait_for_pool(client, remote_run.RemoteTarget("http://there", "", "nigthly"), messages.append)
    assert "only nightly" in messages[0]
    assert "start a worker" in str(caught.value.remedy)
