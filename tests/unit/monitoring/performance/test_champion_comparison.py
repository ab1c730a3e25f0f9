"""Comparison of two champions on the same labelled rows."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from tests.support.logged_predictions import keep_private, log_predictions, make_drift, shuffle_values
from tests.support.releases import make_house_table, train_run
from tests.support.sample_store import SampleStore
from towline.config import PipelineConfig, build_config
from towline.manifest import ReleaseLocation
from towline.monitoring.performance.champion_comparison import compare_champions_on_rows

CONFIG = build_config({"name": "house-value", "data": {"source": "t", "target": "value", "time": "at"}}, "test")


def later(rows: int = 200) -> pd.DataFrame:
    """Rows after the training rows of both versions."""
    frame = make_house_table(2000).iloc[-rows:].reset_index(drop=True)
    return frame.assign(at=pd.date_range("2026-01-01", periods=rows, freq="1h"))


def judge(champion: Path, previous: Path | None, truth: Any, rows: pd.DataFrame | None = None, **more: Any) -> Any:
    rows = later() if rows is None else rows
    before = ReleaseLocation(previous) if previous else None
    return compare_champions_on_rows(
        log_predictions(champion, rows, truth),
        ReleaseLocation(champion),
        before,
        more.get("config", CONFIG),
        more.get("drift"),
    )


def test_the_previous_champion_is_better(sample_store: SampleStore) -> None:
    """Version 2 predicts 1,000 too much: version 1 is better, with both metrics and the interval."""
    result = judge(sample_store.release(2), sample_store.release(1), later()["value"] + 1000)
    assert (result.previous_is_better, result.input_valid, result.rows) == (True, True, 200)
    assert result.champion == pytest.approx(1000, rel=0.1)
    assert result.previous < 20
    assert "version 1 is better by" in result.reason


def test_the_champion_is_better(sample_store: SampleStore) -> None:
    """The previous champion is not better."""
    result = judge(sample_store.release(2), sample_store.release(1), later()["value"] + 2000)
    assert not result.previous_is_better
    assert result.previous == pytest.approx(1000, rel=0.1)
    assert "version 1 is worse by" in result.reason


def test_equal_predictions_are_no_difference(sample_store: SampleStore) -> None:
    """Two versions with equal predictions are never different."""
    assert not judge(
        sample_store.release(2), sample_store.release(2), shuffle_values(later()["value"], 1.0)
    ).previous_is_better


@pytest.mark.slow
def test_chance_is_no_difference(tmp_path: Path) -> None:
    """For two equally good models, the previous one is rarely reported as better."""
    releases = []
    for version in (1, 2):
        run = train_run(tmp_path / str(version), later_training(version), "linear", target="value", time="at")
        releases.append(run.settings.store / run.package(version).path)
    rows, better = later(), 0
    log = log_predictions(releases[1], rows, rows["value"])
    for seed in range(24):
        truth = 3 * rows["size"].fillna(50) + np.random.default_rng(seed).normal(0, 20, len(rows))
        labelled = log.set_column(log.column_names.index("label"), "label", pa.array(truth, pa.float64()))
        champions = (ReleaseLocation(release) for release in releases[::-1])
        better += compare_champions_on_rows(labelled, *champions, CONFIG, None).previous_is_better
    assert better <= 4


def later_training(seed: int) -> pd.DataFrame:
    frame = make_house_table(400).drop(columns="sold")
    return frame.assign(value=3 * frame["size"].fillna(50) + np.random.default_rng(100 + seed).normal(0, 20, 400))


def test_training_rows_do_not_count(sample_store: SampleStore) -> None:
    """The time is that of the logged time column, not of the request."""
    rows = later().assign(at=pd.date_range("2025-01-01", periods=200, freq="3h"))
    result = judge(sample_store.release(2), sample_store.release(1), rows["value"] + 1000, rows)
    assert not result.previous_is_better
    assert result.rows < 50
    assert "new to both" in result.reason


def test_too_few_rows(sample_store: SampleStore) -> None:
    """Too few labelled rows, and an empty log, are no error."""
    truth = [value if place < 20 else None for place, value in enumerate(later()["value"])]
    result = judge(sample_store.release(2), sample_store.release(1), truth)
    assert (result.rows, result.previous_is_better) == (20, False)
    assert "20 labelled rows are new to both champions, 50 are needed" in result.reason
    empty = log_predictions(sample_store.release(2), later(), later()["value"]).slice(0, 0)
    assert (
        compare_champions_on_rows(
            empty, ReleaseLocation(sample_store.release(2)), ReleaseLocation(sample_store.release(1)), CONFIG, None
        ).rows
        == 0
    )


def test_columns_that_are_not_logged(sample_store: SampleStore) -> None:
    """Without the model's columns nothing is compared."""
    champion = keep_private(sample_store.release(2), size="bucket")
    rows = later()
    log = log_predictions(champion, rows, rows["value"] + 1000)
    log = log.set_column(log.column_names.index("input.size"), "input.size", pa.array(["10..20"] * 200))
    result = compare_champions_on_rows(
        log, ReleaseLocation(champion), ReleaseLocation(sample_store.release(1)), CONFIG, None
    )
    assert not result.previous_is_better
    assert "size, which the log does not have unmodified" in result.reason


def test_invalid_input_blames_no_version(sample_store: SampleStore) -> None:
    """Invalid input is no reason for a rollback."""
    broken = judge(
        sample_store.release(2), sample_store.release(1), later()["value"] + 1000, drift=make_drift("invalid_schema")
    )
    assert (broken.previous_is_better, broken.input_valid) == (False, False)
    assert broken.reason.startswith("it is invalid_schema")
    assert judge(
        sample_store.release(2), sample_store.release(1), later()["value"] + 1000, drift=make_drift("drift")
    ).previous_is_better


def test_no_previous_champion(sample_store: SampleStore) -> None:
    """Missing, damaged, or with another target: the result has the reason, without an error."""
    truth = later()["value"] + 1000
    assert "no champion before" in judge(sample_store.release(2), None, truth).reason
    damaged = sample_store.release(1)
    (damaged / "contract.json").write_text("{}")
    result = judge(sample_store.release(2), damaged, truth)
    assert (result.previous_is_better, result.previous) == (False, None)
    assert "differs from its manifest" in result.reason


def test_another_target(sample_store: SampleStore, tmp_path: Path) -> None:
    """A version of another task is not compared."""
    run = train_run(tmp_path / "other", make_house_table(200).drop(columns="value"), "linear", target="sold", time="at")
    other = run.settings.store / run.package(1).path
    assert "has another target, task or classes" in judge(sample_store.release(2), other, later()["value"]).reason


def test_a_classifier(tmp_path: Path) -> None:
    """A version trained on shuffled labels is worse."""
    config = {"name": "house-value", "data": {"source": "t", "target": "sold", "time": "at"}}
    frame = make_house_table(600).drop(columns="value")
    releases = []
    for version, labels in ((1, frame["sold"]), (2, shuffle_values(frame["sold"], 1.0).astype(str))):
        run = train_run(tmp_path / str(version), frame.assign(sold=labels), "linear", target="sold", time="at")
        releases.append(run.settings.store / run.package(version).path)
    rows = later(400)
    for metric in ("roc_auc", "log_loss", "accuracy"):
        chosen: PipelineConfig = build_config({**config, "evaluation": {"metric": metric}}, "test")
        assert judge(releases[1], releases[0], rows["sold"], rows, config=chosen).previous_is_better, metric
        assert not judge(releases[0], releases[1], rows["sold"], rows, config=chosen).previous_is_better, metric
    odd = ["perhaps", *rows["sold"][1:]]
    assert judge(releases[1], releases[0], odd, rows, config=build_config(config, "test")).rows == 399


def test_without_a_time_column(tmp_path: Path) -> None:
    """With a random split, all logged rows are newer than the training rows."""
    config = build_config({"name": "house-value", "data": {"source": "t", "target": "value"}}, "test")
    releases = []
    for version in (1, 2):
        frame = make_house_table(300).drop(columns=["sold", "at"])
        run = train_run(tmp_path / str(version), frame.assign(value=frame["value"] + 50 * version), target="value")
        releases.append(run.settings.store / run.package(version).path)
    result = judge(releases[1], releases[0], later()["value"] + 50, config=config)
    assert (result.previous_is_better, result.rows) == (True, 200)
