"""A transformer of one's own, as a module of the project."""

from typing import Any

import pandas as pd
from sklearn.base import BaseEstimator, TransformerMixin


class RushHour(TransformerMixin, BaseEstimator):
    """Adds whether an hour is a rush hour: one of those with the most rentals in the training rows.

    Args:
        hours: number of rush hours of a day.
    """

    def __init__(self, hours: int = 4) -> None:
        self.hours = hours

    def fit(self, X: pd.DataFrame, y: Any) -> "RushHour":
        means = pd.Series(y).groupby(X["datetime"].dt.hour.to_numpy()).mean()
        self.rush_hours_ = [int(hour) for hour in means.nlargest(self.hours).index]
        return self

    def transform(self, X: pd.DataFrame) -> pd.DataFrame:
        return X.assign(rush_hour=X["datetime"].dt.hour.isin(self.rush_hours_).astype(float))
