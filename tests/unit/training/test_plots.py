"""Plots can be drawn for any names and for small tables; undefined plots are left out."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from towline.data.validation.suite import Validation
from towline.training.evaluation.holdout import evaluate
from towline.training.evaluation.metrics import EncodedPredictions
from towline.training.plots import draw_plots, plot_confusion_matrix
from towline.training.result import TrainingResult

DATA = Path(__file__).parents[3] / "data"
COMMON = ["fold_scores.png", "importance.png", "slices.png"]
CLASSES = ["confusion_matrix.png", "roc.png", "precision_recall.png", "calibration.png"]


def _drawn(trained: Any) -> tuple[tuple[str, ...], Path]:
    work, config, scores, fitted = trained
    validation = Validation(rules=(), notes=(), failed=0, warned=0)
    evaluation = evaluate(work, config, fitted)
    result = TrainingResult(candidates=scores, model=fitted, evaluation=evaluation, validation=validation)
    names = draw_plots(work, config, result)
    for name in names:
        with Image.open(work.file(f"plots/{name}")) as image:
            image.load()
            assert image.info["dpi"] == pytest.approx((150, 150), abs=1)
            assert 300 < image.width < 1500
            assert 200 < image.height < 2000
            assert np.asarray(image.convert("L")).std() > 5
    return names, work.file("plots")


def test_plots_of_a_regression_by_time(train: Callable[..., Any]) -> None:
    """All plots of the bike table, the same bytes when they are drawn again, and no changed setting."""
    data = {"time": "datetime", "drop": ["casual", "registered"], "window": "200d", "detrend": "7d"}
    before = dict(mpl.rcParams)
    trained = train(DATA / "bike_hourly.parquet", "rentals", data=data)
    names, folder = _drawn(trained)
    assert list(names) == [*COMMON, "predicted_vs_actual.png", "residuals.png", "over_time.png", "trend.png"]
    first = {name: (folder / name).read_bytes() for name in names}
    assert {name: (folder / name).read_bytes() for name in _drawn(trained)[0]} == first
    assert dict(mpl.rcParams) == before


@pytest.mark.parametrize("k", [2, pytest.param(5, marks=pytest.mark.slow), 30])
def test_plots_of_classes(train: Callable[..., Any], k: int) -> None:
    """Two, several and many classes, with long names, mathematical symbols and other scripts."""
    rng = np.random.default_rng(0)
    labels = ["$\\alpha_", "ж" * 70, "类别", "a\nb", *(f"class {at}" for at in range(26))][:k]
    n = 600 + 60 * k
    at = rng.integers(0, k, n)
    frame = pd.DataFrame(
        {
            "x" * 90: at + rng.normal(size=n),
            "$y^": at % 3 + rng.normal(size=n),
            "größe <b>&\t'\"": rng.choice(["$a", "{b}", "%s"], n),
            "y": [labels[place] for place in at],
        }
    )
    assert list(_drawn(train(frame))[0]) == COMMON + CLASSES


@pytest.mark.filterwarnings("error")
def test_undefined_plots_are_left_out(train: Callable[..., Any]) -> None:
    """A table of 24 rows without slices, and a model without probabilities, give fewer plots and no warning."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"x": rng.normal(size=24), "y": 0.0})
    frame["y"] = frame["x"] * 1e-9
    assert set(_drawn(train(frame, task="regression"))[0]) >= {"fold_scores.png", "residuals.png"}
    frame["y"] = np.where(frame["x"] > 0, "up", "down")
    names, _ = _drawn(train(frame, candidate="sklearn.linear_model.RidgeClassifier", evaluation={"metric": "f1"}))
    assert "confusion_matrix.png" in names
    assert not set(names) & {"roc.png", "calibration.png"}


def test_rare_classes_are_merged() -> None:
    """With more than 20 classes a confusion matrix has the most frequent ones and one row for all others."""
    truth = np.repeat(np.arange(40), np.arange(40, 0, -1))
    figure = plot_confusion_matrix(EncodedPredictions("multiclass", truth, truth, None), [f"c{at}" for at in range(40)])
    ticks = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert len(ticks) == 20
    assert ticks[0] == "c0"
    assert ticks[-1] == "21 others"
