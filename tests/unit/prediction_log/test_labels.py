"""Ground-truth labels: added, joined, erased and purged."""

import datetime as dt
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tests.support.labels import AT, CLASSES, NOW, LabelledLog
from tests.support.prediction_log import read_all_bytes
from towline.errors import ConfigError, DataError
from towline.prediction_log import labels, parquet_store
from towline.prediction_log.labels import AddedLabels
from towline.prediction_log.privacy import HashKeys


@pytest.fixture
def labelled_log(tmp_path: Path) -> LabelledLog:
    return LabelledLog(tmp_path, CLASSES)


@pytest.fixture
def make_labelled_log(tmp_path: Path) -> Callable[[tuple[Any, ...]], LabelledLog]:
    return lambda classes: LabelledLog(tmp_path / "other", classes)


def test_labels_are_joined_by_request_id(labelled_log: LabelledLog) -> None:
    """The label of a prediction without a label is null."""
    labelled_log.predict("a", "b", "c")
    assert labelled_log.add("request_id,y\na,yes\nb,no\n") == AddedLabels(2, 2, 0, 0, 0)
    assert labelled_log.read() == {"a": "yes", "b": "no", "c": None}
    table = labels.read(labelled_log.log, columns=["request_id", "prediction"])
    assert table.column_names == ["request_id", "prediction", "label", "labelled_at"]
    assert set(table["labelled_at"].to_pylist()) == {NOW, None}


def test_adding_the_same_labels_again_changes_nothing(labelled_log: LabelledLog) -> None:
    """They may be in another order or format, or in a longer file."""
    labelled_log.predict("a", "b", "c")
    path = labelled_log.file("request_id,y\na,yes\nb,no\na,yes\n")
    assert labelled_log.add(path) == AddedLabels(3, 2, 0, 0, 0)
    before = labelled_log.content()
    assert labelled_log.add(path) == AddedLabels(3, 0, 2, 0, 0)
    pd.DataFrame({"y": ["no", "yes"], "request_id": ["b", "a"]}).to_parquet(labelled_log.folder / "again.parquet")
    assert labelled_log.add(labelled_log.folder / "again.parquet") == AddedLabels(2, 0, 2, 0, 0)
    assert labelled_log.content() == before
    assert labelled_log.add("request_id,y\na,yes\nb,no\nc,no\n") == AddedLabels(3, 1, 2, 0, 0)


def test_only_the_searched_labels_are_loaded(labelled_log: LabelledLog) -> None:
    """The memory to add a file does not depend on the number of other labels."""
    labelled_log.add("request_id,row,y\na,0,yes\na,1,no\nb,0,no\n")
    labelled_log.add("order,y\na,no\n", by="order")
    labelled_log.add("request_id,row,y\na,1,yes\nc,0,no\n", replace=True)
    store = labels.LabelStore(labelled_log.log.labels)
    with store.lock():
        assert store.known("request_id", ["a", "none"]) == {("a", 0): "yes", ("a", 1): "yes"}
        assert store.known("order", ["a", "b"]) == {("a", None): "no"}
        assert store.known("request_id", []) == {}


@pytest.mark.parametrize("by", ["customer", "order"])
def test_labels_are_joined_by_a_column(labelled_log: LabelledLog, by: str) -> None:
    """The column is kept or hashed; hashes of all months match."""
    labelled_log.predict("a", customer=7, order="007")
    labelled_log.predict("b", customer=7, order="007", at=AT - dt.timedelta(days=60))
    labelled_log.predict("c", customer=8, order="8")
    assert labelled_log.add(f"{by},y\n{7 if by == 'customer' else '007'},yes\n", by=by) == AddedLabels(1, 1, 0, 0, 0)
    assert labelled_log.read() == {"a": "yes", "b": "yes", "c": None}
    if by == "customer":
        keys = labels.LabelStore(labelled_log.log.labels).table().to_pylist()[0]["keys"]
        assert [key.split(":")[0] for key in keys] == ["2026-08", "2026-10", "2026-11"]


def test_labels_without_a_prediction_are_joined_later(labelled_log: LabelledLog) -> None:
    """Such labels are counted, and joined when the prediction is in the log."""
    assert labelled_log.add("request_id,y\na,yes\n") == AddedLabels(1, 1, 0, 0, 1)
    assert labelled_log.add("customer,y\n7,no\n", by="customer") == AddedLabels(1, 1, 0, 0, 1)
    assert labelled_log.add("request_id,y\na,yes\n") == AddedLabels(1, 0, 1, 0, 1)
    labelled_log.predict("a")
    labelled_log.predict("b", customer=7, at=NOW + dt.timedelta(hours=1))
    assert labelled_log.read() == {"a": "yes", "b": "no"}
    assert labelled_log.add("request_id,y\na,yes\n") == AddedLabels(1, 0, 1, 0, 0)


def test_a_label_by_request_id_takes_precedence(labelled_log: LabelledLog) -> None:
    labelled_log.predict("a", "b", customer=7)
    labelled_log.add("customer,y\n7,yes\n", by="customer")
    labelled_log.add("request_id,y\nb,no\n")
    assert labelled_log.read() == {"a": "yes", "b": "no"}


def test_a_contradicting_label_is_refused_unless_replaced(labelled_log: LabelledLog) -> None:
    """A refused file adds no label. Both values are recorded in the history."""
    labelled_log.predict("a", "b", "c")
    labelled_log.add("request_id,y\na,yes\nb,no\n")
    with pytest.raises(DataError, match=r"(?s)1 labels contradict.*row 2: 'no', known as 'yes'.*--replace"):
        labelled_log.add("request_id,y\nc,no\na,no\n")
    assert labelled_log.read() == {"a": "yes", "b": "no", "c": None}
    assert labelled_log.add("request_id,y\nc,no\na,no\n", replace=True) == AddedLabels(2, 1, 0, 1, 0)
    assert labelled_log.read() == {"a": "no", "b": "no", "c": "no"}
    assert labels.LabelStore(labelled_log.log.labels).table()["label"].to_pylist() == ["yes", "no", "no", "no"]
    history = [json.loads(line) for line in (labelled_log.log.labels / "history.jsonl").read_text().splitlines()]
    assert [{name: line[name] for name in ("added", "replaced", "refused") if name in line} for line in history] == [
        {"added": 2, "replaced": 0}, {"refused": 1}, {"added": 1, "replaced": 1},
    ]  # fmt: skip


@pytest.mark.parametrize("by", ["request_id", "customer"])
def test_the_labels_that_were_known_at_a_time(labelled_log: LabelledLog, by: str) -> None:
    """A value that was replaced later is used; a label that was added later is not."""
    labelled_log.predict("7", customer=7)
    labelled_log.predict("8", customer=8)
    later = NOW + dt.timedelta(days=1)
    labelled_log.add(f"{by},y\n7,yes\n", by=by)
    labelled_log.add(f"{by},y\n7,no\n8,no\n", by=by, now=later, replace=True)
    assert labelled_log.read(known=NOW - dt.timedelta(seconds=1)) == {"7": None, "8": None}
    assert labelled_log.read(known=NOW) == {"7": "yes", "8": None}
    assert labelled_log.read(known=later) == labelled_log.read() == {"7": "no", "8": "no"}


@pytest.mark.parametrize(
    ("classes", "text", "message"),
    [
        (CLASSES, "request_id,y\na,yes\nb,maybe\nc,\n", r"(?s)'y': 1 of 3 values are null.*row 3: null"),
        ((), "request_id,y\na,1.5\nb,many\n", r"(?s)1 of 2 values .* no number.*row 2: 'many'"),
        ((), "request_id,y\na,1.5\nb,inf\n", r"(?s)1 of 2 values .* no number.*row 2: 'inf'"),
        (CLASSES, "request_id,y\na,yes\n,no\n", r"(?s)column 'request_id'.*row 2"),
        (CLASSES, "request_id,row,y\na,0,yes\na,-1,no\nb,x,no\n", r"(?s)column 'row'.*row 2: '-1', row 3: 'x'"),
        (CLASSES, "request_id,row,y\na,3000000000,yes\n", r"(?s)column 'row'.*row 1: '3000000000'"),
        (CLASSES, "request_id,row,y\na,1e20,yes\n", r"(?s)column 'row'.*row 1: '1e20'"),
        (CLASSES, "request_id,y\na,yes\nb,no\na,no\n", r"(?s)contradict each other.*rows 1 and 3: 'yes' and 'no'"),
    ],
)
def test_a_file_with_an_invalid_label_is_refused(
    make_labelled_log: Callable[[tuple[Any, ...]], LabelledLog], classes: tuple[Any, ...], text: str, message: str
) -> None:
    """The error lists rows, and nothing is written."""
    labelled_log = make_labelled_log(classes)
    with pytest.raises(DataError, match=message):
        labelled_log.add(text)
    assert not list(labelled_log.log.labels.glob("part-*"))


def test_a_request_of_several_rows_needs_a_row_column(labelled_log: LabelledLog) -> None:
    labelled_log.predict("a", rows=3)
    with pytest.raises(DataError, match=r"(?s)more than one row.*row 1: request 'a'.*'row'"):
        labelled_log.add("request_id,y\na,yes\n")
    assert labelled_log.add("request_id,row,y\na,1,yes\na,7,no\n") == AddedLabels(2, 2, 0, 0, 1)
    assert labelled_log.read() == {"a": None, "a.1": "yes", "a.2": None}


@pytest.mark.parametrize(
    ("classes", "text", "expected"),
    [
        ((), "12.50", 12.5), ((), "-3", -3.0), ((0, 1), "1", 1), ((False, True), "true", True), (("0", "1"), "1", "1"),
    ],
)  # fmt: skip
def test_labels_have_the_type_of_the_predictions(
    make_labelled_log: Callable[[tuple[Any, ...]], LabelledLog], classes: tuple[Any, ...], text: str, expected: Any
) -> None:
    labelled_log = make_labelled_log(classes)
    labelled_log.predict("a")
    labelled_log.add(f"request_id,y\na,{text}\n")
    label = labelled_log.read()["a"]
    assert label == expected
    assert type(label) is type(expected)


def test_the_label_column_is_the_target_or_the_only_other_column(labelled_log: LabelledLog) -> None:
    """Otherwise it must be named; the error lists the columns."""
    labelled_log.predict("a")
    assert labelled_log.add("request_id,bought\na,yes\n").added == 1
    assert labelled_log.add("request_id,clerk,y\na,Eva,yes\n").known == 1
    for text, how, message in (
        ("request_id,x,z\na,yes,1\n", {}, "--column; columns: x, z"),
        ("request_id,x,z\na,yes,1\n", {"column": "y"}, "no column 'y'"),
        ("id,y\na,yes\n", {}, r"no column 'request_id'"),
        ("street,y\nGasse,yes\n", {"by": "street"}, r"(?s)not logged with 'street'.*customer, order"),
        ("age,y\n4,yes\n", {"by": "age"}, "not logged with 'age'"),
    ):
        with pytest.raises(ConfigError, match=message):
            labelled_log.add(text, **how)
    assert labelled_log.add("request_id;bought\na;yes\n", separator=";").known == 1
    assert labelled_log.add("request_id;bought\na;yes\n").known == 1


def test_labels_are_erased_with_their_predictions(labelled_log: LabelledLog) -> None:
    """All labels of the erased predictions are removed, whatever their key; other labels remain."""
    labelled_log.predict("aaaa1", customer=470011, order="B-470012")
    labelled_log.predict("bbbb2", customer=8, order="B-8")
    labelled_log.add("request_id,y\naaaa1,yes\nbbbb2,no\n")
    labelled_log.add("order,y\nB-470012,yes\nB-8,no\n", by="order")
    labelled_log.add("customer,y\n470011,yes\n8,no\n", by="customer")
    table = parquet_store.read_predictions(labelled_log.log.predictions)
    predictions = table.slice(table["request_id"].to_pylist().index("aaaa1"), 1)
    hashes = [
        name.split(":")[1] for name in HashKeys(labelled_log.log.predictions / "hash-keys").hashes("customer", "470011")
    ]
    content = read_all_bytes(labelled_log.log.labels)
    assert all(text.encode() in content for text in ("aaaa1", "B-470012", *hashes))
    assert labels.erase(labelled_log.log, "customer", "470011", predictions) == 3
    content = read_all_bytes(labelled_log.log.labels)
    assert not any(text.encode() in content for text in ("aaaa1", "B-470012", "470011", *hashes))
    assert labelled_log.read() == {"aaaa1": None, "bbbb2": "no"}
    assert labels.erase(labelled_log.log, "customer", "470011") == 0


def test_labels_without_a_prediction_are_erased_by_their_key(labelled_log: LabelledLog) -> None:
    labelled_log.add("customer,y\n4711,yes\n8,no\n", by="customer")
    labelled_log.add("request_id,y\nabc,yes\n")
    assert labels.erase(labelled_log.log, "customer", "4711") == 1
    assert labels.erase(labelled_log.log, "request_id", "abc") == 1
    assert len(labels.LabelStore(labelled_log.log.labels).table()) == 1


def test_labels_added_before_a_day_are_purged(labelled_log: LabelledLog) -> None:
    labelled_log.add("request_id,y\na,yes\n", now=NOW - dt.timedelta(days=100))
    labelled_log.add("request_id,y\nb,yes\n")
    assert labels.purge(labelled_log.log.labels, (NOW - dt.timedelta(days=90)).date()) == 1
    assert labels.LabelStore(labelled_log.log.labels).table()["keys"].to_pylist() == [["b"]]
    assert labels.purge(labelled_log.folder / "none", NOW.date()) == 0


@pytest.mark.parametrize("spellings", [("true", "false"), ("True", "FALSE"), ("1", "0"), ("yes", "no")])
def test_boolean_labels_may_have_any_spelling(
    make_labelled_log: Callable[[tuple[Any, ...]], LabelledLog], spellings: tuple[str, str]
) -> None:
    labelled_log = make_labelled_log((False, True))
    labelled_log.predict("a", "b")
    assert labelled_log.add(f"request_id,y\na,{spellings[0]}\nb,{spellings[1]}\n") == AddedLabels(2, 2, 0, 0, 0)
    assert labelled_log.read() == {"a": True, "b": False}


def test_the_error_for_an_invalid_boolean_names_the_classes(
    make_labelled_log: Callable[[tuple[Any, ...]], LabelledLog],
) -> None:
    """It also names the row and the file."""
    labelled_log = make_labelled_log((False, True))
    labelled_log.predict("a")
    with pytest.raises(DataError, match="1 of 1 values") as caught:
        labelled_log.add("request_id,y\na,maybe\n")
    assert "the classes are False, True" in caught.value.remedy
    assert "row 1: 'maybe'" in str(caught.value)
    assert caught.value.where.endswith(".csv")


@pytest.mark.parametrize("classes", [("no", "yes"), ("a", "b", "c"), (1, 2, 3)])
def test_labels_of_an_unknown_class_are_added(
    make_labelled_log: Callable[[tuple[Any, ...]], LabelledLog], classes: tuple[Any, ...]
) -> None:
    """Labels are then text; the known classes are unchanged."""
    labelled_log = make_labelled_log(classes)
    labelled_log.predict("a", "b")
    assert labelled_log.add(f"request_id,y\na,{classes[1]}\nb,new\n") == AddedLabels(2, 2, 0, 0, 0)
    assert labelled_log.read() == {"a": classes[1] if isinstance(classes[1], str) else str(classes[1]), "b": "new"}
