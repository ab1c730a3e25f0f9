"""towline log: what services have answered, and how it is forgotten."""

import datetime as dt
from typing import TYPE_CHECKING, Any

import click

from towline.cli import emit, json_option
from towline.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow as pa

    from towline.config import Settings


@click.group()
def log() -> None:
    """The log of predictions.

    \b
    Examples:
      towline log show bike-demand --tail 5
      towline log purge bike-demand --older-than 90d
      towline log erase bike-demand --key customer_id=4711
    """


@log.command()
@click.argument("name")
@click.option("--tail", metavar="N", type=click.IntRange(min=1), help="Also the last N predictions.")
@json_option
def show(name: str, tail: int | None, as_json: bool) -> None:
    """What a model's log holds.

    \b
    Examples:
      towline log show bike-demand
      towline log show bike-demand --tail 5
    """
    from towline.prediction_log import maintenance

    folder = _folder(name)[1]
    found = maintenance.summarize(folder)
    last = maintenance.read_latest(folder, tail) if tail else None
    document: dict[str, Any] = {"model": name, "folder": str(folder), **found._asdict()}
    document["fields"] = [field._asdict() for field in found.fields]

    def text() -> str:
        from towline.cli.screen import table

        lines = [f"{name}: {found.rows:,} predictions, {found.bytes / 1e6:,.1f} MB in {folder}"]
        if found.rows:
            first, end = (str(moment)[:19].replace("T", " ") for moment in (found.first, found.last))
            lines[0] += f", from {first} to {end} UTC"
            lines += ["", table(["day", "version", "predictions"], [list(day.values()) for day in found.days[-14:]])]
        if len(found.days) > 14:
            lines.append(f"and {len(found.days) - 14} earlier; --json lists all")
        if found.waiting:
            lines.append(f"{found.waiting:,} of these are not in Parquet yet")
        lines += ["", table(["column", "logged"], [field[:3:2] for field in found.fields])] if found.fields else []
        if last is not None:
            lines += ["", _tail(last)]
        return "\n".join(lines)

    emit(document if last is None else {**document, "tail": last.to_pylist()}, as_json, text)


@log.command()
@click.argument("name")
@click.option("--older-than", metavar="DURATION", required=True, help="How far back the log goes on, e.g. 90d or 12w.")
@json_option
def purge(name: str, older_than: str, as_json: bool) -> None:
    """Removes old predictions and labels.

    Whole days in UTC go, and labels that were added before them. Hash keys go with the months they were used in: what
    they hashed can then never be matched again.

    \b
    Example:
      towline log purge bike-demand --older-than 90d
    """
    from towline.prediction_log import labels, maintenance

    settings, folder = _folder(name)
    before = (dt.datetime.now(dt.UTC) - _duration(older_than)).date()
    gone = maintenance.purge(folder, before)
    forgotten = labels.purge(settings.layout.labels(name), before)
    document = {
        "model": name, "before": before.isoformat(), "predictions": gone.rows, "days": gone.files,
        "labels": forgotten, "hash_keys": gone.keys,
    }  # fmt: skip
    emit(
        document,
        as_json,
        lambda: (
            f"{name}: {gone.rows:,} predictions of {gone.files} days before {before} removed,"
            f" {forgotten:,} labels, {len(gone.keys)} hash keys"
        ),
    )


@log.command()
@click.argument("name")
@click.option("--key", metavar="COLUMN=VALUE", required=True, help="Whose predictions; a column that is logged.")
@json_option
def erase(name: str, key: str, as_json: bool) -> None:
    """Removes every prediction and label in which a column has a value.

    A hashed column is matched under every key that is kept. Running services go on; give the command again for what
    they answer afterwards.

    \b
    Examples:
      towline log erase bike-demand --key customer_id=4711
      towline log erase bike-demand --key request_id=9f0c2b7a
    """
    from towline.prediction_log import labels, maintenance
    from towline.prediction_log.labels import Log

    settings, folder = _folder(name)
    column, equals, value = key.partition("=")
    if not (column and equals and value):
        raise ConfigError("not COLUMN=VALUE", where="--key", remedy="write --key customer_id=4711")
    where = Log(folder, settings.layout.labels(name), maintenance.summarize(folder).fields if folder.is_dir() else ())
    forgotten = 0

    def first(found: "pa.Table") -> None:
        nonlocal forgotten
        forgotten = labels.erase(where, column, value, found)

    gone = maintenance.erase(folder, column, value, first)
    forgotten += labels.erase(where, column, value)
    document = {
        "model": name, "column": column, "predictions": gone.rows, "labels": forgotten, "parts": gone.files,
        "not_searched": gone.not_searched,
    }  # fmt: skip

    def text() -> str:
        blind = (
            f"; {gone.not_searched:,} predictions of other versions do not hold {column!r}" if gone.not_searched else ""
        )
        return f"{name}: {gone.rows:,} predictions and {forgotten:,} labels erased, {gone.files} parts rewritten{blind}"

    emit(document, as_json, text)


@log.command()
@click.argument("name")
@json_option
def compact(name: str, as_json: bool) -> None:
    """Turns finished segments into Parquet and merges small parts.

    \b
    Example:
      towline log compact bike-demand
    """
    from towline.prediction_log import maintenance

    converted, before, after = maintenance.compact(_folder(name)[1])
    document = {"model": name, "segments": converted, "parts_before": before, "parts": after}
    emit(document, as_json, lambda: f"{name}: {converted} segments converted, {before} parts are {after} now")


def _folder(name: str) -> "tuple[Settings, Path]":
    from difflib import get_close_matches

    from towline.config import Settings

    settings = Settings.from_environment()
    rooms = (settings.layout.prediction_logs, settings.layout.all_labels)
    known = sorted({path.name for room in rooms if room.is_dir() for path in room.iterdir() if path.is_dir()})
    if name not in known:
        near = get_close_matches(name, known, 1)
        there = f"there is a log of: {', '.join(known)}" if known else "`towline serve` begins one"
        remedy = f"did you mean {near[0]}?" if near else there
        raise ConfigError(f"nothing is logged of {name!r}", where=str(rooms[0]), remedy=remedy)
    return settings, rooms[0] / name


def _duration(text: str) -> dt.timedelta:
    from pydantic import TypeAdapter, ValidationError

    from towline.config import Duration

    try:
        duration: dt.timedelta = TypeAdapter(Duration).validate_python(text)
    except (ValidationError, OverflowError):
        duration = dt.timedelta(-1)
    if not dt.timedelta(0) <= duration < dt.timedelta(365_000):
        raise ConfigError(f"not a duration: {text!r}", where="--older-than", remedy="write e.g. 90d or 12w")
    return duration


def _tail(rows: "pa.Table") -> str:
    from towline.cli.screen import table
    from towline.prediction_log.parquet_store import INPUT_PREFIX

    inputs = [name for name in rows.column_names if name.startswith(INPUT_PREFIX)]
    lines = []
    for row in rows.to_pylist():
        told = ", ".join(f"{name.removeprefix(INPUT_PREFIX)}={row[name]}" for name in inputs if row[name] is not None)
        place = f"{row['request_id']}[{row['row']}]"
        lines.append([f"{row['time']:%Y-%m-%d %H:%M:%S}", place, row["version"], row["prediction"], told[:60]])
    return table(["time (UTC)", "request", "version", "prediction", "inputs"], lines)
