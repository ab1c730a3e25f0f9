"""Calibrated probabilities are equal in every way of scoring, and agree with shares of rows."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.isotonic import IsotonicRegression
from sklearn.metrics import brier_score_loss, log_loss

from tests.support.odd_table import fitted, odd_table
from tests.support.training import TrainedModel, prepare_workspace
from towline.config import build_config
from towline.data.schema.rows import RowReader
from towline.errors import ConfigError
from towline.inference.compiled import codec, parity
from towline.inference.compiled.compiler import NotCompiledError, compile_plan
from towline.inference.compiled.parity import certify
from towline.inference.compiled.scorer import CompiledScorer
from towline.inference.scorer import SklearnScorer
from towline.training import model_io
from towline.training.calibration import (
    IDENTITY,
    Calibration,
    OutOfFoldRows,
    SigmoidCurve,
    calibrate_out_of_fold,
    expected_calibration_error,
    fit_isotonic,
    fit_sigmoid,
)
from towline.training.evaluation.holdout import evaluate
from towline.training.evaluation.metrics import predict
from towline.training.final_fit import fit
from towline.training.model_selection.config_checks import check_config
from towline.training.model_selection.cross_validation import cross_validate, load_out_of_fold_predictions
from towline.training.model_selection.ensembles import cross_validate_ensemble

BALANCED = {"estimator": "linear", "weights": "balanced"}


def draw_rows(n: int, classes: int = 2, folds: int = 5, seed: int = 1) -> OutOfFoldRows:
    """Rows with probabilities that are too large for the rare classes."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(n, classes)) * 1.5 - np.linspace(0, 3, classes)
    true = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    truth = (rng.random((n, 1)) > true.cumsum(axis=1)[:, :-1]).sum(axis=1)
    shifted = np.exp(scores + np.linspace(0, 3, classes))
    return OutOfFoldRows(shifted / shifted.sum(axis=1, keepdims=True), truth, rng.integers(0, folds, n))


def rare_table(rows: int, seed: int = 1) -> pd.DataFrame:
    """About 6 % of the rows are positive."""
    rng = np.random.default_rng(seed)
    a, b, c, d = rng.normal(size=(4, rows))
    chance = 1 / (1 + np.exp(-(1.5 * a - b + 2 * ((c > 0) == (d > 0)) - 5)))
    town = rng.choice(["x", "y", "z"], rows)
    return pd.DataFrame(
        {"a": a, "b": b, "c": c, "d": d, "town": town, "y": np.where(rng.random(rows) < chance, "yes", "no")}
    )


@pytest.mark.parametrize("method", ["isotonic", "sigmoid"])
@pytest.mark.parametrize("classes", [2, 3])
def test_calibrated_probabilities_have_a_lower_log_loss_on_fresh_rows(method: Any, classes: int) -> None:
    rows, fresh = draw_rows(6_000, classes), draw_rows(6_000, classes, seed=2)
    calibrated = calibrate_out_of_fold(rows, method, range(classes), 1 if classes == 2 else None)
    assert calibrated.calibration is not None
    assert not calibrated.notes
    after = calibrated.calibration.calibrate_rows(fresh.probabilities)
    assert after.sum(axis=1) == pytest.approx(1)
    assert log_loss(fresh.truth, after) < log_loss(fresh.truth, fresh.probabilities) - 0.05
    brier_before, brier_after = (brier_score_loss(fresh.truth, each) for each in (fresh.probabilities, after))
    assert brier_after < brier_before
    before_error = expected_calibration_error(fresh.probabilities, fresh.truth)
    assert expected_calibration_error(after, fresh.truth) < before_error / 4


def test_the_folds_are_calibrated_by_each_other() -> None:
    """The labels of a fold do not change its own calibrated probabilities."""
    rows = draw_rows(4_000)
    first = rows.fold == 0
    changed = rows._replace(truth=np.where(first, 1 - rows.truth, rows.truth))
    before, after = (calibrate_out_of_fold(each, "isotonic", "ny", 1).probabilities for each in (rows, changed))
    assert np.array_equal(before[first], after[first])
    assert not np.array_equal(before[~first], after[~first])


def test_isotonic_curves_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(3)
    predicted, positive = rng.random(500), rng.random(500) < 0.4
    curve = fit_isotonic(predicted, positive)
    expected = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(predicted, positive)
    points = np.concatenate([predicted, [0.0, 1.0], rng.random(500)])
    assert [curve.calibrate(point) for point in points.tolist()] == expected.predict(points).tolist()


class LogOdds(ClassifierMixin, BaseEstimator):
    """An estimator whose score is its feature."""

    def fit(self, X: np.ndarray, y: np.ndarray) -> "LogOdds":
        self.classes_, self.n_features_in_ = np.unique(y), 1
        return self

    def decision_function(self, X: np.ndarray) -> np.ndarray:
        return X[:, 0]

    def predict(self, X: np.ndarray) -> np.ndarray:
        return X[:, 0] > 0


def test_sigmoids_are_those_of_scikit_learn() -> None:
    rows = draw_rows(3_000)
    chance, positive = rows.probabilities[:, 1], rows.truth == 1
    scores = np.log(chance / (1 - chance))[:, None]
    expected = CalibratedClassifierCV(FrozenEstimator(LogOdds().fit(scores, positive)), method="sigmoid")
    curve = fit_sigmoid(chance, positive)
    calibrated = [curve.calibrate(share) for share in chance.tolist()]
    assert calibrated == pytest.approx(expected.fit(scores, positive).predict_proba(scores)[:, 1], abs=2e-4)


def test_certain_and_right_probabilities_have_no_calibration_error() -> None:
    rows = draw_rows(400)
    certain = np.eye(2)[rows.truth]
    assert expected_calibration_error(certain, rows.truth) == 0
    assert expected_calibration_error(certain[:, ::-1], rows.truth) == pytest.approx(1, abs=0.1)


def test_no_calibrated_probability_is_zero_or_one() -> None:
    """Otherwise a single row with another label would have an infinite log loss."""
    rows = draw_rows(3_000)
    separated = rows._replace(probabilities=np.eye(2)[rows.truth])
    for method in ("isotonic", "sigmoid"):
        calibrated = calibrate_out_of_fold(separated, method, "ny", 1)  # type: ignore[arg-type]
        assert calibrated.probabilities.min() > 0
        assert calibrated.probabilities.max() < 1


def test_too_few_rows_for_isotonic_regression_get_a_sigmoid() -> None:
    calibrated = calibrate_out_of_fold(draw_rows(600), "isotonic", ("no", "yes"), 1)
    assert calibrated.calibration is not None
    assert isinstance(calibrated.calibration.curves[0], SigmoidCurve)
    (note,) = calibrated.notes
    assert "600 out-of-fold rows" in note
    assert note.endswith("such a class, too few for isotonic")


def test_too_few_rows_of_a_class_are_not_calibrated() -> None:
    rows = draw_rows(600)
    few = rows._replace(truth=np.where(np.cumsum(rows.truth) <= 7, rows.truth, 0))
    calibrated = calibrate_out_of_fold(few, "sigmoid", ("no", "yes"), 1)
    assert calibrated.calibration is None
    assert np.array_equal(calibrated.probabilities, few.probabilities)
    (note,) = calibrated.notes
    assert "as few as 7 have or do not have such a class, too few for calibration" in note


def test_a_rare_class_of_several_stays_as_it_is_and_the_others_are_calibrated() -> None:
    rows = draw_rows(5_000, classes=4)
    few = rows._replace(truth=np.where((rows.truth == 3) & (np.cumsum(rows.truth == 3) > 5), 0, rows.truth))
    calibrated = calibrate_out_of_fold(few, "isotonic", "abcd", None)
    assert calibrated.calibration is not None
    assert [curve == IDENTITY for curve in calibrated.calibration.curves] == [False, False, False, True]
    assert "the probabilities of d are not calibrated" in calibrated.notes[0]


def test_infinite_probabilities_are_not_calibrated() -> None:
    rows = draw_rows(2_000)
    rows.probabilities[3] = np.nan
    calibrated = calibrate_out_of_fold(rows, "isotonic", "ny", 1)
    assert calibrated.calibration is None
    assert calibrated.notes == ("not calibrated: a probability is not finite",)


@pytest.mark.parametrize("method", ["isotonic", "sigmoid"])
def test_a_candidate_with_class_weights_is_calibrated(train: Callable[..., TrainedModel], method: str) -> None:
    """The threshold, the holdout's metrics and the out-of-fold predictions are of calibrated probabilities."""
    run = train(rare_table(4_000), candidate=BALANCED, calibrate=method)
    evaluation = evaluate(run.work, run.config, run.fitted)
    result = evaluation.calibration
    assert result is not None
    assert (result.method, result.rows) == (method, len(run.work.subset("train").labels))
    assert result.after["log_loss"] < result.before["log_loss"] / 1.5
    assert result.after["brier"] < result.before["brier"]
    assert result.after["calibration_error"] < 0.03 < result.before["calibration_error"]
    assert evaluation.metrics["log_loss"].value == result.after["log_loss"]
    chosen, saved = run.scores[1], load_out_of_fold_predictions(run.work, "linear")
    assert chosen.mean["log_loss"] < result.before["log_loss"] / 1.5
    assert saved is not None
    assert saved.predictions.probabilities is not None
    assert saved.uncalibrated is not None
    assert saved.predictions.probabilities[:, 1].mean() == pytest.approx(0.06, abs=0.03)
    assert saved.uncalibrated[:, 1].mean() > 0.2
    model = model_io.load_model(run.work.file(run.fitted.file))
    fresh = rare_table(4_000, seed=9)
    features = run.work.contract().features(fresh)
    predictions = predict(model, features, run.work.contract())
    assert predictions.probabilities is not None
    assert model.predict(features).tolist() == predictions.labels.tolist()
    assert np.array_equal(model.predict_proba(features), predictions.probabilities)
    model.set_params(calibration=None)
    uncalibrated = predict(model, features, run.work.contract()).probabilities
    assert log_loss(fresh["y"], predictions.probabilities) < log_loss(fresh["y"], uncalibrated) / 1.5
    above = predictions.probabilities[:, 1] >= run.fitted.threshold
    assert predictions.labels.tolist() == np.where(above, "yes", "no").tolist()


@pytest.mark.slow
def test_an_ensemble_is_calibrated_and_its_parts_are_not(tmp_path: Path) -> None:
    params = {"forest": {"n_estimators": 20}, "boosting": {"max_iter": 30}}
    parts = [{"estimator": name, "weights": "balanced", "params": params[name]} for name in params]
    work, config = prepare_workspace(
        tmp_path, rare_table(3_000), candidates=[*parts, "ensemble"], calibrate="sigmoid",
        evaluation={"metric": "log_loss"},
    )  # fmt: skip
    scores = tuple(cross_validate(work, config, candidate) for candidate in config.single_candidates)
    ensemble = cross_validate_ensemble(work, config, config.ensembles[0], scores)
    assert not ensemble.failed
    assert ensemble.calibration is not None
    fitted_model = fit(work, config, ensemble)
    model = model_io.load_model(work.file(fitted_model.file))
    assert [part.calibration for _, part in model.parts] == [None, None]
    evaluation = evaluate(work, config, fitted_model)
    assert evaluation.calibration is not None
    assert evaluation.calibration.after["log_loss"] < evaluation.calibration.before["log_loss"] / 1.5


def test_the_baseline_is_not_calibrated(train: Callable[..., TrainedModel]) -> None:
    run = train(rare_table(600), calibrate="sigmoid")
    assert run.scores[0].calibration is None
    assert run.scores[1].calibration is not None


def test_a_regression_cannot_be_calibrated() -> None:
    raw = {"name": "t", "data": {"source": "x", "target": "y"}, "task": "regression", "calibrate": "sigmoid"}
    config = build_config(raw, "test")
    with pytest.raises(ConfigError) as caught:
        check_config(config)
    assert caught.value.where == "calibrate"
    assert caught.value.what == "a regression has no probabilities to calibrate"
    assert "remove calibrate" in caught.value.remedy


def test_calibration_and_a_metric_of_regressions_are_refused_together() -> None:
    """The error is raised before any data is read."""
    raw = {"name": "t", "data": {"source": "x", "target": "y"}, "calibrate": "sigmoid", "gate": {"max": {"mae": 1}}}
    with pytest.raises(ConfigError, match="one of them") as caught:
        check_config(build_config(raw, "test"))
    assert caught.value.what == "calibrate is for binary or multiclass, and gate.max.mae is for regression"


def test_an_estimator_without_probabilities_gets_a_note(train: Callable[..., TrainedModel]) -> None:
    run = train(rare_table(600), candidate="sklearn.svm.LinearSVC", calibrate="sigmoid", evaluation={"metric": "f1"})
    assert run.scores[1].calibration is None
    assert run.scores[1].calibration_notes == ("calibrate: the estimator has no probabilities",)
    assert evaluate(run.work, run.config, run.fitted).calibration is None


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        build_config({"name": "t", "data": {"source": "x", "target": "y"}, "calibrate": "platt"}, "test")
    assert "calibrate" in caught.value.details[0]
    assert "isotonic" in str(caught.value)


CASES = [
    ("sold", "linear", 0.37), ("sold", "linear", None), ("sold", "forest", 0.2), ("sold", "boosting", None),
    ("sold", "ensemble", 0.37), ("sold", "lightgbm", 0.4), ("sold", "sklearn.naive_bayes.GaussianNB", 0.4),
    ("grade", "linear", None), ("grade", "forest", (0.7, 0.2, 0.1, 0.4)), ("grade", "boosting", None),
    ("grade", "ensemble", (0.1, 0.2, 0.3, 0.4)),
    ("grade", "lightgbm", None), ("grade", "sklearn.naive_bayes.GaussianNB", None),
    ("flag", "linear", 0.3), ("flag", "forest", None),
]  # fmt: skip
PARAMS: dict[str, dict[str, Any]] = {
    "forest": {"n_estimators": 9},
    "boosting": {"max_iter": 9, "early_stopping": False},
    "ensemble": {"weights": {"linear": 0.34, "forest": 0.22, "boosting": 0.44}},
    "lightgbm": {"n_estimators": 9},
}


# quick tests have each estimator and each method, slow tests have the other half of the pairs
PAIRS = [
    pytest.param(*case, method, marks=[pytest.mark.slow] if (place + other) % 2 else [])
    for place, case in enumerate(CASES)
    for other, method in enumerate(("isotonic", "sigmoid"))
]


@pytest.mark.slow
@pytest.mark.parametrize(("target", "estimator", "threshold", "method"), PAIRS)
def test_every_way_of_scoring_gives_equal_calibrated_probabilities(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str, estimator: str, threshold: Any, method: Any
) -> None:
    """Single rows, many rows and a frame are equal to the last bit; so is a stored model or plan after it was read."""
    monkeypatch.setattr(parity, "GENERATED_ROWS", 500)
    if estimator == "lightgbm":
        pytest.importorskip("lightgbm")
    model, contract, features = fitted(target, estimator, threshold, **PARAMS.get(estimator, {}))
    positive = contract.classes.index(contract.positive) if contract.task == "binary" else None
    model.set_params(calibration=make_calibration(len(contract.classes), positive, method))
    model_io.save_model(model, tmp_path / "model.skops")
    reader = RowReader(contract)
    table = odd_table().drop(columns={"value", "sold", "grade"} - {target}).dropna(subset=[target])
    rows = reader.read(table.drop(columns=target).head(60).astype(object).to_dict("records"))
    stored = model_io.load_model(tmp_path / "model.skops", ("sklearn.naive_bayes",))
    scorers: list[Any] = [SklearnScorer(stored, contract, reader)]
    try:
        written = io.BytesIO()
        codec.write_plan(compile_plan(model, contract), written)
        (tmp_path / "plan.npz").write_bytes(written.getvalue())
        scorers.append(CompiledScorer(codec.read_plan(tmp_path / "plan.npz"), contract, reader))
    except NotCompiledError:
        assert "." in estimator
    expected = predict(model, features.head(60), contract)
    assert expected.probabilities is not None
    for scorer in scorers:
        together, frame = scorer.predict_rows(rows), scorer.predict_frame(features.head(60))
        assert np.abs(frame.probabilities - expected.probabilities).max() <= 1e-12
        assert together.predictions == frame.labels.tolist() == expected.labels.tolist()
        assert together.probabilities == frame.probabilities.tolist()
        if not scorer.compiled and estimator in ("linear", "ensemble"):
            continue  # scikit-learn multiplies a single row in another order
        alone = rows if scorer.compiled else rows[:5]  # scikit-learn takes 20 ms for each row
        single = [scorer.predict_rows([row]) for row in alone]
        assert together.predictions[: len(alone)] == [answer.predictions[0] for answer in single]
        assert together.probabilities[: len(alone)] == [
            answer.probabilities[0] for answer in single if answer.probabilities
        ]
    if len(scorers) == 2:
        certificate, _ = certify(model, contract, {"train": features}, seed=1)
        assert certificate.compiled, certificate.reason
        assert certificate.wrong_labels == 0


def make_calibration(classes: int, positive: int | None, method: Any) -> Calibration:
    calibrated = calibrate_out_of_fold(draw_rows(5_000, classes), method, range(classes), positive)
    assert calibrated.calibration is not None
    return calibrated.calibration
