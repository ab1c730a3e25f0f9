"""The examples in docstrings give the results that they show."""

import doctest
import importlib

import pytest

MODULES = (
    "towline.data.schema.detection.notation",
    "towline.data.schema.detection.task",
    "towline.data.schema.detection.time_column",
    "towline.data.schema.pseudonyms",
    "towline.data.schema.values",
    "towline.promotion.gate",
    "towline.rollout.analysis",
    "towline.rollout.confidence_sequences",
    "towline.rollout.loss_series",
    "towline.store",
    "towline.training.model_selection.fold_scores",
    "towline.training.evaluation.metrics",
    "towline.training.evaluation.predictions",
)


@pytest.mark.parametrize("name", MODULES)
def test_examples_of_a_module(name: str) -> None:
    results = doctest.testmod(importlib.import_module(name))
    assert results.attempted > 0
    assert results.failed == 0
