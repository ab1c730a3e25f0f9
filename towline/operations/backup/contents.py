"""The contents of a store that a backup holds.

Locks, logs, records of running processes, unfinished files, links and special files are not backed up.
"""

import stat
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

from towline import files
from towline.prediction_log.privacy import HASH_KEYS
from towline.store import StoreLayout

STORE = "store"
ASIDE = ".before-restore-"  # prefix of the folder for files that a restore replaced
_EXCLUDED = {"locks", "logs", "servers", "work", "lost+found"}
_SQLITE_SUFFIXES = ("-wal", "-shm", "-journal")


class StoreEntry(NamedTuple):
    """A file, folder, or something else that is left out; ``name`` is its path within the store."""

    path: Path
    name: str
    kind: str  # file, folder or other


def sections(root: Path) -> list[str]:
    """The names of the files and folders directly in a store that are backed up, sorted."""
    names = sorted(path.name for path in root.iterdir()) if root.is_dir() else []
    return [name for name in names if name not in _EXCLUDED and not _is_transient(name)]


def section_entries(root: Path, section: str, *, hash_keys: bool = True) -> Iterator[StoreEntry]:
    """The entries of one section, sorted; a prediction log is locked against conversion while it is read.

    Raises:
        TransientError: the store cannot be written, which a lock needs.
    """
    top, layout = root / section, StoreLayout(root)
    yield StoreEntry(top, section, "folder" if top.is_dir() else _kind(top))
    for child in sorted(top.iterdir()) if top.is_dir() else ():
        is_log = top == layout.prediction_logs and child.is_dir() and not child.name.startswith(".")
        with files.exclusive_lock(child / ".lock") if is_log else nullcontext():
            for entry in _walk(child, child.relative_to(root), layout):
                if hash_keys or HASH_KEYS not in Path(entry.name).parts:
                    yield entry


def folder_entries(root: Path) -> Iterator[StoreEntry]:
    """All entries of a folder that is not a store."""
    for child in sorted(root.iterdir()) if root.is_dir() else ():
        if child.name != "lost+found" and not child.name.startswith((ASIDE, ".restore")):
            yield from _walk(child, child.relative_to(root))


def sqlite_siblings(file: Path) -> list[Path]:
    """The log files beside an SQLite database, which must never be combined with another database."""
    return [path for end in _SQLITE_SUFFIXES if (path := file.with_name(file.name + end)).exists()]


def _walk(path: Path, name: Path, layout: StoreLayout | None = None) -> Iterator[StoreEntry]:
    kind = _kind(path)
    if not kind or (kind != "other" and layout is not None and _is_excluded(path, name, layout)):
        return
    yield StoreEntry(path, name.as_posix(), kind)
    if kind == "folder":
        try:
            children = sorted(path.iterdir())
        except FileNotFoundError:
            return
        for child in children:
            yield from _walk(child, name / child.name, layout)


def _is_excluded(path: Path, name: Path, layout: StoreLayout) -> bool:
    top = layout.root / name.parts[0]
    if top == layout.mlflow_artifacts:  # whatever a run has logged, under any name
        return False
    if top == layout.prefect:  # task results are valid only with the workspace of their run
        return path != layout.prefect / "prefect.db"
    if top == layout.releases:
        return path.name.startswith(".")
    rolled_over = top == layout.prediction_logs and name.parts[2:] == ("roll",)
    return path == layout.up_state or _is_transient(path.name) or rolled_over


def _is_transient(name: str) -> bool:
    return name.startswith(".") or name.endswith((".lock", *_SQLITE_SUFFIXES))


def _kind(path: Path) -> str:
    """The kind of a path; empty if the file was removed meanwhile."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return ""
    return "file" if stat.S_ISREG(mode) else "folder" if stat.S_ISDIR(mode) else "other"
