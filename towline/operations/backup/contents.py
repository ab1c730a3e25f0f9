"""What of a store is kept, and what is not: locks, logs, servers under way, runs under way, what a kill left."""

import os
import stat
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import NamedTuple

from towline import files
from towline.prediction_log.privacy import HASH_KEYS

STORE = "store"
ASIDE = ".before-restore-"  # what a restore found in the place it needed
_NOT = {"locks", "logs", "servers", "work", "lost+found"}
_RUNNING = Path("watch/up.json")
_PREFECT = Path("prefect/prefect.db")  # results of steps hold only while the workspace of their run does
_AS_THEY_ARE = "artifacts"  # what a run has logged, whatever its name
_BESIDE = ("-wal", "-shm", "-journal")


class Found(NamedTuple):
    """A file or a folder, and its name within the store."""

    path: Path
    name: str
    folder: bool


def rooms(root: Path) -> list[str]:
    """The entries of a store that hold something to keep, in order: each is taken under its own lock."""
    try:
        names = sorted(path.name for path in root.iterdir())
    except FileNotFoundError:
        return []
    return [name for name in names if name not in _NOT and not _passing(name)]


def room(root: Path, name: str, *, hash_keys: bool = True) -> Iterator[Found]:
    """What is in one of them, sorted; a model's prediction log while nobody turns its segments into tables.

    Raises:
        TransientError: the store cannot be written, which a lock needs.
    """
    top = root / name
    if not top.is_dir():
        if top.is_file():
            yield Found(top, name, folder=False)
        return
    yield Found(top, name, folder=True)
    for child in sorted(path.name for path in top.iterdir()):
        logged = name == "predictions" and (top / child).is_dir()
        lock: AbstractContextManager[object] = files.locked(top / child / ".lock") if logged else nullcontext()
        with lock:
            for found in _beneath(top / child, Path(name) / child):
                if hash_keys or HASH_KEYS not in Path(found.name).parts:
                    yield found


def everything(root: Path) -> Iterator[Found]:
    """All that is in a folder which is not a store."""
    for child in sorted(path.name for path in root.iterdir()) if root.is_dir() else ():
        if child != "lost+found" and not child.startswith((ASIDE, ".restore")):
            yield from _beneath(root / child, Path(_AS_THEY_ARE) / child, depth=1)


def odd(root: Path) -> list[Path]:
    """Links and special files in the rooms of a store: they are left out."""
    found = []
    for name in rooms(root):
        for folder, folders, names in os.walk(root / name):
            paths = [Path(folder, one) for one in (*folders, *names)]
            found += [path for path in paths if not _ordinary(path)]
    return found


def _beneath(path: Path, name: Path, depth: int = 0) -> Iterator[Found]:
    if _skipped(path, name):
        return
    told = Path(*name.parts[depth:]).as_posix()
    if not path.is_dir():
        yield Found(path, told, folder=False)
        return
    yield Found(path, told, folder=True)
    try:
        children = sorted(child.name for child in path.iterdir())
    except FileNotFoundError:
        return
    for child in children:
        yield from _beneath(path / child, name / child, depth)


def _skipped(path: Path, name: Path) -> bool:
    if not _ordinary(path):
        return True
    if name.parts[0] == _AS_THEY_ARE:
        return False
    if name.parts[0] == _PREFECT.parts[0]:
        return name != _PREFECT
    if name.parts[0] == "releases":
        return path.name.startswith(".")
    return name == _RUNNING or _passing(path.name) or (name.parts[0] == "predictions" and name.parts[2:] == ("roll",))


def _passing(name: str) -> bool:
    return name.startswith(".") or name.endswith(".lock") or name.endswith(_BESIDE)


def _ordinary(path: Path) -> bool:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return False
    return stat.S_ISREG(mode) or stat.S_ISDIR(mode)
