"""The training as a Kubeflow pipeline: with Kubeflow's local runner, and its steps in this process."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tasks import kubeflow
from tests.support.commands import CommandResult
from tests.support.paths import REPOSITORY
from towline.config import Settings, read_config
from towline.errors import DataValidationError, PromotionRejectedError, TransientError
from towline.manifest import read_manifest
from towline.platforms.kubeflow import list_steps
from towline.platforms.step_artifacts import read_result
from towline.promotion.outcome import Outcome
from towline.registry.ledger import open_ledger

Command = Callable[..., CommandResult]
# kfp's runner starts a process for each component, like a pod in a cluster
LOCAL_RUN = """
import sys
from kfp import components, local
local.init(runner=local.SubprocessRunner(use_venv=False), pipeline_root=sys.argv[2], raise_on_error=True)
components.load_component_from_file(sys.argv[1])()
"""


@pytest.fixture
def settings(store: Path) -> Settings:
    return Settings.from_environment()


def run_steps(config: Path, settings: Settings, folder: Path, *overrides: str, **parameters: Any) -> dict[str, Path]:
    """Runs each step of the pipeline in this process; returns the artifacts."""
    pipeline, artifacts = read_config(config, overrides), {}
    for step in list_steps(pipeline, settings):
        artifacts[step.name] = folder / step.name
        values = {"config": pipeline.model_dump_json(), "as_of": "", "force": False} | parameters
        kubeflow.run_step(
            step.function,
            step.name,
            str(artifacts[step.name]),
            {name: str(artifacts[name]) for name in step.inputs},
            **{name: values[name] for name in step.parameters},
        )
    return artifacts


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_kubeflows_runner_promotes_the_model_of_towline_run(
    towline: Command, config: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The compiled file, run by kfp's SubprocessRunner, ends with a promotion; `towline run` trains the same model.

    Each component is a process that gets files through artifacts only. Both runs select the same candidate with the
    same metrics, and their models are equal to the last bit.
    """
    overrides = ("--set", "candidates=[linear]")
    pipeline = tmp_path / "pipeline.yaml"
    assert towline("export", "kubeflow", config, "-o", pipeline, *overrides).code == 0
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "TOWLINE_STORE": str(store)}
    result = subprocess.run(
        [sys.executable, "-c", LOCAL_RUN, pipeline, tmp_path / "root"],
        env=environment, capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout[-5000:] + result.stderr[-5000:]
    settings = Settings.from_environment()
    champion = open_ledger(settings).champion("bikes")
    assert champion is not None
    assert (champion.version, champion.event) == (1, "promoted")
    assert towline("show", "bikes", "--json").json["manifest"]["estimator"] == "linear"
    assert towline("verify", "bikes").code == 0  # ledger, release and MLflow agree
    assert not any((store / "work").iterdir())

    monkeypatch.setenv("TOWLINE_STORE", str(tmp_path / "other"))
    outcome = towline("run", config, *overrides, "--json").json
    assert outcome["event"] == "promoted"
    releases = [store / champion.release, tmp_path / "other" / outcome["release"]]
    metrics = [read_manifest(release).metrics for release in releases]
    assert metrics[0] == metrics[1]
    plans = [np.load(release / "plan.npz", allow_pickle=False) for release in releases]
    assert plans[0].files == plans[1].files
    for name in plans[0].files:
        assert plans[0][name].tobytes() == plans[1][name].tobytes(), name


def test_a_refused_version_fails_the_run_and_is_recorded(config: Path, settings: Settings, tmp_path: Path) -> None:
    """Kubeflow shows the run as failed; the ledger has the refusal, and no version serves.

    An identical later run is not trained again; a run with another gate is judged again.
    """
    words = ("gate.max.mae=0.5", "candidates=[linear]")
    with pytest.raises(PromotionRejectedError, match="mae"):
        run_steps(config, settings, tmp_path / "first", *words)
    ledger = open_ledger(settings)
    assert ledger.champion("bikes") is None
    assert [(row.event, row.version) for row in ledger.history("bikes")] == [("refused", 1), ("registered", 1)]

    again = run_steps(config, settings, tmp_path / "second", *words)
    outcome = read_result(again["decide promotion"], Outcome)
    assert (outcome.repeated, outcome.event, outcome.version) == (True, "refused", 1)
    assert len(ledger.history("bikes")) == 2
    assert not list((tmp_path / "second" / "fit").glob("store/*"))


def test_invalid_data_stops_at_the_validation(config: Path, settings: Settings, tmp_path: Path) -> None:
    """Nothing is registered; the error names the rule."""
    with pytest.raises(DataValidationError):
        run_steps(config, settings, tmp_path / "run", "validation={columns: {hour: {max: 3}}}", "candidates=[linear]")
    assert not (tmp_path / "run" / "split").exists()
    assert open_ledger(settings).models() == []


def test_a_step_is_retried_while_a_store_is_down(
    config: Path, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step succeeds after two failures of a store, and fails after three."""
    monkeypatch.setattr(kubeflow, "DELAY_S", 0.0)
    failures = [TransientError("the ledger is down")] * 2

    def load(*_: Any, **__: Any) -> dict[str, Any]:
        if failures:
            raise failures.pop()
        return {"rows": 3}

    monkeypatch.setattr(kubeflow, "load", load)
    assert kubeflow.run_step("load", "load", str(tmp_path / "artifact"), {}) == {"rows": 3}
    failures += [TransientError("the ledger is down")] * 3
    with pytest.raises(TransientError):
        kubeflow.run_step("load", "load", str(tmp_path / "artifact"), {})
    assert not failures
