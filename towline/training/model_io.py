"""Model files in the skops format, which are loaded only if every type in the file is trusted.

A skops file names the types of its objects, so they can be checked before any object is built.
"""

import importlib
import inspect
import sys
import zipfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from towline import files, package_origin
from towline.config import TrainingConfig
from towline.errors import FitError, ReleaseError, TowlineError
from towline.training.boosting import libraries
from towline.training.evaluation.predictions import Predictions
from towline.training.user_code import LIBRARIES, describe_error

#: type of a boosting candidate → its library
_BOOSTER_LIBRARIES = {
    f"{booster.__module__}.{booster.__name__}": booster.library
    for booster in (*libraries.REGRESSORS.values(), *libraries.CLASSIFIERS.values())
}
TRUSTED_TYPES = (
    "catboost.core.CatBoostClassifier",
    "catboost.core.CatBoostRegressor",
    "collections.OrderedDict",
    "lightgbm.basic.Booster",
    "lightgbm.sklearn.LGBMClassifier",
    "lightgbm.sklearn.LGBMRegressor",
    "numpy.dtype",
    "sklearn.calibration._CalibratedClassifier",
    "sklearn.calibration._SigmoidCalibration",
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
    "sklearn.metrics._dist_metrics.EuclideanDistance64",
    "sklearn.model_selection._split.KFold",
    "sklearn.neighbors._ball_tree.BallTree",
    "sklearn.neighbors._kd_tree.KDTree",
    "sklearn.neural_network._stochastic_optimizers.AdamOptimizer",
    "sklearn.neural_network._stochastic_optimizers.SGDOptimizer",
    "sklearn.tree._tree.Tree",
    *_BOOSTER_LIBRARIES,
    "towline.training.calibration.Calibration",
    "towline.training.calibration.IsotonicCurve",
    "towline.training.calibration.SigmoidCurve",
    "towline.training.boosting.histogram.BoostingClassifier",
    "towline.training.boosting.histogram.BoostingRegressor",
    "towline.training.pipeline_components.Classifier",
    "towline.training.pipeline_components.CalendarParts",
    "towline.training.pipeline_components.CappedTargetEncoder",
    "towline.training.pipeline_components.DateAges",
    "towline.training.pipeline_components.EnsembleClassifier",
    "towline.training.pipeline_components.EnsembleRegressor",
    "towline.training.pipeline_components.DenseColumns",
    "towline.training.pipeline_components.NamedColumns",
    "towline.training.pipeline_components.TextEncoder",
    "towline.training.pipeline_components.TransformedColumns",
    "xgboost.core.Booster",
    "xgboost.sklearn.XGBClassifier",
    "xgboost.sklearn.XGBRFClassifier",
    "xgboost.sklearn.XGBRFRegressor",
    "xgboost.sklearn.XGBRegressor",
)
"""Trusted in addition to the types that skops trusts: numpy arrays and scikit-learn's public estimators."""


def trusted_packages(config: TrainingConfig) -> tuple[str, ...]:
    """The packages whose types the config trusts: of the paths of candidates and ``prepare``, and ``package.trusted``.

    Of scikit-learn it is only the named module (``sklearn.gaussian_process``). The types of the boosting libraries are
    in ``TRUSTED_TYPES``.
    """
    names = [candidate.estimator for candidate in config.candidates]
    names += [config.prepare.transformer] if config.prepare else []
    paths = [name.split(".") for name in names if "." in name]
    modules = {".".join(path[:2]) for path in paths if path[0] == "sklearn"}
    packages = {path[0] for path in paths if path[0] not in LIBRARIES}
    return tuple(sorted({*modules, *packages, *config.package.trusted}))


def save_model(model: Any, path: Path, where: str = "", level: int = 1) -> None:
    """Writes a model to a file, atomically.

    Args:
        model: fitted.
        path: a ``.skops`` file.
        where: config key of the model, for errors.
        level: of compression, 1 to 9.

    Raises:
        FitError: the estimator cannot be stored.
        TransientError: the disk is full or cannot be written.
    """
    import skops.io

    try:
        with files.replacing(path) as file:
            skops.io.dump(model, file, compression=zipfile.ZIP_DEFLATED, compresslevel=level)
    except (TowlineError, OSError):
        raise
    except Exception as error:  # the object's methods may raise anything
        remedy = "use an estimator that skops can store, such as those of scikit-learn"
        raise FitError(f"the model cannot be stored: {describe_error(error)}", where=where, remedy=remedy) from error


def check_round_trip(
    model: Any, path: Path, where: str, trusted: Sequence[str], predict: Callable[[Any], Predictions]
) -> None:
    """Checks that a model which was stored and loaded predicts the same: else it could not be released.

    Args:
        model: fitted.
        path: a ``.skops`` file, which is removed at the end.
        where: config key of the model, for errors.
        trusted: of ``trusted_packages``.
        predict: predicts some rows with a model.

    Raises:
        FitError: the model cannot be stored or loaded, or its predictions change.
    """
    try:
        save_model(model, path, where)
        loaded = load_model(path, trusted, untrusted_types(path))
    except ReleaseError as error:
        what = f"the model cannot be read back: {error.what}"
        raise FitError(what, where=where, remedy=error.remedy, details=error.details) from error
    finally:
        path.unlink(missing_ok=True)
    before, after = predict(model).to_arrays(()), predict(loaded).to_arrays(())
    if before.keys() != after.keys() or not all(_is_equal(before[name], after[name]) for name in before):
        remedy = "remove it from candidates: skops does not restore this estimator completely"
        raise FitError("the model predicts other values after it was stored", where=where, remedy=remedy)


def _is_equal(first: np.ndarray, second: np.ndarray) -> bool:
    return np.array_equal(first, second, equal_nan=first.dtype.kind == "f")


def skops_untrusted_types(path: Path) -> tuple[str, ...]:
    """The types in a model file that skops does not trust."""
    from skops.io import get_untrusted_types

    return tuple(sorted(set(get_untrusted_types(file=path))))


def packages_of(types: Iterable[str]) -> set[str]:
    """The packages of types that skops does not trust."""
    return {_BOOSTER_LIBRARIES.get(name, name.partition(".")[0]) for name in types}


def untrusted_types(path: Path) -> tuple[str, ...]:
    """The types in a model file that neither skops nor ``TRUSTED_TYPES`` trusts."""
    return tuple(name for name in skops_untrusted_types(path) if name not in TRUSTED_TYPES)


def load_model(path: Path, trusted: Sequence[str] = (), recorded: Sequence[str] = ()) -> Any:
    """Loads a model, after a check of the types in the file.

    The check protects against code in the file, not against changed numbers: check the digest of the file first.

    Args:
        path: a ``.skops`` file.
        trusted: packages or types that are trusted, from ``trusted_packages`` or the user.
        recorded: types that the release records; only classes and functions of the project are accepted.

    Raises:
        ReleaseError: the file is missing, is not a skops file, or has a type that is not trusted.
    """
    from skops.io import load  # takes 0.7 s

    try:
        types = untrusted_types(path)
        rejected = [name for name in types if not (_is_trusted(name, trusted) or _is_recorded(name, recorded))]
        if not rejected:
            return load(path, trusted=[*types, *TRUSTED_TYPES])
    except ModuleNotFoundError as missing:
        package = str(missing.name).partition(".")[0]
        extra = f"pip install 'towline[{package}]'"
        remedy = extra if package in LIBRARIES else f"install {package}, or add its folder to PYTHONPATH"
        what = f"the model needs {package}, which is not installed"
        raise ReleaseError(what, where=str(path), remedy=remedy) from None
    except Exception as error:  # a damaged file may raise anything
        raise ReleaseError(
            "no such model file" if isinstance(error, FileNotFoundError) else "the model file cannot be read",
            where=str(path),
            remedy="run the pipeline again, or restore the file",
            details=(f"{type(error).__name__}: {error}",),
        ) from error
    raise ReleaseError(
        f"the model has a type that is not trusted: {rejected[0]}",
        where=str(path),
        remedy=_remedy(rejected[0]),
        details=tuple(rejected[1:10]),
    )


def _is_trusted(name: str, trusted: Sequence[str]) -> bool:
    is_listed = any(name == entry or name.startswith(f"{entry}.") for entry in trusted)
    return is_listed and _resolve_type(name) is not None


def _is_recorded(name: str, recorded: Sequence[str]) -> bool:
    if name not in recorded:
        return False
    resolved = _resolve_type(name)
    return isinstance(resolved, type) or (
        inspect.isfunction(resolved) and package_origin.find_origin(name.partition(".")[0]) == "project"
    )


def _resolve_type(name: str) -> Any:
    """The object with a type's name, if it is defined in the package that the name begins with; else None."""
    package, (module, _, attribute) = name.partition(".")[0], name.rpartition(".")
    if package in sys.stdlib_module_names:
        return None
    resolved = getattr(importlib.import_module(module), attribute, None)
    home = str(getattr(resolved, "__module__", None)).partition(".")[0]
    return resolved if home == package else None


def _remedy(name: str) -> str:
    package = name.partition(".")[0]
    if package in sys.stdlib_module_names:
        return "use an estimator that has no such object"
    return (
        f"only if you trust the code of {package}: train with package: {{trusted: [{package}]}}; load a release that "
        f"was copied here with --trust {package}, or load(..., trusted=['{package}'])"
    )
