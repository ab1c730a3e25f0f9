"""The packages that a release needs to answer over HTTP, hash-locked: what its image installs."""

import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from towline.errors import ReleaseError

NAME = "requirements.txt"
LIBRARIES = ("catboost", "lightgbm", "xgboost")
_HERE = Path(__file__).parent
_LINE = re.compile(r"(?P<name>[A-Za-z0-9._-]+)==(?P<version>[^\s;\\]+)(?:\s*;\s*(?P<marker>[^\\\n]+?))?\s*(?:\\|$)")


class LockedPackage(NamedTuple):
    """One package of a lock file; ``hashes`` are the sha256 of its files."""

    name: str
    version: str
    marker: str
    hashes: tuple[str, ...]


def select_lock_file(*, compiled: bool, packages: Collection[str] = ()) -> str:
    """The lock file for a release that its compiled scorer answers for, or else the library that its model is of.

    Args:
        compiled: whether the compiled scorer answers.
        packages: that the types in the model are of.
    """
    own = next((library for library in LIBRARIES if library in packages), "sklearn")
    return (_HERE / f"{'compiled' if compiled else own}.txt").read_text(encoding="utf-8")


def parse_lock_file(text: str) -> Iterator[LockedPackage]:
    """The packages that a lock file names."""
    for block in re.split(r"\n(?=[A-Za-z0-9])", text.strip()):
        if match := _LINE.match(block):
            hashes = tuple(re.findall(r"--hash=sha256:([0-9a-f]{64})", block))
            yield LockedPackage(match["name"].lower(), match["version"], (match["marker"] or "").strip(), hashes)


def check_versions(text: str, libraries: Mapping[str, str], *, compiled: bool) -> None:
    """Holds a lock file to the versions that a model was trained with.

    Raises:
        ReleaseError: it names other ones, so that the image would not answer as the model did.
    """
    versions: dict[str, set[str]] = {}
    for one in parse_lock_file(text):
        versions.setdefault(_library(one.name), set()).add(one.version)
    needed = {"numpy"} if compiled else {"numpy", "pandas", "scikit-learn", "skops", *LIBRARIES}
    other = [
        f"{name} {version}, the image would hold {' or '.join(sorted(versions.get(_library(name), {'none'})))}"
        for name, version in libraries.items()
        if _library(name) in needed and version not in versions.get(_library(name), set())
    ]
    if other:
        raise ReleaseError(
            "the release was made with other versions than its image would hold",
            where=NAME,
            remedy="train with the versions of towline's lock files (make env), then package that release",
            details=tuple(other),
        )


def _library(distribution: str) -> str:
    """XGBoost is distributed with and without code for GPUs, under two names."""
    return distribution.removesuffix("-cpu")
