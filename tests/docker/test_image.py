"""The image of a release, built with a real Docker engine."""

import contextlib
import functools
import hashlib
import io
import json
import shutil
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from docker.errors import ImageNotFound

from tests.support.commands import CommandResult
from tests.support.releases import TrainedRun, make_house_table, train_run
from towline.errors import ReleaseError, TransientError
from towline.inference.compiled.codec import PLAN_FILE
from towline.manifest import read_manifest
from towline.release import image
from towline.training.calibration import Calibration, SigmoidCurve

if TYPE_CHECKING:
    from docker import DockerClient
    from docker.models.containers import Container

pytestmark = [pytest.mark.docker, pytest.mark.slow]
MB = 1e6


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    """A release of a linear model with a lookup and a feature of its column."""
    folder = tmp_path_factory.mktemp("compiled")
    (folder / "floors.csv").write_text("doors,since,floor\n" + "".join(f"{n},2025-01-02,{n / 2}\n" for n in range(6)))
    return train_run(
        folder,
        make_house_table().drop(columns="sold"),
        "linear",
        target="value",
        time="at",
        lookups={"floors": {"table": "floors.csv", "key": "doors", "columns": ["floor"], "time": "since"}},
        features={"room": "size / (floor + 1)"},
    )


@pytest.fixture(scope="module")
def fallback(tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    """A release of an estimator that is not compiled."""
    estimator = "sklearn.gaussian_process.GaussianProcessRegressor"
    frame = make_house_table(200).drop(columns="sold")
    return train_run(tmp_path_factory.mktemp("fallback"), frame, estimator, target="value", time="at")


def release(run: TrainedRun) -> Path:
    return run.settings.store / run.package().path


@pytest.fixture(scope="module")
def release_image(engine: "DockerClient", compiled: TrainedRun) -> Iterator[image.ReleaseImage]:
    built = image.build_release_image(release(compiled))
    yield built
    with contextlib.suppress(ImageNotFound):  # another test has already built the image of this release
        engine.images.remove(built.tag, force=True)


def digests(engine: "DockerClient", name: str) -> dict[str, str]:
    """sha256 of every file of an image, by its path."""
    container = engine.containers.create(name)
    by_path = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(b"".join(container.export()))) as tar:
            for entry in tar:
                if entry.isfile() and (file := tar.extractfile(entry)):
                    by_path[entry.name] = hashlib.sha256(file.read()).hexdigest()
    finally:
        container.remove(v=True)
    return by_path


def test_size_of_the_image_of_a_compiled_release(release_image: image.ReleaseImage, compiled: TrainedRun) -> None:
    """It adds at most 200 MB to its base, and its tag names the release."""
    manifest = read_manifest(release(compiled))
    assert release_image.tag == f"{manifest.name}:v3-{manifest.digest[:12]}"
    assert release_image.rows >= 10
    assert 20 * MB < release_image.bytes - release_image.base < 200 * MB


def test_image_of_a_release_that_uses_scikit_learn(engine: "DockerClient", fallback: TrainedRun) -> None:
    """It adds at most 350 MB to its base; its container predicts as the release does."""
    directory = release(fallback)
    assert not (directory / PLAN_FILE).exists()
    built = image.build_release_image(directory, digest=read_manifest(directory).digest)
    try:
        assert built.rows >= 10
        assert built.bytes - built.base < 350 * MB
    finally:
        engine.images.remove(built.tag, force=True)


@pytest.mark.usefixtures("untagged_images_are_removed")
@pytest.mark.parametrize(
    "estimator", ["lightgbm.LGBMClassifier", "xgboost.XGBClassifier", "catboost.CatBoostClassifier", "xgboost"]
)
def test_image_of_a_boosting_library(engine: "DockerClient", estimator: str, tmp_path: Path) -> None:
    """Its container predicts as the release does, without options and without the ledger.

    It includes the library; with a compiled scorer, NumPy is enough. The probabilities are calibrated.
    """
    curve = SigmoidCurve(slope=0.8, intercept=0.1)
    calibration = Calibration(method="sigmoid", curves=(curve,), positive=1, rows=200)
    table = make_house_table(200).drop(columns=["value", "at"])
    run = train_run(tmp_path, table, estimator, target="sold", calibration=calibration)
    directory = release(run)
    built = image.build_release_image(directory, digest=read_manifest(directory).digest)
    try:
        assert built.rows >= 10
    finally:
        engine.images.remove(built.tag, force=True)


def test_image_build_is_reproducible(
    engine: "DockerClient", release_image: image.ReleaseImage, compiled: TrainedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Built again without a cache, every file of the image has the same digest."""
    from docker.api.build import BuildApiMixin

    monkeypatch.setattr(BuildApiMixin, "build", functools.partialmethod(BuildApiMixin.build, nocache=True))
    again = image.build_release_image(release(compiled), f"again-{time.time_ns()}")
    try:
        assert again.id != release_image.id
        before, after = digests(engine, release_image.id), digests(engine, again.id)
    finally:
        engine.images.remove(again.tag, force=True)
    assert {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)} == set()
    assert len(before) > 1000


def test_a_tag_is_never_moved(engine: "DockerClient", compiled: TrainedRun) -> None:
    """The same command gives the same image; a tag of another image is refused and not changed."""
    first = image.build_release_image(release(compiled))
    assert image.build_release_image(release(compiled)).id == first.id
    other = f"other-{time.time_ns()}:{first.tag.partition(':')[2]}"
    base = engine.images.get("python:3.11-slim-bookworm")
    base.tag(*other.split(":"))
    with pytest.raises(ReleaseError, match="another image already has this tag"):
        image.build_release_image(release(compiled), other.partition(":")[0])
    assert engine.images.get(other).id == base.id
    engine.images.remove(other)


@pytest.fixture
def start_container(engine: "DockerClient", compiled: TrainedRun) -> "Iterator[Callable[..., Container]]":
    """Starts containers of the image as a user would, and removes them."""
    release_image = image.build_release_image(release(compiled))
    containers = []

    def start(*words: str, **options: Any) -> "Container":
        container = engine.containers.run(release_image.tag, list(words) or None, detach=True, **options)
        containers.append(container)
        return container

    yield start
    for container in containers:
        container.remove(force=True, v=True)


def test_container_runs_without_privileges(start_container: "Callable[..., Container]") -> None:
    """The user is nobody, the root is read-only, and there are no capabilities; SIGTERM ends the container quickly."""
    container = start_container(
        "serve", "/release", "--host", "0.0.0.0", "--insecure", read_only=True, cap_drop=["ALL"], network_mode="none"
    )
    code, output = container.exec_run(["python", "-m", "towline.serving.process.health", "--wait", "60"])
    assert code == 0, (output, container.logs())
    assert container.exec_run(["python", "-c", "import os; print(os.getuid())"]).output.strip() == b"10001"
    assert container.exec_run(["python", "-c", "open('/app/x', 'w')"]).exit_code != 0
    for _ in range(60):
        container.reload()
        if container.attrs["State"]["Health"]["Status"] == "healthy":
            break
        time.sleep(0.5)
    assert container.attrs["State"]["Health"]["Status"] == "healthy"
    container.stop(timeout=30)
    container.reload()
    assert container.attrs["State"]["ExitCode"] == 0
    assert b"ended" in container.logs()


def test_container_without_keys_does_not_start(start_container: "Callable[..., Container]") -> None:
    """It would serve the whole network."""
    container = start_container()
    assert container.wait(timeout=300)["StatusCode"] == 2
    assert b"towline keys create" in container.logs()


def test_image_has_labels_and_a_bill_of_materials(
    engine: "DockerClient", release_image: image.ReleaseImage, compiled: TrainedRun
) -> None:
    """Labels of the OCI standard, and a CycloneDX document in the image and in the release."""
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    manifest, directory = read_manifest(release(compiled)), release(compiled)
    labels = engine.images.get(release_image.id).labels
    assert labels["org.opencontainers.image.version"] == "3"
    assert labels["org.opencontainers.image.revision"] == manifest.commit
    assert labels["io.towline.dataset"] == manifest.dataset["digest"]
    text = (directory / "sbom.cdx.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    components = {(entry["name"], entry["version"]) for entry in json.loads(text)["components"]}
    container = engine.containers.create(release_image.id)
    try:
        stream, _ = container.get_archive("/release/sbom.cdx.json")
        with tarfile.open(fileobj=io.BytesIO(b"".join(stream))) as tar:
            member = tar.extractfile("sbom.cdx.json")
            assert member is not None
            assert member.read().decode() == text
    finally:
        container.remove(v=True)
    script = "import importlib.metadata as m\nfor d in m.distributions(): print(d.name.lower(), d.version)"
    output = engine.containers.run(release_image.id, ["-c", script], entrypoint=["python"], remove=True).decode()
    installed = {tuple(line.split()) for line in output.splitlines() if "/" not in line}
    # the base image may have these three
    ours = {pair for pair in installed if pair[0] not in ("pip", "setuptools", "wheel")}
    assert {(name.replace("_", "-"), version) for name, version in ours} <= components


def test_image_with_different_predictions_is_refused(
    engine: "DockerClient", compiled: TrainedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names the difference, and neither an image nor a container remains."""
    monkeypatch.setattr(image, "open_release", lambda *_, **__: _OtherModel())
    before = {entry.id for entry in engine.images.list()}
    name = f"other-{time.time_ns()}"
    with pytest.raises(ReleaseError, match="the predictions of the container differ"):
        image.build_release_image(release(compiled), name)
    assert {entry.id for entry in engine.images.list()} <= before
    assert not engine.containers.list(all=True, filters={"label": "io.towline.trial"})


class _OtherModel:
    """A model with other predictions than the image."""

    predictions = (0.0,)
    probabilities = None

    def predict_rows(self, rows: object) -> "_OtherModel":
        return self


def test_a_damaged_release_gets_no_image(tmp_path: Path, compiled: TrainedRun) -> None:
    """A byte that differs from the manifest is reported before the build."""
    spoilt = shutil.copytree(release(compiled), tmp_path / release(compiled).name)
    (spoilt / "contract.json").write_text("{}")
    with pytest.raises(ReleaseError, match="contract"):
        image.build_release_image(spoilt)


def test_release_is_packaged_without_a_docker_engine(compiled: TrainedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says that no engine answers, and names the folder of the release."""
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
    with pytest.raises(TransientError, match="no Docker engine answers") as error:
        image.build_release_image(release(compiled))
    assert error.value.where == str(release(compiled))
    assert read_manifest(release(compiled)).name


def test_image_is_a_check_of_the_promotion_gate(
    engine: "DockerClient", towline: Callable[..., CommandResult], tmp_path: Path
) -> None:
    """With ``package.image`` the image is a check of the gate, and the ledger records it with the version."""
    frame = make_house_table(300).drop(columns="sold")
    frame.to_csv(tmp_path / "houses.csv", index=False)
    config = tmp_path / "houses.yaml"
    name = f"houses-{time.time_ns()}"
    config.write_text(
        f"name: {name}\ndata: {{source: {tmp_path}/houses.csv, target: value, time: at}}\ncandidates: [linear]\n"
        "package: {image: true}\n"
    )
    result = towline("run", config, "--json")
    assert result.code == 0, result.err
    checks = {check["name"]: check["outcome"] for check in result.json["verdict"]["checks"]}
    assert checks["image"] == "pass"
    events = {row["event"]: row for row in towline("history", name, "--json").json}
    tag = events["packaged"]["evidence"]["image"]
    assert engine.images.get(tag).id == events["packaged"]["evidence"]["image_id"]
    assert towline("models", name, "--json").json[0]["state"] == "champion"
    engine.images.remove(tag, force=True)
