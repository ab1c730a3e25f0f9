"""Writes a backup: first the ledger, then MLflow's database, then files.

A ledger row that names a release is written after the release, and after its version in MLflow. In this order the
backup may hold more than its ledger names, never less. Each file is read once, in blocks.
"""

import contextlib
import datetime as dt
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path

from towline import __version__, files
from towline.config import Frozen, Settings
from towline.config.passwords import mask_passwords
from towline.errors import ConfigError, ReleaseError, TransientError
from towline.manifest import MANIFEST, REMEDY, read_manifest
from towline.operations.backup.archive import STORE, ArchiveWriter, BackupManifest, ServedRelease, open_writer
from towline.operations.backup.contents import Contents
from towline.operations.backup.databases import LEDGER, TRACKING, Database, copy_sqlite, is_sqlite
from towline.prediction_log.privacy import HASH_KEYS
from towline.registry.ledger import Entry, champion_of, open_ledger
from towline.registry.selection import check_recorded
from towline.steps import step

_LEDGER_ATTEMPTS = 5


class BackupResult(Frozen):
    """A backup that was written; ``notes`` name content that a user might expect and that is missing."""

    file: str
    bytes: int
    sha256: str
    files: int
    unpacked: int
    models: dict[str, ServedRelease]
    databases: tuple[str, ...]
    folders: tuple[str, ...]
    notes: tuple[str, ...]


def backup(
    settings: Settings,
    target: Path,
    databases: Mapping[str, Database],
    folders: Mapping[str, Path],
    *,
    hash_keys: bool = True,
) -> BackupResult:
    """Writes a store, its databases and further folders into one file, while they are in use.

    Args:
        settings: of the store.
        target: the file; a present one is replaced when the new one is complete.
        databases: by name, ``ledger`` among them.
        folders: by name, e.g. MLflow's artifacts where its server keeps them elsewhere.
        hash_keys: whether to include the keys of the hashed columns of prediction logs.

    Raises:
        ConfigError: there is no store; the file would be inside a folder that is backed up, or has another suffix.
        ReleaseError: the ledger was changed. Or the ledger was lost, or a release that serves is damaged: the backup is
            written in these cases.
        TransientError: the disk is full; a database is down; a file cannot be read.
    """
    target = target.absolute()
    _check_folders(settings, target, folders)
    with _scratch_folder(target) as scratch, open_writer(target) as writer:
        source = _Source(databases, scratch, writer)
        with step("ledger") as running:
            rows, running.note = source.add_ledger(settings)
        for name in sorted(databases.keys() - {LEDGER}, key=lambda name: (name != TRACKING, name)):
            with step(f"database {name}") as running:
                running.note = source.add_dump(name, source.dump(name))
        store = Contents(settings.store, is_store=True)
        for section in store.sections():
            with step(section.name) as running:
                paths = store.walk(section)
                if not hash_keys:
                    paths = (path for path in paths if HASH_KEYS not in path.relative_to(settings.store).parts)
                running.note = source.add_paths(paths, settings.store, STORE)
        for name, folder in folders.items():
            contents = Contents(folder, is_store=False)
            with step(f"folder {name}") as running:
                paths = (path for section in contents.sections() for path in contents.walk(section))
                running.note = source.add_paths(paths, folder, f"folders/{name}")
        rows = sorted(rows, key=lambda row: (row.model, row.seq))
        champions = {model: champion_of(list(of_model)) for model, of_model in groupby(rows, key=lambda row: row.model)}
        manifest = BackupManifest(
            towline=__version__,
            created=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
            store=str(settings.store),
            models={model: _served_release(settings, row, writer) for model, row in champions.items() if row},
            folders=tuple(folders),
            members=writer.members,
        )
        writer.add_manifest(manifest)
    damaged = [f"version {served.version} of {model}" for model, served in manifest.models.items() if not served.digest]
    if damaged:
        raise ReleaseError(
            f"the backup is written, but a release that serves is damaged in it: {', '.join(damaged)}",
            where=str(settings.store),
            remedy=f"{REMEDY}; `towline show NAME` names the damage. Everything else is in {target.name}",
        )
    check_recorded(settings, open_ledger(settings))
    return BackupResult(
        file=str(target),
        bytes=target.stat().st_size,
        sha256=files.sha256(target),
        files=manifest.files,
        unpacked=manifest.size,
        models=manifest.models,
        databases=tuple(manifest.dumps),
        folders=tuple(folders),
        notes=tuple(_notes(settings, manifest, databases, source.left_out)),
    )


def _check_folders(settings: Settings, target: Path, folders: Mapping[str, Path]) -> None:
    if not settings.store.is_dir():  # such as a nightly job in another folder
        remedy = "run the command in the project's folder, or set TOWLINE_STORE"
        raise ConfigError("there is no store to back up", where=str(settings.store), remedy=remedy)
    for root in (settings.store, *folders.values()):
        if target.resolve().is_relative_to(root.resolve()):
            problem = "the backup would be written into the data it backs up"
            raise ConfigError(problem, where=str(target), remedy="choose another folder")
    for name, folder in folders.items():
        if not folder.is_dir():
            raise ConfigError(f"there is no folder {name}", where=str(folder), remedy="name a folder that exists")


class _Source:
    """Adds databases and files to an archive; ``left_out`` holds links and special files."""

    def __init__(self, databases: Mapping[str, Database], scratch: Path, writer: ArchiveWriter) -> None:
        self.left_out: list[Path] = []
        self._databases, self._scratch, self._writer = databases, scratch, writer
        self._dumped_files = {database.file for database in databases.values()}

    def add_ledger(self, settings: Settings) -> tuple[list[Entry], str]:
        """Adds the ledger; returns its rows, which are those of the copy, and a note."""
        ledger = open_ledger(settings)
        for _ in range(_LEDGER_ATTEMPTS):
            ledger.verify()
            rows, dump = ledger.history(), self.dump(LEDGER)
            if ledger.history() == rows:
                return rows, f"{len(rows):,} rows, {self.add_dump(LEDGER, dump)}"
        where = str(self._databases[LEDGER])
        raise TransientError("the ledger changes all the time", where=where, remedy="run the command again")

    def dump(self, name: str) -> Path | None:
        """A copy of a database in the scratch folder; None if there is no database yet."""
        dump = self._scratch / name
        with files.disk(self._scratch):
            dump.unlink(missing_ok=True)
            return dump if self._databases[name].dump(dump) else None

    def add_dump(self, name: str, dump: Path | None) -> str:
        database = self._databases[name]
        return self._add_and_remove(database.member, dump) if dump else f"none yet: {database}"

    def add_paths(self, paths: Iterable[Path], root: Path, prefix: str) -> str:
        """Adds files and folders; an SQLite database among them is copied between two transactions."""
        before = set(self._writer.members)
        for path in paths:
            with contextlib.suppress(FileNotFoundError):  # removed during the backup
                self._add_path(path, f"{prefix}/{path.relative_to(root).as_posix()}")
        added = [member for name, member in self._writer.members.items() if name not in before and member.sha256]
        return f"{len(added):,} files, {sum(member.size for member in added) / 1e6:,.1f} MB"

    def _add_path(self, path: Path, name: str) -> None:
        mode = path.lstat().st_mode
        if path.is_symlink() or not (path.is_dir() or path.is_file()):
            self.left_out.append(path)
        elif path.is_dir():
            self._writer.add_folder(name, mode)
        elif path.absolute() in self._dumped_files:
            pass
        elif not is_sqlite(path):
            self._writer.add_file(name, path)
        elif copy_sqlite(path, copied := self._scratch / "copied"):
            copied.chmod(mode & 0o777)
            self._add_and_remove(name, copied)

    def _add_and_remove(self, member: str, file: Path) -> str:
        self._writer.add_file(member, file)
        file.unlink()
        return f"{self._writer.members[member].size / 1e6:,.1f} MB"


def _served_release(settings: Settings, row: Entry, writer: ArchiveWriter) -> ServedRelease:
    """The digest is empty where the files in the archive are not those of the release's manifest."""
    digest = ""
    with contextlib.suppress(ReleaseError):
        manifest = read_manifest(settings.layout.release(row.release))
        added = {name: writer.members.get(f"{STORE}/{row.release}/{name}") for name in manifest.files}
        if all(member and member.sha256 == manifest.files[name].sha256 for name, member in added.items()):
            digest = manifest.digest
    return ServedRelease(version=row.version, release=row.release, digest=digest)


def _notes(
    settings: Settings, manifest: BackupManifest, databases: Mapping[str, Database], left_out: Iterable[Path]
) -> Iterator[str]:
    ledger = open_ledger(settings)
    for model in ledger.models():
        for row in ledger.versions(model):
            if row.release and f"{STORE}/{row.release}/{MANIFEST}" not in manifest.members:
                yield f"the release of version {row.version} of {model} is not there: {row.release}"
    if TRACKING not in databases:
        where = mask_passwords(settings.tracking_uri) or "no address"
        yield f"MLflow is at {where}: its database and artifacts are backed up only if the command names them"
    for path in left_out:
        yield f"a link or a special file is left out: {path}"
    for name in databases.keys() - manifest.dumps.keys():
        yield f"there is no database {name} yet: {databases[name]}"


@contextmanager
def _scratch_folder(target: Path) -> Iterator[Path]:
    """A folder next to the archive for dumps; folders of killed backups are removed after a day."""
    prefix = f".{target.name}."
    with files.disk(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        for leftover in target.parent.glob(f"{prefix}*"):
            if files.age(leftover) > dt.timedelta(days=1):
                shutil.rmtree(leftover, ignore_errors=True)
                with contextlib.suppress(OSError):
                    leftover.unlink(missing_ok=True)
        scratch = tempfile.TemporaryDirectory(prefix=prefix, dir=target.parent, ignore_cleanup_errors=True)
    with scratch as folder:
        yield Path(folder)
