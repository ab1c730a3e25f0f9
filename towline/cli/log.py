"""towline log: shows, compacts, purges and erases logged predictions."""

import datetime as dt
from typing import TYPE_CHECKING, Any

import click

from towline.cli import emit, json_option
from towline.cli.arguments import DurationType
from towline.errors import ConfigError
from towline.formatting import format_time

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import pyarrow as pa

    from towline.config import Settings


@click.group()
def log() -> None:
    """Manages the prediction log.

    \b
    Examples:
      towline log show bike-demand --tail 5
      towline log purge bike-demand --older-than 90d
      towline log erase bike-demand --key customer_id=4711
    """


@log.command()
@click.argument("name")
@click.option("--tail", metavar="N", type=click.IntRange(min=1), help="Also show the last N predictions.")
@json_option
def show(name: str, tail: int | None, as_json: bool) -> None:
    """Shows what a model's log contains.

    \b
    Examples:
      towline log show bike-demand
      towline log show bike-demand --tail 5
    """
    from towline.prediction_log import maintenance

    folder = _folder(name)[1]
    summary = maintenance.summarize(folder)
    last = maintenance.read_latest(folder, tail) if tail else None
    document: dict[str, Any] = {"model": name, "folder": str(folder), **summary._asdict()}
    document["fields"] = [field._asdict() for field in summary.fields]

    def text() -> str:
        from towline.cli.screen import table

        lines = [f"{name}: {summary.rows:,} predictions, {summary.bytes / 1e6:,.1f} MB in {folder}"]
        if summary.rows:
            first, end = (format_time(moment, seconds=True) for moment in (summary.first, summary.last))
            lines[0] += f", from {first} to {end} UTC"
            lines += ["", table(["day", "version", "predictions"], [list(day.values()) for day in summary.days[-14:]])]
        if len(summary.days) > 14:
            lines.append(f"and {len(summary.days) - 14} earlier days and versions; --json lists all")
        if summary.waiting:
            lines.append(f"{summary.waiting:,} predictions are not in Parquet yet")
        lines += ["", table(["column", "logged"], [field[:3:2] for field in summary.fields])] if summary.fields else []
        if last is not None:
            lines += ["", _tail(last)]
        return "\n".join(lines)

    emit(document if last is None else {**document, "tail": last.to_pylist()}, as_json, text)


@log.command()
@click.argument("name")
@click.option(
    "--older-than", type=DurationType(), metavar="DURATION", required=True,
    help="Minimum age of removed days, e.g. 90d or 12w.",
)  # fmt: skip
@json_option
def purge(name: str, older_than: dt.timedelta, as_json: bool) -> None:
    """Removes old predictions and labels.

    Removes whole days (UTC) of predictions and of shadow answers of rollouts, the labels that were added before that
    day, and the hash keys of earlier months. Values that were hashed with a removed key can never be matched again.

    \b
    Example:
      towline log purge bike-demand --older-than 90d
    """
    from towline.prediction_log import labels, maintenance

    settings, folder = _folder(name)
    before = (dt.datetime.now(dt.UTC) - older_than).date()
    removed = maintenance.purge(folder, before)
    removed_labels = labels.purge(settings.layout.labels(name), before)
    answers = sum(maintenance.purge(shadow, before).rows for shadow in settings.layout.shadow_logs(name))
    document = {
        "model": name, "before": before.isoformat(), "predictions": removed.rows, "days": removed.files,
        "labels": removed_labels, "shadow_answers": answers, "hash_keys": removed.keys,
    }  # fmt: skip
    emit(
        document,
        as_json,
        lambda: (
            f"{name}: {removed.rows:,} predictions of {removed.files} days before {before} removed,"
            f" {removed_labels:,} labels, {answers:,} shadow answers, {len(removed.keys)} hash keys"
        ),
    )


@log.command(short_help="Removes the predictions and labels with a value.")
@click.argument("name")
@click.option("--key", metavar="COLUMN=VALUE", required=True, help="A logged column and its value.")
@json_option
def erase(name: str, key: str, as_json: bool) -> None:
    """Removes every prediction and label in which a column has a value.

    The answers that a version gave for these rows in shadow during a rollout are removed, too.

    A hashed column is matched with every stored hash key. Services may keep running; run the command again to erase
    predictions that they log afterwards.

    \b
    Examples:
      towline log erase bike-demand --key customer_id=4711
      towline log erase bike-demand --key request_id=9f0c2b7a
    """
    from towline.prediction_log import labels, maintenance
    from towline.prediction_log.labels import LoggedModel

    settings, folder = _folder(name)
    column, equals, value = key.partition("=")
    if not (column and equals and value):
        raise ConfigError("not COLUMN=VALUE", where="--key", remedy="write --key customer_id=4711")
    model_log = LoggedModel(
        folder, settings.layout.labels(name), maintenance.summarize(folder).fields if folder.is_dir() else ()
    )
    removed_labels = removed_answers = 0

    def erase_answers(is_erased: "Callable[[str, int], bool]") -> None:
        nonlocal removed_answers
        for shadow in settings.layout.shadow_logs(name):
            removed_answers += maintenance.erase_answers(shadow, is_erased)

    def erase_related(predictions: "pa.Table") -> None:
        nonlocal removed_labels
        removed_labels = labels.erase(model_log, column, value, predictions)
        if column != "request_id":
            ids, numbers = predictions["request_id"].to_pylist(), predictions["row"].to_pylist()
            rows = set(zip(ids, numbers, strict=True))
            erase_answers(lambda request, row: (request, row) in rows)

    removed = maintenance.erase(folder, column, value, erase_related)
    removed_labels += labels.erase(model_log, column, value)
    if column == "request_id":  # also if its predictions were removed before
        erase_answers(lambda request, _: request == value)
    document = {
        "model": name, "column": column, "predictions": removed.rows, "labels": removed_labels,
        "shadow_answers": removed_answers, "parts": removed.files, "not_searched": removed.not_searched,
    }  # fmt: skip

    def text() -> str:
        counts = (
            f"{removed.rows:,} predictions, {removed_labels:,} labels and {removed_answers:,} shadow answers erased, "
            f"{removed.files} parts rewritten"
        )
        skipped = removed.not_searched
        note = f"; {skipped:,} predictions of other versions do not hold {column!r}" if skipped else ""
        return f"{name}: {counts}{note}"

    emit(document, as_json, text)


@log.command(short_help="Converts segments to Parquet and merges small parts.")
@click.argument("name")
@json_option
def compact(name: str, as_json: bool) -> None:
    """Converts finished segments to Parquet and merges small parts.

    \b
    Example:
      towline log compact bike-demand
    """
    from towline.prediction_log import maintenance

    converted, before, after = maintenance.compact(_folder(name)[1])
    document = {"model": name, "segments": converted, "parts_before": before, "parts": after}
    emit(document, as_json, lambda: f"{name}: {converted} segments converted, {before} parts merged into {after}")


def _folder(name: str) -> "tuple[Settings, Path]":
    from towline.config import Settings, suggest

    settings = Settings.from_environment()
    folders = (settings.layout.prediction_logs, settings.layout.all_labels)
    present = [folder for folder in folders if folder.is_dir()]
    logged_models = sorted({path.name for folder in present for path in folder.iterdir() if path.is_dir()})
    if name not in logged_models:
        remedy = suggest(name, logged_models) if logged_models else "`towline serve` starts one"
        raise ConfigError(f"no log of {name!r}", where=str(folders[0]), remedy=remedy)
    return settings, folders[0] / name


def _tail(rows: "pa.Table") -> str:
    from towline.cli.screen import table
    from towline.prediction_log.parquet_store import INPUT_PREFIX

    inputs = [name for name in rows.column_names if name.startswith(INPUT_PREFIX)]
    lines = []
    for row in rows.to_pylist():
        values = ", ".join(f"{name.removeprefix(INPUT_PREFIX)}={row[name]}" for name in inputs if row[name] is not None)
        request = f"{row['request_id']}[{row['row']}]"
        lines.append([f"{row['time']:%Y-%m-%d %H:%M:%S}", request, row["version"], row["prediction"], values[:60]])
    return table(["time (UTC)", "request", "version", "prediction", "inputs"], lines)
