"""Trains a model on a table in memory: ``python examples/train.py``."""

import pandas as pd

import towline

CONFIG = {
    "name": "example-bikes",
    "data": {"target": "rentals", "time": "datetime", "drop": ["casual", "registered"]},
    "candidates": [{"estimator": "linear"}, {"estimator": "boosting"}],
    "gate": {"max": {"mae": 150.0}},
}


def main() -> None:
    """Trains on six weeks and prints the metrics with their intervals."""
    table = pd.read_parquet("data/bike_hourly.parquet").tail(1000)
    outcome = towline.run(CONFIG, data=table)
    print(f"{outcome.model}@{outcome.version} was {outcome.event}: {outcome.reason}")
    for name, metric in outcome.metrics.items():
        print(f"{name:6} {metric.text()}")


if __name__ == "__main__":
    main()
