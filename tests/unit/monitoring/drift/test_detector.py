"""Drift detection: changes that raise an alarm, invalid input, and a result for any rows."""

import datetime as dt
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.prediction_log import ROW, make_fake_release
from tests.support.releases import train_run
from towline.config import DriftConfig
from towline.data.schema.contract import Contract
from towline.errors import DataError
from towline.inference.scorer import RowPredictions
from towline.monitoring.drift.column_importance import ColumnImportance
from towline.monitoring.drift.current_rows import read_log, read_table
from towline.monitoring.drift.detector import detect
from towline.monitoring.results import DriftResult
from towline.prediction_log import parquet_store
from towline.prediction_log.privacy import HashKeys, read_privacy_filter
from towline.prediction_log.writer import PredictionLog
from towline.release.reference import read_reference

ROWS = 1_000
START = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)
DAY = dt.timedelta(days=1)


def training_rows(rows: int, seed: int, days: int = 120) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    size = rng.normal(50, 10, rows)
    return pd.DataFrame(
        {
            "at": pd.Timestamp("2025-01-01") + pd.to_timedelta(np.sort(rng.random(rows)) * days, unit="D"),
            "size": np.where(rng.random(rows) < 0.1, np.nan, size),
            "price": rng.lognormal(3, 1, rows),
            "kind": rng.choice(["a", "b", "c"], rows, p=[0.5, 0.3, 0.2]),
            "sunny": rng.random(rows) < 0.4,
            "shop": rng.integers(0, 60, rows).astype(str),
            "note": [f"visit {visit:05}:{' good' * words}" for visit, words in enumerate(rng.integers(1, 9, rows))],
            "sold": np.where(size + rng.normal(0, 5, rows) > 58, "yes", "no"),
        }
    )


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packaged binary model on rows of 120 days."""
    run = train_run(tmp_path_factory.mktemp("drift"), training_rows(4_000, 1), "linear", target="sold", time="at")
    return Path(run.settings.store / run.package().path)


def window(rows: int = ROWS, seed: int = 2) -> pd.DataFrame:
    return training_rows(rows, seed, days=1).drop(columns="sold")


def arrow(frame: pd.DataFrame) -> pa.Table:
    return pa.Table.from_pandas(frame, preserve_index=False)


def drift_of(release: Path, rows: pd.DataFrame | pa.Table, **how: Any) -> DriftResult:
    config = how.pop("config", DriftConfig())
    arguments = rows if isinstance(rows, pa.Table) else arrow(rows)
    return detect(release, arguments.to_batches(max_chunksize=300), config, start=START, end=START + DAY, **how)


def checks_of(result: DriftResult, alarm: bool = True) -> set[tuple[str, str]]:
    return {(check.column, check.name) for check in result.checks if check.alarm is alarm}


def test_rows_like_the_training_rows_are_ok(release: Path) -> None:
    """There is no alarm; every column's distance is reported with its threshold."""
    result = drift_of(release, window(), config=DriftConfig(false_alarms_per_year=12))
    assert (result.state, result.rows, result.version, result.budget) == ("ok", ROWS, 3, 12)
    assert (result.start, result.end) == (START, START + DAY)
    results = {f.column: f for f in result.checks if f.name == "distribution"}
    assert set(results) == {"size", "price", "kind", "sunny", "shop", "note"}
    assert all(f.threshold is not None and f.value < f.threshold for f in results.values())


@pytest.mark.parametrize(
    ("column", "change", "what"),
    [
        ("size", lambda rows: rows["size"] + 4, "distribution"),
        ("price", lambda rows: rows["price"] * 2, "distribution"),
        ("size", lambda rows: rows["size"].where(np.arange(ROWS) % 6 > 0), "nulls"),
        ("price", lambda rows: rows["price"].where(np.arange(ROWS) % 10 > 0), "nulls"),
        ("price", lambda rows: rows["price"] + 1e5 * (np.arange(ROWS) % 20 == 0), "out of range"),
        ("kind", lambda rows: rows["kind"].where(np.arange(ROWS) % 20 > 0, "new"), "unseen categories"),
        ("kind", lambda rows: rows["kind"].where(np.arange(ROWS) % 5 > 0, "c"), "category share"),
        ("sunny", lambda rows: rows["sunny"] | (np.arange(ROWS) % 3 == 0), "distribution"),
    ],
)
def test_a_changed_column_raises_an_alarm(release: Path, column: str, change: Any, what: str) -> None:
    """Only the changed column raises an alarm, in the right check, and is listed first."""
    rows = window()
    result = drift_of(release, rows.assign(**{column: change(rows)}))
    assert result.state == "drift"
    assert (column, what) in checks_of(result)
    assert {name for name, _ in checks_of(result)} == {column} == {result.checks[0].column}
    assert column in result.reason


def test_an_alarm_reports_the_importance_of_the_changed_columns(release: Path) -> None:
    """The target depends on the size only; the reason names the most important column first."""
    rows = window()
    important = drift_of(release, rows.assign(size=rows["size"] + 20))
    assert important.importance is not None
    assert important.importance > 0.9
    assert f"carry {important.importance:.0%} of the model's importance" in important.reason
    minor = drift_of(release, rows.assign(price=rows["price"] * 9))
    assert minor.importance is not None
    assert minor.importance < 0.1
    both = drift_of(release, rows.assign(price=rows["price"] * 9, size=rows["size"] + 20))
    assert both.reason.startswith("size:")
    assert drift_of(release, rows).importance is None


def test_a_column_carries_the_importance_of_the_features_computed_from_it() -> None:
    inputs = {"size": frozenset({"size"}), "rooms per size": frozenset({"rooms", "size"}), "kind": frozenset({"kind"})}
    importance = ColumnImportance({"size": 1.0, "rooms per size": 2.0, "kind": 1.0}, inputs)
    assert (importance.share({"size"}), importance.share({"rooms"}), importance.share({"kind", "size"})) == (
        0.75, 0.5, 1.0,
    )  # fmt: skip
    assert ColumnImportance({}, inputs).share({"size"}) is None


def test_a_number_that_follows_the_time_is_named_and_no_drift(tmp_path: Path) -> None:
    """A sequence number, and a date as a number; a price that was raised once is an ordinary column."""

    def add_columns(frame: pd.DataFrame, first: int) -> pd.DataFrame:
        number = np.arange(first, first + len(frame))
        day, raised = frame["at"].dt.strftime("%Y%m%d").astype(int), np.where(number > 1_000, 2.0, 1.0)
        return frame.drop(columns=["note", "shop"]).assign(number=number, day=day, raised=raised)

    columns = {"number": "numeric", "day": "numeric", "raised": "numeric"}
    frame = add_columns(training_rows(2_000, 1), 0)
    run = train_run(tmp_path, frame, "linear", target="sold", time="at", columns=columns)
    later = add_columns(window(), 2_000).assign(day=20250601)
    result = drift_of(run.settings.store / run.package().path, later)
    named = {check.column: check.detail for check in result.checks if check.name == "clock column"}
    assert set(named) == {"number", "day"}
    assert all("follows the time" in detail for detail in named.values())
    assert {name for name, _ in checks_of(result)} == {"raised"}


def test_predictions_are_checked_too(release: Path) -> None:
    """Predicted labels and the probability of the positive class are compared with those on the holdout."""
    reference = read_reference(release).answers["columns"]
    assert set(reference["prediction"]["counts"]) == {"yes", "no"}
    assert 0 <= reference["probability"]["min"] < reference["probability"]["max"] <= 1
    result = drift_of(release, window().assign(prediction="yes", probability=0.9))
    assert checks_of(result) >= {
        ("prediction", "category share"),
        ("prediction", "distribution"),
        ("probability", "distribution"),
    }
    assert {column for column, _ in checks_of(result)} == {"prediction", "probability"}


INVALID: dict[str, tuple[Any, tuple[str, str]]] = {
    "gone": (lambda t: t.drop_columns("size"), ("size", "missing column")),
    "another type": (lambda t: replace_column(t, "size", pa.array(["some text"] * ROWS)), ("size", "wrong type")),
    "partly text": (lambda t: replace_column(t, "size", pa.array(["calm", "3"] * (ROWS // 2))), ("size", "wrong type")),
    "infinite": (
        lambda t: replace_column(t, "size", pa.array([np.inf, -np.inf] * (ROWS // 2))),
        ("size", "wrong type"),
    ),
    "too large": (lambda t: replace_column(t, "price", pa.array([1e308] * ROWS)), ("price", "wrong type")),
    "all null": (lambda t: replace_column(t, "price", pa.nulls(ROWS)), ("price", "all null")),
    "all null text": (lambda t: replace_column(t, "kind", pa.array([""] * ROWS)), ("kind", "all null")),
    "lists": (lambda t: replace_column(t, "size", pa.array([[1.0]] * ROWS)), ("size", "wrong type")),
    "structs": (lambda t: replace_column(t, "kind", pa.array([{"a": 1}] * ROWS)), ("kind", "wrong type")),
    "lists for times": (lambda t: replace_column(t, "at", pa.array([["x"]] * ROWS)), ("at", "wrong type")),
    "numbers for times": (lambda t: replace_column(t, "at", pa.array(range(ROWS))), ("at", "wrong type")),
    "bytes": (lambda t: replace_column(t, "kind", pa.array([b"\xff"] * ROWS)), ("kind", "wrong type")),
    "not UTF-8": (
        lambda t: replace_column(t, "kind", pa.array([b"\xff"] * ROWS).view(pa.string())),
        ("kind", "wrong type"),
    ),
    "twice": (lambda t: t.append_column("size", t["size"]), ("size", "duplicate column")),
    "another table": (lambda t: pa.table({"x": range(ROWS), "": range(ROWS)}), ("shop", "missing column")),
}


def replace_column(rows: pa.Table, name: str, values: pa.Array) -> pa.Table:
    return rows.set_column(rows.schema.get_field_index(name), name, values)


@pytest.mark.parametrize("case", INVALID)
def test_input_that_violates_the_contract_is_invalid(release: Path, case: str) -> None:
    """The state is invalid_schema, and the column and its problem are named."""
    change, expected = INVALID[case]
    result = drift_of(release, change(arrow(window())))
    assert result.state == "invalid_schema"
    invalid = {(check.column, check.name) for check in result.checks if check.invalid}
    assert expected in invalid
    assert len({column for column, _ in invalid}) == (7 if case == "another table" else 1)
    assert result.checks[0].invalid
    assert expected[0] in result.reason or case == "another table"


def test_longer_texts_are_drift(release: Path) -> None:
    """The lengths of texts are compared; new words alone raise no alarm."""
    rows = window()
    assert drift_of(release, rows.assign(note=rows["note"].str.replace("good", "fine"))).state == "ok"
    result = drift_of(release, rows.assign(note=rows["note"] + " and more"))
    assert ("note", "distribution") in checks_of(result)
    (check,) = (check for check in result.checks if (check.column, check.name) == ("note", "distribution"))
    assert "mean length" in check.detail


HARMLESS: dict[str, Any] = {
    "another column": lambda t: t.append_column("extra", pa.array([["nested"]] * ROWS)),
    "ids": lambda t: t.append_column("id", pa.array([f"id-{n}" for n in range(ROWS)])),
    "numbers as text": lambda t: replace_column(t, "price", pa.array([str(v) for v in t["price"].to_pylist()])),
    "zones that differ": lambda t: replace_column(
        t, "at", pa.array(["2026-03-01T00:00+02:00", "2026-03-01"] * (ROWS // 2))
    ),
    "times with a zone": lambda t: replace_column(t, "at", t["at"].cast(pa.timestamp("us", "Asia/Tokyo"), safe=False)),
    "a clock set back": lambda t: replace_column(t, "at", pa.array(t["at"].to_pylist()[::-1])),
    "no time at all": lambda t: replace_column(t, "at", pa.array(["0001-01-01"] * ROWS)),
    "one infinite value": lambda t: replace_column(t, "size", pa.array([np.inf, *t["size"].to_pylist()[1:]])),
    "a few very long strings": lambda t: replace_column(t, "shop", pa.array(["x" * 10**6, *t["shop"].to_pylist()[1:]])),
    "dictionaries": lambda t: replace_column(t, "kind", t["kind"].combine_chunks().dictionary_encode()),
    "small integers": lambda t: replace_column(t, "sunny", t["sunny"].cast(pa.uint8())),
    "decimals": lambda t: replace_column(
        t, "size", t["size"].cast(pa.float32()).cast(pa.decimal128(20, 6), safe=False)
    ),
}


@pytest.mark.parametrize("case", HARMLESS)
def test_unusual_but_valid_input_is_ok(release: Path, case: str) -> None:
    """A difference that changes no value changes no result; additional columns are reported."""
    result = drift_of(release, HARMLESS[case](arrow(window())))
    assert result.state == "ok", result.reason
    results = checks_of(result, alarm=False)
    assert (("extra", "unknown column") in results, ("id", "unknown column") in results) == (
        case == "another column",
        case == "ids",
    )


def test_arrays_that_arrow_cannot_take_from_are_no_error(release: Path, tmp_path: Path) -> None:
    """String views of a file are read as text; an additional column may have any type."""
    rows = arrow(window())
    for name in ("kind", "shop", "note"):
        rows = replace_column(rows, name, rows[name].cast(pa.string_view()))
    pq.write_table(rows, tmp_path / "rows.parquet")
    read = pa.Table.from_batches(read_table(tmp_path / "rows.parquet", Contract.read(release)))
    result = drift_of(release, read)
    assert result.state == "ok", result.reason
    runs = pa.RunEndEncodedArray.from_arrays(pa.array([ROWS], pa.int32()), pa.array([1.5]))
    assert drift_of(release, arrow(window()).append_column("extra", runs)).state == "ok"


@pytest.mark.parametrize("rows", [0, 1, 49])
def test_too_few_rows_are_unknown(release: Path, rows: int) -> None:
    """A window may also have no batch."""
    result = drift_of(release, window(ROWS)[:rows])
    assert (result.state, result.rows, result.checks) == ("unknown", rows, ())
    assert "50 are needed" in result.reason
    assert detect(release, [], DriftConfig()).state == "unknown"


def test_invalid_columns_of_too_few_rows_are_named(release: Path) -> None:
    """The reason names the missing column."""
    assert "size" in drift_of(release, window()[:1].drop(columns="size")).reason


def test_repeated_rows_are_reported(release: Path) -> None:
    """Repeated rows are no drift, but a check reports their share."""
    result = drift_of(release, pd.concat([window(), window()]))
    assert result.state == "ok"
    (repeated,) = [check for check in result.checks if check.name == "repeated rows"]
    assert repeated.value == pytest.approx(0.5, abs=0.02)
    assert "repeated rows" not in {check.name for check in drift_of(release, window()).checks}


def test_a_column_missing_in_some_files_counts_as_null(release: Path) -> None:
    """Rows of a file without the column are nulls of it."""
    rows = arrow(window())
    batches = [rows.slice(0, 700), rows.slice(700).drop_columns("price")]
    result = detect(release, batches, DriftConfig())
    (nulls,) = [f for f in result.checks if (f.column, f.name) == ("price", "nulls")]
    assert nulls.alarm
    assert nulls.value == pytest.approx(0.3)


def test_private_and_ignored_columns(release: Path) -> None:
    """A column that is not logged is not missing. An ignored column raises no alarm, but must exist."""
    rows = window()
    left_out = drift_of(release, rows.drop(columns="size"), columns=["at", "price", "kind", "sunny", "shop"])
    assert left_out.state == "ok"
    ignoring = DriftConfig(ignore=("size",))
    assert drift_of(release, rows.assign(size=0.0), config=ignoring).state == "ok"
    assert drift_of(release, rows.drop(columns="size"), config=ignoring).state == "invalid_schema"


def test_a_release_of_an_earlier_version(release: Path, tmp_path: Path) -> None:
    """Without blocks and profiles of predictions, the inputs are still compared."""
    facts = json.loads((release / "profile.json").read_bytes())
    for name in ("answers", "repeated"):
        facts.pop(name)
    for column in facts["columns"].values():
        for side in ("below_sd", "above_sd"):
            (column.get("grid") or {}).pop(side, None)
    (tmp_path / "profile.json").write_text(json.dumps(facts))
    (tmp_path / "contract.json").write_bytes((release / "contract.json").read_bytes())
    rows = window().assign(prediction="yes", probability=1.0)
    assert drift_of(tmp_path, rows).state == "ok"
    assert checks_of(drift_of(tmp_path, rows.assign(price=rows["price"] * 2))) >= {("price", "distribution")}


def test_a_normal_season_is_no_drift(tmp_path: Path) -> None:
    """A cold day is ok because the training has cold days; a day colder or warmer than all seasons raises an alarm."""
    rng = np.random.default_rng(3)
    day = np.repeat(np.arange(365), 30)
    season = 10 * np.sin(day / 365 * 2 * np.pi)
    frame = pd.DataFrame(
        {
            "at": pd.Timestamp("2025-01-01") + pd.to_timedelta(day, unit="D"),
            "warmth": season + rng.normal(0, 3, len(day)),
            "y": rng.normal(size=len(day)),
        }
    )
    run = train_run(tmp_path, frame, "linear", target="y", time="at", columns={"warmth": "numeric"})
    release = run.settings.store / run.package().path

    def of(warmth: float) -> str:
        rows = pd.DataFrame({"at": START.replace(tzinfo=None), "warmth": rng.normal(warmth, 3, 300)})
        return drift_of(release, rows).state

    assert [of(warmth) for warmth in (8.0, 0.0, 30.0)] == ["ok", "ok", "drift"]


@pytest.mark.parametrize("kind", ["csv", "csv.gz", "parquet"])
def test_files(release: Path, tmp_path: Path, kind: str) -> None:
    """The same rows give the same result in every file format."""
    path = tmp_path / f"rows.{kind}"
    if kind == "parquet":
        window().to_parquet(path, index=False)
    else:
        text = window().to_csv(index=False, sep=";").encode()
        path.write_bytes(gzip.compress(text) if kind.endswith("gz") else text)
    result = detect(release, read_table(path, Contract.read(release), ";"), DriftConfig(), start=START, end=START + DAY)
    assert (result.state, result.rows) == ("ok", ROWS)
    direct = {(f.column, f.name): f.value for f in drift_of(release, window()).checks}
    assert {(f.column, f.name): pytest.approx(f.value) for f in result.checks} == direct


def test_a_column_that_becomes_text_late_in_a_large_file(tmp_path: Path) -> None:
    """Every row is read once; after the first text, the column is text."""
    path, rows = tmp_path / "rows.csv", 1_200_000
    path.write_text("a,b\n" + "\n".join(f"{n},{n}" for n in range(rows)) + "\nlate,1\n")
    column = {"kind": "numeric", "role": "feature", "nullable": True, "min": None, "max": None, "categories": None}
    columns = [{"name": name, "levels": 0, **column} for name in "ab"]
    batches = list(read_table(path, Contract.model_validate({"target": "y", "task": "regression", "columns": columns})))
    assert len({batch.schema.field("a").type for batch in batches}) == 2
    values = [str(int(v)) if v != "late" else v for batch in batches for v in batch.column("a").to_pylist()]
    assert values == [*map(str, range(rows)), "late"]


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252", "utf-16"])
@pytest.mark.parametrize("rows", [3, 9_000])
def test_a_file_in_another_encoding(tmp_path: Path, encoding: str, rows: int) -> None:
    """The file may have several blocks, of 16 MB, and its first non-ASCII letter in a name or in the last row."""
    path = tmp_path / "rows.csv"
    for name, last in (("größe", "Genève"), ("size", "Genève")):
        text = f"{name};town\n" + "".join(f"{n};{'town' * 500}\n" for n in range(rows)) + f"7;{last}\n"
        path.write_bytes(text.encode(encoding))
        contract = Contract(target="y", task="regression", columns=())
        table = pa.concat_tables(
            pa.Table.from_batches([batch]) if isinstance(batch, pa.RecordBatch) else batch
            for batch in read_table(path, contract, ";")
        )
        assert table.column_names == [name, "town"]
        assert table.num_rows == rows + 1
        assert table[name].to_pylist() == [*map(str, range(rows)), "7"]
        assert table["town"][-1].as_py() == last


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("no.csv", None), ("empty.csv", b""), ("odd.csv", b"a,b\n1,2\n1,2,3\n"),
        ("no.parquet", b"PAR1"), ("cut.csv.gz", gzip.compress(b"a,b\n1,2\n" * 99)[:30]),
    ],
)  # fmt: skip
def test_files_that_cannot_be_read(tmp_path: Path, name: str, content: bytes | None) -> None:
    """The error names the file."""
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError) as error:
        list(read_table(path, Contract(target="y", task="regression", columns=())))
    assert str(path) in error.value.where


def test_reading_the_log_of_one_version(tmp_path: Path) -> None:
    """Unmodified columns, predictions and the probability of the positive class, from segments and parts."""
    folder = tmp_path / "predictions"
    releases = [
        make_fake_release(tmp_path / f"v{n}", {"pii": ["street"], "columns": {"zip": "hash"}}, ("no", "yes"), n)
        for n in (1, 2)
    ]
    fields = read_privacy_filter(releases[0].directory, releases[0].contract, HashKeys(folder / "hash-keys")).fields

    def write(hour: float, version: int, size: float) -> None:
        log = PredictionLog(folder, f"w{hour}", convert=False)
        at = (START + dt.timedelta(hours=hour)).timestamp()
        log.write("r", at, releases[version - 1], [{**ROW, "size": size}], RowPredictions(["yes"], [[0.25, 0.75]]))
        log.close()

    for hour, version, size in ((-1, 1, 1.0), (0, 1, 2.0), (5, 2, 3.0), (23, 1, 4.0)):
        write(hour, version, size)
    with parquet_store.lock_store(folder):
        parquet_store.convert_segments(folder)
    write(24 - 1e-3, 1, 5.0)
    write(24, 1, 6.0)
    pieces = list(read_log(folder, 1, START, START + DAY, fields, 1))
    result = pa.Table.from_pylist([row for piece in pieces for row in piece.to_pylist()])
    assert sorted(result["size"].to_pylist()) == [2.0, 4.0, 5.0]
    assert set(result.column_names) == {
        "size", "age", "town", "member", "at", "born", "prediction", "probability"
    }  # fmt: skip
    assert (result["prediction"].to_pylist(), result["probability"].to_pylist()) == (["yes"] * 3, [0.75] * 3)
    assert list(read_log(tmp_path / "none", 1, START, None, fields)) == []
