"""Tables whose columns are aligned by blanks, as statistical packages print them: read as CSV."""

import csv
import io
import re
from collections.abc import Sequence

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


def aligned_to_csv(text: bytes) -> bytes:
    """An aligned table in UTF-8 as a CSV with commas and the same lines; values may stand in quotes.

    A value has no blanks side by side. It has no blank at all, except in quotes, if the first lines can be read so.
    """
    lines = text.decode("utf-8-sig").splitlines()
    split = _split_at_gaps if _splits_at(lines[:20]) == "gaps" else _split_at_blanks
    content = io.StringIO(newline="")
    writer = csv.writer(content, lineterminator="\n")
    for line in lines:
        writer.writerow(split(line))
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
