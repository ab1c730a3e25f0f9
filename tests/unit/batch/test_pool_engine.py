"""Shards on a Prefect work pool, with a simulated server in this process."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.exceptions import ObjectNotFound

from tests.support.batch import make_customer_table, score, use_small_shards
from tests.support.commands import CommandResult
from towline.batch.engines import worker_check
from towline.batch.engines.shard_list import score_shards
from towline.batch.engines.worker_check import check_this_worker
from towline.errors import ConfigError, DataError, TowlineError, TransientError
from towline.inference.predictor import Model
from towline.orchestration import end_states, pool_engine, remote_server
from towline.orchestration.remote_server import translate_errors

PAGE = "http://prefect.example/runs/flow-run/"


class PoolServer:
    """Simulates a Prefect server that executes runs immediately; ``crash_after`` makes the next runs crash.

    Attributes:
        runs: all runs, in the order of their start.
        crash_after: for each of the next scoring runs, the number of shards after which it crashes.
        hold: leave the next scoring runs in the state Running.
    """

    def __init__(self) -> None:
        self.runs: dict[UUID, FlowRun] = {}
        self.results: dict[UUID, dict[str, Any]] = {}
        self.crash_after: list[int] = []
        self.hold = False
        self.pool = SimpleNamespace(name="scoring", is_paused=False, is_push_pool=False, is_managed_pool=False)
        self.workers = [SimpleNamespace(status="ONLINE")]
        self.deployment: Any = SimpleNamespace(id=uuid4(), work_pool_name="scoring")

    def run_deployment(self, deployment_id: UUID, *, parameters: dict[str, Any], tags: list[str], **_: Any) -> FlowRun:
        run = FlowRun(id=uuid4(), flow_id=uuid4(), deployment_id=deployment_id, parameters=parameters, tags=tags)
        self.runs[run.id] = run
        if not (self.hold and parameters["shards"]):
            self.execute(run)
        return run

    def execute(self, run: FlowRun) -> None:
        kind, numbers = StateType.COMPLETED, run.parameters["shards"]
        try:
            check_this_worker(run.parameters["paths"], run.parameters["version"])
            if self.crash_after and numbers:
                kind, numbers = StateType.CRASHED, numbers[: self.crash_after.pop(0)]
            if numbers:
                score_shards(Path(run.parameters["work"]), numbers)
            self.results[run.id] = {}
        except TowlineError as error:
            kind, self.results[run.id] = StateType.FAILED, error.as_dict()
        run.state = State(type=kind, name=kind.value.capitalize())

    def shards_of_runs(self) -> list[list[int]]:
        return [run.parameters["shards"] for run in self.runs.values() if run.parameters["shards"]]

    # the methods of a client that the engine uses
    def read_deployment_by_name(self, name: str) -> Any:
        if self.deployment is None:
            raise ObjectNotFound(http_exc=Exception(name))
        return self.deployment

    def read_work_pool(self, _name: str) -> Any:
        return self.pool

    def read_workers_for_work_pool(self, _name: str) -> list[Any]:
        return self.workers

    def read_automations_by_name(self, _name: str) -> list[Any]:
        return [SimpleNamespace(id=uuid4())]

    def read_flow_run(self, run_id: UUID) -> FlowRun:
        return self.runs[run_id]

    def read_flow_runs(self, flow_run_filter: Any, **_: Any) -> list[FlowRun]:
        if flow_run_filter.id:
            return [self.runs[run_id] for run_id in flow_run_filter.id.any_]
        if flow_run_filter.parent_flow_run_id:
            return []
        tags = set(flow_run_filter.tags.all_)
        return [run for run in self.runs.values() if run.state is None and tags <= set(run.tags)]

    def read_task_runs(self, **_: Any) -> list[Any]:
        return []

    def read_artifacts(self, artifact_filter: Any) -> list[Any]:
        (run_id,) = artifact_filter.flow_run_id.any_
        return [SimpleNamespace(data=end_states.encode_result(self.results[run_id]))]

    def set_flow_run_state(self, run_id: UUID, state: Any) -> None:
        self.runs[run_id].state = state


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> PoolServer:
    server = PoolServer()

    @contextmanager
    def connect(target: remote_server.RemoteTarget) -> Iterator[PoolServer]:
        with translate_errors(target):
            yield server

    monkeypatch.setenv("PREFECT_API_URL", "http://prefect.example/api")
    monkeypatch.setattr(pool_engine, "connect", connect)
    monkeypatch.setattr(pool_engine, "run_deployment", server.run_deployment)
    monkeypatch.setattr(pool_engine, "POLL_S", 0.0)
    monkeypatch.setattr(pool_engine, "_FILE_POLL_S", 0.0)
    return server


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    use_small_shards(monkeypatch)
    make_customer_table(200, seed=3).drop(columns="bought").to_csv(tmp_path / "in.csv", index=False)
    return tmp_path / "in.csv"


def score_on_pool(model: Model, source: Path, output: Path, **options: Any) -> Any:
    return score(model, source, output, engine=pool_engine.pool_engine(model.name, None, lambda _: None), **options)


@pytest.mark.slow
@pytest.mark.parametrize("runs", [1, 3])
@pytest.mark.parametrize("target", ["out.csv", "out.parquet", "out"])
def test_any_number_of_runs_gives_the_same_bytes(
    tmp_path: Path, model: Model, server: PoolServer, source: Path, target: str, runs: int
) -> None:
    expected = score(model, source, tmp_path / "alone" / target)
    result = score_on_pool(model, source, tmp_path / target, workers=runs)
    assert result.output_digest == expected.output_digest
    shards = server.shards_of_runs()
    assert len(shards) == runs
    assert sorted(chain(*shards)) == list(range(sum(map(len, shards))))


def test_a_header_that_is_no_utf8(tmp_path: Path, model: Model, server: PoolServer) -> None:
    """The job for the workers is written as JSON, whatever bytes its header has."""
    table = make_customer_table(20, seed=3).drop(columns="bought").assign(größe=1)
    table.to_csv(tmp_path / "in.csv", index=False, encoding="cp1252")
    score(model, tmp_path / "in.csv", tmp_path / "alone.csv")
    score_on_pool(model, tmp_path / "in.csv", tmp_path / "out.csv")
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "alone.csv").read_bytes()


def test_shards_of_a_lost_run_are_given_to_new_runs(
    tmp_path: Path, model: Model, server: PoolServer, source: Path
) -> None:
    """Each shard is scored; shards that the lost run had finished are in no new run."""
    score(model, source, tmp_path / "alone.csv")
    server.crash_after = [2]
    score_on_pool(model, source, tmp_path / "out.csv", workers=2)
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "alone.csv").read_bytes()
    lost, other, *added = server.shards_of_runs()
    assert sorted(chain(*added)) == lost[2:]
    assert not set(lost) & set(other)


def test_a_shard_that_crashes_each_run_stops_the_job(
    tmp_path: Path, model: Model, server: PoolServer, source: Path
) -> None:
    """After three attempts; the next command uses the finished shards."""
    server.crash_after = [2, 0, 0]
    with pytest.raises(TransientError, match="3 runs ended unexpectedly at shard 2") as error:
        score_on_pool(model, source, tmp_path / "out.csv")
    assert error.value.where.startswith(PAGE)
    assert not (tmp_path / "out.csv").exists()
    server.runs.clear()
    score_on_pool(model, source, tmp_path / "out.csv")
    assert server.shards_of_runs()[0][0] == 2


def test_a_repeated_command_waits_for_the_runs_of_a_killed_one(
    tmp_path: Path, model: Model, server: PoolServer, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No shard is in two runs."""
    score(model, source, tmp_path / "alone.csv")
    server.hold = True
    with monkeypatch.context() as patch:
        patch.setattr(pool_engine.PoolEngine, "_poll_runs", _interrupt)
        patch.setattr(pool_engine.PoolEngine, "close", lambda _: None)  # a killed process cancels no run
        with pytest.raises(KeyboardInterrupt):
            score_on_pool(model, source, tmp_path / "out.csv", workers=2)
    under_way = server.shards_of_runs()
    assert len(under_way) == 2
    real = server.read_flow_runs

    def end_and_read(flow_run_filter: Any, **options: Any) -> list[FlowRun]:
        runs = real(flow_run_filter, **options)
        for run in runs if flow_run_filter.id else ():
            server.execute(run)
        return runs

    monkeypatch.setattr(server, "read_flow_runs", end_and_read)
    score_on_pool(model, source, tmp_path / "out.csv", workers=2)
    assert server.shards_of_runs() == under_way
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "alone.csv").read_bytes()


def test_an_interrupted_command_cancels_its_runs(
    tmp_path: Path, model: Model, server: PoolServer, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.hold = True
    monkeypatch.setattr(pool_engine.PoolEngine, "_poll_runs", _interrupt)
    with pytest.raises(KeyboardInterrupt):
        score_on_pool(model, source, tmp_path / "out.csv", workers=2)
    states = [run.state.type for run in server.runs.values() if run.state and run.parameters["shards"]]
    assert states == [StateType.CANCELLING] * 2


def _interrupt(_engine: object) -> None:
    raise KeyboardInterrupt


def test_the_error_of_a_run_is_that_of_the_command(
    tmp_path: Path, model: Model, server: PoolServer, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The input was changed after the command had listed its shards."""
    run_deployment = server.run_deployment

    def change_input(*arguments: Any, **options: Any) -> FlowRun:
        if options["parameters"]["shards"]:
            source.write_bytes(source.read_bytes() + b"\n")
        return run_deployment(*arguments, **options)

    monkeypatch.setattr(pool_engine, "run_deployment", change_input)
    with pytest.raises(DataError, match="the file has changed since it was opened"):
        score_on_pool(model, source, tmp_path / "out.csv")


def _remove_deployment(server: PoolServer) -> None:
    server.deployment = None


def _give_no_pool(server: PoolServer) -> None:
    server.deployment.work_pool_name = None


def _pause(server: PoolServer) -> None:
    server.pool.is_paused = True


def _stop_workers(server: PoolServer) -> None:
    server.workers = [SimpleNamespace(status="OFFLINE")]


def _refuse_connections(server: PoolServer) -> None:
    def refuse(_name: str) -> Any:
        raise httpx.ConnectError("connection refused")

    server.read_deployment_by_name = refuse  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("break_pool", "kind", "what", "remedy"),
    [
        (_refuse_connections, TransientError, "the Prefect server does not answer: connection refused", "check that"),
        (_remove_deployment, ConfigError, "no deployment 'scoring-shards/", "--pool towline CONFIG"),
        (_give_no_pool, ConfigError, "has no work pool", "--pool towline CONFIG"),
        (_pause, TransientError, "the work pool 'scoring' is paused", "prefect work-pool resume scoring"),
        (_stop_workers, TransientError, "the work pool 'scoring' has no worker", "--pool scoring"),
    ],
)
def test_a_pool_that_cannot_score_is_refused(
    tmp_path: Path,
    model: Model,
    server: PoolServer,
    break_pool: Callable[[PoolServer], None],
    kind: type[TowlineError],
    what: str,
    remedy: str,
) -> None:
    """The error is raised before the source is read, which is no valid CSV."""
    (tmp_path / "in.csv").write_bytes(b"")
    break_pool(server)
    with pytest.raises(kind) as error:
        score_on_pool(model, tmp_path / "in.csv", tmp_path / "out.csv")
    assert what in error.value.what
    assert remedy in error.value.remedy
    assert error.value.where == "http://prefect.example/api"


@pytest.mark.parametrize("difference", ["version", "folder"])
def test_an_incompatible_worker_is_refused(
    tmp_path: Path, model: Model, server: PoolServer, monkeypatch: pytest.MonkeyPatch, difference: str
) -> None:
    """Another version of towline, or a folder that the worker cannot read: refused before the source is read."""
    (tmp_path / "in.csv").write_bytes(b"")
    real = worker_check.inspect_worker

    def inspect(paths: Any) -> worker_check.WorkerFacts:
        facts = real(paths)
        return facts._replace(version="0.0.1") if difference == "version" else facts._replace(missing=tuple(paths[:1]))

    monkeypatch.setattr(worker_check, "inspect_worker", inspect)
    what = {"version": r"the worker has towline 0\.0\.1, this command is", "folder": f"does not see {tmp_path}\n"}
    with pytest.raises(ConfigError, match=what[difference]) as error:
        score_on_pool(model, tmp_path / "in.csv", tmp_path / "out.csv")
    assert error.value.where.startswith("worker ")
    assert server.shards_of_runs() == []


def test_without_a_prefect_server_the_error_names_its_setting(
    tmp_path: Path, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in.csv").write_bytes(b"")
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    with pytest.raises(ConfigError, match="no Prefect server is named") as error:
        score_on_pool(model, tmp_path / "in.csv", tmp_path / "out.csv")
    assert "PREFECT_API_URL" in error.value.remedy


def test_a_profile_needs_the_engine_of_the_pool(command: Callable[..., CommandResult]) -> None:
    """Without this engine the command would score on this machine."""
    result = command("--profile", "compose", "score", "in.csv", "out.csv")
    assert (result.code, "`towline score` needs the store" in result.err) == (2, True)
