"""The runtime of a release: the packages that its container image installs, as lock files with hashes.

Each scorer has its own lock file: the compiled scorer, scikit-learn, and each library of boosted trees.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from towline.errors import ReleaseError
from towline.extras import BOOSTING_LIBRARIES

NAME = "requirements.txt"
_HERE = Path(__file__).parent
_LINE = re.compile(r"(?P<name>[A-Za-z0-9._-]+)==(?P<version>[^\s;\\]+)(?:\s*;\s*(?P<marker>[^\\\n]+?))?\s*(?:\\|$)")


class LockedPackage(NamedTuple):
    """A package in a lock file; ``hashes`` are the SHA-256 digests of its archives."""

    name: str
    version: str
    marker: str
    hashes: tuple[str, ...]


def select_lock_file(*, compiled: bool, packages: Collection[str] = ()) -> str:
    """The text of the lock file for a release.

    Args:
        compiled: whether the release is scored by its compiled scorer.
        packages: packages of the types in the model.
    """
    library = next((library for library in BOOSTING_LIBRARIES if library in packages), "sklearn")
    return (_HERE / f"{'compiled' if compiled else library}.txt").read_text(encoding="utf-8")


def parse_lock_file(text: str) -> Iterator[LockedPackage]:
    """The packages in the text of a lock file."""
    for block in re.split(r"\n(?=[A-Za-z0-9])", text.strip()):
        if match := _LINE.match(block):
            hashes = tuple(re.findall(r"--hash=sha256:([0-9a-f]{64})", block))
            yield LockedPackage(match["name"].lower(), match["version"], (match["marker"] or "").strip(), hashes)


def check_versions(text: str, libraries: Mapping[str, str], *, compiled: bool) -> None:
    """Checks that a lock file has the versions that a model was trained with.

    Args:
        text: the lock file.
        libraries: distribution → version at training.
        compiled: whether the release is scored by its compiled scorer, which needs NumPy only.

    Raises:
        ReleaseError: a version differs, so the image could give other predictions.
    """
    versions: dict[str, set[str]] = {}
    for package in parse_lock_file(text):
        versions.setdefault(_library(package.name), set()).add(package.version)
    needed = {"numpy"} if compiled else {"numpy", "pandas", "scikit-learn", "skops", *BOOSTING_LIBRARIES}
    differences = [
        f"{name} {version}, the image would hold {' or '.join(sorted(versions.get(_library(name), {'none'})))}"
        for name, version in libraries.items()
        if _library(name) in needed and version not in versions.get(_library(name), set())
    ]
    if differences:
        raise ReleaseError(
            "the release was made with other versions than its image would hold",
            where=NAME,
            remedy="train with the versions of towline's lock files (make env), then package that release",
            details=tuple(differences),
        )


def _library(distribution: str) -> str:
    """The library of a distribution: XGBoost has one distribution with GPU code and one without (``-cpu``)."""
    return distribution.removesuffix("-cpu")
