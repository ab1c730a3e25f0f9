"""Import of code that a config names by its dotted path, with a check that the config may use it.

A config is data, and must not be able to call any code. It may name estimator classes of the known libraries, and
classes and functions of the user's project or of a package in ``package.trusted``.
"""

import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, cast

from towline import package_origin
from towline.config import suggest
from towline.errors import ConfigError

LIBRARIES: Mapping[str, str] = {
    "sklearn": "scikit-learn", "lightgbm": "LightGBM", "xgboost": "XGBoost", "catboost": "CatBoost",
}  # fmt: skip
_REMEDY = "name a class of scikit-learn, LightGBM, XGBoost or CatBoost, or a class or function of your project"


def import_estimator(path: str, where: str, trusted: Sequence[str]) -> Callable[..., Any]:
    """The class or function at ``package.module.name``; it is not called.

    Args:
        path: with at least one dot.
        where: config key, for errors.
        trusted: ``package.trusted`` of the config.

    Raises:
        ConfigError: the package may not be used or cannot be imported, or the object is not an estimator class (or a
            function, if it is in the user's code).
    """
    may_be_function = path.partition(".")[0] not in LIBRARIES
    imported = _import_object(path, where, trusted, "class or function" if may_be_function else "class")
    home = imported.__module__.partition(".")[0]
    if isinstance(imported, type):
        if not all(callable(getattr(imported, name, None)) for name in ("fit", "predict")):
            what = f"{path} is not a scikit-learn compatible estimator: it has no fit and predict"
            raise ConfigError(what, where=where, remedy=_REMEDY)
    elif home in LIBRARIES:
        raise ConfigError(f"{path} is a function of {LIBRARIES[home]}", where=where, remedy="name one of its classes")
    return imported


def import_transformer(path: str, where: str, trusted: Sequence[str]) -> Callable[..., Any]:
    """The transformer class at ``package.module.name``, of the project, of scikit-learn or of a trusted package.

    Raises:
        ConfigError: the package may not be used or cannot be imported, or the object is not a transformer class.
    """
    transformer = _import_object(path, where, trusted, "class")
    if not all(callable(getattr(transformer, name, None)) for name in ("fit", "transform", "get_params")):
        what = f"{path} is not a scikit-learn compatible transformer: it has no fit, transform and get_params"
        remedy = "derive it from sklearn.base.TransformerMixin and BaseEstimator"
        raise ConfigError(what, where=where, remedy=remedy)
    return transformer


def import_function(path: str, where: str, trusted: Sequence[str]) -> Callable[..., Any]:
    """The function at ``package.module.name``, of the project or of a trusted package.

    Args:
        path: with at least one dot.
        where: config key, for errors.
        trusted: ``package.trusted`` of the config.

    Raises:
        ConfigError: the package may not be used or cannot be imported, or the object is not a function.
    """
    package = path.partition(".")[0]
    if package in LIBRARIES and package not in trusted:
        remedy = f"write a function in your project that calls it, or set package: {{trusted: [{package}]}}"
        raise ConfigError(f"{path} is not in your project", where=where, remedy=remedy)
    return _import_object(path, where, trusted, "function")


def _import_object(
    path: str, where: str, trusted: Sequence[str], kind: Literal["class", "function", "class or function"]
) -> Callable[..., Any]:
    """The class or function at a path, if the config may use the package of the path and the one that defines it."""
    module_name, _, attribute = path.rpartition(".")
    package = path.partition(".")[0]
    _check_permission(package, path, where, trusted)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # an imported module may raise anything
        what = f"cannot import {module_name!r}: {describe_error(error)}"
        raise ConfigError(what, where=where, remedy="check the spelling, and that its package is installed") from error

    def is_suitable(value: object) -> bool:
        is_class = isinstance(value, type) and "class" in kind
        return is_class or (inspect.isfunction(value) and "function" in kind)

    imported: Any = getattr(module, attribute, None)
    if not is_suitable(imported):
        names = [name for name, value in vars(module).items() if is_suitable(value)]
        raise ConfigError(f"{module_name} has no {kind} {attribute!r}", where=where, remedy=suggest(attribute, names))
    home = imported.__module__.partition(".")[0]
    if home != package:  # imported there from another package
        _check_permission(home, f"{path} is {imported.__module__}.{imported.__qualname__}, which", where, trusted)
    return cast("Callable[..., Any]", imported)


def _check_permission(package: str, path: str, where: str, trusted: Sequence[str]) -> None:
    origin = package_origin.find_origin(package)
    if package in LIBRARIES:
        if origin == "absent":
            what = f"{LIBRARIES[package]} is not installed"
            raise ConfigError(what, where=where, remedy=f"pip install 'towline[{package}]'")
        return
    if origin == "absent":
        what = f"cannot import {package!r}: it is not installed, and not in the project"
        remedy = f"pip install {package}, or " if package else ""
        raise ConfigError(what, where=where, remedy=f"{remedy}check the spelling, and that its package is installed")
    if origin == "project" or (origin == "installed" and package in trusted):
        return
    if origin == "installed":
        remedy = f"if you trust the code of {package}, set package: {{trusted: [{package}]}}; else {_REMEDY}"
        raise ConfigError(f"{path} may not be called: the config does not trust {package}", where=where, remedy=remedy)
    owner = "Python" if origin == "python" else "towline"
    raise ConfigError(f"{path} may not be called: it is part of {owner}", where=where, remedy=_REMEDY)


def describe_error(error: BaseException) -> str:
    """An error in one line: its class and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:160]}" if lines else type(error).__name__
