"""The comparison of the selected candidate with the reference model, boosting."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.support.training import prepare_workspace
from towline.config import PipelineConfig
from towline.data.workspace import Workspace
from towline.training.model_selection import reference_model
from towline.training.model_selection.cross_validation import (
    CrossValidationResult,
    baseline_candidate,
    choose_candidate,
    cross_validate,
)
from towline.training.model_selection.reference_model import compare_with_reference, is_comparison_needed

Scores = tuple[CrossValidationResult, ...]


def _score(tmp_path: Path, *candidates: Any, linear: bool = False) -> tuple[Workspace, PipelineConfig, Scores]:
    """A table whose class is the sign of a product (or of a sum), with the scores of the candidates."""
    rng = np.random.default_rng(0)
    table = pd.DataFrame(rng.normal(size=(800, 3)), columns=["a", "b", "c"])
    table["y"] = np.where((table.a + table.b if linear else table.a * table.b) > 0, "yes", "no")
    work, config = prepare_workspace(tmp_path, table, candidates=list(candidates))
    return (
        work,
        config,
        tuple(cross_validate(work, config, each) for each in (baseline_candidate(config), *config.candidates)),
    )


def test_a_candidate_that_is_far_below_boosting_gets_advice(tmp_path: Path) -> None:
    """A linear model cannot learn the sign of a product."""
    work, config, scores = _score(tmp_path, "linear")
    comparison = compare_with_reference(work, config, scores, choose_candidate(scores, config, "binary"))
    assert comparison.far_below
    assert comparison.value == pytest.approx(scores[1].mean[comparison.metric])
    assert comparison.reference is not None
    assert comparison.reference > 0.9
    assert comparison.advice.startswith(
        f"linear is far below default boosting: {comparison.metric} on 3 folds: linear 0."
    )
    assert comparison.advice.endswith("add boosting to candidates")


def test_a_candidate_as_good_as_boosting_gets_no_advice(tmp_path: Path) -> None:
    """A linear model learns the sign of a sum."""
    work, config, scores = _score(tmp_path, "linear", linear=True)
    comparison = compare_with_reference(work, config, scores, choose_candidate(scores, config, "binary"))
    assert not comparison.far_below
    assert comparison.advice == ""
    assert "far below" not in str(comparison)


def test_a_reference_that_cannot_be_fitted_is_not_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run continues, and the log line of the step has the reason."""

    def fail(*_: object) -> list[float]:
        raise MemoryError("no memory for the histograms")

    work, config, scores = _score(tmp_path, "linear")
    monkeypatch.setattr(reference_model, "score_on_last_folds", fail)
    comparison = compare_with_reference(work, config, scores, choose_candidate(scores, config, "binary"))
    assert str(comparison) == "not measured: MemoryError: no memory for the histograms"
    assert comparison.advice == ""


@pytest.mark.parametrize(
    ("candidate", "needed"),
    [
        ("boosting", False),
        ({"estimator": "boosting", "name": "trees", "search": {"trials": 3}}, False),
        ({"estimator": "boosting", "params": {"learning_rate": 1e-6}}, True),
        ({"estimator": "boosting", "weights": "balanced"}, True),
        ({"estimator": "sklearn.svm.SVC"}, True),
        ("forest", True),
    ],
)
def test_the_comparison_is_left_out_if_boosting_is_a_candidate(candidate: Any, needed: bool) -> None:
    """Only boosting with its defaults is the reference; a search for boosting starts with the defaults."""
    data = {"source": "table.csv", "target": "y"}
    config = PipelineConfig.model_validate({"name": "t", "data": data, "candidates": ["linear", candidate]})

    def result(name: str, failed: str = "") -> CrossValidationResult:
        empty: dict[str, Any] = {"params": {}, "folds": (), "mean": {}, "sd": {}, "threshold": None}
        return CrossValidationResult(candidate=name, estimator=name, seconds=0, cpu_seconds=0, failed=failed, **empty)

    name = config.candidates[1].name
    assert is_comparison_needed((result("linear"), result(name)), config) is needed
    assert is_comparison_needed((result("linear"), result(name, "left out (budget)")), config)
