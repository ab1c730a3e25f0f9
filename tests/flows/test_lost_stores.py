"""A lost MLflow store or ledger: version numbers stay unique, verdicts belong to their releases, MLflow is repaired."""

import shlex
import shutil
import sqlite3
import subprocess
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.support.commands import CommandResult
from tests.support.store_commands import MODEL, write_bike_config
from towline.config import Settings
from towline.registry.ledger import Ledger
from towline.registry.mlflow import client as mlflow_client
from towline.registry.mlflow import mirror

Command = Callable[..., CommandResult]


class Pipeline:
    """A config, its runs, and their versions in the ledger and in MLflow."""

    def __init__(self, towline: Command, config: Path, store: Path) -> None:
        self.towline, self.config, self.store, self.seed = towline, config, store, 0
        self.settings = Settings.from_environment()

    def run(self, *words: str, seed: int | None = None) -> Any:
        """Runs the config with a new seed, which gives a new run key, or with the ``seed`` of an earlier run."""
        self.seed += 1
        result = self.towline("run", self.config, "--set", f"seed={seed or self.seed}", *words, "--json")
        assert result.code in (0, 4), result.err
        return result.json

    @property
    def ledger(self) -> Ledger:
        return Ledger(self.settings.ledger_url)

    def client(self) -> Any:
        from mlflow import MlflowClient

        return MlflowClient(self.settings.tracking_uri, self.settings.tracking_uri)

    def close_mlflow(self) -> None:
        """Closes MLflow's connections, since the database file is replaced."""
        from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore as Models
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore as Runs
        from mlflow.tracking._model_registry.registry import ModelRegistryStoreRegistry
        from mlflow.tracking._tracking_service.registry import TrackingStoreRegistry

        for kind in (Models, Runs):
            for engine in kind._engine_map.values():
                engine.dispose()
            kind._engine_map.clear()
        for registry in (ModelRegistryStoreRegistry, TrackingStoreRegistry):
            registry._get_store_with_resolved_uri.cache_clear()

    def read_mirror(self) -> tuple[dict[str, str], dict[str, str]]:
        """MLflow's version numbers by the ledger's numbers, and MLflow's aliases with the ledger's numbers."""
        present = mirror.read(self.settings, MODEL)
        numbers = {version.number: version.tags[mlflow_client.VERSION] for version in present.versions.values()}
        return {ours: own for own, ours in numbers.items()}, {
            name: numbers[own] for name, own in present.aliases.items()
        }

    def is_consistent(self) -> bool:
        """Checks that each version has one run, one release, and a verdict for that release."""
        rows = self.ledger.rows(MODEL)
        keys = {(row.version, row.run_key) for row in rows if row.event in ("registered", "promoted", "refused")}
        assert len(keys) == len({version for version, _ in keys}), keys
        folders = [path.name.partition("-")[0] for path in (self.store / "releases" / MODEL).glob("v*")]
        assert len(folders) == len(set(folders)), folders
        named = {row.release.rpartition("/")[2] for row in rows if row.event in ("promoted", "refused")}
        assert len(named) == len({row.version for row in rows if row.event in ("promoted", "refused")})
        return True


@pytest.fixture
def pipeline(towline: Command, tmp_path: Path, store: Path) -> Pipeline:
    return Pipeline(towline, write_bike_config(tmp_path), store)


REFUSED = ("--set", "gate.max.mae=0.5")


def test_a_deleted_registered_model_is_restored(pipeline: Pipeline) -> None:
    """The next run is not version 1; versions, aliases and runs are restored in MLflow."""
    first, refused = pipeline.run(), pipeline.run(*REFUSED)
    pipeline.client().delete_registered_model(MODEL)
    third = pipeline.run()
    assert [first["version"], refused["version"], third["version"]] == [1, 2, 3]
    assert pipeline.is_consistent()
    assert pipeline.read_mirror() == ({"1": "1", "2": "2", "3": "3"}, {"champion": "3", "previous": "1"})
    restored = pipeline.client().get_model_version(MODEL, "1")
    assert restored.run_id == first["run_id"]
    assert restored.tags["verdict"] == "pass"
    assert pipeline.client().get_model_version(MODEL, "2").tags["verdict"] == "fail"


def test_status_restores_a_deleted_champion(pipeline: Pipeline) -> None:
    """status reports the missing version once. A later run has a new number."""
    first, _ = pipeline.run(), pipeline.run(*REFUSED)
    client = pipeline.client()
    client.delete_model_version(MODEL, "1")
    client.set_registered_model_alias(MODEL, "champion", "2")
    result = pipeline.towline("status", MODEL)
    assert result.code == 0, result.err
    assert (
        "version 1, which serves, is missing: put back; the alias champion is not on version 1: put back" in result.out
    )
    assert "mlflow " not in pipeline.towline("status", MODEL).out
    numbers, aliases = pipeline.read_mirror()
    assert aliases == {"champion": "1"}
    assert client.get_model_version(MODEL, numbers["1"]).run_id == first["run_id"]
    assert pipeline.run()["version"] == 3
    assert pipeline.is_consistent()
    assert pipeline.read_mirror()[1] == {"champion": "3", "previous": "1"}


def test_a_lost_tracking_store_is_restored(pipeline: Pipeline) -> None:
    """All versions are restored from releases and ledger without MLflow's database and artifacts."""
    first, _ = pipeline.run(), pipeline.run(*REFUSED)
    pipeline.close_mlflow()
    pipeline.store.joinpath("mlflow.db").unlink()
    shutil.rmtree(pipeline.store / "artifacts")
    assert pipeline.run()["version"] == 3
    assert pipeline.is_consistent()
    assert pipeline.read_mirror() == ({"1": "1", "2": "2", "3": "3"}, {"champion": "3", "previous": "1"})
    client = pipeline.client()
    run = client.get_run(client.get_model_version(MODEL, "1").run_id)
    assert run.data.metrics["mae"] == pytest.approx(first["metrics"]["mae"]["value"])
    assert {item.path for item in client.list_artifacts(run.info.run_id)} >= {"plots", "release"}


def test_an_old_backup_of_the_tracking_store_is_updated(pipeline: Pipeline) -> None:
    """Missing versions are restored under their numbers, and the champion has its alias."""
    pipeline.run()
    shutil.copy(pipeline.store / "mlflow.db", pipeline.store / "yesterday.db")
    pipeline.run()
    pipeline.close_mlflow()
    pipeline.store.joinpath("yesterday.db").rename(pipeline.store / "mlflow.db")
    refused = pipeline.run(*REFUSED)
    assert (refused["version"], refused["event"]) == (3, "refused")
    assert pipeline.is_consistent()
    assert pipeline.read_mirror() == ({"1": "1", "2": "2", "3": "3"}, {"champion": "2", "previous": "1"})


def test_a_version_deleted_during_its_run(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model is deleted in MLflow between registration and decision: the run succeeds, and MLflow has it again."""
    from towline.promotion import outcome

    decide = outcome.decide_promotion

    def late(*given: Any) -> Any:
        pipeline.client().delete_registered_model(MODEL)
        return decide(*given)

    monkeypatch.setattr(outcome, "decide_promotion", late)
    result = pipeline.run()
    assert (result["event"], result["note"]) == ("promoted", "")
    assert pipeline.read_mirror() == ({"1": "1"}, {"champion": "1"})


def test_a_locked_mlflow_store_gives_a_note(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the decision a locked MLflow store does not fail the run; the next command that writes updates it."""
    from towline.promotion import outcome
    from towline.registry.mlflow import client

    decide = outcome.decide_promotion
    monkeypatch.setattr(client, "_TIMEOUT_S", 0.2)
    locks: list[sqlite3.Connection] = []

    def late(*given: Any) -> Any:
        lock = sqlite3.connect(pipeline.store / "mlflow.db", isolation_level=None, check_same_thread=False)
        lock.execute("BEGIN EXCLUSIVE")
        locks.append(lock)
        return decide(*given)

    with monkeypatch.context() as patch:
        patch.setattr(outcome, "decide_promotion", late)
        result = pipeline.run()
    locks[0].close()
    assert result["event"] == "promoted"
    assert "MLflow does not show this yet" in result["note"]
    assert pipeline.read_mirror()[1] == {}
    assert "put back" in pipeline.towline("status", MODEL, "--json").json["mirror"]
    assert pipeline.read_mirror() == ({"1": "1"}, {"champion": "1"})


def accept_ledger(pipeline: Pipeline, reason: str) -> None:
    """A run on a ledger that lost rows is refused; its remedy, with a reason, accepts the ledger."""
    result = pipeline.towline("run", pipeline.config, "--set", "seed=99", "--json")
    assert result.code == 6, result.out + result.err
    assert "rows were removed" in result.json["what"]
    words = shlex.split(result.json["remedy"].rpartition(": ")[2].replace("'...'", shlex.quote(reason)))
    result = pipeline.towline(*words[1:])
    assert "signed and anchored" in result.err or "the anchor of its last row is removed" in result.err, result.err


def test_a_lost_ledger_is_reported(pipeline: Pipeline) -> None:
    """Every command reports the loss with a remedy, which works as printed."""
    pipeline.run()
    backup = pipeline.store / "ledger.copy"
    shutil.copy(pipeline.store / "ledger.db", backup)
    pipeline.store.joinpath("ledger.db").unlink()
    commands = (
        ("models",), ("models", MODEL), ("history",), ("status",), ("status", MODEL), ("show", MODEL), ("rollback",),
        ("promote", f"{MODEL}@1", "--reason", "x"), ("score", pipeline.config, "out.csv"), ("package", MODEL),
        ("up", pipeline.config), ("run", pipeline.config),
    )  # fmt: skip
    for words in commands:
        result = pipeline.towline(*words)
        assert result.code == 6, (words, result.err)
        assert "the ledger was lost" in result.err
        assert "towline restore FILE --force" in result.err
    assert not pipeline.store.joinpath("ledger.db").exists()

    shutil.copy(backup, pipeline.store / "ledger.db")
    assert pipeline.towline("models", "--json").json[0]["version"] == 1
    pipeline.store.joinpath("ledger.db").unlink()
    remedy = pipeline.towline("models", "--json").json["remedy"]
    subprocess.run(shlex.split(remedy.rpartition(": ")[2]), check=True)
    accept_ledger(pipeline, "the ledger was lost")
    assert pipeline.run()["version"] == 1
    assert pipeline.towline("models", "--json").json[0]["version"] == 1
    assert pipeline.is_consistent()


def test_an_old_backup_of_the_ledger_gives_no_number_twice(pipeline: Pipeline) -> None:
    """Other runs get neither the numbers nor the verdicts of releases in the store."""
    pipeline.run()
    shutil.copy(pipeline.store / "ledger.db", pipeline.store / "yesterday")
    lost = pipeline.run()
    pipeline.store.joinpath("yesterday").rename(pipeline.store / "ledger.db")
    accept_ledger(pipeline, "yesterday's ledger was restored")
    assert pipeline.towline("promote", f"{MODEL}@2", "--reason", "x").code == 2
    result = pipeline.run(*REFUSED)
    assert (lost["version"], result["version"], result["event"]) == (2, 3, "refused")
    assert pipeline.towline("promote", f"{MODEL}@3", "--reason", "x").code == 4
    folders = sorted(path.name.partition("-")[0] for path in (pipeline.store / "releases" / MODEL).glob("v*"))
    assert folders == ["v1", "v2", "v3"]
    assert pipeline.run(seed=2)["version"] == 4  # the run whose promotion was lost is judged again
    assert pipeline.is_consistent()


@pytest.mark.parametrize(
    "words",
    [
        ("models",), ("models", MODEL), ("history",), ("status",), ("status", MODEL), ("show", MODEL),
        ("show", f"{MODEL}@1"), ("package", MODEL), ("promote", f"{MODEL}@1", "--reason", "x"), ("rollback",),
        ("score", "x.csv", "y.csv"), ("score", "x.csv", "y.csv", "--model", f"{MODEL}@1"), ("serve", MODEL),
    ],
)  # fmt: skip
def test_a_changed_ledger_is_rejected_by_all_commands(
    words: tuple[str, ...], command: Command, sample_store: Any
) -> None:
    """A champion that was written into the ledger by SQL is neither served nor shown."""
    with closing(sqlite3.connect(sample_store.ledger_file)) as database, database:
        older = sample_store.release(2).relative_to(sample_store.settings.store).as_posix()
        database.execute("UPDATE ledger SET release = ? WHERE event = 'rolled_back'", (older,))
    result = command(*(word.replace(MODEL, "house-value") for word in words))
    assert result.code == 6, result.out + result.err
    assert "was changed after it was written" in result.err
