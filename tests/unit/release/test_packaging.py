"""Packaging is atomic, and gives the same release for the same run."""

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

from tests.support.releases import TrainedRun, make_house_table, train_run
from towline import files
from towline.config import build_config
from towline.errors import ReleaseError, TransientError
from towline.inference.predictor import open_release
from towline.manifest import verify_release
from towline.release import packaging
from towline.release.packaging import Release
from towline.training.evaluation.holdout import load_evaluation_predictions


def test_packaging_twice_gives_the_same_release(regression: TrainedRun, packed: Release) -> None:
    """The second call uses the folder of the first call, or writes it again if it was moved."""
    home = (regression.settings.store / packed.path).parent
    assert regression.package() == packed
    shutil.rmtree(regression.settings.store / packed.path)
    assert regression.package() == packed
    assert [path.name for path in home.iterdir() if path.is_dir()] == [Path(packed.path).name]


def test_the_release_holds_all_files_and_the_description_of_the_run(regression: TrainedRun, packed: Release) -> None:
    directory = regression.settings.store / packed.path
    manifest = verify_release(directory)
    assert set(manifest.files) == {
        "model.skops", "contract.json", "profile.json", "config.yaml", "metrics.json", "validation.json",
        "environment.lock", "card.md", "card.html", "plots/fold_scores.png", "probe.json",
        "plan.npz", "certificate.json", "holdout.npz", "blocks.npz", "estimate.json", "loss.skops",
        "requirements.txt", "sbom.cdx.json",
    }  # fmt: skip
    assert manifest.digest == packed.digest
    assert manifest.files["model.skops"].sha256 == regression.fitted.sha256
    times, parts = regression.work.table()["at"], regression.work.split_positions()
    split = manifest.dataset["split"]
    assert split["train_end"] == times.max().isoformat() == manifest.dataset["end"]
    assert split["measured_end"] == times.iloc[parts["train"]].max().isoformat()
    stored = yaml.safe_load((directory / "config.yaml").read_text())
    assert build_config(stored, "release") == regression.config
    lock = (directory / "environment.lock").read_text().splitlines()
    assert any(line.startswith("scikit-learn==") for line in lock)
    assert lock == sorted(lock)


def test_the_released_model_is_fitted_on_all_rows(regression: TrainedRun) -> None:
    """Metrics and the model card are those of the evaluated model."""
    work, directory = regression.work, regression.settings.store / regression.package().path
    _, truth, rows = work.subset("holdout")
    released = open_release(directory).predict(rows)
    error = float(np.abs(released - truth).mean())
    assert error < 0.9 * float(regression.evaluation.metrics["mae"].value or 0)  # it was fitted on them
    assert verify_release(directory).metrics == regression.evaluation.metrics
    assert regression.fitted.rows == len(work.table()) > len(work.split_positions()["train"])
    assert "fitted without them" in " ".join((directory / "card.md").read_text().split())
    assert json.loads((directory / "profile.json").read_text())["rows"] == len(work.table())


def test_without_a_refit_the_evaluated_model_is_released(tmp_path: Path, build: Callable[..., TrainedRun]) -> None:
    """Its training rows end where the holdout begins."""
    run = build(tmp_path, make_house_table().drop(columns="sold"), target="value", time="at", split={"refit": False})
    directory = run.settings.store / run.package().path
    assert verify_release(directory).dataset["split"]["train_end"] < run.work.table()["at"].max().isoformat()
    assert not (directory / "holdout.npz").exists()
    assert "fitted without them" not in (directory / "card.md").read_text()


def test_probe_rows_get_the_stored_labels(binary: TrainedRun) -> None:
    """Probe rows have only the columns of the model."""
    directory = binary.settings.store / binary.package().path
    model, probe = open_release(directory), json.loads((directory / "probe.json").read_text())
    assert len(probe["rows"]) == 50
    assert set(probe["rows"][0]) == {column.name for column in model.contract.feature_columns}
    assert model.predict(probe["rows"]).tolist() == probe["labels"]
    np.testing.assert_allclose(model.predict_proba(probe["rows"]), probe["probabilities"], rtol=1e-12)
    assert set(probe["labels"]) <= set(load_evaluation_predictions(binary.work)[1].labels)


def test_a_full_disk_leaves_no_draft(regression: TrainedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error is a TransientError."""
    written: list[str] = []

    def write(path: Path, content: str | bytes) -> Path:
        written.append(path.name)
        if len(written) > 4:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    monkeypatch.setattr(files, "write", write)
    with pytest.raises(TransientError, match="No space left"):
        regression.package(version=9)
    home = regression.settings.store / "releases" / "house-value"
    assert len(written) == 5
    assert not [path.name for path in home.iterdir() if path.name.startswith((".draft", "v9"))]


def test_the_draft_of_a_killed_run_is_removed(regression: TrainedRun, packed: Release) -> None:
    """The next packaging removes it."""
    draft = regression.settings.store / "releases" / "house-value" / ".draft-0123"
    (draft / "plots").mkdir(parents=True)
    (draft / "model.skops").write_bytes(b"half")
    regression.package()
    assert not draft.exists()


def test_packaging_refuses_a_changed_release_of_the_same_run(regression: TrainedRun, packed: Release) -> None:
    probe = regression.settings.store / packed.path / "probe.json"
    before = probe.read_bytes()
    probe.write_bytes(before + b" ")
    with pytest.raises(ReleaseError, match=r"probe\.json"):
        regression.package()
    probe.write_bytes(before)


@pytest.mark.parametrize(
    ("url", "stored_url"),
    [
        ("postgresql://me:hunter2@db/x", "postgresql://me:***@db/x"),
        ("postgresql://me:p@:ss@db/x", "postgresql://me:***@db/x"),
        ("postgresql://me:${PW}@db/x", "postgresql://me:${PW}@db/x"),
        ("sqlite:///data.db", "sqlite:///data.db"),
        ("${URL}", "${URL}"),
    ],
)
def test_a_release_holds_no_password(url: str, stored_url: str) -> None:
    """A password in the config is masked; a ``${NAME}`` stays."""
    raw = {"name": "x", "data": {"source": {"url": url, "query": "select 1"}, "target": "y"}}
    text = packaging._render_config(build_config(raw, "test"))
    assert yaml.safe_load(text)["data"]["source"]["url"] == stored_url


def test_types_of_trusted_packages_are_recorded(tmp_path: Path, build: Callable[..., TrainedRun]) -> None:
    """A type is loaded if the ledger has the digest or the caller trusts the package; otherwise the error names it."""
    frame = make_house_table(200).drop(columns=["value", "at"])
    run = train_run(tmp_path, frame, "sklearn.gaussian_process.GaussianProcessClassifier", target="sold")
    packed = run.package()
    directory = run.settings.store / packed.path
    manifest = verify_release(directory)
    assert "sklearn.gaussian_process._gpc._BinaryGaussianProcessClassifierLaplace" in manifest.trusted
    assert open_release(directory, digest=packed.digest).predict(frame.head(3)).shape == (3,)
    assert open_release(directory, ["sklearn.gaussian_process"]).predict(frame.head(3)).shape == (3,)
    with pytest.raises(ReleaseError, match="not trusted") as caught:
        open_release(directory)
    assert "--trust sklearn" in caught.value.remedy
    with pytest.raises(ReleaseError, match="the ledger says 00000"):
        open_release(directory, digest="0" * 64)
