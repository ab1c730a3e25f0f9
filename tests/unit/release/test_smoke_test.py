"""The release answers in a process that has only the runtime."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.unit.release.conftest import Run
from towline.data.schema.contract import Contract
from towline.inference.predictor import open_release
from towline.release import smoke_test
from towline.release.packaging import Release
from towline.training.evaluation.predictions import Predictions


def test_a_bare_process_answers_identically(regression: Run, packed: Release) -> None:
    """To the last bit, with none of the pipeline's libraries imported."""
    found = smoke_test.run_smoke_test(regression.work, packed)
    assert found.identical, found.detail
    assert found.modules == ()
    assert found.rows == regression.evaluation.rows
    assert 0 < found.latency_ms < 10_000
    assert found.peak_mb > 10


def test_classification_too(binary: Run) -> None:
    """Labels and probabilities."""
    found = smoke_test.run_smoke_test(binary.work, binary.package())
    assert found.identical, found.detail


def test_another_answer_is_found(regression: Run, packed: Release, tmp_path: Path) -> None:
    """One value off by the last bit is told, and so is another shape."""
    model = open_release(regression.settings.store / packed.path)
    answers = model.predict_frame(regression.work.subset("holdout").features)
    labels = answers.labels.copy()
    np.savez(tmp_path / "same.npz", labels=labels)
    assert smoke_test._differences(tmp_path / "same.npz", answers, model.contract, 0.0) == []
    labels[7] = np.nextafter(labels[7], np.inf)
    np.savez(tmp_path / "off.npz", labels=labels)
    (found,) = smoke_test._differences(tmp_path / "off.npz", answers, model.contract, 0.0)
    assert f"labels differ in 1 of {len(labels)} rows" in found
    np.savez(tmp_path / "short.npz", labels=labels[1:], probabilities=labels)
    assert len(smoke_test._differences(tmp_path / "short.npz", answers, model.contract, 0.0)) == 2


@pytest.mark.parametrize("other", [[1, 0], [1.0, 0.0], [np.True_, np.False_]])
def test_labels_of_another_type_are_found(tmp_path: Path, other: list[object]) -> None:
    """1 and 1.0 are equal to True in Python; a release that answers so is told apart from one that answers True."""
    contract = Contract(target="y", task="binary", columns=(), classes=(False, True), positive=True)
    np.savez(tmp_path / "expected.npz", labels=np.array([1, 0]))
    right, wrong = (Predictions(np.array(labels, dtype=object)) for labels in ([True, False], other))
    assert smoke_test._differences(tmp_path / "expected.npz", right, contract, 0.0) == []
    (finding,) = smoke_test._differences(tmp_path / "expected.npz", wrong, contract, 0.0)
    assert finding == f"labels have the type {type(other[0]).__name__}, the classes bool"


def test_a_spoilt_release_is_a_failed_test(regression: Run, packed: Release, release: Path) -> None:
    """The cause is told and nothing is raised."""
    (release / "probe.json").write_text("[]")
    spoilt = packed.model_copy(update={"path": str(release)})  # an absolute path stands for itself
    found = smoke_test.run_smoke_test(regression.work, spoilt)
    assert not found.identical
    assert "probe.json" in found.detail


def test_a_process_that_does_not_answer(regression: Run, packed: Release) -> None:
    """Killed before, and slower than allowed."""
    with smoke_test.start_tester() as process:
        process.kill()
        process.wait()
        found = smoke_test.finish_smoke_test(process, regression.work, packed)
    assert not found.identical
    assert "exit code -9" in found.detail
    with smoke_test.start_tester() as process:
        found = smoke_test.finish_smoke_test(process, regression.work, packed, timeout=0.01)
    assert "no answer within" in found.detail


def test_it_ends_with_its_parent() -> None:
    """A process that was started early and is never asked leaves when its stdin is closed."""
    with smoke_test.start_tester() as process:
        pass
    assert process.returncode == 0


@pytest.mark.parametrize("name", sorted(smoke_test.FORBIDDEN))
def test_the_blocker_refuses_and_remembers(name: str) -> None:
    """Whether installed or not, and for a part of it too."""
    code = (
        "import sys; from towline.release.smoke_test import ImportBlocker\n"
        "b = ImportBlocker(); sys.meta_path.insert(0, b)\n"
        f"try: import {name}.part\n"
        "except ModuleNotFoundError: print(*b.asked)"
    )
    root = str(Path(smoke_test.__file__).parents[2])
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [name]
