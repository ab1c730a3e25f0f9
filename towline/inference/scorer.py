"""A scorer computes the predictions of canonical rows or frames.

A release with a compiled plan is scored by ``CompiledScorer``, any other release by scikit-learn.
"""

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from towline.data.coded_column import CanonicalColumn, column_values
from towline.data.schema.contract import Contract
from towline.data.schema.rows import Row, RowReader
from towline.errors import DataError
from towline.training.evaluation.predictions import Predictions

if TYPE_CHECKING:
    import pandas as pd

TOLERANCE = 1e-12  # largest difference allowed between two scorers: of a value (relative above 1) or a probability


class RowPredictions(NamedTuple):
    """Predictions of rows as Python objects: values or labels, and the probabilities by class of a classification."""

    predictions: list[Any]
    probabilities: list[list[float]] | None


def slice_predictions(predictions: RowPredictions, start: int, end: int) -> RowPredictions:
    """The predictions of consecutive rows, ``end`` excluded."""
    probabilities = None if predictions.probabilities is None else predictions.probabilities[start:end]
    return RowPredictions(predictions.predictions[start:end], probabilities)


def split_predictions(predictions: RowPredictions, sizes: Iterable[int]) -> list[RowPredictions]:
    """The predictions of consecutive parts, by their numbers of rows."""
    parts, start = [], 0
    for size in sizes:
        parts.append(slice_predictions(predictions, start, start + size))
        start += size
    return parts


def find_nonfinite(predictions: RowPredictions) -> list[int]:
    """The numbers of the rows with a prediction or a probability that is NaN or infinite."""
    probabilities = predictions.probabilities
    values = predictions.predictions if probabilities is None else map(sum, probabilities)
    # value - value is 0 for finite numbers only
    return [row for row, value in enumerate(values) if value.__class__ is float and value - value != 0.0]


class Scorer(Protocol):
    """Scores canonical rows, columns or a canonical frame; keeps their order. Equal values get equal predictions."""

    @property
    def compiled(self) -> bool: ...
    def predict_rows(self, rows: Sequence[Row]) -> RowPredictions: ...
    def predict_frame(self, features: "pd.DataFrame") -> Predictions: ...
    def predict_columns(self, columns: Sequence[CanonicalColumn]) -> Predictions: ...


class SklearnScorer:
    """Scores with the fitted scikit-learn pipeline: for any estimator, about 1,000 times slower for one row."""

    compiled = False

    def __init__(self, estimator: Any, contract: Contract, reader: RowReader) -> None:
        self.estimator, self._contract, self._reader = estimator, contract, reader
        self._names = [column.name for column in contract.canonical_columns]

    def predict_rows(self, rows: Sequence[Row]) -> RowPredictions:
        columns = self._reader.columns(rows)
        for column in columns:
            if column.dtype == object:  # as in Contract.features
                column[[value is None for value in column]] = math.nan
        return to_row_predictions(self.predict_columns(columns))

    def predict_columns(self, columns: Sequence[CanonicalColumn]) -> Predictions:
        import pandas as pd

        series = {
            name: pd.Series(values, dtype=object) if values.dtype == object else values
            for name, values in zip(self._names, map(column_values, columns), strict=True)
        }
        return self.predict_frame(pd.DataFrame(series, index=pd.RangeIndex(len(columns[0]))))

    def predict_frame(self, features: "pd.DataFrame") -> Predictions:
        from towline.training.evaluation.metrics import predict

        try:
            return predict(self.estimator, features, self._contract)
        except ValueError as error:  # scikit-learn rejects the input
            reason = "".join(str(error).strip().splitlines()[:1])
            raise DataError(f"the model cannot score these rows: {reason}", where="rows") from error


def to_row_predictions(predictions: Predictions) -> RowPredictions:
    """Predictions as Python numbers, strings and lists."""
    return RowPredictions(
        predictions.labels.tolist(), None if predictions.probabilities is None else predictions.probabilities.tolist()
    )
