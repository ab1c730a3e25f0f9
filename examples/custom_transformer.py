"""Trains with a transformer of one's own, ``my_features.RushHour``: ``python examples/custom_transformer.py``."""

import pandas as pd

import towline

CONFIG = {
    "name": "example-rush-hour",
    "data": {"target": "rentals", "time": "datetime", "drop": ["casual", "registered"]},
    "prepare": {"transformer": "my_features.RushHour", "params": {"hours": 5}},
    "candidates": ["linear"],
}


def main() -> None:
    """Trains with it; the release applies it to the rows of a request."""
    table = pd.read_parquet("data/bike_hourly.parquet").tail(2000)
    outcome = towline.run(CONFIG, data=table)
    print(f"{outcome.model}@{outcome.version} was {outcome.event}: {outcome.reason}")
    row = table[table["datetime"].dt.hour == 17].tail(1)
    print(f"rush hour: {towline.load('example-rush-hour').predict(row)[0]:.0f} bikes")


if __name__ == "__main__":
    main()
