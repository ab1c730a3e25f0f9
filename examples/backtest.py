"""Compares retraining policies on half a year of history: ``python examples/backtest.py``."""

from datetime import datetime

import towline

CONFIG = {
    "name": "example-backtest",
    "data": {
        "source": "data/bike_hourly.parquet",
        "target": "rentals",
        "time": "datetime",
        "drop": ["casual", "registered"],
        "window": "120d",
    },
    "candidates": [{"estimator": "linear"}],
}


def main() -> None:
    """Prints the metric and the number of trainings of each policy."""
    result = towline.backtest(
        CONFIG,
        datetime(2012, 4, 1),  # noqa: DTZ001 - times of the table have no zone
        datetime(2012, 7, 1),  # noqa: DTZ001
        policies=("never", "schedule", "quality"),
    )
    for policy in result.policies:
        print(f"{policy.policy:10} {result.metric} {policy.value:.1f}, {policy.retrainings} trainings")
    print("best:", result.best)


if __name__ == "__main__":
    main()
