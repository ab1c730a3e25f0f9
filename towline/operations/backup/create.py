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
from towline.operations.backup.archive import ArchiveWriter, BackupManifest, ServedRelease, dump_member, open_writer
from towline.operations.backup.contents import STORE, StoreEntry, folder_entries, section_entries, sections
from towline.operations.backup.databases import LEDGER, TRACKING, Database, copy_sqlite, is_sqlite
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
        ConfigError: the file would lie inside what it backs up, or has another suffix.
        ReleaseError: the ledger was changed. Or the ledger was lost, or a release that serves is damaged: the backup is
            written in these cases.
        TransientError: the disk is full; a database is down; a file cannot be read.
    """
    target = target.absolute()
    for root in (settings.store, *folders.values()):
        if target.resolve().is_relative_to(root.resolve()):
            raise ConfigError(
                "the backup would be written into the data it backs up",
                where=str(target),
                remedy="choose another folder",
            )
    for name, folder in folders.items():
        if not folder.is_dir():
            raise ConfigError(f"there is no folder {name}", where=str(folder), remedy="name a folder that exists")
    with _scratch_folder(target) as scratch, open_writer(target) as writer:
        source = _Source(databases, scratch, writer)
        champions = source.add_ledger(settings)
        for name in sorted(databases.keys() - {LEDGER}, key=lambda name: (name != TRACKING, name)):
            with step(f"database {name}") as running:
                running.note = source.add_database(name)
        for section in sections(settings.store):
            with step(section) as running:
                running.note = source.add_files(section_entries(settings.store, section, hash_keys=hash_keys), STORE)
        for name, folder in folders.items():
            with step(f"folder {name}") as running:
                running.note = source.add_files(folder_entries(folder), f"folders/{name}")
        manifest = BackupManifest(
            towline=__version__,
            created=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
            store=str(settings.store),
            models={model: _served_release(settings, row, writer) for model, row in champions.items()},
            databases={name: database.kind for name, database in source.added.items()},
            folders=tuple(folders),
            members=writer.members,
        )
        writer.add_manifest(manifest)
    if damaged := [
        f"version {served.version} of {model}" for model, served in manifest.models.items() if not served.digest
    ]:
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
        databases=tuple(manifest.databases),
        folders=tuple(folders),
        notes=(*_missing_releases(settings, manifest), *source.notes(settings)),
    )


class _Source:
    """Adds databases and files to an archive; ``added`` holds the databases that were added."""

    def __init__(self, databases: Mapping[str, Database], scratch: Path, writer: ArchiveWriter) -> None:
        self.added: dict[str, Database] = {}
        self._databases, self._scratch, self._writer = databases, scratch, writer
        self._dumped_files = {database.file for database in databases.values()}
        self._left_out: list[Path] = []

    def add_ledger(self, settings: Settings) -> dict[str, Entry]:
        """Adds the ledger; returns the rows of the champions that it names, by model."""
        ledger = open_ledger(settings)
        with step("ledger") as running:
            for _ in range(_LEDGER_ATTEMPTS):
                ledger.verify()
                rows = ledger.history()
                dump = self._dump(LEDGER)
                if ledger.history() == rows:
                    break
            else:
                where = str(self._databases[LEDGER])
                raise TransientError("the ledger changes all the time", where=where, remedy="run the command again")
            running.note = f"{len(rows):,} rows, {self._add_dump(LEDGER, dump)}"
        rows = sorted(rows, key=lambda row: (row.model, row.seq))
        champions = {model: champion_of(list(of_model)) for model, of_model in groupby(rows, key=lambda row: row.model)}
        return {model: row for model, row in champions.items() if row is not None}

    def add_database(self, name: str) -> str:
        return self._add_dump(name, self._dump(name))

    def _dump(self, name: str) -> Path | None:
        dump = self._scratch / name
        with files.disk(self._scratch):
            dump.unlink(missing_ok=True)
            return dump if self._databases[name].dump(dump) else None

    def _add_dump(self, name: str, dump: Path | None) -> str:
        database = self._databases[name]
        if dump is None:
            return f"none yet: {database}"
        self.added[name] = database
        return self._add_and_remove(dump_member(name, database.kind), dump)

    def _add_and_remove(self, member: str, file: Path) -> str:
        self._writer.add_file(member, file)
        file.unlink()
        return f"{self._writer.members[member].size / 1e6:,.1f} MB"

    def add_files(self, entries: Iterable[StoreEntry], root: str) -> str:
        """Adds files and folders; an SQLite database among them is copied between two transactions."""
        before = set(self._writer.members)
        for entry in entries:
            name = f"{root}/{entry.name}"
            if entry.kind == "other":
                self._left_out.append(entry.path)
            elif entry.kind == "folder":
                with contextlib.suppress(FileNotFoundError):
                    self._writer.add_folder(name, entry.path.stat().st_mode)
            elif entry.path.absolute() in self._dumped_files:
                continue
            elif is_sqlite(entry.path):
                copied = self._scratch / "copied"
                if copy_sqlite(entry.path, copied):
                    copied.chmod(entry.path.stat().st_mode & 0o777)
                    self._add_and_remove(name, copied)
            else:
                self._writer.add_file(name, entry.path)
        added = [member for name, member in self._writer.members.items() if name not in before and member.sha256]
        return f"{len(added):,} files, {sum(member.size for member in added) / 1e6:,.1f} MB"

    def notes(self, settings: Settings) -> Iterator[str]:
        if TRACKING not in self._databases:
            where = mask_passwords(settings.tracking_uri) or "no address"
            yield f"MLflow is at {where}: its database and artifacts are backed up only if the command names them"
        for path in self._left_out:
            yield f"a link or a special file is left out: {path}"
        for name in self._databases.keys() - self.added.keys():
            yield f"there is no database {name} yet: {self._databases[name]}"


def _served_release(settings: Settings, row: Entry, writer: ArchiveWriter) -> ServedRelease:
    """The digest is empty where the files in the archive are not those of the release's manifest."""
    digest = ""
    with contextlib.suppress(ReleaseError):
        manifest = read_manifest(settings.layout.release(row.release))
        added = {name: writer.members.get(f"{STORE}/{row.release}/{name}") for name in manifest.files}
        if all(member and member.sha256 == manifest.files[name].sha256 for name, member in added.items()):
            digest = manifest.digest
    return ServedRelease(version=row.version, release=row.release, digest=digest)


def _missing_releases(settings: Settings, manifest: BackupManifest) -> Iterator[str]:
    ledger = open_ledger(settings)
    for model in ledger.models():
        for row in ledger.versions(model):
            if row.release and f"{STORE}/{row.release}/{MANIFEST}" not in manifest.members:
                yield f"the release of version {row.version} of {model} is not there: {row.release}"


@contextmanager
def _scratch_folder(target: Path) -> Iterator[Path]:
    """A folder beside the archive for dumps; those that killed backups left a day ago are removed."""
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
