"""Model files are loaded only if every type in them is trusted; this is checked before long fits."""

import io
import sys
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import skops.io
from sklearn.base import BaseEstimator
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils._testing import check_output

from tests.support.training import TrainedModel
from towline.errors import FitError, ReleaseError
from towline.training import model_io
from towline.training.model_selection import cross_validation

OWN = """
import collections
import numpy as np
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

def doubled(X):
    return X * 2

class Part:
    pass

class Mean(RegressorMixin, BaseEstimator):
    def fit(self, X, y):
        self.mean_, self.part_ = float(y.mean()), Part()
        return self
    def predict(self, X):
        return np.full(len(X), self.mean_)

class Locked(Mean):
    def __getstate__(self):
        raise TypeError("it holds a lock")

class Forgetful(Mean):
    def __getstate__(self):
        return {"mean_": -1.0}

class Counting(Mean):
    def fit(self, X, y):
        self.counter_ = collections.Counter(a=1)
        return super().fit(X, y)

def make():
    return make_pipeline(FunctionTransformer(doubled), Ridge())
"""


def module(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.py").write_text(OWN)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, name, raising=False)
    return __import__(name)


@pytest.fixture
def project_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module of the project."""
    return module(tmp_path / "project", "own_estimators", monkeypatch)


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The same module as an installed package."""
    return module(tmp_path / "site-packages", "bought_estimators", monkeypatch)


def written(folder: Path, model: BaseEstimator) -> Path:
    skops.io.dump(model, folder / "model.skops")
    return folder / "model.skops"


def table() -> pd.DataFrame:
    x = np.arange(120.0) % 17
    return pd.DataFrame({"x": x, "z": np.cos(np.arange(120.0)), "y": 2 * x + np.sin(np.arange(120.0))})


@pytest.mark.parametrize("function", [tracemalloc.start, check_output, sys.exit])
def test_python_objects_in_a_file_are_rejected(tmp_path: Path, function: Callable[..., Any]) -> None:
    """Objects of Python itself are not built, even if they are recorded or trusted, or have the name of a library."""
    path = written(tmp_path, FunctionTransformer(function))
    types = model_io.untrusted_types(path)
    for name in (*types, "sklearn.utils._testing.check_output"):
        package = name.partition(".")[0]
        with pytest.raises(ReleaseError, match="not trusted"):
            model_io.load_model(path, (package, name), (*types, name))


def test_a_function_that_a_library_has_imported_is_rejected(tmp_path: Path) -> None:
    """A file that names a function of Python by the module that imported it is rejected."""
    path = written(tmp_path, FunctionTransformer(check_output))
    content = skops.io.dumps(FunctionTransformer(check_output))
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            text = old.read(name).replace(b'"subprocess"', b'"sklearn.utils._testing"')
            new.writestr(name, text)
    (name,) = model_io.untrusted_types(path)
    assert name == "sklearn.utils._testing.check_output"
    with pytest.raises(ReleaseError, match=r"not trusted: sklearn\.utils\._testing\.check_output"):
        model_io.load_model(path, ("sklearn.utils",), (name,))


def test_recorded_types(tmp_path: Path, project_module: Any, installed: Any) -> None:
    """Recorded classes and functions of the project are built; functions of an installed package must be trusted."""
    x, y = table()[["x", "z"]].to_numpy(), table()["y"].to_numpy()
    for made in (project_module, installed):
        path = written(tmp_path, made.Mean().fit(x, y))
        types = model_io.untrusted_types(path)
        assert set(types) == {f"{made.__name__}.Mean", f"{made.__name__}.Part"}
        assert model_io.load_model(path, (), types).predict(x)[0] == pytest.approx(y.mean())
        with pytest.raises(ReleaseError, match="not trusted") as caught:
            model_io.load_model(path, (), types[:1])
        assert f"--trust {made.__name__}" in caught.value.remedy
    path = written(tmp_path, project_module.make().fit(x, y))
    np.testing.assert_allclose(model_io.load_model(path, (), model_io.untrusted_types(path)).predict(x), y, atol=2)
    path = written(tmp_path, installed.make().fit(x, y))
    with pytest.raises(ReleaseError, match=r"not trusted: bought_estimators\.doubled"):
        model_io.load_model(path, (), model_io.untrusted_types(path))
    np.testing.assert_allclose(model_io.load_model(path, ("bought_estimators",)).predict(x), y, atol=2)


def test_a_missing_library_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The remedy is the command that installs it."""
    import lightgbm

    x, y = table()[["x", "z"]].to_numpy(), table()["y"].to_numpy()
    path = written(tmp_path, lightgbm.LGBMRegressor(n_estimators=2, verbose=-1).fit(x, y))
    for name in [name for name in sys.modules if name.partition(".")[0] == "lightgbm"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if not (Path(entry) / "lightgbm").is_dir()])
    with pytest.raises(ReleaseError, match="needs lightgbm, which is not installed") as caught:
        model_io.load_model(path)
    assert caught.value.remedy == "pip install 'towline[lightgbm]'"


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("Locked", "cannot be stored: TypeError: it holds a lock"),
        ("Forgetful", "predicts other values after it was stored"),
        ("Counting", r"cannot be read back: the model has a type that is not trusted: collections\.Counter"),
    ],
)
def test_models_that_cannot_be_stored_are_reported_after_the_first_fold(
    name: str, what: str, project_module: Any, train: Callable[..., TrainedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a candidate with many fits only one is fitted; the error names the candidate, and no file remains."""
    fits: list[int] = []
    fit = project_module.Mean.fit
    monkeypatch.setattr(project_module.Mean, "fit", lambda self, *data: fits.append(1) or fit(self, *data))
    monkeypatch.setattr(cross_validation.joblib, "cpu_count", lambda: 1)
    candidate = {"estimator": f"own_estimators.{name}"}
    with pytest.raises(FitError, match=what) as caught:
        train(table(), candidate=candidate, cross_validation={"folds": 20})
    assert caught.value.where == f"candidates.{name}"
    assert caught.value.remedy
    assert len(fits) == 1


@pytest.mark.parametrize("name", ["Mean", "make"])
def test_estimators_of_the_project_are_trained(
    name: str, project_module: Any, train: Callable[..., TrainedModel]
) -> None:
    """A class with components, and a function that creates a pipeline, are cross-validated, fitted and stored."""
    trained = train(table(), candidate=f"own_estimators.{name}")
    path = trained.work.file(trained.fitted.file)
    assert model_io.untrusted_types(path)
    model = model_io.load_model(path, model_io.trusted_packages(trained.config))
    assert np.isfinite(model.predict(trained.work.subset("holdout").features)).all()
    assert not list(trained.work.path.glob("trial-*"))
