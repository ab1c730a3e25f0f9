"""What a model knows of columns with personal data: categories as salted hashes, numbers to three digits.

A hash does not tell its value, but whoever holds a release holds its salt, and can check a guess. Numbers are rounded
because models keep some of those that they were fitted on: limits of bins, thresholds, medians.
"""

import hashlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from towline.data.schema.contract import Column

DIGITS = 3


def derive_salt(model: str) -> str:
    """The salt of a model: the same in each run, so that equal runs give equal models."""
    return hashlib.sha256(f"towline pseudonyms\0{model}".encode()).hexdigest()[:32]


def pseudonymize_value(column: "Column", salt: str, value: Any) -> Any:
    """What a model is given in place of a canonical value; null stays null."""
    if column.kind == "category":
        return value if value is None else _hash(salt, column.name, value)
    return float(f"{value:.{DIGITS}g}") if column.kind == "numeric" else value


def pseudonymize_column(column: "Column", salt: str, values: "np.ndarray") -> "np.ndarray":
    """The same of a canonical column (n,)."""
    import pandas as pd

    if column.kind not in ("category", "numeric"):
        return values
    codes, uniques = pd.factorize(values)  # -1 for null, which stays
    found = values.copy()
    there = codes >= 0
    lookup = values[:0].copy()
    lookup.resize(len(uniques))
    lookup[:] = [pseudonymize_value(column, salt, value) for value in uniques]
    found[there] = lookup[codes[there]]
    return found


def _hash(salt: str, column: str, text: str) -> str:
    """Of the same text in another column it is another."""
    message = f"{column}\0{text}".encode("utf-8", "surrogatepass")
    return hashlib.blake2b(message, key=salt.encode(), digest_size=12).hexdigest()
