from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from threadpoolctl import threadpool_limits

from tests.support.training import TrainedModel
from towline.config import PipelineConfig
from towline.data.schema.inference import infer_contract
from towline.data.source.sources import load_dataset
from towline.data.splits import split_table
from towline.data.workspace import Workspace
from towline.training.final_fit import fit
from towline.training.history import choose_history
from towline.training.model_selection.cross_validation import baseline_candidate, choose_candidate, cross_validate


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Threads of OpenMP wait for each other, for minutes if other processes use the processors."""
    with threadpool_limits(1, user_api="openmp"):
        yield


@pytest.fixture
def train(tmp_path: Path) -> Callable[..., TrainedModel]:
    """Reads a table (frame or path), and fits and selects a model in a workspace."""

    def trained(
        table: pd.DataFrame | Path, target: str = "y", candidate: Any = "linear", **config: Any
    ) -> TrainedModel:
        source = table if isinstance(table, Path) else tmp_path / "table.parquet"
        if isinstance(table, pd.DataFrame):
            table.to_parquet(source)
        data = {"source": str(source), "target": target, **config.pop("data", {})}
        folds = {"cross_validation": {"folds": 2}, "candidates": [candidate]}
        made = PipelineConfig.model_validate({"name": "t", "data": data, **folds, **config})
        store = tmp_path / "store"
        dataset = load_dataset(made.data, tmp_path, store, None)
        work = Workspace(store=store, key="0" * 16, token="t", dataset=dataset)
        work.path.mkdir(parents=True, exist_ok=True)
        work.save("contract.json", infer_contract(work.table(), made))
        split_table(work, made)
        scores = tuple(cross_validate(work, made, choice) for choice in (baseline_candidate(made), *made.candidates))
        chosen = choose_candidate(scores, made, work.contract().task)
        return TrainedModel(work, made, scores, fit(work, made, chosen, choose_history(work, made, chosen)))

    return trained
