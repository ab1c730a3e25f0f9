"""towline labels: what turned out to be true of logged predictions."""

import datetime as dt
from pathlib import Path

import click

from towline.cli import emit, json_option
from towline.cli.tables import check_file
from towline.errors import ConfigError


@click.group()
def labels() -> None:
    """Labels that come after the predictions.

    \b
    Example:
      towline labels add bike-demand counted.csv
    """


@labels.command()
@click.argument("name")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--by", default="request_id", show_default=True, help="The column that says whose label it is.")
@click.option("--column", metavar="COLUMN", help="The column of the labels.  [default: the target's]")
@click.option("--separator", default=",", show_default=True, help="Of a CSV file.")
@click.option("--replace", is_flag=True, help="Let labels take the place of others given before.")
@json_option
def add(name: str, file: Path, by: str, column: str | None, separator: str, replace: bool, as_json: bool) -> None:
    """Takes the labels of a CSV or Parquet FILE.

    They are joined by request_id (and row, where a request had several), or by a column that is logged as it is or
    hashed, such as a key of the config. The same file again changes nothing. Labels whose prediction is not in the log
    yet wait for it.

    \b
    Examples:
      towline labels add bike-demand counted.csv
      towline labels add bank-subscription calls.parquet --by customer_id --column said_yes
    """
    from towline.config import Settings
    from towline.data.schema.contract import Contract
    from towline.manifest import verify_release
    from towline.prediction_log import labels
    from towline.prediction_log.privacy import HASH_KEYS, HashKeys, read_privacy_filter
    from towline.registry.resolution import find

    settings = Settings.from_environment()
    if len(separator) != 1:
        raise ConfigError(f"not one character: {separator!r}", where="--separator", remedy="write e.g. ';'")
    check_file(file, "FILE")
    directory = find(name, settings).directory
    model = verify_release(directory).name
    contract = Contract.read(directory)
    predictions = settings.layout.predictions(model)
    policy = read_privacy_filter(directory, contract, HashKeys(predictions / HASH_KEYS))
    log = labels.Log(predictions, settings.layout.labels(model), policy.fields)
    now = dt.datetime.now(dt.UTC)
    done = labels.add(log, contract, file, now, by=by, column=column, separator=separator, replace=replace)

    def text() -> str:
        told = [f"{done.added:,} added", f"{done.known:,} known before"]
        told += [f"{done.replaced:,} replaced"] if done.replaced else []
        told += [f"{done.waiting:,} wait for their prediction"] if done.waiting else []
        return f"{model}: {done.rows:,} rows, {', '.join(told)}"

    emit({"model": model, "file": str(file.absolute()), "by": by, **done._asdict()}, as_json, text)
