"""towline data: the content of a table."""

from pathlib import Path

import click

from towline.cli import emit, json_option


@click.group()
def data() -> None:
    """Describes tables.

    \b
    Example:
      towline data profile data.csv --target churned
    """


@data.command(short_help="Writes one HTML page about a table.")
@click.argument("table", metavar="DATA")
@click.option("--target", metavar="COLUMN", help="The column to predict; default: the likeliest one.")
@click.option("--time", metavar="COLUMN", help="The column with the time of each row; none: no such column.")
@click.option("--query", metavar="SQL", help="The query, if DATA is the URL of a database.")
@click.option(
    "--output", type=click.Path(path_type=Path), metavar="FILE", help="The page; default: NAME-profile.html here."
)
@json_option
def profile(
    table: str, target: str | None, time: str | None, query: str | None, output: Path | None, as_json: bool
) -> None:
    """Writes one HTML page about a table: distributions, nulls, change over time, relation to the target, leaks.

    The page is one file that needs no network. For a large table it shows a random sample.

    \b
    Examples:
      towline data profile data.csv --target churned
      towline data profile data/events --output events.html
    """
    from towline import extras
    from towline.config import Settings
    from towline.project.initialization import TableReader
    from towline.project.table_profile import write_profile

    extras.require("towline data profile", "pipeline")
    reader = TableReader(table, query, Settings.from_environment())
    try:
        if target is not None:
            target = reader.find_column(target, "--target")
        path = output or Path(f"{reader.default_name}-profile.html")
        proposal = write_profile(reader, path, target, "" if time == "none" else time)
    finally:
        reader.close()
    document = {"page": str(path), "rows": proposal.rows, "target": proposal.target, "leaks": proposal.leaks}
    emit(document, as_json, lambda: f"{path}: {proposal.rows:,} rows, target {proposal.target}")
