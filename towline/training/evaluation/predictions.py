"""Predictions and metric values as data; this module needs no scikit-learn, so that serving can use it."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from towline.config import Frozen

Label = str | int | bool | float
Threshold = float | tuple[float, ...]
"""Of a decision. Binary: a row is positive from this probability on. More classes: one each, in the contract's
order: the class with the largest ratio of its probability to its threshold is predicted, as by ``thresholds`` of Spark.
"""


class Interval(Frozen):
    """The value of a metric with its 95 % interval; None if undefined.

    Example:
        >>> Interval(value=21.3, low=20.6, high=22.1).text()
        '21.3 [20.6, 22.1]'
    """

    value: float | None
    low: float | None = None
    high: float | None = None

    def text(self) -> str:
        """The value and its interval with four digits."""
        if self.value is None:
            return "undefined"
        limits = "" if self.low is None or self.high is None else f" [{self.low:.4g}, {self.high:.4g}]"
        return f"{self.value:.4g}{limits}"


@dataclass(frozen=True)
class Predictions:
    """A model's predictions for n rows.

    Attributes:
        labels: (n,) predicted values, or class labels.
        probabilities: (n, k) in the order of ``contract.classes``; None for regression, and if the model has none.
        positions: (n,) of class labels in ``contract.classes``; None if only the labels are known.
    """

    labels: np.ndarray
    probabilities: np.ndarray | None = None
    positions: np.ndarray | None = None

    @property
    def are_finite(self) -> bool:
        """Whether all predicted numbers, or all probabilities, are finite."""
        values = self.labels if self.probabilities is None else self.probabilities
        return values.dtype.kind != "f" or bool(np.isfinite(values).all())

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], classes: tuple[Label, ...]) -> "Predictions":
        """Restores predictions from ``to_arrays``."""
        labels = decode_labels(arrays["labels"], classes) if classes else arrays["labels"]
        return cls(labels, arrays.get("probabilities"))

    @classmethod
    def concatenate(cls, parts: Sequence["Predictions"]) -> "Predictions":
        """The predictions for the rows of all parts; without probabilities if one part has none."""
        probabilities = [part.probabilities for part in parts if part.probabilities is not None]
        positions = [part.positions for part in parts if part.positions is not None]
        return cls(
            np.concatenate([part.labels for part in parts]),
            np.concatenate(probabilities) if len(probabilities) == len(parts) else None,
            np.concatenate(positions) if len(positions) == len(parts) else None,
        )

    def to_arrays(self, classes: tuple[Label, ...]) -> dict[str, np.ndarray]:
        """Arrays for an ``.npz`` file: labels, as positions in ``classes`` if there are any, and probabilities."""
        labels = self.encode(classes) if classes else self.labels
        return {"labels": labels} | ({} if self.probabilities is None else {"probabilities": self.probabilities})

    def encode(self, classes: tuple[Label, ...]) -> np.ndarray:
        """(n,) the positions of the labels in ``classes``, those of the contract."""
        return encode_labels(self.labels, classes) if self.positions is None else self.positions

    def align(self, classes: tuple[Label, ...], other: tuple[Label, ...]) -> "Predictions":
        """The predictions of a classifier for other classes, in their order.

        The probability of a class that the classifier does not have is 0. A label that is none of the other classes
        becomes the most probable of them.

        Args:
            classes: of the classifier.
            other: the classes of the result.
        """
        aligned = np.zeros((len(self.labels), len(other)))
        if self.probabilities is not None:
            shared = [position for position, label in enumerate(classes) if label in other]
            aligned[:, [other.index(classes[position]) for position in shared]] = self.probabilities[:, shared]
        codes = encode_labels(self.labels, other)
        labels = decode_labels(np.where(codes < 0, aligned.argmax(axis=1), codes), other)
        return Predictions(labels, None if self.probabilities is None else aligned)

    def take(self, rows: np.ndarray) -> "Predictions":
        """The predictions for some rows: positions, or a mask (n,)."""
        probabilities, positions = (
            None if part is None else part[rows] for part in (self.probabilities, self.positions)
        )
        return Predictions(self.labels[rows], probabilities, positions)


def decode_labels(positions: np.ndarray, classes: tuple[Label, ...]) -> np.ndarray:
    """(n,) labels at positions of ``classes``, with their Python types; object.

    Example:
        >>> decode_labels(np.array([1, 0]), ("no", "yes")).tolist()
        ['yes', 'no']
    """
    labels = np.empty(len(classes), dtype=object)
    labels[:] = classes
    return np.asarray(labels[positions])


def decide_classes(probabilities: np.ndarray, threshold: Threshold | None, positive: int = 1) -> np.ndarray:
    """(n,) positions of the predicted classes, the first on a tie.

    Args:
        probabilities: (n, classes).
        threshold: of the decision; None: the class with the largest probability is predicted.
        positive: binary: position of the class that the threshold applies to.

    Example:
        >>> decide_classes(np.array([[0.7, 0.2, 0.1]]), (0.6, 0.3, 0.05)).tolist()
        [2]
    """
    if threshold is None or isinstance(threshold, tuple):
        ratios = probabilities if threshold is None else probabilities / np.array(threshold)
        return np.asarray(ratios.argmax(axis=1))
    return np.where(probabilities[:, positive] >= threshold, positive, 1 - positive)


def encode_labels(labels: np.ndarray, classes: tuple[Label, ...]) -> np.ndarray:
    """(n,) positions of labels in ``classes``; -1 for any other label.

    Example:
        >>> encode_labels(np.array(["yes", "maybe"], dtype=object), ("no", "yes")).tolist()
        [1, -1]
    """
    position = {label: index for index, label in enumerate(classes)}
    return np.fromiter(map(position.get, labels.tolist(), itertools.repeat(-1)), np.int64, len(labels))
