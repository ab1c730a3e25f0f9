"""Parses dates and times of the command line."""

import contextlib
from datetime import datetime
from typing import Any

import click


class Moment(click.ParamType[datetime]):
    """A click type for a day or a time: ISO 8601, or day.month.year."""

    name = "date"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        if isinstance(value, datetime):
            return value
        text = str(value).strip()
        for read in (datetime.fromisoformat, _dotted):
            with contextlib.suppress(ValueError):
                return read(text)
        problem = f"{value!r} is not a date; write 2026-06-30 or 2026-06-30T13:00"
        raise click.BadParameter(problem, ctx, param)


def _dotted(text: str) -> datetime:
    day, _, time = text.partition(" ")
    date = datetime.strptime(day, "%d.%m.%Y").date()  # noqa: DTZ007 - a date without a zone is UTC, as elsewhere
    return datetime.fromisoformat(f"{date.isoformat()} {time}".strip())
