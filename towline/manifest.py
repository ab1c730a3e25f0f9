"""The manifest of a release describes the model and lists every file of the release with its size and SHA-256 digest.

The files are compared with the manifest before any of them is opened.
"""

import hashlib
import json
import re
import stat
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import Field, StringConstraints, ValidationError

from towline import files
from towline.config import Frozen, Task
from towline.errors import ReleaseError
from towline.training.evaluation.predictions import Interval

MANIFEST = "manifest.json"
HOLDOUT = "holdout.npz"
MAX_MANIFEST_BYTES = 2**20
MAX_FILE_BYTES = 2**31  # bytes; every replica reads the whole release
REMEDY = "fetch the release again from the registry's artifacts, or roll back to the previous version"

# every part of a name begins with a letter or digit: no "..", no hidden file, no absolute path
FileName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)*$", max_length=200)]


class FileEntry(Frozen):
    """The expected digest and size in bytes of one file of a release."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size: int = Field(ge=0, le=MAX_FILE_BYTES)


class ReleaseLocation(NamedTuple):
    """The directory of a release, and the digest of its manifest in the ledger; empty if none is recorded."""

    directory: Path
    digest: str = ""


class Manifest(Frozen):
    """Describes a release: the model, its origin, and every file except the manifest.

    Attributes:
        calibration: of the probabilities: its method and number of rows; None if they are not calibrated.
        libraries: versions of the libraries used in training, including that of the estimator.
        trusted: types in the model that are not in the fixed list and that the config trusted. They are loaded only if
            the ledger has recorded the digest of this manifest.
    """

    format: Literal[1] = 1
    name: str
    version: int
    run_key: str
    created: str
    task: Task
    target: str
    classes: tuple[str | int | bool | float, ...]
    positive: str | int | bool | float | None
    threshold: float | tuple[float, ...] | None
    calibration: dict[str, Any] | None = None
    dataset: dict[str, Any]
    estimator: str
    params: dict[str, Any]
    metrics: dict[str, Interval]
    primary: str
    commit: str
    towline: str
    python: str
    libraries: dict[str, str]
    trusted: tuple[str, ...] = ()
    seeds: dict[str, int]
    files: dict[FileName, FileEntry] = Field(default_factory=dict)
    _OMITTED_IF_EMPTY: ClassVar[frozenset[str]] = frozenset({"calibration"})

    def text(self) -> str:
        """The canonical JSON text of the manifest; it is written to the file, and the digest is computed from it.

        Fields that older releases do not have are left out if they are empty, so that these releases stay canonical.
        """
        document = self.model_dump(mode="json")
        document = {key: value for key, value in document.items() if value or key not in self._OMITTED_IF_EMPTY}
        return json.dumps(document, sort_keys=True, indent=1, ensure_ascii=False) + "\n"

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.text().encode()).hexdigest()

    @property
    def folder(self) -> str:
        """The name of the release's directory, which contains the start of the digest."""
        return f"v{self.version}-{self.digest[:12]}"


def verify_release(directory: Path, digest: str = "") -> Manifest:
    """Checks that a directory holds exactly the files of its manifest; parses no file except the manifest.

    Args:
        directory: the release.
        digest: digest of its manifest, as recorded in the ledger; it is not compared if it is empty.

    Raises:
        ReleaseError: a file is missing, unexpected, a link or a special file, or differs in size or digest; or the
            manifest has another digest.
    """
    directory = directory.resolve()
    if not directory.is_dir():
        raise ReleaseError("there is no release here", where=str(directory), remedy=REMEDY)
    try:
        sizes = _regular_files(directory)
        manifest = _read_checked(directory, sizes.pop(MANIFEST, None))
        _compare_files(directory, sizes, manifest)
    except OSError as error:
        raise _release_error(Path(error.filename or directory), f"cannot be read: {error.strerror}") from error
    if digest and manifest.digest != digest:
        what = f"the release has the digest {manifest.digest[:12]}…, the ledger says {digest[:12]}…"
        raise ReleaseError(what, where=str(directory), remedy=REMEDY)
    return manifest


def read_manifest(directory: Path) -> Manifest:
    """Reads the manifest and compares it with the name of the folder; the other files are not checked.

    Enough to list a release; loading one needs ``verify_release``.

    Raises:
        ReleaseError: there is no manifest, or it was changed.
    """
    path = directory / MANIFEST
    try:
        return _read_checked(directory.resolve(), path.lstat().st_size)
    except OSError as error:
        raise _release_error(path, f"cannot be read: {error.strerror}") from error


def describe_files(directory: Path) -> dict[str, FileEntry]:
    """The entry of every file below a directory, by its relative path."""
    return {
        name: FileEntry(sha256=files.sha256(directory / name), size=size)
        for name, size in sorted(_regular_files(directory).items())
    }


def _regular_files(directory: Path) -> dict[str, int]:
    """Sizes of the files below a directory, by relative path; a link, pipe, device or empty folder is an error."""
    sizes: dict[str, int] = {}
    pending = [directory]
    while pending:
        folder = pending.pop()
        paths = list(folder.iterdir())
        if not paths and folder != directory:
            raise _release_error(folder, "is an empty folder that is not in the manifest")
        for path in paths:
            status = path.lstat()
            if stat.S_ISDIR(status.st_mode):
                pending.append(path)
            elif stat.S_ISREG(status.st_mode):
                sizes[path.relative_to(directory).as_posix()] = status.st_size
            else:
                raise _release_error(path, "is a link or a special file")
    return sizes


def _read_checked(directory: Path, size: int | None) -> Manifest:
    path = directory / MANIFEST
    if size is None:
        raise _release_error(path, "is missing")
    if size > MAX_MANIFEST_BYTES:
        raise _release_error(path, f"has {size:,} bytes, more than the allowed {MAX_MANIFEST_BYTES:,}")
    raw = path.read_bytes()
    digest = hashlib.sha256(raw).hexdigest()
    match = re.fullmatch(r"v(\d+)-([0-9a-f]{12})", directory.name)
    if match and match[2] != digest[:12]:
        raise _release_error(path, f"has the digest {digest[:12]}, the folder's name says {match[2]}")
    try:
        manifest = Manifest.model_validate_json(raw)
    except ValidationError as invalid:
        first = invalid.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        raise _release_error(path, f"is not a manifest: {key + ': ' if key else ''}{first['msg']}") from None
    if manifest.digest != digest:
        raise _release_error(path, "is not in its canonical form")
    if match and int(match[1]) != manifest.version:
        raise _release_error(path, f"is of version {manifest.version}, the folder's name says {match[1]}")
    return manifest


def _compare_files(directory: Path, sizes: dict[str, int], manifest: Manifest) -> None:
    for name in sorted(manifest.files.keys() | sizes.keys()):
        path, entry = directory / name, manifest.files.get(name)
        if entry is None:
            raise _release_error(path, "is not in the manifest")
        if name not in sizes:
            raise _release_error(path, "is missing")
        if sizes[name] != entry.size:
            raise _release_error(path, f"has {sizes[name]:,} bytes, the manifest says {entry.size:,}")
    for name, entry in manifest.files.items():
        if (digest := files.sha256(directory / name)) != entry.sha256:
            raise _release_error(
                directory / name, f"has the sha256 {digest[:12]}…, the manifest says {entry.sha256[:12]}…"
            )


def _release_error(path: Path, finding: str) -> ReleaseError:
    what = f"the release differs from its manifest: {path.name} {finding}"
    return ReleaseError(what, where=str(path), remedy=REMEDY)
