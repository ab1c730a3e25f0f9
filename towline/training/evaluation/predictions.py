"""What a model says about rows; nothing here needs scikit-learn."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Predictions:
    """What a model says about n rows.

    Attributes:
        labels: (n,) predicted values, or class labels.
        probabilities: (n, k) in the order of ``contract.classes``; None for regression and for a model that gives none.
    """

    labels: np.ndarray
    probabilities: np.ndarray | None = None

    def take(self, rows: np.ndarray) -> "Predictions":
        """The same for some rows: positions, or a mask of length n."""
        probabilities = self.probabilities
        return Predictions(self.labels[rows], None if probabilities is None else probabilities[rows])


def decode_labels(places: np.ndarray, classes: tuple[str | int | bool | float, ...]) -> np.ndarray:
    """(n,) the labels at positions of ``classes``, each of Python's own type; object."""
    labels = np.empty(len(classes), dtype=object)
    labels[:] = classes
    return np.asarray(labels[places])


def encode_labels(labels: np.ndarray, classes: tuple[str | int | bool | float, ...]) -> np.ndarray:
    """(n,) positions of labels in ``classes``; -1 for a label that is not one of them."""
    position = {label: at for at, label in enumerate(classes)}
    return np.fromiter((position.get(label, -1) for label in labels), np.int64, len(labels))
