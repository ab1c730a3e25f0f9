"""The plan of a search, and a study that several processes share, tested in one process."""

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from towline.config import Candidate
from towline.errors import ConfigError, TowlineError, TransientError
from towline.training.evaluation.definitions import Metric
from towline.training.model_selection.shared_study import SharedStudy, TrialResult, create_study, open_studies
from towline.training.model_selection.tuning import TrialPlan, search_parameters

SPACE = {"alpha": {"low": 0.01, "high": 100.0, "log": True}, "depth": [1, 30]}


def make_plan(batch: int, trials: int = 16, **search: Any) -> TrialPlan:
    document = {"estimator": "linear", "search": {"trials": trials, "batch": batch, "space": SPACE, **search}}
    return TrialPlan(Candidate.model_validate(document), {}, Metric.built_in("mae"), seed=42)


def loss(params: dict[str, Any]) -> float:
    return float((math.log(params.get("alpha", 1.0)) - 1) ** 2 + abs(params.get("depth", 3) - 9))


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/search.db"


@pytest.fixture
def study(url: str) -> Iterator[SharedStudy]:
    with create_study(url, "s", {"model": "demo"}, maximize=False) as study:
        yield study


def test_a_trial_depends_on_the_results_before_its_batch_only() -> None:
    """Trials of a batch may be evaluated in any order; trials of two batches differ."""
    plan = make_plan(batch=4, trials=24)
    results: list[TrialResult] = []
    for number in range(14):
        results.append(plan.evaluate(plan.draw(number, results), loss))
    assert [list(plan.batch(number)) for number in (0, 9, 10, 13, 14, 23)] == [
        [*range(10)], [*range(10)], [10, 11, 12, 13], [10, 11, 12, 13], [14, 15, 16, 17], [22, 23],
    ]  # fmt: skip
    for number in range(14):
        assert plan.draw(number, results[: plan.batch(number).start]) == results[number].drawn
    worse = [result._replace(score=1e9 * number) for number, result in enumerate(results)]
    assert plan.draw(12, worse[:10]) == plan.draw(12, worse)
    assert plan.draw(12, worse) != plan.draw(12, results)
    assert len({str(result.drawn) for result in results}) == 14


def test_a_shared_search_equals_that_of_one_process(tmp_path: Path, study: SharedStudy) -> None:
    """The trials are equal, in a file of the same format."""
    alone = search_parameters(make_plan(batch=4), tmp_path / "alone.json", loss)
    shared = search_parameters(make_plan(batch=4), tmp_path / "shared.json", loss, study)
    assert alone == shared
    assert alone[1] == 16


def test_a_search_of_one_process_is_continued_in_a_study(tmp_path: Path, study: SharedStudy) -> None:
    """The complete trials of the file are not evaluated again."""
    evaluated: list[dict[str, Any]] = []

    def count(params: dict[str, Any]) -> float:
        evaluated.append(params)
        return loss(params)

    file = tmp_path / "trials.json"
    search_parameters(make_plan(batch=4, trials=12), file, loss)
    continued = search_parameters(make_plan(batch=4), file, count, study)
    assert len(evaluated) == 4
    assert continued == search_parameters(make_plan(batch=4), tmp_path / "alone.json", loss)


def test_a_trial_that_another_process_completes_is_not_added_again(tmp_path: Path, url: str) -> None:
    """The other process evaluates a trial after each read of the study, so also between two reads."""
    evaluated: list[str] = []

    def evaluate(drawn: dict[str, Any]) -> TrialResult:
        evaluated.append(str(drawn))
        return plan.evaluate(drawn, loss)

    class BusyStudy(SharedStudy):
        def results(self) -> dict[int, TrialResult]:
            results = super().results()
            self.evaluate_waiting_trial(evaluate)
            return results

        def open_numbers(self) -> set[int]:
            numbers = super().open_numbers()
            self.evaluate_waiting_trial(evaluate)
            return numbers

    def count(params: dict[str, Any]) -> float:
        evaluated.append("by the run")
        return loss(params)

    plan = make_plan(batch=4)
    with create_study(url, "busy", {}, maximize=False) as study:
        _, trials = search_parameters(plan, tmp_path / "trials.json", count, BusyStudy(study._study))
    assert trials == len(evaluated) == 16


def test_the_timeout_ends_a_shared_search(tmp_path: Path, study: SharedStudy) -> None:
    """The result has the trials that are complete."""
    _, trials = search_parameters(make_plan(batch=4, timeout=1e-9), tmp_path / "trials.json", slow, study)
    assert trials == 1


def slow(params: dict[str, Any]) -> float:
    sum(range(200_000))
    return loss(params)


def test_failed_trials_are_results_and_the_reason_is_named(tmp_path: Path, study: SharedStudy) -> None:
    """If all fail, the error has the reason of the last one."""

    def divide(_: dict[str, Any]) -> float:
        raise ZeroDivisionError("too small")

    with pytest.raises(ValueError, match="all 11 trials failed; the last one: ZeroDivisionError: too small"):
        search_parameters(make_plan(batch=2, trials=11), tmp_path / "trials.json", divide, study)


def test_an_error_that_is_no_fault_of_the_parameters_gives_the_trial_back(study: SharedStudy) -> None:
    """Another process can evaluate it."""
    study.add(0, {})
    with pytest.raises(TowlineError, match="disk"):
        study.evaluate_waiting_trial(fail)
    assert study.results() == {}
    assert study.open_numbers() == set()


def fail(_: dict[str, Any]) -> TrialResult:
    raise TransientError("the disk is full")


def test_a_trial_that_was_taken_over_meanwhile_is_left(study: SharedStudy) -> None:
    """A process that was suspended longer than the heartbeat allows continues with other trials."""

    def lose(drawn: dict[str, Any]) -> TrialResult:
        (trial,) = study._study.get_trials(states=(TrialState.RUNNING,))
        study._study.tell(trial.number, state=TrialState.FAIL)
        return TrialResult(drawn, 1.0, 1.0)

    study.add(0, {})
    assert study.evaluate_waiting_trial(lose) is None
    assert study.results() == {}
    study.add(0, {})
    assert study.evaluate_waiting_trial(lambda drawn: TrialResult(drawn, 2.0, 1.0)) == (0, TrialResult({}, 2.0, 1.0))


def test_a_study_is_removed_at_the_end(url: str) -> None:
    """Workers read open studies only; after an error the study remains, so that it can be continued."""
    with create_study(url, "a", {"model": "demo"}, maximize=True):
        assert [study.attributes for study in open_studies(url)] == [{"model": "demo"}]
    assert open_studies(url) == []
    with contextlib.suppress(TransientError), create_study(url, "b", {"model": "demo"}, maximize=True) as study:
        study.add(0, {"alpha": 2.0})
        study.evaluate_waiting_trial(fail)
    assert [study.name for study in open_studies(url)] == ["b"]
    with create_study(url, "b", {"model": "demo"}, maximize=True) as study:
        assert study.open_numbers() == set()


@pytest.mark.parametrize(
    ("address", "error"),
    [
        ("search.db", ConfigError),
        ("nosuchdb://host/x", ConfigError),
        ("sqlite:////nosuch/folder/search.db", TransientError),
        ("postgresql://user:secret@127.0.0.1:1/x?connect_timeout=1", TransientError),
    ],
)
def test_a_database_that_cannot_be_used_is_named(address: str, error: type[TowlineError]) -> None:
    """The error has its address without the password."""
    with pytest.raises(error) as caught:
        open_studies(address)
    assert "secret" not in str(caught.value)
    assert caught.value.remedy
