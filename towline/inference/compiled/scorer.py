"""The compiled scorer scores canonical rows or columns with a plan."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from towline.data.coded_column import CanonicalColumn
from towline.data.schema.contract import Contract
from towline.data.schema.rows import Row, RowReader
from towline.inference.compiled.plan import Plan
from towline.inference.scorer import RowPredictions, to_row_predictions
from towline.training.evaluation.predictions import Predictions

if TYPE_CHECKING:
    import pandas as pd

MAX_ROWWISE = 32  # up to this many rows, scoring row by row is faster than column by column


class CompiledScorer:
    """Scores with a plan."""

    compiled = True

    def __init__(self, plan: Plan, contract: Contract, reader: RowReader) -> None:
        self.plan, self._classes, self._reader = plan, contract.classes, reader
        self._columns = [column.name for column in contract.canonical_columns]

    def predict_rows(self, rows: Sequence[Row]) -> RowPredictions:
        if len(rows) > MAX_ROWWISE:
            return to_row_predictions(self.predict_columns(self._reader.columns(rows)))
        outputs = self.plan.predict_rows(rows)
        if not self._classes:
            return RowPredictions([value for value, _ in outputs], None)
        return RowPredictions(
            [self._classes[int(position)] for position, _ in outputs],
            [probabilities or [] for _, probabilities in outputs],
        )

    def predict_frame(self, features: "pd.DataFrame") -> Predictions:
        return self.predict_columns([features[name].to_numpy() for name in self._columns])

    def predict_columns(self, columns: Sequence[CanonicalColumn]) -> Predictions:
        values, probabilities = self.plan.predict_columns(columns)
        if not self._classes:
            return Predictions(values)
        labels = np.empty(len(self._classes), dtype=object)
        labels[:] = self._classes
        return Predictions(labels[values], probabilities, values)
