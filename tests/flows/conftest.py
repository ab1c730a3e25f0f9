"""The config for tests of flows, and a client of the Prefect server."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import pytest
import yaml

from tests.support.paths import REPOSITORY
from towline.config import Candidate
from towline.training.model_selection import reference_model

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient


@pytest.fixture(autouse=True)
def small_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference model has few trees, since most runs do not test it."""
    params = {"max_iter": 10, "early_stopping": False}
    monkeypatch.setattr(reference_model, "REFERENCE", Candidate(estimator="boosting", params=params))


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Two months of bike rentals and quick candidates."""
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
        "candidates": [
            "linear",
            {"estimator": "boosting", "params": {"max_iter": 20, "early_stopping": False, "max_leaf_nodes": 31}},
        ],
        "cross_validation": {"folds": 3},
    }
    path = tmp_path / "bikes.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


@pytest.fixture
def client(prefect: str) -> "Iterator[SyncPrefectClient]":
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        yield client
