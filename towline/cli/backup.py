"""towline backup, restore: a whole store in one file, and back."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from towline.cli import emit, json_option
from towline.errors import ConfigError

if TYPE_CHECKING:
    from towline.config import Settings
    from towline.operations.backup.databases import Database

_databases = click.option(
    "--database", "urls", multiple=True, metavar="NAME=URL", envvar="TOWLINE_BACKUP_DATABASES", show_envvar=True,
    help="A database besides the ledger's and MLflow's, e.g. of a Prefect server. Can be repeated.",
)  # fmt: skip
_folders = click.option(
    "--folder", "folders", multiple=True, metavar="NAME=PATH", envvar="TOWLINE_BACKUP_FOLDERS", show_envvar=True,
    help="A folder besides the store, e.g. an MLflow server's artifacts. Can be repeated.",
)  # fmt: skip


@click.command()
@click.argument("target", metavar="FILE", type=click.Path(path_type=Path, dir_okay=False))
@_databases
@_folders
@click.option("--no-hash-keys", is_flag=True, help="Without the keys of hashed columns of the prediction log.")
@json_option
def backup(target: Path, urls: tuple[str, ...], folders: tuple[str, ...], no_hash_keys: bool, as_json: bool) -> None:
    """Writes the whole store into FILE (.tar.zst or .tar.gz), while it is in use.

    \b
    Examples:
      towline backup /backups/towline.tar.zst
      towline backup /backups/towline-$(date +%F).tar.zst --folder artifacts=/mlflow/artifacts
    """
    from towline.operations.backup.create import backup as take

    settings, named, places = _given(None, urls, folders)
    with _told():
        taken = take(settings, target, named, places, hash_keys=not no_hash_keys)

    def text() -> str:
        lines = [f"{taken.file}: {taken.bytes / 1e6:,.1f} MB, {taken.files:,} files of {taken.unpacked / 1e6:,.1f} MB"]
        lines += [f"  {name}: version {one.version} serves" for name, one in taken.models.items()]
        lines += [f"databases  {', '.join(taken.databases) or 'none'}", f"sha256     {taken.sha256}"]
        return "\n".join([*lines, *(f"note       {note}" for note in taken.notes)])

    emit(taken.model_dump(), as_json, text)


@click.command()
@click.argument("archive", metavar="FILE", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--into", metavar="STORE", type=click.Path(path_type=Path, file_okay=False), help="Another store.")
@click.option("--verify-only", is_flag=True, help="Read it, compare every digest, write nothing.")
@click.option("--force", is_flag=True, help="Put what is there aside, replace tables that are there.")
@click.option("--trust", multiple=True, metavar="PACKAGE", help="A package whose types to read.")
@_databases
@_folders
@json_option
def restore(
    archive: Path,
    into: Path | None,
    verify_only: bool,
    force: bool,
    trust: tuple[str, ...],
    urls: tuple[str, ...],
    folders: tuple[str, ...],
    as_json: bool,
) -> None:
    """Brings a store back from FILE, checked by digest and by predictions.

    The store, and each database, must be empty. Nothing is put in place before every file has the digest of the
    manifest, the ledger's chain holds, and what serves answers its own probe rows as it did.

    \b
    Examples:
      towline restore /backups/towline.tar.zst
      towline restore /backups/towline.tar.zst --into /tmp/rehearsal
      towline restore /backups/towline.tar.zst --verify-only
    """
    from towline.operations.backup import restore

    if verify_only:
        manifest = restore.verify(archive)
        document = manifest.model_dump(include={"created", "towline", "store", "models", "databases", "folders"})
        document |= {"files": len(manifest.members), "bytes": manifest.size}
        whole = f"{archive}: {len(manifest.members):,} files, {manifest.size / 1e6:,.1f} MB, as they were written"
        emit(document, as_json, lambda: f"{whole} on {manifest.created[:16].replace('T', ' ')} UTC")
        return
    settings, named, places = _given(into, urls, folders)
    with _told():
        done = restore.restore(settings, archive, named, places, force=force, trusted=trust)

    def text() -> str:
        lines = [f"{settings.store}: {done.files:,} files, {done.bytes / 1e6:,.1f} MB, of {done.created[:16]} UTC"]
        lines += [f"  {name}: version {one.version} serves, and answers {one.rows} rows as it did"
                  for name, one in done.models.items()]  # fmt: skip
        lines += [f"ledger     {done.ledger_rows:,} rows, their chain is whole"]
        lines += [f"aside      {path}: what was there; remove it when you are sure" for path in done.aside]
        return "\n".join([*lines, *(f"note       {note}" for note in done.notes)])

    emit(done.model_dump(), as_json, text)


def _given(
    into: Path | None, urls: tuple[str, ...], folders: tuple[str, ...]
) -> "tuple[Settings, dict[str, Database], dict[str, Path]]":
    import os

    from towline.config import Settings
    from towline.operations.backup.databases import named, pairs, secret

    on_the_line = click.get_current_context().get_parameter_source("urls") == ParameterSource.COMMANDLINE
    if on_the_line and secret(urls):
        raise ConfigError(
            "a password on a command line can be read by everybody on this machine",
            where="--database",
            remedy="set TOWLINE_BACKUP_DATABASES to NAME=URL instead, or keep the password in ~/.pgpass",
        )
    settings = Settings.from_environment({**os.environ, **({"TOWLINE_STORE": str(into.absolute())} if into else {})})
    places = {name: Path(path).absolute() for name, path in pairs(folders, "--folder", "--folder artifacts=/artifacts")}
    if len(places) < len(folders) or "store" in places:
        raise ConfigError("two folders have one name", where="--folder", remedy="give each its own; store is taken")
    return settings, named(settings, urls), places


@contextmanager
def _told() -> Iterator[None]:
    """Shows the steps; nothing is written into a store that is not there."""
    import tempfile

    from towline.cli import screen

    with tempfile.TemporaryDirectory() as folder, screen.progress(Path(folder) / "towline.log"):
        yield
