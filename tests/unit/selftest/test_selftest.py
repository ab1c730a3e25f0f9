"""`towline selftest`: the error rates of each part on a generated table with a known truth."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.support.checks import at_least_one
from towline.config import build_config
from towline.data.schema.inference import infer_contract
from towline.selftest import drift_rates, gate_rates, quality_rates, rollout_rates
from towline.selftest.measurement import run_selftest
from towline.selftest.rates import MeasuredRate, SelftestResult, measure_rate, smallest_detected, wilson_interval

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a table of 1,500 rows."""
    folder, rng = tmp_path_factory.mktemp("selftest"), np.random.default_rng(7)
    x, colour = rng.normal(size=1500), rng.choice(["red", "green", "blue"], 1500)
    table = pd.DataFrame({"x": x, "colour": colour, "y": 5 * x + (colour == "red") + rng.normal(size=1500)})
    table.to_parquet(folder / "table.parquet")
    return folder


@pytest.fixture(scope="module")
def result(project: Path) -> Iterator[SelftestResult]:
    """The self-test of a linear model, with fewer trials than a user's."""
    raw = {"name": "made", "data": {"source": "table.parquet", "target": "y"}, "candidates": ["linear"]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drift_rates, "ALARM_TRIALS", 30)
        patch.setattr(drift_rates, "PLANTED_TRIALS", 6)
        patch.setattr(gate_rates, "MAX_TRIALS", 40)
        patch.setattr(quality_rates, "GOOD_TRIALS", 30)
        patch.setattr(quality_rates, "DEGRADED_TRIALS", 10)
        patch.setattr(rollout_rates, "EQUAL_TRIALS", 40)
        patch.setattr(rollout_rates, "TRIALS", 12)
        yield run_selftest(build_config({**raw, "evaluation": {"resamples": 50}}, "test"), project)


def rates(result: SelftestResult, part: str, case: str) -> list[MeasuredRate]:
    return at_least_one([rate for rate in result.rates if rate.part == part and case in rate.case])


def test_the_champion_passes_against_itself_and_a_constant_never_does(result: SelftestResult) -> None:
    """The two cases whose rates are certain."""
    (itself,) = rates(result, "gate", "itself")
    (constant,) = rates(result, "gate", "a constant")
    assert (itself.rate, constant.rate) == (1.0, 0.0)


def test_a_larger_loss_is_detected_more_often(result: SelftestResult) -> None:
    """The largest simulated loss never passes and always fails; the report has the smallest detected loss."""
    passing = [rate for rate in rates(result, "gate", "mae worse") if rate.event == "passes"]
    failing = [rate for rate in rates(result, "gate", "mae worse") if rate.event == "fails"]
    assert passing[-1].rate == 0.0
    assert failing[-1].rate == 1.0 >= failing[0].rate
    assert "the smallest loss" in result.notes[0]


def test_planted_drift_is_detected_and_no_drift_is_not(result: SelftestResult) -> None:
    """Windows of the table itself raise few alarms; a shift by two standard deviations always raises one."""
    (quiet,) = rates(result, "drift", "no drift")
    assert quiet.low <= 0.1
    assert "4 a year" in quiet.expected
    assert [rate.rate for rate in rates(result, "drift", "shifted")][-1] == 1.0


def test_degraded_labels_are_detected_and_good_labels_raise_no_alarm(result: SelftestResult) -> None:
    """With labels of other rows, quality is degraded in each window; with the holdout's labels, rarely."""
    (good,) = rates(result, "quality", "labels of the holdout")
    assert good.low <= 0.05
    exchanged = rates(result, "quality", "labels are of other rows")
    assert [rate.effect for rate in exchanged] == [0.1, 0.25, 0.5, 1.0]
    assert (good.trials, exchanged[-1].rate) == (30, 1.0)


def test_a_rollout_stops_a_worse_challenger_and_does_not_call_an_equal_one_better(result: SelftestResult) -> None:
    """The errors stay below the level of the config, and a loss that is higher by half is always seen."""
    (promoted, stopped) = rates(result, "rollout", "versions with equal")
    assert (promoted.event, promoted.low <= 0.05, stopped.event, stopped.low <= 0.05) == (
        "is promoted", True, "is stopped", True,
    )  # fmt: skip
    worse = [rate for rate in rates(result, "rollout", "absolute error higher by 50%") if "champion" not in rate.case]
    assert {rate.event: rate.rate for rate in worse} == {"is promoted": 0.0, "is stopped": 1.0}
    (better,) = rates(result, "rollout", "champion's absolute error higher by 50%")
    assert (better.event, better.rate) == ("is promoted", 1.0)


def test_nothing_remains_of_a_self_test(result: SelftestResult, project: Path) -> None:
    """The project has no store afterwards."""
    assert result.candidate == "linear"
    assert [path.name for path in project.iterdir()] == ["table.parquet"]


def test_wilson_interval() -> None:
    """The values of Brown, Cai & DasGupta (2001): never outside 0 to 1, and wide for few trials."""
    assert wilson_interval(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson_interval(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert wilson_interval(0, 0) == (0.0, 1.0)


def test_the_smallest_detected_effect() -> None:
    """An effect counts only if all larger ones are detected too."""
    detected = [(0.1, 3), (0.2, 9), (0.3, 5), (0.4, 10), (0.5, 10)]
    measured = [
        measure_rate("drift", "x", "y", [True] * count + [False] * (10 - count), effect=e) for e, count in detected
    ]
    assert smallest_detected(measured) == 0.4
    assert smallest_detected(measured[:1]) is None


def test_paths_start_at_the_project(tmp_path: Path) -> None:
    """A table that does not exist is an error before anything is fitted."""
    config = build_config({"name": "made", "data": {"source": "none.csv", "target": "y"}}, "test")
    with pytest.raises(Exception, match="no such file"):
        run_selftest(config, tmp_path)


def test_undefined_losses_do_not_change_the_planted_loss() -> None:
    """Such as those of mape where the target is 0: the mean of the others is higher by the effect."""
    rng = np.random.default_rng(0)
    own = rng.random(4000)
    own[rng.random(4000) < 0.6] = np.nan
    shuffled = own + 1
    worse = rollout_rates._make_worse(own, shuffled, 0.1, rng)
    assert worse is not None
    assert np.nanmean(worse) == pytest.approx(1.1 * np.nanmean(own), rel=0.01)


def test_columns_without_values_have_no_planted_drift() -> None:
    """A column that was introduced after the training rows."""
    rows = pd.DataFrame({"y": np.arange(60.0), "x": np.arange(60.0) % 7, "channel": [None] * 50 + ["web", "app"] * 5})
    config = build_config({"name": "t", "data": {"source": "t.csv", "target": "y"}}, "t")
    contract = infer_contract(rows, config)
    planted = list(drift_rates._list_planted_drifts(config, contract, rows.iloc[:50]))
    assert [[column.name for column in columns] for _, _, columns, _, _ in planted] == [["x"], [], ["x"]]
