"""The Parquet store: conversion, merging, purging and erasing."""

import datetime as dt
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.prediction_log import (
    FIRST_TIME,
    HOUR,
    PRIVACY,
    ROW,
    FakeRelease,
    fill_log,
    logged_ids,
    make_predictions,
    read_all_bytes,
)
from tests.support.waiting import wait_until
from towline import files
from towline.errors import ConfigError, DataError, TransientError
from towline.inference.scorer import RowPredictions
from towline.prediction_log import maintenance, parquet_store, segments
from towline.prediction_log.writer import PredictionLog


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maintenance, "_GRACE_S", 0.5)


def moment(day: int, hour: int) -> dt.datetime:
    """A time in October 2026, in UTC without a time zone."""
    return dt.datetime.fromisoformat(f"2026-10-{day:02}T{hour:02}:00:00")


def convert(folder: Path) -> int:
    with parquet_store.lock_store(folder):
        return parquet_store.convert_segments(folder)


def test_columns_have_the_types_of_the_contract(folder: Path, releases: Callable[..., FakeRelease]) -> None:
    """A segment and a part have the same values."""
    release = releases(PRIVACY | {"columns": {"order": "keep"}}, classes=(0, 1))
    log = PredictionLog(folder, "w0", convert=False)
    odd = {"size": "12.50", "age": None, "zip": 803317715.0, "member": "false", "at": "2026-10-05T10:00:00+02:00"}
    log.write(
        "a", FIRST_TIME.timestamp(), release, [ROW, ROW | odd], RowPredictions([1, 0], [[0.25, 0.75], [0.5, 0.5]])
    )
    log.close()
    before = parquet_store.read_predictions(folder)
    assert convert(folder) == 1
    table = parquet_store.read_predictions(folder)
    assert table.equals(before)
    assert table.schema.types == [
        pa.string(), pa.int32(), pa.timestamp("us", "UTC"), pa.int32(), pa.string(), pa.string(),
        pa.float64(), pa.float64(), pa.string(), pa.string(), pa.bool_(), pa.timestamp("us"), pa.timestamp("us"),
        pa.string(), pa.string(), pa.int64(), pa.list_(pa.float64()),
    ]  # fmt: skip
    first, second = table.to_pylist()
    assert first == {
        "request_id": "a", "row": 0, "time": FIRST_TIME, "version": 1, "model": "demo", "trace_id": None,
        "input.size": 12.5, "input.age": 41.0, "input.zip": "803317715", "input.town": "Ulm", "input.member": True,
        "input.at": moment(5, 8), "input.born": dt.datetime.fromisoformat(str(ROW["born"])),
        "input.customer": first["input.customer"], "input.order": "A-100-Z7",
        "prediction": 1, "probabilities": [0.25, 0.75],
    }  # fmt: skip
    assert second["row"] == 1
    assert second["prediction"] == 0
    assert [second[f"input.{name}"] for name in odd] == [12.5, None, "803317715", False, moment(5, 8)]


def test_parts_are_by_day_and_a_span_excludes_its_end(folder: Path, release: FakeRelease) -> None:
    """Days are in UTC, for parts and open segments."""
    fill_log(folder, release, range(30))
    for _ in range(2):
        table = parquet_store.read_predictions(
            folder, FIRST_TIME + dt.timedelta(hours=1), moment(1, 10), ["request_id"]
        )
        assert sorted(table.column("request_id").to_pylist()) == sorted(f"r{n}" for n in range(1, 11))
        convert(folder)
    assert sorted(path.name for path in folder.glob("day=*")) == ["day=2026-09-30", "day=2026-10-01", "day=2026-10-02"]
    assert parquet_store.read_predictions(folder, columns=["input.town", "prediction"]).column_names == [
        "input.town",
        "prediction",
    ]


def test_a_trace_id_is_stored_and_older_parts_have_none(folder: Path, release: FakeRelease) -> None:
    """The trace id is in segment and part; a part that was written before the column existed is also read."""
    log = PredictionLog(folder, "w0", convert=False)
    log.write(
        "a", FIRST_TIME.timestamp(), release, [ROW], make_predictions(), trace_id="4bf92f3577b34da6a3ce929d0e0e4736"
    )
    log.write("b", FIRST_TIME.timestamp(), release, [ROW], make_predictions())
    log.close()
    for _ in range(2):
        table = parquet_store.read_predictions(folder).sort_by("request_id")
        assert table["trace_id"].to_pylist() == ["4bf92f3577b34da6a3ce929d0e0e4736", None]
        convert(folder)
    (part,) = parquet_store.list_parts(folder)
    pq.write_table(pq.read_table(part.path, partitioning=None).drop_columns("trace_id"), part.path)
    assert parquet_store.read_predictions(folder)["trace_id"].to_pylist() == [None, None]


def test_a_missing_log_is_an_empty_table(folder: Path) -> None:
    """Reading creates no file."""
    assert parquet_store.read_predictions(folder).num_rows == 0
    assert "prediction" in parquet_store.read_predictions(folder).column_names
    assert not folder.exists()


def test_open_and_truncated_segments_are_read(folder: Path, release: FakeRelease) -> None:
    """An open segment is not changed, and an incomplete line is ignored."""
    fill_log(folder, release, range(5))
    (path,) = segments.list_segments(folder)
    with path.open("ab") as file:
        file.write(path.read_bytes().splitlines()[1][:40])
    log = PredictionLog(folder, "w1", convert=False)
    log.write("living", FIRST_TIME.timestamp(), release, [ROW], make_predictions())
    wait_until(lambda: log.written == 1)
    expected = sorted(["living", *(f"r{number}" for number in range(5))])
    assert logged_ids(folder) == expected
    assert convert(folder) == 1
    assert logged_ids(folder) == expected
    assert len(segments.list_segments(folder)) == 1
    log.close()


def test_versions_with_other_columns_and_types_are_one_table(
    folder: Path, releases: Callable[..., FakeRelease]
) -> None:
    """A column that a version does not log is null; a column with two types is text."""
    fill_log(folder, releases(version=1), range(2))
    fill_log(folder, releases({"columns": {"size": "hash"}, "pii": ["town"]}, version=2), range(2, 4))
    for _ in range(2):
        table = parquet_store.read_predictions(folder).sort_by("request_id")
        assert table.column("version").to_pylist() == [1, 1, 2, 2]
        assert table.column("input.town").to_pylist() == ["Ulm", "Ulm", None, None]
        sizes = table.column("input.size").to_pylist()
        assert sizes[:2] == ["0", "1"]
        assert all(size.startswith(("2026-10:", "2026-09:")) for size in sizes[2:])
        convert(folder)


class Stop(BaseException):
    """Simulates a kill: nothing after it runs."""


def test_a_conversion_can_be_killed_at_any_step(
    folder: Path, release: FakeRelease, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each prediction is read once, before and after the repeated conversion."""
    expected = sorted(f"r{number}" for number in range(60))
    left = 0

    def counted(function: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **kwargs: object) -> object:
            nonlocal left
            left -= 1
            if left < 0:
                raise Stop
            return function(*args, **kwargs)

        return call

    for steps in range(100):
        home, left = folder / str(steps), steps
        fill_log(home, release, range(60))
        with monkeypatch.context() as patch:
            # every step that changes the folder: a draft, its rename, the sync of the folder, the end of the segment
            patch.setattr(files.tempfile, "mkstemp", counted(files.tempfile.mkstemp))
            patch.setattr(Path, "replace", counted(Path.replace))
            patch.setattr(files, "sync", counted(files.sync))
            patch.setattr(Path, "unlink", counted(Path.unlink))
            try:
                convert(home)
            except Stop:
                assert len(segments.list_segments(home)) == 1
            else:
                break
        assert logged_ids(home) == expected
        convert(home)
        assert logged_ids(home) == expected
        assert segments.list_segments(home) == []
        assert not list(home.glob("day=*/.*"))
    assert steps == 4 + 4 + 5 + 1  # four days


def test_a_full_disk_keeps_the_segment(folder: Path, release: FakeRelease, monkeypatch: pytest.MonkeyPatch) -> None:
    """The conversion fails with a remedy and leaves no temporary file."""
    fill_log(folder, release, range(30))

    def full(_: int) -> None:
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", full)
        with pytest.raises(TransientError, match="No space left"):
            convert(folder)
    assert parquet_store.list_parts(folder) == []
    assert len(logged_ids(folder)) == 30
    assert convert(folder) == 1


def test_small_parts_are_merged(folder: Path, releases: Callable[..., FakeRelease]) -> None:
    """The result is one part for each day and version; the current day may be left out."""
    first, second = releases(version=1), releases(version=2)
    for start in range(0, 60, 20):
        fill_log(folder, first, range(start, start + 20), HOUR / 2)
        fill_log(folder, second, range(start + 60, start + 80), HOUR / 100)
    convert(folder)
    before = parquet_store.read_predictions(folder).sort_by("request_id")
    with parquet_store.lock_store(folder):
        maintenance.merge_parts(folder, before=dt.date(2026, 10, 1))
    assert Counter((part.day.day, part.version) for part in parquet_store.list_parts(folder)) == {
        (30, 1): 1, (30, 2): 1, (1, 1): 3, (1, 2): 1, (2, 1): 1,
    }  # fmt: skip
    assert maintenance.compact(folder) == (0, 7, 5)
    assert parquet_store.read_predictions(folder).sort_by("request_id").equals(before)
    assert maintenance.compact(folder) == (0, 5, 5)


def test_a_merge_can_be_killed(folder: Path, release: FakeRelease, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parts that were merged are not read in addition to the merged part."""
    for start in (0, 10, 20):
        fill_log(folder, release, range(start, start + 10), 60.0)
    convert(folder)
    unlink = Path.unlink

    def stop(path: Path, missing_ok: bool = False) -> None:
        if path.name.startswith("part-w0"):
            raise Stop
        unlink(path, missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", stop)
        with pytest.raises(Stop):
            maintenance.compact(folder)
    assert len(parquet_store.list_parts(folder)) == 4
    assert len(logged_ids(folder)) == len(set(logged_ids(folder))) == 30
    assert len(parquet_store.list_parts(folder)) == 1


def test_days_before_a_day_are_purged(folder: Path, release: FakeRelease) -> None:
    """Parts, segments and the hash keys of past months are removed."""
    fill_log(folder, release, range(30))
    convert(folder)
    fill_log(folder, release, range(30, 40))
    (folder / "hash-keys" / "2026-08").write_bytes(b"k" * 32)
    gone = maintenance.purge(folder, dt.date(2026, 10, 1))
    assert (gone.rows, gone.files, gone.keys) == (1, 1, ("2026-08", "2026-09"))
    assert logged_ids(folder) == sorted(f"r{number}" for number in range(1, 40))
    assert maintenance.purge(folder, dt.date(2026, 11, 1)).rows == 39
    assert logged_ids(folder) == []
    assert list(folder.glob("day=*")) == []


def test_an_erased_value_is_in_no_file(folder: Path, releases: Callable[..., FakeRelease]) -> None:
    """Rows in parts and segments are removed, also hashed ones; parts without such rows are not rewritten."""
    unmodified, hashed = (
        releases({"join_on": ["customer"], "columns": {"customer": "keep"}}),
        releases(PRIVACY, version=2),
    )
    fill_log(folder, unmodified, range(700_040, 700_045))
    convert(folder)
    untouched = {part.path: part.path.stat() for part in parquet_store.list_parts(folder)}
    fill_log(folder, unmodified, range(700_045, 700_050))
    fill_log(folder, hashed, range(700_045, 700_050), start=FIRST_TIME + dt.timedelta(days=90))
    keys = maintenance.HashKeys(folder / "hash-keys")
    secrets = ["r700047", "700047", *(text.split(":")[1] for text in keys.hashes("customer", "700047"))]
    assert sum(secret.encode() in read_all_bytes(folder) for secret in secrets) == 3
    erased: list[pa.Table] = []
    gone = maintenance.erase(folder, "customer", "700047", erased.append)
    assert (gone.rows, gone.files, gone.not_searched) == (2, 2, 0)
    assert erased[0].column("request_id").to_pylist() == ["r700047", "r700047"]
    for secret in secrets:
        assert secret.encode() not in read_all_bytes(folder)
    assert len(logged_ids(folder)) == 13
    assert {path: path.stat().st_mtime_ns for path in untouched} == {p: s.st_mtime_ns for p, s in untouched.items()}
    assert maintenance.erase(folder, "customer", "700047", erased.append).rows == 0
    assert len(erased) == 1


def test_rows_can_be_erased_while_a_service_writes(
    folder: Path, release: FakeRelease, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The service closes its segment and opens another; no row is lost."""
    monkeypatch.setattr("towline.prediction_log.writer._MAINTENANCE_S", 0.1)
    log = PredictionLog(folder, "w0", convert=False)
    for number in range(20):
        log.write(f"r{number}", FIRST_TIME.timestamp(), release, [ROW | {"customer": number % 4}], make_predictions())
    assert maintenance.erase(folder, "customer", "3", lambda _: None).rows == 5
    log.write("after", FIRST_TIME.timestamp(), release, [ROW], make_predictions())
    log.close()
    assert len(logged_ids(folder)) == 16
    assert "after" in logged_ids(folder)


def test_a_service_that_does_not_close_its_segment_is_named(
    folder: Path, release: FakeRelease, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is erased, since rows in its segment would be left."""
    log = PredictionLog(folder, "w0", convert=False)
    log.write("r", FIRST_TIME.timestamp(), release, [ROW], make_predictions())
    wait_until(lambda: log.written == 1)
    monkeypatch.setattr(maintenance, "_CLOSE_TIMEOUT_S", 0.3)
    monkeypatch.setattr(segments, "request_roll", lambda _: None)
    with pytest.raises(TransientError, match=r"(?s)still writes.*w0-"):
        maintenance.erase(folder, "customer", "1", lambda _: None)
    log.close()


@pytest.mark.parametrize(
    ("column", "value", "rows"),
    [
        ("size", "3", 1), ("size", "3.0", 1), ("size", "wide", 0), ("size", "nan", 0), ("member", "true", 10),
        ("member", "maybe", 0), ("at", "2026-10-05T10:00:00+02:00", 10), ("at", "someday", 0), ("zip", "803317715", 10),
        ("zip", "", 0), ("request_id", "r4", 1), ("order", "a-100-z7", 0), ("order", "A-100-Z7", 10),
    ],
)  # fmt: skip
def test_rows_are_erased_by_any_logged_column(
    folder: Path, release: FakeRelease, column: str, value: str, rows: int
) -> None:
    """The value is parsed by the kind of the column; an invalid value matches no row."""
    fill_log(folder, release, range(10))
    log = PredictionLog(folder, "w1", convert=False)
    empty = ROW | dict.fromkeys(("size", "member", "at", "zip", "order"))
    log.write("empty", FIRST_TIME.timestamp(), release, [empty], make_predictions())
    log.close()
    assert maintenance.erase(folder, column, value, lambda _: None).rows == rows
    assert len(logged_ids(folder)) == 11 - rows


def test_a_column_that_is_not_logged_is_refused(folder: Path, releases: Callable[..., FakeRelease]) -> None:
    """The error lists the columns; rows of versions without the column are counted."""
    fill_log(folder, releases(PRIVACY), range(3))
    for column, message in (("street", "'street' is not logged"), ("age", "bucket"), ("custmer", "customer")):
        with pytest.raises(ConfigError, match=message):
            maintenance.erase(folder, column, "1", lambda _: None)
    fill_log(folder, releases({}, version=2), range(3, 8))
    assert maintenance.erase(folder, "customer", "1", lambda _: None) == maintenance.DeletionResult(1, 1, (), 5)
    assert maintenance.erase(folder / "none", "customer", "1", lambda _: None).rows == 0


def test_personal_data_is_in_no_part(folder: Path, release: FakeRelease) -> None:
    """Neither values nor the statistics of Parquet contain it."""
    fill_log(folder, release, range(30))
    convert(folder)
    content = read_all_bytes(folder)
    assert b"Ulm" in content
    assert not any(secret in content for secret in (b"Gasse", b"eva@", b"803317715", b"A-100-Z7", b"1985-02-11"))


def test_the_error_names_a_damaged_part(folder: Path, release: FakeRelease) -> None:
    fill_log(folder, release, range(3))
    convert(folder)
    part = parquet_store.list_parts(folder)[0]
    part.path.write_bytes(part.path.read_bytes()[:-10])
    with pytest.raises(DataError, match=part.path.name):
        parquet_store.read_predictions(folder)
