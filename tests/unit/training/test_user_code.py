"""A config can import and call only permitted code."""

import re
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

from towline.config import Candidate, PipelineConfig, build_config
from towline.data.schema.contract import Contract
from towline.data.schema.inference import infer_contract
from towline.errors import ConfigError
from towline.training.estimators import build_model
from towline.training.model_selection.config_checks import check_config

TABLE = pd.DataFrame({"x": [1.0, 2.0, 3.0, 5.0] * 25, "y": [1.5, 2.5, 3.5, 5.0] * 25})
OWN = """
import os
import subprocess
from os import system
from subprocess import Popen
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.linear_model import Ridge
from sklearn.model_selection import train_test_split

class Mean(RegressorMixin, BaseEstimator):
    def fit(self, X, y):
        self.mean_ = y.mean()
        return self
    def predict(self, X):
        return [self.mean_] * len(X)

def make(alpha=1.0):
    return Ridge(alpha=alpha)

def nothing():
    return object()

number = 3
"""


def contract() -> Contract:
    return infer_contract(TABLE, PipelineConfig.model_validate({"name": "t", "data": {"source": "x", "target": "y"}}))


def build(estimator: str, trusted: tuple[str, ...] = (), **params: object) -> object:
    return build_model(Candidate(estimator=estimator, params=params), contract(), 7, trusted=trusted)["estimate"]


@pytest.fixture
def project_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of the project."""
    (tmp_path / "own_models.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_models", raising=False)
    return "own_models"


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The same module as an installed package, which reports its import."""
    folder = tmp_path / "site-packages" / "bought_models"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text(f"{OWN}\nopen({str(tmp_path / 'imported')!r}, 'w').close()\n")
    monkeypatch.syspath_prepend(folder.parent)
    monkeypatch.delitem(sys.modules, "bought_models", raising=False)
    return "bought_models"


@pytest.mark.parametrize(
    "estimator", ["subprocess.Popen", "os.system", "pathlib.Path", "builtins.eval", "posix.system", "__main__.main"]
)
def test_modules_of_python_are_rejected(estimator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error has what, where and remedy."""

    def started(*_: object, **__: object) -> None:
        raise AssertionError("it was called")

    monkeypatch.setattr("subprocess.Popen", started)
    monkeypatch.setattr("os.system", started)
    with pytest.raises(ConfigError, match="part of Python") as caught:
        build(estimator, args=["true"], command="true")
    assert caught.value.where == f"candidates.{estimator.rpartition('.')[2]}.estimator"
    assert "name a class of scikit-learn, LightGBM, XGBoost or CatBoost" in caught.value.remedy


@pytest.mark.parametrize(
    "estimator", ["towline.files.write", "towline.orchestration.worker.start", "flows.training.training"]
)
def test_modules_of_towline_are_rejected(estimator: str) -> None:
    """Functions of towline are not estimators."""
    with pytest.raises(ConfigError, match="part of towline"):
        build(estimator)


def test_an_installed_package_is_not_imported_unless_it_is_trusted(installed: str, tmp_path: Path) -> None:
    """The remedy works as printed: then the class or function is called."""
    with pytest.raises(ConfigError, match="the config does not trust bought_models") as caught:
        build(f"{installed}.Mean")
    assert not (tmp_path / "imported").exists()
    assert f"package: {{trusted: [{installed}]}}" in caught.value.remedy
    raw = {"name": "t", "data": {"source": "x", "target": "y"}, "package": {"trusted": [installed]}}
    trusted = build_config(raw, "test").package.trusted
    assert type(build(f"{installed}.Mean", trusted)).__name__ == "Mean"
    assert build(f"{installed}.make", trusted, alpha=3.0).alpha == 3.0  # type: ignore[attr-defined]


def test_classes_and_functions_of_the_project_are_called(project_module: str) -> None:
    """They need no entry in package.trusted."""
    assert type(build(f"{project_module}.Mean")).__name__ == "Mean"
    assert build(f"{project_module}.make", alpha=2.0).alpha == 2.0  # type: ignore[attr-defined]
    assert type(build(f"{project_module}.Ridge")).__name__ == "Ridge"
    with pytest.raises(ConfigError, match="has no parameter 'alhpa'"):
        build(f"{project_module}.make", alhpa=2.0)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("Popen", "subprocess.Popen, which may not be called: it is part of Python"),
        ("system", "has no class or function 'system'"),
        ("os", "has no class or function 'os'"),
        ("number", "has no class or function 'number'"),
        ("train_test_split", "is a function of scikit-learn"),
        ("nothing", "is not a scikit-learn regressor"),
    ],
)
@pytest.mark.parametrize("package", ["project_module", "installed"])
def test_imported_objects_do_not_belong_to_a_module(
    package: str, name: str, what: str, request: pytest.FixtureRequest
) -> None:
    """A trusted package gives no access to objects that it imports."""
    module = request.getfixturevalue(package)
    with pytest.raises(ConfigError, match=what):
        build(f"{module}.{name}", (module,))


@pytest.mark.parametrize(
    ("estimator", "what"),
    [
        ("sklearn.utils._testing.check_output", "has no class 'check_output'"),
        ("sklearn.datasets.fetch_openml", "has no class 'fetch_openml'"),
        ("lightgbm.train", "has no class 'train'"),
        ("lightgbm.Booster", "it has no fit and predict"),
        ("lightgbm.basic.Path", "pathlib"),
        ("xgboost.DMatrix", "it has no fit and predict"),
    ],
)
def test_of_the_libraries_only_estimator_classes_are_called(estimator: str, what: str) -> None:
    """Functions, other classes and imported objects of the libraries are rejected."""
    with pytest.raises(ConfigError, match=what):
        build(estimator)


@pytest.mark.parametrize("estimator", ["lightgbm", "lightgbm.LGBMRegressor"])
def test_a_library_that_is_not_installed_is_named_with_its_extra(
    estimator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The remedy is the command that installs it."""
    monkeypatch.setattr("towline.package_origin.find_origin", lambda _: "absent")
    with pytest.raises(ConfigError, match="LightGBM is not installed") as caught:
        build(estimator)
    assert caught.value.remedy == "pip install 'towline[lightgbm]'"


@pytest.mark.parametrize(
    ("trusted", "what"),
    [("subprocess", "part of Python's standard library"), ("os.path", "does not match"), ("../evil", "does not match")],
)
def test_the_standard_library_cannot_be_trusted(trusted: str, what: str) -> None:
    """A config that trusts a module of Python is rejected when it is read."""
    raw = {"name": "t", "data": {"source": "x", "target": "y"}, "package": {"trusted": [trusted]}}
    with pytest.raises(ConfigError) as caught:
        build_config(raw, "test")
    assert what in " ".join(caught.value.details)


def test_the_boosting_libraries_are_quiet_and_use_one_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They write no files; a parameter with a synonym is passed once."""
    monkeypatch.chdir(tmp_path)
    for estimator, params in (
        ("lightgbm.LGBMRegressor", {"n_estimators": 2}),
        ("xgboost.XGBRegressor", {"n_estimators": 2}),
        ("catboost.CatBoostRegressor", {"iterations": 2, "random_seed": 3, "logging_level": "Silent"}),
    ):
        model = build_model(Candidate(estimator=estimator, params=params), contract(), 7)
        threads = model["estimate"].get_params()
        assert threads.get("n_jobs", threads.get("thread_count")) == 1
        seeded = {"random_state", "random_seed"} & threads.keys()
        assert {threads[name] for name in seeded} == {3 if "catboost" in estimator else 7}
        model.fit(contract().features(TABLE), contract().labels(TABLE))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("page", "heading"), [("config.md", "## Estimators"), ("boosting.md", "# LightGBM")])
def test_candidates_of_the_docs_can_be_built(page: str, heading: str) -> None:
    """The examples work with their libraries, and their search spaces have existing parameters."""
    text = (Path(__file__).parents[3] / "docs" / page).read_text()
    example = yaml.safe_load(re.findall(r"```yaml\n(.*?)```", text[text.index(heading) :], re.DOTALL)[0])
    config = build_config(example, page)
    assert len({candidate.estimator for candidate in config.candidates}) >= 3
    assert any(candidate.search for candidate in config.candidates)
    check_config(config, "regression")
