"""Detrending: old targets are adjusted to the newest trend."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.support.training import prepare_workspace
from towline.errors import ConfigError
from towline.training import model_io
from towline.training.detrend import remove_trend
from towline.training.final_fit import fit, refit
from towline.training.history import choose_history
from towline.training.model_selection.cross_validation import check_candidates, choose_candidate, cross_validate

DAYS = pd.Timedelta("2D").to_pytimedelta()


def _grown(rows: int = 3000, growth: float = 3.0) -> tuple[pd.DataFrame, np.ndarray]:
    """Hourly rows whose target grows from 1 to ``growth`` times the effect of the features; and that effect."""
    rng = np.random.default_rng(4)
    frame = pd.DataFrame({"at": pd.date_range("2026-01-01", periods=rows, freq="h")})
    frame["a"], frame["b"] = rng.uniform(0, 10, rows), rng.uniform(0, 10, rows)
    shape = 20 + 3 * frame["a"].to_numpy() + np.where(frame["b"] > 5, 15, 0)
    frame["y"] = shape * np.linspace(1, growth, rows) * rng.normal(1, 0.05, rows)
    return frame, shape


def test_a_growing_target_is_adjusted_to_its_newest_trend() -> None:
    """Each target becomes the effect of its features times the newest trend, within the noise."""
    frame, shape = _grown()
    features = np.c_[np.ones(len(shape)), frame["a"], frame["b"] > 5]
    labels = frame["y"].to_numpy()

    def fit_predict(train: np.ndarray, test: np.ndarray) -> np.ndarray:
        return np.asarray(features[test] @ np.linalg.lstsq(features[train], labels[train], rcond=None)[0])

    adjusted, trend = remove_trend(labels, frame["at"], DAYS, fit_predict)
    adjusted = adjusted / shape
    week = 24 * 7
    assert adjusted[:week].mean() == pytest.approx(3, rel=0.1)
    assert adjusted[-week:].mean() == pytest.approx(3, rel=0.1)
    assert trend is not None
    assert (trend.values[0], trend.values[-1]) == (pytest.approx(1 / 3, rel=0.15), 1)
    assert (trend.times[0], str(trend)[:9]) == ("2026-01-01T00:00:00", "trend × 2")
    order = np.random.default_rng(1).permutation(len(labels))  # rows need not be in order
    shuffled = remove_trend(
        labels[order],
        frame["at"].iloc[order].reset_index(drop=True),
        DAYS,
        lambda train, test: fit_predict(order[train], order[test]),
    ).labels
    np.testing.assert_allclose(shuffled, (adjusted * shape)[order])


def test_targets_that_can_be_negative_are_shifted() -> None:
    """A temperature that rises by ten degrees: cold rows are shifted as much as warm rows."""
    times = pd.Series(pd.date_range("2026-01-01", periods=2000, freq="h"))
    warm = np.tile([-8.0, 8.0], 1000)
    labels = warm + np.linspace(0, 10, 2000)
    adjusted, trend = remove_trend(labels, times, DAYS, lambda train, test: warm[test] + labels[train].mean())
    np.testing.assert_allclose(adjusted, warm + 10, atol=1.5)
    assert trend is not None
    assert trend.values[0] == pytest.approx(-10, abs=1.5)
    assert not trend.is_factor


@pytest.mark.parametrize("labels", [np.arange(40.0), np.zeros(2000)])
def test_targets_without_a_trend_are_unchanged(labels: np.ndarray) -> None:
    """Rows of one day, and zeros."""
    times = pd.Series(pd.date_range("2026-01-01", periods=len(labels), freq="15min"))
    detrended = remove_trend(labels, times, DAYS, lambda train, test: np.zeros(len(test)))
    np.testing.assert_array_equal(detrended.labels, labels)
    assert detrended.trend is None


@pytest.mark.slow
def test_detrending_is_chosen_for_a_growing_target(tmp_path: Path) -> None:
    """If a target grows and the time is no feature, detrending is selected, and halves the errors of future rows."""
    frame, _ = _grown()
    errors = {}
    for detrend in (["2d", "all"], None):
        data = {"time": "at", "detrend": detrend, "columns": {"at": "ignore"}}
        work, config = prepare_workspace(tmp_path, frame, data=data, candidates=["boosting"], split={"holdout": "14d"})
        chosen = choose_candidate([cross_validate(work, config, config.candidates[0])], config, "regression")
        history = choose_history(work, config, chosen)
        measured = fit(work, config, chosen, history)
        features, truth, _ = work.subset("holdout")
        answers = model_io.load_model(work.file("model.skops")).predict(features)
        errors[detrend is None] = np.abs(answers - truth).mean() / truth.mean()
        if detrend:
            assert history.detrend == DAYS
            assert [trial.detrend for trial in history.trials] == [DAYS, None]
            assert str(history) == "all rows, detrended (half-life 2d)"
            assert refit(work, config, chosen, measured).history.detrend == DAYS
    assert errors[False] < 0.5 * errors[True]


def test_classes_cannot_be_detrended(tmp_path: Path) -> None:
    """The config is rejected before the first fit, with a remedy."""
    frame, _ = _grown(300)
    frame["y"] = np.where(frame["y"] > frame["y"].median(), "much", "little")
    work, config = prepare_workspace(tmp_path, frame, data={"time": "at", "detrend": "7d"}, candidates=["linear"])
    with pytest.raises(ConfigError, match="no trend") as caught:
        check_candidates(config, work.contract())
    assert "half_life" in str(caught.value)
