"""The gate's self-test: it passes for a correct gate, and fails for a gate that lets a broken model pass."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from towline.config import PipelineConfig
from towline.data.schema.inference import infer_contract
from towline.promotion import gate_self_test
from towline.promotion.gate import GateCheck, Holdout
from towline.training.evaluation.holdout import Evaluation
from towline.training.evaluation.predictions import Interval, Predictions


def run_self_test(task: str, share: float = 0.3, n: int = 400, rise: float = 0.0, **config: Any) -> GateCheck:
    """The self-test of a gate on a holdout with a good model.

    Args:
        task: of the model.
        share: of positive rows.
        n: number of rows of the holdout.
        rise: of the target's level after the training rows.
        config: more sections of the config.
    """
    rng = np.random.default_rng(3)
    noise = rng.normal(size=n)
    target: Any = 100 + 10 * noise
    if task != "regression":
        names = ["no", "yes"] if task == "binary" else ["a", "b", "c"]
        p = [1 - share, share] if task == "binary" else [1 - share, share / 2, share / 2]
        target = rng.choice(names, n, p=p)
    rows = pd.DataFrame({"x": noise, "y": target})
    raw = {"name": "t", "data": {"source": "x", "target": "y"}, **config}
    pipeline = PipelineConfig.model_validate(raw)
    contract = infer_contract(rows, pipeline)
    assert contract.task == task
    truth = contract.labels(rows)
    if task == "regression":
        baseline = Predictions(np.full(n, np.median(truth) - rise))
    else:
        shares = np.array([(truth == label).mean() for label in contract.classes])
        most = np.full(n, contract.classes[int(shares.argmax())], dtype=object)
        baseline = Predictions(most, np.tile(shares, (n, 1)))
    primary = pipeline.evaluation.metric or {"regression": "mae", "binary": "roc_auc", "multiclass": "f1"}[task]
    evaluation = Evaluation(
        task=task, primary=primary, rows=n, metrics={primary: Interval(value=0.9)}, baseline={}, slices=(),
        importance=(), notes=(),
    )  # fmt: skip
    return gate_self_test.check_gate(pipeline, evaluation, Holdout(contract, rows, truth, baseline, baseline))


@pytest.mark.parametrize("task", ["regression", "binary", "multiclass"])
def test_the_default_gate_rejects_broken_models(task: str) -> None:
    """Flipped targets, constants, NaN and a leaking column, in each task."""
    check = run_self_test(task)
    assert check.outcome == "pass", check.detail
    for name in ("flipped", "constant", "NaN", "a leaking column"):
        assert name in check.detail


def test_a_target_that_rises_with_time_is_no_reason_to_reject() -> None:
    """The baseline comes from earlier rows, so any predictions at the later level are better than it."""
    check = run_self_test("regression", rise=50.0)
    assert check.outcome == "pass", check.detail


@pytest.mark.parametrize("metric", ["f1", "accuracy", "precision", "log_loss", "brier"])
def test_no_constant_is_better_than_the_baseline(metric: str) -> None:
    """For metrics of labels, the baseline is the best constant: always yes has a better F1 than always no."""
    assert run_self_test("binary", evaluation={"metric": metric}).outcome == "pass"


def test_recall_alone_lets_a_constant_pass() -> None:
    """A model that always predicts positive has a recall of 1: the self-test fails until precision has a bound."""
    check = run_self_test("binary", evaluation={"metric": "recall"})
    assert check.outcome == "fail"
    assert "the constant yes" in check.detail
    assert "gate.min.precision" in check.detail
    assert run_self_test("binary", evaluation={"metric": "recall"}, gate={"min": {"precision": 0.5}}).outcome == "pass"


def negated_error(y_true: np.ndarray, y_pred: np.ndarray) -> float:
    """An error that its config declares as a gain."""
    return float(np.abs(y_true - y_pred).mean())


def test_a_metric_with_the_wrong_direction_is_detected() -> None:
    """With an error that is declared as a gain, the worst model passes the other checks."""
    custom = {"function": f"{__name__}.negated_error", "name": "gain", "higher_is_better": True}
    settings = {"custom": [custom], "metric": "gain"}
    check = run_self_test("regression", evaluation=settings, package={"trusted": ["tests"]})
    assert check.outcome == "fail"
    assert "flipped targets" in check.detail


def test_inconclusive_checks_may_promote() -> None:
    """``gate.inconclusive: promote`` does not let a broken model pass."""
    assert run_self_test("binary", n=60, gate={"inconclusive": "promote"}).outcome == "pass"
