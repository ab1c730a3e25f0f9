"""Splits: each row is in one part, groups and equal times are not divided, and every run gives the same parts."""

import contextlib
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.support.checks import at_least_one
from towline.config import DataConfig, PipelineConfig
from towline.data.schema.inference import infer_contract
from towline.data.source.sources import Dataset, load_dataset
from towline.data.splits import SplitSummary, is_held_out, make_folds, sample_positions, split_table
from towline.data.workspace import Workspace
from towline.errors import DataValidationError

DATA = Path(__file__).parents[3] / "data"


def config(holdout: float | str = 0.2, by: str = "auto", k: int = 5, seed: int = 1, **data: Any) -> PipelineConfig:
    return PipelineConfig(
        name="x",
        seed=seed,
        data=DataConfig(**{"source": "t.parquet", "target": "y", **data}),
        split={"holdout": holdout, "by": by},
        cross_validation={"folds": k},
    )


def parts(rows: pd.DataFrame, pipeline: PipelineConfig) -> tuple[SplitSummary, np.ndarray, np.ndarray]:
    """Splits a table as the flow does, by way of a snapshot."""
    with tempfile.TemporaryDirectory() as folder:
        rows.to_parquet(Path(folder) / "t.parquet", index=False)
        dataset: Dataset = load_dataset(pipeline.data, Path(folder), Path(folder), None)
        work = Workspace(store=Path(folder), key="k" * 64, token="t", dataset=dataset)
        work.save("contract.json", infer_contract(work.table(), pipeline))
        made = split_table(work, pipeline)
        assert SplitSummary.model_validate_json(work.file("split.json").read_bytes()) == made
        positions = work.split_positions()
    train, holdout = positions["train"], positions["holdout"]
    assert train.dtype == holdout.dtype == np.int64
    assert (len(train), len(holdout)) == (made.train, made.holdout)
    assert not set(train) & set(holdout)
    return made, train, holdout


def table(rows: int, seed: int, levels: int = 10**6) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "row": np.arange(rows),
            "y": rng.choice(["a", "b", "c"], rows, p=[0.66, 0.3, 0.04]),
            "x": rng.integers(0, levels, rows),
            "g": rng.integers(0, 40, rows),
            "t": pd.Timestamp("2026-01-01") + pd.to_timedelta(rng.integers(0, 60, rows), "h"),
        }
    )


def test_split_by_time() -> None:
    """The newest fifth of the bike table is held out, and every fold tests on rows newer than its training rows."""
    rows = pd.read_parquet(DATA / "bike_hourly.parquet")
    pipeline = config(source=str(DATA / "bike_hourly.parquet"), target="rentals", time="datetime")
    made, train, holdout = parts(rows, pipeline)
    assert made.by == "time"
    assert abs(made.holdout / len(rows) - 0.2) < 0.001
    assert rows["datetime"][train].max() < rows["datetime"][holdout].min() == pd.Timestamp(made.cut or "")
    older = rows.iloc[train]
    cut = make_folds(older, older["rentals"].to_numpy(float), pipeline)
    assert len(cut) == 5
    for train_rows, test in at_least_one(cut):
        assert older["datetime"].iloc[train_rows].max() < older["datetime"].iloc[test].min()
    assert [len(train_rows) for train_rows, _ in cut] == sorted(len(train_rows) for train_rows, _ in cut)


def test_holdout_by_duration() -> None:
    """With a duration, the rows younger than it are held out, counted from the newest row."""
    rows = pd.read_parquet(DATA / "bike_hourly.parquet")
    made, train, holdout = parts(rows, config("28d", target="rentals", time="datetime"))
    end = rows["datetime"].max()
    assert rows["datetime"][holdout].min() == end - pd.Timedelta("28D") + pd.Timedelta("1h")
    assert made.train + made.holdout == len(rows)
    assert rows["datetime"][train].max() < pd.Timestamp(made.cut or "")


def test_days_are_in_one_part() -> None:
    """Calls of one day are in one part of the split and of every fold."""
    rows = pd.read_parquet(DATA / "bank_marketing.parquet")
    pipeline = config(source=str(DATA / "bank_marketing.parquet"), target="subscribed", time="date")
    _, train, holdout = parts(rows, pipeline)
    assert not set(rows["date"][train]) & set(rows["date"][holdout])
    older = rows.iloc[train]
    for train_rows, test in at_least_one(make_folds(older, older["subscribed"].to_numpy(object), pipeline)):
        assert not set(older["date"].iloc[train_rows]) & set(older["date"].iloc[test])


def test_random_split_is_stratified() -> None:
    """The holdout of a random split has its share of each class, and another seed gives another holdout."""
    rows = pd.read_parquet(DATA / "bank_marketing.parquet")
    pipeline = {"by": "random", "target": "subscribed", "time": "date"}
    _, train, holdout = parts(rows, config(**pipeline))
    yes = rows["subscribed"] == "yes"
    assert abs(len(holdout) / len(rows) - 0.2) < 0.01
    assert abs(yes[holdout].mean() - yes[train].mean()) < 0.02
    assert rows["date"][train].is_monotonic_increasing
    assert set(holdout) != set(parts(rows, config(seed=2, **pipeline))[2])


@settings(max_examples=8, deadline=None)
@given(st.integers(80, 400), st.integers(0, 10**6), st.sampled_from([0.1, 0.2, 0.5]))
def test_random_split(rows: int, seed: int, share: float) -> None:
    """A row stays in its part if rows are shuffled or appended; copies are together; each class is in both parts."""
    base = table(rows, seed).drop(columns=["row", "g", "t"])
    shuffled = base.sample(frac=1, random_state=seed).reset_index(drop=True)
    more = pd.concat([shuffled, table(rows // 2, seed + 1)[["y", "x"]], base[:9]], ignore_index=True)
    more.loc[rows + 1, "x"] = None
    held = []
    for frame in (base, shuffled, more):
        summary, train, holdout = parts(frame, config(share))
        assert len(train) + len(holdout) == len(frame)
        keys = frame.astype({"x": float}).apply(tuple, axis=1)
        # test_a_table_of_few_distinct_rows_has_an_unbiased_holdout tests the other tables
        assume(summary.copies == "together")
        assert not set(keys[train]) & set(keys[holdout])
        for name, group in at_least_one(frame.drop_duplicates().groupby("y")):
            if len(group) > 1:
                assert name in set(frame["y"][train]) & set(frame["y"][holdout])
        held.append(set(keys[holdout]))
    assert held[0] == held[1]
    rare = base.drop_duplicates()["y"].value_counts()
    common = {key for key in set(base.astype({"x": float}).apply(tuple, axis=1)) if rare[key[0]] > 80}
    assert held[0] & common == held[2] & common


@settings(max_examples=12, deadline=None)
@given(st.integers(60, 300), st.integers(0, 10**6), st.sampled_from(["random", "time"]))
def test_groups_are_in_one_part(rows: int, seed: int, by: str) -> None:
    """Rows of one group are in one part of the split and of every fold, by time and at random."""
    base = table(rows, seed)
    base["y"] = base["x"] / 7
    if by == "time":
        base["g"] = base["t"].dt.day * 100 + base["g"] % 3
    pipeline = config(by=by, group="g", time="t" if by == "time" else None)
    _, train, holdout = parts(base, pipeline)
    assert not set(base["g"][train]) & set(base["g"][holdout])
    older = base.iloc[train]
    assume(older["g"].nunique() > 5 and older["t"].dt.day.nunique() > 1)
    made: list[tuple[np.ndarray, np.ndarray]] = []
    with contextlib.suppress(DataValidationError) if by == "time" else contextlib.nullcontext():
        made = make_folds(older, older["y"].to_numpy(), pipeline)
    assert made or by == "time"
    for train_rows, test in made:
        assert not set(older["g"].iloc[train_rows]) & set(older["g"].iloc[test])
        assert not set(train_rows) & set(test)


@pytest.mark.parametrize("by", ["random", "time"])
def test_a_row_without_a_group_is_a_group_of_its_own(by: str) -> None:
    """Rows without a group, such as those of guests, are in both parts and in every fold."""
    base = (
        table(1_000, 0).sort_values("t", ignore_index=True).drop(columns=["row"]).assign(y=lambda rows: rows["x"] / 7)
    )
    base["g"] = [f"c{row // 10}" if row % 2 else None for row in range(1_000)]
    _, train, holdout = parts(base, config(by=by, group="g", time="t" if by == "time" else None))
    assert not set(base["g"][train].dropna()) & set(base["g"][holdout].dropna())
    assert abs(len(holdout) - 200) < 60
    assert abs(base["g"][holdout].isna().sum() - 100) < 40
    assert base["g"][train].isna().sum() > 350
    older = base.iloc[train]
    for train_rows, test in at_least_one(make_folds(older, older["y"].to_numpy(), config(group="g", by="random"))):
        assert not set(older["g"].iloc[train_rows].dropna()) & set(older["g"].iloc[test].dropna())
        assert abs(len(test) - len(train) / 5) < 20


def test_the_holdout_of_a_champion_can_be_computed_again() -> None:
    """The split can be computed again from the features, and from the group alone if every row has one."""
    base = table(400, 0).assign(y=lambda rows: rows["x"] / 7)
    base["g"] = [f"c{row // 10}" if row % 2 else None for row in range(400)]
    _, _, holdout = parts(base, config(group="g"))
    features = base.drop(columns="y")
    assert np.flatnonzero(is_held_out(features, 1, 0.2, group="g")).tolist() == sorted(holdout)
    grouped = features[features["g"].notna()]
    held_out = is_held_out(grouped[["g"]], 1, 0.2, group="g")
    assert grouped.index[held_out].tolist() == sorted(set(holdout) & set(grouped.index))


@settings(max_examples=12, deadline=None)
@given(st.integers(20, 300), st.integers(0, 10**6), st.integers(1, 30), st.sampled_from([0.1, 0.3, 0.6]))
def test_times_are_in_one_part(rows: int, seed: int, moments: int, share: float) -> None:
    """Rows with the same time are in one part, and the order of the rows does not matter."""
    base = table(rows, seed)
    base["t"] = base["t"].dt.floor(f"{max(60 // moments, 1)}h")
    pipeline = config(share, time="t")
    if base["t"].nunique() == 1:
        with pytest.raises(DataValidationError, match="same time"):
            parts(base, pipeline)
        return
    made, train, holdout = parts(base, pipeline)
    assert base["t"][train].max() < base["t"][holdout].min()
    assert base["t"][train].is_monotonic_increasing
    shuffled = base.sample(frac=1, random_state=seed).reset_index(drop=True)
    again, _, same = parts(shuffled, pipeline)
    assert again == made
    assert set(shuffled["row"][same]) == set(base["row"][holdout])


def test_few_times_give_fewer_folds() -> None:
    """Few distinct times give fewer folds; fewer than three times are rejected."""
    times = pd.DataFrame({"t": pd.to_datetime(["2026-01-01"] * 9 + ["2026-01-02"] * 9 + ["2026-01-03"] * 9)})
    labels = np.arange(27.0)
    made = make_folds(times, labels, config(time="t"))
    assert [(len(train_rows), len(test)) for train_rows, test in made] == [(9, 9), (18, 9)]
    with pytest.raises(DataValidationError, match="2 distinct times"):
        make_folds(times[:18], labels[:18], config(time="t"))


def test_random_folds() -> None:
    """Each training row is tested once; classes have their shares; the seed decides."""
    rows = table(500, 3)
    labels = rows["y"].to_numpy(object)
    for truth in (labels, rows["x"].to_numpy(float)):
        made = make_folds(rows, truth, config())
        assert sorted(np.concatenate([test for _, test in made])) == list(range(500))
    shares = [(labels[test] == "c").mean() for _, test in make_folds(rows, labels, config())]
    assert max(shares) - min(shares) < 0.02
    folds, repeated = (make_folds(rows, labels, config()) for _ in range(2))
    assert all((first[1] == second[1]).all() for first, second in zip(folds, repeated, strict=True))


def test_impossible_folds_are_rejected() -> None:
    """Too few rows or groups, and folds that have one class to learn from, are reported with numbers and remedy."""
    rows = table(100, 3)
    labels = np.array(["a"] * 97 + ["b"] * 3, dtype=object)
    cases: list[tuple[pd.DataFrame, np.ndarray, PipelineConfig, str]] = [
        (rows[:4], labels[:4], config(), "4 training rows: fewer than 5 folds"),
        (rows.assign(g=rows["g"] % 2), labels, config(group="g"), "2 groups of 'g'"),
        (rows.sort_values("t"), labels, config(time="t"), "0 of 5 folds have training rows of two classes"),
    ]
    for frame, truth, pipeline, words in at_least_one(cases):
        with pytest.raises(DataValidationError) as caught:
            make_folds(frame, truth, pipeline)
        assert words in caught.value.what
        assert "cross_validation.folds" in caught.value.remedy
    alone = pd.DataFrame({"y": [1.5] * 30, "x": [1] * 30, "g": [1] * 30})
    with pytest.raises(DataValidationError, match="holdout would be empty"):
        parts(alone, config(group="g"))
    with pytest.raises(DataValidationError, match="would be empty"):
        parts(rows.assign(g=1), config(time="t", group="g"))


def test_folds_may_lack_classes() -> None:
    """A rare class is in some folds only; a class that appears late leaves out the folds before it."""
    rows = table(120, 3).sort_values("t")
    rare = np.array(["a"] * 60 + ["b"] * 57 + ["c"] * 3, dtype=object)
    folds = make_folds(rows, rare, config())
    assert len(folds) == 5
    assert {label for train, _ in folds for label in set(rare[train])} == {"a", "b", "c"}
    late = np.array(["a"] * 50 + ["b", "a"] * 35, dtype=object)
    folds = make_folds(rows, late, config(time="t"))
    assert 2 <= len(folds) < 5
    for train, _ in at_least_one(folds):
        assert set(late[train]) == {"a", "b"}


def test_a_table_of_few_distinct_rows_has_an_unbiased_holdout() -> None:
    """With the same features in many rows, the target's mean given the features is the same in both parts."""
    rng = np.random.default_rng(3)
    base = pd.DataFrame({"x": rng.integers(0, 12, 4000).astype(float)})
    base["y"] = np.where(rng.random(4000) < 0.2 + base["x"] / 20, "yes", "no")
    _, train, holdout = parts(base, config(by="random"))
    assert abs(len(holdout) / len(base) - 0.2) < 0.03
    yes = (base["y"] == "yes").astype(float)
    by_level = [yes.iloc[rows].groupby(base["x"].iloc[rows]).mean() for rows in (train, holdout)]
    assert np.corrcoef(*by_level)[0, 1] > 0.8
    more = pd.concat([base, base.head(50)], ignore_index=True)
    assert set(parts(more, config(by="random"))[2]) & set(range(4000)) == set(holdout)


def test_rows_that_differ_in_the_target_alone_are_in_one_part() -> None:
    """No holdout row has the features of a training row."""
    rng = np.random.default_rng(4)
    base = pd.DataFrame({"x": np.repeat(rng.normal(size=600), 2)}).assign(y=np.tile(["no", "yes"], 600))
    base = pd.concat([base, pd.DataFrame({"x": rng.normal(size=400), "y": "no"})], ignore_index=True)
    _, train, holdout = parts(base, config(by="random"))
    assert set(base["x"].iloc[train]) & set(base["x"].iloc[holdout]) == set()


def test_a_sample_of_rows_has_two_rows_of_each_class() -> None:
    """The sample is seeded and ordered; rows of rare classes are added to it, and one row remains one."""
    positions = np.arange(1_000, 11_000)
    labels = np.full(11_000, "common", dtype=object)
    labels[[1_200, 5_000, 9_000]], labels[7_000], labels[:1_000] = "rare", "single", "elsewhere"
    sample = sample_positions(positions, 50, 1, labels)
    assert list(sample) == sorted(set(sample))
    assert set(sample) <= set(positions)
    assert 53 <= len(sample) <= 54
    assert sorted(labels[sample])[-3:] == ["rare", "rare", "single"]
    assert (sample == sample_positions(positions, 50, 1, labels)).all()
    assert len(sample_positions(positions, 50, 1)) == 50
    assert sample_positions(positions, 10_000, 1, labels) is positions


@pytest.mark.parametrize("labels", [np.arange(200.0), np.array(["a", "b"] * 100, dtype=object)])
def test_copies_of_a_row_are_in_one_fold(labels: np.ndarray) -> None:
    """As in the holdout: a model that remembers rows would else be chosen. Few distinct rows are not."""
    rows = pd.DataFrame({"x": np.repeat(np.arange(120), [2] * 80 + [1] * 40), "y": labels})
    folds = make_folds(rows, labels, config())
    for train, test in at_least_one(folds):
        assert not set(rows["x"].iloc[train]) & set(rows["x"].iloc[test])
    assert sorted(np.concatenate([test for _, test in folds])) == list(range(200))
    few = rows.assign(x=rows["x"] % 3)
    assert all(set(few["x"].iloc[train]) == {0, 1, 2} for train, _ in at_least_one(make_folds(few, labels, config())))
