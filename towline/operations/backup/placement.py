"""Placement moves restored files into their places by renames that can be undone until it is committed."""

import contextlib
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from towline import files
from towline.errors import TransientError
from towline.operations.backup.contents import STORE, folder_entries, section_entries, sections, sqlite_siblings

_STAGING = ".restore-"


def occupied(name: str, root: Path) -> set[str]:
    """The names in a folder that hold something which a backup would take."""
    if name != STORE:
        return {entry.name.split("/")[0] for entry in folder_entries(root)}
    held = (section for section in sections(root) if section != "README.md")
    return {section for section in held if any(entry.kind == "file" for entry in section_entries(root, section))}


def is_mount(path: Path) -> bool:
    """Whether a folder is a mount, including bind mounts from the same disk, which ``Path.is_mount`` does not see."""
    try:
        lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return path.is_mount()
    return path.is_mount() or str(path.resolve()) in {line.split()[4].replace("\\040", " ") for line in lines}


@contextmanager
def staging_folder(root: Path, token: str) -> Iterator[Path]:
    """A folder inside a target, so that its content moves by renames; those of killed restores are removed."""
    created = next((path for path in reversed([root, *root.parents]) if not path.exists()), None)
    lock, folder = root / ".restore.lock", root / f"{_STAGING}{token}"
    with files.disk(root):
        root.mkdir(parents=True, exist_ok=True)
    try:
        with files.exclusive_lock(lock, wait=False) as acquired:
            if not acquired:
                raise TransientError("another restore is under way", where=str(root), remedy="wait for it to end")  # noqa: TRY301
            for leftover in root.glob(f"{_STAGING}*/"):
                shutil.rmtree(leftover, ignore_errors=True)
            with files.disk(root):
                folder.mkdir(mode=0o700)
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)
                lock.unlink(missing_ok=True)
    except BaseException:
        if created is not None and not any(path.is_file() for path in created.rglob("*")):
            shutil.rmtree(created, ignore_errors=True)
        raise


class Placement:
    """Moves files into place, until ``commit`` so that it can be undone.

    Args:
        aside: name of the folders that take what is replaced.
        undo: moves everything back when it is closed, unless ``commit`` was called.
    """

    def __init__(self, aside: str, undo: ExitStack) -> None:
        self._aside_name, self._undo = aside, undo
        self._aside: list[Path] = []
        self._drafts: list[Path] = []

    def move_into(self, source: Path, root: Path, name: str) -> None:
        """Moves the content of ``source`` into ``root``; what is there under the same name, or in use, goes aside."""
        mounts = {path.name for path in root.iterdir() if is_mount(path)}
        for mount in sorted(mounts):
            self._fill_mount(source / mount, root / mount)
        incoming = {path.name for path in source.iterdir()} - mounts if source.is_dir() else set()
        present = {path.name for path in root.iterdir()} - mounts
        siblings = {file.name for entry in incoming for file in sqlite_siblings(root / entry)}
        self._replace((occupied(name, root) | incoming | siblings) & present, source, incoming, root)

    def _fill_mount(self, source: Path, root: Path) -> None:
        """A mount takes no renames from another disk: the content is copied into it first."""
        draft = root / f"{_STAGING}draft"
        self._undo.callback(shutil.rmtree, draft, ignore_errors=True)
        with files.disk(root):
            shutil.rmtree(draft, ignore_errors=True)
            if source.is_dir():
                shutil.copytree(source, draft)
            else:
                draft.mkdir()
        present = {path.name for path in root.iterdir()} - {draft.name, self._aside_name}
        self._replace(present, draft, {path.name for path in draft.iterdir()}, root)
        self._drafts.append(draft)

    def _replace(self, replaced: set[str], source: Path, incoming: set[str], root: Path) -> None:
        aside = root / self._aside_name
        if replaced:
            with files.disk(aside):
                aside.mkdir(mode=0o700, exist_ok=True)
            self._aside.append(aside)
            self._undo.callback(_remove_if_empty, aside)
        for entry in sorted(replaced):
            self._rename(root / entry, aside / entry)
        # databases come last: the releases that a ledger names are there before it is
        for entry in sorted(incoming, key=lambda entry: (entry.endswith(".db"), entry == "ledger.db", entry)):
            self._rename(source / entry, root / entry)
        with files.disk(root):
            files.sync(root)

    def place_database(self, dump: Path, target: Path) -> None:
        """Puts an SQLite file in its place on any disk; the file that is there, with its logs, gets another name."""
        for old in (target, *sqlite_siblings(target)):
            if old.exists():
                self._aside.append(old.with_name(f"{old.name}{self._aside_name}"))
                self._rename(old, self._aside[-1])
        with dump.open("rb") as source, files.replacing(target) as file:
            shutil.copyfileobj(source, file, 2**20)
        self._undo.callback(target.unlink)

    def _rename(self, old: Path, new: Path) -> None:
        with files.disk(new):
            old.rename(new)
        self._undo.callback(new.rename, old)

    def commit(self) -> None:
        self._undo.pop_all()
        for draft in self._drafts:
            shutil.rmtree(draft, ignore_errors=True)

    def remaining_aside(self) -> list[Path]:
        """The folders and files with what was replaced; folders without files are removed."""
        for path in self._aside:
            if path.is_dir() and not any(
                file.is_file() and not file.name.endswith(".lock") for file in path.rglob("*")
            ):
                shutil.rmtree(path, ignore_errors=True)
        return [path for path in self._aside if path.exists()]


def _remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()
