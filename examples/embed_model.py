"""Uses a model inside a program: ``python examples/embed_model.py [MODEL]``."""

import sys

import pandas as pd

import towline


def main(name: str = "bike-demand") -> None:
    """Predicts one row, a list of rows and a table with the champion."""
    model = towline.load(name)
    table = pd.read_parquet("data/bike_hourly.parquet").tail(3)
    rows = table.to_dict("records")
    print(f"{model.name}@{model.version}, compiled: {model.compiled}")
    print("one row:", model.predict(rows[0]))
    print("a list: ", model.predict(rows))
    print("a table:", model.predict(table))


if __name__ == "__main__":
    main(*sys.argv[1:])
