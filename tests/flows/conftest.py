"""The config that flows are tested with."""

from pathlib import Path

import pandas as pd
import pytest
import yaml

from tests.support.paths import REPOSITORY


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Two months of bike rentals and a quick set of candidates."""
    table = pd.read_parquet(REPOSITORY / "data" / "bike_hourly.parquet").head(1400)
    table.to_csv(tmp_path / "bikes.csv", index=False)
    raw = {
        "name": "bikes",
        "data": {
            "source": str(tmp_path / "bikes.csv"),
            "target": "rentals",
            "time": "datetime",
            "drop": ["casual", "registered"],
        },
        "candidates": ["linear", {"estimator": "boosting", "params": {"max_iter": 20}}],
        "cross_validation": {"folds": 3},
    }
    path = tmp_path / "bikes.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path
