"""Chooses a model by a metric of one's own, and lets a function decide on its promotion."""

import pandas as pd

import towline

CONFIG = {
    "name": "example-stations",
    "data": {"target": "rentals", "time": "datetime", "drop": ["casual", "registered"]},
    "candidates": ["linear", "boosting"],
    "evaluation": {
        "metric": "empty_stations",
        "custom": [{"function": "my_metrics.empty_stations", "higher_is_better": False}],
    },
    "gate": {
        "max": {"mae": 200},
        "custom": [{"function": "my_metrics.largest_error", "params": {"bikes": 5}}],
    },
}


def main() -> None:
    """The first run is rejected: an error of at most 5 bikes is too strict. The second one is promoted."""
    table = pd.read_parquet("data/bike_hourly.parquet").tail(1000)
    for bikes in (5, 1000):
        CONFIG["gate"]["custom"][0]["params"]["bikes"] = bikes  # type: ignore[index]
        outcome = towline.run(CONFIG, data=table)
        check = next(check for check in outcome.verdict.checks if check.name == "custom largest_error")
        print(f"{outcome.event}: {check.outcome}: {check.detail}")
    print("empty_stations:", outcome.metrics["empty_stations"].text())


if __name__ == "__main__":
    main()
