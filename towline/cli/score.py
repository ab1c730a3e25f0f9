"""towline score: predictions for a file of rows."""

from pathlib import Path

import click

from towline.cli import emit, json_option


@click.command(
    epilog="""\b
Examples:
  towline score new.csv scored.csv                          with the champion of the only model
  towline score new.parquet scored.parquet --model bike-demand
  towline score new.csv scored.csv --model bike-demand@3    with that version
  towline score new.csv scored.csv --model path/to/release
  towline score new.csv scored.csv --prefix scored_         adds scored_prediction, scored_model, ...
"""
)
@click.argument("source", metavar="IN", type=click.Path(path_type=Path))
@click.argument("output", metavar="OUT", type=click.Path(path_type=Path))
@click.option("--model", metavar="NAME[@VERSION]|PATH", help="The model; default: the champion of the only model.")
@click.option("--separator", help="Column separator of a CSV.  [default: that of IN]")
@click.option("--prefix", default="", help="Prefix of the names of added columns.")
@click.option("--safe-csv", is_flag=True, help="Put ' before text that a spreadsheet would run as a formula.")
@click.option("--trust", multiple=True, metavar="PACKAGE", help="A package whose types a release may contain.")
@json_option
def score(
    source: Path,
    output: Path,
    model: str | None,
    separator: str | None,
    prefix: str,
    safe_csv: bool,
    trust: tuple[str, ...],
    as_json: bool,
) -> None:
    """Writes the rows of IN (CSV, CSV.gz, Parquet) with their predictions to OUT.

    The columns of IN are copied unchanged. The columns prediction, probability_CLASS, model and version are added.
    """
    from towline import api

    scored = api.score(
        source, output, model=model, separator=separator, prefix=prefix, safe_csv=safe_csv, trusted=trust
    )
    text = f"{scored.rows:,} rows scored by {scored.model} version {scored.version}: {scored.output}"
    emit(scored.model_dump(), as_json, lambda: text)
