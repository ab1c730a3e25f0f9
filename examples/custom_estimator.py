"""Trains estimators of one's own, a class and a function that returns a pipeline: ``examples/my_models.py``."""

import pandas as pd

import towline

CONFIG = {
    "name": "example-clipped",
    "data": {"target": "rentals", "time": "datetime", "drop": ["casual", "registered"]},
    "candidates": [
        {"estimator": "my_models.ClippedRidge", "params": {"alpha": 10.0}},
        {"estimator": "my_models.nearest_hours", "params": {"hours": 200}},
    ],
}


def main() -> None:
    """Trains both, and predicts with the better one; no prediction is negative."""
    table = pd.read_parquet("data/bike_hourly.parquet").tail(2000)
    outcome = towline.run(CONFIG, data=table)
    print(f"{outcome.model}@{outcome.version} was {outcome.event}: {outcome.reason}")
    print("smallest prediction:", towline.load("example-clipped").predict(table).min())


if __name__ == "__main__":
    main()
