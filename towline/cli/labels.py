"""towline labels: ground-truth labels of logged predictions."""

import datetime as dt
from pathlib import Path

import click

from towline.cli import emit, json_option
from towline.cli.arguments import SeparatorType, check_file


@click.group()
def labels() -> None:
    """Adds ground-truth labels to logged predictions.

    \b
    Example:
      towline labels add bike-demand counted.csv
    """


@labels.command()
@click.argument("name")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--by", default="request_id", show_default=True, help="Column with the keys of the labels.")
@click.option("--column", metavar="COLUMN", help="Column with the labels.  [default: the target]")
@click.option("--separator", type=SeparatorType(), help="Column separator of a CSV.  [default: detected in FILE]")
@click.option("--replace", is_flag=True, help="Replace labels that were added before.")
@json_option
def add(
    name: str, file: Path, by: str, column: str | None, separator: str | None, replace: bool, as_json: bool
) -> None:
    """Adds the labels of a CSV, Parquet or JSON FILE.

    They are joined by request_id (and row, if a request had several), or by a column that is logged unmodified or
    hashed, such as a key of the config. Adding the same file again changes nothing. Labels may arrive before their
    prediction is in the log.

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
    from towline.registry.selection import find_release

    settings = Settings.from_environment()
    check_file(file, "FILE")
    directory = find_release(name, settings).directory
    model = verify_release(directory).name
    contract = Contract.read(directory)
    predictions = settings.layout.predictions(model)
    policy = read_privacy_filter(directory, contract, HashKeys(predictions / HASH_KEYS))
    log = labels.LoggedModel(predictions, settings.layout.labels(model), policy.fields)
    now = dt.datetime.now(dt.UTC)
    label_file = labels.LabelFile(file, by, column, separator)
    added = labels.add_labels(log, contract, label_file, now, replace=replace)

    def text() -> str:
        counts = [f"{added.added:,} added", f"{added.known:,} known before"]
        counts += [f"{added.replaced:,} replaced"] if added.replaced else []
        counts += [f"{added.waiting:,} wait for their prediction"] if added.waiting else []
        return f"{model}: {added.rows:,} rows, {', '.join(counts)}"

    emit({"model": model, "file": str(file.absolute()), "by": by, **added._asdict()}, as_json, text)
