"""Placement moves restored files into their places, and moves everything back if an error follows."""

import contextlib
import secrets
import shutil
from contextlib import ExitStack
from pathlib import Path

from towline import files
from towline.operations.backup.contents import ASIDE, sqlite_siblings


class Placement:
    """Moves files and folders into place: by a rename, or by a copy where the target is on another disk.

    Args:
        undo: moves everything back when it is closed, unless its callbacks were removed.
    """

    def __init__(self, undo: ExitStack) -> None:
        self._undo = undo
        self._aside_name = f"{ASIDE}{secrets.token_hex(4)}"
        self._aside: dict[Path, None] = {}

    def replace_content(self, source: Path, root: Path, replaced: set[str]) -> None:
        """Moves the content of ``source`` into ``root``.

        Entries named in ``replaced``, and entries with the name of a new one, are moved aside. A mount takes no rename:
        its content is replaced.
        """
        self._make_folder(root)
        names = replaced | {path.name for path in source.iterdir()} if source.is_dir() else replaced
        # databases come last: the releases that a ledger names are there before it is
        for name in sorted(
            names - {self._aside_name}, key=lambda name: (name.endswith(".db"), name == "ledger.db", name)
        ):
            if is_mount(root / name):
                self.replace_content(source / name, root / name, {path.name for path in (root / name).iterdir()})
            else:
                self.place(source / name, root / name)
        with files.disk(root):
            files.sync(root)

    def place(self, source: Path, target: Path) -> None:
        """Moves a file or folder into its place; a present one, and the log files of a database, are moved aside."""
        aside = target.parent / self._aside_name
        for old in (target, *sqlite_siblings(target)):
            if old.exists() or old.is_symlink():
                self._make_folder(aside)
                self._aside[aside] = None
                self._move(old, aside / old.name)
        if source.exists():
            self._make_folder(target.parent)
            self._move(source, target)

    def remaining_aside(self) -> list[Path]:
        """The folders with replaced files; folders without files are removed."""
        for folder in self._aside:
            if not any(path.is_file() and not path.name.endswith(".lock") for path in folder.rglob("*")):
                shutil.rmtree(folder, ignore_errors=True)
        return [folder for folder in self._aside if folder.exists()]

    def _make_folder(self, folder: Path) -> None:
        if not folder.is_dir():
            self._make_folder(folder.parent)
            with files.disk(folder):
                folder.mkdir(mode=0o700 if folder.name == self._aside_name else 0o777)
            self._undo.callback(_remove_if_empty, folder)

    def _move(self, old: Path, new: Path) -> None:
        with files.disk(new):
            try:
                shutil.move(old, new)
            except BaseException:
                if old.exists():  # a copy to another disk is incomplete
                    shutil.rmtree(new, ignore_errors=True)
                    with contextlib.suppress(OSError):
                        new.unlink(missing_ok=True)
                raise
        self._undo.callback(shutil.move, new, old)


def is_mount(path: Path) -> bool:
    """Whether a folder is a mount, including bind mounts from the same disk, which ``Path.is_mount`` does not see."""
    try:
        lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return path.is_mount()
    return path.is_mount() or str(path.resolve()) in {line.split()[4].replace("\\040", " ") for line in lines}


def _remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()
