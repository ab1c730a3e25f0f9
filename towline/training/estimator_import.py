"""A candidate's estimator by its dotted path: what a config may name, imported and checked before anything is called.

A config is data. The classes and functions that it can have called are estimator classes of the known libraries, and
what stands in the user's own project or in a package of ``package.trusted``.
"""

import difflib
import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from towline import origins
from towline.errors import ConfigError

LIBRARIES: Mapping[str, str] = {
    "sklearn": "scikit-learn", "lightgbm": "LightGBM", "xgboost": "XGBoost", "catboost": "CatBoost",
}  # fmt: skip
_REMEDY = "name a class of scikit-learn, LightGBM, XGBoost or CatBoost, or a class or function of your project"


def import_estimator(path: str, where: str, trusted: Sequence[str]) -> Callable[..., Any]:
    """The class or function that ``package.module.name`` means; it is not called.

    Args:
        path: at least one dot.
        where: the config's key, for errors.
        trusted: ``package.trusted`` of the config.

    Raises:
        ConfigError: the package may not be used or cannot be imported, or the name is no estimator class, nor, in a
            package of the user's, a function.
    """
    module_name, _, attribute = path.rpartition(".")
    package = path.partition(".")[0]
    _permit(package, path, where, trusted)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # an imported module may raise anything
        what = f"cannot import {module_name!r}: {describe_error(error)}"
        raise ConfigError(what, where=where, remedy="check the spelling, and that its package is installed") from error
    imported = getattr(module, attribute, None)
    functions = package not in LIBRARIES
    if not (isinstance(imported, type) or (functions and inspect.isfunction(imported))):
        names = [name for name in dir(module) if name[0].isupper() or functions]
        expected = "class or function" if functions else "class"
        what = f"{module_name} has no {expected} {attribute!r}"
        raise ConfigError(what, where=where, remedy=nearest(attribute, names))
    home = imported.__module__.partition(".")[0]
    if home != package:  # what a module has imported is not its own
        _permit(home, f"{path} is {imported.__module__}.{imported.__qualname__}, which", where, trusted)
        functions = functions and home not in LIBRARIES
    if isinstance(imported, type) and not all(callable(getattr(imported, name, None)) for name in ("fit", "predict")):
        what = f"{path} is not a scikit-learn compatible estimator: it has no fit and predict"
        raise ConfigError(what, where=where, remedy=_REMEDY)
    if not isinstance(imported, type) and not functions:
        raise ConfigError(f"{path} is a function of {LIBRARIES[home]}", where=where, remedy="name a class")
    return imported


def _permit(package: str, path: str, where: str, trusted: Sequence[str]) -> None:
    origin = origins.find_origin(package)
    if package in LIBRARIES:
        if origin == "absent":
            raise ConfigError(
                f"{LIBRARIES[package]} is not installed", where=where, remedy=f"pip install 'towline[{package}]'"
            )
        return
    if origin == "absent":
        what = f"cannot import {package!r}: it is not installed, and the project has none"
        remedy = f"pip install {package}, or " if package else ""
        raise ConfigError(what, where=where, remedy=f"{remedy}check the spelling, and that its package is installed")
    if origin == "project" or (origin == "installed" and package in trusted):
        return
    if origin == "installed":
        remedy = f"if you trust the code of {package}, set package: {{trusted: [{package}]}}; else {_REMEDY}"
        raise ConfigError(f"{path} may not be called: the config does not trust {package}", where=where, remedy=remedy)
    whose = "Python" if origin == "python" else "towline"
    raise ConfigError(f"{path} may not be called: it is part of {whose} itself", where=where, remedy=_REMEDY)


def describe_error(error: BaseException) -> str:
    """An error in one line: its class and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:160]}" if lines else type(error).__name__


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name that is most like another, or some of them, as a remedy."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, 1, 0.5)
    return f"did you mean {near[0]}?" if near else "known: " + ", ".join(names[:30])
