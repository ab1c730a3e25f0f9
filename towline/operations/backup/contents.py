"""The contents of a store, or of another folder, that a backup holds.

Locks, logs, records of running processes, unfinished files, links and special files are not backed up.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from towline import files
from towline.store import StoreLayout

ASIDE = ".before-restore-"  # prefix of the folders for files that a restore replaced
STAGING = ".restore-"  # prefix of the folder in which a restore unpacks an archive
_EXCLUDED = {"locks", "logs", "servers", "work", "lost+found"}
_SQLITE_SUFFIXES = ("-wal", "-shm", "-journal")


class Contents:
    """The content of a folder that a backup has.

    Args:
        root: the folder.
        is_store: whether it is a store; of any other folder everything is taken.
    """

    def __init__(self, root: Path, *, is_store: bool) -> None:
        self.root = root
        self._layout = StoreLayout(root) if is_store else None

    def sections(self) -> list[Path]:
        """The files and folders directly in the folder, sorted."""
        return [path for path in _list_folder(self.root) if not self._is_excluded(path)]

    def occupied(self) -> set[str]:
        """The names of the sections that hold a file."""
        sections = [path for path in self.sections() if not self._layout or path.name != "README.md"]
        return {section.name for section in sections if any(path.is_file() for path in self.walk(section))}

    def walk(self, path: Path) -> Iterator[Path]:
        """A path of the folder and everything below it, sorted; links are not followed.

        A prediction log is locked against conversion while it is read.

        Raises:
            TransientError: the store cannot be written, which a lock needs.
        """
        if self._is_excluded(path):
            return
        yield path
        if path.is_dir() and not path.is_symlink():
            is_log = self._layout is not None and path.parent == self._layout.prediction_logs
            with files.exclusive_lock(path / ".lock") if is_log else contextlib.nullcontext():
                for child in _list_folder(path):
                    yield from self.walk(child)

    def _is_excluded(self, path: Path) -> bool:
        layout, is_section = self._layout, path.parent == self.root
        if layout is None:
            return is_section and (path.name == "lost+found" or path.name.startswith((ASIDE, STAGING.rstrip("-"))))
        top, *names = path.relative_to(self.root).parts
        if layout.root / top == layout.mlflow_artifacts:  # files that a run has logged, under any name
            return False
        if layout.root / top == layout.prefect:  # task results are valid only with the workspace of their run
            return not is_section and path != layout.prefect / "prefect.db"
        if layout.root / top == layout.releases:
            return path.name.startswith(".")
        is_transient = path.name.startswith(".") or path.name.endswith((".lock", *_SQLITE_SUFFIXES))
        is_rolled_over = layout.root / top == layout.prediction_logs and names[1:] == ["roll"]
        is_record = path in (layout.up_state, layout.ledger_anchors)  # a restore anchors the ledger that it restores
        return is_transient or is_rolled_over or is_record or (is_section and top in _EXCLUDED)


def sqlite_siblings(file: Path) -> list[Path]:
    """The log files of an SQLite database, which must never be combined with another database."""
    return [path for end in _SQLITE_SUFFIXES if (path := file.with_name(file.name + end)).exists()]


def _list_folder(path: Path) -> list[Path]:
    """The children of a folder, sorted; empty if it does not exist."""
    try:
        return sorted(path.iterdir())
    except FileNotFoundError:
        return []
