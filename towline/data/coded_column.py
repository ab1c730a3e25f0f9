"""A coded column is a canonical column with few distinct values: they are stored once, and each row has a code."""

from typing import Any

import numpy as np


class CodedColumn:
    """A canonical column of category or text.

    Args:
        codes: (n,) position of each row's value among the levels.
        levels: distinct values of str, or NaN for null; a level need not occur.
    """

    def __init__(self, codes: np.ndarray, levels: np.ndarray) -> None:
        self.codes, self.levels = codes, levels

    def __len__(self) -> int:
        return len(self.codes)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self.values

    @property
    def values(self) -> np.ndarray:
        """(n,) the value of each row, as objects."""
        values: np.ndarray = self.levels[self.codes]
        return values


CanonicalColumn = np.ndarray | CodedColumn


def column_values(column: CanonicalColumn) -> np.ndarray:
    """(n,) the values of a canonical column."""
    return column.values if isinstance(column, CodedColumn) else column
