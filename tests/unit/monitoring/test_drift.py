"""The drift of a window: what alarms, what is broken, what is only told; and a verdict whatever the rows are."""

import datetime as dt
import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.conftest import REPOSITORY
from tests.unit.prediction_log.conftest import ROW, make_release
from tests.unit.release.conftest import make_run
from towline.config import DriftConfig
from towline.data.schema.contract import Contract
from towline.errors import DataError
from towline.inference.scorer import RowPredictions
from towline.monitoring.drift.detector import current, detect, table
from towline.monitoring.results import DriftResult
from towline.prediction_log import parquet_store
from towline.prediction_log.privacy import HashKeys, read_privacy_filter
from towline.prediction_log.writer import PredictionLog
from towline.release.reference import read_reference

ROWS = 1_000
START = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)
DAY = dt.timedelta(days=1)


def drawn(rows: int, seed: int, days: int = 120) -> pd.DataFrame:
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
            "sold": np.where(size + rng.normal(0, 5, rows) > 58, "yes", "no"),
        }
    )


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packaged binary model on rows of 120 days."""
    run = make_run(tmp_path_factory.mktemp("drift"), drawn(4_000, 1), "linear", target="sold", time="at")
    return Path(run.settings.store / run.package().path)


def night(rows: int = ROWS, seed: int = 2) -> pd.DataFrame:
    return drawn(rows, seed, days=1).drop(columns="sold")


def arrow(frame: pd.DataFrame) -> pa.Table:
    return pa.Table.from_pandas(frame, preserve_index=False)


def seen(release: Path, rows: pd.DataFrame | pa.Table, **how: Any) -> DriftResult:
    config = how.pop("config", DriftConfig())
    given = rows if isinstance(rows, pa.Table) else arrow(rows)
    return detect(release, given.to_batches(max_chunksize=300), config, start=START, end=START + DAY, **how)


def said(found: DriftResult, alarm: bool = True) -> set[tuple[str, str]]:
    return {(check.column, check.name) for check in found.checks if check.alarm is alarm}


def test_rows_like_those_of_training_are_quiet(release: Path) -> None:
    """Nothing alarms; each column's distance stands beside its threshold, and the budget with them."""
    found = seen(release, night(), config=DriftConfig(false_alarms_per_year=12))
    assert (found.state, found.rows, found.version, found.budget) == ("ok", ROWS, 3, 12)
    assert (found.start, found.end) == (START, START + DAY)
    told = {f.column: f for f in found.checks if f.name == "distribution"}
    assert set(told) == {"size", "price", "kind", "sunny", "shop"}
    assert all(f.threshold is not None and f.value < f.threshold for f in told.values())


@pytest.mark.parametrize(
    ("column", "change", "what"),
    [
        ("size", lambda rows: rows["size"] + 4, "distribution"),
        ("price", lambda rows: rows["price"] * 2, "distribution"),
        ("size", lambda rows: rows["size"].where(np.arange(ROWS) % 6 > 0), "nulls"),
        ("price", lambda rows: rows["price"].where(np.arange(ROWS) % 10 > 0), "nulls"),
        ("price", lambda rows: rows["price"] + 1e5 * (np.arange(ROWS) % 20 == 0), "out of range"),
        ("kind", lambda rows: rows["kind"].where(np.arange(ROWS) % 20 > 0, "new"), "unseen"),
        ("kind", lambda rows: rows["kind"].where(np.arange(ROWS) % 5 > 0, "c"), "level"),
        ("sunny", lambda rows: rows["sunny"] | (np.arange(ROWS) % 3 == 0), "distribution"),
    ],
)
def test_a_change_is_found_and_named(release: Path, column: str, change: Any, what: str) -> None:
    """The column that changed alarms, for the reason it changed, and comes first; no other does."""
    rows = night()
    found = seen(release, rows.assign(**{column: change(rows)}))
    assert found.state == "drift"
    assert (column, what) in said(found)
    assert {name for name, _ in said(found)} == {column} == {found.checks[0].column}
    assert column in found.reason


def test_the_answers_are_watched_too(release: Path) -> None:
    """Labels and the probability of the positive class are compared with those on the holdout."""
    reference = read_reference(release).answers["columns"]
    assert set(reference["prediction"]["counts"]) == {"yes", "no"}
    assert 0 <= reference["probability"]["min"] < reference["probability"]["max"] <= 1
    found = seen(release, night().assign(prediction="yes", probability=0.9))
    assert said(found) >= {("prediction", "level"), ("prediction", "distribution"), ("probability", "distribution")}
    assert {column for column, _ in said(found)} == {"prediction", "probability"}


BROKEN: dict[str, tuple[Any, tuple[str, str]]] = {
    "gone": (lambda t: t.drop_columns("size"), ("size", "missing")),
    "another type": (lambda t: put(t, "size", pa.array(["some text"] * ROWS)), ("size", "unfit")),
    "partly text": (lambda t: put(t, "size", pa.array(["calm", "3"] * (ROWS // 2))), ("size", "unfit")),
    "infinite": (lambda t: put(t, "size", pa.array([np.inf, -np.inf] * (ROWS // 2))), ("size", "unfit")),
    "too large": (lambda t: put(t, "price", pa.array([1e308] * ROWS)), ("price", "unfit")),
    "all null": (lambda t: put(t, "price", pa.nulls(ROWS)), ("price", "all null")),
    "all null text": (lambda t: put(t, "kind", pa.array([""] * ROWS)), ("kind", "all null")),
    "lists": (lambda t: put(t, "size", pa.array([[1.0]] * ROWS)), ("size", "unfit")),
    "structs": (lambda t: put(t, "kind", pa.array([{"a": 1}] * ROWS)), ("kind", "unfit")),
    "lists for times": (lambda t: put(t, "at", pa.array([["x"]] * ROWS)), ("at", "unfit")),
    "numbers for times": (lambda t: put(t, "at", pa.array(range(ROWS))), ("at", "unfit")),
    "bytes": (lambda t: put(t, "kind", pa.array([b"\xff"] * ROWS)), ("kind", "unfit")),
    "not UTF-8": (lambda t: put(t, "kind", pa.array([b"\xff"] * ROWS).view(pa.string())), ("kind", "unfit")),
    "twice": (lambda t: t.append_column("size", t["size"]), ("size", "twice")),
    "another table": (lambda t: pa.table({"x": range(ROWS), "": range(ROWS)}), ("shop", "missing")),
}


def put(rows: pa.Table, name: str, values: pa.Array) -> pa.Table:
    return rows.set_column(rows.schema.get_field_index(name), name, values)


@pytest.mark.parametrize("case", BROKEN)
def test_input_that_breaks_the_contract_is_broken(release: Path, case: str) -> None:
    """No model should learn from it: the state says so, the column and what is wrong with it are named."""
    change, expected = BROKEN[case]
    found = seen(release, change(arrow(night())))
    assert found.state == "invalid_schema"
    broken = {(check.column, check.name) for check in found.checks if check.invalid}
    assert expected in broken
    assert len({column for column, _ in broken}) == (6 if case == "another table" else 1)
    assert found.checks[0].invalid
    assert expected[0] in found.reason or case == "another table"


HARMLESS: dict[str, Any] = {
    "another column": lambda t: t.append_column("extra", pa.array([["nested"]] * ROWS)),
    "ids": lambda t: t.append_column("id", pa.array([f"id-{n}" for n in range(ROWS)])),
    "numbers as text": lambda t: put(t, "price", pa.array([str(v) for v in t["price"].to_pylist()])),
    "zones that differ": lambda t: put(t, "at", pa.array(["2026-03-01T00:00+02:00", "2026-03-01"] * (ROWS // 2))),
    "times with a zone": lambda t: put(t, "at", t["at"].cast(pa.timestamp("us", "Asia/Tokyo"), safe=False)),
    "a clock set back": lambda t: put(t, "at", pa.array(t["at"].to_pylist()[::-1])),
    "no time at all": lambda t: put(t, "at", pa.array(["0001-01-01"] * ROWS)),
    "one infinite value": lambda t: put(t, "size", pa.array([np.inf, *t["size"].to_pylist()[1:]])),
    "a few very long strings": lambda t: put(t, "shop", pa.array(["x" * 10**6, *t["shop"].to_pylist()[1:]])),
    "dictionaries": lambda t: put(t, "kind", t["kind"].combine_chunks().dictionary_encode()),
    "small integers": lambda t: put(t, "sunny", t["sunny"].cast(pa.uint8())),
    "decimals": lambda t: put(t, "size", t["size"].cast(pa.float32()).cast(pa.decimal128(20, 6), safe=False)),
}


@pytest.mark.parametrize("case", HARMLESS)
def test_odd_input_that_a_model_can_take_is_quiet(release: Path, case: str) -> None:
    """What changes no value changes no verdict; columns that training did not have are told."""
    found = seen(release, HARMLESS[case](arrow(night())))
    assert found.state == "ok", found.reason
    told = said(found, alarm=False)
    assert (("extra", "new") in told, ("id", "new") in told) == (case == "another column", case == "ids")


@pytest.mark.parametrize("rows", [0, 1, 49])
def test_too_few_rows_say_nothing(release: Path, rows: int) -> None:
    """Neither quiet nor drift; also for no batch at all."""
    found = seen(release, night(ROWS)[:rows])
    assert (found.state, found.rows, found.checks) == ("unknown", rows, ())
    assert "50 are needed" in found.reason
    assert detect(release, [], DriftConfig()).state == "unknown"


def test_one_odd_row_is_told_though_it_says_nothing(release: Path) -> None:
    """The reason names what is missing."""
    assert "size" in seen(release, night()[:1].drop(columns="size")).reason


def test_a_day_that_is_sent_twice_is_named(release: Path) -> None:
    """Equal rows are no drift, and do not pass unseen."""
    found = seen(release, pd.concat([night(), night()]))
    assert found.state == "ok"
    (repeated,) = [check for check in found.checks if check.name == "repeated"]
    assert repeated.value == pytest.approx(0.5, abs=0.02)
    assert "repeated" not in {check.name for check in seen(release, night()).checks}


def test_rows_without_a_column_are_rows_without_its_value(release: Path) -> None:
    """Where some files have a column and others do not, its nulls are counted so."""
    rows = arrow(night())
    batches = [rows.slice(0, 700), rows.slice(700).drop_columns("price")]
    found = detect(release, batches, DriftConfig())
    (nulls,) = [f for f in found.checks if (f.column, f.name) == ("price", "nulls")]
    assert nulls.alarm
    assert nulls.value == pytest.approx(0.3)


def test_columns_that_are_private_or_mean_nothing(release: Path) -> None:
    """What a log leaves out is not missing; what is to be ignored does not alarm, but must be there."""
    rows = night()
    left_out = seen(release, rows.drop(columns="size"), columns=["at", "price", "kind", "sunny", "shop"])
    assert left_out.state == "ok"
    ignoring = DriftConfig(ignore=("size",))
    assert seen(release, rows.assign(size=0.0), config=ignoring).state == "ok"
    assert seen(release, rows.drop(columns="size"), config=ignoring).state == "invalid_schema"


def test_a_release_of_an_earlier_version(release: Path, tmp_path: Path) -> None:
    """Without blocks and without answers there is still a verdict on the inputs."""
    facts = json.loads((release / "profile.json").read_bytes())
    for name in ("answers", "repeated"):
        facts.pop(name)
    for column in facts["columns"].values():
        for side in ("below_sd", "above_sd"):
            (column.get("grid") or {}).pop(side, None)
    (tmp_path / "profile.json").write_text(json.dumps(facts))
    (tmp_path / "contract.json").write_bytes((release / "contract.json").read_bytes())
    rows = night().assign(prediction="yes", probability=1.0)
    assert seen(tmp_path, rows).state == "ok"
    assert said(seen(tmp_path, rows.assign(price=rows["price"] * 2))) >= {("price", "distribution")}


def test_a_normal_season_is_no_drift(tmp_path: Path) -> None:
    """A cold day is unlike the year and like other cold days; a day beyond all seasons alarms."""
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
    run = make_run(tmp_path, frame, "linear", target="y", time="at", columns={"warmth": "numeric"})
    release = run.settings.store / run.package().path

    def of(warmth: float) -> str:
        rows = pd.DataFrame({"at": START.replace(tzinfo=None), "warmth": rng.normal(warmth, 3, 300)})
        return seen(release, rows).state

    assert [of(warmth) for warmth in (8.0, 0.0, 30.0)] == ["ok", "ok", "drift"]


def contract_of(release: Path) -> Contract:
    return Contract.model_validate_json((release / "contract.json").read_bytes())


@pytest.mark.parametrize("kind", ["csv", "csv.gz", "parquet"])
def test_files(release: Path, tmp_path: Path, kind: str) -> None:
    """The same rows say the same, whatever file they come in."""
    path = tmp_path / f"rows.{kind}"
    if kind == "parquet":
        night().to_parquet(path, index=False)
    else:
        text = night().to_csv(index=False, sep=";").encode()
        path.write_bytes(gzip.compress(text) if kind.endswith("gz") else text)
    found = detect(release, table(path, contract_of(release), ";"), DriftConfig(), start=START, end=START + DAY)
    assert (found.state, found.rows) == ("ok", ROWS)
    direct = {(f.column, f.name): f.value for f in seen(release, night()).checks}
    assert {(f.column, f.name): pytest.approx(f.value) for f in found.checks} == direct


def test_a_column_that_becomes_text_late_in_a_large_file(tmp_path: Path) -> None:
    """Each row comes once; rows of which one is no number come as text, for the check to count."""
    path, rows = tmp_path / "rows.csv", 1_200_000
    path.write_text("a,b\n" + "\n".join(f"{n},{n}" for n in range(rows)) + "\nlate,1\n")
    column = {"kind": "numeric", "role": "feature", "nullable": True, "min": None, "max": None, "categories": None}
    columns = [{"name": name, "levels": 0, **column} for name in "ab"]
    batches = list(table(path, Contract.model_validate({"target": "y", "task": "regression", "columns": columns})))
    assert len({batch.schema.field("a").type for batch in batches}) == 2
    values = [str(int(v)) if v != "late" else v for batch in batches for v in batch.column("a").to_pylist()]
    assert values == [*map(str, range(rows)), "late"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("no.csv", None), ("empty.csv", b""), ("odd.csv", b"a,b\n1,2\n1,2,3\n"),
        ("no.parquet", b"PAR1"), ("cut.csv.gz", gzip.compress(b"a,b\n1,2\n" * 99)[:30]),
    ],
)  # fmt: skip
def test_files_that_cannot_be_read(tmp_path: Path, name: str, content: bytes | None) -> None:
    """An error that names the file, never a traceback of a library."""
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError) as error:
        list(table(path, Contract(target="y", task="regression", columns=())))
    assert str(path) in error.value.where


def test_the_log_gives_what_one_version_was_asked(tmp_path: Path) -> None:
    """Plain columns, answers and the positive class's probability; from segments and parts, in the window alone."""
    folder = tmp_path / "predictions"
    releases = [
        make_release(tmp_path / f"v{n}", {"pii": ["street"], "columns": {"zip": "hash"}}, ("no", "yes"), n)
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
    with parquet_store.exclusive_lock(folder):
        parquet_store.convert_segments(folder)
    write(24 - 1e-3, 1, 5.0)
    write(24, 1, 6.0)
    pieces = list(current(folder, 1, START, START + DAY, fields, 1))
    found = pa.Table.from_pylist([row for piece in pieces for row in piece.to_pylist()])
    assert sorted(found["size"].to_pylist()) == [2.0, 4.0, 5.0]
    assert set(found.column_names) == {
        "size", "age", "town", "member", "at", "born", "prediction", "probability"
    }  # fmt: skip
    assert (found["prediction"].to_pylist(), found["probability"].to_pylist()) == (["yes"] * 3, [0.75] * 3)
    assert list(current(tmp_path / "none", 1, START, None, fields)) == []


def test_a_quiet_night_imports_nothing_slow(release: Path, tmp_path: Path) -> None:
    """Neither Evidently nor pandas nor scikit-learn, from the file to the verdict."""
    path = tmp_path / "rows.parquet"
    pq.write_table(arrow(night()), path)
    code = (
        "import sys; from pathlib import Path; from towline.config import DriftConfig\n"
        "from towline.data.schema.contract import Contract\n"
        "from towline.monitoring.drift.detector import detect, table\n"
        "contract = Contract.model_validate_json(Path(sys.argv[1], 'contract.json').read_bytes())\n"
        "print(detect(Path(sys.argv[1]), table(Path(sys.argv[2]), contract), DriftConfig()).state, *sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(release), str(path)], capture_output=True, text=True, check=True,
        cwd=REPOSITORY,
    )  # fmt: skip
    state, *modules = done.stdout.split()
    assert state == "ok"
    assert {"evidently", "pandas", "sklearn", "mlflow", "prefect", "matplotlib"} & set(modules) == set()
