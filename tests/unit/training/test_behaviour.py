"""Behaviour tests of the config: each kind passes for a model with the behaviour, and fails for a model without it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.support.checks import at_least_one
from tests.support.training import TrainedModel
from towline.config import PipelineConfig, build_config
from towline.data.schema.contract import Contract
from towline.errors import ConfigError
from towline.training.behaviour import behaviour_suite, groups
from towline.training.behaviour.results import BehaviourCheck
from towline.training.evaluation.bootstrap import draw_weights
from towline.training.evaluation.definitions import Metric
from towline.training.evaluation.holdout import evaluate
from towline.training.evaluation.predictions import Predictions

Train = Callable[..., TrainedModel]


def make_table(task: str = "number", rows: int = 500) -> pd.DataFrame:
    """The target rises by 3 with each unit of ``size``, and does not depend on ``colour``."""
    rng = np.random.default_rng(1)
    size, colour = rng.normal(10, 2, rows), rng.choice(["red", "green", "blue"], rows)
    value = 3 * size + rng.normal(0, 1, rows)
    y = value if task == "number" else np.where(value > 30, "yes", "no")
    return pd.DataFrame({"size": size, "colour": colour, "y": y})


def run_tests(train: Train, table: pd.DataFrame, behaviour: dict[str, Any], **config: Any) -> dict[str, BehaviourCheck]:
    """The results of the declared tests on a linear model of the table, by name."""
    trained = train(table, **config)
    config_ = trained.config.model_validate({**trained.config.model_dump(), "behaviour": behaviour})
    behaviour_suite.check_with_contract(config_, trained.work, Path())
    evaluate(trained.work, config_, trained.fitted)
    checks = behaviour_suite.run_behaviour_tests(trained.work, config_, trained.fitted, Path())
    return {check.name: check for check in checks}


def test_expected_predictions_of_a_number(train: Train) -> None:
    """A row must get the number within a tolerance or a range; missing columns get a typical value."""
    expect = [
        {"name": "ten", "row": {"size": 10}, "equals": 30, "tolerance": 2},
        {"name": "range", "row": {"size": 12, "colour": "red"}, "between": [34, 38]},
        {"name": "wrong", "row": {"size": 10}, "between": [50, 60]},
    ]
    checks = run_tests(train, make_table(), {"expect": expect})
    assert [check.outcome for check in checks.values()] == ["pass", "pass", "fail"]
    assert "expected 50 to 60" in checks["expect wrong"].detail


def test_expected_predictions_of_a_class(train: Train) -> None:
    """YAML's bare ``yes``, which is true, means the class yes; probabilities have a lower bound."""
    expect = [
        {"row": {"size": 15}, "equals": True},
        {"row": {"size": 15}, "probability": {"yes": 0.9}},
        {"row": {"size": 5}, "probability": {"yes": 0.9}},
    ]
    checks = run_tests(train, make_table("class"), {"expect": expect})
    assert [check.outcome for check in checks.values()] == ["pass", "pass", "fail"]
    assert "the probability of yes" in checks["expect 3"].detail


def test_invariance(train: Train) -> None:
    """A column without effect passes; the deciding column fails, with the share of rows that violate it."""
    invariance = [
        {"column": "colour", "max_change": 0.5},
        {"column": "size", "delta": 1, "max_change": 0.5},
    ]
    checks = run_tests(train, make_table(), {"invariance": invariance, "rows": 50})
    assert checks["invariance colour"].outcome == "pass"
    assert (checks["invariance size"].outcome, checks["invariance size"].value) == ("fail", 1.0)
    assert "the largest change is 3" in checks["invariance size"].detail.replace("2.9", "3").replace("3.0", "3")


@pytest.mark.parametrize("task", ["number", "class"])
def test_direction(train: Train, task: str) -> None:
    """More of the column increases the number, or the probability of the positive class."""
    directional = [{"column": "size", "delta": 1}, {"column": "size", "delta": 1, "must_not": "rise"}]
    behaviour = {"directional": directional[:1]}
    assert run_tests(train, make_table(task), behaviour)["directional size"].outcome == "pass"
    check = run_tests(train, make_table(task), {"directional": directional[1:]})["directional size"]
    assert (check.outcome, check.value) == ("fail", 1.0)


def test_a_share_of_violations_is_accepted(train: Train) -> None:
    """On every row the class no is less probable with more of the column: only a test that accepts this passes."""
    test = {"column": "size", "delta": 1, "of": "no", "tolerance": 1.0}
    assert run_tests(train, make_table("class"), {"directional": [test]})["directional size"].outcome == "pass"
    strict = {**test, "tolerance": 0.0, "violations": 0.5}
    assert run_tests(train, make_table("class"), {"directional": [strict]})["directional size"].outcome == "fail"


def test_known_cases(train: Train, tmp_path: Path) -> None:
    """Bounds on a file with the target, which is read like the table; an unknown class is an error."""
    file = tmp_path / "known.csv"
    make_table("class").head(40).to_csv(file, index=False)
    known = {"file": str(file), "min": {"accuracy": 0.8}, "max": {"log_loss": 0.001}}
    checks = run_tests(train, make_table("class"), {"known_cases": [known]})
    assert checks["known cases known.csv accuracy"].outcome == "pass"
    assert checks["known cases known.csv log_loss"].outcome == "fail"
    pd.DataFrame({"size": [1.0], "colour": ["red"], "y": ["perhaps"]}).to_csv(file, index=False)
    with pytest.raises(ConfigError, match="known cases do not fit"):
        run_tests(train, make_table("class"), {"known_cases": [known]})


def test_robustness(train: Train) -> None:
    """Unusual values give finite predictions; a null in the deciding column changes them by more than the bound."""
    robustness = {"max_change": {"nulls": 0.01, "noise": 1.0}}
    checks = run_tests(train, make_table(), {"robustness": robustness, "rows": 100})
    outcomes = {name: check.outcome for name, check in checks.items()}
    assert outcomes == {
        "robustness nulls": "fail",
        "robustness unseen": "pass",
        "robustness out_of_range": "pass",
        "robustness noise": "pass",
    }
    assert "size is null" in checks["robustness nulls"].detail


CONTRACT = Contract(target="y", task="binary", columns=(), classes=("no", "yes"), positive="yes")


def predicted(chance: np.ndarray, positive: np.ndarray, group: np.ndarray) -> groups.PredictedHoldout:
    """A holdout with known probabilities of yes and known targets."""
    n = len(chance)
    truth = np.where(positive, "yes", "no").astype(object)
    labels = np.where(chance > 0.5, "yes", "no").astype(object)
    predictions = Predictions(labels, np.column_stack([1 - chance, chance]))
    rows, units = pd.DataFrame({"group": group}), np.arange(n)
    return groups.PredictedHoldout(CONTRACT, rows, truth, predictions, units, draw_weights(n, 200, 3, units))


@pytest.mark.parametrize(("shift", "outcome"), [(0.0, "pass"), (0.3, "fail")])
def test_calibration(shift: float, outcome: str) -> None:
    """True probabilities pass; probabilities that are too high by 0.3 fail."""
    rng = np.random.default_rng(2)
    chance = rng.uniform(0.05, 0.6, 3000)
    test = PipelineConfig.model_validate(
        {"name": "t", "data": {"source": "x", "target": "y"}, "behaviour": {"calibration": {"max_error": 0.06}}}
    ).behaviour.calibration
    assert test
    holdout = predicted(chance + shift, rng.random(3000) < chance, np.zeros(3000))
    check = groups.check_calibration(test, holdout)
    assert check.outcome == outcome
    assert check.value == pytest.approx(shift, abs=0.03)


def fairness(column: str = "group", **bounds: Any) -> Any:
    raw = {"column": column, "metric": "selection_rate", **bounds}
    config = {"name": "t", "data": {"source": "x", "target": "y"}, "behaviour": {"fairness": [raw]}}
    return PipelineConfig.model_validate(config).behaviour.fairness[0]


def test_fairness_between_groups() -> None:
    """Equal groups pass, unequal ones fail, and each check names the groups and an interval."""
    rng = np.random.default_rng(4)
    group = np.repeat(["a", "b"], 1000)
    equal, unequal = rng.random(2000), np.where(group == "a", rng.random(2000), 0.6 * rng.random(2000))
    test = fairness(max_difference=0.1, min_ratio=0.75)
    for chance, outcome in at_least_one([(equal, "pass"), (unequal, "fail")]):
        checks = list(groups.check_fairness(test, None, predicted(chance, rng.random(2000) < 0.5, group)))
        assert [check.outcome for check in checks] == [outcome, outcome]
        assert all("90 % interval" in check.detail for check in checks)


def test_small_and_undefined_groups_are_inconclusive() -> None:
    """A group of a few rows, and a group without a positive row for recall."""
    rng = np.random.default_rng(5)
    group = np.array(["a"] * 500 + ["b"] * 500 + ["c"] * 9)
    holdout = predicted(rng.random(1009), rng.random(1009) < 0.5, group)
    (check,) = groups.check_fairness(fairness(max_difference=0.2), None, holdout)
    assert check.outcome == "inconclusive"
    assert "c has 9 rows" in check.detail
    positive = (rng.random(1000) < 0.5) & (group[:1000] == "a")
    holdout = predicted(rng.random(1000), positive, group[:1000])
    (check,) = groups.check_fairness(fairness(max_difference=0.2), Metric.built_in("recall"), holdout)
    assert check.outcome == "inconclusive"


@pytest.mark.slow
def test_equal_groups_rarely_fail() -> None:
    """Of 200 holdouts with four equal groups, at most 5 % fail at a bound near zero, as specified."""
    rng, failures = np.random.default_rng(6), 0
    for _ in range(200):
        holdout = predicted(rng.random(400), rng.random(400) < 0.5, rng.choice(list("abcd"), 400))
        (check,) = groups.check_fairness(fairness(max_difference=0.0001), None, holdout)
        failures += check.outcome == "fail"
    assert failures <= 200 * 0.05 + 3 * np.sqrt(200 * 0.05 * 0.95)


@pytest.mark.parametrize(
    ("behaviour", "where", "what"),
    [
        ({"invariance": [{"column": "color"}]}, "behaviour.invariance.0.column", "no column"),
        ({"invariance": [{"column": "colour", "delta": 1}]}, "behaviour.invariance.0.delta", "for numbers"),
        ({"directional": [{"column": "colour", "delta": 1}]}, "behaviour.directional.0.column", "for numbers"),
        (
            {"directional": [{"column": "size", "delta": 1, "of": "maybe"}]},
            "behaviour.directional.0.of",
            "no class 'maybe'",
        ),
        ({"expect": [{"row": {"syze": 1}, "equals": "no"}]}, "behaviour.expect.0.row", "no column 'syze'"),
        ({"expect": [{"row": {"size": "big"}, "equals": "no"}]}, "behaviour.expect.0.row.size", "not a value"),
        ({"expect": [{"row": {"size": 1}, "equals": "maybe"}]}, "behaviour.expect.0.equals", "no class"),
        ({"expect": [{"row": {"size": 1}, "between": [0, 1]}]}, "behaviour.expect.0.between", "is a class"),
        (
            {"fairness": [{"column": "colour", "metric": "mae", "max_difference": 1}]},
            "behaviour.fairness.0.metric",
            "not a metric of this task",
        ),
    ],
)
def test_tests_that_do_not_fit_the_table(train: Train, behaviour: dict[str, Any], where: str, what: str) -> None:
    """An unknown column, class or metric and a value of the wrong type are errors that name the config key."""
    with pytest.raises(ConfigError, match=what) as caught:
        run_tests(train, make_table("class"), behaviour)
    assert caught.value.where == where
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("behaviour", "what"),
    [
        ({"expect": [{"row": {"a": 1}}]}, "one of equals, between and probability"),
        ({"expect": [{"row": {"a": 1}, "between": [2, 1]}]}, "above its end"),
        ({"directional": [{"column": "a"}]}, "behaviour.directional.0.delta: is missing"),
        ({"fairness": [{"column": "a", "metric": "f2", "max_difference": 1}]}, "must be one of"),
        ({"fairness": [{"column": "a", "metric": "f1"}]}, "max_difference, min_ratio or both"),
        ({"known_cases": [{"file": "x.csv"}]}, "give a bound"),
        ({"invariance": [{"column": "y"}]}, "which is the target"),
        ({"robustness": {"cases": ["nulls"], "max_change": {"noise": 1}}}, "add it to cases"),
    ],
)
def test_an_invalid_behaviour_test_is_a_config_error(behaviour: dict[str, Any], what: str) -> None:
    """Errors that are found when the config is read, before any data."""
    with pytest.raises(ConfigError) as caught:
        build_config({"name": "t", "data": {"source": "x.csv", "target": "y"}, "behaviour": behaviour}, "config")
    assert what in "\n".join(caught.value.details)


def test_a_missing_file_of_known_cases(tmp_path: Path) -> None:
    """The error is found before any data is loaded."""
    raw = {"known_cases": [{"file": "none.csv", "min": {"mae": 1}}]}
    config = build_config({"name": "t", "data": {"source": "x.csv", "target": "y"}, "behaviour": raw}, "config")
    with pytest.raises(ConfigError, match="no such file") as caught:
        behaviour_suite.check_files(config.behaviour, tmp_path)
    assert caught.value.where == "behaviour.known_cases.0.file"
