"""Releases of LightGBM, XGBoost and CatBoost."""

import json
from pathlib import Path

import pytest

from tests.support.releases import make_house_table, train_run
from towline import package_origin
from towline.errors import ReleaseError
from towline.extras import BOOSTING_LIBRARIES
from towline.inference import predictor
from towline.inference.predictor import open_release
from towline.manifest import read_manifest
from towline.training import model_io
from towline.training.boosting.libraries import Booster
from towline.training.estimators import pipeline_of


@pytest.mark.parametrize("library", BOOSTING_LIBRARIES)
def test_a_release_holds_the_model_file_of_the_library(library: str, tmp_path: Path) -> None:
    """The release is compiled, needs no trust, and has the library's version in manifest, card and SBOM."""
    run = train_run(tmp_path, make_house_table(200).drop(columns=["value", "at"]), library, target="sold")
    directory = run.settings.store / run.package().path
    manifest = read_manifest(directory)
    booster = pipeline_of(model_io.load_model(directory / "model.skops"))[-1]
    assert isinstance(booster, Booster)
    assert (directory / booster.file).read_bytes() == booster.model_
    assert manifest.trusted == ()
    opened = open_release(directory)
    assert opened.compiled
    probe = json.loads((directory / "probe.json").read_bytes())
    assert opened.predict(probe["rows"]).tolist() == probe["labels"]

    ((name, version),) = package_origin.installed_versions((library,)).items()
    assert manifest.libraries[name] == version
    assert f"{name} {version}" in (directory / "card.md").read_text("utf-8")
    assert f"{name} {version}" in (directory / "card.html").read_text("utf-8")
    component = json.loads((directory / "sbom.cdx.json").read_bytes())["metadata"]["component"]
    assert {"name": f"towline:trained_with:{name}", "value": version} in component["properties"]


def test_another_version_of_the_library_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the first request; a compiled model does not need the library."""
    table = make_house_table(200).drop(columns=["sold", "at"])
    for estimator in ("lightgbm", "lightgbm.LGBMRegressor"):
        run = train_run(tmp_path / estimator, table, estimator, target="value")
        directory = run.settings.store / run.package().path
        trained = read_manifest(directory).libraries["lightgbm"]
        with monkeypatch.context() as patch:
            patch.setattr(
                predictor.package_origin, "installed_versions", lambda packages: dict.fromkeys(packages, "9.9")
            )
            if estimator == "lightgbm":
                assert open_release(directory).compiled
                continue
            with pytest.raises(ReleaseError, match=f"trained with lightgbm {trained}, 9.9 is installed") as caught:
                open_release(directory)
            assert caught.value.remedy == f"pip install 'lightgbm=={trained}'"
