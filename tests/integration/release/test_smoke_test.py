"""The smoke test compares the predictions of a release in a process that has only the runtime."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.support.releases import TrainedRun
from towline.data.schema.contract import Contract
from towline.inference.predictor import open_release
from towline.release import smoke_test
from towline.release.packaging import Release
from towline.training.evaluation.predictions import Predictions


def run_smoke_test(run: TrainedRun, release: Release) -> smoke_test.SmokeTestResult:
    with smoke_test.start_tester() as process:
        return smoke_test.finish_smoke_test(process, run.work, release)


@pytest.mark.slow
def test_a_process_with_only_the_runtime_gives_identical_predictions(regression: TrainedRun, packed: Release) -> None:
    """Predictions are equal to the last bit, and no library of the pipeline is imported."""
    result = run_smoke_test(regression, packed)
    assert result.identical, result.detail
    assert result.modules == ()
    assert result.rows == regression.evaluation.rows
    assert 0 < result.latency_ms < 10_000
    assert result.peak_mb > 10


@pytest.mark.slow
def test_labels_and_probabilities_of_a_classification_are_identical(binary: TrainedRun) -> None:
    result = run_smoke_test(binary, binary.package())
    assert result.identical, result.detail


def test_a_different_prediction_is_reported(regression: TrainedRun, packed: Release, tmp_path: Path) -> None:
    """A difference in the last bit of a single value is reported, and so is another shape."""
    model = open_release(regression.settings.store / packed.path)
    answers = model.predict_frame(regression.work.subset("holdout").features)
    labels = answers.labels.copy()
    np.savez(tmp_path / "same.npz", labels=labels)
    assert smoke_test._differences(tmp_path / "same.npz", answers, model.contract, 0.0) == []
    labels[7] = np.nextafter(labels[7], np.inf)
    np.savez(tmp_path / "off.npz", labels=labels)
    (difference,) = smoke_test._differences(tmp_path / "off.npz", answers, model.contract, 0.0)
    assert f"labels differ in 1 of {len(labels)} rows" in difference
    np.savez(tmp_path / "short.npz", labels=labels[1:], probabilities=labels)
    assert len(smoke_test._differences(tmp_path / "short.npz", answers, model.contract, 0.0)) == 2
    missing = Predictions(np.where(np.arange(len(answers.labels)) < 2, np.nan, answers.labels), None)
    (difference,) = smoke_test._differences(tmp_path / "same.npz", missing, model.contract, 1e-12)
    assert "labels differ in 2 of" in difference


@pytest.mark.parametrize("other", [[1, 0], [1.0, 0.0], [np.True_, np.False_]])
def test_labels_of_another_type_are_reported(tmp_path: Path, other: list[object]) -> None:
    """In Python 1 and 1.0 are equal to True; here they are different labels."""
    contract = Contract(target="y", task="binary", columns=(), classes=(False, True), positive=True)
    np.savez(tmp_path / "expected.npz", labels=np.array([1, 0]))
    right, wrong = (Predictions(np.array(labels, dtype=object)) for labels in ([True, False], other))
    assert smoke_test._differences(tmp_path / "expected.npz", right, contract, 0.0) == []
    (difference,) = smoke_test._differences(tmp_path / "expected.npz", wrong, contract, 0.0)
    assert difference == f"labels have the type {type(other[0]).__name__}, the classes bool"


@pytest.mark.slow
def test_a_damaged_release_fails_the_smoke_test(regression: TrainedRun, packed: Release, release: Path) -> None:
    """The result holds the cause; no error is raised."""
    (release / "probe.json").write_text("[]")
    damaged = packed.model_copy(update={"path": str(release)})  # an absolute path is not joined with the store
    result = run_smoke_test(regression, damaged)
    assert not result.identical
    assert "probe.json" in result.detail


def test_a_process_without_a_result_fails_the_smoke_test(regression: TrainedRun, packed: Release) -> None:
    """The process was killed, or took longer than the timeout."""
    with smoke_test.start_tester() as process:
        process.kill()
        process.wait()
        result = smoke_test.finish_smoke_test(process, regression.work, packed)
    assert not result.identical
    assert "exit code -9" in result.detail
    with smoke_test.start_tester() as process:
        result = smoke_test.finish_smoke_test(process, regression.work, packed, timeout=0.01)
    assert "no result within" in result.detail


@pytest.mark.slow
def test_the_process_ends_when_its_stdin_closes() -> None:
    """A process that gets no job ends with exit code 0."""
    with smoke_test.start_tester() as process:
        pass
    assert process.returncode == 0


def test_the_import_blocker_refuses_and_records_each_module() -> None:
    """It also refuses a submodule, and a module that is not installed."""
    names = sorted(smoke_test.FORBIDDEN)
    code = (
        "import importlib, sys; from towline.release.smoke_test import ImportBlocker\n"
        "b = ImportBlocker(); sys.meta_path.insert(0, b)\n"
        f"for name in {names}:\n"
        "    try: importlib.import_module(f'{name}.part')\n"
        "    except ModuleNotFoundError: continue\n"
        "    sys.exit(f'{name} was imported')\n"
        "print(*sorted(b.refused))"
    )
    root = str(Path(smoke_test.__file__).parents[2])
    result = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert result.stdout.split() == names
