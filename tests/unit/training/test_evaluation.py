"""Metrics equal those of scikit-learn, intervals contain the true value, and slices and importance are correct."""

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import skops.io
from sklearn import metrics as sk
from sklearn.dummy import DummyClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from towline.config import METRICS, PipelineConfig, Task
from towline.data.schema.contract import Contract
from towline.data.schema.inference import infer_contract
from towline.errors import ConfigError, ReleaseError
from towline.training import model_io
from towline.training.evaluation.bootstrap import draw_weights, percentile_interval, resample_metric, resampling_units
from towline.training.evaluation.holdout import Evaluation, evaluate, find_slices, load_evaluation_predictions
from towline.training.evaluation.metrics import compute_metrics, predict
from towline.training.evaluation.predictions import Interval, Predictions
from towline.training.pipeline_components import Classifier

DATA = Path(__file__).parents[3] / "data"
LABELS = np.array(["a", "b", "c", "d"], dtype=object)


def _contract(task: str, classes: tuple[Any, ...] = (), positive: Any = None) -> Contract:
    return Contract(target="y", task=task, columns=(), classes=classes, positive=positive)


def _case(task: str, n: int, seed: int) -> tuple[np.ndarray, Predictions, Contract]:
    """Rounded values, so that truth, predictions and probabilities have many ties."""
    rng = np.random.default_rng(seed)
    if task == "regression":
        truth = rng.integers(0, 5, n).astype(float)
        return truth, Predictions(np.round(truth + rng.normal(size=n), 1)), _contract(task)
    k = 2 if task == "binary" else 4
    chances = np.round(rng.dirichlet(np.ones(k), n), 1) + 0.02
    chances /= chances.sum(axis=1, keepdims=True)
    answers = Predictions(LABELS[rng.integers(0, k, n)], chances)
    positive = "ab"[seed % 2] if k == 2 else None
    return LABELS[rng.integers(0, k, n)], answers, _contract(task, tuple(LABELS[:k]), positive)


def _sklearn_metrics(
    truth: np.ndarray, answers: Predictions, contract: Contract, weights: np.ndarray
) -> dict[str, float]:
    """The metrics by scikit-learn; NaN where a metric is undefined."""
    counted = weights > 0
    truth, answers, w = truth[counted], answers.take(counted), {"sample_weight": weights[counted]}
    metrics: dict[str, float] = dict.fromkeys(METRICS[contract.task], np.nan)
    if not len(truth):
        return metrics
    if contract.task == "regression":
        metrics["mae"] = sk.mean_absolute_error(truth, answers.labels, **w)
        metrics["rmse"] = sk.root_mean_squared_error(truth, answers.labels, **w)
        if truth.min() < truth.max():
            metrics["r2"] = sk.r2_score(truth, answers.labels, **w)
        if (nonzero := truth != 0).any():
            nonzero_w = {"sample_weight": w["sample_weight"][nonzero]}
            metrics["mape"] = sk.mean_absolute_percentage_error(truth[nonzero], answers.labels[nonzero], **nonzero_w)
        return metrics
    truth, labels = truth.astype(str), answers.labels.astype(str)
    assert answers.probabilities is not None
    metrics["accuracy"] = sk.accuracy_score(truth, labels, **w)
    metrics["log_loss"] = sk.log_loss(truth, answers.probabilities, labels=list(contract.classes), **w)
    ratios = {"f1": sk.f1_score, "precision": sk.precision_score, "recall": sk.recall_score}
    if contract.task == "multiclass":
        metrics |= {
            name: ratio(truth, labels, average="macro", zero_division=0.0, **w) for name, ratio in ratios.items()
        }
        by_class = [
            sk.roc_auc_score(truth == label, answers.probabilities[:, number], **w)
            for number, label in enumerate(contract.classes)
            if 0 < (truth == label).sum() < len(truth)
        ]
        return metrics | {"roc_auc": float(np.mean(by_class)) if by_class else np.nan}
    hits, chances = truth == contract.positive, answers.probabilities[:, contract.classes.index(contract.positive)]
    metrics["brier"] = sk.brier_score_loss(hits, chances, pos_label=True, **w)
    if hits.any():
        predicted = labels == contract.positive
        metrics |= {name: ratio(hits, predicted, zero_division=0.0, **w) for name, ratio in ratios.items()}
        metrics["average_precision"] = sk.average_precision_score(hits, chances, **w)
    if 0 < hits.sum() < len(hits):
        metrics["roc_auc"] = sk.roc_auc_score(hits, chances, **w)
    return metrics


@pytest.mark.parametrize("task", METRICS)
@pytest.mark.parametrize("n", [1, 2, 9, 80])
def test_metrics_equal_those_of_scikit_learn(task: str, n: int) -> None:
    """Each metric equals that of scikit-learn under each weighting, also with ties and where it is undefined."""
    rng = np.random.default_rng(n)
    for seed in range(2):
        truth, answers, contract = _case(task, n, seed)
        for weights in (draw_weights(n, 8, seed), rng.random((8, n)) * (rng.random((8, n)) > 0.3)):
            expected = [_sklearn_metrics(truth, answers, contract, row) for row in weights]
            for metric in METRICS[task]:
                np.testing.assert_allclose(
                    resample_metric(truth, answers, contract, metric, weights),
                    [metrics[metric] for metrics in expected],
                    atol=1e-12,
                )


def test_weighted_metrics_equal_those_of_scikit_learn() -> None:
    """Weighted metrics equal those of scikit-learn for the positive class, whichever label it has."""
    truth, answers, contract = _case("binary", 200, 0)
    assert answers.probabilities is not None
    weight = np.random.default_rng(0).random(200)
    metrics = compute_metrics(truth, answers, contract, weight)
    hit, chance = truth == "a", answers.probabilities[:, 0]
    assert metrics["roc_auc"] == pytest.approx(sk.roc_auc_score(hit, chance, sample_weight=weight))
    assert metrics["f1"] == pytest.approx(sk.f1_score(truth, answers.labels, pos_label="a", sample_weight=weight))
    assert metrics["log_loss"] == pytest.approx(sk.log_loss(hit, chance, sample_weight=weight))
    truth, answers, contract = _case("multiclass", 200, 0)
    metrics = compute_metrics(truth, answers, contract)
    assert metrics["roc_auc"] == pytest.approx(sk.roc_auc_score(truth, answers.probabilities, multi_class="ovr"))


@pytest.mark.filterwarnings("error")
def test_undefined_metrics_are_nan() -> None:
    """NaN without a warning: no positive row or no probability, a constant truth, zeros, NaN."""
    contract = _contract("binary", (False, True), True)
    none = compute_metrics(
        np.array([False] * 5, dtype=object), Predictions(np.zeros(5, dtype=bool), np.full((5, 2), 0.5)), contract
    )
    assert {name for name, value in none.items() if np.isnan(value)} == {
        "roc_auc", "average_precision", "f1", "precision", "recall",
    }  # fmt: skip
    bare = compute_metrics(np.array([False, True], dtype=object), Predictions(np.array([True, True])), contract)
    assert np.isnan(bare["roc_auc"])
    assert bare["recall"] == 1.0
    flat = compute_metrics(np.zeros(4), Predictions(np.ones(4)), _contract("regression"))
    assert np.isnan(flat["r2"])
    assert np.isnan(flat["mape"])
    assert flat["mae"] == 1.0
    some = compute_metrics(np.array([0.0, 10.0]), Predictions(np.array([5.0, 11.0])), _contract("regression"))
    assert some["mape"] == pytest.approx(0.1)
    broken = compute_metrics(np.arange(3.0), Predictions(np.array([1.0, np.nan, 2.0])), _contract("regression"))
    assert all(np.isnan(value) for value in broken.values())


def test_classes_that_did_not_occur_in_training() -> None:
    """Probabilities are in the contract's order, 0 for a class that did not occur in training."""
    model = Classifier(make_pipeline(FunctionTransformer(), DummyClassifier()), ("a", "b", "c"))
    rows = pd.DataFrame({"x": range(10)})
    model.fit(rows, np.array(["c"] * 7 + ["a"] * 3, dtype=object))
    answers = predict(model, rows[:2], _contract("multiclass", ("a", "b", "c")))
    assert answers.labels.tolist() == ["c", "c"]
    assert answers.probabilities is not None
    np.testing.assert_allclose(answers.probabilities, [[0.3, 0, 0.7]] * 2)


@pytest.mark.slow
def test_intervals_cover_the_true_value() -> None:
    """About 95 % of the intervals contain the true value; with correlated neighbours only if blocks are resampled."""
    rng = np.random.default_rng(0)
    contract = _contract("regression")
    held = {"rows": 0, "blocks": 0, "alone": 0}
    for seed in range(150):
        noise = rng.normal(size=900)
        alike = np.convolve(rng.normal(size=910), np.ones(11) / np.sqrt(11), "valid")
        for name, errors, block in (("alone", noise, 1), ("rows", alike, 1), ("blocks", alike, 30)):
            truth, answers = np.zeros(900), Predictions(1.0 + 0.1 * errors)
            drawn = draw_weights(900, 200, seed, np.arange(900) // block)
            interval = percentile_interval(1.0, resample_metric(truth, answers, contract, "mae", drawn))
            assert interval.low is not None
            assert interval.high is not None
            held[name] += interval.low <= 1.0 <= interval.high
    assert held["alone"] >= 134
    assert held["blocks"] >= 125
    assert held["rows"] < 90


def test_resampling_units() -> None:
    """Groups are drawn whole, times in blocks of consecutive rows, other rows and rows without a group singly."""
    rows = pd.DataFrame({"t": pd.date_range("2024", periods=100)[::-1], "g": np.repeat(list("abcde"), 20), "y": 1.0})

    def drawn(by: str = "auto", **data: Any) -> np.ndarray:
        config = {"name": "t", "data": {"source": "x", "target": "y", **data}, "split": {"by": by}}
        return resampling_units(rows, PipelineConfig.model_validate(config))

    assert list(drawn(group="g")) == [0] * 20 + [1] * 20 + [2] * 20 + [3] * 20 + [4] * 20
    rows["some"] = rows["g"].where(rows["g"] != "a")
    assert list(drawn(group="some")) == [*range(4, 24), *([0] * 20 + [1] * 20 + [2] * 20 + [3] * 20)]
    assert list(drawn(time="t")) == [9 - place // 10 for place in range(100)]
    assert list(drawn("random", time="t")) == list(drawn()) == list(range(100))
    counts = draw_weights(100, 8, 0, drawn(group="g"))
    assert (counts.reshape(8, 5, 20) == counts[:, ::20, None]).all()
    assert (counts.sum(axis=1) == 100).all()
    assert (draw_weights(100, 8, 0) == draw_weights(100, 8, 0)).all()
    assert (draw_weights(100, 8, 0) != draw_weights(100, 8, 1)).any()


def test_memory_is_bounded() -> None:
    """60,000 rows and 200 resamples of a ranking metric need no matrix of floats as large as the counts."""
    rng = np.random.default_rng(0)
    chance = rng.random(60_000)
    answers = Predictions(np.zeros(60_000, dtype=int), np.column_stack([1 - chance, chance]))
    drawn = draw_weights(60_000, 200, 0)
    tracemalloc.start()
    resample_metric(rng.integers(0, 2, 60_000), answers, _contract("binary", (0, 1), 1), "roc_auc", drawn)
    assert tracemalloc.get_traced_memory()[1] < 40e6
    tracemalloc.stop()


@pytest.mark.slow
def test_evaluation_of_the_bike_table(train: Callable[..., Any]) -> None:
    """Metrics have intervals, slices add up, the hour is the most important column; all is equal after JSON."""
    data = {"time": "datetime", "drop": ["casual", "registered"], "window": "90d"}
    work, config, _, fitted = train(DATA / "bike_hourly.parquet", "rentals", "boosting", data=data)
    evaluation = evaluate(work, config, fitted)
    assert Evaluation.model_validate_json(work.file("evaluation.json").read_bytes()) == evaluation
    assert set(evaluation.metrics) == set(evaluation.baseline) == set(METRICS["regression"])
    mae = evaluation.metrics["mae"]
    assert mae.low is not None
    assert mae.high is not None
    assert mae.value is not None
    assert mae.low < mae.value < mae.high < (evaluation.baseline["mae"] or 0)
    assert evaluation.importance[0][0] == "hour"
    assert len(evaluation.importance) == len(work.contract().feature_columns)
    weekday = [part for part in evaluation.slices if part.column == "weekday"]
    assert sum(part.rows for part in weekday) == evaluation.rows
    whole = sum(part.rows * (part.metric.value or 0) for part in weekday) / evaluation.rows
    assert whole == pytest.approx(mae.value)
    assert any("consecutive rows" in note for note in evaluation.notes)
    truth, answers, dummy = load_evaluation_predictions(work)
    assert compute_metrics(truth, answers, work.contract())["mae"] == pytest.approx(mae.value)
    assert compute_metrics(truth, dummy, work.contract())["mae"] == pytest.approx(evaluation.baseline["mae"])
    assert evaluate(work, config, fitted) == evaluation


@pytest.mark.parametrize("labels", [("no", "yes"), (0, 1), (False, True), ("x", "y", "$z$")])
def test_labels_of_any_type(train: Callable[..., Any], labels: tuple[Any, ...]) -> None:
    """Classes of any type are unchanged after they were stored."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=400)
    places = np.digitize(x + 0.5 * rng.normal(size=400), np.linspace(-0.5, 0.5, len(labels) - 1))
    table = pd.DataFrame({"x": x, "noise": rng.normal(size=400), "y": [labels[place] for place in places]})
    work, config, _, fitted = train(table)
    evaluation = evaluate(work, config, fitted)
    assert (evaluation.metrics["accuracy"].value or 0) > 0.6
    truth, answers, _ = load_evaluation_predictions(work)
    assert {type(label) for label in truth} == {type(labels[0])}
    assert set(answers.labels) <= set(labels)
    assert evaluation.importance[0][0] == "x"
    assert "NaN" not in json.dumps(evaluation.model_dump(mode="json"))


@pytest.mark.parametrize(
    ("task", "metric", "value"),
    [
        ("binary", "roc_auc", 1.0),
        ("multiclass", "f1", 0.9999),
        ("regression", "r2", 0.9998),
        ("binary", "roc_auc", 0.99),
    ],
)
def test_a_nearly_perfect_model_has_advice(task: Task, metric: str, value: float) -> None:
    """Leaks of several columns are not found in the table, but the holdout shows them; the advice names the columns."""
    importance = (("died_at", 0.3, 0.01), ("age", -0.1, 0.01))
    evaluation = Evaluation(
        task=task, primary=metric, rows=90, metrics={metric: Interval(value=value)}, baseline={}, slices=(),
        importance=importance, notes=(),
    )  # fmt: skip
    assert ("nearly perfect" in evaluation.advice) == (value > 0.999)
    assert evaluation.advice.endswith("or set data.drop: died_at, age" if value > 0.999 else "")


def test_slices_of_long_codes_stay_apart() -> None:
    """Numbers with more than six digits are named in full."""
    rows = pd.DataFrame({"branch": [1_000_001, 1_000_002, None] * 40, "y": np.arange(120) / 7})
    raw = {"name": "t", "data": {"source": "t", "target": "y"}, "evaluation": {"slices": ["branch"]}}
    config = PipelineConfig.model_validate(raw)
    slices, _ = find_slices(rows, infer_contract(rows, config), config)
    assert [(part.value, len(part.rows)) for part in slices] == [("1000001", 40), ("1000002", 40), ("missing", 40)]


def test_slices() -> None:
    """By default features with few values, by config any column; a misspelt name is reported with the similar name."""
    rng = np.random.default_rng(0)
    rows = pd.DataFrame(
        {
            "y": rng.normal(size=500),
            "few": rng.choice(["a", "b", "rare"], 500, p=[0.6, 0.38, 0.02]),
            "many": rng.normal(size=500),
            "day": pd.Timestamp("2024-01-01") + pd.to_timedelta(rng.integers(0, 60, 500), "D"),
            "count": rng.integers(0, 3, 500).astype(float),
        }
    )
    rows.loc[:99, "count"] = np.nan

    def config(**evaluation: Any) -> PipelineConfig:
        data = {"name": "t", "data": {"source": "x", "target": "y"}, "evaluation": evaluation}
        return PipelineConfig.model_validate(data)

    contract = infer_contract(rows, config())
    slices, notes = find_slices(rows, contract, config())
    assert [(cut.column, cut.value) for cut in slices] == [
        ("few", "a"), ("few", "b"), ("count", "0"), ("count", "1"), ("count", "2"), ("count", "missing"),
    ]  # fmt: skip
    assert not notes
    assert all((rows["few"].iloc[cut.rows] == cut.value).all() for cut in slices[:2])
    requested, _ = find_slices(rows, contract, config(slices=["many", "day"]))
    assert [len(cut.rows) for cut in requested[:4]] == [125] * 4
    assert [cut.value for cut in requested[4:]] == ["2024-01", "2024-02"]
    with pytest.raises(ConfigError, match="did you mean many"):
        find_slices(rows, contract, config(slices=["mny"]))
    wide = pd.DataFrame({f"c{at}": rng.choice(list("abcdefghij"), 2000) for at in range(9)} | {"y": rng.random(2000)})
    limited, notes = find_slices(wide, infer_contract(wide, config()), config())
    assert len(limited) == 60
    assert "c6, c7, c8 left out" in notes[0]


def test_only_known_types_are_loaded(tmp_path: Path) -> None:
    """A file that names a function, or is damaged or missing, is rejected before any object is built."""
    path = tmp_path / "model.skops"
    skops.io.dump(FunctionTransformer(tracemalloc.start), path)
    with pytest.raises(ReleaseError, match=r"not trusted: _tracemalloc\.start"):
        model_io.load_model(path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ReleaseError, match="cannot be read"):
        model_io.load_model(path)
    with pytest.raises(ReleaseError, match="no such model file"):
        model_io.load_model(tmp_path / "absent.skops")


def test_packages_are_trusted_by_the_config() -> None:
    """Packages of candidates and ``package.trusted``: the module of scikit-learn estimators, nothing for LightGBM."""
    names = ["linear", "lightgbm.LGBMRegressor", "sklearn.gaussian_process.GaussianProcessRegressor", "own.Mean"]
    config = {"name": "t", "data": {"source": "x", "target": "y"}, "candidates": names}
    config["package"] = {"trusted": ["third"]}
    assert model_io.trusted_packages(PipelineConfig.model_validate(config)) == (
        "own",
        "sklearn.gaussian_process",
        "third",
    )
