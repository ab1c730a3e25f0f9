"""The lock files and the SBOM of a release, without building an image."""

import json
import re
from pathlib import Path

import pytest

from tests.support.releases import TrainedRun
from towline.errors import ReleaseError
from towline.extras import BOOSTING_LIBRARIES
from towline.manifest import verify_release
from towline.release import runtime

REPOSITORY = Path(__file__).parents[3]
LOCKS = [*sorted((REPOSITORY / "towline/release/runtime").glob("*.txt"))]
LOCKS += [REPOSITORY / "deployments/service-requirements.txt"]


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.stem)
def test_lock_files_of_images_agree_with_those_of_the_project(lock: Path) -> None:
    """Each package has the version and digests of the project's lock files."""
    names = ("requirements.txt", "requirements-dev.txt")  # the second lock file has the libraries of candidates
    project = {
        (package.name, package.version): set(package.hashes)
        for name in names
        for package in runtime.parse_lock_file((REPOSITORY / name).read_text("utf-8"))
    }
    packages = list(runtime.parse_lock_file(lock.read_text("utf-8")))
    assert len(packages) > 10
    for package in packages:
        assert package.hashes
        assert set(package.hashes) <= project[package.name, package.version], package.name
    assert len(packages) == len(re.findall(r"(?m)^[a-z].*==", lock.read_text("utf-8")))


def test_a_compiled_release_needs_no_scikit_learn() -> None:
    """Its lock file has NumPy and a server; that of scikit-learn also has the libraries of the model."""
    compiled = {package.name for package in runtime.parse_lock_file(runtime.select_lock_file(compiled=True))}
    sklearn = {package.name for package in runtime.parse_lock_file(runtime.select_lock_file(compiled=False))}
    assert {"numpy", "starlette"} <= compiled < sklearn
    assert sklearn - compiled >= {"pandas", "scikit-learn", "skops"}
    assert not compiled & {"pandas", "scikit-learn", "scipy", "pyarrow"}


def test_other_versions_than_at_training_are_refused() -> None:
    """The error names the version at training and the version in the image."""
    text = runtime.select_lock_file(compiled=False)
    right = {
        package.name: package.version
        for package in runtime.parse_lock_file(text)
        if package.name in ("pandas", "scikit-learn", "skops")
    }
    runtime.check_versions(text, right, compiled=False)
    with pytest.raises(ReleaseError, match="other versions") as error:
        runtime.check_versions(text, {**right, "scikit-learn": "0.1"}, compiled=False)
    assert error.value.details == (f"scikit-learn 0.1, the image would hold {right['scikit-learn']}",)
    runtime.check_versions(text, {"scikit-learn": "0.1"}, compiled=True)  # the compiled scorer does not need it


@pytest.mark.parametrize("library", BOOSTING_LIBRARIES)
def test_the_lock_file_of_a_boosting_library_contains_it(library: str) -> None:
    """It also contains scikit-learn. Another version than at training is refused; XGBoost has two names."""
    text = runtime.select_lock_file(compiled=False, packages={"collections", library, "sklearn"})
    locked = {package.name.removesuffix("-cpu"): package.version for package in runtime.parse_lock_file(text)}
    assert {library, "scikit-learn", "skops"} <= locked.keys()
    for name in (library, f"{library}-cpu") if library == "xgboost" else (library,):
        runtime.check_versions(text, {name: locked[library]}, compiled=False)
        with pytest.raises(ReleaseError, match="other versions"):
            runtime.check_versions(text, {name: "0.1"}, compiled=False)
        runtime.check_versions(text, {name: "0.1"}, compiled=True)


def test_the_sbom_lists_the_packages_the_model_and_the_dataset(regression: TrainedRun) -> None:
    """The packages are those of the release's lock file."""
    directory = regression.settings.store / regression.package().path
    manifest = verify_release(directory)
    document = json.loads((directory / "sbom.cdx.json").read_bytes())
    listed = {(component["name"], component["version"]) for component in document["components"]}
    lock_file = runtime.parse_lock_file((directory / runtime.NAME).read_text("utf-8"))
    locked = {(package.name, package.version) for package in lock_file}
    assert listed == locked | {("towline", manifest.towline)}
    model = document["metadata"]["component"]
    assert (model["name"], model["version"]) == (manifest.name, str(manifest.version))
    assert manifest.dataset["digest"] in json.dumps(model["modelCard"])
