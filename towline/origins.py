"""Where the code of a package comes from, told without importing it."""

import functools
import importlib.util
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Literal

Origin = Literal["python", "towline", "installed", "project", "absent"]


def find_origin(package: str) -> Origin:
    """Whose a top-level package is; the project's is what is on the path and not installed."""
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
    places = [spec.origin] if spec.origin else [*(spec.submodule_search_locations or ())]
    installed = any({"site-packages", "dist-packages"} & set(Path(place).parts) for place in places)
    return "installed" if installed else "project"


def source_files(package: str) -> list[Path]:
    """The Python files of a package of the project."""
    spec = importlib.util.find_spec(package)
    if spec is None:
        return []
    if spec.submodule_search_locations:
        return [file for place in spec.submodule_search_locations for file in Path(place).rglob("*.py")]
    return [Path(spec.origin)] if spec.origin else []


def installed_versions(packages: Iterable[str]) -> dict[str, str]:
    """The installed distributions that hold these packages, with their versions."""
    names = (_distribution(package) for package in sorted(set(packages)) if find_origin(package) == "installed")
    return {name: metadata.version(name) for name in names if name}


@functools.cache
def _distribution(package: str) -> str:
    for name in (package, f"{package}-cpu"):  # quicker than to read every distribution's list of packages
        try:
            metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        return name
    return next(iter(metadata.packages_distributions().get(package, ())), "")
