"""Files that are whole or absent: digests, atomic writes, and a lock between processes."""

import contextlib
import errno
import fcntl
import hashlib
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import IO, TypeVar

from pydantic import BaseModel, ValidationError

from towline.errors import TowlineError, TransientError

Record = TypeVar("Record", bound=BaseModel)


def sha256(path: Path) -> str:
    """Hex digest of a file's content, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write(path: Path, content: str | bytes, mode: int = 0o600) -> Path:
    """Writes a file so that a reader sees the old content or the new, never a part (temp, fsync, rename).

    Raises:
        TransientError: the disk is full or the folder cannot be written.
    """
    with replacing(path, mode) as file:
        file.write(content.encode() if isinstance(content, str) else content)
    return path


@contextmanager
def replacing(path: Path, mode: int = 0o600) -> Iterator[IO[bytes]]:
    """A binary file that takes ``path``'s place when the block ends well, and is removed when it does not."""
    with disk(path):
        path.parent.mkdir(parents=True, exist_ok=True)
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


def append(path: Path, line: bytes) -> None:
    """One more line of a file, which begins on a line of its own though a killed writer may have left half a one.

    The caller holds a lock where there are several writers.

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
    """Makes a rename in a folder outlast a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def age(path: Path) -> timedelta:
    """How long ago a file, or a folder or anything right in it, was written; 0 where it is gone meanwhile."""
    try:
        newest = max(entry.stat().st_mtime for entry in (path, *(path.iterdir() if path.is_dir() else ())))
    except FileNotFoundError:
        return timedelta(0)
    return timedelta(seconds=time.time() - newest)


def sweep(folder: Path) -> None:
    """Removes what killed writes left in a folder: unfinished files that no one has written to for a day."""
    for left in folder.glob(".*"):
        if left.is_file() and age(left) > timedelta(days=1):
            with contextlib.suppress(OSError):  # another has removed it, or it is another user's
                left.unlink()


@contextmanager
def disk(where: Path) -> Iterator[None]:
    """Turns a full disk or a folder that cannot be written into the error a user can act on."""
    try:
        yield
    except TowlineError:
        raise
    except OSError as error:
        remedies = {
            errno.ENOSPC: "free some disk space and run the same command again: finished steps are kept",
            errno.EDQUOT: "free some of your quota and run the same command again: finished steps are kept",
            errno.EACCES: "make the folder writable, or point TOWLINE_STORE at one that is",
            errno.EPERM: "make the folder writable, or point TOWLINE_STORE at one that is",
            errno.EROFS: "point TOWLINE_STORE at a folder that can be written",
            errno.ENOTDIR: "a file stands where the store should be: move it, or set TOWLINE_STORE",
            errno.EEXIST: "a file stands where the store should be: move it, or set TOWLINE_STORE",
        }
        if error.errno not in remedies:
            raise
        name = error.filename or where
        raise TransientError(
            f"cannot write: {os.strerror(error.errno)}", where=str(name), remedy=remedies[error.errno]
        ) from error


@contextmanager
def exclusive_lock(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Holds an advisory lock on ``path``, freed when its process dies; yields whether it was got."""
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


def records(path: Path, kind: type[Record]) -> list[Record]:
    """The records of a file of JSON lines, none where there is no file; half a line that a kill left is passed over."""
    found = []
    for line in path.read_bytes().splitlines() if path.exists() else ():
        with contextlib.suppress(ValidationError):
            found.append(kind.model_validate_json(line))
    return found
