"""towline export: releases and trainings for other platforms."""

from pathlib import Path

import click

from towline.cli import emit, json_option


@click.group()
def export() -> None:
    """Writes what other platforms run.

    \b
    Example:
      towline export mlserver bike-demand models/bike-demand
    """


@export.command()
@click.argument("version")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--max-rows", type=click.IntRange(1), help="Most rows of a request; default: 10,000.")
@json_option
def mlserver(version: str, folder: Path, max_rows: int | None, as_json: bool) -> None:
    """Writes a folder that MLServer, KServe and Seldon Core 2 can serve: the release and model-settings.json.

    VERSION is NAME (its champion), NAME@VERSION, or the path of a release. MLServer needs the extra `mlserver`, in an
    environment of its own.

    \b
    Examples:
      towline export mlserver bike-demand models/bike-demand
      towline export mlserver bike-demand@3 models/bike-demand-3 --max-rows 1000
    """
    from towline.platforms.mlserver_export import export_release
    from towline.registry.selection import find_release

    exported = export_release(find_release(version), folder, max_rows=max_rows)
    text = f"{exported.model} version {exported.version}: {exported.folder}\nserve it: mlserver start {exported.folder}"
    emit(exported.model_dump(mode="json"), as_json, lambda: text)
