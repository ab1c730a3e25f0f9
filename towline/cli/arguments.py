"""Arguments of the command line that several commands share: dates, durations, and files of tables."""

import contextlib
import difflib
import math
import os
import re
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import click

from towline.errors import ConfigError, DataError

_TABLE_SUFFIXES = (".csv", ".tsv", ".gz", ".zst", ".zip", ".parquet", ".pq", ".json", ".jsonl")
_YEARS = range(2, 9_000)  # in other years, a time in UTC, or after a step of a backtest, may not exist


class TimeType(click.ParamType[datetime]):
    """A click type for a day or a time: ISO 8601, or day.month.year."""

    name = "date"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        if isinstance(value, datetime):
            return value
        text = str(value).strip()
        for read in (datetime.fromisoformat, _parse_dotted):
            with contextlib.suppress(ValueError):
                if (moment := read(text)).year in _YEARS:
                    return moment
        problem = f"{value!r} is not a date; write 2026-06-30 or 2026-06-30T13:00"
        raise click.BadParameter(problem, ctx, param)


class DurationType(click.ParamType[timedelta]):
    """A click type for a duration as in a config: 90d, 12h.

    Args:
        positive: whether 0 is an error.
    """

    name = "duration"

    def __init__(self, *, positive: bool = False) -> None:
        self._positive = positive

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        from pydantic import TypeAdapter, ValidationError

        from towline.config import Duration

        duration = None
        with contextlib.suppress(ValidationError):
            duration = TypeAdapter[timedelta](Duration).validate_python(value)
        if duration is None:
            self.fail(f"{value!r} is not a duration; write e.g. 90d or 12h", param, ctx)
        if self._positive and not duration:
            self.fail(f"{value!r} is not a positive duration; write e.g. 90d or 12h", param, ctx)
        return duration


class NumberRange(click.FloatRange):
    """A click type for a finite number within bounds; ``FloatRange`` accepts nan and inf."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number", param, ctx)
        return number


class NonEmptyText(click.ParamType[str]):
    """A click type for a text that is not blank."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not str(value).strip():
            self.fail("the text is empty", param, ctx)
        return str(value)


class SeparatorType(click.ParamType[str]):
    """A click type for the separator of a CSV: one character (or ``\\t``), the same and a space, or ``aligned``."""

    name = "separator"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = "\t" if value == r"\t" else str(value)
        if not re.fullmatch(". ?|aligned", text):
            self.fail(
                f"{value!r} is not one character; write e.g. ';', or aligned if spaces align the columns", param, ctx
            )
        return text


def reason_option(note: str = "Reason; recorded in the ledger.", **attributes: Any) -> Callable[[Any], Any]:
    """The option ``--reason`` of a command that changes the ledger; ``attributes`` are those of ``click.option``."""
    return click.option("--reason", type=NonEmptyText(), help=note, **attributes)


def only_config() -> Path:
    """The only config in the folder configs of the project.

    Raises:
        ConfigError: there is no config, or there are several.
    """
    from towline.config import Settings

    folder = Settings.from_environment().project / "configs"
    configs = [Path(os.path.relpath(path)) for path in sorted((*folder.glob("*.yaml"), *folder.glob("*.yml")))]
    if len(configs) != 1:
        remedy = f"name one of: {', '.join(map(str, configs))}" if configs else "make one: towline init DATA"
        what = f"there are {len(configs)} configs" if configs else "there is no config"
        raise ConfigError(f"CONFIG is not given, and {what} in {folder}", where="command line", remedy=remedy)
    return configs[0]


def _parse_dotted(text: str) -> datetime:
    day, _, time = text.partition(" ")
    date = datetime.strptime(day, "%d.%m.%Y").date()  # noqa: DTZ007 - a date without a zone is UTC, as elsewhere
    return datetime.fromisoformat(f"{date.isoformat()} {time}".strip())


def check_file(file: Path, where: str) -> None:
    """Checks that a file exists; ``where`` is the argument or option that names it.

    Raises:
        DataError: it does not exist; suggests files with similar names.
    """
    path = file.absolute()
    if path.is_file():
        return
    if path.is_dir():
        raise DataError(f"{where} is a folder", where=str(path), remedy="run the command for each of its files")
    names = [child.name for child in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(
        path.name, [name for name in names if name.lower().endswith(_TABLE_SUFFIXES)], 3, 0.5
    )
    hint = f"did you mean {' or '.join(near)}?" if near else "a relative path starts at the current folder"
    raise DataError("no such file" if path.parent.is_dir() else "no such folder", where=str(path), remedy=hint)
