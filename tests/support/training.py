"""Small tables for the training steps."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from towline.config import PipelineConfig
from towline.data.schema.inference import infer_contract
from towline.data.source.sources import load_dataset
from towline.data.splits import split_table
from towline.data.workspace import Workspace
from towline.training.final_fit import FittedModel
from towline.training.model_selection.cross_validation import CrossValidationResult


class TrainedModel(NamedTuple):
    work: Workspace
    config: PipelineConfig
    scores: tuple[CrossValidationResult, ...]
    fitted: FittedModel


def prepare_workspace(tmp_path: Path, table: pd.DataFrame | Path, **config: Any) -> tuple[Workspace, PipelineConfig]:
    if isinstance(table, pd.DataFrame):
        table.to_parquet(tmp_path / "table.parquet")
    source = str(tmp_path / "table.parquet" if isinstance(table, pd.DataFrame) else table)
    data = {"source": source, "target": "y", **config.pop("data", {})}
    pipeline = PipelineConfig.model_validate({"name": "t", "data": data, "cross_validation": {"folds": 3}, **config})
    dataset = load_dataset(pipeline.data, tmp_path, tmp_path / "store", None)
    work = Workspace(store=tmp_path / "store", key="0" * 16, token="t", dataset=dataset)
    work.path.mkdir(parents=True, exist_ok=True)
    work.save("contract.json", infer_contract(work.table(), pipeline))
    split_table(work, pipeline)
    return work, pipeline


def make_mixed_table(target: str, rows: int = 900) -> pd.DataFrame:
    """A linear effect, which a linear model learns, and an interaction, which trees learn."""
    rng = np.random.default_rng(4)
    a, b, c, d = rng.normal(size=(4, rows))
    value = 2 * (a + b + c) + 2.5 * ((c > 0) == (d > 0)) + rng.normal(0, 0.7, rows)
    targets = {
        "value": value,
        "sold": np.where(value > 2, "yes", "no"),
        "grade": pd.cut(value, [-np.inf, 0, 3, np.inf], labels=["low", "middle", "high"]).astype(str),
    }
    town = rng.choice(["x", "y", "z"], rows)
    return pd.DataFrame({"a": a, "b": b, "c": c, "d": d, "town": town, "y": targets[target]})
