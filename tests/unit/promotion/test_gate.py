"""The gate: every check, and its error rates."""

import json
from collections import Counter
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.support.checks import at_least_one
from towline.config import PipelineConfig
from towline.data.schema.contract import Contract
from towline.data.schema.inference import infer_contract
from towline.promotion.gate import (
    ChampionPredictions,
    ComparedRows,
    GateCheck,
    Holdout,
    SmokeTestResult,
    Verdict,
    apply_gate,
)
from towline.training.evaluation.holdout import Evaluation
from towline.training.evaluation.metrics import compute_metrics
from towline.training.evaluation.predictions import Interval, Predictions

GOOD = SmokeTestResult(identical=True, rows=400, latency_ms=4.0, seconds=0.2, peak_mb=200.0, modules=())
N = 1200


class Case:
    """A regression whose predictions are the true values plus noise of a known size, in three slices."""

    def __init__(self, seed: int = 0, n: int = N, **gate: Any) -> None:
        self.rng = np.random.default_rng(seed)
        self.truth = self.rng.normal(size=n) * 3
        self.common = self.rng.normal(size=n)
        self.rows = pd.DataFrame({"y": self.truth, "part": self.rng.choice(list("abc"), n, p=[0.6, 0.3, 0.1])})
        self.config = PipelineConfig.model_validate({"name": "t", "data": {"source": "x", "target": "y"}, "gate": gate})
        self.contract: Contract = infer_contract(self.rows, self.config)
        self.baseline = Predictions(np.full(n, np.median(self.truth)))

    def model(self, noise: float, own: float = 0.3) -> Predictions:
        alone = self.rng.normal(size=len(self.truth))
        return Predictions(self.truth + noise * (np.sqrt(1 - own**2) * self.common + own * alone))

    def holdout(self, model: Predictions, champion: ChampionPredictions | None = None) -> Holdout:
        return Holdout(self.contract, self.rows, self.truth, model, self.baseline, champion)

    def decide(
        self, model: Predictions, champion: Predictions | None = None, unseen: int = N, smoke: SmokeTestResult = GOOD
    ) -> Verdict:
        metrics = compute_metrics(self.truth, model, self.contract)
        evaluation = Evaluation(
            task="regression", primary="mae", rows=len(self.truth), baseline={}, slices=(), importance=(), notes=(),
            metrics={k: Interval(value=v if np.isfinite(v) else None) for k, v in metrics.items()},
        )  # fmt: skip
        old = ChampionPredictions(7, champion, np.arange(len(self.truth)) < unseen) if champion else None
        verdict = apply_gate(self.config, evaluation, smoke, self.holdout(model, old))
        assert Verdict.model_validate(json.loads(verdict.model_dump_json())) == verdict
        return verdict


def _baseline_check(case: Case, holdout: Holdout) -> GateCheck:
    evaluation = Evaluation(
        task="regression", primary="mae", rows=len(case.truth), baseline={}, slices=(), importance=(), notes=(),
        metrics={"mae": Interval(value=1.0)},
    )  # fmt: skip
    return _check(apply_gate(case.config, evaluation, GOOD, holdout), "baseline")


def _check(verdict: Verdict, name: str) -> GateCheck:
    (named,) = (check for check in verdict.checks if check.name == name)
    return named


def test_a_good_model_passes() -> None:
    """Without a champion there is no champion check; every other check passes with its numbers."""
    verdict = Case(max={"mae": 2.0}, min={"r2": 0.5}).decide(Case().model(1.0))
    assert verdict.outcome == "pass"
    assert verdict.champion is None
    assert [check.name for check in verdict.checks] == ["max mae", "min r2", "baseline", "slices", "smoke", "latency"]
    assert "at most 2" in _check(verdict, "max mae").detail
    assert "90 % interval" in _check(verdict, "baseline").detail


@pytest.mark.parametrize(
    ("gate", "failing"),
    [
        ({"max": {"mae": 0.1}}, "max mae"),
        ({"min": {"r2": 0.999}}, "min r2"),
        ({"min": {"roc_auc": 0.5}}, "min roc_auc"),
        ({"baseline_margin": 0.95}, "baseline"),
        ({"latency_ms": 1.0}, "latency"),
    ],
)
def test_bounds(gate: dict[str, Any], failing: str) -> None:
    """A bound that is not met, or of a metric of another task, fails with its name."""
    case = Case(**gate)
    verdict = case.decide(case.model(1.0))
    assert verdict.outcome == "fail"
    assert [check.name for check in verdict.checks if check.outcome == "fail"] == [failing]


def test_an_undefined_metric_fails() -> None:
    """A model that predicts NaN fails, and the verdict is still JSON."""
    case = Case(max={"mae": 5.0})
    verdict = case.decide(Predictions(np.full(N, np.nan)))
    assert {check.name for check in verdict.checks if check.outcome == "fail"} >= {"metric", "max mae", "baseline"}
    assert "undefined" in _check(verdict, "max mae").detail


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_metric_that_is_not_finite_never_passes(value: float) -> None:
    """NaN and infinities fail the metric and each bound on it."""
    case = Case(max={"mae": 5.0}, min={"r2": 0.1})
    model = case.model(0.5)
    evaluation = Evaluation(
        task="regression", primary="mae", rows=N, baseline={}, slices=(), importance=(), notes=(),
        metrics={name: Interval(value=value) for name in ("mae", "r2")},
    )  # fmt: skip
    verdict = apply_gate(case.config, evaluation, GOOD, case.holdout(model))
    failed = {check.name for check in verdict.checks if check.outcome == "fail"}
    assert failed == {"metric", "max mae", "min r2"}


def test_no_better_than_the_baseline() -> None:
    """The baseline itself fails; a model that may be better by chance only is inconclusive."""
    case = Case()
    assert _check(case.decide(case.baseline), "baseline").outcome == "fail"
    barely = Predictions(case.baseline.labels + 0.002 * np.sign(case.truth) * (case.rng.random(N) < 0.52))
    assert _check(case.decide(barely), "baseline").outcome in ("pass", "inconclusive")
    small = Case(n=40)
    guess = Predictions(small.baseline.labels + 0.2 * np.sign(small.truth) * np.where(np.arange(40) % 9 < 5, 1, -1))
    assert _check(small.decide(guess, unseen=40), "baseline").outcome != "pass"


@pytest.mark.parametrize(("share", "outcome"), [(0.62, "pass"), (0.5, "inconclusive")])
def test_out_of_fold_rows_decide_on_a_first_version_if_the_holdout_is_too_small(share: float, outcome: str) -> None:
    """A small gain on few holdout rows is inconclusive; if cross-validation shows the same gain, the check passes."""
    case = Case(n=60)
    step = 0.5 * np.sign(case.truth)
    guess = Predictions(case.baseline.labels + np.where(np.arange(60) % 9 < 5, step, -step))
    holdout = case.holdout(guess)
    assert _baseline_check(case, holdout).outcome == "inconclusive"
    more = Case(1, n=900)
    right = more.rng.random(900) < share
    challenger = Predictions(more.baseline.labels + 0.5 * np.sign(more.truth) * np.where(right, 1, -1))
    out_of_fold = ComparedRows(more.rows, more.truth, challenger, more.baseline)
    check = _baseline_check(case, holdout._replace(out_of_fold=out_of_fold))
    assert check.outcome == outcome
    assert ("with the 900 out-of-fold rows" in check.detail) == (outcome == "pass")


def test_a_challenger_passes_if_the_champion_is_worse_than_the_baseline() -> None:
    """A model that is no better than the baseline passes only if the champion is worse than both."""
    case = Case()
    poor = Predictions(case.baseline.labels + 0.3 * case.rng.normal(size=N))
    stale = case.model(4.0)
    assert _check(case.decide(poor), "baseline").outcome == "fail"
    verdict = case.decide(poor, stale)
    assert verdict.outcome == "pass"
    assert "but version 7, which serves, is worse than both" in _check(verdict, "baseline").detail
    assert _check(case.decide(poor, stale, unseen=49), "baseline").outcome == "fail"
    assert _check(case.decide(poor, case.model(1.0)), "baseline").outcome == "fail"
    assert _check(case.decide(case.model(4.5), stale), "baseline").outcome == "fail"


def test_a_champion_whose_predictions_are_not_finite_does_not_block() -> None:
    """It cannot be compared; a challenger with such a prediction is rejected as before."""
    case = Case()
    broken = case.model(2.0)
    broken.labels[7] = np.inf
    check = _check(case.decide(case.model(0.1), broken), "champion")
    assert (check.outcome, "not all finite" in check.detail) == ("pass", True)
    challenger = case.model(0.1)
    challenger.labels[7] = np.inf
    assert case.decide(challenger, case.model(2.0)).outcome == "fail"


def test_comparison_with_the_champion() -> None:
    """Equal or better passes, clearly worse fails, and other results are inconclusive."""
    case = Case()
    champion = case.model(1.0)
    assert _check(case.decide(champion, champion), "champion").outcome == "pass"
    assert _check(case.decide(case.model(0.8), champion), "champion").outcome == "pass"
    worse = case.decide(case.model(1.15), champion)
    assert worse.outcome == "fail"
    assert worse.champion == 7
    assert "of version 7 on 1,200 rows new to it" in _check(worse, "champion").detail
    small = Case(n=60)
    truth = small.truth
    unsure = small.decide(Predictions(truth + np.r_[np.full(30, 1.2), np.full(30, 0.9)]), Predictions(truth + 1.0), 60)
    assert unsure.outcome == "inconclusive" == _check(unsure, "champion").outcome


def test_rows_that_the_champion_was_trained_on() -> None:
    """The champion is compared on unseen rows; with fewer than 50, on all rows, and then the check never fails."""
    case = Case()
    champion = Predictions(
        np.where(np.arange(N) < 300, case.model(1.0).labels, case.truth)
    )  # it was trained on the rest
    assert _check(case.decide(case.model(0.9), champion, 300), "champion").outcome == "pass"
    few = _check(case.decide(case.model(0.9), champion, 49), "champion")
    assert few.outcome == "inconclusive"
    assert "most of which it has seen" in few.detail


def test_rows_on_which_the_metric_is_undefined() -> None:
    """If the rows that the champion has not seen have one class, ROC AUC is that of the whole holdout."""
    rng = np.random.default_rng(0)
    positive = rng.random(2000) < 0.1
    labels = np.array(["no", "yes"], dtype=object)
    truth, classes = labels[positive.astype(int)], ("no", "yes")

    def model(scores: np.ndarray) -> Predictions:
        return Predictions(labels[(scores > 0.5).astype(int)], np.column_stack([1 - scores, scores]))

    unseen = np.zeros(2000, dtype=bool)
    unseen[np.flatnonzero(~positive)[-80:]] = True
    contract = Contract(target="y", task="binary", columns=(), classes=classes, positive="yes")
    good, poor = np.clip(0.6 * positive + 0.4 * rng.random(2000), 0, 1), rng.random(2000)
    rows = pd.DataFrame({"y": truth})
    baseline = model(np.full(2000, 0.1))
    config = PipelineConfig.model_validate({"name": "t", "data": {"source": "x", "target": "y"}})
    evaluation = Evaluation(
        task="binary", primary="roc_auc", rows=2000, baseline={}, slices=(), importance=(), notes=(),
        metrics={"roc_auc": Interval(value=0.9)},
    )  # fmt: skip
    holdout = Holdout(contract, rows, truth, model(good), baseline, ChampionPredictions(7, model(poor), unseen))
    check = _check(apply_gate(config, evaluation, GOOD, holdout), "champion")
    assert (check.outcome, "on the whole holdout" in check.detail) == ("pass", True)


def test_a_slice_that_is_significantly_worse_fails() -> None:
    """A better model that is worse in one slice than baseline or champion is rejected with the slice's name."""
    case = Case()
    champion, good = case.model(1.0), case.model(0.5)
    rare = (case.rows["part"] == "c").to_numpy()
    broken = Predictions(np.where(rare, case.truth + 5.0, good.labels))
    assert "part = c: mae 5 against" in _check(case.decide(broken), "slices").detail
    weaker = Predictions(np.where(rare, case.truth + 2.0 * (champion.labels - case.truth), good.labels))
    assert _check(case.decide(weaker), "slices").outcome == "pass"
    verdict = case.decide(weaker, champion)
    assert _check(verdict, "champion").outcome == "pass"
    assert verdict.outcome == "fail"
    assert "of version 7 on" in _check(verdict, "slices").detail


def test_a_slice_on_which_the_champion_is_worse_does_not_fail() -> None:
    """A slice worse than the baseline is no reason to keep a champion that is even worse on it."""
    case = Case()
    rare = (case.rows["part"] == "c").to_numpy()
    broken = Predictions(np.where(rare, case.truth + 5.0, case.model(0.5).labels))
    far_behind = Predictions(np.where(rare, case.truth + 6.0, case.model(0.5).labels))
    sound = case.model(0.6)
    assert _check(case.decide(broken, sound), "slices").outcome == "fail"
    assert _check(case.decide(broken, far_behind), "slices").outcome == "pass"
    assert _check(case.decide(broken, far_behind, unseen=20), "slices").outcome == "fail"


def test_the_key_of_a_failed_slice_changes_the_verdict() -> None:
    """A wider margin does not help for a slice that is worse than the baseline; the list of slices does."""
    case = Case(slice_margin=9.0)
    rare = (case.rows["part"] == "c").to_numpy()
    broken = Predictions(np.where(rare, case.truth + 5.0, case.model(0.5).labels))
    failed = _check(case.decide(broken), "slices")
    assert (failed.outcome, failed.key) == ("fail", "evaluation.slices")
    evaluation = case.config.evaluation.model_copy(update={"slices": ()})
    case.config = case.config.model_copy(update={"evaluation": evaluation})
    assert _check(case.decide(broken), "slices").outcome == "pass"


def test_a_slice_on_which_the_baseline_is_exact_does_not_fail() -> None:
    """If all targets equal the median, a model with small errors passes."""
    case = Case()
    rare = (case.rows["part"] == "c").to_numpy()
    case.truth = np.where(rare, np.median(case.truth), case.truth)
    case.baseline = Predictions(np.full(N, np.median(case.truth)))
    good = case.model(0.5).labels
    precise = Predictions(np.where(rare, case.truth + 0.1, good))
    assert _check(case.decide(precise), "slices").outcome == "pass"
    imprecise = Predictions(np.where(rare, case.truth + 5.0, good))
    assert "part = c: mae 5 against 0 of the baseline" in _check(case.decide(imprecise), "slices").detail


def test_the_smoke_test_fails() -> None:
    """Other predictions, a forbidden import or a release that does not start fail, with the cause."""
    case = Case()
    model = case.model(1.0)
    changed = GOOD.model_copy(update={"identical": False, "modules": ("prefect",), "detail": "labels differ"})
    check = _check(case.decide(model, smoke=changed), "smoke")
    assert check.outcome == "fail"
    assert "prefect" in check.detail
    assert "labels differ" in check.detail
    dead = GOOD.model_copy(update={"identical": False, "latency_ms": 0.0, "detail": "no answer"})
    assert _check(case.decide(model, smoke=dead), "latency").outcome == "fail"


def test_error_rates() -> None:
    """In 30 draws an equal champion hardly ever causes a failure, and a model worse by 10 % never passes."""
    equal, alike, worse = Counter[str](), Counter[str](), Counter[str]()
    for seed in range(30):
        case = Case(seed)
        champion = case.model(1.0)
        equal[case.decide(case.model(1.0), champion).outcome] += 1
        worse[case.decide(case.model(1.1), champion).outcome] += 1
        alike[case.decide(case.model(1.0, own=0.08), case.model(1.0, own=0.08)).outcome] += 1
    assert equal["fail"] <= 1
    assert alike["pass"] >= 28
    assert worse["pass"] == 0
    assert worse["fail"] >= 27


def test_an_inconclusive_check_is_promoted_if_configured() -> None:
    """The check remains inconclusive in the verdict; a failed check still rejects."""
    for setting, outcome in at_least_one([("refuse", "inconclusive"), ("promote", "pass")]):
        case = Case(n=60, champion_margin=0.0, inconclusive=setting)
        champion = case.model(1.0)
        errors = champion.labels - case.truth
        worse = Predictions(case.truth + errors * (1.05 + np.where(np.arange(60) % 2, 0.5, -0.5)))
        verdict = case.decide(worse, champion, unseen=60)
        assert _check(verdict, "champion").outcome == "inconclusive"
        assert verdict.outcome == outcome
    case = Case(inconclusive="promote", max={"mae": 0.1})
    assert case.decide(case.model(1.0)).outcome == "fail"


def multiclass_outcomes(correct: float, runs: int = 40, n: int = 240) -> Counter[str]:
    """The baseline checks of models of four equal classes, which know a share of the labels and draw the others."""
    config = PipelineConfig.model_validate({"name": "t", "data": {"source": "x", "target": "y"}})
    outcomes: Counter[str] = Counter()
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        truth, drawn = rng.choice(list("abcd"), (2, n))
        rows = pd.DataFrame({"y": truth})
        contract = infer_contract(rows, config)
        labels = np.where(rng.random(n) < correct, truth, drawn).astype(object)
        baseline = Predictions(np.full(n, "a", dtype=object), np.full((n, 4), 0.25))
        evaluation = Evaluation(
            task="multiclass", primary="f1", rows=n, baseline={}, slices=(), importance=(), notes=(),
            metrics={"f1": Interval(value=0.5)},
        )  # fmt: skip
        model = Predictions(labels, np.full((n, 4), 0.25))
        verdict = apply_gate(config, evaluation, GOOD, Holdout(contract, rows, truth, model, baseline))
        outcomes[_check(verdict, "baseline").outcome] += 1
    return outcomes


def test_labels_at_random_are_no_better_than_the_baseline() -> None:
    """They have a better F1 over the classes than a constant, but no information; a model with some passes."""
    assert multiclass_outcomes(0.0)["pass"] <= 5
    assert multiclass_outcomes(0.35)["pass"] >= 36
