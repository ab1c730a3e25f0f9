"""Late labels: joined to what was predicted, once, whatever they come by."""

import datetime as dt
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tests.conftest import REPOSITORY
from tests.unit.prediction_log.conftest import ROW, Release, make_release, visible
from towline.errors import ConfigError, DataError
from towline.inference.scorer import RowPredictions
from towline.prediction_log import labels, parquet_store
from towline.prediction_log.labels import AddedLabels, LabelFile, Log
from towline.prediction_log.privacy import HashKeys, read_privacy_filter
from towline.prediction_log.writer import PredictionLog

AT = dt.datetime(2026, 10, 5, tzinfo=dt.UTC)
NOW = dt.datetime(2026, 11, 20, tzinfo=dt.UTC)
PRIVACY = {"join_on": ["customer", "order"], "columns": {"order": "keep", "age": "bucket"}, "pii": ["street"]}
CLASSES = ("no", "yes")


class Desk:
    """A model's log, and files of labels for it."""

    def __init__(self, folder: Path, classes: tuple[Any, ...]) -> None:
        self.folder, self.count = folder, 0
        self.release: Release = make_release(folder / "release", PRIVACY, classes)
        self.log = Log(folder / "predictions", folder / "labels", ())
        keys = HashKeys(folder / "predictions" / "hash-keys")
        self.log = self.log._replace(
            fields=read_privacy_filter(self.release.directory, self.release.contract, keys).fields
        )

    def predict(self, *ids: str, rows: int = 1, at: dt.datetime = AT, **row: Any) -> None:
        log = PredictionLog(self.log.predictions, "w0", convert=False)
        answer = self.release.contract.classes[0] if self.release.contract.classes else 1.0
        for number, request in enumerate(ids):
            log.write(
                request, at.timestamp() + number, self.release, [{**ROW, "order": f"A-{request}", **row}] * rows,
                RowPredictions([answer] * rows, None),
            )  # fmt: skip
        log.close()
        assert log.written == len(ids) * rows

    def file(self, text: str) -> Path:
        self.count += 1
        path = self.folder / f"{self.count}.csv"
        path.write_text(text)
        return path

    def add(self, text: str | Path, **how: Any) -> AddedLabels:
        path = text if isinstance(text, Path) else self.file(text)
        replace, now = how.pop("replace", False), how.pop("now", NOW)
        return labels.add_labels(self.log, self.release.contract, LabelFile(path, **how), now, replace=replace)

    def read(self, **how: Any) -> dict[str, Any]:
        table = labels.read(self.log, **how)
        assert len(table) == len(parquet_store.read_predictions(self.log.predictions))
        names = (
            f"{i}.{r}" if r else i for i, r in zip(*(table[n].to_pylist() for n in ("request_id", "row")), strict=True)
        )
        return dict(zip(names, table["label"].to_pylist(), strict=True))

    def content(self) -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in self.log.labels.rglob("*") if path.is_file()}


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path, CLASSES)


@pytest.fixture
def desks(tmp_path: Path) -> Callable[[tuple[Any, ...]], Desk]:
    return lambda classes: Desk(tmp_path / "other", classes)


def test_by_request(desk: Desk) -> None:
    """Each label meets its prediction; a prediction without one has null."""
    desk.predict("a", "b", "c")
    assert desk.add("request_id,y\na,yes\nb,no\n") == AddedLabels(2, 2, 0, 0, 0)
    assert desk.read() == {"a": "yes", "b": "no", "c": None}
    table = labels.read(desk.log, columns=["request_id", "prediction"])
    assert table.column_names == ["request_id", "prediction", "label", "labelled_at"]
    assert set(table["labelled_at"].to_pylist()) == {NOW, None}


def test_the_same_file_changes_nothing(desk: Desk) -> None:
    """Byte for byte, however often it comes, in another order or format, or as part of a longer file."""
    desk.predict("a", "b", "c")
    path = desk.file("request_id,y\na,yes\nb,no\na,yes\n")
    assert desk.add(path) == AddedLabels(3, 2, 0, 0, 0)
    before = desk.content()
    assert desk.add(path) == AddedLabels(3, 0, 2, 0, 0)
    pd.DataFrame({"y": ["no", "yes"], "request_id": ["b", "a"]}).to_parquet(desk.folder / "again.parquet")
    assert desk.add(desk.folder / "again.parquet") == AddedLabels(2, 0, 2, 0, 0)
    assert desk.content() == before
    assert desk.add("request_id,y\na,yes\nb,no\nc,no\n") == AddedLabels(3, 1, 2, 0, 0)


@pytest.mark.parametrize("by", ["customer", "order"])
def test_by_a_business_key(desk: Desk, by: str) -> None:
    """Hashed or kept, the label meets every prediction of its key, in whatever month that was hashed."""
    desk.predict("a", customer=7, order="007")
    desk.predict("b", customer=7, order="007", at=AT - dt.timedelta(days=60))
    desk.predict("c", customer=8, order="8")
    assert desk.add(f"{by},y\n{7 if by == 'customer' else '007'},yes\n", by=by) == AddedLabels(1, 1, 0, 0, 0)
    assert desk.read() == {"a": "yes", "b": "yes", "c": None}
    if by == "customer":
        kept = labels.LabelStore(desk.log.labels).table().to_pylist()[0]["keys"]
        assert [key.split(":")[0] for key in kept] == ["2026-08", "2026-10", "2026-11"]


def test_labels_wait_for_their_prediction(desk: Desk) -> None:
    """They are counted, and joined as soon as it is in the log; no second command is needed."""
    assert desk.add("request_id,y\na,yes\n") == AddedLabels(1, 1, 0, 0, 1)
    assert desk.add("customer,y\n7,no\n", by="customer") == AddedLabels(1, 1, 0, 0, 1)
    assert desk.add("request_id,y\na,yes\n") == AddedLabels(1, 0, 1, 0, 1)
    desk.predict("a")
    desk.predict("b", customer=7, at=NOW + dt.timedelta(hours=1))
    assert desk.read() == {"a": "yes", "b": "no"}
    assert desk.add("request_id,y\na,yes\n") == AddedLabels(1, 0, 1, 0, 0)


def test_a_request_goes_before_another_key(desk: Desk) -> None:
    """Where a prediction has both, its own counts."""
    desk.predict("a", "b", customer=7)
    desk.add("customer,y\n7,yes\n", by="customer")
    desk.add("request_id,y\nb,no\n")
    assert desk.read() == {"a": "yes", "b": "no"}


def test_another_value_is_refused_or_replaces(desk: Desk) -> None:
    """Refused with its row, nothing of the file being taken; with replace the new one counts. Both are noted."""
    desk.predict("a", "b", "c")
    desk.add("request_id,y\na,yes\nb,no\n")
    with pytest.raises(DataError, match=r"(?s)1 labels contradict.*row 2: 'no', known as 'yes'.*--replace"):
        desk.add("request_id,y\nc,no\na,no\n")
    assert desk.read() == {"a": "yes", "b": "no", "c": None}
    assert desk.add("request_id,y\nc,no\na,no\n", replace=True) == AddedLabels(2, 1, 0, 1, 0)
    assert desk.read() == {"a": "no", "b": "no", "c": "no"}
    assert labels.LabelStore(desk.log.labels).table()["label"].to_pylist() == ["yes", "no", "no", "no"]
    history = [json.loads(line) for line in (desk.log.labels / "history.jsonl").read_text().splitlines()]
    assert [{name: line[name] for name in ("added", "replaced", "refused") if name in line} for line in history] == [
        {"added": 2, "replaced": 0}, {"refused": 1}, {"added": 1, "replaced": 1},
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("classes", "text", "said"),
    [
        (CLASSES, "request_id,y\na,yes\nb,maybe\nc,\n", r"(?s)'y': 1 of 3 values are null.*row 3: null"),
        ((), "request_id,y\na,1.5\nb,many\n", r"(?s)1 of 2 values .* no number.*row 2: 'many'"),
        ((), "request_id,y\na,1.5\nb,inf\n", r"(?s)column 'y'.*row 2: 'inf'"),
        (CLASSES, "request_id,y\na,yes\n,no\n", r"(?s)column 'request_id'.*row 2"),
        (CLASSES, "request_id,row,y\na,0,yes\na,-1,no\nb,x,no\n", r"(?s)column 'row'.*row 2: '-1', row 3: 'x'"),
        (CLASSES, "request_id,y\na,yes\nb,no\na,no\n", r"(?s)contradict each other.*rows 1 and 3: 'yes' and 'no'"),
    ],
)
def test_what_is_no_label(
    desks: Callable[[tuple[Any, ...]], Desk], classes: tuple[Any, ...], text: str, said: str
) -> None:
    """Refused whole, with the rows, and nothing is written."""
    desk = desks(classes)
    with pytest.raises(DataError, match=said):
        desk.add(text)
    assert not list(desk.log.labels.glob("part-*"))


def test_rows_of_a_request(desk: Desk) -> None:
    """A request of several rows needs a column that says which; without it the label would go to the wrong one."""
    desk.predict("a", rows=3)
    with pytest.raises(DataError, match=r"(?s)more than one row.*row 1: request 'a'.*'row'"):
        desk.add("request_id,y\na,yes\n")
    assert desk.add("request_id,row,y\na,1,yes\na,7,no\n") == AddedLabels(2, 2, 0, 0, 1)
    assert desk.read() == {"a": None, "a.1": "yes", "a.2": None}


@pytest.mark.parametrize(
    ("classes", "text", "found"),
    [
        ((), "12.50", 12.5), ((), "-3", -3.0), ((0, 1), "1", 1), ((False, True), "true", True), (("0", "1"), "1", "1"),
    ],
)  # fmt: skip
def test_labels_have_the_predictions_type(
    desks: Callable[[tuple[Any, ...]], Desk], classes: tuple[Any, ...], text: str, found: Any
) -> None:
    """A number, an int, a flag or a text, as the model itself answers."""
    desk = desks(classes)
    desk.predict("a")
    desk.add(f"request_id,y\na,{text}\n")
    label = desk.read()["a"]
    assert label == found
    assert type(label) is type(found)


def test_columns_of_the_file(desk: Desk) -> None:
    """The target's name, else the only one left; else it must be said. Wrong names are told with those there are."""
    desk.predict("a")
    assert desk.add("request_id,bought\na,yes\n").added == 1
    assert desk.add("request_id,clerk,y\na,Eva,yes\n").known == 1
    for text, how, said in (
        ("request_id,x,z\na,yes,1\n", {}, "--column; columns: x, z"),
        ("request_id,x,z\na,yes,1\n", {"column": "y"}, "no column 'y'"),
        ("id,y\na,yes\n", {}, r"no column 'request_id'"),
        ("street,y\nGasse,yes\n", {"by": "street"}, r"(?s)not logged with 'street'.*customer, order"),
        ("age,y\n4,yes\n", {"by": "age"}, "not logged with 'age'"),
    ):
        with pytest.raises(ConfigError, match=said):
            desk.add(text, **how)
    assert desk.add("request_id;bought\na;yes\n", separator=";").known == 1


def test_labels_are_erased_with_their_predictions(desk: Desk) -> None:
    """By the key itself, and by whatever key the erased predictions have a label; others stay. No byte is left."""
    desk.predict("aaaa1", customer=470011, order="B-470012")
    desk.predict("bbbb2", customer=8, order="B-8")
    desk.add("request_id,y\naaaa1,yes\nbbbb2,no\n")
    desk.add("order,y\nB-470012,yes\nB-8,no\n", by="order")
    desk.add("customer,y\n470011,yes\n8,no\n", by="customer")
    table = parquet_store.read_predictions(desk.log.predictions)
    found = table.slice(table["request_id"].to_pylist().index("aaaa1"), 1)
    hashes = [name.split(":")[1] for name in HashKeys(desk.log.predictions / "hash-keys").hashes("customer", "470011")]
    content = visible(desk.log.labels)
    assert all(text.encode() in content for text in ("aaaa1", "B-470012", *hashes))
    assert labels.erase(desk.log, "customer", "470011", found) == 3
    content = visible(desk.log.labels)
    assert not any(text.encode() in content for text in ("aaaa1", "B-470012", "470011", *hashes))
    assert desk.read() == {"aaaa1": None, "bbbb2": "no"}
    assert labels.erase(desk.log, "customer", "470011") == 0


def test_waiting_labels_are_erased_by_their_key(desk: Desk) -> None:
    """A label needs no prediction to be found."""
    desk.add("customer,y\n4711,yes\n8,no\n", by="customer")
    desk.add("request_id,y\nabc,yes\n")
    assert labels.erase(desk.log, "customer", "4711") == 1
    assert labels.erase(desk.log, "request_id", "abc") == 1
    assert len(labels.LabelStore(desk.log.labels).table()) == 1


def test_old_labels_are_purged(desk: Desk) -> None:
    """Those that were added before the day."""
    desk.add("request_id,y\na,yes\n", now=NOW - dt.timedelta(days=100))
    desk.add("request_id,y\nb,yes\n")
    assert labels.purge(desk.log.labels, (NOW - dt.timedelta(days=90)).date()) == 1
    assert labels.LabelStore(desk.log.labels).table()["keys"].to_pylist() == [["b"]]
    assert labels.purge(desk.folder / "none", NOW.date()) == 0


ADDER = """
import datetime as dt, pathlib, sys
from tests.unit.prediction_log.test_labels import CLASSES, Desk
desk = Desk(pathlib.Path(sys.argv[1]), CLASSES)
print("ready", flush=True)
print(desk.add(pathlib.Path(sys.argv[2]), now=dt.datetime(2026, 11, 20, tzinfo=dt.UTC)))
"""


def test_kills_while_labels_are_added(desk: Desk) -> None:
    """SIGKILL at any moment: the file is in whole or not at all, and the same command ends with it in once."""
    desk.predict("r1", "r2")
    path = desk.file("request_id,y\n" + "".join(f"r{number},yes\n" for number in range(40_000)))
    command = [sys.executable, "-c", ADDER, str(desk.folder), str(path)]
    for pause in (0.0, 0.1, 0.2, 0.3, 0.5):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=REPOSITORY)
        assert process.stdout
        process.stdout.readline()
        time.sleep(pause)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert len(labels.LabelStore(desk.log.labels).table()) in (0, 40_000)
    desk.add(path)
    assert len(labels.LabelStore(desk.log.labels).table()) == 40_000
    assert desk.read() == {"r1": "yes", "r2": "yes"}
    assert not list(desk.log.labels.glob(".part-*"))


@pytest.mark.parametrize("spellings", [("true", "false"), ("True", "FALSE"), ("1", "0"), ("yes", "no")])
def test_flags_may_be_spelled_in_any_way(desks: Callable[[tuple[Any, ...]], Desk], spellings: tuple[str, str]) -> None:
    """Labels of a boolean target."""
    desk = desks((False, True))
    desk.predict("a", "b")
    assert desk.add(f"request_id,y\na,{spellings[0]}\nb,{spellings[1]}\n") == AddedLabels(2, 2, 0, 0, 0)
    assert desk.read() == {"a": True, "b": False}


def test_a_flag_that_is_none_names_the_classes(desks: Callable[[tuple[Any, ...]], Desk]) -> None:
    """As Python writes them, with the row and the file."""
    desk = desks((False, True))
    desk.predict("a")
    with pytest.raises(DataError, match="1 of 1 values") as refused:
        desk.add("request_id,y\na,maybe\n")
    assert "the classes are False, True" in refused.value.remedy
    assert "row 1: 'maybe'" in str(refused.value)
    assert refused.value.where.endswith(".csv")


@pytest.mark.parametrize("classes", [("no", "yes"), ("a", "b", "c"), (1, 2, 3)])
def test_labels_of_an_unseen_class_are_added(
    desks: Callable[[tuple[Any, ...]], Desk], classes: tuple[Any, ...]
) -> None:
    """They are known, and text where they are of no class of the model; the others keep their meaning."""
    desk = desks(classes)
    desk.predict("a", "b")
    assert desk.add(f"request_id,y\na,{classes[1]}\nb,new\n") == AddedLabels(2, 2, 0, 0, 0)
    assert desk.read() == {"a": classes[1] if isinstance(classes[1], str) else str(classes[1]), "b": "new"}
