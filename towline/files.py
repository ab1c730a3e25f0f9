"""Files: digests, atomic writes, locks between processes, and errors of the disk."""

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import IO, TYPE_CHECKING, TypeVar

from towline.errors import TowlineError, TransientError

if TYPE_CHECKING:
    import numpy as np
    from pydantic import BaseModel

Record = TypeVar("Record", bound="BaseModel")
LOADING = ".loading-"  # prefix of folders with columns of a table that is loaded


def sha256(path: Path) -> str:
    """The hex digest of a file, which is read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write(path: Path, content: str | bytes, mode: int = 0o600) -> Path:
    """Writes a file atomically (temporary file, fsync, rename): a reader sees the old or the new content.

    Raises:
        TransientError: the disk is full or the folder cannot be written.
    """
    with replacing(path, mode) as file:
        file.write(content.encode() if isinstance(content, str) else content)
    return path


@contextmanager
def replacing(path: Path, mode: int = 0o600) -> Iterator[IO[bytes]]:
    """A temporary binary file that replaces ``path`` when the block succeeds, and is removed when it fails."""
    with disk(path):
        _make_folders(path.parent, mode)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            Path(name).chmod(mode)
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


def _make_folders(folder: Path, mode: int) -> None:
    """Makes a folder for files of a mode: those who may read these files may list it, whatever the umask is."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    if mode & 0o077:
        for path in missing:
            path.chmod(0o700 | mode | (mode & 0o444) >> 2)


def write_arrays(path: Path, **arrays: "np.ndarray") -> None:
    """Writes named arrays to an ``.npz`` file, atomically."""
    import numpy as np

    with replacing(path) as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def read_arrays(source: Path | IO[bytes]) -> "dict[str, np.ndarray]":
    """The arrays of an ``.npz`` file by name."""
    import numpy as np

    with np.load(source, allow_pickle=False) as file:
        return dict(file)


def append(path: Path, line: bytes) -> None:
    """Appends a line to a file; an incomplete line of a killed writer is ended first.

    With several writers, the caller must hold a lock.

    Raises:
        TransientError: the disk is full or the folder cannot be written.
    """
    with disk(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab+") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                line = line if file.read(1) == b"\n" else b"\n" + line
            file.write(line)


def sync(folder: Path) -> None:
    """Flushes a folder, so that a rename in it outlasts a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def age(path: Path) -> timedelta:
    """The time since a file, or a folder or its entries, was written; 0 if it does not exist."""
    try:
        newest = max(entry.stat().st_mtime for entry in (path, *(path.iterdir() if path.is_dir() else ())))
    except FileNotFoundError:
        return timedelta(0)
    return timedelta(seconds=time.time() - newest)


def sweep(folder: Path) -> None:
    """Removes temporary files that killed writers left in a folder more than a day ago."""
    for leftover in folder.glob(".*"):
        is_folder = leftover.name.startswith(LOADING) and leftover.is_dir()
        if (leftover.is_file() or is_folder) and age(leftover) > timedelta(days=1):
            with contextlib.suppress(OSError):  # another process has removed it, or it belongs to another user
                shutil.rmtree(leftover) if is_folder else leftover.unlink()


@contextmanager
def disk(where: Path) -> Iterator[None]:
    """Turns a full disk, or a folder that cannot be written, into a TransientError with a remedy."""
    try:
        yield
    except TowlineError:
        raise
    except OSError as error:
        another = "name another folder: that of the store is TOWLINE_STORE"
        remedies = {
            errno.ENOSPC: "free some disk space, then run the same command again: completed steps are not repeated",
            errno.EDQUOT: "free some of your quota, then run the same command again: completed steps are not repeated",
            errno.EACCES: f"make the folder writable, or {another}",
            errno.EPERM: f"make the folder writable, or {another}",
            errno.EROFS: another,
            errno.ENOTDIR: f"a file is in the place of a folder: move it, or {another}",
            errno.EEXIST: f"a file is in the place of a folder: move it, or {another}",
        }
        if error.errno not in remedies:
            raise
        name = error.filename or where
        raise TransientError(
            f"cannot write: {os.strerror(error.errno)}", where=str(name), remedy=remedies[error.errno]
        ) from error


@contextmanager
def exclusive_lock(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Holds an advisory lock on ``path`` during the block; the lock ends with its process.

    Yields True if the lock was acquired. With ``wait=False`` it yields False if another process holds the lock.
    """
    with disk(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+b")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True


def read_records(path: Path, kind: type[Record]) -> list[Record]:
    """The records of a JSON lines file; none without a file. Incomplete lines of killed writers are skipped."""
    from pydantic import ValidationError  # `towline --help` would wait for it

    parsed = []
    for line in path.read_bytes().splitlines() if path.exists() else ():
        with contextlib.suppress(ValidationError):
            parsed.append(kind.model_validate_json(line))
    return parsed


def is_visible(name: str, pattern: str = "") -> bool:
    """Whether a folder or pattern means a file: a name that begins with a dot only if the pattern does, too."""
    return not name.startswith(".") or pattern.startswith(".")
