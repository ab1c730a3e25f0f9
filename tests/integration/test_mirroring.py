"""MLflow as the mirror of the ledger: `towline up` and commands report differences and repair them."""

import json
from collections.abc import Callable

import pytest

from tests.support.commands import CommandResult
from tests.support.sample_store import MODEL, SampleStore
from towline.config import PipelineConfig
from towline.operations import supervisor
from towline.operations.supervisor import Supervisor
from towline.registry.mlflow import client, mirror
from towline.registry.mlflow.synchronization import find_differences

CONFIG = PipelineConfig.model_validate({"name": MODEL, "data": {"source": "x.csv", "target": "value"}})


@pytest.fixture
def mirrored(sample_store: SampleStore) -> SampleStore:
    """The sample store, with the address of an MLflow store that does not exist yet."""
    uri = f"sqlite:///{sample_store.settings.store}/mlflow.db"
    return SampleStore(sample_store.settings.model_copy(update={"tracking_uri": uri}))


@pytest.mark.slow
def test_up_restores_versions_that_were_deleted_in_mlflow(
    mirrored: SampleStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A missing MLflow store, then a deleted champion: each is reported once, and restored by another process."""
    from mlflow import MlflowClient

    monkeypatch.setattr(supervisor, "_MLFLOW_CHECK_S", 0.0)
    settings, messages = mirrored.settings, list[str]()
    up = Supervisor(settings, [], [CONFIG], [], messages.append)
    (settings.store / "logs").mkdir()

    def check_twice() -> None:
        up._check_mlflow()
        up._check_mlflow()
        if process := up._mlflow_checks[MODEL].process:
            assert process.wait(120) == 0, (settings.store / "logs" / "mirror.log").read_text()

    check_twice()
    assert "version 1, which serves, is missing" in messages[0]
    assert "version 2 is missing" in messages[0]
    present = mirror.read(settings, MODEL)
    assert {version.tags[client.VERSION]: version.number for version in present.versions.values()} == {
        "1": "1",
        "2": "2",
    }
    assert present.aliases == {"champion": "1"}
    check_twice()
    assert len(messages) == 1

    MlflowClient(settings.tracking_uri, settings.tracking_uri).delete_model_version(MODEL, "1")
    assert find_differences(settings, MODEL) == ("version 1, which serves, is missing",)
    check_twice()
    assert len(messages) == 2
    assert find_differences(settings, MODEL) == ()
    present = mirror.read(settings, MODEL)
    champion = next(version for version in present.versions.values() if version.number == present.aliases["champion"])
    assert (champion.tags[client.VERSION], champion.tags["verdict"]) == ("1", "pass")


def test_a_damaged_release_does_not_prevent_mirroring_of_other_versions(mirrored: SampleStore) -> None:
    """Versions with an undamaged release are mirrored; the other one is still reported as missing."""
    from towline.registry.mlflow.synchronization import synchronize

    (mirrored.release(2) / "contract.json").write_text("{}")
    assert synchronize(mirrored.settings, MODEL)[:2] == (
        "version 1, which serves, is missing: put back", "version 2 is missing: its release is damaged"
    )  # fmt: skip
    assert find_differences(mirrored.settings, MODEL) == ("version 2 is missing",)
    assert mirror.read(mirrored.settings, MODEL).aliases == {"champion": "1"}


def test_a_promotion_succeeds_while_mlflow_is_down(
    mirrored: SampleStore, command: Callable[..., CommandResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The version becomes champion; a note names MLflow, and `towline status` reports that MLflow cannot be read."""
    monkeypatch.setenv("TOWLINE_TRACKING_URI", "http://127.0.0.1:1")
    result = command("promote", f"{MODEL}@2", "--reason", "better", "--json")
    assert result.code == 0
    assert json.loads(result.out)["changed"]
    assert "note: MLflow does not show this yet" in result.err
    status = command("status", MODEL, "--json")
    assert status.code == 0
    assert status.json["champion"]["version"] == 2
    assert "cannot be read" in status.json["mirror"]
