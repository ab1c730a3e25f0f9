"""A field of a request has the same meaning as the same cell of a table."""

import datetime as dt
import decimal
import math
import pickle

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.checks import at_least_one
from towline.config import Kind, build_config
from towline.data.schema.contract import Contract
from towline.data.schema.inference import infer_contract
from towline.data.schema.rows import RowReader
from towline.data.schema.values import (
    LARGEST,
    ValueFormat,
    ValueReader,
    category_name,
    is_blank,
    parse_number,
    parse_time,
)
from towline.errors import DataError, InputValidationError


@pytest.fixture(scope="module")
def contract() -> Contract:
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        {
            "size": np.append(rng.normal(size=399), np.nan),
            "kind": rng.choice(["a", "b", "3"], 400),
            "flag": rng.random(400) < 0.5,
            "at": pd.date_range("2024-01-01", periods=400, freq="2D"),
            "y": rng.normal(size=400),
        }
    )
    columns = {"at": "datetime", "flag": "boolean"}
    return infer_contract(
        table, build_config({"name": "t", "data": {"source": "x", "target": "y", "columns": columns}}, "t")
    )


CELLS = [
    None, math.nan, pd.NA, pd.NaT, "", "  ", 0, 1, -3, 2.5, True, False, np.float32(1.5), np.int64(3), np.bool_(True),
    decimal.Decimal("2.5"), "1.5", " 7 ", "1_000", "true", "False", "a", "3", "no such", "inf", math.inf, 10**400,
    "2024-03-01", "2024-03-01T10:30", "2024-03-01 10:30:05.123456789Z", "2024-03-01T10:30+02:00", "2024-13-01", "202",
    "0000-01-01", "2024-03-01T25:00", "2024/03/01", "20240301T1030", "now", dt.date(2024, 3, 1),
    dt.datetime(2024, 3, 1, 10, tzinfo=dt.UTC), pd.Timestamp("2024-03-01T10:00", tz="Asia/Tokyo"),
    np.datetime64("2024-03-01"), np.datetime64("NaT"), [1], {"a": 1}, "0001-01-01T00:00+10:00",
]  # fmt: skip


@pytest.mark.parametrize("column", ["size", "kind", "flag", "at"])
@pytest.mark.parametrize("cell", CELLS, ids=repr)
def test_fields_and_cells_are_read_equally(contract: Contract, column: str, cell: object) -> None:
    """A request and a table give the same canonical value, or both reject it."""
    row = {"size": 1.0, "kind": "a", "flag": True, "at": "2024-01-01", "more": 1, column: cell}
    frame = pd.DataFrame({name: pd.Series([value], dtype=object) for name, value in row.items()})
    reader = RowReader(contract)
    try:
        expected = contract.features(frame)
        if (expected[["size"]].abs() > LARGEST).any(axis=None):  # Model.features refuses it
            raise DataError("too large")
    except DataError:
        with pytest.raises(InputValidationError) as caught:
            reader.read([row])
        assert [fault.field for fault in caught.value.faults] == [column]
        return
    columns = reader.columns(reader.read([row]))
    for name, values in at_least_one(zip(reader.fields, columns, strict=True)):
        theirs = expected[name].to_numpy()
        assert values.dtype == theirs.dtype
        nothing = pd.isna(values)
        assert (nothing == pd.isna(theirs)).all()
        assert (values[~nothing] == theirs[~nothing]).all()


@settings(max_examples=150, deadline=None)
@given(st.datetimes(), st.sampled_from(["T", " "]))
def test_times_read_back(moment: dt.datetime, separator: str) -> None:
    """A time in ISO 8601, as Python writes it, is read exactly, and as pandas reads it."""
    text = moment.isoformat(separator)
    assert parse_time(text) == moment
    assert pd.Timestamp(text) == pd.Timestamp(moment) if 1700 < moment.year < 2200 else True
    if 1 < moment.year < 9999:
        assert parse_time(text + "-03:30") == moment + dt.timedelta(hours=3, minutes=30)


@settings(max_examples=150, deadline=None)
@given(st.one_of(st.text(), st.floats(), st.integers(), st.booleans(), st.none(), st.binary(), st.decimals()))
def test_any_value_can_be_read(value: object) -> None:
    """No value of a field raises an error."""
    assert isinstance(parse_number(value), float)
    assert category_name(value) is None or isinstance(category_name(value), str)
    assert parse_time(value) is None or isinstance(parse_time(value), dt.datetime)
    assert is_blank(value) in (True, False)


def test_every_fault_is_counted_and_twenty_are_listed(contract: Contract) -> None:
    """Faults are listed with row and field; the error can be pickled."""
    rows = [{"size": "wide", "kind": "a", "flag": "perhaps"}] * 15
    with pytest.raises(InputValidationError) as caught:
        RowReader(contract).read(rows)
    assert caught.value.count == 45
    assert len(caught.value.faults) == 20
    assert {fault.message for fault in caught.value.faults} == {
        "is not a number", "is neither true nor false", "is missing",
    }  # fmt: skip
    assert (caught.value.faults[4].row, caught.value.faults[4].field) == (1, "flag")
    assert pickle.loads(pickle.dumps(caught.value)).count == 45


def test_input_anomalies(contract: Contract) -> None:
    """Null, a value out of the training range and an unseen level are anomalies; a usual row has none."""
    usual = {"size": 0.1, "kind": "a", "flag": True, "at": "2024-05-01"}
    unusual = {"size": 99, "kind": "new", "flag": None, "at": None}
    odd: list[tuple[str, str]] = []
    RowReader(contract).read([usual], odd)
    assert odd == []
    RowReader(contract).read([usual, unusual], odd)
    assert odd == [("size", "out_of_range"), ("kind", "unseen"), ("flag", "null"), ("at", "null")]


@pytest.mark.parametrize(
    ("kind", "fmt", "text"),
    [
        ("numeric", ValueFormat(), "1" + " " * 100_000 + "x"),
        ("numeric", ValueFormat(measure="duration"), "1" * 100_000 + "!"),
        ("datetime", ValueFormat(date_format="%d %b %Y"), "z" * 100_000 + "0"),
    ],
)
def test_a_long_text_is_read_in_linear_time(kind: Kind, fmt: ValueFormat, text: str) -> None:
    """Otherwise a request of 5 MB would occupy a worker for hours; the time limit of tests ends this test."""
    reader = ValueReader(kind, fmt)
    assert all(reader.misfits(text) for _ in range(20))
