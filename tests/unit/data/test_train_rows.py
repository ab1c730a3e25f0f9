"""Training on a limited sample, evaluation on all rows of the holdout."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.support.training import prepare_workspace
from towline.data import snapshot, splits
from towline.data.splits import SplitSummary
from towline.data.workspace import Workspace
from towline.training import final_fit
from towline.training.evaluation import holdout
from towline.training.evaluation.metrics import compute_metrics, predict
from towline.training.model_io import load_model
from towline.training.model_selection.cross_validation import cross_validate

ROWS = 6_000


def make_table(*, timed: bool = False) -> pd.DataFrame:
    rng = np.random.default_rng(3)
    table = pd.DataFrame({"a": rng.normal(size=ROWS), "k": rng.choice(["u", "v", "w"], ROWS)})
    table["y"] = np.where(table["a"] + rng.normal(size=ROWS) > 2.2, "yes", "no")
    if timed:
        table["t"] = pd.date_range("2024-01-01", periods=ROWS, freq="h")[rng.permutation(ROWS)]
        table.loc[table["t"] > "2024-06-01", "y"] = "no"
    return table


def read_summary(work: Workspace) -> SplitSummary:
    return SplitSummary.model_validate_json(work.file("split.json").read_bytes())


@pytest.fixture(params=[10**9, 0], ids=["in memory", "by column"])
def cells(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(snapshot, "MAX_CELLS", request.param)
    monkeypatch.setattr(snapshot, "BATCH_ROWS", 700)
    monkeypatch.setattr(splits, "BATCH_ROWS", 700)
    monkeypatch.setattr(splits, "HOLDOUT_ROWS", 500)
    return int(request.param)


def test_the_sample_has_the_shares_of_the_classes(tmp_path: Path, cells: int) -> None:
    """Without a time, the rows to train on are a seeded sample with the shares of the classes."""
    table = make_table()
    work, _ = prepare_workspace(tmp_path, table, data={"train_rows": 1_000})
    summary, positions = read_summary(work), work.split_positions()
    assert (summary.sampled_by, summary.train) == ("class", len(positions["train"]))
    assert summary.train == pytest.approx(1_000, abs=2)
    assert summary.train_available == ROWS - summary.holdout
    text = f"{summary.train:,} of {summary.train_available:,} rows (a sample by class)"
    assert summary.describe_training_rows() == text
    available = np.setdiff1d(np.arange(ROWS), positions["holdout_all"])
    assert len(available) == summary.train_available
    assert set(positions["train"]) <= set(available)
    share = (table["y"].iloc[positions["train"]] == "yes").mean()
    assert share == pytest.approx((table["y"].iloc[available] == "yes").mean(), abs=0.002)
    assert work.subset("train").rows["a"].tolist() == table["a"].iloc[positions["train"]].tolist()


def test_the_newest_rows_are_used_and_a_class_is_not_lost(tmp_path: Path, cells: int) -> None:
    """With a time, a model is trained on the newest rows before the holdout, and two rows of each class they lack."""
    table = make_table(timed=True)
    work, config = prepare_workspace(tmp_path, table, data={"train_rows": 1_000, "time": "t"})
    summary, train = read_summary(work), work.subset("train").rows
    assert summary.sampled_by == "time"
    assert len(train) == 1_000 + 2
    assert train["t"].is_monotonic_increasing
    older = table["t"].drop(work.split_positions()["holdout_all"])
    assert train["t"].iloc[2:].min() == older.nlargest(1_000).min()
    assert (train["y"] == "yes").sum() == 2
    assert config.refits
    last = work.subset("all").rows
    assert last["t"].max() == table["t"].max()
    assert len(last) == 1_002


def test_metrics_are_of_all_rows_of_the_holdout(tmp_path: Path, cells: int) -> None:
    """The evaluation predicts the whole holdout in batches, and names the numbers that come from a sample."""
    table = make_table()
    work, config = prepare_workspace(
        tmp_path, table, data={"train_rows": 1_000}, candidates=["linear"], evaluation={"resamples": 50}
    )
    chosen = cross_validate(work, config.training, config.candidates[0])
    fitted = final_fit.fit(work, config.training, chosen)
    evaluation = holdout.evaluate(work, config.training, fitted)
    summary = read_summary(work)
    assert (fitted.rows, fitted.rows_available) == (summary.train, summary.train_available)
    assert evaluation.rows == summary.holdout > len(work.subset("holdout").labels) == 500
    contract, rows = work.contract(), table.iloc[np.sort(work.split_positions()["holdout_all"])]
    model = load_model(work.file(fitted.file))
    points = compute_metrics(contract.labels(rows), predict(model, contract.features(rows), contract), contract)
    assert {name: value.value for name, value in evaluation.metrics.items()} == pytest.approx(points)
    assert all(value.low <= value.value <= value.high for value in evaluation.metrics.values())
    assert any(f"of all {summary.holdout:,} rows" in note for note in evaluation.notes)


def test_both_ways_of_reading_give_one_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table in memory and a table that is read by column have the same split and the same rows."""
    parts = []
    for cells in (10**9, 0):
        monkeypatch.setattr(snapshot, "MAX_CELLS", cells)
        folder = tmp_path / str(cells)
        folder.mkdir()
        work, _ = prepare_workspace(folder, make_table(timed=True), data={"train_rows": 2_000}, split={"by": "random"})
        parts.append((work.split_positions(), work.subset("train").rows, work.subset("holdout").features))
    assert parts[0][0].keys() == parts[1][0].keys()
    assert all(np.array_equal(parts[0][0][name], parts[1][0][name]) for name in parts[0][0])
    for first, second in zip(parts[0][1:], parts[1][1:], strict=True):
        pd.testing.assert_frame_equal(first, second)


def test_small_tables_are_not_sampled(tmp_path: Path) -> None:
    """A table below the limit is used as a whole, and null means all rows."""
    work, _ = prepare_workspace(tmp_path, make_table())
    assert set(work.split_positions()) == {"train", "holdout"}
    assert read_summary(work).describe_training_rows() == f"{ROWS - read_summary(work).holdout:,} rows"
    work, _ = prepare_workspace(tmp_path, make_table(), data={"train_rows": None})
    assert read_summary(work).sampled_by == ""
