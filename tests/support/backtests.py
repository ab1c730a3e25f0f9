"""A table with concept drift, and a config for it."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from towline.config import PipelineConfig, build_config


def make_turning_table() -> pd.DataFrame:
    """A row for each hour of 160 days. From day 100 on, the effect of ``a`` is reversed; the inputs do not change."""
    rng = np.random.default_rng(11)
    times = pd.date_range("2026-01-01", periods=24 * 160, freq="h")
    a, b = rng.normal(size=len(times)), rng.normal(size=len(times))
    slope = np.where(np.arange(len(times)) < 24 * 100, 5.0, -5.0)
    return pd.DataFrame({"at": times, "a": a, "b": b, "y": 20 + slope * a + b + rng.normal(0, 0.5, len(times))})


def make_config(folder: Path, frame: pd.DataFrame | None = None, **sections: Any) -> PipelineConfig:
    (make_turning_table() if frame is None else frame).to_parquet(folder / "t.parquet")
    raw = {
        "name": "turning",
        "data": {"source": "t.parquet", "target": "y", "time": "at", "window": ["9d", "all"]},
        "split": {"holdout": "5d"},
        "candidates": ["linear"],
        "cross_validation": {"folds": 2},
        "evaluation": {"resamples": 50},
        "retrain": {"bad_windows": 1, "recent_windows": 1, "min_rows": 40},
        **sections,
    }
    return build_config(raw, "test")
