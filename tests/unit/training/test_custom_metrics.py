"""Metrics and checks of the project: imported, called with labels or probabilities, and weighted."""

import textwrap
from pathlib import Path

import numpy as np
import pytest

from tests.support.checks import at_least_one
from towline.config import CustomMetric, PipelineConfig, build_config
from towline.data.schema.contract import Contract
from towline.errors import ConfigError, FitError
from towline.training.evaluation.bootstrap import draw_weights, resample_metric
from towline.training.evaluation.definitions import Metric, metrics_of, primary_metric
from towline.training.evaluation.metrics import compute_metrics
from towline.training.evaluation.predictions import Predictions
from towline.training.model_selection.config_checks import check_config

MODULE = """
    import numpy as np

    def profit(y_true, y_pred):
        return 10 * np.sum((y_true == "yes") & (y_pred == "yes")) - np.sum(y_pred == "yes")

    def weighted_profit(y_true, y_pred, sample_weight=None):
        weight = np.ones(len(y_true)) if sample_weight is None else sample_weight
        return 10 * weight[(y_true == "yes") & (y_pred == "yes")].sum() - weight[y_pred == "yes"].sum()

    def mean_of_positive(y_true, y_pred):
        assert y_pred.ndim == 1
        return float(y_pred.mean())

    def undefined(y_true, y_pred):
        raise ValueError("only one class")

    def broken(y_true, y_pred):
        return "much"[5]

    NUMBER = 3
"""
CONTRACT = Contract(target="y", task="binary", columns=(), classes=("no", "yes"), positive="yes")


@pytest.fixture(autouse=True)
def _project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shop_metrics.py").write_text(textwrap.dedent(MODULE))
    monkeypatch.syspath_prepend(str(tmp_path))


def predictions(n: int) -> tuple[np.ndarray, Predictions]:
    rng = np.random.default_rng(5)
    truth, positive = rng.choice(np.array(["no", "yes"], dtype=object), n), rng.random(n)
    labels = np.where(positive > 0.5, "yes", "no").astype(object)
    return truth, Predictions(labels, np.column_stack([1 - positive, positive]))


def config(**evaluation: object) -> PipelineConfig:
    return build_config(
        {"name": "shop", "data": {"source": "x.csv", "target": "y"}, "evaluation": evaluation}, "x.yaml"
    )


def test_a_custom_metric_gets_labels_and_is_measured_beside_the_built_in_ones() -> None:
    truth, answers = predictions(50)
    metrics = metrics_of(config(custom=["shop_metrics:profit"]), "binary")
    measured = compute_metrics(truth, answers, CONTRACT, metrics=metrics)
    hits = int(np.sum((truth == "yes") & (answers.labels == "yes")))
    assert measured["profit"] == 10 * hits - int(np.sum(answers.labels == "yes"))
    assert {"roc_auc", "f1"} < measured.keys()


def test_rows_are_repeated_for_a_function_without_sample_weight() -> None:
    """Every resample has the same value with and without ``sample_weight``."""
    truth, answers = predictions(60)
    weights = draw_weights(60, 50, seed=1)
    with_weight, without = (
        resample_metric(truth, answers, CONTRACT, Metric.custom(CustomMetric(function=f"shop_metrics.{name}")), weights)
        for name in ("weighted_profit", "profit")
    )
    assert (with_weight == without).all()
    assert len(set(without)) > 5


def test_probabilities_of_a_binary_task_are_those_of_the_positive_class() -> None:
    truth, answers = predictions(30)
    metric = Metric.custom(CustomMetric(function="shop_metrics.mean_of_positive", response="probabilities"))
    assert answers.probabilities is not None
    expected = answers.probabilities[:, 1].mean()
    assert compute_metrics(truth, answers, CONTRACT, metrics=[metric])[metric] == pytest.approx(expected)
    no_probabilities = Predictions(answers.labels)
    assert np.isnan(compute_metrics(truth, no_probabilities, CONTRACT, metrics=[metric])[metric])


def test_a_value_error_means_undefined_and_is_reported() -> None:
    truth, answers = predictions(10)
    metric = Metric.custom(CustomMetric(function="shop_metrics.undefined"))
    with pytest.warns(UserWarning, match="undefined is undefined: ValueError: only one class"):
        assert np.isnan(compute_metrics(truth, answers, CONTRACT, metrics=[metric])["undefined"])


def test_any_other_error_names_the_metric() -> None:
    truth, answers = predictions(10)
    metric = Metric.custom(CustomMetric(function="shop_metrics.broken", name="gain"))
    with pytest.raises(FitError, match="the metric gain failed: IndexError") as error:
        compute_metrics(truth, answers, CONTRACT, metrics=[metric])
    assert error.value.where == "evaluation.custom.gain"


def test_the_primary_metric_may_be_a_custom_one() -> None:
    entry = {"function": "shop_metrics.profit", "name": "loss_of_shop", "higher_is_better": False}
    metric = primary_metric(config(metric="loss_of_shop", custom=[entry]), "binary")
    assert (str(metric), metric.greater_is_better) == ("loss_of_shop", False)


def test_wrong_names_are_errors_before_anything_is_fitted() -> None:
    """Each error says where, and its remedy names something that exists."""
    cases = {
        "shop_metrics.profits": ("has no function 'profits'", "did you mean profit?"),
        "shop_metrics.NUMBER": ("has no function 'NUMBER'", "known: broken"),
        "shop_metric.profit": ("cannot import 'shop_metric'", "pip install shop_metric"),
        "sklearn.metrics.mean_absolute_error": ("is not in your project", "write a function in your project"),
        "numpy.mean": ("the config does not trust numpy", "package: {trusted: [numpy]}"),
        "os.system": ("it is part of Python", "your project"),
    }
    for function, (what, remedy) in at_least_one(cases.items()):
        for keys, where in (
            ({"evaluation": {"custom": [function]}}, "evaluation.custom."),
            ({"gate": {"custom": [function]}}, "gate.custom."),
        ):
            built = build_config({"name": "shop", "data": {"source": "x.csv", "target": "y"}, **keys}, "x.yaml")
            with pytest.raises(ConfigError, match=what) as error:
                check_config(built)
            assert remedy in error.value.remedy
            assert str(error.value.where).startswith(where)


def test_names_in_a_config_are_checked() -> None:
    with pytest.raises(ConfigError) as error:
        config(metric="profitt", custom=["shop_metrics.profit"])
    assert "evaluation.metric" in str(error.value)
    assert "did you mean profit?" in str(error.value)
    with pytest.raises(ConfigError, match="not valid") as error:
        config(custom=["shop_metrics.profit", {"function": "shop_metrics.weighted_profit", "name": "profit"}])
    assert "two metrics have the name 'profit'" in str(error.value)
    with pytest.raises(ConfigError, match="not valid") as error:
        config(custom=[{"function": "shop_metrics.profit", "name": "f1"}])
    assert "two metrics have the name 'f1'" in str(error.value)
