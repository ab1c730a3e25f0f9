"""The contract: inferred kinds and roles of columns, and the canonical frame."""

import contextlib
import tempfile
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from towline.config import DataConfig, PipelineConfig
from towline.data.schema.contract import Contract
from towline.data.schema.inference import infer_contract
from towline.data.source.sources import load_dataset, read_snapshot
from towline.errors import ConfigError, DataError

DATA = Path(__file__).parents[3] / "data"
ROWS = 200


def config(task: str | None = None, **data: Any) -> PipelineConfig:
    return PipelineConfig(name="x", task=task, data=DataConfig(**{"source": "t.csv", "target": "y", **data}))


def contract(values: dict[str, Any], **data: Any) -> Contract:
    rows = len(next(iter(values.values())))
    return infer_contract(pd.DataFrame({"y": np.arange(rows) / 3, **values}), config(**data))


def column(values: Any, **data: Any) -> Any:
    return contract({"c": values}, **data).columns[1]


def test_bike_table() -> None:
    """The task is a regression; the features include the calendar parts of the time."""
    rows = pd.read_parquet(DATA / "bike_hourly.parquet")
    inferred = infer_contract(rows, config(target="rentals", time="datetime"))
    kinds = {c.name: c.kind for c in inferred.feature_columns}
    assert inferred.task == "regression"
    assert kinds["weather"] == "category"
    assert kinds["temp_c"] == "numeric"
    assert "rentals" not in kinds
    assert inferred.columns[0].role == "time"
    assert inferred.columns[0].derive == ("month", "weekday", "day", "hour", "days")
    assert inferred.labels(rows).dtype == np.float64
    bare = infer_contract(rows, config(target="rentals", time="datetime", columns={"datetime": "ignore"}))
    assert (bare.columns[0].kind, bare.columns[0].role) == ("datetime", "time")
    assert "datetime" not in {c.name for c in bare.feature_columns}
    assert Contract.model_validate_json(inferred.model_dump_json()) == inferred


@pytest.mark.parametrize(
    ("times", "parts"),
    [
        (pd.date_range("1990-01-01", periods=30, freq="YS"), ("days",)),
        (pd.date_range("1990-12-31", periods=30, freq="YE"), ("days",)),
        (pd.date_range("2015-01-15", periods=60, freq="MS"), ("month", "days")),
        (pd.date_range("2015-01-31", periods=60, freq="ME"), ("month", "days")),
        (pd.date_range("2015-03-31", periods=40, freq="QE"), ("month", "days")),
        (pd.date_range("2015-01-05", periods=150, freq="W-MON"), ("month", "day", "days")),
        (pd.date_range("2015-01-01", periods=900, freq="D"), ("month", "weekday", "day", "days")),
    ],
)
def test_dates_that_stand_for_months_or_years_have_no_weekday(times: pd.DatetimeIndex, parts: tuple[str, ...]) -> None:
    table = pd.DataFrame({"at": times, "a": np.arange(len(times)) % 7 * 1.5, "y": np.arange(len(times)) % 5 * 1.0})
    data = {"source": "t.csv", "target": "y", "time": "at"}
    config = PipelineConfig.model_validate({"name": "t", "task": "regression", "data": data})
    column = next(column for column in infer_contract(table, config).columns if column.name == "at")
    assert column.derive == parts


def test_bank_table() -> None:
    """The task is binary with the positive class yes; the row number is ignored, with a note."""
    rows = pd.read_parquet(DATA / "bank_marketing.parquet")
    inferred = infer_contract(rows, config(target="subscribed", time="date"))
    columns = {c.name: c for c in inferred.columns}
    assert (inferred.task, inferred.classes, inferred.positive) == ("binary", ("no", "yes"), "yes")
    assert columns["id"].role == "ignored"
    assert "identifies the row" in columns["id"].note
    assert columns["pdays"].nullable
    assert columns["pdays"].integer
    assert columns["job"].categories is not None
    assert set(inferred.labels(rows)) == {"no", "yes"}
    assert infer_contract(rows, config(target="subscribed", columns={"id": "numeric"})).columns[0].role == "feature"


@pytest.mark.parametrize(
    ("values", "kind", "role", "note"),
    [
        ([True, False] * 100, "boolean", "feature", ""),
        (["yes", "no"] * 100, "category", "feature", ""),
        ([1.5, None] * 100, "numeric", "feature", ""),
        ([f"level {i % 98}" for i in range(ROWS)], "category", "feature", ""),
        ([f"a word {i % 150}" for i in range(ROWS)], "text", "feature", ""),
        ([f"{i % 90} " + "word " * 20 for i in range(ROWS)], "text", "feature", ""),
        ([f"K-{i * 7919 % 1000}" for i in range(ROWS)], "category", "ignored", "identifies"),
        (list(range(ROWS)), "numeric", "ignored", "identifies"),
        ([i * 7919 % 100003 for i in range(ROWS)], "numeric", "feature", ""),
        ([5] * ROWS, "numeric", "ignored", "constant"),
        ([None] * ROWS, "numeric", "ignored", "has no values"),
        (["a", None] * 100, "category", "feature", ""),
        ([pd.Timestamp(2026, i % 12 + 1, 1, i % 9) for i in range(ROWS)], "datetime", "feature", ""),
        ([pd.Timestamp(2026, 1, 1), pd.Timestamp(2026, 1, 2)] * 100, "datetime", "ignored", "too little time"),
        ([["1", "2", "x"][i % 3] for i in range(ROWS)], "category", "feature", ""),
    ],
)
def test_kinds_and_roles_are_inferred(values: list[Any], kind: str, role: str, note: str) -> None:
    """Kinds and roles are inferred from the values; an ignored column has a note with the reason."""
    inferred = column(pd.Series(values, dtype="float64" if values[0] is None else None))
    assert (inferred.kind, inferred.role) == (kind, role)
    assert note in inferred.note
    assert bool(inferred.note) == (role == "ignored")


def test_levels_are_listed_up_to_100() -> None:
    """A category of up to 100 levels lists them sorted; a larger one has only their number."""
    inferred = column([f"{i % 98:02}x" for i in range(400)])
    assert inferred.categories is not None
    assert inferred.categories[:2] == ("00x", "01x")
    assert column([f"{i % 101}x" for i in range(400)]).model_dump()["categories"] is None
    assert column([f"{i % 101}x" for i in range(400)]).levels == 101


@pytest.mark.parametrize(
    ("target", "task", "classes", "positive"),
    [
        (["good", "bad", "bad"] * 20, "binary", ("bad", "good"), "good"),
        ([True, False] * 30, "binary", (False, True), True),
        ([0, 1] * 30, "binary", (0, 1), 1),
        ([0.0, 1.0] * 30, "binary", (0, 1), 1),
        (["0", "1"] * 30, "binary", ("0", "1"), "1"),
        (["N", "Y"] * 30, "binary", ("N", "Y"), "Y"),
        ([1, 2, 3] * 20, "multiclass", (1, 2, 3), None),
        (["a", "b", "c"] * 20, "multiclass", ("a", "b", "c"), None),
        ([1.5, 2.5, 3.5] * 20, "regression", (), None),
        (list(range(60)), "regression", (), None),
        (["a"] * 60, "binary", ("a",), "a"),
    ],
)
def test_task_and_classes_are_inferred(target: list[Any], task: str, classes: tuple[Any, ...], positive: Any) -> None:
    """Task, classes and positive class are inferred from the target; labels are these classes, also after JSON."""
    rows = pd.DataFrame({"y": target, "x": np.arange(60) / 7})
    inferred = infer_contract(rows, config())
    assert (inferred.task, inferred.classes, inferred.positive) == (task, classes, positive)
    again = Contract.model_validate_json(inferred.model_dump_json())
    assert [type(label) for label in again.classes] == [type(label) for label in classes]
    labels = again.labels(rows)
    assert labels.shape == (60,)
    if classes:
        assert labels.dtype == object
        assert {type(label) for label in labels} == {type(label) for label in classes}
        assert labels.tolist() == target
        assert again.labels(rows.astype({"y": object})).tolist() == target


def test_config_names_the_positive_class() -> None:
    """Also as YAML's yes and no; a wrong name is an error that lists the classes."""
    rows = pd.DataFrame({"y": ["no", "yes", "no"] * 10, "x": range(30)})
    assert infer_contract(rows, config(positive="no")).positive == "no"
    assert infer_contract(rows, config(positive=False)).positive == "no"
    with pytest.raises(ConfigError) as caught:
        infer_contract(rows, config(positive="maybe"))
    assert "['no', 'yes']" in caught.value.remedy


def test_kinds_and_tasks_that_do_not_fit_are_rejected() -> None:
    """A task or a kind that the values do not allow is rejected."""
    rows = pd.DataFrame({"y": ["1", "2", "x"] * 10, "x": ["a", "b", "c"] * 10})
    for pipeline in (config("regression"), config("binary"), config(columns={"x": "datetime"}, target="y")):
        with pytest.raises(ConfigError):
            infer_contract(rows, pipeline)
    with pytest.raises(ConfigError, match="has dates"):
        infer_contract(pd.DataFrame({"y": pd.to_datetime(["2026-01-01"] * 3)}), config())
    assert contract({"c": range(30)}, columns={"c": "category"}).columns[1].categories is not None
    assert column([1.0, 2.0] * 9, columns={"c": "ignore"}).note == "data.columns says ignore"


def test_null_and_unknown_labels_are_rejected() -> None:
    """Null and unknown targets are reported with their rows."""
    rows = pd.DataFrame({"y": ["a", "b"] * 10, "x": range(20)})
    inferred = infer_contract(rows, config())
    for odd in (None, "c"):
        with pytest.raises(DataError) as caught:
            inferred.labels(pd.DataFrame({"y": ["a", odd]}))
        assert "row 2" in str(caught.value)
    numeric = infer_contract(pd.DataFrame({"y": np.arange(30) / 7, "x": range(30)}), config())
    with pytest.raises(DataError, match="1 of 2"):
        numeric.labels(pd.DataFrame({"y": [1.0, None]}))


STAMP = pd.Timestamp(2026, 1, 2, 3, 4, 5).to_pydatetime()
NAMES = ["n", "f", "c", "i", "d", 'a.b[0] "ü"']


def typed_contract() -> Contract:
    rows = {
        "n": np.arange(60) / 7,
        "f": [True, False] * 30,
        "c": ["a", "b", "3"] * 20,
        "i": [1, 2, 3] * 20,
        "d": pd.date_range("2024-01-01", periods=60, freq="30D"),
        'a.b[0] "ü"': np.arange(60) / 9,
    }
    return contract(rows, columns={"i": "category"})


def test_equal_values_give_an_equal_frame() -> None:
    """Equal values give the same frame as strings, Python objects, NumPy, nullable and Arrow columns."""
    inferred = typed_contract()
    plain = [
        {"n": 1.5, "f": True, "c": "3", "i": 3, "d": STAMP, 'a.b[0] "ü"': 2},
        {"n": None, "f": None, "c": None, "i": None, "d": None, 'a.b[0] "ü"': 0.1},
    ]
    base = inferred.features(pd.DataFrame(plain))
    assert list(base.columns) == NAMES
    assert base["i"].tolist()[0] == "3"
    assert {name: str(dtype) for name, dtype in base.dtypes.items()} == {
        "n": "float64", "f": "float64", "c": "object", "i": "object", "d": "datetime64[us]", NAMES[-1]: "float64",
    }  # fmt: skip
    text = {"n": ["1.5", ""], "f": ["true", ""], "c": ["3", ""], "i": ["3", ""], "d": ["2026-01-02T03:04:05Z", ""]}
    zoned = pd.Timestamp(STAMP, tz="UTC").tz_convert("Asia/Tokyo")
    others = [
        pd.DataFrame({**text, NAMES[-1]: ["2", "0.1"], "more": [1, 2]}, index=[7, 7]),
        pd.DataFrame({**text, NAMES[-1]: ["2", "0.1"]}, dtype=object),
        pd.DataFrame(plain).convert_dtypes(),
        pd.DataFrame(plain).convert_dtypes(dtype_backend="pyarrow"),
        pd.DataFrame(plain, dtype=object),
        pd.DataFrame(plain).assign(d=[zoned, pd.NaT], n=[Decimal("1.5"), None], c=pd.Categorical(["3", None])),
        pd.DataFrame(plain).assign(i=[3.0, np.nan], c=[3, None], f=[1, np.nan]),
    ]
    for other in others:
        pd.testing.assert_frame_equal(inferred.features(other), base, check_exact=True)
    assert inferred.features(pd.DataFrame(plain[:0], columns=NAMES)).shape == (0, 6)


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("n", "1_0", "row 2: '1_0'"), ("n", "x", "'n' (numeric)"), ("n", [1], "row 2: [1]"), ("n", STAMP, "datetime"),
        ("f", 2, "'f' (boolean)"), ("f", "maybe", "row 2: 'maybe'"), ("c", {"k": 1}, "'c' (category)"),
        ("d", "now", "row 2: 'now'"), ("d", 20260101, "'d' (datetime)"), ("d", "31.01.2026", "row 2"),
        ("d", 1.5, "1.5"),
    ],
)  # fmt: skip
def test_values_of_another_kind_are_rejected(name: str, value: Any, shown: str) -> None:
    """A value of another kind is rejected with its column, row and text."""
    good = {"n": 1.5, "f": True, "c": "a", "i": 1, "d": STAMP, NAMES[-1]: 2}
    rows = pd.DataFrame([good, {**good, name: value}], dtype=object)
    with pytest.raises(DataError) as caught:
        typed_contract().features(rows)
    assert shown in str(caught.value)


def test_missing_and_duplicate_columns_are_rejected() -> None:
    """A missing column is reported with the most similar one; a column that occurs twice is rejected."""
    rows = pd.DataFrame([{"n": 1.5, "f": True, "C": "a", "i": 1, "d": STAMP, NAMES[-1]: 2}])
    with pytest.raises(DataError, match="missing: 'c'"):
        typed_contract().features(rows)
    rows = rows.rename(columns={"C": "c"})
    with pytest.raises(DataError, match="twice"):
        typed_contract().features(pd.concat([rows, rows[["n"]]], axis=1))


KINDS = (
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.integers(0, 3),
    st.floats(),
    st.text(max_size=3),
    st.datetimes(),
)
CELLS = st.one_of(*(st.lists(st.none() | kind, min_size=12, max_size=12) for kind in KINDS))


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.lists(CELLS, min_size=2, max_size=4), st.text(min_size=1, max_size=5))
def test_any_table_fits_its_own_contract(cells: list[list[Any]], name: str) -> None:
    """The rows of any table fit its own contract, or a TowlineError is raised."""
    arrow = {f"{name}{place}": pa.array(values) for place, values in enumerate(cells)}
    inferred = None
    with tempfile.TemporaryDirectory() as folder:
        pq.write_table(pa.table(arrow), Path(folder) / "t.parquet")
        with contextlib.suppress(ConfigError, DataError):
            pipeline = config(target=f"{name}0", source="t.parquet")
            rows = read_snapshot(load_dataset(pipeline.data, Path(folder), Path(folder), None), Path(folder))
            inferred = infer_contract(rows, pipeline)
    if inferred is None:
        return
    features = inferred.features(rows)
    pd.testing.assert_frame_equal(inferred.features(pd.DataFrame(rows.to_dict("records"))), features, check_exact=True)
    assert Contract.model_validate_json(inferred.model_dump_json()) == inferred
    if not rows[inferred.target].isna().any():
        assert len(inferred.labels(rows)) == len(rows)
