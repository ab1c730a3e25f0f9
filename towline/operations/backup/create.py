"""Taking a backup: the databases first, then what they speak of.

A row of the ledger that names a release is written after it, and that after its version in MLflow; so the ledger is
copied first, MLflow's database next, files last. What came meanwhile is more than the ledger names, never less. Each is
read once, in blocks.
"""

import contextlib
import datetime as dt
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path

from towline import __version__, files
from towline.config import Frozen, Settings
from towline.config.passwords import mask_passwords
from towline.errors import ConfigError, ReleaseError, TransientError
from towline.manifest import MANIFEST, REMEDY, read_manifest
from towline.operations.backup import contents
from towline.operations.backup.archive import Champion, Dump, Manifest, Writer, writing
from towline.operations.backup.contents import STORE, Found
from towline.operations.backup.databases import LEDGER, TRACKING, Database, copy, is_sqlite
from towline.registry.ledger import Entry, champion_of, open_ledger
from towline.registry.resolution import check_recorded
from towline.steps import step

_TRIES = 5


class Taken(Frozen):
    """A backup that was written; ``notes`` say what is not in it though one might think so."""

    file: str
    bytes: int
    sha256: str
    files: int
    unpacked: int
    models: dict[str, Champion]
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
) -> Taken:
    """Writes a store, its databases and further folders into one file, while they are in use.

    Args:
        settings: where the store is.
        target: the file; what was there is replaced when the new one is whole.
        databases: by name, ``ledger`` among them.
        folders: by name: artifacts, say, where an MLflow server keeps them elsewhere.
        hash_keys: whether the keys that hashed columns of the prediction logs were hashed with are taken too.

    Raises:
        ConfigError: the file would lie in what it is a backup of, or has another ending.
        ReleaseError: the ledger is not what was written; or it was lost, or a release that serves is not in the backup
            as its manifest says: in these cases the backup is written all the same.
        TransientError: the disk is full; a database is away; a file cannot be read.
    """
    target = target.absolute()
    roots = {STORE: settings.store, **folders}
    for root in roots.values():
        if target.resolve().is_relative_to(root.resolve()):
            raise ConfigError("the backup would lie in what it is of", where=str(target), remedy="name another folder")
    for name, folder in folders.items():
        if not folder.is_dir():
            raise ConfigError(f"there is no folder {name}", where=str(folder), remedy="name one that there is")
    with _scratch(target) as scratch, writing(target) as writer:
        dumps: dict[str, Dump] = {}
        serving = _ledger(settings, databases[LEDGER], scratch, writer, dumps)
        order = sorted(databases.keys() - {LEDGER}, key=lambda name: (name != TRACKING, name))
        for name in order:
            with step(f"database {name}") as told:
                told.note = _database(databases[name], scratch, writer, dumps)
        own = {database.file for database in databases.values() if database.file is not None}
        for name in contents.rooms(settings.store):
            found = contents.room(settings.store, name, hash_keys=hash_keys)
            if (settings.store / name).is_dir():
                with step(name) as told:
                    told.note = _files(found, STORE, scratch, writer, own)
            else:
                _files(found, STORE, scratch, writer, own)
        for name, folder in folders.items():
            with step(f"folder {name}") as told:
                told.note = _files(contents.everything(folder), f"folders/{name}", scratch, writer, own)
        models = {model: _champion(settings, row, writer) for model, row in serving.items()}
        manifest = Manifest(
            towline=__version__,
            created=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
            store=str(settings.store),
            models=models,
            databases=dumps,
            folders=tuple(folders),
            directories=writer.directories,
            members=writer.members,
        )
        writer.close(manifest)
    if lost := [f"version {one.version} of {model}" for model, one in models.items() if not one.digest]:
        raise ReleaseError(
            f"the backup is written, but what serves is not whole in it: {', '.join(lost)}",
            where=str(settings.store),
            remedy=f"{REMEDY}; `towline show NAME` says what is wrong. All else is in {target.name}",
        )
    check_recorded(settings, open_ledger(settings))
    return Taken(
        file=str(target),
        bytes=target.stat().st_size,
        sha256=files.sha256(target),
        files=len(writer.members),
        unpacked=manifest.size,
        models=models,
        databases=tuple(dumps),
        folders=tuple(folders),
        notes=tuple(_notes(settings, databases, dumps, writer)),
    )


def _ledger(
    settings: Settings, database: Database, scratch: Path, writer: Writer, dumps: dict[str, Dump]
) -> dict[str, Entry]:
    """Dumps the ledger; returns the champions that the dump names, by model."""
    ledger = open_ledger(settings)
    with step("ledger") as told:
        for _ in range(_TRIES):
            ledger.verify()
            before = ledger.history()
            told.note = _database(database, scratch, writer, dumps, add=False)
            if ledger.history() == before:
                break
        else:
            raise TransientError("the ledger changes all the time", where=str(database), remedy="run the command again")
        if LEDGER in dumps:
            _add(writer, dumps[LEDGER].member, scratch / LEDGER)
        told.note = f"{len(before):,} rows, {told.note}"
    rows = sorted(before, key=lambda row: (row.model, row.seq))
    champions = {model: champion_of(list(own)) for model, own in groupby(rows, key=lambda row: row.model)}
    return {model: row for model, row in champions.items() if row is not None}


def _database(database: Database, scratch: Path, writer: Writer, dumps: dict[str, Dump], *, add: bool = True) -> str:
    dump = scratch / database.name
    with files.disk(scratch):
        dump.unlink(missing_ok=True)
        if not database.dump(dump):
            return f"none yet: {database}"
    kind = "sqlite" if database.file is not None else "postgresql"
    member = f"databases/{database.name}.{'sqlite' if kind == 'sqlite' else 'dump'}"
    dumps[database.name] = Dump(kind=kind, member=member)
    size = dump.stat().st_size
    if add:
        _add(writer, member, dump)
    return f"{size / 1e6:,.1f} MB"


def _add(writer: Writer, member: str, dump: Path) -> None:
    writer.file(member, dump)
    dump.unlink()


def _files(found: Iterator[Found], room: str, scratch: Path, writer: Writer, own: set[Path]) -> str:
    """Adds files and folders; a database among them as it is between two transactions."""
    before = len(writer.members)
    size = 0
    for one in found:
        name = f"{room}/{one.name}"
        if one.folder:
            with contextlib.suppress(FileNotFoundError):
                writer.folder(name, one.path.stat().st_mode)
        elif one.path.absolute() in own:
            continue
        elif is_sqlite(one.path):
            copied = scratch / "copied"
            if copy(one.path, copied):
                copied.chmod(one.path.stat().st_mode & 0o777)
                _add(writer, name, copied)
        else:
            writer.file(name, one.path)
        size += writer.members[name].size if name in writer.members else 0
    return f"{len(writer.members) - before:,} files, {size / 1e6:,.1f} MB"


def _champion(settings: Settings, row: Entry, writer: Writer) -> Champion:
    """What serves; without a digest where the files that were taken are not those that its manifest names."""
    digest = ""
    with contextlib.suppress(ReleaseError):
        manifest = read_manifest(settings.layout.release(row.release))
        taken = {name: writer.members.get(f"{STORE}/{row.release}/{name}") for name in manifest.files}
        if all(one and one.sha256 == manifest.files[name].sha256 for name, one in taken.items()):
            digest = manifest.digest
    return Champion(version=row.version, release=row.release, digest=digest)


def _notes(
    settings: Settings, databases: Mapping[str, Database], dumps: Mapping[str, Dump], writer: Writer
) -> Iterator[str]:
    ledger = open_ledger(settings)
    for model in ledger.models():
        for row in ledger.versions(model):
            if row.release and f"{STORE}/{row.release}/{MANIFEST}" not in writer.members:
                yield f"the release of version {row.version} of {model} is not there: {row.release}"
    if TRACKING not in databases:
        where = mask_passwords(settings.tracking_uri) or "no address"
        yield f"MLflow is at {where}: its database and artifacts are in a backup only if they are named"
    for path in contents.odd(settings.store):
        yield f"a link or a special file is left out: {path}"
    for name in databases.keys() - dumps.keys():
        yield f"there is no database {name} yet: {databases[name]}"


@contextmanager
def _scratch(target: Path) -> Iterator[Path]:
    """A folder beside the archive for databases; those that a kill left a day ago go."""
    prefix = f".{target.name}."
    with files.disk(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        for left in target.parent.glob(f"{prefix}*"):
            if files.age(left) > dt.timedelta(days=1):
                shutil.rmtree(left, ignore_errors=True)
                with contextlib.suppress(OSError):
                    left.unlink(missing_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
