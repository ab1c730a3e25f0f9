"""Checks a table against rules, and shows what happens to one that breaks them."""

import pandas as pd

import towline

CONFIG = {
    "name": "example-rules",
    "data": {"target": "rentals", "time": "datetime", "drop": ["casual", "registered"]},
    "validation": {
        "columns": {"humidity": {"min": 0, "max": 100}},
        "expectations": [
            {
                "type": "expect_column_mean_to_be_between",
                "kwargs": {"column": "temp_c", "min_value": -5, "max_value": 35},
            }
        ],
    },
}


def main() -> None:
    """Validates a good table, then one with temperatures in Fahrenheit."""
    table = pd.read_parquet("data/bike_hourly.parquet").tail(1000)
    result = towline.validate(CONFIG, data=table)
    print(f"{len(result.validation.rules)} rules, {result.validation.failed} failed")
    table["temp_c"] = table["temp_c"] * 9 / 5 + 32
    try:
        towline.validate(CONFIG, data=table)
    except towline.UserError as error:
        print(error)


if __name__ == "__main__":
    main()
