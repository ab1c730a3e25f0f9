"""Texts for people: numbers, times, and shortened lists."""

import datetime as dt

from towline.formatting import format_age, format_number, format_time, shorten_lines, shorten_list


def test_numbers() -> None:
    """Four digits, all digits of whole numbers, and a dash for undefined values."""
    assert [format_number(value) for value in (None, 0, 3, 12345, 0.123456, 1234.5, -0.5)] == [
        "–", "0", "3", "12,345", "0.1235", "1,234", "-0.5",
    ]  # fmt: skip


def test_times() -> None:
    """A time and its ISO text give the same text in UTC; a time without a zone is in UTC."""
    moment = dt.datetime(2026, 3, 1, 0, 30, 59, tzinfo=dt.timezone(dt.timedelta(hours=2)))
    for value in (moment, moment.isoformat()):
        assert format_time(value) == "2026-02-28 22:30"
        assert format_time(value, seconds=True) == "2026-02-28 22:30:59"
    assert format_time("2026-03-01T00:30:59.5") == "2026-03-01 00:30"
    assert [format_time(None), format_time("")] == ["–", "–"]


def test_ages() -> None:
    assert [format_age(dt.timedelta(hours=hours)) for hours in (-1, 0.5, 47, 49)] == [
        "0 min",
        "30 min",
        "47 h",
        "2 days",
    ]


def test_shortened_lists() -> None:
    """The count is the number of items that are left out; without such items there is no count."""
    items = ["a", "b", "c"]
    assert [shorten_list(items, limit) for limit in (2, 3, 9)] == ["a, b and 1 more", "a, b, c", "a, b, c"]
    assert shorten_list(items, 2, "; ", total=1002) == "a; b and 1,000 more"
    assert shorten_list(items, 5, total=5) == "a, b, c and 2 more"
    assert shorten_list([], 5) == ""
    assert shorten_lines(items, 3) == items
    assert shorten_lines(items, 1, " in the report") == ["a", "and 2 more in the report"]
