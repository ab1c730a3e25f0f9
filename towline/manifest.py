"""The manifest of a release: every file it holds with its digest, checked before anything in it is opened."""

import hashlib
import json
import re
import stat
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, StringConstraints, ValidationError

from towline import files
from towline.config import Frozen, Metric, Task
from towline.errors import ReleaseError
from towline.training.evaluation.predictions import Interval

MANIFEST = "manifest.json"
HOLDOUT = "holdout.npz"
MAX_MANIFEST_BYTES = 2**20
MAX_FILE_BYTES = 2**31  # bytes; a release is read whole by every replica
REMEDY = "fetch the release again from the registry's artifacts, or roll back to the previous version"

# every part of a name begins with a letter or digit: no "..", no hidden file, no absolute path
FileName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)*$", max_length=200)]


class FileEntry(Frozen):
    """What one file of a release must be: its digest and its size in bytes."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size: int = Field(ge=0, le=MAX_FILE_BYTES)


class ReleaseLocation(NamedTuple):
    """A release's directory, and its manifest's digest as the ledger recorded it; empty where it has none."""

    directory: Path
    digest: str = ""


class Manifest(Frozen):
    """What a release is, where it comes from, and every file in it but this one.

    Attributes:
        libraries: versions of what it was made with, the estimator's own library among them.
        trusted: types in its model beyond the fixed list, which the config trusted. They are built where the ledger
            vouches for the release, by its digest.
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
    threshold: float | None
    dataset: dict[str, Any]
    estimator: str
    params: dict[str, Any]
    metrics: dict[str, Interval]
    primary: Metric
    commit: str
    towline: str
    python: str
    libraries: dict[str, str]
    trusted: tuple[str, ...] = ()
    seeds: dict[str, int]
    files: dict[FileName, FileEntry] = Field(default_factory=dict)

    def text(self) -> str:
        """The one text a manifest has: what is written, and what its digest is taken of."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, indent=1, ensure_ascii=False) + "\n"

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.text().encode()).hexdigest()

    @property
    def folder(self) -> str:
        """The name of the release's directory, which holds the digest of what is in it."""
        return f"v{self.version}-{self.digest[:12]}"


def verify_release(directory: Path) -> Manifest:
    """Checks that a directory is exactly what its manifest says, without opening anything but the manifest.

    Raises:
        ReleaseError: names the file and what differs: missing, extra, a link or special file, size or digest.
    """
    directory = directory.resolve()
    if not directory.is_dir():
        raise ReleaseError("there is no release here", where=str(directory), remedy=REMEDY)
    try:
        found = _regular_files(directory)
        manifest = _read_checked(directory, found.pop(MANIFEST, None))
        _compare_files(directory, found, manifest)
    except OSError as error:
        raise _release_error(Path(error.filename or directory), f"cannot be read: {error.strerror}") from error
    return manifest


def read_manifest(directory: Path) -> Manifest:
    """The manifest alone, checked against the folder's name: enough to list a release, not to load it.

    Raises:
        ReleaseError: there is none, or it is not what was written.
    """
    path = directory / MANIFEST
    try:
        return _read_checked(directory.resolve(), path.lstat().st_size)
    except OSError as error:
        raise _release_error(path, f"cannot be read: {error.strerror}") from error


def describe_files(directory: Path) -> dict[str, FileEntry]:
    """The entry of every file beneath a directory, by its name relative to it."""
    return {
        name: FileEntry(sha256=files.sha256(directory / name), size=size)
        for name, size in sorted(_regular_files(directory).items())
    }


def _regular_files(directory: Path) -> dict[str, int]:
    """Sizes of the files beneath a directory by relative name; a link, pipe, device or empty folder is refused."""
    found: dict[str, int] = {}
    pending = [directory]
    while pending:
        folder = pending.pop()
        paths = list(folder.iterdir())
        if not paths and folder != directory:
            raise _release_error(folder, "is an empty folder the manifest does not know")
        for path in paths:
            status = path.lstat()
            if stat.S_ISDIR(status.st_mode):
                pending.append(path)
            elif stat.S_ISREG(status.st_mode):
                found[path.relative_to(directory).as_posix()] = status.st_size
            else:
                raise _release_error(path, "is a link or a special file")
    return found


def _read_checked(directory: Path, size: int | None) -> Manifest:
    path = directory / MANIFEST
    if size is None:
        raise _release_error(path, "is missing")
    if size > MAX_MANIFEST_BYTES:
        raise _release_error(path, f"has {size:,} bytes, more than the {MAX_MANIFEST_BYTES:,} a manifest may have")
    raw = path.read_bytes()
    digest = hashlib.sha256(raw).hexdigest()
    named = re.fullmatch(r"v(\d+)-([0-9a-f]{12})", directory.name)
    if named and named[2] != digest[:12]:
        raise _release_error(path, f"has the digest {digest[:12]}, the folder's name says {named[2]}")
    try:
        manifest = Manifest.model_validate_json(raw)
    except ValidationError as invalid:
        first = invalid.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        raise _release_error(path, f"is not a manifest: {key + ': ' if key else ''}{first['msg']}") from None
    if manifest.digest != digest:
        raise _release_error(path, "is not in the form it was written in")
    if named and int(named[1]) != manifest.version:
        raise _release_error(path, f"is of version {manifest.version}, the folder's name says {named[1]}")
    return manifest


def _compare_files(directory: Path, found: dict[str, int], manifest: Manifest) -> None:
    for name in sorted(manifest.files.keys() | found.keys()):
        path, entry = directory / name, manifest.files.get(name)
        if entry is None:
            raise _release_error(path, "is not in the manifest")
        if name not in found:
            raise _release_error(path, "is missing")
        if found[name] != entry.size:
            raise _release_error(path, f"has {found[name]:,} bytes, the manifest says {entry.size:,}")
    for name, entry in manifest.files.items():
        if (digest := files.sha256(directory / name)) != entry.sha256:
            raise _release_error(
                directory / name, f"has the sha256 {digest[:12]}…, the manifest says {entry.sha256[:12]}…"
            )


def _release_error(path: Path, finding: str) -> ReleaseError:
    what = f"the release is not what its manifest says: {path.name} {finding}"
    return ReleaseError(what, where=str(path), remedy=REMEDY)
