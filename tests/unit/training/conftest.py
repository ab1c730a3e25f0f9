from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pytest

from towline.config import PipelineConfig
from towline.data.schema.inference import infer
from towline.data.sources import load
from towline.data.splits import split
from towline.data.workspace import Workspace
from towline.training.cross_validation import Scores, baseline, choose, cross_validate
from towline.training.final_fit import Fitted, fit
from towline.training.history import choose_history


class Trained(NamedTuple):
    work: Workspace
    config: PipelineConfig
    scores: tuple[Scores, ...]
    fitted: Fitted


@pytest.fixture
def train(tmp_path: Path) -> Callable[..., Trained]:
    """Takes a table (frame or path) to a fitted model in a workspace."""

    def trained(table: pd.DataFrame | Path, target: str = "y", candidate: Any = "linear", **config: Any) -> Trained:
        source = table if isinstance(table, Path) else tmp_path / "table.parquet"
        if isinstance(table, pd.DataFrame):
            table.to_parquet(source)
        data = {"source": str(source), "target": target, **config.pop("data", {})}
        folds = {"cross_validation": {"folds": 2}, "candidates": [candidate]}
        made = PipelineConfig.model_validate({"name": "t", "data": data, **folds, **config})
        store = tmp_path / "store"
        dataset = load(made.data, tmp_path, store, None)
        work = Workspace(store=store, key="0" * 16, token="t", dataset=dataset)
        work.path.mkdir(parents=True, exist_ok=True)
        work.save("contract.json", infer(work.table(), made))
        split(work, made)
        scores = tuple(cross_validate(work, made, one) for one in (baseline(made), *made.candidates))
        chosen = choose(scores, made, work.contract().task)
        return Trained(work, made, scores, fit(work, made, chosen, choose_history(work, made, chosen)))

    return trained
