"""Challenger and champion answer the same rows, each through its own contract."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.support.releases import TrainedRun, make_house_table
from towline.inference.predictor import open_release
from towline.manifest import ReleaseLocation
from towline.promotion import holdout_comparison
from towline.promotion.gate import GateCheck, SmokeTestResult, Verdict
from towline.promotion.holdout_comparison import Champion
from towline.release.packaging import Release
from towline.training.evaluation.holdout import load_evaluation_predictions

GOOD = SmokeTestResult(identical=True, rows=80, latency_ms=5.0, seconds=0.1, peak_mb=200.0, modules=(), detail="")


def judge(run: TrainedRun, champion: Path | None) -> Verdict:
    return holdout_comparison.judge_release(
        run.work, run.config, run.evaluation, GOOD, Champion(3, ReleaseLocation(champion)) if champion else None
    )


def champion_check(verdict: Verdict) -> GateCheck:
    (result,) = (check for check in verdict.checks if check.name == "champion")
    return result


def test_the_first_version_needs_no_champion(regression: TrainedRun) -> None:
    """There is no check against a champion, and the others decide."""
    verdict = judge(regression, None)
    assert verdict.outcome == "pass", verdict
    assert verdict.champion is None
    assert "champion" not in {check.name for check in verdict.checks}


def holdout_of(run: TrainedRun) -> tuple[pd.DataFrame, np.ndarray]:
    """The table of a run and the positions of its holdout."""
    return run.work.table(), run.work.split_positions()["holdout"]


def test_a_model_does_as_well_as_itself(regression: TrainedRun, packed: Release) -> None:
    """The champion is asked again on this run's rows."""
    verdict = judge(regression, regression.settings.store / packed.path)
    assert verdict.champion == 3
    assert champion_check(verdict).outcome == "pass"


def test_only_rows_the_champion_has_not_seen_count(tmp_path: Path, build: Callable[..., TrainedRun]) -> None:
    """By time those after the end of its training."""
    run = build(tmp_path, make_house_table().drop(columns="sold"), target="value", time="at", split={"refit": False})
    model = open_release(run.settings.store / run.package().path)
    assert holdout_comparison._find_unseen_rows(model, *holdout_of(run)).all()
    everything = run.work.table()
    end = pd.Timestamp(model.metadata.dataset["split"]["train_end"])
    unseen = holdout_comparison._find_unseen_rows(model, everything, np.arange(len(everything)))
    assert unseen.tolist() == (everything["at"] > end).tolist()
    assert 0 < unseen.sum() < len(everything)
    assert not holdout_comparison._find_unseen_rows(
        model, everything.drop(columns="at"), np.arange(len(everything))
    ).any()


def test_a_champion_that_has_seen_the_holdout_answers_as_it_was_measured(
    regression: TrainedRun, packed: Release
) -> None:
    """The same run again: the released model knows the rows by heart, so what its recipe had said of them counts."""
    model = open_release(regression.settings.store / packed.path)
    rows = regression.work.subset("holdout").rows
    assert not holdout_comparison._find_unseen_rows(model, *holdout_of(regression)).any()
    _, predictions, unseen = holdout_comparison._predict_with_champion(
        model, regression.work.contract(), rows.sample(frac=1, random_state=1), np.arange(len(rows))
    )
    assert unseen.all()
    _, measured, _ = load_evaluation_predictions(regression.work)
    shuffled = rows.sample(frac=1, random_state=1).index
    np.testing.assert_array_equal(predictions.labels, measured.labels[shuffled])
    check = champion_check(judge(regression, regression.settings.store / packed.path))
    assert (check.outcome, check.value) == ("pass", 0.0)


def test_rows_after_a_refitted_champion_are_the_fair_ones(tmp_path: Path, build: Callable[..., TrainedRun]) -> None:
    """Where enough rows came since, the released model itself is asked, on these alone."""
    frame = make_house_table(800).drop(columns="sold")
    older = build(tmp_path / "older", frame.head(700), target="value", time="at")
    newer = build(tmp_path / "newer", frame, target="value", time="at")
    model = open_release(older.settings.store / older.package().path)
    rows = newer.work.subset("holdout").rows
    _, predictions, unseen = holdout_comparison._predict_with_champion(model, newer.work.contract(), *holdout_of(newer))
    assert unseen.sum() == 100
    np.testing.assert_array_equal(predictions.labels, model.predict(rows))


def test_classes_are_kept_as_they_were_measured(tmp_path: Path, build: Callable[..., TrainedRun]) -> None:
    """Labels and probabilities of the measured model come back whole, in a task with classes too."""
    run = build(tmp_path, make_house_table(400).drop(columns="value"), target="sold", time="at")
    model = open_release(run.settings.store / run.package().path)
    _, predictions, unseen = holdout_comparison._predict_with_champion(model, run.work.contract(), *holdout_of(run))
    _, measured, _ = load_evaluation_predictions(run.work)
    assert unseen.all()
    assert predictions.labels.tolist() == measured.labels.tolist()
    np.testing.assert_array_equal(predictions.probabilities, measured.probabilities)


def test_after_a_random_split_the_champion_tells_its_own_holdout(
    tmp_path: Path, build: Callable[..., TrainedRun]
) -> None:
    """Whatever table a row stands in, and in whatever order."""
    run = build(tmp_path, make_house_table(400).drop(columns=["at", "sold"]), target="value")
    model = open_release(run.settings.store / run.package().path)
    assert holdout_comparison._find_unseen_rows(model, *holdout_of(run)).all()
    train = run.work.subset("train").rows.sample(frac=1, random_state=1)
    assert not holdout_comparison._find_unseen_rows(model, train, np.arange(len(train))).any()


def test_a_damaged_champion_leaves_it_open(regression: TrainedRun, release: Path) -> None:
    """Its file is named and the verdict is for a person to take."""
    (release / "contract.json").write_text("{}")
    verdict = judge(regression, release)
    assert verdict.outcome == "inconclusive"
    assert "contract.json" in champion_check(verdict).detail


@pytest.mark.parametrize("change", ["column gone", "another target"])
def test_a_champion_that_cannot_be_asked(
    regression: TrainedRun, packed: Release, tmp_path: Path, build: Callable[..., TrainedRun], change: str
) -> None:
    """A column that it needs is gone, or it has another target: the detail names both."""
    frame = make_house_table().drop(columns="sold")
    frame = frame.drop(columns="doors") if change == "column gone" else frame.rename(columns={"value": "price"})
    run = build(tmp_path, frame, target="value" if change == "column gone" else "price", time="at")
    verdict = judge(run, regression.settings.store / packed.path)
    assert verdict.champion == 3
    if change == "column gone":  # what cannot answer cannot serve
        assert verdict.outcome == "pass"
        assert "doors" in champion_check(verdict).detail
    else:
        assert verdict.outcome == "inconclusive"
        assert "has another target, task or classes" in champion_check(verdict).detail


def test_the_class_of_rare_classes_may_disappear(tmp_path: Path, build: Callable[..., TrainedRun]) -> None:
    """When all classes are frequent, a champion that knows the merged class can still be replaced."""
    frame = make_house_table(400).drop(columns=["value", "at"])
    rare = {"rare": "merge", "min_rows": 5, "other": "few"}
    frame.loc[frame["doors"] == 7, "sold"] = "later"
    classes = frame["sold"].where(frame["doors"] != 8, "few")
    older = build(tmp_path / "older", frame.assign(sold=classes), target="sold", classes=rare)
    newer = build(tmp_path / "newer", frame, target="sold", classes=rare)
    champion = older.settings.store / older.package().path
    verdict = judge(newer, champion)
    assert "no longer exist" not in champion_check(verdict).detail
    predicted = holdout_comparison._predict_with_champion(
        open_release(champion), newer.work.contract(), *holdout_of(newer), "few"
    )
    assert set(predicted.predictions.labels) <= set(newer.work.contract().classes)


def test_a_new_class_is_weighed(tmp_path: Path, build: Callable[..., TrainedRun]) -> None:
    """A champion that knows fewer classes gives the new one no chance; one that knows more cannot be compared."""
    frame = make_house_table(400).drop(columns=["value", "at"])
    frame.loc[frame["doors"] == 8, "sold"] = "later"
    fewer = build(tmp_path / "fewer", frame, target="sold")
    frame.loc[frame["doors"] == 7, "sold"] = "a new one"
    more = build(tmp_path / "more", frame, target="sold")
    champion = open_release(fewer.settings.store / fewer.package().path)
    rows = more.work.subset("holdout").rows
    _, answers, _ = holdout_comparison._predict_with_champion(champion, more.work.contract(), *holdout_of(more))
    assert answers.probabilities is not None
    np.testing.assert_array_equal(answers.probabilities[:, 1:], champion.predict_proba(rows))
    assert not answers.probabilities[:, 0].any()
    verdict = judge(fewer, more.settings.store / more.package().path)
    assert "a new one" in champion_check(verdict).detail
