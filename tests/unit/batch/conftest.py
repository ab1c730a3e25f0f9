"""A small compiled model, and the shards that are scored."""

from typing import Any

import pytest

from tests.support.batch import train_customer_model
from towline.batch import shard_scoring
from towline.inference.predictor import Model


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return train_customer_model(tmp_path_factory.mktemp("customers"))


@pytest.fixture
def scored_shards(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of the shards that are scored."""
    numbers: list[int] = []
    real = shard_scoring._score

    def score_and_note(shard: Any, *arguments: Any) -> Any:
        result = real(shard, *arguments)
        numbers.append(shard.number)
        return result

    monkeypatch.setattr(shard_scoring, "_score", score_and_note)
    return numbers
