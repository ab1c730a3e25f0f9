"""Pseudonyms replace the values of columns with personal data in the input of a model.

Categories become salted hashes and numbers are rounded to three digits, because models contain some of the numbers that
they were fitted on: bin edges, thresholds, medians. A hash does not reveal its value, but whoever has a release also
has its salt and can check a guess.
"""

import hashlib
from typing import TYPE_CHECKING, Any

from towline.config import Kind

if TYPE_CHECKING:
    import numpy as np

DIGITS = 3


def derive_salt(model: str) -> str:
    """The salt of a model: the same in each run, so that equal runs give equal models."""
    return hashlib.sha256(f"towline pseudonyms\0{model}".encode()).hexdigest()[:32]


def pseudonymize_value(value: Any, column: str, kind: Kind, salt: str) -> Any:
    """The pseudonym of a canonical value; null stays null.

    Args:
        value: text of a category, a number, or a time, which stays as it is.
        column: its name; the same text in another column has another hash.
        kind: of the column.
        salt: of the model.

    Example:
        >>> pseudonymize_value(48213.58, "income", "numeric", "")
        48200.0
    """
    if kind == "category":
        return value if value is None else _hash(value, column, salt)
    return float(f"{value:.{DIGITS}g}") if kind == "numeric" else value


def pseudonymize_column(values: "np.ndarray", column: str, kind: Kind, salt: str) -> "np.ndarray":
    """The pseudonyms of a canonical column (n,)."""
    import numpy as np
    import pandas as pd

    if kind not in ("category", "numeric"):
        return values
    codes, distinct = pd.factorize(values)  # -1 for null, which stays
    pseudonyms = values.copy()
    present = codes >= 0
    lookup = np.empty(len(distinct), dtype=values.dtype)
    lookup[:] = [pseudonymize_value(value, column, kind, salt) for value in distinct]
    pseudonyms[present] = lookup[codes[present]]
    return pseudonyms


def _hash(text: str, column: str, salt: str) -> str:
    message = f"{column}\0{text}".encode("utf-8", "surrogatepass")
    return hashlib.blake2b(message, key=salt.encode(), digest_size=12).hexdigest()
