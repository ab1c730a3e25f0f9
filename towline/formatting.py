"""Numbers, times and lists as texts for people, and text that is safe in Markdown."""

import datetime as dt
import re
from collections.abc import Sequence

from towline.times import to_utc


def format_number(value: float | None) -> str:
    """A number with 4 significant digits, whole numbers in full, – for None."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if isinstance(value, int) or abs(value) >= 1000 else f"{value:.4g}"


def format_time(moment: dt.datetime | str | None, *, seconds: bool = False) -> str:
    """A time in UTC to the minute or the second, without its zone; – for None and an empty text.

    Args:
        moment: the time, or its text in ISO 8601. Without a time zone it is in UTC.
        seconds: whether seconds are shown.
    """
    if not moment:
        return "–"
    time = to_utc(dt.datetime.fromisoformat(moment) if isinstance(moment, str) else moment)
    return f"{time:%Y-%m-%d %H:%M:%S}" if seconds else f"{time:%Y-%m-%d %H:%M}"


def format_age(span: dt.timedelta) -> str:
    """A length of time in minutes, hours or days."""
    hours = span.total_seconds() / 3600
    if hours < 1:
        return f"{max(0, round(hours * 60))} min"
    return f"{hours:.0f} h" if hours < 48 else f"{hours / 24:.0f} days"


def shorten_list(items: Sequence[str], limit: int, separator: str = ", ", *, total: int | None = None) -> str:
    """The first items, and how many more there are: ``a, b and 3 more``.

    Args:
        items: all items, or at least the first ones.
        limit: maximum number of items in the text.
        separator: between items.
        total: number of items; default: that of ``items``.
    """
    hidden = (len(items) if total is None else total) - min(limit, len(items))
    return separator.join(items[:limit]) + (f" and {hidden:,} more" if hidden > 0 else "")


def shorten_lines(lines: Sequence[str], limit: int, place: str = "") -> list[str]:
    """The first lines, and a line that counts the others; ``place`` follows the count and says where to find them."""
    return [*lines[:limit], *([f"and {len(lines) - limit:,} more{place}"] if len(lines) > limit else [])]


def escape_markdown(text: str) -> str:
    """The text on one line, with escaped Markdown and HTML markup."""
    return re.sub(r"([\\`*_{}\[\]<>()#|!&~])", r"\\\1", " ".join(text.split()))
