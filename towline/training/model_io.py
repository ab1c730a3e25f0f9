"""Models on disk, with skops: read back only if every type in the file is known to be harmless to build."""

import importlib
import inspect
import sys
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from towline import files, origins
from towline.config import TrainingConfig
from towline.errors import FitError, ReleaseError, TowlineError
from towline.training.estimator_import import LIBRARIES, describe_error
from towline.training.evaluation.predictions import Predictions

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
    "towline.training.pipeline_components.Classifier",
    "towline.training.pipeline_components.CalendarParts",
    "xgboost.core.Booster",
    "xgboost.sklearn.XGBClassifier",
    "xgboost.sklearn.XGBRFClassifier",
    "xgboost.sklearn.XGBRFRegressor",
    "xgboost.sklearn.XGBRegressor",
)
"""On top of what skops itself trusts: numpy arrays and scikit-learn's public estimators."""


def trusted_packages(config: TrainingConfig) -> tuple[str, ...]:
    """The packages whose types the config trusts: those of its candidates' paths, and ``package.trusted``.

    Of scikit-learn only the part named (``sklearn.gaussian_process``), of the boosting libraries nothing: their types
    are in ``TRUSTED_TYPES``.
    """
    paths = [candidate.estimator.split(".") for candidate in config.candidates if "." in candidate.estimator]
    parts = {".".join(path[:2]) for path in paths if path[0] == "sklearn"}
    own = {path[0] for path in paths if path[0] not in LIBRARIES}
    return tuple(sorted({*parts, *own, *config.package.trusted}))


def save_model(model: Any, path: Path, where: str = "", level: int = 1) -> None:
    """Writes a model whole or not at all.

    Args:
        model: fitted.
        path: a ``.skops`` file.
        where: the config's key that the model comes from, for errors.
        level: of compression, 1 to 9.

    Raises:
        FitError: its estimator cannot be stored.
        TransientError: the disk is full or cannot be written.
    """
    import skops.io

    try:
        with files.replacing(path) as file:
            skops.io.dump(model, file, compression=zipfile.ZIP_DEFLATED, compresslevel=level)
    except (TowlineError, OSError):
        raise
    except Exception as error:  # skops raises what the object's own state methods raise
        remedy = "use an estimator that skops can store; scikit-learn's own all can"
        raise FitError(f"the model cannot be stored: {describe_error(error)}", where=where, remedy=remedy) from error


def check_round_trip(
    model: Any, path: Path, where: str, trusted: Sequence[str], answers: Callable[[Any], Predictions]
) -> None:
    """Stores a model, reads it back and compares its answers: it would be released in vain if that failed.

    Args:
        model: fitted.
        path: a ``.skops`` file, which is removed again.
        where: the config's key that the model comes from, for errors.
        trusted: as ``packages(config)`` gives them.
        answers: asks a model about some rows.

    Raises:
        FitError: it cannot be stored, not be read back, or answers otherwise then.
    """
    try:
        save_model(model, path, where)
        try:
            again = load_model(path, trusted, untrusted_types(path))
        except ReleaseError as error:
            raise FitError(
                f"the model cannot be read back: {error.what}",
                where=where,
                remedy=error.remedy,
                details=error.details,
            ) from error
    finally:
        path.unlink(missing_ok=True)
    before, after = answers(model), answers(again)
    if not (_is_equal(before.labels, after.labels) and _is_equal(before.probabilities, after.probabilities)):
        remedy = "leave it out: as it was stored it is another model"
        raise FitError("the model answers otherwise when it is read back", where=where, remedy=remedy)


def _is_equal(one: np.ndarray | None, other: np.ndarray | None) -> bool:
    if one is None or other is None:
        return one is other
    return np.array_equal(one, other, equal_nan=one.dtype.kind == "f")


def packages_in_model(path: Path) -> set[str]:
    """The packages of the types in a model file that skops does not trust of itself."""
    from skops.io import get_untrusted_types

    return {name.partition(".")[0] for name in get_untrusted_types(file=path)}


def untrusted_types(path: Path) -> tuple[str, ...]:
    """The types in a model file that are trusted neither by skops nor here."""
    from skops.io import get_untrusted_types

    return tuple(sorted(set(get_untrusted_types(file=path)) - set(TRUSTED_TYPES)))


def load_model(path: Path, trusted: Sequence[str] = (), recorded: Sequence[str] = ()) -> Any:
    """Reads a model that skops wrote. The types in the file are listed first, and nothing is built when one is unknown.

    This guards against code in a file, not against a file that was changed: check its digest before.

    Args:
        path: a ``.skops`` file.
        trusted: packages or types that someone vouches for, as ``packages(config)`` gives them.
        recorded: types that the release records. Of them only classes are built, and functions of the project.

    Raises:
        ReleaseError: the file is missing, is not a skops file, or holds a type that is not trusted.
    """
    from skops.io import load  # 0.7 s

    try:
        further = untrusted_types(path)
        foreign = [name for name in further if not (_is_trusted(name, trusted) or _is_recorded(name, recorded))]
        if not foreign:
            return load(path, trusted=[*further, *TRUSTED_TYPES])
    except ModuleNotFoundError as missing:
        package = str(missing.name).partition(".")[0]
        known = (
            f"pip install 'towline[{package}]'" if package in LIBRARIES else f"install {package}, or put it on the path"
        )
        raise ReleaseError(
            f"the model needs {package}, which is not installed", where=str(path), remedy=known
        ) from None
    except Exception as error:  # a damaged file fails anywhere: zip, JSON, a key, an array
        raise ReleaseError(
            "no such model file" if isinstance(error, FileNotFoundError) else "the model file cannot be read",
            where=str(path),
            remedy="run the pipeline again, or restore the file",
            details=(f"{type(error).__name__}: {error}",),
        ) from error
    raise ReleaseError(
        f"the model holds a type that is not trusted: {foreign[0]}",
        where=str(path),
        remedy=_remedy(foreign[0]),
        details=tuple(foreign[1:10]),
    )


def _is_trusted(name: str, trusted: Sequence[str]) -> bool:
    return any(name == one or name.startswith(f"{one}.") for one in trusted) and _resolve_type(name) is not None


def _is_recorded(name: str, recorded: Sequence[str]) -> bool:
    if name not in recorded:
        return False
    resolved = _resolve_type(name)
    return isinstance(resolved, type) or (
        inspect.isfunction(resolved) and origins.find_origin(name.partition(".")[0]) == "project"
    )


def _resolve_type(name: str) -> Any:
    """What a type's name means, if the package that the name begins with is where it was defined; else None."""
    package, (module, _, attribute) = name.partition(".")[0], name.rpartition(".")
    if package in sys.stdlib_module_names:
        return None
    resolved = getattr(importlib.import_module(module), attribute, None)
    home = str(getattr(resolved, "__module__", None)).partition(".")[0]
    return resolved if home == package else None


def _remedy(name: str) -> str:
    package = name.partition(".")[0]
    if package in sys.stdlib_module_names:
        return "use an estimator that keeps no such object"
    return (
        f"only if you trust the code of {package}: train with package: {{trusted: [{package}]}}; a release that was "
        f"copied here is read with --trust {package}, or load(..., trusted=['{package}'])"
    )
