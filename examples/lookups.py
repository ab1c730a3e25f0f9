"""Columns of a second table that are joined to the rows: ``python examples/lookups.py``."""

import tempfile
from pathlib import Path

import pandas as pd

import towline

WEATHER = ["temp_c", "feels_like_c", "humidity", "windspeed_kmh"]


def main() -> None:
    """Trains a model with the latest weather report before each hour, and predicts for a row that holds no weather."""
    hours = pd.read_parquet("data/bike_hourly.parquet").tail(2000).assign(city="Washington")
    reports = hours[["datetime", "city", *WEATHER]].rename(columns={"datetime": "reported"})
    rows = hours.drop(columns=["casual", "registered", *WEATHER])
    with tempfile.TemporaryDirectory() as folder:
        reports.iloc[::3].to_parquet(Path(folder, "weather.parquet"))  # a report every three hours
        weather = {
            "table": str(Path(folder, "weather.parquet")),
            "key": "city",
            "columns": WEATHER,
            "time": "reported",
        }
        config = {
            "name": "example-lookups",
            "data": {"target": "rentals", "time": "datetime"},
            "lookups": {"weather": weather},
            "features": {"feels_warmer": "feels_like_c - temp_c"},
            "candidates": [{"estimator": "linear"}],
            "gate": {"max": {"mae": 200.0}},
        }
        outcome = towline.run(config, data=rows)
    print(f"{outcome.model}@{outcome.version} was {outcome.event}")
    model = towline.load("example-lookups")  # the release holds the reports
    row = rows.drop(columns="rentals").iloc[-1].to_dict()
    print(f"{', '.join(row)}: {model.predict(row)[0]:.1f}")


if __name__ == "__main__":
    main()
