"""The time budget: which candidates get pilot fits, and which of their fits are reduced."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import Ridge

from tests.support.training import prepare_workspace
from towline.config import Candidate, PipelineConfig
from towline.data.workspace import Workspace
from towline.training.boosting.histogram import BoostingClassifier, BoostingRegressor
from towline.training.final_fit import fit, training_rows
from towline.training.model_selection import budget
from towline.training.model_selection.budget import BudgetLimits, CandidateLimits, find_slow_candidates, plan_fits
from towline.training.model_selection.cross_validation import (
    SMALL_ROWS,
    baseline_candidate,
    choose_candidate,
    cross_validate,
)

ROWS = 6_000  # 4,808 of them in the train part, about 3,200 in each of three folds


class VirtualClock:
    """A clock that only ``SlowRidge`` moves."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


CLOCK = VirtualClock()


class SlowRidge(Ridge):
    """Ridge regression whose fit takes this number of virtual seconds for 1,000 rows; fails if it is negative."""

    def __init__(self, alpha: float = 1.0, seconds: float = 0.0) -> None:
        super().__init__(alpha=alpha)
        self.seconds = seconds

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> "SlowRidge":
        if self.seconds < 0:
            raise ValueError("negative seconds")
        CLOCK.now += self.seconds * len(X) / 1_000
        return super().fit(X, y, sample_weight)  # type: ignore[no-any-return]


def _candidate(name: str, seconds: float, trials: int | None = None) -> dict[str, Any]:
    search = {"search": {"trials": trials, "space": {"alpha": [1, 100]}}} if trials else {}
    return {"estimator": f"{__name__}.SlowRidge", "name": name, "params": {"seconds": seconds}, **search}


def _prepare(tmp_path: Path, *candidates: Any, rows: int = ROWS, **config: Any) -> tuple[Workspace, PipelineConfig]:
    rng = np.random.default_rng(0)
    table = pd.DataFrame(rng.normal(size=(rows, 3)), columns=["a", "b", "c"])
    table["y"] = table.a - table.b + rng.normal(size=rows)
    return prepare_workspace(tmp_path, table, candidates=list(candidates), **config)


def _limit(tmp_path: Path, *candidates: Any, **config: Any) -> BudgetLimits:
    return plan_fits(*_prepare(tmp_path, *candidates, **config), CLOCK)


def test_a_table_that_is_small_for_the_budget_is_not_measured(tmp_path: Path) -> None:
    """The clock is not read, however slow the candidate is, and there are no limits."""

    def no_clock() -> float:
        raise AssertionError

    work, config = _prepare(tmp_path, _candidate("slow", 1e9), budget="10m")
    assert plan_fits(work, config, no_clock) == BudgetLimits()


@pytest.mark.parametrize(
    ("rows", "candidate", "budget", "measured"),
    [
        (600, "linear", "1s", True),  # 1,800 cells
        (500, "linear", "1s", False),  # 1,500 cells
        (600, "linear", "2s", False),
        (600, {"estimator": "linear", "search": {"trials": 2}}, "2s", True),
        (600, _candidate("slow", 1), "30s", True),  # 600 rows, of an estimator by its path
        (600, _candidate("slow", 1), "40s", False),
        (600, "linear", None, False),
    ],
)
def test_measured_candidates(tmp_path: Path, rows: int, candidate: Any, budget: str | None, measured: bool) -> None:
    """Cells, trials and rows for each second of the budget decide which candidates are measured."""
    work, config = _prepare(tmp_path, candidate, rows=rows, budget=budget)
    assert [each.name for each in find_slow_candidates(work, config)] == [config.candidates[0].name] * measured


def test_more_than_two_classes_multiply_the_cells(tmp_path: Path) -> None:
    """A table of 20 classes gets pilot fits from a twentieth of the rows."""
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"a": rng.normal(size=600), "y": [f"class {row % 20}" for row in range(600)]})
    work, config = prepare_workspace(tmp_path, table, candidates=["linear"], budget="6s")
    assert find_slow_candidates(work, config)
    longer = config.model_copy(update={"budget": 2 * config.budget if config.budget else None})
    assert not find_slow_candidates(work, longer)


def test_nothing_is_reduced_within_the_budget(tmp_path: Path) -> None:
    """A candidate may take more than an equal share; the scores are those of a run without a budget."""
    work, config = _prepare(tmp_path, _candidate("fast", 0.01), _candidate("slow", 1), budget="60s")
    budget_limits = plan_fits(work, config, CLOCK)
    assert [each.candidate for each in budget_limits.candidates] == ["fast", "slow"]
    for candidate in config.candidates:
        limits = budget_limits.limits_of(candidate)
        assert limits == CandidateLimits(candidate=candidate.name, seconds=limits.seconds)
        planned, free = (cross_validate(work, config, candidate, each) for each in (budget_limits, None))
        assert planned.mean == free.mean
        assert planned.reductions == ()


def test_a_candidate_with_slow_final_fits_is_left_out(tmp_path: Path) -> None:
    """The candidate is not fitted, another one is selected, and the budget named in the message is sufficient."""
    work, config = _prepare(tmp_path, _candidate("fast", 0.01), _candidate("slow", 30), budget="60s")
    budget_limits = plan_fits(work, config, CLOCK)
    scores = [
        cross_validate(work, config, each, budget_limits) for each in (baseline_candidate(config), *config.candidates)
    ]
    slow = scores[-1]
    assert slow.failed == "left out (budget)"
    assert slow.folds == ()
    (reduction,) = slow.reductions
    assert reduction.startswith("slow is left out: its fits on all 4,808 rows would take about")
    assert choose_candidate(scores, config, "regression").candidate == "fast"
    assert not budget_limits.limits_of(config.candidates[0]).left_out

    budget = re.findall(r"set budget: (\w+),", reduction)[0]
    again = PipelineConfig.model_validate({**config.model_dump(mode="json"), "budget": budget})
    assert not any(limits.left_out for limits in plan_fits(work, again, CLOCK).candidates)


def test_a_candidate_with_rather_slow_final_fits_is_fitted_on_a_sample(tmp_path: Path) -> None:
    """A sample of at least a quarter of the rows is enough to keep a candidate; the faster one keeps all rows."""
    work, config = _prepare(tmp_path, _candidate("fast", 0.01), _candidate("slow", 8), budget="60s")
    budget_limits = plan_fits(work, config, CLOCK)
    fast, slow = (cross_validate(work, config, each, budget_limits) for each in config.candidates)
    assert fast.final_rows is None
    assert not slow.failed
    assert slow.final_rows
    assert 4_808 / 4 <= slow.final_rows < 4_808
    assert f"slow: the model is fitted on a sample of {slow.final_rows:,} rows (budget)" in slow.reductions
    assert fit(work, config, slow).rows == slow.final_rows


def test_the_fastest_candidate_remains_if_all_are_slow(tmp_path: Path) -> None:
    """Its final model is fitted on a sample, which is recorded with the model."""
    work, config = _prepare(tmp_path, _candidate("slow", 30), _candidate("slower", 60), budget="60s")
    budget_limits = plan_fits(work, config, CLOCK)
    scores = [cross_validate(work, config, each, budget_limits) for each in config.candidates]
    assert [bool(each.failed) for each in scores] == [False, True]
    rows = scores[0].final_rows
    assert rows
    assert 1_000 <= rows < 4_808
    assert scores[0].reductions[-1] == f"slow: the model is fitted on a sample of {rows:,} rows (budget)"
    model = fit(work, config, scores[0])
    assert model.rows == rows
    assert len(training_rows(work, config, model)) == rows


def test_a_candidate_without_pilot_fits_does_not_count_as_remaining(tmp_path: Path) -> None:
    """If the only other candidate cannot be fitted, the slow one remains."""
    budget_limits = _limit(tmp_path, _candidate("slow", 30), _candidate("invalid", -1), budget="60s")
    limits, failed = budget_limits.candidates
    assert failed == CandidateLimits(candidate="invalid")
    assert limits.candidate == "slow"
    assert not limits.left_out
    assert limits.final_rows


@pytest.mark.slow
def test_rows_of_the_slowest_candidate_are_reduced(tmp_path: Path) -> None:
    """The faster candidate keeps all rows; the reduction is named."""
    work, config = _prepare(tmp_path, _candidate("fast", 0.01), _candidate("slow", 0.3), budget="60s")
    config = config.model_copy(update={"cross_validation": config.cross_validation.model_copy(update={"folds": 40})})
    budget_limits = plan_fits(work, config, CLOCK)
    fast, slow = (cross_validate(work, config, each, budget_limits) for each in config.candidates)
    assert (fast.rows, fast.reductions) == (fast.rows_available, ())
    assert 1_000 <= slow.rows < slow.rows_available
    expected = f"slow: folds fitted on {slow.rows:,} of {slow.rows_available:,} rows (budget)"
    assert slow.reductions == (expected,)


@pytest.mark.slow
def test_trials_of_a_search_are_reduced_before_rows(tmp_path: Path) -> None:
    """All rows of a fold are used as long as ten trials are possible."""
    work, config = _prepare(tmp_path, _candidate("searched", 0.15, trials=60), budget="60s")
    limits = plan_fits(work, config, CLOCK).candidates[0]
    assert limits.trials
    assert 10 <= limits.trials < 60
    assert limits.fold_rows is None
    result = cross_validate(work, config, config.candidates[0], BudgetLimits(candidates=(limits,)))
    assert result.trials == limits.trials
    assert result.reductions == (f"searched: {limits.trials} of 60 trials of the search (budget)",)


def test_a_candidate_whose_pilot_fits_fail_has_no_limits(tmp_path: Path) -> None:
    """Cross-validation reports the error."""
    work, config = _prepare(tmp_path, "linear", _candidate("invalid", -1), budget="60s")
    budget_limits = plan_fits(work, config, CLOCK)
    assert budget_limits.candidates == (CandidateLimits(candidate="invalid"),)
    assert "invalid: no estimate" in str(budget_limits)
    assert "negative seconds" in cross_validate(work, config, config.candidates[1], budget_limits).failed


def test_max_rows_is_named_instead_of_the_budget(tmp_path: Path) -> None:
    """If ``cross_validation.max_rows`` limits the rows, the note names that key."""
    work, config = _prepare(tmp_path, "linear", cross_validation={"folds": 3, "max_rows": 1_000})
    (note,) = cross_validate(work, config, Candidate(estimator="linear")).reductions
    assert note == "folds fitted on 1,000 of 3,206 rows (cross_validation.max_rows)"


def test_boosting_of_many_classes_is_measured(tmp_path: Path) -> None:
    """Its early stopping needs two rows of each class in a pilot fit."""
    rng = np.random.default_rng(0)
    labels = [f"class {row % 30}" for row in range(1_998)] + ["rare"] * 6
    table = pd.DataFrame({"a": rng.normal(size=2_004), "y": labels})
    boosting = {"estimator": "boosting", "params": {"max_iter": 3}}
    work, config = prepare_workspace(tmp_path, table, candidates=[boosting], budget="5s")
    assert plan_fits(work, config).candidates[0].seconds


def test_a_candidate_that_is_slow_with_the_fewest_rows_is_left_out(tmp_path: Path) -> None:
    """A thousand rows are the minimum, also if they are more than a quarter of the table."""
    budget_limits = _limit(tmp_path, _candidate("fast", 0.01), _candidate("slow", 40), rows=1_500, budget="40s")
    assert [bool(limits.left_out) for limits in budget_limits.candidates] == [False, True]


def test_boosting_with_pilot_fits_does_not_stop_by_the_folds(tmp_path: Path) -> None:
    """Pilot fits have no folds and stop by a tenth of their rows; so do the fits whose time they estimate."""
    boosting = {"estimator": "boosting", "params": {"max_iter": 3, "min_samples_leaf": 9}}
    work, config = _prepare(tmp_path, boosting, rows=6_000, budget="4s")
    budget_limits = plan_fits(work, config)
    assert budget_limits.candidates[0].seconds
    assert len(work.subset("train").labels) <= SMALL_ROWS
    candidate = config.candidates[0]
    assert cross_validate(work, config, candidate, budget_limits).params == boosting["params"]
    assert cross_validate(work, config, candidate).params == {**boosting["params"], "early_stopping": False}


def test_the_time_of_boosting_does_not_grow_as_in_its_pilot_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few rows stop early, so that pilot fits grow with the square of the rows; the estimate of all rows does not."""
    original = BoostingRegressor.fit

    def fit(model: BoostingRegressor, X: Any, y: Any, sample_weight: Any = None) -> Any:
        CLOCK.now += (len(X) / 1_000) ** 2
        return original(model, X, y, sample_weight)

    monkeypatch.setattr(BoostingRegressor, "fit", fit)
    boosting = {"estimator": "boosting", "params": {"max_iter": 3}}
    work, config = _prepare(tmp_path, boosting, rows=20_000, budget="20s")
    limits = plan_fits(work, config, CLOCK).candidates[0]
    pilot_rows, pilot_seconds, rows = 500, 0.25, 16_500  # at most this number is in the train part
    assert limits.seconds is not None
    assert 0 < limits.seconds < pilot_seconds * (rows / pilot_rows) ** 1.25


def test_pilot_fits_that_lack_classes_count_the_trees_of_all_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Boosting fits a tree for each class; the oldest rows have a quarter of the classes."""
    original = BoostingClassifier.fit

    def fit(model: BoostingClassifier, X: Any, y: Any, sample_weight: Any = None) -> Any:
        CLOCK.now += len(np.unique(y)) * len(X) / 10_000
        return original(model, X, y, sample_weight)

    monkeypatch.setattr(BoostingClassifier, "fit", fit)
    rng = np.random.default_rng(0)
    rows = 6_000
    table = pd.DataFrame({"at": pd.date_range("2020-01-01", periods=rows, freq="h"), "a": rng.normal(size=rows)})
    late = np.arange(rows) > 2_500
    table["y"] = [f"c{number}" for number in np.where(late, rng.integers(0, 12, rows), rng.integers(0, 3, rows))]
    boosting = {"estimator": "boosting", "params": {"max_iter": 3}}
    work, config = prepare_workspace(tmp_path, table, candidates=[boosting], data={"time": "at"}, budget="1h")
    monkeypatch.setattr(budget, "CELLS_A_SECOND", 0)
    limits = plan_fits(work, config, CLOCK).candidates[0]
    assert limits.seconds == pytest.approx(12 * (4_800 + rows) / 10_000, rel=0.02)


def test_pilot_fits_have_the_oldest_rows_of_a_split_by_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They may contain near-duplicates, with which boosting stops later, as the folds do; a random sample has few."""
    fitted: list[pd.DataFrame] = []
    original = Ridge.fit

    def fit(model: Ridge, X: Any, y: Any, sample_weight: Any = None) -> Any:
        fitted.append(pd.DataFrame(X))
        return original(model, X, y, sample_weight)

    monkeypatch.setattr(Ridge, "fit", fit)
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"at": pd.date_range("2020-01-01", periods=3_000, freq="h"), "a": np.arange(3_000) // 2.0})
    table["y"] = table["a"] + rng.normal(size=3_000)
    linear = {"estimator": "sklearn.linear_model.Ridge"}
    shuffled = table.sample(frac=1, random_state=1)
    work, config = prepare_workspace(tmp_path, shuffled, candidates=[linear], data={"time": "at"}, budget="1s")
    assert plan_fits(work, config).candidates[0].seconds
    assert [len(rows) for rows in fitted] == [100, 500]
    for rows in fitted:
        assert len(np.unique(rows.to_numpy()[:, 0])) <= len(rows) / 2 + 1  # consecutive hours: both rows of each value
