"""towline score: predictions for files of rows."""

from typing import Any

import click

from towline.cli import emit, json_option
from towline.cli.arguments import SeparatorType


@click.command(
    epilog="""\b
Examples:
  towline score new.csv scored.csv                          with the champion of the only model
  towline score 'new/*.parquet' scored.parquet --model bike-demand
  towline score new.csv.gz scored.csv --model bike-demand@3   with that version
  towline score new.csv scored.csv --model path/to/release
  towline score new.csv scored.csv --prefix scored_         adds scored_prediction, scored_model, ...
  towline score new/ scored/ --workers 2 --keep id --columns prediction
  towline score new/ scored/ --engine dask --scheduler tcp://host:8786
  towline --profile team score new/ scored/ --engine prefect --workers 8
  towline score 'postgresql://me:${PW}@host/shop#new' 'postgresql://me:${PW}@host/shop#scored' --overwrite
  towline score 's3://shop/new/*.parquet' s3://shop/scored.parquet
  towline score sqlite:///shop.db out.parquet --query 'SELECT * FROM visits WHERE day = 7'
"""
)
@click.argument("source", metavar="IN")
@click.argument("output", metavar="OUT")
@click.option("--model", metavar="NAME[@VERSION]|PATH", help="The model; default: the champion of the only model.")
@click.option("--separator", type=SeparatorType(), help="Column separator of a CSV.  [default: detected in IN]")
@click.option("--prefix", default="", help="Prefix of the names of added columns.")
@click.option("--safe-csv", is_flag=True, help="Put ' before text that a spreadsheet would run as a formula.")
@click.option(
    "--trust", "trusted", multiple=True, metavar="PACKAGE", help="A package whose types a release may contain."
)
@click.option("--keep", metavar="COLUMNS", help="Columns of IN to copy, as a,b; '' for none.  [default: all]")
@click.option("--columns", metavar="COLUMNS", help="Columns to add, as a,b.  [default: all]")
@click.option(
    "--bad-rows",
    type=click.Choice(["quarantine", "stop"]),
    default="quarantine",
    show_default=True,
    help="Write bad rows to OUT.quarantine.csv, or stop at the first one.",
)
@click.option("--partition-by", metavar="COLUMN", help="Partition an output folder by this column.")
@click.option(
    "--workers", type=click.IntRange(1), default=1, show_default=True, help="Number of processes, or of runs on a pool."
)
@click.option(
    "--engine",
    type=click.Choice(["processes", "dask", "ray", "prefect"]),
    default="processes",
    show_default=True,
    help="Engine that scores; dask and ray are extras, prefect is the work pool of --profile.",
)
@click.option("--scheduler", metavar="URL", help="A Dask or Ray cluster, as tcp://host:8786.  [default: this machine]")
@click.option("--query", metavar="SELECT", help="A query on the database whose URL is IN.")
@click.option("--overwrite", is_flag=True, help="Replace an output that exists.")
@json_option
def score(source: str, output: str, keep: str | None, columns: str | None, as_json: bool, **options: Any) -> None:
    """Writes the rows of IN with their predictions to OUT.

    IN is a file, a folder or a pattern of CSV, Parquet or JSON, also compressed. OUT is a CSV, Parquet or JSON lines
    file, or without a suffix a folder of Parquet files. Both may be URLs such as s3://bucket/new.csv, or URL#TABLE of
    a PostgreSQL or SQLite database. The columns of IN are copied unchanged. The columns prediction,
    probability_CLASS, model and version are added. An interrupted command resumes when it is run again.
    """
    from towline import api
    from towline.cli.screen import progress_line

    profile = click.get_current_context().find_root().obj
    if profile and options["engine"] != "prefect":
        from towline.orchestration import profiles

        profiles.refuse(profile, "score")
    with progress_line() as show:
        scored = api.score(
            source,
            output,
            keep=_split(keep),
            columns=_split(columns),
            profile=profile,
            show=lambda progress: show(progress.text()),
            **options,
        )
    emit(scored.model_dump(mode="json"), as_json, scored.text)


def _split(names: str | None) -> list[str] | None:
    return None if names is None else [name for name in names.split(",") if name]
