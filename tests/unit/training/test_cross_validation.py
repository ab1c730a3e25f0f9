"""Candidates are compared on folds of the training rows; the selected one is fitted and stored."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import skops.io
from sklearn import metrics
from sklearn.linear_model import LogisticRegression

from tests.support.training import prepare_workspace
from towline.config import Candidate, PipelineConfig
from towline.data.schema.contract import Contract
from towline.data.workspace import Workspace
from towline.errors import ConfigError, FitError
from towline.inference.compiled.parity import certify
from towline.training import model_io
from towline.training.estimators import build_model, pipeline_of
from towline.training.evaluation.definitions import Metric
from towline.training.evaluation.predictions import Predictions
from towline.training.final_fit import fit
from towline.training.model_selection import cross_validation
from towline.training.model_selection.cross_validation import (
    CrossValidationResult,
    baseline_candidate,
    choose_candidate,
    cross_validate,
)
from towline.training.model_selection.fold_scores import FoldScores, best_threshold, measure_folds

DATA = Path(__file__).parents[3] / "data"


class UnreliableEstimator(LogisticRegression):
    """Fails, warns or is killed, as ``C`` says."""

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> "UnreliableEstimator":
        if self.C < 1:
            raise ValueError("too unreliable\nto go on")
        if self.C == 666:
            raise KeyboardInterrupt
        warnings.warn("not in the mood", UserWarning, stacklevel=1)
        warnings.warn("", UserWarning, stacklevel=1)
        return super().fit(X, y, sample_weight)  # type: ignore[no-any-return]


def _with(config: PipelineConfig, **evaluation: str) -> PipelineConfig:
    return config.model_copy(update={"evaluation": config.evaluation.model_copy(update=evaluation)})


def _binary(rows: int = 600, share: float = 0.04, labels: tuple[Any, Any] = ("no", "yes")) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, 3))
    rank = np.argsort(np.argsort(x[:, 0] + 0.5 * rng.normal(size=rows)))
    truth = [labels[int(place >= rows * (1 - share))] for place in rank]
    return pd.DataFrame({"a": x[:, 0], "b": x[:, 1], "c": x[:, 2], "y": truth})


def _load(work: Workspace, name: str = "model.skops") -> Any:
    path = work.file(name)
    return skops.io.load(path, trusted=skops.io.get_untrusted_types(file=path))


@pytest.mark.slow
def test_cross_validation_by_time(tmp_path: Path) -> None:
    """On the hourly bike table every candidate is better than the baseline, and the stored model is the scored one."""
    drop = ["casual", "registered", "season"]
    data = {"target": "rentals", "time": "datetime", "drop": drop, "window": "25d"}
    work, config = prepare_workspace(tmp_path, DATA / "bike_hourly.parquet", data=data)
    all_scores = [
        cross_validate(work, config, candidate) for candidate in (baseline_candidate(config), *config.candidates)
    ]
    assert all(scores.mean["mae"] < 0.8 * all_scores[0].mean["mae"] for scores in all_scores[1:])
    assert all(len(scores.folds) == 3 and not scores.failed and not scores.notes for scores in all_scores)
    chosen = choose_candidate(all_scores, config, "regression")
    fitted = fit(work, config, chosen)
    again = CrossValidationResult.model_validate_json(chosen.model_dump_json())
    assert again == chosen
    features, truth, _ = work.subset("train")
    assert fitted.rows == len(features)
    assert metrics.mean_absolute_error(truth, _load(work).predict(features)) < chosen.mean["mae"]
    assert np.unique(_load(work, "baseline.skops").predict(features)).tolist() == [np.median(truth)]


def _signal(rows: int = 500) -> pd.DataFrame:
    """A function without noise, its classes, and noise."""
    rng = np.random.default_rng(1)
    a, b, c = rng.uniform(-2, 2, (3, rows))
    signal = np.sin(3 * a) + b * c
    kind = pd.cut(pd.Series(signal), [-9, -1, 1, 9], labels=["low", "middle", "high"]).astype(str)
    return pd.DataFrame({"a": a, "b": b, "c": c, "signal": signal, "kind": kind, "noise": rng.normal(size=rows)})


@pytest.mark.slow
@pytest.mark.parametrize(("target", "least", "most"), [("signal", 60, 150), ("noise", 1, 15), ("kind", 15, 149)])
def test_boosting_of_a_small_table_stops_by_the_folds(tmp_path: Path, target: str, least: int, most: int) -> None:
    """All folds have the same number of iterations, as has the model on all rows. On noise it is small."""
    data = {"target": target, "drop": list({"signal", "kind", "noise"} - {target})}
    work, config = prepare_workspace(tmp_path, _signal(), data=data, candidates=["boosting"])
    params = {"min_samples_leaf": 20, "loss": "squared_error"} if target != "kind" else {}
    params |= {"max_leaf_nodes": 31, "max_iter": 150, "n_iter_no_change": 150}  # no fold stops earlier
    candidate = Candidate(estimator="boosting", params=params)
    chosen = cross_validate(work, config, candidate)
    iterations = chosen.params["max_iter"]
    assert least <= iterations <= most
    fixed = cross_validate(work, config, candidate.model_copy(update={"params": chosen.params}))
    assert fixed.params["early_stopping"] is False
    assert fixed.folds == chosen.folds
    fit(work, config, chosen)
    model, (features, labels, _) = _load(work), work.subset("train")
    assert pipeline_of(model).named_steps["estimate"].n_iter_ == iterations
    plain = build_model(candidate, work.contract(), config.seed, chosen.params).fit(features, labels)
    assert (model.predict(features) == plain.predict(features)).all()


@pytest.mark.parametrize(("rare", "leaf"), [(0.06, 5), (0.5, 20)])
def test_boosting_of_a_small_table_chooses_the_size_of_leaves(tmp_path: Path, rare: float, leaf: int) -> None:
    """Small leaves are selected if few rows differ from the others, but not for noise."""
    rng = np.random.default_rng(3)
    frame = pd.DataFrame({"x": rng.normal(size=400), "flag": (rng.random(400) < rare).astype(float)})
    frame["y"] = 40 * frame["flag"] + rng.normal(size=400)
    work, config = prepare_workspace(tmp_path, frame, evaluation={"metric": "rmse"})
    chosen = cross_validate(work, config, Candidate(estimator="boosting", params={"max_leaf_nodes": 31}))
    assert chosen.params.get("min_samples_leaf", 20) == leaf


@pytest.mark.parametrize("step", [1, 3])
def test_boosting_stops_by_folds_of_a_class_that_appears_late(tmp_path: Path, step: int) -> None:
    """A fold without the class in training does not stop by rows of the class, which may be all of its test rows."""
    rng = np.random.default_rng(5)
    frame = pd.DataFrame({"at": pd.date_range("2026-01-01", periods=300, freq="h"), "x": rng.normal(size=300)})
    frame["y"] = np.where(frame["x"] > 0, "a", "b")
    frame.loc[120:179:step, "y"] = "c"
    work, config = prepare_workspace(tmp_path, frame, data={"time": "at"})
    scores = cross_validate(work, config, Candidate(estimator="boosting"))
    assert (scores.failed, scores.params["early_stopping"]) == ("", False)
    assert scores.folds[0]["accuracy"] > 0.9


def test_threshold_for_rare_positives(tmp_path: Path) -> None:
    """With 4 % positives the threshold chosen on out-of-fold predictions beats 0.5, and the stored model uses it."""
    work, config = prepare_workspace(tmp_path, _binary())
    linear = Candidate(estimator="linear")
    tuned = cross_validate(work, config, linear)
    plain = cross_validate(work, _with(config, threshold="none"), linear)
    assert tuned.threshold is not None
    assert plain.threshold is None
    assert tuned.mean["f1"] > plain.mean["f1"]
    assert tuned.mean["roc_auc"] == plain.mean["roc_auc"]
    fit(work, config, tuned)
    model, features = _load(work), work.subset("holdout").features
    expected = np.where(model.predict_proba(features)[:, 1] >= tuned.threshold, "yes", "no")
    assert model.predict(features).tolist() == expected.tolist()


def test_thresholds_of_rare_classes(tmp_path: Path) -> None:
    """They raise macro F1, the stored model uses them, and probabilities stay as they are."""
    rng = np.random.default_rng(4)
    a, b = rng.normal(size=(2, 900))
    rare = rng.random(900) < 0.25
    y = np.select([(a > 0.8) & rare, (b > 0.8) & rare], ["rare", "seldom"], "usual")
    work, config = prepare_workspace(tmp_path, pd.DataFrame({"a": a, "b": b, "y": y}))
    linear = Candidate(estimator="linear")
    tuned, plain = cross_validate(work, config, linear), cross_validate(work, _with(config, threshold="none"), linear)
    assert plain.threshold is None
    assert isinstance(tuned.threshold, tuple)
    assert tuned.mean["f1"] > plain.mean["f1"] + 0.05
    assert tuned.mean["log_loss"] == plain.mean["log_loss"]
    fit(work, config, tuned)
    model, features = _load(work), work.subset("holdout").features
    expected = (model.predict_proba(features) / np.array(tuned.threshold)).argmax(axis=1)
    assert model.predict(features).tolist() == [["rare", "seldom", "usual"][place] for place in expected]
    by_probability = _with(config, metric="log_loss")
    assert cross_validate(work, by_probability, linear).threshold is None


@pytest.mark.parametrize("labels", [(0, 1), (False, True), ("b", "a")])
def test_binary_labels_of_any_type(tmp_path: Path, labels: tuple[Any, Any]) -> None:
    """Integers, booleans and strings: the threshold applies to the positive class and labels have their type."""
    work, config = prepare_workspace(tmp_path, _binary(share=0.3, labels=labels), data={"positive": labels[1]})
    scores = cross_validate(work, config, Candidate(estimator="linear"))
    assert scores.mean["roc_auc"] > 0.8
    assert scores.mean["f1"] > 0.6
    fit(work, config, scores)
    assert set(_load(work).predict(work.subset("holdout").features).tolist()) == set(labels)


def test_multiclass_probabilities(tmp_path: Path) -> None:
    """Probabilities of the out-of-fold predictions are in the contract's order."""
    rng = np.random.default_rng(1)
    frame = pd.DataFrame({"a": rng.normal(size=300), "h": [f"v{i}" for i in rng.integers(0, 98, 300)]})
    frame["y"] = np.select([frame["a"] > 0.5, frame["a"] < -0.5], ["zebra", "ant"], "mule")
    work, config = prepare_workspace(tmp_path, frame)
    scores = cross_validate(work, config, Candidate(estimator="forest"))
    assert scores.threshold is None
    assert scores.mean["f1"] > 0.8
    with np.load(work.file("oof-forest.npz")) as saved:
        truth = work.subset("train").labels[saved["rows"]]
        best = np.array(["ant", "mule", "zebra"])[saved["probabilities"].argmax(axis=1)]
        assert (best == truth).mean() > 0.8
        assert sorted(saved["rows"]) == list(range(len(truth)))


@pytest.mark.parametrize("metric", ["f1", "precision", "recall", "accuracy"])
def test_no_threshold_scores_higher(metric: str) -> None:
    """No threshold on the predictions scores higher, also with ties and extremes."""
    rng = np.random.default_rng(2)
    score = getattr(metrics, f"{metric}_score")
    for chance in (rng.random(60).round(1), rng.random(60), np.full(60, 0.3), np.r_[np.zeros(30), np.ones(30)]):
        truth = rng.random(60) < chance
        every = [score(truth, chance >= limit) for limit in np.unique(chance)]
        assert score(truth, chance >= best_threshold(truth, chance, True, metric)) == pytest.approx(max(every))


def test_results_do_not_depend_on_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One and several processors give the same scores and out-of-fold predictions."""
    work, config = prepare_workspace(tmp_path, _binary(share=0.3))
    results = []
    for processors in (1, 3):
        monkeypatch.setattr(cross_validation.joblib, "cpu_count", lambda count=processors: count)
        boosting = Candidate(estimator="boosting", params={"max_iter": 20})
        results.append(cross_validate(work, config, boosting).folds)
        results.append(np.load(work.file("oof-boosting.npz"))["probabilities"].tolist())
    assert results[:2] == results[2:]


def test_a_failed_candidate_does_not_end_the_run(
    tmp_path: Path, recwarn: pytest.WarningsRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cause is one line; warnings become notes; if all candidates fail, the error gives each reason."""
    monkeypatch.setattr(
        cross_validation.joblib, "cpu_count", lambda: 1
    )  # threads share their filters, and may miss a warning
    work, config = prepare_workspace(tmp_path, _binary(share=0.3))
    unreliable = Candidate(estimator=f"{__name__}.UnreliableEstimator", name="unreliable", params={"C": 0.5})
    failed = cross_validate(work, config, unreliable)
    assert failed.failed == "ValueError: too unreliable"
    warned = cross_validate(work, config, unreliable.model_copy(update={"params": {"C": 2.0}}))
    assert not warned.failed
    assert warned.notes == ("UserWarning: not in the mood", "UserWarning: ")
    assert not recwarn.list
    assert choose_candidate([failed, warned], config, "binary") is warned
    with pytest.raises(FitError) as caught:
        choose_candidate([failed], config, "binary")
    assert caught.value.details == ("unreliable: ValueError: too unreliable",)


def test_config_errors_are_raised(tmp_path: Path) -> None:
    """An unknown estimator or a metric of another task is a config error, not a failed candidate."""
    work, config = prepare_workspace(tmp_path, _binary(share=0.3))
    with pytest.raises(ConfigError, match="unknown estimator"):
        cross_validate(work, config, Candidate(estimator="bosting"))
    with pytest.raises(ConfigError, match="mae is not a metric of this task"):
        cross_validate(work, _with(config, metric="mae"), Candidate(estimator="linear"))


def test_a_search_is_never_worse(tmp_path: Path) -> None:
    """The best trial is at least as good as the candidate without a search; failed trials do not end the search."""
    work, config = prepare_workspace(tmp_path, _binary(share=0.3))
    plain = Candidate(estimator=f"{__name__}.UnreliableEstimator", name="unreliable", params={"C": 1.0})
    search = {
        "trials": 6,
        "space": {"C": {"low": 0.01, "high": 100, "log": True}, "fit_intercept": {"choices": [True, False]}},
    }
    searched = Candidate.model_validate({**plain.model_dump(), "search": search})
    before, after = cross_validate(work, config, plain), cross_validate(work, config, searched)
    assert after.trials == 6
    assert after.mean["roc_auc"] >= before.mean["roc_auc"]
    assert after.params["C"] >= 1
    again = cross_validate(work, config, searched)
    assert (again.params, again.trials) == (after.params, 6)


@pytest.mark.slow
def test_an_interrupted_search_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It keeps the complete trials, repeats the incomplete ones and draws the same parameters."""
    candidate = Candidate.model_validate({"estimator": "linear", "search": {"trials": 12}})
    drawn: dict[str, list[Any]] = {"whole": [], "killed": []}
    build = cross_validation.build_model

    def results(case: str, kill_at: int | None) -> CrossValidationResult:
        def spy(candidate: Candidate, contract: Any, seed: int, params: Any = None, *others: Any, **named: Any) -> Any:
            if params is not None and params not in drawn[case]:
                if len(drawn[case]) == kill_at:
                    raise KeyboardInterrupt
                drawn[case].append(params)
            return build(candidate, contract, seed, params, *others, **named)

        monkeypatch.setattr(cross_validation, "build_model", spy)
        return cross_validate(work, config, candidate)

    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    work, config = prepare_workspace(tmp_path / "whole", _binary(share=0.3))
    whole = results("whole", None)
    work, config = prepare_workspace(tmp_path / "killed", _binary(share=0.3))
    with pytest.raises(KeyboardInterrupt):
        results("killed", 11)
    ended = len(drawn["killed"])
    resumed = results("killed", None)
    assert ended == 11
    assert drawn["killed"] == drawn["whole"]
    assert (resumed.params, resumed.folds, resumed.trials) == (whole.params, whole.folds, 12)


@pytest.mark.parametrize(
    "spec",
    [
        [5, 1],
        [1],
        ["a", "b"],
        {"low": 0, "high": 1, "log": True},
        {"choices": []},
        {"low": 1},
        3,
        {"low": 1, "hihg": 2},
    ],
)
def test_invalid_search_space(tmp_path: Path, spec: object) -> None:
    """An invalid range is a config error that names the parameter."""
    work, config = prepare_workspace(tmp_path, _binary(share=0.3))
    search = {"trials": 2, "space": {"C": spec}}
    with pytest.raises(ConfigError) as caught:
        cross_validate(work, config, Candidate.model_validate({"estimator": "linear", "search": search}))
    assert caught.value.where == "candidates.linear.search.space.C"


def test_estimators_that_cannot_be_stored_are_rejected(tmp_path: Path) -> None:
    """If skops cannot write an estimator, it is rejected, and no incomplete model remains."""
    work, config = prepare_workspace(tmp_path, _binary(share=0.3))
    candidate = Candidate.model_validate({"estimator": f"{__name__}.Unstorable", "name": "odd"})
    config = config.model_copy(update={"candidates": (candidate,)})
    with pytest.raises(FitError, match="cannot be stored"):
        cross_validate(work, config, candidate)
    assert not list(work.path.glob("*.skops*"))


class Unstorable(LogisticRegression):
    """Stores a generator in its fit."""

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> "Unstorable":
        self.left_ = (row for row in ())
        return super().fit(X, y, sample_weight)  # type: ignore[no-any-return]


def test_a_category_of_many_levels_is_stored_and_read_back(tmp_path: Path) -> None:
    """98 levels are target-encoded; the stored model has types of the fixed list only."""
    table = _binary(share=0.3).assign(place=[f"L{row % 98}" for row in range(600)])
    work, config = prepare_workspace(tmp_path, table)
    fit(work, config, cross_validate(work, config, Candidate(estimator="linear")))
    assert len(model_io.load_model(work.file("model.skops")).predict(work.subset("holdout").features)) > 0


def test_estimators_that_store_rows_are_rejected_for_personal_data(tmp_path: Path) -> None:
    """Nearest neighbours contain the table: they are rejected if a column is pii, even if it is a number."""
    table = _binary().rename(columns={"x0": "age"})
    name = next(column for column in table.columns if column != "y")
    neighbours = [{"estimator": "sklearn.neighbors.KNeighborsClassifier"}]
    work, config = prepare_workspace(tmp_path, table, candidates=neighbours, privacy={"pii": [name]})
    with pytest.raises(ConfigError, match="stores the rows"):
        cross_validation.check_candidates(config, work.contract())
    (tmp_path / "other").mkdir()
    work, config = prepare_workspace(tmp_path / "other", table, candidates=neighbours)
    cross_validation.check_candidates(config, work.contract())


def _yearly_levels(slope: float, noise: float) -> pd.DataFrame:
    """Ten years of rows whose level changes steadily by the slope, and at random by the noise."""
    rng = np.random.default_rng(3)
    year = np.repeat(np.arange(2010, 2020), 60)
    level = slope * (year - 2010) + noise * rng.normal(size=10)[year - 2010]
    a = rng.normal(size=len(year))
    return pd.DataFrame(
        {"at": pd.to_datetime(year, format="%Y"), "a": a, "y": a + level + rng.normal(0, 0.1, len(year))}
    )


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ["linear", "forest"])
def test_cross_validation_chooses_whether_a_candidate_uses_the_time_trend(tmp_path: Path, estimator: str) -> None:
    chosen = {}
    for name, table in {"steady": _yearly_levels(3.0, 0.1), "random": _yearly_levels(0.0, 3.0)}.items():
        folder = tmp_path / name
        folder.mkdir()
        work, config = prepare_workspace(folder, table, data={"time": "at"})
        params = {"n_estimators": 20} if estimator == "forest" else {}
        candidate = Candidate(estimator=estimator, name=estimator, params=params)
        trends = (True, False, "extrapolate") if estimator == "linear" else (True, False)
        variants = [candidate.model_copy(update={"params": {**params, "time_trend": trend}}) for trend in trends]
        fixed = [cross_validate(work, config, variant) for variant in variants]
        scores = cross_validate(work, config, candidate)
        assert scores.mean["mae"] == min(each.mean["mae"] for each in fixed)
        chosen[name] = scores.params.get("time_trend", True)
        fitted = fit(work, config, scores)
        names = list(_load(work, fitted.file).named_steps["prepare"].get_feature_names_out())
        assert any("days" in name for name in names) == bool(chosen[name])
    assert chosen == {"steady": "extrapolate" if estimator == "linear" else True, "random": False}


@pytest.mark.slow
@pytest.mark.parametrize(("towns", "is_native"), [(30, True), (300, False)])
def test_boosting_splits_categories_natively_if_it_helps(tmp_path: Path, towns: int, is_native: bool) -> None:
    """A number acts differently in each town; with more than 254 towns, native splits are not possible."""
    rng = np.random.default_rng(5)
    town, x = rng.integers(0, towns, 1_500), rng.normal(size=1_500)
    y = rng.choice([-3.0, 3.0], towns)[town] * x + rng.normal(0, 0.3, 1_500)
    work, config = prepare_workspace(tmp_path, pd.DataFrame({"town": [f"t{n}" for n in town], "x": x, "y": y}))
    params = {"max_iter": 40, "min_samples_leaf": 10, "max_leaf_nodes": 31}
    scores = cross_validate(work, config, Candidate(estimator="boosting", name="boosting", params=params))
    assert scores.params.get("native_categories", False) == is_native
    names = _load(work, fit(work, config, scores).file).named_steps["prepare"].get_feature_names_out()
    assert [name for name in names if name.startswith("native")] == ["native__town"] * is_native
    encoded = Candidate(estimator="boosting", name="boosting", params={**params, "native_categories": False})
    gain = 1 - scores.mean["mae"] / cross_validate(work, config, encoded).mean["mae"]
    assert gain > 0.1 if is_native else gain == 0


@pytest.mark.parametrize("estimator", ["linear", "forest"])
def test_without_the_time_trend_a_model_uses_no_number_that_follows_the_time(tmp_path: Path, estimator: str) -> None:
    table = _yearly_levels(0.0, 3.0).assign(year=lambda frame: frame["at"].dt.year, b=lambda frame: -frame["a"])
    work, config = prepare_workspace(tmp_path, table, data={"time": "at"})
    assert work.contract().clock_columns.keys() == {"year"}
    scores = cross_validate(work, config, Candidate(estimator=estimator, name=estimator))
    assert scores.params["time_trend"] is False
    model = _load(work, fit(work, config, scores).file)
    names = model.named_steps["prepare"].get_feature_names_out()
    assert [name for name in names if "year" in name or "days" in name] == []
    features, _, _ = work.subset("holdout")
    later = features.assign(year=features["year"] + 100)
    assert (model.predict(later) == model.predict(features)).all()


@pytest.mark.parametrize("skewed", [True, False])
def test_boosting_minimizes_the_absolute_error_where_it_scores_better(tmp_path: Path, *, skewed: bool) -> None:
    rng = np.random.default_rng(0)
    a = rng.uniform(0, 2, 300)
    y = np.exp(a + rng.normal(0, 1.2, 300)) if skewed else 10 * a + rng.normal(0, 0.1, 300)
    work, config = prepare_workspace(tmp_path, pd.DataFrame({"a": a, "y": y}))
    losses = ("squared_error", "absolute_error")
    params = {"max_iter": 20, "early_stopping": False, "max_leaf_nodes": 31}
    quick = Candidate(estimator="boosting", name="boosting", params=params)
    fixed = {loss: quick.model_copy(update={"params": {**quick.params, "loss": loss}}) for loss in losses}
    means = {loss: cross_validate(work, config, candidate).mean["mae"] for loss, candidate in fixed.items()}
    scores = cross_validate(work, config, quick)
    assert scores.params.get("loss") == ("absolute_error" if skewed else None)
    assert scores.mean["mae"] == min(means.values())
    assert _load(work, fit(work, config, scores).file) is not None


@pytest.mark.parametrize(
    ("library", "trees", "params"),
    [
        ("lightgbm", "n_estimators", {"objective": "regression_l1"}),
        ("xgboost", "n_estimators", {"objective": "reg:absoluteerror"}),
        ("catboost", "iterations", {"loss_function": "MAE"}),
    ],
)
def test_libraries_minimize_the_absolute_error_too(
    tmp_path: Path, library: str, trees: str, params: dict[str, str]
) -> None:
    pytest.importorskip(library)
    rng = np.random.default_rng(0)
    a = rng.uniform(0, 2, 300)
    table = pd.DataFrame({"a": a, "y": np.exp(a + rng.normal(0, 1.2, 300))})
    quick = Candidate(estimator=library, name=library, params={trees: 20, "early_stopping_rounds": 0})
    work, config = prepare_workspace(tmp_path, table, candidates=[quick])
    scores = cross_validate(work, config, quick)
    assert scores.params == {**quick.params, **params}
    model, rows = _load(work, fit(work, config, scores).file), {"train": work.subset("train").features}
    certificate, _ = certify(model, work.contract(), rows, seed=1)
    assert certificate.compiled, certificate.reason


@pytest.mark.slow
@pytest.mark.parametrize(("relation", "leaves"), [("sum", 4), ("parity", None)])
def test_boosting_of_a_small_table_has_small_trees_where_they_score_better(
    tmp_path: Path, relation: str, leaves: int | None
) -> None:
    rng = np.random.default_rng(0)
    signs = rng.choice([-1.0, 1.0], (600, 5))
    y = signs.sum(axis=1) if relation == "sum" else signs.prod(axis=1)
    table = pd.DataFrame(signs, columns=list("abcde")).assign(y=y + rng.normal(0, 1, 600))
    work, config = prepare_workspace(tmp_path, table, evaluation={"metric": "rmse"})
    params = {"max_iter": 100, "early_stopping": False}
    boosting = Candidate(estimator="boosting", name="boosting", params=params)
    scores = cross_validate(work, config, boosting)
    assert scores.params.get("max_leaf_nodes") == leaves
    large = cross_validate(work, config, boosting.model_copy(update={"params": {**params, "max_leaf_nodes": 31}}))
    assert scores.mean["rmse"] < large.mean["rmse"] if leaves else scores.mean == large.mean


def test_variants_are_compared_on_few_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The final scores are those of all rows."""
    monkeypatch.setattr(cross_validation, "VARIANT_ROWS", 60)
    work, config = prepare_workspace(tmp_path, _yearly_levels(0.0, 3.0), data={"time": "at"})
    scores = cross_validate(work, config, Candidate(estimator="linear", name="linear"))
    assert scores.params == {"time_trend": False}
    fixed = cross_validate(work, config, Candidate(estimator="linear", name="linear", params=scores.params))
    assert (scores.mean, scores.rows) == (fixed.mean, fixed.rows)


def test_another_metric_leaves_the_loss_as_it_is(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    a = rng.uniform(0, 2, 300)
    table = pd.DataFrame({"a": a, "y": np.exp(a + rng.normal(0, 1.2, 300))})
    work, config = prepare_workspace(tmp_path, table, evaluation={"metric": "rmse"})
    params = cross_validate(work, config, Candidate(estimator="boosting", name="boosting")).params
    assert set(params) == {"max_iter", "early_stopping"}


def test_random_folds_do_not_choose_the_time_trend(tmp_path: Path) -> None:
    work, config = prepare_workspace(tmp_path, _yearly_levels(0.0, 3.0), data={"time": "at"}, split={"by": "random"})
    assert cross_validate(work, config, Candidate(estimator="linear", name="linear")).params == {}


def test_a_time_trend_that_is_neither_true_nor_false_is_refused(tmp_path: Path) -> None:
    work, config = prepare_workspace(tmp_path, _yearly_levels(3.0, 0.1), data={"time": "at"}, split={"by": "time"})
    candidate = Candidate(estimator="forest", name="forest", params={"time_trend": "no"})
    with pytest.raises(ConfigError, match="'no' is not true, false or extrapolate") as caught:
        cross_validate(work, config, candidate)
    assert caught.value.where == "candidates.forest.params.time_trend"


def test_a_prediction_that_is_not_finite_leaves_a_candidate_without_a_score() -> None:
    """The mean of its other folds may be that of the easy ones."""
    contract = Contract(target="y", task="regression", columns=())
    truth = [np.full(50, 10.0), np.full(50, 20.0)]
    good, bad = (Predictions(truth[0] - 1), Predictions(truth[1] - 1)), Predictions(np.full(50, np.nan))
    mae = (Metric.built_in("mae"),)
    scored = measure_folds(truth, FoldScores([*good], None, []), contract, mae)
    assert scored.summary(np.mean) == {"mae": 1.0}
    assert measure_folds(truth, FoldScores([good[0], bad], None, []), contract, mae).summary(np.mean) == {}
