"""An ensemble combines other candidates by their out-of-fold predictions, and is fitted and stored as one model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.support.training import make_mixed_table, prepare_workspace
from towline.config import Candidate, PipelineConfig, build_config
from towline.data.splits import make_folds
from towline.data.workspace import Workspace
from towline.errors import ConfigError
from towline.training import model_io
from towline.training.estimators import build_model
from towline.training.evaluation.holdout import evaluate
from towline.training.evaluation.metrics import predict
from towline.training.evaluation.predictions import Predictions
from towline.training.final_fit import fit, refit
from towline.training.history import History, choose_history
from towline.training.model_selection import budget
from towline.training.model_selection.budget import BudgetLimits, CandidateLimits, FitCost
from towline.training.model_selection.cross_validation import (
    CrossValidationResult,
    OutOfFoldPredictions,
    baseline_candidate,
    choose_candidate,
    cross_validate,
    load_out_of_fold_predictions,
    save_out_of_fold_predictions,
)
from towline.training.model_selection.ensembles import choose_weights, cross_validate_ensemble

PARTS = ["linear", {"estimator": "boosting", "params": {"max_iter": 30, "early_stopping": False}}]
FOREST = {"estimator": "forest", "params": {"n_estimators": 10}}
ENSEMBLE = Candidate(estimator="ensemble", name="ensemble")


def run_candidates(
    work: Workspace, config: PipelineConfig
) -> tuple[tuple[CrossValidationResult, ...], CrossValidationResult]:
    """The scores of the single candidates, with the baseline first, and of the ensemble."""
    candidates = (baseline_candidate(config), *config.single_candidates)
    scores = tuple(cross_validate(work, config, candidate) for candidate in candidates)
    return scores, cross_validate_ensemble(work, config, config.ensembles[0], scores)


def make_result(candidate: str, failed: str = "", **values: Any) -> CrossValidationResult:
    fields = {
        "estimator": "linear",
        "params": {},
        "folds": (),
        "mean": {},
        "sd": {},
        "threshold": None,
        "seconds": 1.0,
        "cpu_seconds": 1.0,
    }
    return CrossValidationResult.model_validate({"candidate": candidate, "failed": failed, **fields, **values})


def save_predictions(
    work: Workspace, config: PipelineConfig, errors: Mapping[str, Any]
) -> tuple[CrossValidationResult, ...]:
    """Saves the true values plus an error for each fold as the out-of-fold predictions of each candidate."""
    _, labels, rows = work.subset("train")
    folds = [test for _, test in make_folds(rows, labels, config)]
    numbers = np.concatenate([np.full(len(test), number) for number, test in enumerate(folds)])
    positions = np.concatenate(folds)
    for name, by_fold in errors.items():
        predictions = Predictions(labels[positions] + np.array(by_fold)[numbers])
        save_out_of_fold_predictions(work, name, OutOfFoldPredictions(positions, numbers, predictions))
    return tuple(make_result(name) for name in errors)


@pytest.mark.parametrize(
    "target", ["sold", pytest.param("value", marks=pytest.mark.slow), pytest.param("grade", marks=pytest.mark.slow)]
)
def test_an_ensemble_is_better_than_its_parts(tmp_path: Path, target: str) -> None:
    """It has the best cross-validated score, and the stored model predicts the weighted mean of its parts."""
    metric = {"metric": "log_loss"} if target == "grade" else {}
    work, config = prepare_workspace(
        tmp_path, make_mixed_table(target), candidates=[*PARTS, "ensemble"], evaluation=metric
    )
    scores, ensemble = run_candidates(work, config)
    task = work.contract().task
    assert choose_candidate([*scores, ensemble], config, task) is ensemble
    assert CrossValidationResult.model_validate_json(ensemble.model_dump_json()) == ensemble
    weights = ensemble.params["weights"]
    assert list(weights) == ["linear", "boosting"]
    assert sum(weights.values()) == pytest.approx(1)

    fitted = fit(work, config, ensemble)
    model = model_io.load_model(work.file(fitted.file))
    contract, train, features = work.contract(), work.subset("train"), work.subset("holdout").features
    predictions = predict(model, features, contract)
    parts = [
        predict(build_model(part, contract, config.seed).fit(train.features, train.labels), features, contract)
        for part in config.single_candidates
    ]
    if target == "value":
        expected = sum(weight * part.labels for weight, part in zip(weights.values(), parts, strict=True))
        np.testing.assert_allclose(predictions.labels, expected, rtol=1e-12)
        return
    shares = sum(weight * part.probabilities for weight, part in zip(weights.values(), parts, strict=True))
    np.testing.assert_allclose(predictions.probabilities, shares, rtol=1e-12)
    np.testing.assert_array_equal(model.predict_proba(features), predictions.probabilities)
    if target == "sold":
        assert ensemble.threshold is not None
        expected = np.where(shares[:, contract.classes.index("yes")] >= ensemble.threshold, "yes", "no")
    else:
        expected = np.array(contract.classes)[shares.argmax(axis=1)]
    assert predictions.labels.tolist() == expected.tolist() == model.predict(features).tolist()


def test_the_score_does_not_use_weights_of_the_same_fold(tmp_path: Path) -> None:
    """Each part is exact in some folds: a fold gets the prediction of the part that is exact in the other folds."""
    metric = {"metric": "rmse"}
    work, config = prepare_workspace(
        tmp_path, make_mixed_table("value"), candidates=[*PARTS, "ensemble"], evaluation=metric
    )
    scores = save_predictions(work, config, {"linear": [3.0, 0.0, 0.0], "boosting": [0.0, 1.0, 1.0]})
    ensemble = cross_validate_ensemble(work, config, ENSEMBLE, scores)
    saved = load_out_of_fold_predictions(work, "ensemble")
    linear = load_out_of_fold_predictions(work, "linear")
    assert saved is not None
    assert linear is not None
    first = saved.fold == 0
    np.testing.assert_allclose(saved.predictions.labels[first], linear.predictions.labels[first])
    assert ensemble.folds[0]["rmse"] == pytest.approx(3.0)
    assert ensemble.params["weights"]["boosting"] > 0.5


def test_weights_follow_the_metric() -> None:
    """A few large errors cost more with the squared error than with the absolute error."""
    truth = np.zeros(10)
    spiky, flat = np.r_[np.zeros(9), 8.0], np.full(10, 1.0)
    assert choose_weights([spiky, flat], lambda value: np.abs(value - truth)) == [1.0, 0.0]
    assert choose_weights([spiky, flat], lambda value: (value - truth) ** 2)[0] < 0.5


@pytest.mark.parametrize(
    ("gains", "selected"),
    [
        ([0.2, 0.1, 0.2], "ensemble"),
        ([-0.3, 0.2, -0.1], "ensemble"),
        ([-0.2, -0.1, -0.3], "linear"),
        ([0.0, 0.0, 0.0], "linear"),
        ([-0.1] * 3, "linear"),
    ],
)
def test_an_ensemble_is_selected_if_it_is_not_worse_beyond_the_noise(
    tmp_path: Path, gains: list[float], selected: str
) -> None:
    _, config = prepare_workspace(tmp_path, make_mixed_table("value", rows=60), candidates=[*PARTS, "ensemble"])
    errors = {"linear": np.array([2.0, 3.0, 2.5]), "boosting": np.array([3.0, 3.5, 3.5])}
    errors["ensemble"] = errors["linear"] - gains
    results = [
        make_result(name, estimator=name, folds=[{"mae": error} for error in by_fold], mean={"mae": by_fold.mean()})
        for name, by_fold in errors.items()
    ]
    assert choose_candidate(results[::-1], config, "regression").candidate == selected


def test_a_part_that_is_best_alone_gives_no_ensemble(tmp_path: Path) -> None:
    """If one part alone is best, there is no ensemble, and the reason names the part."""
    work, config = prepare_workspace(tmp_path, make_mixed_table("value"), candidates=[*PARTS, "ensemble"])
    scores = save_predictions(work, config, {"linear": [0.0, 0.0, 0.0], "boosting": [1.0, 1.0, 1.0]})
    ensemble = cross_validate_ensemble(work, config, ENSEMBLE, scores)
    assert ensemble.failed == "its weights select linear alone"
    assert load_out_of_fold_predictions(work, "ensemble") is None


def test_a_failed_part_is_left_out(tmp_path: Path) -> None:
    """The other parts are combined, with a note; with one part left the ensemble fails, but not the run."""
    work, config = prepare_workspace(tmp_path, make_mixed_table("value"), candidates=[*PARTS, "forest", "ensemble"])
    scores = save_predictions(work, config, {"linear": [1.0, 1.0, 1.0], "boosting": [-1.0, -1.0, -1.0]})
    forest = make_result("forest", failed="ValueError: no trees")
    ensemble = cross_validate_ensemble(work, config, ENSEMBLE, (*scores, forest))
    assert ensemble.params["weights"] == {"linear": 0.5, "boosting": 0.5}
    assert ensemble.notes == ("forest is left out: ValueError: no trees",)
    linear = scores[0].model_copy(update={"failed": "ValueError: no slope", "mean": {}})
    alone = cross_validate_ensemble(work, config, ENSEMBLE, (linear, scores[1], forest))
    assert alone.failed.startswith("fewer than two parts can be combined; linear is left out: ValueError: no slope")
    assert choose_candidate([linear, make_result("boosting", mean={"mae": 1.0}), forest, alone], config, "regression")


def test_a_part_without_probabilities_is_left_out(tmp_path: Path) -> None:
    svc = {"estimator": "sklearn.svm.LinearSVC", "name": "svc"}
    work, config = prepare_workspace(
        tmp_path, make_mixed_table("sold"), candidates=[*PARTS, svc, "ensemble"], evaluation={"metric": "accuracy"}
    )
    _, ensemble = run_candidates(work, config)
    assert not ensemble.failed
    assert "svc is left out: it has no probabilities" in ensemble.notes
    assert set(ensemble.params["weights"]) == {"linear", "boosting"}


def test_an_ensemble_of_some_candidates(tmp_path: Path) -> None:
    """``of`` names the parts; the ensemble may be listed before them."""
    blend = {"estimator": "ensemble", "name": "blend", "of": ["boosting", "linear"]}
    work, config = prepare_workspace(tmp_path, make_mixed_table("value"), candidates=[blend, FOREST, *PARTS])
    _, ensemble = run_candidates(work, config)
    assert ensemble.candidate == "blend"
    assert list(ensemble.params["weights"]) == ["linear", "boosting"]


@pytest.mark.slow
def test_parts_keep_their_parameters(tmp_path: Path) -> None:
    """The parts of the stored model have the hyperparameters of a search and the weights of old rows."""
    table = make_mixed_table("value").assign(at=pd.date_range("2026-01-01", periods=900, freq="h"))
    search = {"trials": 3, "space": {"alpha": {"low": 5.0, "high": 9.0}}}
    candidates = [{"estimator": "linear", "search": search}, *PARTS[1:], "ensemble"]
    data = {"time": "at", "half_life": ["5d", "all"]}
    work, config = prepare_workspace(tmp_path, table, candidates=candidates, data=data)
    scores, ensemble = run_candidates(work, config)
    history = choose_history(work, config, ensemble)
    assert all(not trial.failed for trial in history.trials)
    models = {}
    for half_life in (None, pd.Timedelta("5D").to_pytimedelta()):
        fitted = fit(work, config, ensemble, History(half_life=half_life))
        models[half_life] = dict(model_io.load_model(work.file(fitted.file)).parts)
    assert models[None]["linear"]["estimate"].alpha == scores[1].params.get("alpha", 1.0)
    assert models[None]["boosting"]["estimate"].max_iter == 30
    plain, weighted = (parts["linear"]["estimate"].coef_ for parts in models.values())
    assert not np.allclose(plain, weighted)
    again = refit(work, config, ensemble, fit(work, config, ensemble, history))
    assert again.refitted
    assert again.params == ensemble.params
    assert evaluate(work, config, fit(work, config, ensemble, history)).importance


def test_a_class_that_appears_late(tmp_path: Path) -> None:
    """Folds without the class predict the probability 0 for it; the ensemble keeps the order of the classes."""
    table = make_mixed_table("grade").assign(at=pd.date_range("2026-01-01", periods=900, freq="h"))
    table.loc[:500, "y"] = table["y"][:501].replace("high", "low")
    data = {"time": "at", "columns": {"at": "ignore"}}  # with a time, boosting alone would be selected
    work, config = prepare_workspace(tmp_path, table, candidates=[*PARTS, "ensemble"], data=data)
    _, ensemble = run_candidates(work, config)
    assert not ensemble.failed
    saved = load_out_of_fold_predictions(work, "ensemble")
    assert saved is not None
    assert saved.predictions.probabilities is not None
    high = saved.predictions.probabilities[:, work.contract().classes.index("high")]
    assert (high[saved.fold == 0] == 0).all()
    assert (high[saved.fold == 2] > 0).any()
    np.testing.assert_allclose(saved.predictions.probabilities.sum(axis=1), 1)


def test_the_budget_counts_all_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each part fits into half of the budget, but not both: the ensemble is left out with the reason."""
    work, config = prepare_workspace(tmp_path, make_mixed_table("value"), candidates=[*PARTS, "ensemble"], budget="1m")
    cost = FitCost(rows=[720], fit_seconds=[20.0], row_seconds=[0.0])
    monkeypatch.setattr(budget, "CELLS_A_SECOND", 1)
    monkeypatch.setattr(budget, "measure_cost", lambda *arguments: cost)
    budget_limits = budget.plan_fits(work, config)
    limits = {each.candidate: each for each in budget_limits.candidates}
    assert limits["linear"].left_out == limits["boosting"].left_out == ""
    assert limits["ensemble"].left_out.startswith("its fits on all 722 rows would take about 40 s")
    scores = save_predictions(work, config, {"linear": [1.0] * 3, "boosting": [-1.0] * 3})
    result = cross_validate_ensemble(work, config, ENSEMBLE, scores, budget_limits)
    assert result.failed == "left out (budget)"
    assert result.reductions == (f"ensemble is left out: {limits['ensemble'].left_out}",)
    assert BudgetLimits(candidates=(CandidateLimits(candidate="linear"),)).limits_of(ENSEMBLE).left_out == ""


@pytest.mark.parametrize(
    ("candidates", "message"),
    [
        (["linear", "forest", {"estimator": "ensemble", "of": ["linear", "forrest"]}], "did you mean forest?"),
        (["linear", "forest", {"estimator": "ensemble", "of": ["linear", "baseline"]}], "combines the baseline"),
        (["linear", "forest", {"estimator": "ensemble", "of": ["linear", "linear"]}], "'linear' twice"),
        (["linear", "forest", {"estimator": "ensemble", "of": ["linear"]}], "fewer than two candidates"),
        (["linear", "ensemble"], "fewer than two candidates"),
        (
            ["linear", "forest", "ensemble", {"estimator": "ensemble", "name": "second", "of": ["linear", "ensemble"]}],
            "'ensemble', which is an ensemble",
        ),
        (["linear", {"estimator": "forest", "of": ["linear"]}], "of is for an ensemble, and the estimator is forest"),
        (["linear", "forest", {"estimator": "ensemble", "params": {"alpha": 1}}], "an ensemble has no params"),
        (["linear", "forest", {"estimator": "ensemble", "weights": "balanced"}], "an ensemble has no weights"),
        (["linear", "forest", {"estimator": "ensemble", "search": {"trials": 2}}], "an ensemble has no search"),
        (["linear", "forest", {"estimator": "ensemble", "of": "linear"}], "must be a list"),
    ],
)  # fmt: skip
def test_invalid_ensembles_are_config_errors(candidates: list[Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        build_config({"name": "t", "data": {"source": "x", "target": "y"}, "candidates": candidates}, "test")
    assert message in " ".join(error.value.details)
