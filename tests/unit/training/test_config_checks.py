"""Errors in a config are found before any data is loaded."""

from typing import Any

import pytest

from tests.support.serving import make_contract
from towline.config import build_config
from towline.errors import ConfigError
from towline.training.model_selection.config_checks import check_columns, check_config

WRONG: dict[str, tuple[dict[str, Any], str, str, str]] = {
    "unknown estimator": (
        {"candidates": ["boostin"]}, "unknown estimator 'boostin'", "candidates.boostin", "did you mean boosting?",
    ),
    "missing package": (
        {"candidates": ["absent_package.trees.Tree"]}, "it is not installed", "candidates.Tree",
        "pip install absent_package",
    ),
    "no such class": (
        {"candidates": ["sklearn.svm.SVRR"]}, "no class 'SVRR'", "candidates.SVRR", "did you mean SVR?",
    ),
    "unknown parameter": (
        {"candidates": [{"estimator": "forest", "params": {"n_estimator": 3}}]}, "no parameter 'n_estimator'",
        "candidates.forest.params", "did you mean n_estimators?",
    ),
    "classifier for a number": (
        {"task": "regression", "candidates": ["sklearn.svm.SVC"]}, "not a scikit-learn regressor", "candidates.SVC",
        "give a regressor",
    ),
    "candidates of two tasks": (
        {"candidates": ["sklearn.svm.SVR", "sklearn.svm.SVC"]}, "SVC is not a scikit-learn regressor",
        "candidates.SVC", "give a regressor",
    ),
    "range upside down": (
        {"candidates": [{"estimator": "linear", "search": {"space": {"alpha": [5, 1]}}}]}, "not a range or a choice",
        "search.space.alpha", "low < high",
    ),
    "unknown parameter of a search": (
        {"candidates": [{"estimator": "forest", "search": {"space": {"max_featurs": [0.1, 1.0]}}}]},
        "no parameter 'max_featurs'", "candidates.forest", "did you mean max_features?",
    ),
    "search without a space": (
        {"task": "regression", "candidates": [{"estimator": "sklearn.svm.SVR", "search": {"trials": 3}}]},
        "no default search space", "candidates.SVR.search.space", "name the parameters",
    ),
    "gate metric of another task": (
        {"task": "binary", "gate": {"max": {"mae": 3}}}, "mae is not a metric of this task", "gate.max.mae", "roc_auc",
    ),
    "metrics of two tasks": (
        {"evaluation": {"metric": "roc_auc"}, "gate": {"max": {"mae": 3}}},
        "gate.max.mae is for regression, and evaluation.metric is for binary or multiclass", "gate.max.mae",
        "change one of them",
    ),
    "metric of another task than the estimator": (
        {"evaluation": {"metric": "mae"}, "candidates": ["sklearn.svm.SVC"]}, "SVC is not a scikit-learn regressor",
        "candidates.SVC", "the task is regression",
    ),
    "level of classes": (
        {"task": "binary", "data": {"source": "t", "target": "y", "time": "t", "detrend": "7d"}},
        "the target of a binary task has no trend", "data.detrend", "half_life",
    ),
    "weights of a number": (
        {"task": "regression", "candidates": [{"estimator": "linear", "weights": "balanced"}]},
        "class weights cannot be used", "candidates.linear.weights", "remove weights",
    ),
    "cron line": ({"schedule": {"drift": "0 25 * * *"}}, "not a cron line", "schedule.drift", "five fields"),
    "cron line of rollouts": (
        {"schedule": {"rollout": "hourly"}}, "not a cron line", "schedule.rollout", "five fields",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_invalid_configs_are_rejected_without_data(case: str) -> None:
    """The error has what, where and remedy, although the source does not exist."""
    changes, what, where, remedy = WRONG[case]
    config = build_config({"name": "t", "data": {"source": "nowhere.csv", "target": "y"}, **changes}, "t.yaml")
    with pytest.raises(ConfigError) as caught:
        check_config(config)
    assert what in caught.value.what
    assert where in caught.value.where
    assert remedy in caught.value.remedy


def test_the_task_of_the_data_is_checked_too() -> None:
    """A bound for numbers is accepted until the target has classes."""
    raw = {"name": "t", "data": {"source": "t.csv", "target": "y"}, "gate": {"max": {"mae": 3}}}
    config = build_config({**raw, "candidates": ["linear", {"estimator": "boosting", "search": {"trials": 2}}]}, "")
    check_config(config)
    check_config(config, "regression")
    with pytest.raises(ConfigError, match="mae is not a metric of this task"):
        check_config(config, "binary")


@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("evaluation.slices", {"evaluation": {"slices": ["kinds"]}}),
        ("drift.ignore", {"drift": {"ignore": ["kind", "kinds"]}}),
        ("rollout.key", {"rollout": {"key": "kinds"}}),
    ],
)
def test_a_column_that_does_not_exist_is_named_before_the_fits(key: str, change: dict[str, Any]) -> None:
    """The check includes keys that only the evaluation, monitoring or a rollout reads."""
    raw = {"name": "demo", "data": {"source": "t", "target": "price", "drop": ["id"]}}
    with pytest.raises(ConfigError, match="no column 'kinds' in the table") as caught:
        check_columns(build_config({**raw, **change}, "demo.yaml"), make_contract())
    assert (caught.value.where, caught.value.remedy) == (key, "did you mean kind?")


def test_columns_of_these_keys() -> None:
    """Slices may use the target; drift checks may ignore the predictions, and a dropped column."""
    raw = {
        "name": "demo", "data": {"source": "t", "target": "price", "drop": ["id"]}, "rollout": {"key": "kind"},
        "evaluation": {"slices": ["kind", "price"]}, "drift": {"ignore": ["kind", "id", "prediction", "probability"]},
    }  # fmt: skip
    check_columns(build_config(raw, "demo.yaml"), make_contract())
