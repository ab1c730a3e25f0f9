"""Layouts of text tables that Arrow cannot parse. Such a table is rewritten as a plain CSV first.

Columns may be aligned by blanks, as statistical packages print them, or quotes may follow a separator and a space.
"""

import csv
import io
import re
from collections.abc import Iterable, Sequence

ALIGNED = "aligned"  # a separator of columns
_MIN_LINES = 3
_GAP = re.compile(r" {2,}|\t+")


def is_aligned(lines: Sequence[str]) -> bool:
    """Whether the first lines of a text have as many values each, with several blanks between some of them.

    Example:
        >>> is_aligned(["  id  schooling   div", "   9  < 12 years   No", "  11  16+ years   Yes"])
        True
    """
    lines = [line for line in lines if line.strip()]
    return len(lines) >= _MIN_LINES and any(_GAP.search(line.strip()) for line in lines) and _splits_at(lines) != ""


def has_spaced_quotes(lines: Sequence[str], mark: str) -> bool:
    """Whether quotes follow a separator and spaces in the first lines of a CSV; Arrow takes these for text.

    Example:
        >>> has_spaced_quotes(['"month", "1958"', '"JAN",  340'], ",")
        True
    """
    records = [record for record in csv.reader(lines, delimiter=mark, skipinitialspace=True) if record]
    counts = {len(record) for record in records[: max(2, len(records) - 1)]}  # the last one may be cut
    cells = [cell for line in lines for cell in next(csv.reader([line], delimiter=mark), [])]
    return len(counts) == 1 and any(cell.startswith(" ") and cell.lstrip().startswith('"') for cell in cells)


def is_plain(separator: str) -> bool:
    """Whether Arrow can parse a CSV with this separator."""
    return len(separator) == 1


def to_plain_csv(text: bytes, separator: str) -> bytes:
    """A table in UTF-8 as a CSV with commas and the same lines.

    In an aligned table a value has no blanks side by side. It has no blank at all, except in quotes, if the first
    lines can be read so.

    Args:
        text: the table.
        separator: of its columns, which is not plain.
    """
    decoded = text.decode("utf-8-sig")
    rows: Iterable[list[str]]
    if separator == ALIGNED:
        lines = decoded.splitlines()
        rows = map(_split_at_gaps if _splits_at(lines[:20]) == "gaps" else _split_at_blanks, lines)
    else:
        rows = csv.reader(io.StringIO(decoded, newline=""), delimiter=separator[0], skipinitialspace=True)
    content = io.StringIO(newline="")
    csv.writer(content, lineterminator="\n").writerows(rows)
    return content.getvalue().encode()


def _splits_at(lines: Sequence[str]) -> str:
    """``blanks`` or ``gaps`` of several blanks, if each line has as many values then; else an empty text."""
    for name, split in (("blanks", _split_at_blanks), ("gaps", _split_at_gaps)):
        counts = {len(split(line)) for line in lines if line.strip()}
        if len(counts) == 1 and counts.pop() > 1:
            return name
    return ""


def _split_at_blanks(line: str) -> list[str]:
    return next(csv.reader([line.strip().replace("\t", " ")], delimiter=" ", skipinitialspace=True), [])


def _split_at_gaps(line: str) -> list[str]:
    return _GAP.split(line.strip()) if line.strip() else []
