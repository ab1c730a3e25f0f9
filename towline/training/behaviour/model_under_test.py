"""The model under test, called as a function of rows."""

from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from towline.data.schema.columns import convert_numbers
from towline.data.schema.contract import Column, Contract
from towline.training.evaluation.metrics import predict
from towline.training.evaluation.predictions import Predictions, encode_labels


class ModelUnderTest(NamedTuple):
    """A fitted model, and the rows that the tests change.

    Attributes:
        model: a fitted pipeline.
        contract: reads the rows.
        rows: raw rows of the holdout, a sample.
        train: raw rows of the train part: values that occur, typical values and ranges.
    """

    model: Any
    contract: Contract
    rows: pd.DataFrame
    train: pd.DataFrame

    def predict(self, rows: pd.DataFrame) -> Predictions:
        """The predictions for raw rows.

        Raises:
            DataError: the rows do not fit the contract.
        """
        return predict(self.model, self.contract.features(rows), self.contract)

    def responses(self, rows: pd.DataFrame) -> np.ndarray:
        """(n, k) numbers: the predicted value; of a classification the probabilities, or 0 and 1 without them."""
        predictions, classes = self.predict(rows), self.contract.classes
        if not classes:
            return predictions.labels.reshape(-1, 1)
        if predictions.probabilities is not None:
            return predictions.probabilities
        return np.asarray(np.eye(len(classes))[encode_labels(predictions.labels, classes)])

    def column(self, name: str) -> Column | None:
        """An input column by its name; None if the model does not read it."""
        return next((column for column in self.contract.input_columns if column.name == name), None)

    def numbers(self, column: Column, rows: pd.DataFrame) -> np.ndarray:
        """(n,) the values of a numeric column as float64, NaN for null."""
        return convert_numbers(rows[column.name], column.format)

    def with_values(self, column: str, values: Any) -> pd.DataFrame:
        """The rows with other values (n,), or one value, in a column."""
        changed = self.rows.drop(columns=column)
        changed[column] = pd.Series(values, index=changed.index) if isinstance(values, np.ndarray) else values
        return changed

    def typical_row(self) -> dict[str, Any]:
        """The median of each number, the newest time, and else the most frequent value of the train part."""
        row: dict[str, Any] = {}
        for column in self.contract.input_columns:
            values = self.train[column.name].dropna()
            if values.empty:
                row[column.name] = None
            elif column.kind == "numeric":
                middle = float(np.nanmedian(self.numbers(column, self.train)))
                row[column.name] = round(middle) if column.integer else middle
            elif column.kind == "datetime":
                row[column.name] = values.max()
            else:
                row[column.name] = values.mode().iloc[0]
        return row


def largest_changes(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """(n,) the largest change of a number in each of the (n, k) responses; NaN if one is not finite."""
    return np.asarray(np.abs(after - before).max(axis=1))
