"""Models on disk: read back with skops, only if every type in the file is known to be harmless to build."""

from pathlib import Path
from typing import Any

from towline.config import PipelineConfig
from towline.errors import ReleaseError

TRUSTED_TYPES = (
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
    "towline.training.classifier.Classifier",
    "towline.training.features.CalendarParts",
)
"""On top of what skops itself trusts: numpy arrays and scikit-learn's public estimators."""


def packages(config: PipelineConfig) -> tuple[str, ...]:
    """The packages that the config trusts by naming a candidate's class in them; of scikit-learn only the part named.

    ``lightgbm.LGBMRegressor`` → ``lightgbm``, ``sklearn.gaussian_process.GaussianProcessRegressor`` →
    ``sklearn.gaussian_process``.
    """
    paths = [candidate.estimator.split(".") for candidate in config.candidates if "." in candidate.estimator]
    return tuple(sorted({".".join(path[: 2 if path[0] == "sklearn" else 1]) for path in paths}))


def load(path: Path, extra_packages: tuple[str, ...] = ()) -> Any:
    """Reads a model that skops wrote. The types in the file are listed first, and nothing is built when one is unknown.

    This guards against code in a file, not against a file that was changed: check its digest before.

    Args:
        path: a ``.skops`` file.
        extra_packages: packages whose types are trusted too, as ``packages(config)`` gives them.

    Raises:
        ReleaseError: the file is missing, is not a skops file, or holds a type that is not trusted.
    """
    from skops.io import get_untrusted_types, load  # 0.7 s

    try:
        found = get_untrusted_types(file=path)
        prefixes = tuple(f"{package}." for package in extra_packages)
        foreign = [name for name in found if name not in TRUSTED_TYPES and not name.startswith(prefixes)]
        if not foreign:
            return load(path, trusted=found)
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
        remedy=f"only if you trust that package, name a class of {foreign[0].partition('.')[0]} as a candidate",
        details=tuple(foreign[1:10]),
    )
