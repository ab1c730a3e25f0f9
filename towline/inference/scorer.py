"""What answers: the compiled plan where the release holds one, else scikit-learn itself."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from towline.data.schema.contract import Contract
from towline.data.schema.rows import Row, RowReader
from towline.errors import DataError
from towline.inference.compiled.plan import Plan
from towline.training.evaluation.predictions import Predictions

if TYPE_CHECKING:
    import pandas as pd

TOLERANCE = 1e-12  # of a value, relative where it is beyond 1, and of a probability
FEW = 32  # rows up to which row by row is faster than column by column


class Answer(NamedTuple):
    """What a model says of some rows: values or labels, and for a classification the probabilities by class."""

    predictions: list[Any]
    probabilities: list[list[float]] | None


class Scorer(Protocol):
    """Canonical rows or a canonical frame in, answers in their order out; the same for the same values."""

    @property
    def compiled(self) -> bool: ...
    def rows(self, rows: Sequence[Row]) -> Answer: ...
    def frame(self, features: "pd.DataFrame") -> Predictions: ...


class Compiled:
    """Answers from the plan."""

    compiled = True

    def __init__(self, plan: Plan, contract: Contract, reader: RowReader) -> None:
        self.plan, self._classes, self._reader = plan, contract.classes, reader
        self._columns = [column.name for column in contract.feature_columns]

    def rows(self, rows: Sequence[Row]) -> Answer:
        if len(rows) > FEW:
            return listed(self._columnwise(self._reader.columns(rows)))
        found = self.plan.few(rows)
        if not self._classes:
            return Answer([value for value, _ in found], None)
        return Answer([self._classes[int(at)] for at, _ in found], [shares or [] for _, shares in found])

    def frame(self, features: "pd.DataFrame") -> Predictions:
        return self._columnwise([features[name].to_numpy() for name in self._columns])

    def _columnwise(self, columns: Sequence[np.ndarray]) -> Predictions:
        found, probabilities = self.plan.many(columns)
        if not self._classes:
            return Predictions(found)
        labels = np.empty(len(self._classes), dtype=object)
        labels[:] = self._classes
        return Predictions(labels[found], probabilities)


class Sklearn:
    """Answers from the fitted pipeline: any estimator, some thousand times slower for one row."""

    compiled = False

    def __init__(self, estimator: Any, contract: Contract, reader: RowReader) -> None:
        self.estimator, self._contract, self._reader = estimator, contract, reader

    def rows(self, rows: Sequence[Row]) -> Answer:
        import pandas as pd

        columns = self._reader.columns(rows)
        for column in columns:
            if column.dtype == object:  # as Contract.features has it
                column[[value is None for value in column]] = math.nan
        series = {
            name: pd.Series(values, dtype=object) if values.dtype == object else values
            for name, values in zip(self._reader.fields, columns, strict=True)
        }
        return listed(self.frame(pd.DataFrame(series, index=pd.RangeIndex(len(rows)))))

    def frame(self, features: "pd.DataFrame") -> Predictions:
        from towline.training.evaluation.metrics import predict

        try:
            return predict(self.estimator, features, self._contract)
        except ValueError as error:  # scikit-learn's own checks of its input
            told = str(error).strip().splitlines()[:1]
            raise DataError(f"the model cannot answer these rows: {''.join(told)}", where="rows") from error


def listed(found: Predictions) -> Answer:
    """Answers as Python's own numbers, texts and lists."""
    return Answer(found.labels.tolist(), None if found.probabilities is None else found.probabilities.tolist())
