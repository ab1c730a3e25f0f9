"""Writes predictions for a CSV file: ``python examples/score_file.py IN.csv OUT.csv [MODEL]``."""

import sys

import towline


def main(source: str, output: str, model: str | None = None) -> None:
    """Scores a file with a model of the store; None: the only one."""
    scored = towline.score(source, output, model=model, prefix="scored_")
    print(f"{scored.rows} rows scored by {scored.model}@{scored.version}, added: {', '.join(scored.columns)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
