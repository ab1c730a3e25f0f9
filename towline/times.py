"""Times in UTC."""

import datetime as dt
from typing import overload


@overload
def to_utc(moment: dt.datetime) -> dt.datetime: ...


@overload
def to_utc(moment: dt.datetime | None) -> dt.datetime | None: ...


def to_utc(moment: dt.datetime | None) -> dt.datetime | None:
    """A time in UTC; one without a time zone is in UTC already. None stays None."""
    if moment is None:
        return None
    return moment.replace(tzinfo=dt.UTC) if moment.tzinfo is None else moment.astimezone(dt.UTC)
