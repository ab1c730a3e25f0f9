"""Records of text files: where the records of a CSV or of JSON lines begin and end in a block of bytes.

A newline ends a record of a CSV if the number of quotes before it is even. This holds for a *regular* file, in which a
quote either begins or ends a field or is doubled, and in which a carriage return is followed by a line feed. Other
files are legal for the CSV parser, but their records cannot be found by counting.
"""

from collections.abc import Iterator
from typing import IO

import numpy as np
import pyarrow as pa

QUOTE, LINE_FEED, CARRIAGE_RETURN = b'"', b"\n", b"\r"
BLOCK_BYTES = 4 << 20
MAX_RECORD_BYTES = 256 << 20


class IrregularTextError(Exception):
    """The records of a text cannot be found by counting quotes."""


class RegularityCheck:
    """Checks the quotes and carriage returns of a CSV, block by block in the order of the file.

    Args:
        separator: of the columns.
    """

    def __init__(self, separator: str) -> None:
        self._before_opening = np.zeros(256, dtype=bool)
        self._before_opening[[10, 13, ord(separator)]] = True
        self._after_closing = self._before_opening.copy()
        self._after_closing[34] = True
        self._last = 10  # the byte before the block
        self.quotes = 0

    def check(self, block: bytes) -> None:
        """Checks the next block.

        Raises:
            IrregularTextError: a quote stands within a field, or a carriage return within a line.
        """
        if not block:
            return
        if self._last == 13 and block[0] != 10:
            raise IrregularTextError
        open_at_end = block[-1] == 13
        has_returns = CARRIAGE_RETURN in block
        if has_returns and block.count(CARRIAGE_RETURN) != block.count(b"\r\n") + open_at_end:
            raise IrregularTextError
        if self._last == 34 or QUOTE in block:
            self._check_quotes(np.frombuffer(block, np.uint8))
        self._last = block[-1]

    def _check_quotes(self, data: np.ndarray) -> None:
        places = np.flatnonzero(data == 34)
        if self._last == 34 and self.quotes % 2 == 0 and not self._after_closing[data[0]]:
            raise IrregularTextError
        is_opening = (np.arange(len(places)) + self.quotes) % 2 == 0
        opening, closing = places[is_opening], places[~is_opening]
        before = np.where(opening > 0, data[opening - 1], self._last)
        # a doubled quote ends and begins again: the quote before the second one is a closing one
        if not (self._before_opening[before] | ((before == 34) & (opening + self.quotes > 0))).all():
            raise IrregularTextError
        inner = closing[closing < len(data) - 1]
        if not self._after_closing[data[inner + 1]].all():
            raise IrregularTextError
        self.quotes += len(places)


def last_record_end(block: bytes, *, quoted: bool) -> int:
    """The position after the last newline that ends a record; 0 without one. The block begins with a record."""
    end = block.rfind(LINE_FEED) + 1
    if not quoted or not end or QUOTE not in block:
        return end
    count = block.count(QUOTE, 0, end)
    while end and count % 2:
        before = block.rfind(LINE_FEED, 0, end - 1) + 1
        count -= block.count(QUOTE, before, end)
        end = before
    return end


def first_record_end(block: bytes, start: int, quotes: int, *, quoted: bool) -> int:
    """The position after the first newline from ``start`` on that ends a record; -1 without one.

    Args:
        block: any part of the file.
        start: position in the block.
        quotes: number of quotes in the file before the block.
        quoted: whether fields may be quoted.
    """
    end = block.find(LINE_FEED, start) + 1
    if quoted and quotes % 2 == 0 and QUOTE not in block:
        return end or -1
    count = quotes + (block.count(QUOTE, 0, start) if quoted else 0)
    while quoted and end:
        count += block.count(QUOTE, start, end)
        if count % 2 == 0:
            return end
        start, end = end, block.find(LINE_FEED, end) + 1
    return end or -1


def read_blocks(file: IO[bytes], size: int | None, *, quoted: bool, separator: str) -> Iterator[bytes]:
    """Blocks of whole records, of about 4 MB.

    Args:
        file: at the beginning of a record.
        size: number of bytes to read; None: to the end of the file, and the text is checked to be regular.
        quoted: whether fields may be quoted.
        separator: of the columns.

    Raises:
        IrregularTextError: as ``RegularityCheck``, or a record is longer than 256 MB.
    """
    check = RegularityCheck(separator) if quoted and size is None else None
    rest, remaining = b"", size
    while data := file.read(BLOCK_BYTES if remaining is None else min(BLOCK_BYTES, remaining)):
        remaining = None if remaining is None else remaining - len(data)
        if check:
            check.check(data)
        block = rest + data if rest else data
        end = last_record_end(block, quoted=quoted)
        if len(block) - end > MAX_RECORD_BYTES:
            raise IrregularTextError
        if end:
            yield block[:end] if end < len(block) else block
        rest = block[end:]
    if rest:
        yield rest


class Records:
    """The records of a block of text that are not blank, without their newlines.

    Args:
        block: whole records.
        quoted: whether fields may be quoted.
    """

    def __init__(self, block: bytes, *, quoted: bool) -> None:
        data = np.frombuffer(block, np.uint8)
        ends = np.flatnonzero(data == 10)
        if quoted and QUOTE in block:
            quotes = np.flatnonzero(data == 34)
            ends = ends[np.searchsorted(quotes, ends) % 2 == 0]
        if len(block) and (not len(ends) or ends[-1] != len(block) - 1):
            ends = np.append(ends, len(block))
        starts = np.concatenate([[0], ends[:-1] + 1]).astype(np.int64)
        returns = (ends > starts) & (data[ends - 1] == 13) if len(ends) else ends
        ends = ends - returns
        blank = ends <= starts
        if blank.any():
            starts, ends = starts[~blank], ends[~blank]
        self._block, self.starts, self.ends = block, starts, ends

    def __len__(self) -> int:
        return len(self.starts)

    def take(self, positions: np.ndarray | None = None) -> pa.Array:
        """The records at some positions (None: all) as large_binary."""
        starts, ends = (self.starts, self.ends) if positions is None else (self.starts[positions], self.ends[positions])
        bounds = np.empty(2 * len(starts) + 1, dtype=np.int64)  # a record, the gap to the next one, the next one, …
        bounds[0:-1:2], bounds[1::2] = starts, ends
        bounds[-1] = ends[-1] if len(ends) else 0
        parts = pa.Array.from_buffers(
            pa.large_binary(), 2 * len(starts), [None, pa.py_buffer(bounds), pa.py_buffer(self._block)]
        )
        return parts.take(pa.array(np.arange(0, 2 * len(starts), 2)))
