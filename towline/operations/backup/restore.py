"""Restores a backup: unpacks it inside the store's folder, verifies it, then moves it into place.

Nothing that exists is changed before every digest matches, the ledger's chain is verified, and each release that serves
predicts its probe rows as recorded. Files are moved before the ledger is restored: the releases that it names exist.
"""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from towline import files
from towline.config import Frozen, Settings
from towline.errors import ConfigError, ReleaseError, TransientError
from towline.inference.predictor import open_release
from towline.operations.backup.archive import STORE, BackupManifest, unpack
from towline.operations.backup.contents import STAGING, Contents
from towline.operations.backup.databases import LEDGER, TRACKING, Database
from towline.operations.backup.placement import Placement
from towline.operations.process_record import ProcessRecord
from towline.prediction_log import segments
from towline.registry.ledger import Ledger
from towline.registry.mlflow.relocation import relocate
from towline.registry.seals import open_seals
from towline.registry.verification import anchor_restored_ledger
from towline.serving.model_reloader import check_probe_rows
from towline.steps import step
from towline.store import StoreLayout


class RestoredModel(Frozen):
    """A release that serves, and how many probe rows it predicts as recorded."""

    version: int
    release: str
    rows: int


class RestoreResult(Frozen):
    """The result of a restore; ``aside`` names the folders with the files that it replaced."""

    created: str
    files: int
    bytes: int
    models: dict[str, RestoredModel]
    databases: tuple[str, ...]
    ledger_rows: int
    aside: tuple[str, ...]
    notes: tuple[str, ...]


def verify(archive: Path) -> BackupManifest:
    """Reads an archive and compares every member with its manifest; writes nothing.

    Raises:
        ReleaseError: a member differs from the manifest; the error names it.
    """
    with step("verify") as running:
        manifest = unpack(archive)
        running.note = _count(manifest)
    return manifest


def restore(
    settings: Settings,
    archive: Path,
    databases: Mapping[str, Database],
    folders: Mapping[str, Path],
    *,
    force: bool = False,
    trusted: Sequence[str] = (),
) -> RestoreResult:
    """Restores an archive into a store, databases and folders that are empty.

    Args:
        settings: of the store.
        archive: written by ``towline backup``.
        databases: to restore into, by name.
        folders: to restore into, by name, besides the store.
        force: moves existing files aside and replaces existing tables.
        trusted: your packages whose types a release may contain.

    Raises:
        ConfigError: a target is not empty or in use; a database or a folder of the archive has no target.
        ReleaseError: the archive, the ledger or a release that serves is damaged.
        TransientError: the disk is full; a database is down.
    """
    roots = {STORE: settings.store} | {f"folders/{name}": folder for name, folder in folders.items()}
    contents = {prefix: Contents(root, is_store=prefix == STORE) for prefix, root in roots.items()}
    _check_unused(settings.layout, databases)
    if not force:
        _check_empty(contents, databases)
    with ExitStack() as stack:
        staging = stack.enter_context(_staging_folder(settings.store))
        with step("unpack") as running:
            manifest = unpack(archive, staging)
            _check_targets(archive, manifest, databases, folders)
            running.note = _count(manifest)
        dumps = {name: staging / member for name, member in manifest.dumps.items()}
        if TRACKING in dumps and databases[TRACKING].file is not None:
            relocate(dumps[TRACKING], manifest.store, str(settings.store))
        ledger_is_file = LEDGER in dumps and databases[LEDGER].file is not None
        with step("verify") as running:
            _check_key(settings, staging / STORE, archive)
            ledger_rows = _verify_ledger(f"sqlite:///{dumps[LEDGER]}", manifest) if ledger_is_file else 0
            models = _check_releases(StoreLayout(staging / STORE), manifest, trusted)
            running.note = "; ".join(
                f"{name}@{model.version} predicts {model.rows} rows as recorded" for name, model in models.items()
            )
        os.sync()  # unpacked files must survive a power cut before they are moved into place
        undo = stack.enter_context(ExitStack())
        placement = Placement(undo)
        with step("put in place") as running:
            for prefix, root in roots.items():
                placement.replace_content(staging / prefix, root, contents[prefix].occupied())
            for name in sorted(dumps, key=lambda name: name == LEDGER):
                file = databases[name].file
                if file is None:
                    databases[name].restore(dumps[name], replace=force)
                else:
                    dumps[name].chmod(0o600)
                    placement.place(dumps[name], file)
            if LEDGER in dumps and not ledger_is_file:
                ledger_rows = _verify_ledger(settings.ledger_url, manifest)
            running.note = f"in {settings.store}"
        undo.pop_all()
        anchor_restored_ledger(settings)
    return RestoreResult(
        created=manifest.created,
        files=manifest.files,
        bytes=manifest.size,
        models=models,
        databases=tuple(manifest.dumps),
        ledger_rows=ledger_rows,
        aside=tuple(map(str, placement.remaining_aside())),
        notes=tuple(_notes(manifest, databases, settings)),
    )


def _count(manifest: BackupManifest) -> str:
    return f"{manifest.files:,} files, {manifest.size / 1e6:,.1f} MB, all digests match"


@contextmanager
def _staging_folder(store: Path) -> Iterator[Path]:
    """A folder inside the store, so that its content moves by renames; those of killed restores are removed."""
    created = next((path for path in reversed([store, *store.parents]) if not path.exists()), None)
    lock = store / f"{STAGING}lock"
    try:
        with files.exclusive_lock(lock, wait=False) as acquired:
            if not acquired:
                raise TransientError("another restore is under way", where=str(store), remedy="wait for it to end")  # noqa: TRY301
            for leftover in store.glob(f"{STAGING}*/"):
                shutil.rmtree(leftover, ignore_errors=True)
            with files.disk(store):
                folder = tempfile.TemporaryDirectory(prefix=STAGING, dir=store, ignore_cleanup_errors=True)
            try:
                with folder as name:
                    yield Path(name)
            finally:
                lock.unlink(missing_ok=True)
    except BaseException:
        if created is not None and not any(path.is_file() for path in created.rglob("*")):
            shutil.rmtree(created, ignore_errors=True)
        raise


def _check_targets(
    archive: Path, manifest: BackupManifest, databases: Mapping[str, Database], folders: Mapping[str, Path]
) -> None:
    missing = [("database", name, f"--database {name}=URL") for name in manifest.dumps if name not in databases]
    missing += [("folder", name, f"--folder {name}=PATH") for name in sorted(manifest.folders) if name not in folders]
    for kind, name, option in missing:
        problem = f"the backup holds the {kind} {name}, and the command does not say where to restore it"
        raise ConfigError(problem, where=str(archive), remedy=f"add {option}")
    for name, member in manifest.dumps.items():
        if databases[name].member != member:
            raise ConfigError(
                f"the database {name} was on {Path(member).suffix[1:]}, and here it is on {databases[name].kind}",
                where=str(databases[name]),
                remedy="set its address to a database of the same kind",
            )


def _check_key(settings: Settings, store: Path, archive: Path) -> None:
    """Checks the key with which the restored ledger will be anchored.

    Raises:
        ReleaseError: it is not a key.
    """
    try:
        open_seals(settings.model_copy(update={"store": store})).key()
    except ConfigError as error:
        where = error.where if settings.ledger_key else f"{archive}, {settings.layout.ledger_key.name}"
        raise ReleaseError(error.what, where=where, remedy="restore an earlier backup, or correct the key") from None


def _verify_ledger(url: str, manifest: BackupManifest) -> int:
    """Checks a restored ledger's chain, and its champions against the manifest; returns its number of rows."""
    ledger = Ledger(url)
    ledger.verify()
    for name, served in manifest.models.items():
        row = ledger.champion(name)
        if row is None or (row.version, row.release) != (served.version, served.release):
            champion = f"version {row.version}" if row else "none"
            raise ReleaseError(
                f"the ledger names another champion of {name} than the manifest: {champion}, not {served.version}",
                where=name,
                remedy="restore an earlier backup",
            )
    return len(ledger.history())


def _check_releases(layout: StoreLayout, manifest: BackupManifest, trusted: Sequence[str]) -> dict[str, RestoredModel]:
    """Checks the predictions of each release that serves, except those that were damaged in the backup."""
    models = {}
    for name, served in manifest.models.items():
        if served.digest:
            rows = check_probe_rows(open_release(layout.release(served.release), trusted, served.digest))
            models[name] = RestoredModel(version=served.version, release=served.release, rows=rows)
    return models


def _check_unused(layout: StoreLayout, databases: Mapping[str, Database]) -> None:
    for name, database in databases.items():
        if programs := database.connected_programs():
            raise ConfigError(
                f"{len(programs)} connections work on the database {name}: {', '.join(sorted(set(programs))[:5])}",
                where=str(database),
                remedy="stop the servers that use it, then run the same command again",
            )
    users: dict[str, Path] = {}
    for path in (*sorted(layout.servers.glob("*.json")), layout.up_state):
        with contextlib.suppress(OSError, ValueError):
            process = ProcessRecord.model_validate_json(path.read_bytes())
            users |= {f"process {process.pid} ({path.stem})": path} if process.is_running else {}
    for log in sorted(layout.prediction_logs.glob("*")):
        users |= {
            f"a service of {log.name}": path
            for path in set(segments.list_segments(log)) - set(segments.finished_segments(log))
        }
    for user, path in users.items():
        remedy = "stop it (servers: towline ui --stop), or restore --into another folder"
        raise ConfigError(f"{user} uses this store", where=str(path), remedy=remedy)


def _check_empty(contents: Mapping[str, Contents], databases: Mapping[str, Database]) -> None:
    roots = [folder.root.absolute() for folder in contents.values()]
    names = {
        root: ", ".join(sorted(folder.occupied())[:8]) for root, folder in zip(roots, contents.values(), strict=True)
    }
    problems = [f"{root} holds {text}" for root, text in names.items() if text]
    for name, database in databases.items():
        if database.file is None or not any(database.file.is_relative_to(root) for root in roots):
            description = database.describe_contents()
            problems += [f"the database {name} holds {description}: {database}"] if description else []
    if problems:
        raise ConfigError(
            f"the target is not empty: {problems[0]}",
            where=str(contents[STORE].root),
            remedy="restore --into another folder; or --force, which moves these files aside and replaces these tables",
            details=tuple(problems[1:]),
        )


def _notes(manifest: BackupManifest, databases: Mapping[str, Database], settings: Settings) -> Iterator[str]:
    for name, served in manifest.models.items():
        if not served.digest:
            yield f"the release that serves {name} was not whole when it was backed up: {served.release}"
    mlflow_is_remote = TRACKING in manifest.dumps and databases[TRACKING].file is None
    if mlflow_is_remote and manifest.store != str(settings.store):
        yield f"MLflow's database names artifacts where they were: {manifest.store}"
