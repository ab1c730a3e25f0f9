"""Moving what was unpacked to its place, by renames, and back again if something fails."""

import contextlib
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from towline import files
from towline.errors import TransientError
from towline.operations.backup import contents
from towline.operations.backup.contents import STORE
from towline.operations.backup.databases import place, siblings

_STAGING = ".restore-"


def occupied(name: str, root: Path) -> set[str]:
    """The entries of a folder that a backup would take."""
    if name != STORE:
        return {found.name.split("/")[0] for found in contents.everything(root)}
    return {
        room
        for room in contents.rooms(root)
        if room != "README.md" and any(not f.folder for f in contents.room(root, room))
    }


def is_mount(path: Path) -> bool:
    """Whether a folder is mounted, also from the disk that its parent is on, which ``Path.is_mount`` does not see."""
    try:
        lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # no Linux
        return path.is_mount()
    return path.is_mount() or str(path.resolve()) in {line.split()[4].replace("\\040", " ") for line in lines}


@contextmanager
def staging(root: Path, token: str) -> Iterator[Path]:
    """A folder within a place, so that all in it moves by renames; what killed restores left goes first."""
    made = next((one for one in reversed([root, *root.parents]) if not one.exists()), None)
    with files.disk(root):
        root.mkdir(parents=True, exist_ok=True)
    try:
        with files.locked(root / ".restore.lock", wait=False) as mine:
            if not mine:
                raise TransientError("another restore is under way", where=str(root), remedy="wait for it to end")  # noqa: TRY301
            for left in root.glob(f"{_STAGING}*"):
                if left.is_dir():
                    shutil.rmtree(left, ignore_errors=True)
            folder = root / f"{_STAGING}{token}"
            with files.disk(root):
                folder.mkdir(mode=0o700)
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)
                (root / ".restore.lock").unlink(missing_ok=True)
    except BaseException:
        if made is not None and not any(path.is_file() for path in made.rglob("*")):
            shutil.rmtree(made, ignore_errors=True)
        raise


class Moved:
    """Renames that can be taken back as long as they are not kept."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], object]] = []
        self._aside: list[Path] = []
        self._within: list[Path] = []
        self.kept = False

    def folder(self, source: Path, root: Path, aside: Path, name: str) -> None:
        """Moves all that is in ``source`` into ``root``, what stands there under the same name or is kept aside."""
        mounted = {path.name for path in root.iterdir() if is_mount(path)}
        for one in sorted(mounted):
            self._mounted(source / one, root / one, aside.name)
        coming = [path.name for path in source.iterdir() if path.name not in mounted] if source.is_dir() else []
        there = {path.name for path in root.iterdir()} - mounted
        beside = {file.name for one in coming for file in siblings(root / one)}
        for one in sorted((occupied(name, root) | set(coming) | beside) & there):
            with files.disk(aside):
                aside.mkdir(mode=0o700, exist_ok=True)
            self._rename(root / one, aside / one)
        if aside.is_dir():
            self._aside.append(aside)
        # the database comes last: what a ledger names is there when it does
        for one in sorted(coming, key=lambda one: (one.endswith(".db"), one == "ledger.db", one)):
            self._rename(source / one, root / one)
        with files.disk(root):
            files.sync(root)

    def _mounted(self, source: Path, root: Path, aside: str) -> None:
        """A room that is a disk of its own takes no renames from elsewhere: what comes is copied beside it first."""
        draft, before = root / f"{_STAGING}draft", root / aside
        self._undo.append(lambda: shutil.rmtree(draft, ignore_errors=True))
        with files.disk(root):
            shutil.rmtree(draft, ignore_errors=True)
            if source.is_dir():
                shutil.copytree(source, draft)
            else:
                draft.mkdir()
        there = [path for path in sorted(root.iterdir()) if path not in (draft, before)]
        if there:
            with files.disk(before):
                before.mkdir(mode=0o700, exist_ok=True)
            self._within.append(before)
        for path in there:
            self._rename(path, before / path.name)
        for path in sorted(draft.iterdir()):
            self._rename(path, root / path.name)
        draft.rmdir()
        with files.disk(root):
            files.sync(root)

    def file(self, source: Path, target: Path, end: str) -> None:
        """Puts a file in its place on whatever disk that is; what is there, and belongs to it, is kept aside."""
        for old in (target, *siblings(target)):
            if old.exists():
                self._rename(old, old.with_name(f"{old.name}{end}"))
                self._aside.append(old.with_name(f"{old.name}{end}"))
        place(source, target)
        self._undo.append(target.unlink)

    def _rename(self, old: Path, new: Path) -> None:
        with files.disk(new):
            old.rename(new)
        self._undo.append(lambda: new.rename(old))

    def back(self) -> None:
        for undo in reversed(self._undo):
            undo()
        for folder in (*self._aside, *self._within):
            with contextlib.suppress(OSError):
                folder.rmdir()

    def keep(self) -> None:
        self.kept = True

    def aside(self) -> list[Path]:
        """Where there is something that was there before; what holds nothing but locks goes."""
        kept = [path for path in self._within if any(one.is_file() for one in path.rglob("*"))]
        for path in self._aside:
            if path.is_dir() and not any(occupied(STORE, path)):
                shutil.rmtree(path, ignore_errors=True)
            else:
                kept.append(path)
        return kept


@contextmanager
def undone() -> Iterator[Moved]:
    moved = Moved()
    try:
        yield moved
    finally:
        if not moved.kept:
            moved.back()
