"""towline score: predictions for a file of rows."""

from pathlib import Path

import click

from towline.cli import emit, json_option


@click.command(
    epilog="""\b
Examples:
  towline score new.csv scored.csv                          by the only model's champion
  towline score new.parquet scored.parquet --model bike-demand
  towline score new.csv scored.csv --model bike-demand@3    by that version
  towline score new.csv scored.csv --model path/to/release
"""
)
@click.argument("source", metavar="IN", type=click.Path(path_type=Path))
@click.argument("output", metavar="OUT", type=click.Path(path_type=Path))
@click.option("--model", "wanted", metavar="NAME[@VERSION]|PATH", help="What answers; default: the only model.")
@click.option("--separator", default=",", show_default=True, help="Of a CSV.")
@click.option("--trust", multiple=True, metavar="PACKAGE", help="A package whose types to read.")
@json_option
def score(
    source: Path, output: Path, wanted: str | None, separator: str, trust: tuple[str, ...], as_json: bool
) -> None:
    """Writes the rows of IN (CSV, CSV.gz, Parquet) with their predictions to OUT."""
    from towline import load
    from towline.cli.models import only
    from towline.scoring.batch import score as batch

    done = batch(load(wanted or only(), trusted=trust), source, output, separator)
    told = f"{done.rows:,} rows scored by {done.model} version {done.version}: {done.output}"
    emit(done.model_dump(), as_json, lambda: told)
