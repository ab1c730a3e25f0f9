"""The rows that a model is fitted on, and the final fit on all rows."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.support.training import prepare_workspace
from towline import files
from towline.config import Candidate, PipelineConfig
from towline.data.workspace import Workspace
from towline.errors import ConfigError
from towline.training import final_fit, model_io
from towline.training.evaluation.predictions import Predictions
from towline.training.final_fit import fit, refit
from towline.training.history import History, choose_history
from towline.training.model_selection.cross_validation import CrossValidationResult, choose_candidate, cross_validate

DAY = pd.Timedelta("1D").to_pytimedelta()


def _turned(rows: int = 1500, at: int = 1000) -> pd.DataFrame:
    """Hourly rows; after row ``at`` the slope is another one."""
    rng = np.random.default_rng(2)
    a = rng.normal(size=rows)
    slope = np.where(np.arange(rows) < at, 5.0, -5.0)
    times = pd.date_range("2026-01-01", periods=rows, freq="h")
    return pd.DataFrame({"at": times, "a": a, "b": rng.normal(size=rows), "y": slope * a + rng.normal(0, 0.1, rows)})


def _made(tmp_path: Path, frame: pd.DataFrame, **data: Any) -> tuple[Workspace, PipelineConfig, CrossValidationResult]:
    work, config = prepare_workspace(
        tmp_path, frame, data={"time": "at", **data}, candidates=["linear"], split={"holdout": "8d"}
    )
    return (
        work,
        config,
        choose_candidate([cross_validate(work, config, Candidate(estimator="linear"))], config, "regression"),
    )


def test_a_short_window_is_chosen_after_a_change(tmp_path: Path) -> None:
    """The short window has the best score; all trials are recorded, and only its rows are fitted."""
    work, config, chosen = _made(tmp_path, _turned(at=900), window=["4d", "30d", "all"])
    history = choose_history(work, config, chosen)
    assert history.window == 4 * DAY
    assert [trial.window for trial in history.trials] == [4 * DAY, 30 * DAY, None]
    assert history.metric == "mae"
    assert history.rows == 8 * 24
    values = [trial.value or 0.0 for trial in history.trials]
    assert values[0] < 0.5 * values[2]
    assert History.model_validate_json(history.model_dump_json()) == history
    measured = fit(work, config, chosen, history)
    assert measured.rows == 200  # four days have fewer rows than a fit needs
    wide = fit(work, config, chosen, History())
    features, truth, _ = work.subset("holdout")
    fit(work, config, chosen, history)
    error = np.abs(model_io.load_model(work.file("model.skops")).predict(features) - truth).mean()
    assert wide.rows == len(work.subset("train").rows)
    assert error < 1


def test_all_rows_are_chosen_without_a_change(tmp_path: Path) -> None:
    """The longest history has the smallest error."""
    rng = np.random.default_rng(5)
    frame = pd.DataFrame(rng.normal(size=(1500, 30)), columns=[f"c{n}" for n in range(30)])
    frame["y"] = frame.sum(axis=1) + rng.normal(0, 5, 1500)
    frame["at"] = pd.date_range("2026-01-01", periods=1500, freq="h")
    work, config, chosen = _made(tmp_path, frame, window=["8d", "all"])
    assert choose_history(work, config, chosen).window is None


def test_half_lives_are_chosen_too(tmp_path: Path) -> None:
    """A half-life has the effect of a short window; each pair of window and half-life is scored."""
    work, config, chosen = _made(tmp_path, _turned(at=900), window=["30d", "all"], half_life=["2d", "all"])
    history = choose_history(work, config, chosen)
    assert len(history.trials) == 4
    assert history.half_life == 2 * DAY
    assert "half-life 2d" in str(history)
    weights = history.weights(work.subset("train").rows["at"])
    assert weights is not None
    assert weights[-1] == 1
    assert weights[-49] == pytest.approx(0.5)


def test_one_history_is_no_choice(tmp_path: Path) -> None:
    """No trial is fitted, and all rows are used."""
    work, config, chosen = _made(tmp_path, _turned(300, 300))
    assert choose_history(work, config, chosen) == History()


def test_a_window_with_few_rows_is_extended() -> None:
    """It gets more rows, and rows of every class."""
    times = pd.Series(pd.date_range("2026-01-01", periods=1000, freq="h"))
    numbers = np.zeros(1000)
    assert len(History(window=30 * DAY).select_rows(times, numbers)) == 720
    assert History(window=DAY).select_rows(times, numbers).tolist() == list(range(800, 1000))
    classes = np.array(["rare"] * 20 + ["usual"] * 980, dtype=object)
    assert History(window=DAY).select_rows(times, classes).tolist() == list(range(10, 1000))


def test_the_recipe_is_fitted_again_on_all_rows(tmp_path: Path) -> None:
    """The released model ends at the newest row, the evaluated model before the holdout; parameters are equal."""
    work, config, chosen = _made(tmp_path, _turned(1200, at=1100), window=["4d", "all"])
    measured = fit(work, config, chosen, choose_history(work, config, chosen))
    released = refit(work, config, chosen, measured)
    newest = work.table()["at"].max()
    assert released.end == newest.isoformat()
    assert released.measured_end == measured.end == work.subset("train").rows["at"].max().isoformat()
    assert (released.params, released.threshold) == (measured.params, measured.threshold)
    assert (measured.history.window, released.history.window) == (None, 4 * DAY)  # the change is in the holdout
    assert released.history.end == newest.isoformat()
    assert released.measured == measured.history
    features, _, _ = work.subset("holdout")
    saved = Predictions.from_arrays(files.read_arrays(work.file(released.predictions_file)), work.contract().classes)
    np.testing.assert_array_equal(saved.labels, model_io.load_model(work.file(released.file)).predict(features))
    assert len(final_fit.training_rows(work, config, released)) == released.rows
    plain = config.model_copy(update={"split": config.split.model_copy(update={"refit": False})})
    assert refit(work, plain, chosen, measured) == measured


def test_half_lives_of_a_classifier_with_a_threshold(tmp_path: Path) -> None:
    """After a change the weighted classifier predicts the new rule; its threshold is that of cross-validation."""
    frame = _turned(at=900)
    frame["y"] = np.where(frame["y"] > 0, "up", "down")
    data = {"time": "at", "half_life": ["2d", "all"]}
    work, config = prepare_workspace(tmp_path, frame, data=data, candidates=["linear"], split={"holdout": "8d"})
    chosen = choose_candidate([cross_validate(work, config, config.candidates[0])], config, "binary")
    history = choose_history(work, config, chosen)
    assert history.half_life == 2 * DAY
    assert [trial.failed for trial in history.trials] == ["", ""]
    fit(work, config, chosen, history)
    features, truth, _ = work.subset("holdout")
    model = model_io.load_model(work.file("model.skops"))
    assert (model.classes_[model.predict_proba(features).argmax(axis=1)] == truth).mean() > 0.8
    assert model.threshold == chosen.threshold


def test_an_estimator_without_sample_weights(tmp_path: Path) -> None:
    """Nearest neighbours accept no weights; a half-life does not change them."""
    neighbours = "sklearn.neighbors.KNeighborsRegressor"
    data = {"time": "at", "half_life": "2d"}
    work, config = prepare_workspace(tmp_path, _turned(400), data=data, candidates=[neighbours])
    chosen = cross_validate(work, config, config.candidates[0])
    assert fit(work, config, chosen, choose_history(work, config, chosen)).rows == len(work.subset("train").rows)


@pytest.mark.parametrize("key", ["window", "half_life", "detrend"])
def test_histories_need_a_time(tmp_path: Path, key: str) -> None:
    """Without data.time rows have no age."""
    with pytest.raises(ConfigError, match="time"):
        prepare_workspace(tmp_path, _turned(300), data={key: ["3d", "all"]})
