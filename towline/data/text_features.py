"""Text features: a text as numbers, from the n-grams of its words or characters.

The features are TF-IDF weights, projected to a few components: latent semantic analysis (Deerwester et al., 1990).
``TextProjection`` is the fitted form. Training and serving call the same code with NumPy alone, so that equal texts
have equal features, to the last bit.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np

Analyzer = Literal["words", "characters"]
MAX_CHARACTERS = 10_000  # the rest of a longer text is ignored
SHORT_TEXT = 3  # words; shorter texts are names and codes, which share parts of words rather than words
_WORD = re.compile(r"\w+")
_CHARACTERS = (3, 4)


@dataclass(frozen=True)
class TextProjection:
    """Maps a text to its features.

    Attributes:
        analyzer: ``words``: words and pairs of neighbours; ``characters``: 3 and 4 characters within a word.
        vocabulary: row numbers of the n-grams that count.
        weights: (terms,) inverse document frequencies.
        components: (terms, features).
    """

    analyzer: Analyzer
    vocabulary: Mapping[str, int]
    weights: np.ndarray
    components: np.ndarray

    def encode(self, text: Any) -> np.ndarray:
        """(features,) of one text; zeros for null and for a text of unknown n-grams."""
        terms, values = self.weigh(text)
        if not len(terms):
            return np.zeros(self.components.shape[1])
        features: np.ndarray = (values[:, None] * self.components[terms]).sum(axis=0)
        return features

    def encode_column(self, texts: Iterable[Any]) -> np.ndarray:
        """(n, features) of n texts."""
        rows = [self.encode(text) for text in texts]
        return np.stack(rows) if rows else np.zeros((0, self.components.shape[1]))

    def weigh(self, text: Any) -> tuple[np.ndarray, np.ndarray]:
        """The known n-grams of a text (row numbers) and their TF-IDF weights, of length 1.

        The frequency of a term enters as its square root, which every machine rounds alike.
        """
        known = map(self.vocabulary.get, list_ngrams(text, self.analyzer))
        counts = Counter(term for term in known if term is not None)
        terms = np.fromiter(counts, np.intp, len(counts))
        values = np.sqrt(np.fromiter(counts.values(), np.float64, len(counts))) * self.weights[terms]
        norm = math.sqrt(math.fsum((values * values).tolist()))
        return terms, values / norm if norm else values


def list_ngrams(text: Any, analyzer: Analyzer) -> list[str]:
    """The n-grams of a text in its order; none of null.

    Example:
        >>> list_ngrams("Big blue sky", "words")
        ['big', 'blue', 'sky', 'big blue', 'blue sky']
    """
    if not isinstance(text, str):
        return []
    words = _WORD.findall(text[:MAX_CHARACTERS].lower())
    if analyzer == "words":
        return [*words, *map(" ".join, pairwise(words))]
    padded = [f" {word} " for word in words]
    return [word[at : at + n] for n in _CHARACTERS for word in padded for at in range(max(1, len(word) - n + 1))]


def choose_analyzer(texts: Iterable[Any]) -> Analyzer:
    """``characters`` if the median text has at most three words."""
    counts = [len(_WORD.findall(text[:MAX_CHARACTERS])) for text in texts if isinstance(text, str)]
    return "words" if counts and float(np.median(counts)) > SHORT_TEXT else "characters"


def text_lengths(texts: Iterable[Any]) -> np.ndarray:
    """(n,) numbers of characters; NaN for null."""
    return np.array([len(text) if isinstance(text, str) else math.nan for text in texts], dtype=np.float64)
