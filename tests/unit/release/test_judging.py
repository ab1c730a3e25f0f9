"""Challenger and champion predict the same rows, each with its own contract."""

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
    """No check compares with a champion; the other checks decide."""
    verdict = judge(regression, None)
    assert verdict.outcome == "pass", verdict
    assert verdict.champion is None
    assert "champion" not in {check.name for check in verdict.checks}


def holdout_of(run: TrainedRun) -> tuple[pd.DataFrame, np.ndarray]:
    """The table of a run and the positions of its holdout."""
    return run.work.table(), run.work.split_positions()["holdout"]


def test_a_model_passes_against_itself(regression: TrainedRun, packed: Release) -> None:
    """The champion predicts the holdout of this run."""
    verdict = judge(regression, regression.settings.store / packed.path)
    assert verdict.champion == 3
    assert champion_check(verdict).outcome == "pass"


def test_only_unseen_rows_of_the_champion_count(tmp_path: Path, build: Callable[..., TrainedRun]) -> None:
    """With a split by time, these are the rows after the end of its training."""
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


def test_stored_predictions_are_used_if_the_champion_was_fitted_on_the_holdout(
    regression: TrainedRun, packed: Release
) -> None:
    """The released model was fitted on the holdout, so the stored predictions of its evaluated model are used."""
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


def test_a_refitted_champion_is_compared_on_later_rows(tmp_path: Path, build: Callable[..., TrainedRun]) -> None:
    """With enough later rows, the released model predicts only these rows."""
    frame = make_house_table(800).drop(columns="sold")
    older = build(tmp_path / "older", frame.head(700), target="value", time="at")
    newer = build(tmp_path / "newer", frame, target="value", time="at")
    model = open_release(older.settings.store / older.package().path)
    rows = newer.work.subset("holdout").rows
    _, predictions, unseen = holdout_comparison._predict_with_champion(model, newer.work.contract(), *holdout_of(newer))
    assert unseen.sum() == 100
    np.testing.assert_array_equal(predictions.labels, model.predict(rows))


def test_stored_predictions_of_a_classification_are_used(tmp_path: Path, build: Callable[..., TrainedRun]) -> None:
    """Labels and probabilities of the evaluated model are used, also in a classification."""
    run = build(tmp_path, make_house_table(400).drop(columns="value"), target="sold", time="at")
    model = open_release(run.settings.store / run.package().path)
    _, predictions, unseen = holdout_comparison._predict_with_champion(model, run.work.contract(), *holdout_of(run))
    _, measured, _ = load_evaluation_predictions(run.work)
    assert unseen.all()
    assert predictions.labels.tolist() == measured.labels.tolist()
    np.testing.assert_array_equal(predictions.probabilities, measured.probabilities)


def test_the_champions_holdout_of_a_random_split_is_recognized(
    tmp_path: Path, build: Callable[..., TrainedRun]
) -> None:
    """This holds for any table and any order of its rows."""
    run = build(tmp_path, make_house_table(400).drop(columns=["at", "sold"]), target="value")
    model = open_release(run.settings.store / run.package().path)
    assert holdout_comparison._find_unseen_rows(model, *holdout_of(run)).all()
    train = run.work.subset("train").rows.sample(frac=1, random_state=1)
    assert not holdout_comparison._find_unseen_rows(model, train, np.arange(len(train))).any()


def test_a_damaged_champion_is_inconclusive(regression: TrainedRun, release: Path) -> None:
    """The detail names the damaged file; a person has to decide."""
    (release / "contract.json").write_text("{}")
    verdict = judge(regression, release)
    assert verdict.outcome == "inconclusive"
    assert "contract.json" in champion_check(verdict).detail


@pytest.mark.parametrize("change", ["column gone", "another target"])
def test_a_champion_that_cannot_predict_the_rows(
    regression: TrainedRun, packed: Release, tmp_path: Path, build: Callable[..., TrainedRun], change: str
) -> None:
    """The table lacks a column that it needs, or it has another target: the detail names this."""
    frame = make_house_table().drop(columns="sold")
    frame = frame.drop(columns="doors") if change == "column gone" else frame.rename(columns={"value": "price"})
    run = build(tmp_path, frame, target="value" if change == "column gone" else "price", time="at")
    verdict = judge(run, regression.settings.store / packed.path)
    assert verdict.champion == 3
    if change == "column gone":  # a champion that cannot predict these rows cannot serve
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


def test_a_champion_with_other_classes(tmp_path: Path, build: Callable[..., TrainedRun]) -> None:
    """A champion with fewer classes gives the new class no probability; one with more classes cannot be compared."""
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
