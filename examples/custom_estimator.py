"""Trains an estimator of one's own, ``my_models.ClippedRidge``: ``python examples/custom_estimator.py``."""

import pandas as pd

import towline

CONFIG = {
    "name": "example-clipped",
    "data": {"target": "rentals", "time": "datetime", "drop": ["casual", "registered"]},
    "candidates": [{"estimator": "my_models.ClippedRidge", "params": {"alpha": 10.0}}],
}


def main() -> None:
    """Trains it, and predicts with the champion; no prediction is negative."""
    table = pd.read_parquet("data/bike_hourly.parquet").tail(2000)
    outcome = towline.run(CONFIG, data=table)
    print(f"{outcome.model}@{outcome.version} was {outcome.event}: {outcome.reason}")
    print("smallest prediction:", towline.load("example-clipped").predict(table).min())


if __name__ == "__main__":
    main()
