"""The image of a release, on a real engine."""

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

if TYPE_CHECKING:
    from docker import DockerClient
    from docker.models.containers import Container

pytestmark = [pytest.mark.docker, pytest.mark.slow]
MB = 1e6


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    return train_run(
        tmp_path_factory.mktemp("compiled"),
        make_house_table().drop(columns="sold"),
        "linear",
        target="value",
        time="at",
    )


@pytest.fixture(scope="module")
def fallback(tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    """Of an estimator that is not compiled."""
    estimator = "sklearn.gaussian_process.GaussianProcessRegressor"
    frame = make_house_table(200).drop(columns="sold")
    return train_run(tmp_path_factory.mktemp("fallback"), frame, estimator, target="value", time="at")


def release(run: TrainedRun) -> Path:
    return run.settings.store / run.package().path


@pytest.fixture(scope="module")
def made(engine: "DockerClient", compiled: TrainedRun) -> Iterator[image.ReleaseImage]:
    built = image.build_release_image(release(compiled))
    yield built
    with contextlib.suppress(ImageNotFound):  # another test of the same release was quicker
        engine.images.remove(built.tag, force=True)


def digests(engine: "DockerClient", name: str) -> dict[str, str]:
    """sha256 of every file of an image, by its path."""
    container = engine.containers.create(name)
    found = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(b"".join(container.export()))) as tar:
            for entry in tar:
                if entry.isfile() and (file := tar.extractfile(entry)):
                    found[entry.name] = hashlib.sha256(file.read()).hexdigest()
    finally:
        container.remove(v=True)
    return found


def test_a_compiled_release_takes_little_room(made: image.ReleaseImage, compiled: TrainedRun) -> None:
    """Over its base it is at most 200 MB, and its tag says which release it holds."""
    manifest = read_manifest(release(compiled))
    assert made.tag == f"{manifest.name}:v3-{manifest.digest[:12]}"
    assert made.rows >= 10
    assert 20 * MB < made.bytes - made.base < 200 * MB


def test_what_scikit_learn_answers_has_an_image_too(engine: "DockerClient", fallback: TrainedRun) -> None:
    """At most 350 MB over its base; a container of it has answered as the release does."""
    directory = release(fallback)
    assert not (directory / PLAN_FILE).exists()
    built = image.build_release_image(directory, digest=read_manifest(directory).digest)
    try:
        assert built.rows >= 10
        assert built.bytes - built.base < 350 * MB
    finally:
        engine.images.remove(built.tag, force=True)


@pytest.mark.parametrize(
    "estimator", ["lightgbm.LGBMClassifier", "xgboost.XGBClassifier", "catboost.CatBoostClassifier"]
)
def test_the_image_of_a_library_holds_it(engine: "DockerClient", estimator: str, tmp_path: Path) -> None:
    """A container of it answers as the release does, without an option and without the ledger."""
    run = train_run(tmp_path, make_house_table(200).drop(columns=["value", "at"]), estimator, target="sold")
    directory = release(run)
    built = image.build_release_image(directory, digest=read_manifest(directory).digest)
    try:
        assert built.rows >= 10
    finally:
        engine.images.remove(built.tag, force=True)


def test_the_same_release_gives_the_same_files(
    engine: "DockerClient", made: image.ReleaseImage, compiled: TrainedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Built anew without a cache, every file of the image has the digest that it had."""
    from docker.api.build import BuildApiMixin

    monkeypatch.setattr(BuildApiMixin, "build", functools.partialmethod(BuildApiMixin.build, nocache=True))
    again = image.build_release_image(release(compiled), f"again-{time.time_ns()}")
    try:
        assert again.id != made.id
        before, after = digests(engine, made.id), digests(engine, again.id)
    finally:
        engine.images.remove(again.tag, force=True)
    assert {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)} == set()
    assert len(before) > 1000


def test_a_tag_is_never_moved(engine: "DockerClient", compiled: TrainedRun) -> None:
    """Given again the image is the same one; a tag that another image has is refused and stays with it."""
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
def started(engine: "DockerClient", compiled: TrainedRun) -> "Iterator[Callable[..., Container]]":
    """Starts containers of the image as a user might, and removes them."""
    made = image.build_release_image(release(compiled))
    containers = []

    def start(*words: str, **options: Any) -> "Container":
        container = engine.containers.run(made.tag, list(words) or None, detach=True, **options)
        containers.append(container)
        return container

    yield start
    for container in containers:
        container.remove(force=True, v=True)


def test_it_runs_with_nothing_but_its_own(started: "Callable[..., Container]") -> None:
    """As nobody's user, with a read-only root and no rights; told to end, it ends in order and at once."""
    container = started(
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


def test_it_lets_nobody_in_without_keys(started: "Callable[..., Container]") -> None:
    """As it is, without keys, it refuses to start rather than answer the whole network."""
    container = started()
    assert container.wait(timeout=300)["StatusCode"] == 2
    assert b"towline keys create" in container.logs()


def test_it_says_what_it_is(engine: "DockerClient", made: image.ReleaseImage, compiled: TrainedRun) -> None:
    """Labels by the names that registries show, and a bill of materials that is CycloneDX, in image and release."""
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    manifest, directory = read_manifest(release(compiled)), release(compiled)
    labels = engine.images.get(made.id).labels
    assert labels["org.opencontainers.image.version"] == "3"
    assert labels["org.opencontainers.image.revision"] == manifest.commit
    assert labels["io.towline.dataset"] == manifest.dataset["digest"]
    text = (directory / "sbom.cdx.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    named = {(one["name"], one["version"]) for one in json.loads(text)["components"]}
    container = engine.containers.create(made.id)
    try:
        stream, _ = container.get_archive("/release/sbom.cdx.json")
        with tarfile.open(fileobj=io.BytesIO(b"".join(stream))) as tar:
            held = tar.extractfile("sbom.cdx.json")
            assert held is not None
            assert held.read().decode() == text
    finally:
        container.remove(v=True)
    script = "import importlib.metadata as m\nfor d in m.distributions(): print(d.name.lower(), d.version)"
    output = engine.containers.run(made.id, ["-c", script], entrypoint=["python"], remove=True).decode()
    installed = {tuple(line.split()) for line in output.splitlines() if "/" not in line}
    ours = {pair for pair in installed if pair[0] not in ("pip", "setuptools", "wheel")}  # of the base, if it has them
    assert {(name.replace("_", "-"), version) for name, version in ours} <= named


def test_no_image_of_what_does_not_answer_alike(
    engine: "DockerClient", compiled: TrainedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container that answers otherwise leaves no image and no container behind, and the refusal says so."""
    monkeypatch.setattr(image, "open_release", lambda *_, **__: _Other())
    before = {one.id for one in engine.images.list()}
    name = f"other-{time.time_ns()}"
    with pytest.raises(ReleaseError, match="the predictions of the container differ"):
        image.build_release_image(release(compiled), name)
    assert {one.id for one in engine.images.list()} <= before
    assert not engine.containers.list(all=True, filters={"label": "io.towline.trial"})


class _Other:
    """Answers that are not the image's."""

    predictions = (0.0,)
    probabilities = None

    def predict_rows(self, rows: object) -> "_Other":
        return self


def test_a_damaged_release_gets_no_image(tmp_path: Path, compiled: TrainedRun) -> None:
    """One byte that is not as the manifest says is named before anything is built."""
    spoilt = shutil.copytree(release(compiled), tmp_path / release(compiled).name)
    (spoilt / "contract.json").write_text("{}")
    with pytest.raises(ReleaseError, match="contract"):
        image.build_release_image(spoilt)


def test_without_an_engine_the_release_is_there_all_the_same(
    compiled: TrainedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error says that no engine answers, and where the release is."""
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
    with pytest.raises(TransientError, match="no Docker engine answers") as told:
        image.build_release_image(release(compiled))
    assert told.value.where == str(release(compiled))
    assert read_manifest(release(compiled)).name


def test_a_run_promotes_what_its_image_answers(
    engine: "DockerClient", towline: Callable[..., CommandResult], tmp_path: Path
) -> None:
    """With ``package.image`` the image is a check of the gate, and stands in the ledger with the version."""
    frame = make_house_table(300).drop(columns="sold")
    frame.to_csv(tmp_path / "houses.csv", index=False)
    config = tmp_path / "houses.yaml"
    name = f"houses-{time.time_ns()}"
    config.write_text(
        f"name: {name}\ndata: {{source: {tmp_path}/houses.csv, target: value, time: at}}\ncandidates: [linear]\n"
        "package: {image: true}\n"
    )
    done = towline("run", config, "--json")
    assert done.code == 0, done.err
    checks = {check["name"]: check["outcome"] for check in done.json["verdict"]["checks"]}
    assert checks["image"] == "pass"
    events = {row["event"]: row for row in towline("history", name, "--json").json}
    tag = events["packaged"]["evidence"]["image"]
    assert engine.images.get(tag).id == events["packaged"]["evidence"]["image_id"]
    assert towline("models", name, "--json").json[0]["state"] == "champion"
    engine.images.remove(tag, force=True)
