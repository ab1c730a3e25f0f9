import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from towline import files
from towline.config import PipelineConfig, Settings
from towline.data.schema.contract import Contract
from towline.data.schema.inference import infer_contract
from towline.data.source.sources import load_dataset
from towline.data.splits import split_table
from towline.data.validation.suite import Rule, Validation
from towline.data.workspace import Workspace
from towline.errors import TransientError
from towline.promotion.gate import GateCheck, Verdict
from towline.provenance import Provenance
from towline.registry.mlflow import client as mlflow_client
from towline.registry.mlflow import mirror, tracking
from towline.registry.mlflow.mirror import VersionRecord
from towline.training.evaluation.holdout import evaluate
from towline.training.final_fit import fit
from towline.training.model_selection.cross_validation import baseline_candidate, choose_candidate, cross_validate
from towline.training.result import TrainingResult


def provenance(run_key: str) -> Provenance:
    return Provenance(
        run_key=run_key, created="2026-01-02T03:04:05+00:00", actor="ann", trigger="user", git_commit="abc",
        git_dirty="false",
    )  # fmt: skip


COSTS = {
    "fit": {"wall_s": 2.0, "cpu_s": 3.0, "peak_mb": 300.0},
    "load": {"wall_s": 1.0, "cpu_s": 1.0, "peak_mb": 200.0},
}
VERDICT = Verdict(outcome="pass", checks=(GateCheck(name="mae", outcome="pass", detail="1 <= 2"),), primary="mae")

Trained = tuple[Workspace, PipelineConfig, TrainingResult]


def frame(rows: int = 160) -> pd.DataFrame:
    """Unusual column names, strings, dates, nulls."""
    rng = np.random.default_rng(0)
    size = rng.normal(size=rows)
    return pd.DataFrame(
        {
            "size (m²) / 'x'": size,
            "rooms": pd.array([None if i % 9 == 0 else i % 4 for i in range(rows)], dtype="Int64"),
            "kind of house": [None if i % 11 == 0 else ["flat", "hut", "villa"][i % 3] for i in range(rows)],
            "sold": pd.date_range("2025-01-01", periods=rows, freq="13h"),
            "price": size * 3 + rng.normal(size=rows),
        }
    )


def train(folder: Path, key: str = "k" * 64) -> Trained:
    folder.mkdir(parents=True, exist_ok=True)
    frame().to_csv(folder / "houses.csv", index=False)
    config = PipelineConfig.model_validate(
        {
            "name": "houses",
            "description": "Prices of houses.",
            "data": {"source": "houses.csv", "target": "price", "time": "sold"},
            "candidates": ["linear", {"estimator": "boosting", "params": {"max_iter": 20, "early_stopping": False}}],
            "cross_validation": {"folds": 3},
            "evaluation": {"resamples": 50},
        }
    )
    store = folder / "mlruns"
    work = Workspace(store=store, key=key, token="t", dataset=load_dataset(config.data, folder, store, None))
    work.save("contract.json", infer_contract(work.table(), config))
    work.save("split.json", split_table(work, config))
    scores = [cross_validate(work, config, candidate) for candidate in (baseline_candidate(config), *config.candidates)]
    chosen = choose_candidate(scores, config, "regression")
    fitted = fit(work, config, chosen)
    evaluation = evaluate(work, config, fitted)
    rule = Rule(rule="r", column=None, severity="warn", passed=True, count=0, share=0.0, examples=(), detail="")
    validation = Validation(rules=(rule,), notes=(), failed=0, warned=0, docs="data_docs.html")
    files.write(work.file("data_docs.html"), "<html></html>")
    files.write(work.file("plots/residuals.png"), b"png")
    result = TrainingResult(candidates=tuple(scores), model=fitted, evaluation=evaluation, validation=validation)
    return work, config, result


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """One small trained run for all tests; each test registers it in its own store."""
    return train(tmp_path_factory.mktemp("project"))


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    store = tmp_path / "a project" / "mlruns"
    return Settings.from_environment({"TOWLINE_STORE": str(store)}, tmp_path)


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow database: creating one takes seconds."""
    from mlflow import MlflowClient

    file = tmp_path_factory.mktemp("empty") / "mlflow.db"
    MlflowClient(f"sqlite:///{file}", f"sqlite:///{file}").search_registered_models()
    return file


@pytest.fixture
def client(settings: Settings, empty_database: Path) -> Any:
    from mlflow import MlflowClient

    settings.store.mkdir(parents=True)
    shutil.copy(empty_database, settings.store)
    return MlflowClient(settings.tracking_uri, settings.tracking_uri)


def register(settings: Settings, trained: Trained, key: str = "", number: int = 1) -> tracking.RegisteredVersion:
    work, config, result = trained
    if key:
        other = work.model_copy(update={"key": key})
        shutil.copytree(work.path, other.path, dirs_exist_ok=True)
        work = other
    return tracking.register(settings, work, config, number, result, provenance(work.key))


def write_release(folder: Path) -> Path:
    files.write(folder / "v1-abc" / "manifest.json", "{}")
    files.write(folder / "v1-abc" / "plots" / "a.png", b"png")
    return folder / "v1-abc"


def test_a_run_has_parameters_metrics_files_and_nested_runs(settings: Settings, trained: Trained, client: Any) -> None:
    """Parameters, metrics with intervals, dataset digest, files, and a nested run for each candidate with its folds."""
    version = register(settings, trained)
    work, _, result = trained
    scores, chosen, evaluation = result.candidates, result.chosen, result.evaluation
    run = client.get_run(version.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["mae"] == evaluation.metrics["mae"].value
    assert {"mae_low", "mae_high", "mae_baseline", "mae_cv_mean", "mae_cv_sd"} <= set(run.data.metrics)
    assert run.data.params["candidate"] == chosen.candidate
    assert {"hyperparameters", "seed", "folds", "rows", "gate.latency_ms", "data.time"} <= set(run.data.params)
    assert run.data.tags["dataset"] == work.dataset.digest
    assert work.dataset.digest.startswith(run.inputs.dataset_inputs[0].dataset.digest)
    present = {file.path for file in client.list_artifacts(version.run_id)}
    assert present >= {"config.yaml", "environment.lock", "validation.json", "slices.json", "data_docs.html", "plots"}
    nested = client.search_runs([version.experiment_id], f"tags.`mlflow.parentRunId` = '{version.run_id}'")
    assert {child.info.run_name for child in nested} == {score.candidate for score in scores}
    history = client.get_metric_history(nested[0].info.run_id, "mae_cv")
    assert [metric.step for metric in history] == [0, 1, 2]
    page = client.get_model_version("houses", "1")
    assert work.dataset.digest in page.description
    assert "| **mae** |" in page.description
    assert page.tags[mlflow_client.RUN_KEY] == work.key


def test_every_run_has_the_same_parameters_and_metrics(settings: Settings, trained: Trained, client: Any) -> None:
    """Whichever candidate was selected, MLflow's compare page has no missing cells."""
    work, config, result = trained
    names = (result.chosen.candidate, "baseline")
    other = next(scores.candidate for scores in result.candidates if scores.candidate not in names)
    model = result.model.model_copy(update={"candidate": other})
    results = (("a", result), ("b", result.model_copy(update={"model": model})))
    runs = [
        client.get_run(register(settings, (work, config, each), key * 64, number).run_id)
        for number, (key, each) in enumerate(results, 1)
    ]
    assert set(runs[0].data.params) == set(runs[1].data.params)
    assert set(runs[0].data.metrics) == set(runs[1].data.metrics)


def test_registering_twice_makes_one_version(settings: Settings, trained: Trained, client: Any) -> None:
    """The same run key returns its version; another key gets the next number."""
    first = register(settings, trained)
    assert register(settings, trained) == first
    assert register(settings, trained, "z" * 64, 2).version == 2
    assert len(client.search_model_versions("name = 'houses'")) == 2


@pytest.mark.parametrize("function", ["_log_candidate", "_log_model", "_log_run"])
def test_an_interrupted_registration_is_repeated(
    settings: Settings, trained: Trained, client: Any, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    """Wherever it is interrupted, no run stays RUNNING; the next attempt leaves one version and no incomplete run."""
    with monkeypatch.context() as patch:
        original = getattr(tracking, function)

        def interrupt(*args: Any, **kwargs: Any) -> Any:
            original(*args, **kwargs)
            raise KeyboardInterrupt

        patch.setattr(tracking, function, interrupt)
        with pytest.raises(KeyboardInterrupt):
            register(settings, trained)
    experiment = client.get_experiment_by_name("houses").experiment_id
    assert "RUNNING" not in {run.info.status for run in client.search_runs([experiment])}
    version = register(settings, trained)
    assert version.version == 1
    runs = client.search_runs([experiment])
    assert len(runs) == 4
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert len(client.search_logged_models([experiment])) == 1


def test_mlflow_loads_the_logged_model_with_equal_predictions(
    settings: Settings, trained: Trained, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The directory has a signature, an example, unusual column names, and the exact bytes of the fitted model."""
    version = register(settings, trained)
    import mlflow

    work, _, result = trained
    fitted = result.model
    source = client.get_model_version("houses", "1").source
    monkeypatch.setenv("MLFLOW_TRACKING_URI", settings.tracking_uri)
    mlflow.set_tracking_uri(settings.tracking_uri)
    try:
        folder = mlflow.artifacts.download_artifacts(source)
        model = mlflow.pyfunc.load_model(folder)
        example = model.input_example
    finally:
        mlflow.set_tracking_uri(None)
    assert files.sha256(Path(folder) / "model.skops") == fitted.sha256
    contract = Contract.model_validate_json(work.file("contract.json").read_bytes())
    features = contract.features(work.table())
    from towline.training import model_io

    ours = model_io.load_model(work.file("model.skops")).predict(features)
    np.testing.assert_array_equal(model.predict(features), ours)
    assert model.predict(example).shape == (1,)
    assert not (features[example.columns] == example.iloc[0]).all(axis=1).any(), "the example is a row of the table"
    assert version.link == "#/models/houses/versions/1?workflowType=machine_learning"


def test_closing_adds_release_costs_and_verdict(
    settings: Settings, trained: Trained, client: Any, tmp_path: Path
) -> None:
    """Values that are known after the gate are added to the finished run; a repetition changes nothing."""
    version = register(settings, trained)
    for _ in range(2):
        tracking.close(settings, version, write_release(tmp_path), VERDICT.outcome, COSTS)
    run = client.get_run(version.run_id)
    assert (run.data.metrics["wall_s"], run.data.metrics["cpu_s"], run.data.metrics["peak_mb"]) == (3.0, 4.0, 300.0)
    assert (run.data.tags["verdict"], run.data.tags["release"], run.info.status) == ("pass", "v1-abc", "FINISHED")
    assert {file.path for file in client.list_artifacts(version.run_id, "release")} == {
        "release/manifest.json", "release/plots",
    }  # fmt: skip


def make_record(folder: Path, number: int, key: str, verdict: str = "pass") -> VersionRecord:
    files.write(folder / f"v{number}" / "manifest.json", "{}")
    tags = {mlflow_client.VERSION: str(number), "verdict": verdict}
    return VersionRecord(
        version=number, run_key=key, tags=tags, folder=folder / f"v{number}", params={"a": "b"}, metrics={"mae": 2.0}
    )


def test_versions_have_the_ledgers_numbers(settings: Settings, trained: Trained, client: Any, tmp_path: Path) -> None:
    """In an empty MLflow, version 4 has the number 4; if MLflow's number is higher, a tag has the ledger's number."""
    version = register(settings, trained, number=4)
    assert (version.version, version.link) == (4, "#/models/houses/versions/4?workflowType=machine_learning")
    assert [model_version.version for model_version in client.search_model_versions("name = 'houses'")] == [4]
    client.create_model_version("houses", str(tmp_path))  # a version that towline did not create
    later = register(settings, trained, "z" * 64, 5)
    assert (later.version, later.link) == (5, "#/models/houses/versions/6?workflowType=machine_learning")
    assert client.get_model_version("houses", "6").tags[mlflow_client.VERSION] == "5"


def test_missing_versions_are_restored_by_their_run_key(
    settings: Settings, trained: Trained, client: Any, tmp_path: Path
) -> None:
    """A deleted version is restored with its run; a version without a run is created from its release."""
    runs = [register(settings, trained, key * 64, number).run_id for number, key in enumerate("ab", 1)]
    client.delete_model_version("houses", "1")
    versions = [
        make_record(tmp_path, 1, "a" * 64),
        make_record(tmp_path, 2, "b" * 64, "fail"),
        make_record(tmp_path, 3, "c" * 64),
    ]
    for _ in range(2):
        mirror.write(settings, "houses", None, versions, {"champion": 1, "previous": 3, "challenger": None})
    present = mirror.read(settings, "houses")
    assert {key[0]: version.tags[mlflow_client.VERSION] for key, version in present.versions.items()} == {
        "a": "1",
        "b": "2",
        "c": "3",
    }
    assert present.aliases == {
        "champion": present.versions["a" * 64].number,
        "previous": present.versions["c" * 64].number,
    }
    restored, other, created = (client.get_model_version("houses", present.versions[key * 64].number) for key in "abc")
    assert [restored.run_id, other.run_id] == runs
    assert restored.source.startswith("models:/")
    assert (other.version, other.tags["verdict"]) == (2, "fail")
    run = client.get_run(created.run_id)
    assert (run.data.params, run.data.metrics, run.info.status) == ({"a": "b"}, {"mae": 2.0}, "FINISHED")
    assert [file.path for file in client.list_artifacts(created.run_id, "release")] == ["release/manifest.json"]
    assert client.get_registered_model("houses").description == "Prices of houses."
    mirror.write(settings, "houses", None, versions, {"champion": 3, "previous": None})
    assert mirror.read(settings, "houses").aliases == {"champion": present.versions["c" * 64].number}


def test_versions_are_equal_from_a_server_and_its_database(
    settings: Settings, trained: Trained, client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Versions and aliases are equal from the server and from its database file; an unreachable server is an error."""
    import threading
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
    from urllib.parse import parse_qs, urlsplit

    from mlflow.utils.proto_json_utils import message_to_json

    for number, key in enumerate("abc", 1):
        register(settings, trained, key * 64, number)
    mirror.write(settings, "houses", None, [make_record(tmp_path, 2, "b" * 64)], {"champion": 2})
    credentials: list[str] = []

    class Server(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            credentials.append(self.headers.get("Authorization", ""))
            parts = urlsplit(self.path)
            query = parse_qs(parts.query)
            if parts.path == "/api/2.0/mlflow/registered-models/get":
                model = client.get_registered_model(query["name"][0])
                body = f'{{"registered_model": {message_to_json(model.to_proto())}}}'.encode()
            else:
                assert parts.path == "/api/2.0/mlflow/model-versions/search"
                versions = client.search_model_versions(query["filter"][0])
                listed = ", ".join(message_to_json(version.to_proto()) for version in versions)
                body = f'{{"model_versions": [{listed}]}}'.encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    remote = settings.model_copy(update={"tracking_uri": f"http://ann:s3cret@127.0.0.1:{server.server_port}"})
    try:
        assert mirror.read(remote, "houses") == mirror.read(settings, "houses")
    finally:
        server.shutdown()
        server.server_close()
    assert credentials[0].startswith("Basic ")
    with pytest.raises(TransientError) as caught:
        mirror.read(remote, "houses")
    assert "s3cret" not in str(caught.value)


REGISTER_SCRIPT = """
import pickle, sys
from towline.registry.mlflow import mirror, tracking
from towline.registry.mlflow.mirror import VersionRecord
if __name__ == "__main__":
    arguments, extra = pickle.load(open(sys.argv[1], "rb"))
    version = tracking.register(*arguments)
    tracking.close(arguments[0], version, *extra)
    open(sys.argv[2], "w").write(version.model_dump_json())
"""


@pytest.mark.slow
def test_first_use_by_many_processes_is_safe_and_silent(settings: Settings, trained: Trained, tmp_path: Path) -> None:
    """Three processes create the store at the same time, without git on the path: three versions, no output."""
    import pickle

    work, config, result = trained
    running = []
    for number in range(3):
        workspace = work.model_copy(update={"key": str(number) * 64})
        shutil.copytree(work.path, workspace.path, dirs_exist_ok=True)
        file = tmp_path / f"{number}.pickle"
        extra = (write_release(tmp_path), VERDICT.outcome, COSTS)
        file.write_bytes(
            pickle.dumps(((settings, workspace, config, number + 1, result, provenance(workspace.key)), extra))
        )
        command = [sys.executable, "-c", REGISTER_SCRIPT, str(file), str(tmp_path / f"{number}.json")]
        environment = {**os.environ, "PATH": "/nonexistent", "PYTHONPATH": str(Path.cwd())}
        running.append(subprocess.Popen(command, stdout=-1, stderr=-1, text=True, cwd=tmp_path, env=environment))
    outputs = [process.communicate() for process in running]
    assert outputs == [("", "")] * 3
    versions = [json.loads((tmp_path / f"{number}.json").read_text())["version"] for number in range(3)]
    assert sorted(versions) == [1, 2, 3]


def catch_transient_error(call: Callable[[], object]) -> TransientError:
    """The TransientError of a call, which must come within 15 s."""
    started = time.monotonic()
    with pytest.raises(TransientError) as caught:
        call()
    assert time.monotonic() - started < 15
    assert caught.value.remedy
    return caught.value


def test_a_locked_store_is_unavailable(settings: Settings, trained: Trained, client: Any) -> None:
    """The error names the lock of another process; after its end the registration succeeds."""
    register(settings, trained)
    with sqlite3.connect(settings.store / "mlflow.db", isolation_level=None) as holder:
        holder.execute("BEGIN EXCLUSIVE")
        error = catch_transient_error(lambda: register(settings, trained, "y" * 64))
        holder.execute("ROLLBACK")
    assert "locked" in error.what
    assert register(settings, trained, "y" * 64, 2).version == 2


@pytest.mark.parametrize("statement", ["", "DROP TABLE model_version_tags"])
def test_a_store_of_another_version_of_mlflow_is_unavailable(
    statement: str, settings: Settings, trained: Trained
) -> None:
    """A newer MLflow has changed the database; the remedy is about the version, not about the disk."""
    register(settings, trained)
    newer = settings.store / "newer.db"  # MLflow checks each database once in a process
    shutil.copy(settings.store / "mlflow.db", newer)
    with closing(sqlite3.connect(newer)) as database, database:
        database.execute("UPDATE alembic_version SET version_num = 'later'")
        database.execute(statement)
    later = settings.model_copy(update={"tracking_uri": f"sqlite:///{newer}"})
    error = catch_transient_error(lambda: register(later, trained, "y" * 64))
    assert "later" in error.what
    assert "another version of MLflow wrote this database" in error.remedy


def test_a_store_that_cannot_be_used_is_unavailable(tmp_path: Path, trained: Trained) -> None:
    """A file in place of the folder, a folder in which no file can be created, a file that is no database."""
    (tmp_path / "file").touch()
    (tmp_path / "rubbish.db").write_bytes(b"rubbish" * 1000)
    for store, uri in (
        (tmp_path / "file" / "mlruns", f"sqlite:///{tmp_path}/file/mlruns/mlflow.db"),
        (tmp_path, "sqlite:////proc/mlflow.db"),
        (tmp_path, f"sqlite:///{tmp_path}/rubbish.db"),
    ):
        settings = Settings(project=tmp_path, store=store, tracking_uri=uri, ledger_url="sqlite://")
        catch_transient_error(lambda settings=settings: register(settings, trained))  # type: ignore[misc]


def test_an_unreachable_or_silent_server_is_unavailable(tmp_path: Path, trained: Trained) -> None:
    """Nothing listens, or the server never answers; the error does not contain the password."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        for port in (1, silent.getsockname()[1]):
            settings = Settings(
                project=tmp_path,
                store=tmp_path,
                tracking_uri=f"http://ann:s3cret@127.0.0.1:{port}",
                ledger_url="sqlite://",
            )
            error = catch_transient_error(lambda settings=settings: register(settings, trained))  # type: ignore[misc]
            assert "s3cret" not in str(error)
