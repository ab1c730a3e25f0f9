"""The one transformer scikit-learn does not have."""

from collections.abc import Sequence
from typing import Self

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator, TransformerMixin


class CalendarParts(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Datetime columns → their calendar parts, as float64; NaN where the time is null.

    Args:
        parts: for each column, in order: which of month (1–12), weekday (Monday is 0), day (1–31) and hour (0–23).
    """

    def __init__(self, parts: tuple[tuple[str, ...], ...]) -> None:
        self.parts = parts

    def fit(self, times: pd.DataFrame, y: object = None) -> Self:  # noqa: ARG002 - scikit-learn passes it
        self.n_features_in_ = times.shape[1]
        return self

    def transform(self, times: pd.DataFrame) -> np.ndarray:
        columns = [
            getattr(times.iloc[:, position].dt, part).to_numpy(dtype=np.float64)
            for position, names in enumerate(self.parts)
            for part in names
        ]
        return np.column_stack(columns)

    def get_feature_names_out(self, input_features: Sequence[str]) -> np.ndarray:
        names = [f"{column}_{part}" for column, parts in zip(input_features, self.parts, strict=True) for part in parts]
        return np.array(names, dtype=object)
