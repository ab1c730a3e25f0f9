"""The champion against a refit of its recipe on a window of labelled rows."""

import datetime as dt
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.support.checks import at_least_one
from tests.support.logged_predictions import HOUR, START, keep_private, log_predictions
from tests.support.releases import TrainedRun, make_house_table, train_run
from towline.config import PipelineConfig
from towline.data.schema.contract import Contract
from towline.inference.predictor import open_release
from towline.monitoring.performance.retraining_gain import measure_gain
from towline.monitoring.results import GainResult
from towline.training.evaluation.definitions import Metric
from towline.training.evaluation.metrics import compute_metrics
from towline.training.evaluation.predictions import Predictions
from towline.training.evaluation.row_losses import choose_loss, row_losses


def houses(start: str, rows: int, column: str = "value") -> pd.DataFrame:
    unused = "sold" if column == "value" else "value"
    frame = make_house_table(2000).iloc[-rows:].drop(columns=unused).reset_index(drop=True)
    return frame.assign(at=pd.date_range(start, periods=rows, freq="1h"))


def measured(run: TrainedRun, release: Path, table: pd.DataFrame, rows: pd.DataFrame, **changes: Any) -> GainResult:
    """The result of a window of 200 rows, after the rows of ``table`` were labelled."""
    config: PipelineConfig = changes.pop("config", run.config)
    log = log_predictions(release, rows, rows[config.data.target], **changes)
    end = START + len(rows) * HOUR
    return measure_gain(log, release, config, table, start=START, end=end, now=end + dt.timedelta(days=3))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainedRun, Path]:
    frame = make_house_table().drop(columns="sold")
    run = train_run(tmp_path_factory.mktemp("run"), frame, "linear", target="value", time="at")
    return run, run.settings.store / run.package().path


def test_a_refit_on_rows_of_a_changed_world_has_a_lower_loss(trained: tuple[TrainedRun, Path]) -> None:
    """Prices fell by 40 before the window: the refit was fitted on such rows, the champion was not."""
    new, window = houses("2025-10-01", 800), houses("2026-01-01", 200)
    result = measured(*trained, new.assign(value=new["value"] - 40), window.assign(value=window["value"] - 40))
    assert (result.state, result.rows, result.fitted_rows) == ("measured", 200, 800)
    assert result.champion is not None
    assert result.refit is not None
    assert result.refit < 0.3 * result.champion
    assert result.champion == pytest.approx(40, rel=0.1)
    assert len(result.blocks) == 14
    assert np.mean([block[0] for block in result.blocks]) == pytest.approx(result.champion, rel=0.05)


def test_a_refit_in_an_unchanged_world_has_the_same_loss(trained: tuple[TrainedRun, Path]) -> None:
    """More rows change the loss only a little."""
    result = measured(*trained, houses("2025-10-01", 800), houses("2026-01-01", 200))
    assert result.champion is not None
    assert result.refit == pytest.approx(result.champion, rel=0.1)


def test_a_change_at_the_start_of_the_window_is_measured_in_the_window(trained: tuple[TrainedRun, Path]) -> None:
    """Refits for later periods are fitted on rows of earlier periods; without these there is no gain."""
    run, release = trained
    config = run.config.model_copy(update={"quality": run.config.quality.model_copy(update={"delay": 10 * HOUR})})
    old, window = houses("2025-12-28", 96), houses("2026-01-01", 200)
    window = window.assign(value=window["value"] - 40)
    before = measured(run, release, old, window, config=config)
    within = measured(run, release, pd.concat([old, window]), window, config=config)
    assert before.champion == within.champion
    assert before.refit == pytest.approx(before.champion, rel=0.1)
    assert within.refit is not None
    assert within.refit < 0.8 * (within.champion or 0)
    assert (before.fitted_rows, within.fitted_rows) == (96, 96 + 150 - 9)
    losses = np.array(within.blocks)
    assert losses[:3, 1] == pytest.approx(losses[:3, 0], rel=0.2)
    assert losses[-3:, 1].mean() < 0.6 * losses[-3:, 0].mean()


def test_few_labels_are_unknown(trained: tuple[TrainedRun, Path]) -> None:
    """The window remains open; no model is fitted."""
    window = houses("2026-01-01", 200)
    labels = np.where(np.arange(200) < 40, window["value"], np.nan)
    labels = [None if np.isnan(value) else value for value in labels]
    result = measured(*trained, pd.DataFrame(), window, label=labels)
    assert (result.state, result.rows, "50 are needed" in result.reason) == ("unknown", 40, True)


def test_a_recipe_that_cannot_be_fitted_again_is_unavailable(trained: tuple[TrainedRun, Path], tmp_path: Path) -> None:
    """The candidate is no longer in the config, the table lacks columns, or a column is not logged."""
    run, release = trained
    window = houses("2026-01-01", 200)
    other = run.config.model_copy(
        update={"candidates": (run.config.candidates[0].model_copy(update={"name": "other"}),)}
    )
    results = [
        measured(run, release, window, window, config=other),
        measured(run, release, window.drop(columns="size"), window),
    ]
    again = train_run(tmp_path, make_house_table().drop(columns="sold"), "linear", target="value", time="at")
    private = keep_private(again.settings.store / again.package().path, size="hash")
    results.append(measured(again, private, window, window))
    for result, words in zip(at_least_one(results), ("no candidate linear", "size", "not logged"), strict=True):
        assert result.state == "unavailable"
        assert words in result.reason


def test_classes_are_compared_by_their_log_loss(tmp_path: Path) -> None:
    """The labels were exchanged before the window started."""
    frame = make_house_table().drop(columns="value")
    run = train_run(tmp_path, frame, "linear", target="sold", time="at")
    release = run.settings.store / run.package().path
    new, window = (
        houses(start, rows, "sold").assign(sold=lambda each: each["sold"].map({"yes": "no", "no": "yes"}))
        for start, rows in (("2025-10-01", 800), ("2026-01-01", 200))
    )
    result = measured(run, release, new, window)
    assert (result.loss, result.state) == ("log loss", "measured")
    assert result.champion is not None
    assert result.refit is not None
    assert result.refit < result.champion


@pytest.mark.parametrize("metric", ["mae", "mape", "log_loss", "brier", "accuracy"])
def test_the_mean_loss_is_the_metric(metric: str, trained: tuple[TrainedRun, Path], tmp_path: Path) -> None:
    """This holds for metrics that are means over rows."""
    target = "value" if metric in ("mae", "mape") else "sold"
    run, release = trained
    if target == "sold":
        run = train_run(tmp_path, make_house_table().drop(columns="value"), "linear", target="sold", time="at")
        release = run.settings.store / run.package().path
    rows, model = houses("2026-01-01", 200, target), open_release(release)
    predictions, contract = model.predict_frame(model.to_features(rows)), Contract.read(release)
    truth = contract.labels(rows)
    name = choose_loss(Metric.built_in(metric), contract, predictions)
    value = float(np.nanmean(row_losses(truth, predictions, contract, name)))
    expected = compute_metrics(truth, predictions, contract, metrics=[metric])[metric]
    scale = 0.5 if metric == "brier" else 1  # the loss is the sum over both classes
    assert scale * value == pytest.approx(1 - expected if metric == "accuracy" else expected)


def test_the_squared_error_stands_for_rmse_and_r2() -> None:
    """RMSE and R² are not means over rows."""
    contract = Contract(target="y", task="regression", columns=())
    predictions = Predictions(np.array([1.0, 5.0]))
    for metric in at_least_one(["rmse", "r2"]):
        name = choose_loss(Metric.built_in(metric), contract, predictions)
        assert row_losses(np.array([3.0, 5.0]), predictions, contract, name).tolist() == [4.0, 0.0]
