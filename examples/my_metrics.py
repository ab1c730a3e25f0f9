"""Metrics and checks of the gate of one's own, as a module of the project."""

import numpy as np

from towline.promotion.gate import Holdout


def empty_stations(y_true: np.ndarray, y_pred: np.ndarray) -> float:
    """The share of hours in which fewer than 80 % of the rented bikes were predicted: stations run empty."""
    return float(np.mean(y_pred < 0.8 * y_true))


def largest_error(holdout: Holdout, bikes: float = 500.0) -> str | None:
    """Rejects a model that is wrong by more than this number of bikes in some hour."""
    errors = np.abs(holdout.truth - holdout.challenger.labels)
    worst = int(errors.argmax())
    if errors[worst] <= bikes:
        return None
    return f"at {holdout.rows['datetime'].iloc[worst]} the error is {errors[worst]:.0f} bikes, at most {bikes:.0f}"
