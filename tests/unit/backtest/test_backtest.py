"""Backtests of retraining policies."""

import datetime as dt
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.support.backtests import make_config, make_turning_table
from tests.support.checks import at_least_one
from towline.backtesting import charts, page
from towline.backtesting.results import BacktestResult
from towline.backtesting.simulation import divide_period, run_backtest
from towline.config import PipelineConfig
from towline.errors import ConfigError, TowlineError


def day(text: str) -> dt.datetime:
    return dt.datetime.fromisoformat(text).replace(tzinfo=dt.UTC)


START, END = day("2026-03-02"), day("2026-06-08")


@pytest.fixture(scope="module")
def backtested(tmp_path_factory: pytest.TempPathFactory) -> tuple[BacktestResult, Path]:
    """A table whose column ``b`` is in a lookup table."""
    folder, table = tmp_path_factory.mktemp("backtest"), make_turning_table()
    table["site"] = table.pop("b").mul(10).round().astype(int)
    levels = sorted(table["site"].unique())
    pd.DataFrame({"site": levels, "b": [level / 10 for level in levels]}).to_csv(folder / "sites.csv", index=False)
    lookups = {"sites": {"table": "sites.csv", "key": "site", "columns": ["b"]}}
    columns = {
        "source": "t.parquet",
        "target": "y",
        "time": "at",
        "window": ["9d", "all"],
        "columns": {"site": "category"},
    }
    return run_backtest(make_config(folder, table, lookups=lookups, data=columns), folder, START, END, "2w"), folder


@pytest.mark.slow
def test_a_quality_policy_finds_concept_drift(backtested: tuple[BacktestResult, Path]) -> None:
    """The inputs do not change, but their relation to the labels does: only the quality policy recovers."""
    result, _ = backtested
    by = {policy.policy: policy for policy in result.policies}
    values = {name: policy.value or 0.0 for name, policy in by.items()}
    assert values["quality"] < 0.6 * values["never"]
    assert values["drift"] > 1.5 * values["quality"]
    assert by["never"].retrainings == 0 < by["quality"].retrainings < by["schedule"].retrainings
    assert result.ratio_to_never(by["quality"]) == pytest.approx(values["quality"] / values["never"])
    assert values[result.best] == min(values.values())


@pytest.mark.slow
def test_a_gain_policy_trains_where_it_pays(backtested: tuple[BacktestResult, Path]) -> None:
    """After the change a refit has a lower loss; before it, nothing is trained. The cost of refits is reported."""
    result, _ = backtested
    by = {policy.policy: policy for policy in result.policies}
    gain, never = by["gain"], by["never"]
    assert (gain.value or 0.0) < 0.6 * (never.value or 0.0)
    trainings = [step for step in gain.steps if step.has_training]
    assert trainings[0].trigger == "gain"
    assert trainings[0].end > day("2026-04-11")
    assert len(trainings) < by["schedule"].retrainings
    assert (trainings[0].gain or 0.0) > 0.05
    assert gain.refit_cpu_s > 0 == by["quality"].refit_cpu_s


@pytest.mark.slow
def test_decisions_use_only_rows_and_labels_known_at_the_time(backtested: tuple[BacktestResult, Path]) -> None:
    """No model is trained on rows without labels at that time, and the change is detected after it happened."""
    result, _ = backtested
    change = day("2026-04-11")
    for policy in at_least_one(result.policies):
        assert all(step.trained_until <= step.start - result.delay for step in policy.steps)
        assert [step.start for step in policy.steps[1:]] == [step.end for step in policy.steps[:-1]]
    quality = next(policy for policy in result.policies if policy.policy == "quality")
    trainings = [step for step in quality.steps if step.has_training]
    assert trainings[0].end > change
    assert trainings[0].trigger == "quality"
    after = quality.steps[quality.steps.index(trainings[0]) + 1]
    assert after.version > trainings[0].version or "refused" in trainings[0].outcome


@pytest.mark.slow
def test_the_project_is_not_changed(backtested: tuple[BacktestResult, Path]) -> None:
    """No store, run or release is left behind."""
    assert {path.name for path in backtested[1].iterdir()} == {"t.parquet", "sites.csv"}


@pytest.mark.slow
def test_chart_page_and_json(backtested: tuple[BacktestResult, Path], tmp_path: Path) -> None:
    """The page has the chart, each policy and each step; the result survives JSON."""
    result, _ = backtested
    charts.draw_backtest(result, tmp_path / "backtest.png")
    assert (tmp_path / "backtest.png").read_bytes().startswith(b"\x89PNG")
    page.write_page(result, tmp_path / "backtest.html")
    text = (tmp_path / "backtest.html").read_text()
    assert all(f"<summary>{policy.policy}</summary>" in text for policy in result.policies)
    assert text.count("<tr><td>2026-") == sum(len(policy.steps) for policy in result.policies)
    assert "data:image/png;base64," in text
    assert BacktestResult.model_validate(json.loads(result.model_dump_json())) == result


@pytest.mark.slow
def test_a_training_is_done_once_for_all_policies(config: PipelineConfig, tmp_path: Path) -> None:
    """Two policies that train at the same time use the same training, and each has its cost."""
    result = run_backtest(config, tmp_path, START, START + dt.timedelta(days=28), "2w", ("schedule", "schedule"))
    first, second = result.policies
    assert [step.cpu_s for step in first.steps] == [step.cpu_s for step in second.steps]
    assert first.retrainings == 1  # no step at the end of the period: there would be no row to predict


@pytest.mark.parametrize(
    ("change", "start", "end", "every", "message"),
    [
        ({"data": {"source": "t.parquet", "target": "y"}, "split": {}}, START, END, "1mo", "time of each row"),
        ({}, day("2025-06-01"), END, "1mo", "no rows before 2025-06-01"),
        (
            {"validation": {"min_rows": 900}},
            day("2026-02-01"),
            END,
            "1mo",
            "validation.min_rows is 900",
        ),
        ({}, START, END, "1h", "steps of 1h"),
        ({}, START, END, "1y", "is not a step"),
        ({}, START, END, "99999999999mo", "is not a step"),
        ({}, END, START, "1mo", "is not before"),
        ({}, day("2027-01-01"), day("2027-06-01"), "1mo", "no rows from"),
    ],
)
def test_impossible_periods_are_refused(
    tmp_path: Path, change: dict[str, object], start: dt.datetime, end: dt.datetime, every: str, message: str
) -> None:
    """The error has a remedy, and nothing is trained."""
    with pytest.raises(TowlineError, match=message) as caught:
        run_backtest(make_config(tmp_path, **change), tmp_path, start, end, every)
    assert caught.value.remedy


def test_steps_of_calendar_months() -> None:
    """Each starts on the same day of the month, also after a short month; the last one ends with the period."""
    bounds = divide_period(pd.Timestamp("2026-01-31"), pd.Timestamp("2026-05-15"), "1mo")
    assert [f"{bound:%m-%d}" for bound in bounds] == ["01-31", "02-28", "03-31", "04-30", "05-15"]
    with pytest.raises(ConfigError):
        divide_period(pd.Timestamp("2026-01-01"), pd.Timestamp("2026-05-15"), "0d")


@pytest.mark.slow
def test_late_labels_delay_decisions(tmp_path: Path) -> None:
    """With labels a month late, a calibrated classifier is trained at least a month after the change."""
    table = make_turning_table()
    table["y"] = table["y"] > 20
    sections = {"calibrate": "sigmoid", "evaluation": {"resamples": 50, "metric": "log_loss"}}
    config, month = make_config(tmp_path, table, **sections), dt.timedelta(days=30)
    late = run_backtest(config, tmp_path, START, END, "2w", ("quality",), month)
    trainings = [step for step in late.policies[0].steps if step.has_training]
    assert trainings
    assert trainings[0].end >= day("2026-05-11")
    assert all(step.trained_until <= step.start - month for step in late.policies[0].steps)


def test_labels_that_are_known_at_once(tmp_path: Path) -> None:
    """A row at the start of a step is predicted in it, so no model was trained on it."""
    config = make_config(tmp_path, make_turning_table().iloc[::2])
    result = run_backtest(config, tmp_path, START, END, "2w", ("never",), dt.timedelta(0))
    assert result.delay == dt.timedelta(0)
    assert all(step.trained_until < step.start for step in at_least_one(result.policies[0].steps))


def test_a_class_that_was_rare_at_first(tmp_path: Path) -> None:
    """The first version knows it as one of the rare classes, which the whole table does not have."""
    frame = make_turning_table().iloc[:1200:2].drop(columns="y")
    kind = np.where(frame["a"] > 0, "high", "low").astype(object)
    kind[(np.arange(600) > 400) & (frame["b"] > 0.5)], kind[[30, 60, 90]] = "new", "new"
    classes = {"rare": "merge", "min_rows": 20, "other": "rare"}
    data = {"source": "t.parquet", "target": "kind", "time": "at", "classes": classes}
    config = make_config(tmp_path, frame.assign(kind=kind), data=data)
    start, end = day("2026-01-26"), day("2026-02-15")
    result = run_backtest(config, tmp_path, start, end, "10d", ["never"])
    assert [step.value is not None for step in result.policies[0].steps] == [True, True]
