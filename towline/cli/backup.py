"""towline backup and towline restore."""

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from towline.cli import emit, json_option
from towline.errors import ConfigError
from towline.formatting import format_time

if TYPE_CHECKING:
    from towline.config import Settings
    from towline.operations.backup.databases import Database

Pairs = tuple[tuple[str, str], ...]


def _parse_pair(text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    if not value or not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,31}", name):
        # the text is not shown: it may be a part of a password
        raise click.BadParameter("a value is not NAME=VALUE; a name has a-z, 0-9, - and _; write %20 for a space")
    return name, value


_databases = click.option(
    "--database", "urls", type=_parse_pair, multiple=True, metavar="NAME=URL",
    envvar="TOWLINE_BACKUP_DATABASES", show_envvar=True,
    help="A database besides the ledger and MLflow's, e.g. of a Prefect server. Can be repeated.",
)  # fmt: skip
_folders = click.option(
    "--folder", "folders", type=_parse_pair, multiple=True, metavar="NAME=PATH",
    envvar="TOWLINE_BACKUP_FOLDERS", show_envvar=True,
    help="A folder besides the store, e.g. an MLflow server's artifacts. Can be repeated.",
)  # fmt: skip


@click.command(short_help="Writes the whole store into FILE.")
@click.argument("target", metavar="FILE", type=click.Path(path_type=Path, dir_okay=False))
@_databases
@_folders
@click.option("--no-hash-keys", is_flag=True, help="Leave out the keys of hashed columns of prediction logs.")
@json_option
def backup(target: Path, urls: Pairs, folders: Pairs, no_hash_keys: bool, as_json: bool) -> None:
    """Writes the whole store into FILE (.tar.zst or .tar.gz), while it is in use.

    \b
    Examples:
      towline backup /backups/towline.tar.zst
      towline backup /backups/towline-$(date +%F).tar.zst --folder artifacts=/mlflow/artifacts
    """
    from towline.cli import screen
    from towline.operations.backup import create

    settings, databases, paths = _targets(None, urls, folders)
    with screen.progress(Path(os.devnull)):  # the store, and its log file, may not exist yet
        result = create.backup(settings, target, databases, paths, hash_keys=not no_hash_keys)

    def text() -> str:
        size = f"{result.bytes / 1e6:,.1f} MB, {result.files:,} files of {result.unpacked / 1e6:,.1f} MB"
        lines = [f"{result.file}: {size}"]
        lines += [f"  {name}: version {served.version} serves" for name, served in result.models.items()]
        lines += [f"databases  {', '.join(result.databases) or 'none'}", f"sha256     {result.sha256}"]
        return "\n".join([*lines, *(f"note       {note}" for note in result.notes)])

    emit(result.model_dump(), as_json, text)


@click.command(short_help="Restores a store from FILE.")
@click.argument("archive", metavar="FILE", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option(
    "--into",
    metavar="STORE",
    type=click.Path(path_type=Path, file_okay=False),
    help="Restore into this store instead of TOWLINE_STORE.",
)
@click.option("--verify-only", is_flag=True, help="Compare every digest; write nothing.")
@click.option("--force", is_flag=True, help="Move existing files aside, replace existing tables.")
@click.option("--trust", multiple=True, metavar="PACKAGE", help="A package of yours whose types a release may contain.")
@_databases
@_folders
@json_option
def restore(
    archive: Path,
    into: Path | None,
    verify_only: bool,
    force: bool,
    trust: tuple[str, ...],
    urls: Pairs,
    folders: Pairs,
    as_json: bool,
) -> None:
    """Restores a store from FILE, after checking digests and predictions.

    The store and each database must be empty. Files are moved into place only after every digest matches the manifest,
    the ledger's chain is verified, and each release that serves predicts its probe rows as recorded.

    \b
    Examples:
      towline restore /backups/towline.tar.zst
      towline restore /backups/towline.tar.zst --into /tmp/rehearsal
      towline restore /backups/towline.tar.zst --verify-only
    """
    from towline.cli import screen
    from towline.operations.backup import restore

    if verify_only:
        manifest = restore.verify(archive)
        document = manifest.model_dump(include={"created", "towline", "store", "models", "folders"})
        document |= {"databases": list(manifest.dumps), "files": manifest.files, "bytes": manifest.size}
        summary = f"{archive}: {manifest.files:,} files, {manifest.size / 1e6:,.1f} MB, all digests match; written"
        emit(document, as_json, lambda: f"{summary} on {format_time(manifest.created)} UTC")
        return
    settings, databases, paths = _targets(into, urls, folders)
    with screen.progress(Path(os.devnull)):  # the store, and its log file, may not exist yet
        result = restore.restore(settings, archive, databases, paths, force=force, trusted=trust)

    def text() -> str:
        size, created = f"{result.bytes / 1e6:,.1f} MB", format_time(result.created)
        lines = [f"{settings.store}: {result.files:,} files, {size}, of {created} UTC"]
        lines += [f"  {name}: version {model.version} serves; it predicts {model.rows} probe rows as recorded"
                  for name, model in result.models.items()]  # fmt: skip
        lines += [f"ledger     {result.ledger_rows:,} rows, the chain is verified"]
        lines += [
            f"aside      {path}: replaced files; remove them when they are no longer needed" for path in result.aside
        ]
        return "\n".join([*lines, *(f"note       {note}" for note in result.notes)])

    emit(result.model_dump(), as_json, text)


def _targets(into: Path | None, urls: Pairs, folders: Pairs) -> "tuple[Settings, dict[str, Database], dict[str, Path]]":
    from towline.config import Settings
    from towline.operations.backup.databases import Database, select_databases

    on_command_line = click.get_current_context().get_parameter_source("urls") == ParameterSource.COMMANDLINE
    if on_command_line and any(Database(name, url).password for name, url in urls):
        raise ConfigError(
            "a password on a command line can be read by everybody on this machine",
            where="--database",
            remedy="set TOWLINE_BACKUP_DATABASES to NAME=URL instead, or put the password into ~/.pgpass",
        )
    settings = Settings.from_environment({**os.environ, **({"TOWLINE_STORE": str(into.absolute())} if into else {})})
    if len(paths := {name: Path(path).absolute() for name, path in folders}) < len(folders):
        raise ConfigError("two folders have one name", where="--folder", remedy="give each its own name")
    return settings, select_databases(settings, urls), paths
