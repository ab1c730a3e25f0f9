"""Bringing a backup back: unpacked beside its place, checked, then moved there.

Until every digest is right, the ledger's chain holds and what serves answers its probe, nothing that is there is
touched. Files then come before the ledger in PostgreSQL: what it names is there when it does.
"""

import contextlib
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from pydantic import BaseModel

from towline.config import Frozen, Settings
from towline.errors import ConfigError, ReleaseError
from towline.inference.predictor import open_release
from towline.operations.backup.archive import Champion, Manifest, present, unpack
from towline.operations.backup.contents import ASIDE, STORE
from towline.operations.backup.databases import LEDGER, TRACKING, Database
from towline.operations.backup.placement import occupied, staging, undone
from towline.prediction_log import segments
from towline.processes import lives
from towline.registry.ledger import Ledger
from towline.registry.mlflow.relocation import relocate
from towline.serving.model_reloader import probe
from towline.steps import step
from towline.store import StoreLayout


class Answered(Frozen):
    """What serves of a model, and how many rows of its probe it answered as it did when it was made."""

    version: int
    release: str
    rows: int


class Restored(Frozen):
    """What was brought back; ``aside`` is where that lies which was there before."""

    created: str
    files: int
    bytes: int
    models: dict[str, Answered]
    databases: tuple[str, ...]
    ledger_rows: int
    aside: tuple[str, ...]
    notes: tuple[str, ...]


class _Process(BaseModel):
    pid: int
    born: str


def verify(archive: Path) -> Manifest:
    """Reads an archive and compares every member with its manifest; writes nothing.

    Raises:
        ReleaseError: names the member that is not what the manifest says.
    """
    with step("verify") as told:
        manifest = unpack(archive)
        told.note = f"{len(manifest.members):,} files, {manifest.size / 1e6:,.1f} MB as they were written"
    return manifest


def restore(
    settings: Settings,
    archive: Path,
    databases: Mapping[str, Database],
    folders: Mapping[str, Path],
    *,
    force: bool = False,
    trusted: Sequence[str] = (),
) -> Restored:
    """Puts what an archive holds into a store, databases and folders that are empty.

    Args:
        settings: where the store is.
        archive: what ``towline backup`` has written.
        databases: where its databases go, by name.
        folders: where its further folders go, by name.
        force: take the places of what is there: files are put aside, tables are replaced.
        trusted: packages of your own whose estimators may be in a release.

    Raises:
        ConfigError: a place is not empty or in use; the archive holds what has no place.
        ReleaseError: the archive, the ledger or a release that serves is not what was written.
        TransientError: the disk is full; a database is away.
    """
    roots = {STORE: settings.store, **folders}
    present(archive)
    _idle(settings.layout, databases)
    if not force:
        _empty(roots, databases)
    token = secrets.token_hex(4)
    with ExitStack() as stack:
        staged = {name: stack.enter_context(staging(root, token)) for name, root in roots.items()}
        with step("unpack") as told:
            manifest = unpack(archive, lambda member: _place(member, staged))
            _fits(archive, manifest, databases, folders)
            told.note = f"{len(manifest.members):,} files, {manifest.size / 1e6:,.1f} MB as they were written"
        dumps = {name: staged[STORE] / dump.member for name, dump in manifest.databases.items()}
        if TRACKING in dumps and databases[TRACKING].file is not None:
            relocate(dumps[TRACKING], manifest.store, str(settings.store))
        with step("try") as told:
            rows = -1
            if LEDGER in dumps and databases[LEDGER].file is not None:
                rows = _chained(f"sqlite:///{dumps[LEDGER]}", manifest)
            home = staged[STORE] / STORE
            models = {name: _answers(home, one, trusted) for name, one in manifest.models.items() if one.digest}
            told.note = "; ".join(
                f"{name}@{one.version} answers {one.rows} rows as it did" for name, one in models.items()
            )
        _settle(dumps, databases, settings.store, home)
        os.sync()  # what was unpacked outlasts a power cut before it takes its place
        moved = stack.enter_context(undone())
        with step("put in place") as told:
            for name, root in roots.items():
                source = staged[name] / (STORE if name == STORE else f"folders/{name}")
                moved.folder(source, root, root / f"{ASIDE}{token}", name)
            for name in sorted(dumps, key=lambda name: name == LEDGER):
                database = databases[name]
                if database.file is None:
                    database.restore(dumps[name], replace=force)
                elif dumps[name].exists():
                    moved.file(dumps[name], database.file, f"{ASIDE}{token}")
            if LEDGER in dumps and rows < 0:
                rows = _chained(settings.ledger_url, manifest)
            told.note = f"in {settings.store}"
        moved.keep()
    return Restored(
        created=manifest.created,
        files=len(manifest.members),
        bytes=manifest.size,
        models=models,
        databases=tuple(manifest.databases),
        ledger_rows=max(rows, 0),
        aside=tuple(map(str, moved.aside())),
        notes=tuple(_notes(manifest, databases, settings)),
    )


def _place(member: str, staged: Mapping[str, Path]) -> Path:
    words = member.split("/")
    if words[0] == "folders" and len(words) > 1 and words[1] in staged:
        return staged[words[1]] / member
    return staged[STORE] / member


def _fits(archive: Path, manifest: Manifest, databases: Mapping[str, Database], folders: Mapping[str, Path]) -> None:
    for name, dump in manifest.databases.items():
        if name not in databases:
            raise ConfigError(
                f"the backup holds the database {name}, and nothing says where it goes",
                where=str(archive),
                remedy=f"give --database {name}=URL",
            )
        if databases[name].kind != dump.kind:
            raise ConfigError(
                f"the database {name} was on {dump.kind}, and here it is on {databases[name].kind}",
                where=str(databases[name]),
                remedy="set its address to a database of the same kind",
            )
    for name in sorted(manifest.folders):
        if name not in folders:
            raise ConfigError(
                f"the backup holds the folder {name}, and nothing says where it goes",
                where=str(archive),
                remedy=f"give --folder {name}=PATH",
            )


def _chained(url: str, manifest: Manifest) -> int:
    """Checks the ledger that was brought back: its chain, and that it names the champions that the manifest names."""
    ledger = Ledger(url)
    ledger.verify()
    for name, champion in manifest.models.items():
        row = ledger.champion(name)
        if row is None or (row.version, row.release) != (champion.version, champion.release):
            now = f"version {row.version}" if row else "none"
            raise ReleaseError(
                f"the ledger names another champion of {name} than the manifest: {now}, not {champion.version}",
                where=name,
                remedy="restore an earlier backup",
            )
    return len(ledger.history())


def _answers(store: Path, champion: Champion, trusted: Sequence[str]) -> Answered:
    model = open_release(store / champion.release, trusted, champion.digest)
    return Answered(version=champion.version, release=champion.release, rows=probe(model))


def _settle(dumps: Mapping[str, Path], databases: Mapping[str, Database], store: Path, home: Path) -> None:
    """Moves SQLite databases that belong into the store to their places in what is to become it."""
    for name, dump in dumps.items():
        file = databases[name].file
        if file is not None and file.is_relative_to(store):
            target = home / file.relative_to(store)
            target.parent.mkdir(parents=True, exist_ok=True)
            dump.chmod(0o600)
            dump.rename(target)


def _idle(layout: StoreLayout, databases: Mapping[str, Database]) -> None:
    """Refuses where a server, `towline up` or a service works on the store, or anything on a database."""
    for name, database in databases.items():
        if users := database.users():
            raise ConfigError(
                f"{len(users)} connections work on the database {name}: {', '.join(sorted(set(users))[:5])}",
                where=str(database),
                remedy="end the servers that work on it, then run the same command again",
            )
    for path in (*sorted(layout.servers.glob("*.json")), layout.up_state):
        with contextlib.suppress(OSError, ValueError):
            process = _Process.model_validate_json(path.read_bytes())
            if lives(process.pid, process.born):
                raise _in_use(f"process {process.pid} ({path.stem})", path)
    for log in sorted(layout.prediction_logs.glob("*")):
        for path in sorted(set(segments.paths(log)) - set(segments.finished(log))):
            raise _in_use(f"a service of {log.name}", path)


def _in_use(what: str, where: Path) -> ConfigError:
    return ConfigError(
        f"{what} works on this store", where=str(where), remedy="end it (servers: towline ui --stop), or take --into"
    )


def _empty(roots: Mapping[str, Path], databases: Mapping[str, Database]) -> None:
    held = []
    for name, root in roots.items():
        found = sorted(occupied(name, root))
        held += [f"{root} holds {', '.join(found[:8])}"] if found else []
    inside = [root.absolute() for root in roots.values()]
    for name, database in databases.items():
        if database.file is None or not any(database.file.is_relative_to(root) for root in inside):
            there = database.contents()
            held += [f"the database {name} holds {there}: {database}"] if there else []
    if held:
        raise ConfigError(
            "there is something already: " + held[0],
            where=str(roots[STORE]),
            remedy="restore --into another folder; or --force, which puts these files aside and replaces these tables",
            details=tuple(held[1:]),
        )


def _notes(manifest: Manifest, databases: Mapping[str, Database], settings: Settings) -> Iterator[str]:
    for name, champion in manifest.models.items():
        if not champion.digest:
            yield f"what serves of {name} was not whole when it was backed up: {champion.release}"
    elsewhere = TRACKING in manifest.databases and databases[TRACKING].file is None
    if elsewhere and manifest.store != str(settings.store):
        yield f"MLflow's database names artifacts where they were: {manifest.store}"
