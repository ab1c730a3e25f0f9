"""Restores a backup: unpacks it inside the store's folder, verifies it, then moves it into place.

Nothing that exists is changed before every digest matches, the ledger's chain is verified, and each release that serves
answers its probe as recorded. Files are moved before the ledger is restored, so that what it names is there.
"""

import contextlib
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from towline.config import Frozen, Settings
from towline.errors import ConfigError, ReleaseError
from towline.inference.predictor import open_release
from towline.operations.backup.archive import BackupManifest, unpack
from towline.operations.backup.contents import ASIDE, STORE
from towline.operations.backup.databases import LEDGER, TRACKING, Database
from towline.operations.backup.placement import Placement, occupied, staging_folder
from towline.operations.process_record import ProcessRecord
from towline.prediction_log import segments
from towline.registry.ledger import Ledger
from towline.registry.mlflow.relocation import relocate
from towline.serving.model_reloader import check_probe_rows
from towline.steps import step
from towline.store import StoreLayout


class RestoredModel(Frozen):
    """A release that serves, and how many rows of its probe it answers as recorded."""

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
        force: what is there gives way: files are moved aside, tables are replaced.
        trusted: your packages whose estimators a release may hold.

    Raises:
        ConfigError: a target is not empty or in use; the archive holds what has no target.
        ReleaseError: the archive, the ledger or a release that serves is damaged.
        TransientError: the disk is full; a database is down.
    """
    roots = {STORE: settings.store, **folders}
    _check_unused(settings.layout, databases)
    if not force:
        _check_empty(roots, databases)
    token = secrets.token_hex(4)
    with ExitStack() as stack:
        staged = {name: stack.enter_context(staging_folder(root, token)) for name, root in roots.items()}
        with step("unpack") as running:
            manifest = unpack(archive, lambda member: _staged_path(member, staged))
            _check_targets(archive, manifest, databases, folders)
            running.note = _count(manifest)
        dumps = {name: staged[STORE] / member for name, member in manifest.dumps().items()}
        if TRACKING in dumps and databases[TRACKING].file is not None:
            relocate(dumps[TRACKING], manifest.store, str(settings.store))
        ledger_is_file = LEDGER in dumps and databases[LEDGER].file is not None
        with step("try") as running:
            ledger_rows = _verify_ledger(f"sqlite:///{dumps[LEDGER]}", manifest) if ledger_is_file else 0
            models = _try_releases(StoreLayout(staged[STORE] / STORE), manifest, trusted)
            running.note = "; ".join(
                f"{name}@{model.version} answers {model.rows} rows as recorded" for name, model in models.items()
            )
        _move_dumps(dumps, databases, settings.store, staged[STORE] / STORE)
        os.sync()  # unpacked files must survive a power cut before they are moved into place
        placement = Placement(f"{ASIDE}{token}", stack.enter_context(ExitStack()))
        with step("put in place") as running:
            for name, root in roots.items():
                placement.move_into(staged[name] / (STORE if name == STORE else f"folders/{name}"), root, name)
            for name in sorted(dumps, key=lambda name: name == LEDGER):
                if databases[name].file is None:
                    databases[name].restore(dumps[name], replace=force)
                elif dumps[name].exists():
                    placement.place_database(dumps[name], databases[name].file)  # type: ignore[arg-type]
            if LEDGER in dumps and not ledger_is_file:
                ledger_rows = _verify_ledger(settings.ledger_url, manifest)
            running.note = f"in {settings.store}"
        placement.commit()
    return RestoreResult(
        created=manifest.created,
        files=manifest.files,
        bytes=manifest.size,
        models=models,
        databases=tuple(manifest.databases),
        ledger_rows=ledger_rows,
        aside=tuple(map(str, placement.remaining_aside())),
        notes=tuple(_notes(manifest, databases, settings)),
    )


def _count(manifest: BackupManifest) -> str:
    return f"{manifest.files:,} files, {manifest.size / 1e6:,.1f} MB, all digests match"


def _staged_path(member: str, staged: Mapping[str, Path]) -> Path:
    parts = member.split("/")
    if parts[0] == "folders" and len(parts) > 1 and parts[1] in staged:
        return staged[parts[1]] / member
    return staged[STORE] / member


def _check_targets(
    archive: Path, manifest: BackupManifest, databases: Mapping[str, Database], folders: Mapping[str, Path]
) -> None:
    missing = [("database", name, f"--database {name}=URL") for name in manifest.databases if name not in databases]
    missing += [("folder", name, f"--folder {name}=PATH") for name in sorted(manifest.folders) if name not in folders]
    for kind, name, option in missing:
        problem = f"the backup holds the {kind} {name}, and the command does not say where to restore it"
        raise ConfigError(problem, where=str(archive), remedy=f"add {option}")
    for name, kind in manifest.databases.items():
        if databases[name].kind != kind:
            raise ConfigError(
                f"the database {name} was on {kind}, and here it is on {databases[name].kind}",
                where=str(databases[name]),
                remedy="set its address to a database of the same kind",
            )


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


def _try_releases(layout: StoreLayout, manifest: BackupManifest, trusted: Sequence[str]) -> dict[str, RestoredModel]:
    """Has each release that serves answer its probe; those that were damaged when they were backed up are left out."""
    models = {}
    for name, served in manifest.models.items():
        if served.digest:
            rows = check_probe_rows(open_release(layout.release(served.release), trusted, served.digest))
            models[name] = RestoredModel(version=served.version, release=served.release, rows=rows)
    return models


def _move_dumps(dumps: Mapping[str, Path], databases: Mapping[str, Database], store: Path, staged_store: Path) -> None:
    """Moves SQLite databases of the store into the staged store."""
    for name, dump in dumps.items():
        file = databases[name].file
        if file is not None and file.is_relative_to(store):
            target = staged_store / file.relative_to(store)
            target.parent.mkdir(parents=True, exist_ok=True)
            dump.chmod(0o600)
            dump.rename(target)


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


def _check_empty(roots: Mapping[str, Path], databases: Mapping[str, Database]) -> None:
    contents = {root: ", ".join(sorted(occupied(name, root))[:8]) for name, root in roots.items()}
    problems = [f"{root} holds {names}" for root, names in contents.items() if names]
    for name, database in databases.items():
        file = database.file
        if file is None or not any(file.is_relative_to(root.absolute()) for root in roots.values()):
            description = database.describe_contents()
            problems += [f"the database {name} holds {description}: {database}"] if description else []
    if problems:
        raise ConfigError(
            f"the target is not empty: {problems[0]}",
            where=str(roots[STORE]),
            remedy="restore --into another folder; or --force, which moves these files aside and replaces these tables",
            details=tuple(problems[1:]),
        )


def _notes(manifest: BackupManifest, databases: Mapping[str, Database], settings: Settings) -> Iterator[str]:
    for name, served in manifest.models.items():
        if not served.digest:
            yield f"the release that serves {name} was not whole when it was backed up: {served.release}"
    mlflow_is_remote = TRACKING in manifest.databases and databases[TRACKING].file is None
    if mlflow_is_remote and manifest.store != str(settings.store):
        yield f"MLflow's database names artifacts where they were: {manifest.store}"
