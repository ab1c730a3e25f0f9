"""Features that are computed from the columns of a row: ``python examples/features.py``."""

import pandas as pd

import towline

CONFIG = {
    "name": "example-features",
    "data": {"target": "rentals", "time": "datetime", "drop": ["casual", "registered"]},
    "features": {
        "feels_warmer": "feels_like_c - temp_c",
        "rush_hour": "workingday = 1 and (hour between 7 and 9 or hour between 16 and 19)",
        "comfort": "case when temp_c between 15 and 28 and humidity < 75 then 'good' else 'poor' end",
        "quarter_of_day": "bucket(hour, 6, 12, 18)",
    },
    "candidates": [{"estimator": "linear"}],
    "gate": {"max": {"mae": 200.0}},
}


def main() -> None:
    """Trains a model, shows its features, and predicts for a row that holds none of them."""
    table = pd.read_parquet("data/bike_hourly.parquet").tail(2000)
    outcome = towline.run(CONFIG, data=table)
    print(f"{outcome.model}@{outcome.version} was {outcome.event}")
    model = towline.load("example-features")
    for column in model.contract.derived_features:
        print(f"{column.name:15} {column.kind:9} {column.expression}")
    row = table.drop(columns=["rentals", "casual", "registered"]).iloc[-1].to_dict()
    print(f"prediction: {model.predict(row)[0]:.1f}")


if __name__ == "__main__":
    main()
