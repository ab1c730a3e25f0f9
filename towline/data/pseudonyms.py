"""Pseudonyms: salted hashes that stand for the categories of a column with personal data in all that a model holds.

A hash does not tell its value, but whoever holds a release holds its salt, and can check a guess.
"""

import hashlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np


def salt(model: str) -> str:
    """The salt of a model: the same in each run, so that equal runs give equal models."""
    return hashlib.sha256(f"towline pseudonyms\0{model}".encode()).hexdigest()[:32]


def pseudonym(key: str, column: str, text: str) -> str:
    """The hash of one value; of the same value in another column it is another."""
    message = f"{column}\0{text}".encode("utf-8", "surrogatepass")
    return hashlib.blake2b(message, key=key.encode(), digest_size=12).hexdigest()


def pseudonyms(key: str, column: str, values: "np.ndarray") -> "np.ndarray":
    """The same of an object array (n,) of texts; what is no text (NaN) stays."""
    import pandas as pd

    table: dict[Any, str] = {text: pseudonym(key, column, text) for text in pd.unique(values) if isinstance(text, str)}
    hashed = values.copy()
    hashed[:] = [table.get(value, value) for value in values]
    return hashed
