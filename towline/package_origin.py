"""The origin of a package (Python, towline, an installed package, the project), found without importing it."""

import functools
import importlib.util
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Literal

Origin = Literal["python", "towline", "installed", "project", "absent"]


def find_origin(package: str) -> Origin:
    """The origin of a top-level package; a package of the project is on the path, but not installed."""
    if package in sys.stdlib_module_names or package == "__main__":
        return "python"
    if package in ("towline", "flows", "tasks"):
        return "towline"
    try:
        spec = importlib.util.find_spec(package) if package.isidentifier() else None
    except (ImportError, ValueError):
        spec = None
    if spec is None:
        return "absent"
    paths = [spec.origin] if spec.origin else [*(spec.submodule_search_locations or ())]
    installed = any({"site-packages", "dist-packages"} & set(Path(path).parts) for path in paths)
    return "installed" if installed else "project"


def source_files(package: str) -> list[Path]:
    """The Python files of a package of the project; none for any other package."""
    spec = importlib.util.find_spec(package) if find_origin(package) == "project" else None
    if spec is None:
        return []
    if spec.submodule_search_locations:
        return [file for folder in spec.submodule_search_locations for file in Path(folder).rglob("*.py")]
    return [Path(spec.origin)] if spec.origin and spec.origin.endswith(".py") else []


def installed_versions(packages: Iterable[str]) -> dict[str, str]:
    """The installed distributions that hold these packages, with their versions."""
    names = (_distribution(package) for package in sorted(set(packages)) if find_origin(package) == "installed")
    return {name: metadata.version(name) for name in names if name}


@functools.cache
def _distribution(package: str) -> str:
    # faster than reading the list of packages of every distribution
    for name in ("scikit-learn",) if package == "sklearn" else (package, f"{package}-cpu"):
        try:
            metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        return name
    return next(iter(metadata.packages_distributions().get(package, ())), "")
