"""Performance estimates: accurate if only the inputs change, and not trusted otherwise."""

import datetime as dt
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from tests.support.checks import at_least_one
from tests.support.logged_predictions import (
    START,
    keep_private,
    log_predictions,
    make_drift,
    package_release,
    shuffle_values,
    sign_release,
)
from tests.support.paths import REPOSITORY
from tests.support.releases import TrainedRun, train_run
from towline.config import Candidate, PipelineConfig, build_config
from towline.data.schema.contract import Contract
from towline.monitoring.performance.estimate import compare_past_estimates, estimate_performance
from towline.monitoring.performance.quality import measure_quality
from towline.monitoring.results import DriftResult, PerformanceEstimate, QualityResult
from towline.training.evaluation.definitions import Metric
from towline.training.evaluation.holdout import evaluate, load_evaluation_predictions
from towline.training.evaluation.predictions import Interval, Predictions
from towline.training.final_fit import fit
from towline.training.model_selection.cross_validation import cross_validate
from towline.training.performance_estimation import (
    ESTIMATE,
    LOSS,
    EstimatorState,
    _fit_curves,
    _ScoredRows,
    calibrate,
    fit_estimator,
)

Case = tuple[TrainedRun, Path]
LOSSES = ("mae", "rmse", "mape", "log_loss", "brier")


def noisy(rows: int, seed: int, loud: float = 0.3) -> pd.DataFrame:
    """Values of which a share of the rows is three times as uncertain."""
    rng = np.random.default_rng(seed)
    size, kind = rng.normal(50, 10, rows), np.where(rng.random(rows) < loud, "loud", "calm")
    return pd.DataFrame(
        {
            "at": pd.date_range("2024-01-01", periods=rows, freq="1h"),
            "size": size,
            "kind": kind,
            "value": 3 * size + rng.normal(0, 1, rows) * np.where(kind == "loud", 15, 5),
        }
    )


def bought(rows: int, seed: int, near: float = 0.3) -> pd.DataFrame:
    """Two classes: this share of the rows is near the decision boundary."""
    rng = np.random.default_rng(seed)
    doubtful, side = rng.random(rows) < near, rng.choice([-1.0, 1.0], rows)
    score = side * np.where(doubtful, 0.4, 2.5) + rng.normal(0, 0.3, rows)
    yes = rng.random(rows) < 1 / (1 + np.exp(-1.5 * score))
    return pd.DataFrame({"score": score, "other": rng.normal(size=rows), "bought": np.where(yes, "yes", "no")})


@pytest.fixture(scope="module")
def regression(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return package_release(tmp_path_factory.mktemp("regression"), noisy(2000, 1), target="value", time="at")


@pytest.fixture(scope="module")
def binary(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return package_release(tmp_path_factory.mktemp("binary"), bought(2500, 1), "linear", target="bought")


def config(case: Case, **changes: Any) -> PipelineConfig:
    return build_config({**case[0].config.model_dump(mode="json"), **changes}, "test")


def for_metric(case: Case, folder: Path, metric: str) -> Case:
    """The same model, released by a pipeline with another primary metric."""
    changed = config(case, evaluation={"metric": metric, "resamples": 50})
    state, model = fit_estimator(case[0].work, changed, case[0].fitted.candidate)
    release = Path(shutil.copytree(case[1], folder / metric))
    (release / ESTIMATE).write_text(state.model_dump_json())
    if model is not None:
        import skops.io

        skops.io.dump(model, release / LOSS)
    return TrainedRun(**{**vars(case[0]), "config": changed}), sign_release(release)


def guessed(
    case: Case, log: pa.Table, drift: DriftResult | None = None, past: tuple[QualityResult, ...] = ()
) -> PerformanceEstimate:
    return estimate_performance(log, case[1], case[0].config, drift, past)


def measured(case: Case, log: pa.Table) -> QualityResult:
    end = START + dt.timedelta(days=365)
    return measure_quality(log, case[1], case[0].config, start=START, end=end, now=end)


def agrees(case: Case, guess: PerformanceEstimate, log: pa.Table) -> None:
    """Whether the estimate is near the true metric: by the product's rule, and within 30 % of the possible loss."""
    result = measured(case, log)
    assert guess.value is not None
    assert result.value.value is not None
    assert compare_past_estimates([result.model_copy(update={"expected": None, "estimate": guess})])[0], (
        guess,
        result.value,
    )
    ideal = result.value.value if case[0].config.evaluation.metric in LOSSES else 1 - result.value.value
    assert guess.value == pytest.approx(result.value.value, abs=0.3 * ideal)


@pytest.mark.slow
@pytest.mark.parametrize("metric", ["mae", "rmse", "mape"])
def test_losses_are_estimated(regression: Case, tmp_path: Path, metric: str) -> None:
    """With more uncertain rows the estimate rises like the true loss, without labels."""
    case = for_metric(regression, tmp_path, metric)
    guesses = list[float]()
    for loud in (0.0, 0.3, 1.0):
        rows = noisy(1500, 7, loud)
        log = log_predictions(case[1], rows, [None] * len(rows))
        guess = guessed(case, log)
        agrees(case, guess, log_predictions(case[1], rows, rows["value"]))
        assert guess.trusted, guess.why
        guesses.append(guess.value or 0.0)
    assert guesses[0] < 0.8 * guesses[1] < 0.8 * guesses[2]


@pytest.mark.parametrize(
    "metric", ["roc_auc", "average_precision", "f1", "precision", "recall", "accuracy", "log_loss", "brier"]
)
def test_metrics_of_a_classifier(binary: Case, tmp_path: Path, metric: str) -> None:
    """With more rows near the decision boundary, each metric is estimated within its interval, and trusted."""
    case = for_metric(binary, tmp_path, metric)
    guesses = list[float]()
    for near in (0.0, 0.3, 1.0):
        rows = bought(6000, 8, near)
        guess = guessed(case, log_predictions(case[1], rows, [None] * len(rows)))
        agrees(case, guess, log_predictions(case[1], rows, rows["bought"]))
        assert guess.trusted, guess.why
        guesses.append(guess.value or 0.0)
    rising = metric in ("log_loss", "brier")
    assert sorted(guesses, reverse=not rising) == guesses


@pytest.mark.parametrize("metric", ["accuracy", "log_loss", "f1", "roc_auc"])
def test_several_classes(tmp_path: Path, metric: str) -> None:
    """The probabilities of each class are calibrated separately."""

    def of(rows: int, seed: int) -> pd.DataFrame:
        frame = bought(rows, seed)
        third = np.random.default_rng(seed).random(rows) < 0.3
        return frame.assign(bought=np.where(third & (frame["other"] > 0), "later", frame["bought"]))

    case = for_metric(package_release(tmp_path / "run", of(2500, 1), "linear", target="bought"), tmp_path, metric)
    rows = of(1500, 2)
    guess = guessed(case, log_predictions(case[1], rows, [None] * len(rows)))
    agrees(case, guess, log_predictions(case[1], rows, rows["bought"]))


def test_probabilities_are_calibrated(tmp_path: Path) -> None:
    """The probabilities of a model with balanced class weights are corrected by an increasing curve."""
    frame = bought(6000, 3)
    frame["bought"] = np.where(np.random.default_rng(0).random(6000) < 0.8, "no", frame["bought"])
    run = train_run(tmp_path, frame, "linear", target="bought")
    candidate = Candidate(estimator="linear", params={"class_weight": "balanced"})
    chosen = run.scores[0].model_copy(update={"params": candidate.params})
    fitted = fit(run.work, run.config, chosen)
    evaluate(run.work, run.config, fitted)
    cross_validate(run.work, run.config, candidate)
    state, _ = fit_estimator(run.work, run.config, "linear")
    truth, answers, _ = load_evaluation_predictions(run.work)
    assert answers.probabilities is not None
    rate = float(np.mean(truth == "yes"))
    assert answers.probabilities[:, 1].mean() > 2 * rate
    assert calibrate(state, answers.probabilities)[:, 1].mean() == pytest.approx(rate, rel=0.1)
    assert len(state.model_dump_json()) < 20_000
    for curve in at_least_one(state.curves):
        assert np.all(np.diff(curve.predicted) > 0)
        assert np.all(np.diff(curve.calibrated) >= 0)


def test_estimators_are_reproducible(regression: Case, binary: Case) -> None:
    """Estimates have no randomness, and the model of the losses is small."""
    for run, release in (regression, binary):
        first, model = fit_estimator(run.work, run.config, run.fitted.candidate)
        assert first == fit_estimator(run.work, run.config, run.fitted.candidate)[0]
        assert first == EstimatorState.model_validate_json((release / ESTIMATE).read_bytes())
        assert (model is not None) == (release / LOSS).exists()
    assert (regression[1] / LOSS).stat().st_size < 300_000
    rows = noisy(300, 5)
    log = log_predictions(regression[1], rows, [None] * 300)
    assert guessed(regression, log) == guessed(regression, log)


def test_concept_drift_makes_an_estimate_untrusted(binary: Case) -> None:
    """The estimate does not change, but a comparison with labels makes it untrusted."""
    rows = bought(1500, 9)
    unlabelled, spoilt = (
        log_predictions(binary[1], rows, truth) for truth in ([None] * 1500, shuffle_values(rows["bought"], 0.7))
    )
    guess, truth = guessed(binary, unlabelled), measured(binary, spoilt)
    assert guess.trusted
    assert guess.low is not None
    assert truth.state == "degraded"
    assert truth.value.high is not None
    assert truth.value.high < guess.low
    later = guessed(binary, unlabelled, past=(truth,))
    assert (later.trusted, later.value) == (False, guess.value)
    assert "measured as" in later.why
    fine = measured(binary, log_predictions(binary[1], rows, rows["bought"]))
    assert compare_past_estimates([truth, fine, fine, fine])[0]
    assert not compare_past_estimates([fine, truth, fine, fine])[0]
    assert guessed(binary, unlabelled, past=(fine,)).trusted


def test_small_errors_of_an_estimate_do_not_matter() -> None:
    """The estimate is too imprecise only if its error exceeds half of the acceptable loss."""

    def window(value: float) -> QualityResult:
        around, guess = (Interval(value=at, low=at - 0.001, high=at + 0.001) for at in (value, 0.80))
        return QualityResult(state="ok", version=1, metric="roc_auc", value=around, holdout=0.8, bound=0.75, rows=9, labelled=9, due=9, expected=guess, reason="")  # fmt: skip # noqa: E501

    assert compare_past_estimates([window(0.79)])[0]
    assert not compare_past_estimates([window(0.77)])[0]
    assert compare_past_estimates([])[0]


def test_inputs_that_have_drifted(regression: Case) -> None:
    """An estimate on drifted inputs is not trusted, and the columns are named."""
    rows = noisy(300, 5)
    log = log_predictions(regression[1], rows, [None] * 300)
    drifted = guessed(regression, log, make_drift("drift", "size", "kind"))
    assert not drifted.trusted
    assert "size, kind" in drifted.why
    assert drifted.value is not None
    assert not guessed(regression, log, make_drift("invalid_schema")).trusted
    assert guessed(regression, log, make_drift("ok")).trusted


def test_few_predictions(regression: Case) -> None:
    """The estimate is not trusted; without predictions there is no estimate."""
    rows = noisy(10, 5)
    log = log_predictions(regression[1], rows, [None] * 10)
    few = guessed(regression, log)
    assert (few.trusted, few.value is not None) == (False, True)
    assert "10 predictions are few" in few.why
    none = guessed(regression, log.slice(0, 0))
    assert (none.value, none.trusted) == (None, False)
    assert "no predictions" in none.why


def test_columns_that_are_not_logged(regression: Case, binary: Case, tmp_path: Path) -> None:
    """The estimate of losses needs every column unmodified; a classifier needs only the probabilities."""
    rows = noisy(300, 5)
    release = keep_private(Path(shutil.copytree(regression[1], tmp_path / "a" / "release")), size="bucket")
    log = log_predictions(release, rows, rows["value"])
    log = log.set_column(log.column_names.index("input.size"), "input.size", pa.array(["10..20"] * 300))
    guess = guessed((regression[0], release), log)
    assert guess.value is None
    assert "the log does not have size unmodified" in guess.why
    quality = measured((regression[0], release), log)
    assert (quality.expected, quality.value.value is None) == (None, False)
    release = keep_private(Path(shutil.copytree(binary[1], tmp_path / "b" / "release")), score="drop")
    log = log_predictions(release, bought(300, 4), [None] * 300).drop_columns(["input.score"])
    assert guessed((binary[0], release), log).trusted


def test_reasons_for_no_estimate(regression: Case, binary: Case, tmp_path: Path) -> None:
    """An older release, another metric, a metric that needs labels, no probabilities."""
    rows = noisy(300, 5)
    log = log_predictions(regression[1], rows, [None] * 300)
    older = Path(shutil.copytree(regression[1], tmp_path / "older"))
    (older / ESTIMATE).unlink()
    assert "no performance estimator" in guessed((regression[0], older), log).why
    other = config(regression, evaluation={"metric": "rmse"})
    assert "estimates mae, not rmse" in estimate_performance(log, regression[1], other, None, ()).why
    assert "r2 cannot be estimated without labels" in guessed(for_metric(regression, tmp_path, "r2"), log).why
    log = log_predictions(binary[1], bought(300, 4), [None] * 300)
    at = log.column_names.index("probabilities")
    log = log.set_column(at, "probabilities", pa.array([None] * 300, pa.list_(pa.float64())))
    assert guessed(binary, log).value is None


@pytest.mark.slow
def test_errors_on_the_past_make_an_estimate_untrusted(tmp_path: Path) -> None:
    """If the errors grew from fold to fold, the estimate is not trusted."""
    frame = noisy(2000, 1)
    frame["value"] += np.random.default_rng(0).normal(0, np.linspace(0, 60, 2000))
    run, release = package_release(tmp_path, frame, target="value", time="at")
    state = json.loads((release / ESTIMATE).read_text())
    assert state["error"] > 3
    rows = noisy(500, 2)
    guess = guessed((run, release), log_predictions(release, rows, [None] * 500))
    assert not guess.trusted
    assert "model's own past" in guess.why


def test_too_few_rows_for_an_estimator(tmp_path: Path) -> None:
    """The release is written without an estimator, and has the reason."""
    run, release = package_release(tmp_path, noisy(50, 1), target="value", time="at")
    guess = guessed((run, release), log_predictions(release, noisy(100, 2), [None] * 100))
    assert guess.value is None
    assert "too few" in guess.why


@pytest.mark.slow
def test_bike_demand(tmp_path: Path) -> None:
    """A model of early 2011 on two years of rows: an estimate that is wrong by a quarter is never trusted."""
    table = pd.read_parquet(REPOSITORY / "data" / "bike_hourly.parquet").drop(columns=["casual", "registered"])
    past = table["datetime"] < "2011-07-01"
    run, release = package_release(tmp_path, table[past], target="rentals", time="datetime")
    windows: list[QualityResult] = []
    off = 0
    for month, rows in at_least_one(table[~past].groupby(table["datetime"].dt.to_period("M"))):
        log = log_predictions(release, rows.reset_index(drop=True), rows["rentals"])
        guess = guessed((run, release), log, past=tuple(windows))
        result = measured((run, release), log)
        windows.append(result.model_copy(update={"end": START}))
        assert guess.value is not None
        assert result.value.value is not None
        wrong = abs(guess.value - result.value.value) > 0.25 * result.value.value
        off += wrong
        assert not (wrong and guess.trusted), (month, guess, result.value)
    assert off > 6


def test_a_class_that_the_newest_fold_lacks_is_possible() -> None:
    """Older folds are added until each class that occurred has enough rows."""
    rng, classes = np.random.default_rng(0), np.array(["a", "b", "c"], dtype=object)

    def fold(rows: int, shares: list[float]) -> _ScoredRows:
        codes = rng.choice(3, rows, p=shares)
        probabilities = np.full((rows, 3), 0.05)
        probabilities[np.arange(rows), codes] += 0.85
        frame = pd.DataFrame(index=range(rows))
        return _ScoredRows(frame, classes[codes], Predictions(classes[probabilities.argmax(axis=1)], probabilities))

    contract = Contract(target="y", task="multiclass", columns=(), classes=tuple(classes))
    folds = [fold(2000, [0.4, 0.4, 0.2]), fold(1500, [0.5, 0.5, 0.0])]
    state, _ = _fit_curves(folds, contract, Metric.built_in("log_loss"), 0, ages=True)
    assert state.rows == 3500
    assert calibrate(state, np.array([[0.05, 0.05, 0.9]]))[0, 2] > 0.8
