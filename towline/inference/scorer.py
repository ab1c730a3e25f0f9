"""What answers: the compiled plan where the release holds one, else scikit-learn itself."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from towline.data.schema.contract import Contract
from towline.data.schema.rows import Reader, Row
from towline.errors import DataError
from towline.inference.compiled.plan import Plan
from towline.training.evaluation.predictions import Predictions

if TYPE_CHECKING:
    import pandas as pd

TOLERANCE = 1e-12  # of a value, relative where it is beyond 1, and of a probability
MAX_ROWWISE = 32  # rows up to which row by row is faster than column by column


class RowPredictions(NamedTuple):
    """What a model says of some rows: values or labels, and for a classification the probabilities by class."""

    predictions: list[Any]
    probabilities: list[list[float]] | None


class Scorer(Protocol):
    """Canonical rows or a canonical frame in, answers in their order out; the same for the same values."""

    @property
    def compiled(self) -> bool: ...
    def predict_rows(self, rows: Sequence[Row]) -> RowPredictions: ...
    def predict_frame(self, features: "pd.DataFrame") -> Predictions: ...


class CompiledScorer:
    """Answers from the plan."""

    compiled = True

    def __init__(self, plan: Plan, contract: Contract, reader: Reader) -> None:
        self.plan, self._classes, self._reader = plan, contract.classes, reader
        self._columns = [column.name for column in contract.feature_columns]

    def predict_rows(self, rows: Sequence[Row]) -> RowPredictions:
        if len(rows) > MAX_ROWWISE:
            return to_row_predictions(self._columnwise(self._reader.columns(rows)))
        found = self.plan.predict_rows(rows)
        if not self._classes:
            return RowPredictions([value for value, _ in found], None)
        return RowPredictions([self._classes[int(at)] for at, _ in found], [shares or [] for _, shares in found])

    def predict_frame(self, features: "pd.DataFrame") -> Predictions:
        return self._columnwise([features[name].to_numpy() for name in self._columns])

    def _columnwise(self, columns: Sequence[np.ndarray]) -> Predictions:
        found, probabilities = self.plan.predict_columns(columns)
        if not self._classes:
            return Predictions(found)
        labels = np.empty(len(self._classes), dtype=object)
        labels[:] = self._classes
        return Predictions(labels[found], probabilities)


class SklearnScorer:
    """Answers from the fitted pipeline: any estimator, some thousand times slower for one row."""

    compiled = False

    def __init__(self, estimator: Any, contract: Contract, reader: Reader) -> None:
        self.estimator, self._contract, self._reader = estimator, contract, reader

    def predict_rows(self, rows: Sequence[Row]) -> RowPredictions:
        import pandas as pd

        columns = self._reader.columns(rows)
        for column in columns:
            if column.dtype == object:  # as Contract.features has it
                column[[value is None for value in column]] = math.nan
        series = {
            name: pd.Series(values, dtype=object) if values.dtype == object else values
            for name, values in zip(self._reader.fields, columns, strict=True)
        }
        return to_row_predictions(self.predict_frame(pd.DataFrame(series, index=pd.RangeIndex(len(rows)))))

    def predict_frame(self, features: "pd.DataFrame") -> Predictions:
        from towline.training.evaluation.metrics import predict

        try:
            return predict(self.estimator, features, self._contract)
        except ValueError as error:  # scikit-learn's own checks of its input
            told = str(error).strip().splitlines()[:1]
            raise DataError(f"the model cannot answer these rows: {''.join(told)}", where="rows") from error


def to_row_predictions(found: Predictions) -> RowPredictions:
    """Answers as Python's own numbers, texts and lists."""
    return RowPredictions(found.labels.tolist(), None if found.probabilities is None else found.probabilities.tolist())
