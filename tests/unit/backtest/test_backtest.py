"""A replay shows what each policy would have come to."""

import datetime as dt
import json
from pathlib import Path

import pandas as pd
import pytest

from tests.unit.backtest.conftest import configured, turning
from towline.backtesting import charts, page
from towline.backtesting.results import BacktestResult
from towline.backtesting.simulation import moments, replay
from towline.config import PipelineConfig
from towline.errors import ConfigError, TowlineError


def day(text: str) -> dt.datetime:
    return dt.datetime.fromisoformat(text).replace(tzinfo=dt.UTC)


START, END = day("2026-03-02"), day("2026-06-08")


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory) -> tuple[BacktestResult, Path]:
    folder = tmp_path_factory.mktemp("world")
    return replay(configured(folder), folder, START, END, "2w"), folder


def test_quality_finds_what_drift_does_not(lived: tuple[BacktestResult, Path]) -> None:
    """The inputs never change, only what they mean: a policy on drift stays blind, one on quality recovers."""
    found, _ = lived
    by = {life.policy: life for life in found.lives}
    values = {name: life.value or 0.0 for name, life in by.items()}
    assert values["quality"] < 0.6 * values["never"]
    assert values["drift"] > 1.5 * values["quality"]
    assert by["never"].retrainings == 0 < by["quality"].retrainings < by["schedule"].retrainings
    assert found.ratio(by["quality"]) == pytest.approx(values["quality"] / values["never"])
    assert values[found.best] == min(values.values())


def test_a_decision_rests_on_what_was_known_then(lived: tuple[BacktestResult, Path]) -> None:
    """No model has learnt from rows whose labels were not there yet, and the turn is noticed after it, not before."""
    found, _ = lived
    turn = day("2026-04-11")
    for life in found.lives:
        assert all(step.learnt_to <= step.start - found.delay for step in life.steps)
        assert [step.start for step in life.steps[1:]] == [step.end for step in life.steps[:-1]]
    quality = next(life for life in found.lives if life.policy == "quality")
    begun = [step for step in quality.steps if step.trained]
    assert begun[0].end > turn
    assert begun[0].trigger == "quality"
    after = quality.steps[quality.steps.index(begun[0]) + 1]
    assert after.version > begun[0].version or "refused" in begun[0].outcome


def test_nothing_is_left_behind(lived: tuple[BacktestResult, Path]) -> None:
    """The project holds what it held before: no store, no run, no release."""
    assert [path.name for path in lived[1].iterdir()] == ["t.parquet"]


def test_it_can_be_drawn_and_read(lived: tuple[BacktestResult, Path], tmp_path: Path) -> None:
    """The picture is a PNG; the page holds it, each policy and each step; records survive JSON."""
    found, _ = lived
    charts.draw(found, tmp_path / "replay.png")
    assert (tmp_path / "replay.png").read_bytes().startswith(b"\x89PNG")
    page.write(found, tmp_path / "replay.html")
    text = (tmp_path / "replay.html").read_text()
    assert all(f"<summary>{life.policy}</summary>" in text for life in found.lives)
    assert text.count("<tr><td>2026-") == sum(len(life.steps) for life in found.lives)
    assert "data:image/png;base64," in text
    assert BacktestResult.model_validate(json.loads(found.model_dump_json())) == found


def test_a_training_is_done_once_for_all_policies(config: PipelineConfig, tmp_path: Path) -> None:
    """The same moment costs the same in two lives that train then, for it is the same training."""
    found = replay(config, tmp_path, START, START + dt.timedelta(days=42), "2w", ("schedule", "schedule"))
    first, second = found.lives
    assert [step.cpu_s for step in first.steps] == [step.cpu_s for step in second.steps]
    assert first.retrainings == 2  # the round at the very end starts none: no row would be left to answer


@pytest.mark.parametrize(
    ("change", "start", "end", "every", "told"),
    [
        ({"data": {"source": "t.parquet", "target": "y"}, "split": {}}, START, END, "1mo", "when rows happened"),
        ({}, day("2025-06-01"), END, "1mo", "no rows before 2025-06-01"),
        (
            {"validation": {"min_rows": 900}},
            day("2026-02-01"),
            END,
            "1mo",
            "validation.min_rows is 900",
        ),
        ({}, START, END, "1h", "steps of 1h"),
        ({}, START, END, "1y", "is no step"),
        ({}, END, START, "1mo", "is not before"),
        ({}, day("2027-01-01"), day("2027-06-01"), "1mo", "no rows from"),
    ],
)
def test_what_cannot_be_replayed_is_told(
    tmp_path: Path, change: dict[str, object], start: dt.datetime, end: dt.datetime, every: str, told: str
) -> None:
    """Each with the remedy, before anything is trained."""
    with pytest.raises(TowlineError, match=told) as caught:
        replay(configured(tmp_path, **change), tmp_path, start, end, every)
    assert caught.value.remedy


def test_months_are_of_the_calendar() -> None:
    """Steps of a month begin on the same day, also after a short month, and the last one ends at the end."""
    bounds = moments(pd.Timestamp("2026-01-31"), pd.Timestamp("2026-05-15"), "1mo")
    assert [f"{bound:%m-%d}" for bound in bounds] == ["01-31", "02-28", "03-31", "04-30", "05-15"]
    with pytest.raises(ConfigError):
        moments(pd.Timestamp("2026-01-01"), pd.Timestamp("2026-05-15"), "0d")


def test_labels_that_come_late_make_late_decisions(tmp_path: Path) -> None:
    """With labels a month late the same world is noticed at least a month later."""
    config, month = configured(tmp_path, turning()), dt.timedelta(days=30)
    late = replay(config, tmp_path, START, END, "2w", ("quality",), month)
    begun = [step for step in late.lives[0].steps if step.trained]
    assert not begun or begun[0].end >= day("2026-05-11")
    assert all(step.learnt_to <= step.start - month for step in late.lives[0].steps)
