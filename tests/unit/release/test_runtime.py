"""What an image of a release would hold, without building one."""

import json
import re
from pathlib import Path

import pytest

from tests.unit.release.conftest import Run
from towline.errors import ReleaseError
from towline.manifest import verify_release
from towline.release import runtime

REPOSITORY = Path(__file__).parents[3]
LOCKS = [*sorted((REPOSITORY / "towline/release/runtime").glob("*.txt"))]
LOCKS += [REPOSITORY / "deployments/service-requirements.txt"]


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.stem)
def test_images_hold_the_versions_that_runs_train_with(lock: Path) -> None:
    """Every package of an image's lock has the version and digests that the locks of the whole project have."""
    names = ("requirements.txt", "requirements-dev.txt")  # the libraries of candidates are in the second
    whole = {one for name in names for one in runtime.parse_lock_file((REPOSITORY / name).read_text("utf-8"))}
    known = {(one.name, one.version): set(one.hashes) for one in whole}
    held = list(runtime.parse_lock_file(lock.read_text("utf-8")))
    assert len(held) > 10
    assert all(one.hashes and set(one.hashes) <= known[one.name, one.version] for one in held)
    assert len(held) == len(re.findall(r"(?m)^[a-z].*==", lock.read_text("utf-8")))


def test_a_compiled_release_needs_no_scikit_learn() -> None:
    """Its lock has numpy and a server; the other has what the model was made with too."""
    compiled = {one.name for one in runtime.parse_lock_file(runtime.select_lock_file(compiled=True))}
    other = {one.name for one in runtime.parse_lock_file(runtime.select_lock_file(compiled=False))}
    assert {"numpy", "starlette"} <= compiled < other
    assert other - compiled >= {"pandas", "scikit-learn", "skops"}
    assert not compiled & {"pandas", "scikit-learn", "scipy", "pyarrow"}


def test_other_versions_than_trained_with_are_refused() -> None:
    """The error names what the release was made with and what the image would hold."""
    text = runtime.select_lock_file(compiled=False)
    right = {
        one.name: one.version
        for one in runtime.parse_lock_file(text)
        if one.name in ("pandas", "scikit-learn", "skops")
    }
    runtime.check_versions(text, right, compiled=False)
    with pytest.raises(ReleaseError, match="other versions") as told:
        runtime.check_versions(text, {**right, "scikit-learn": "0.1"}, compiled=False)
    assert told.value.details == (f"scikit-learn 0.1, the image would hold {right['scikit-learn']}",)
    runtime.check_versions(text, {"scikit-learn": "0.1"}, compiled=True)  # which it does not use


@pytest.mark.parametrize("library", runtime.LIBRARIES)
def test_a_model_of_a_library_has_it_in_its_lock(library: str) -> None:
    """Beside scikit-learn; another version than the model was made with is refused, XGBoost under either name."""
    text = runtime.select_lock_file(compiled=False, packages={"collections", library, "sklearn"})
    locked = {one.name.removesuffix("-cpu"): one.version for one in runtime.parse_lock_file(text)}
    assert {library, "scikit-learn", "skops"} <= locked.keys()
    for name in (library, f"{library}-cpu") if library == "xgboost" else (library,):
        runtime.check_versions(text, {name: locked[library]}, compiled=False)
        with pytest.raises(ReleaseError, match="other versions"):
            runtime.check_versions(text, {name: "0.1"}, compiled=False)
        runtime.check_versions(text, {name: "0.1"}, compiled=True)


def test_a_release_lists_what_it_needs(regression: Run) -> None:
    """Its bill of materials names each package of its own lock, the model, and the data it learnt from."""
    directory = regression.settings.store / regression.package().path
    manifest = verify_release(directory)
    document = json.loads((directory / "sbom.cdx.json").read_bytes())
    listed = {(one["name"], one["version"]) for one in document["components"]}
    locked = {(one.name, one.version) for one in runtime.parse_lock_file((directory / runtime.NAME).read_text("utf-8"))}
    assert listed == locked | {("towline", manifest.towline)}
    model = document["metadata"]["component"]
    assert (model["name"], model["version"]) == (manifest.name, str(manifest.version))
    assert manifest.dataset["digest"] in json.dumps(model["modelCard"])
