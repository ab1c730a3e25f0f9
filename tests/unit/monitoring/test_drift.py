"""What a window of production is called, whatever its rows are."""

import datetime as dt
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from towline.config import DriftConfig, build_config
from towline.data import blocks
from towline.data.inference import infer
from towline.data.profile import profile
from towline.errors import DataError
from towline.monitoring.drift import detect, table
from towline.monitoring.evidence import Drift

ROWS = 6_000


def draw(rows: int, seed: int = 0, day: float = 0.0) -> pd.DataFrame:
    """Numbers, skewed and whole ones, with nulls; few and many levels; a flag; a time."""
    rng = np.random.default_rng(seed)
    many = 1 / np.arange(1, 41)
    return pd.DataFrame(
        {
            "plain": rng.normal(day, 1, rows),
            "skewed": np.exp(rng.normal(day, 1, rows)),
            "whole": rng.poisson(4, rows),
            "gaps": np.where(rng.random(rows) < 0.1, np.nan, rng.normal(0, 1, rows)),
            "two": rng.choice(["a", "b"], rows),
            "many": rng.choice([f"v{number}" for number in range(40)], rows, p=many / many.sum()),
            "flag": rng.random(rows) < 0.3,
            "when": pd.Timestamp("2026-01-01") + pd.to_timedelta(rng.integers(0, 86_400 * 60, rows), unit="s"),
        }
    )


def release(folder: Path, rows: pd.DataFrame, **data: Any) -> Path:
    """The files of a release that drift is seen by."""
    config = build_config({"name": "x", "data": {"source": "s", "target": "y", **data}}, "")
    rows = rows.assign(y=np.arange(len(rows)) % 97 + 0.5)
    contract = infer(rows, config)
    features = contract.features(rows)
    told = profile(features, contract)
    times, groups = (rows[data[role]] if role in data else None for role in ("time", "group"))
    kind, unit = blocks.units(times, groups, len(told["columns"]))
    directory = folder / "v7-abc"
    directory.mkdir()
    (directory / "contract.json").write_text(contract.model_dump_json())
    (directory / "profile.json").write_text(json.dumps(told))
    (directory / "blocks.npz").write_bytes(
        blocks.packed({"inputs": blocks.count(features, told["columns"], kind, unit)})
    )
    return directory


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return release(tmp_path_factory.mktemp("plain"), draw(ROWS))


def look(directory: Path, rows: pd.DataFrame | pa.Table, **given: Any) -> Drift:
    current = rows if isinstance(rows, pa.Table) else pa.Table.from_pandas(rows, preserve_index=False)
    return detect(directory, current.to_batches(max_chunksize=900) or [current], DriftConfig(), **given)


def alarms(found: Drift) -> set[tuple[str, str]]:
    return {(finding.column, finding.what) for finding in found.findings if finding.alarm}


def test_rows_like_those_of_training_are_quiet(plain: Path) -> None:
    """Thirty nights of several sizes, and of a version that the release's name tells."""
    for seed in range(1, 31):
        found = look(plain, draw([60, 400, 2_000][seed % 3], seed))
        assert (found.state, found.version) == ("quiet", 7), found.reason


def _moved(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.assign(plain=rows["plain"] + 0.25)


def _emptied(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.assign(skewed=rows["skewed"].where(np.arange(len(rows)) % 9 > 0))


def _tilted(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.assign(two=np.where(np.arange(len(rows)) % 4 == 0, "b", rows["two"]))


def _named(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.assign(many=np.where(np.arange(len(rows)) % 20 == 0, "brand new", rows["many"]))


@pytest.mark.parametrize(
    ("change", "column", "what"),
    [
        (_moved, "plain", "distribution"),
        (_emptied, "skewed", "nulls"),
        (_tilted, "two", "distribution"),
        (_named, "many", "unseen"),
    ],
)
def test_a_change_is_found_where_it_is(
    plain: Path, change: Callable[[pd.DataFrame], pd.DataFrame], column: str, what: str
) -> None:
    """A quarter of a standard deviation, eleven points of nulls, twelve of a level, one value in twenty never seen."""
    for seed in range(1, 11):
        found = look(plain, change(draw(2_000, seed)))
        assert (column, what) in alarms(found), found.findings[:3]
        assert {alarm[0] for alarm in alarms(found)} == {column}
        assert column in found.reason


BROKEN: dict[str, tuple[Callable[[pd.DataFrame], pd.DataFrame], tuple[str, str]]] = {
    "a column is gone": (lambda rows: rows.drop(columns="whole"), ("whole", "missing")),
    "numbers became words": (lambda rows: rows.assign(plain="n/a?"), ("plain", "unfit")),
    "all null": (lambda rows: rows.assign(skewed=np.nan), ("skewed", "all null")),
    "all infinite": (lambda rows: rows.assign(skewed=np.inf), ("skewed", "unfit")),
    "beyond all numbers": (lambda rows: rows.assign(plain=1e308), ("plain", "unfit")),
    "lists": (lambda rows: rows.assign(many=[[1, 2]] * len(rows)), ("many", "unfit")),
    "times became words": (lambda rows: rows.assign(when="soon"), ("when", "unfit")),
    "another table": (lambda rows: pd.DataFrame({"u": np.arange(len(rows))}), ("plain", "missing")),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_input_is_named(plain: Path, name: str) -> None:
    """Not drift but broken: the verdict names column and ill."""
    change, expected = BROKEN[name]
    found = look(plain, change(draw(500, 3)))
    assert found.state == "broken"
    assert expected in {(finding.column, finding.what) for finding in found.findings if finding.broken}
    assert expected[0] in found.reason


ODD: dict[str, Callable[[pd.DataFrame], pd.DataFrame | pa.Table]] = {
    "a new column": lambda rows: rows.assign(extra=1),
    "rows in another order": lambda rows: rows.sample(frac=1, random_state=1),
    "columns in another order": lambda rows: rows[rows.columns[::-1]],
    "zones mixed": lambda rows: rows.assign(
        when=[str(t) + ("+02:00" if n % 2 else "Z") for n, t in enumerate(rows["when"])]
    ),
    "a clock set back": lambda rows: rows.assign(when=rows["when"] - pd.Timedelta(days=9_000)),
    "numbers as text": lambda rows: rows.assign(whole=rows["whole"].astype(str)),
    "whole numbers as decimals": lambda rows: rows.assign(whole=rows["whole"].astype(np.float32)),
    "small types": lambda rows: rows.assign(whole=rows["whole"].astype("uint8"), two=rows["two"].astype("category")),
    "a few infinities": lambda rows: rows.assign(plain=rows["plain"].where(np.arange(len(rows)) > 2, np.inf)),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_but_sound_input_is_no_drift(plain: Path, name: str) -> None:
    """What a table's form says nothing about its content."""
    found = look(plain, ODD[name](draw(1_000, 5)))
    assert found.state == "quiet", found.reason
    if name == "a new column":
        assert ("extra", "new") in {(finding.column, finding.what) for finding in found.findings}


@pytest.mark.parametrize("rows", [0, 1, 49])
def test_too_few_rows_say_nothing(plain: Path, rows: int) -> None:
    """Unknown, with how many there are and how many it takes."""
    found = look(plain, draw(rows, 1))
    assert (found.state, found.rows, found.findings) == ("unknown", rows, ())
    assert "50 are needed" in found.reason


def test_a_name_that_stands_twice_is_broken(plain: Path) -> None:
    """Which of the two was meant nobody knows."""
    rows = pa.Table.from_pandas(draw(200, 1), preserve_index=False)
    found = look(plain, rows.append_column("plain", rows["skewed"]))
    assert found.state == "broken"
    assert found.findings[0].what == "twice"


def test_columns_that_are_not_logged_are_not_missed(plain: Path) -> None:
    """What privacy keeps out of the log is no broken input; what the config ignores may do what it likes."""
    rows = draw(800, 4)
    kept = [name for name in rows.columns if name != "gaps"]
    assert look(plain, rows[kept], columns=kept).state == "quiet"
    config = DriftConfig(ignore=("plain",))
    changed = pa.Table.from_pandas(rows.assign(plain=9.0), preserve_index=False)
    assert detect(plain, [changed], config).state == "quiet"


def test_days_that_differ_by_themselves_are_no_drift(tmp_path: Path) -> None:
    """Where each day of training had a level of its own, a night may have one, and rows drawn alone would alarm."""
    rng = np.random.default_rng(1)
    days = [
        draw(80, seed, day=rng.normal(0, 0.4)).assign(at=pd.Timestamp("2025-06-01") + pd.Timedelta(days=seed))
        for seed in range(200)
    ]
    table_ = pd.concat(days, ignore_index=True)
    (tmp_path / "by_day").mkdir()
    (tmp_path / "by_row").mkdir()
    by_day = release(tmp_path / "by_day", table_, time="at")
    by_row = release(tmp_path / "by_row", table_, drop=["at"])
    night = {"start": dt.datetime(2026, 1, 1, tzinfo=dt.UTC), "end": dt.datetime(2026, 1, 2, tzinfo=dt.UTC)}
    alarmed = {"day": 0, "row": 0}
    for seed in range(1000, 1030):
        rows = draw(1_000, seed, day=rng.normal(0, 0.4)).assign(at=pd.Timestamp("2026-01-01"))
        alarmed["day"] += look(by_day, rows, **night).state != "quiet"
        alarmed["row"] += look(by_row, rows, **night).state != "quiet"
    assert alarmed["day"] <= 1 < 20 <= alarmed["row"], alarmed


def test_a_release_from_before_there_were_blocks_still_has_thresholds(tmp_path: Path) -> None:
    """Rows are then drawn one by one."""
    directory = release(tmp_path, draw(ROWS))
    (directory / "blocks.npz").unlink()
    assert look(directory, draw(500, 9)).state == "quiet"
    assert look(directory, _moved(draw(2_000, 9))).state == "drift"


def test_tables_are_read_in_pieces_and_errors_are_told(plain: Path, tmp_path: Path) -> None:
    """CSV and Parquet give the same verdict; a file that is none is named."""
    rows = draw(900, 2)
    rows.to_csv(tmp_path / "rows.csv", index=False)
    pq.write_table(pa.Table.from_pandas(rows), tmp_path / "rows.parquet", row_group_size=100)
    found = [detect(plain, table(tmp_path / name), DriftConfig()) for name in ("rows.csv", "rows.parquet")]
    assert [one.state for one in found] == ["quiet", "quiet"]
    near = [{(f.column, f.what): f.value for f in one.findings} for one in found]
    assert near[0] == pytest.approx(near[1])
    (tmp_path / "bad.parquet").write_bytes(b"no parquet at all")
    for name in ("bad.parquet", "none.csv"):
        with pytest.raises(DataError):
            list(table(tmp_path / name))


def test_evidently_is_not_imported(plain: Path, tmp_path: Path) -> None:
    """Nor are scikit-learn, MLflow or Prefect: a quiet night costs little."""
    pq.write_table(pa.Table.from_pandas(draw(500, 2)), tmp_path / "rows.parquet")
    code = (
        "import sys; from pathlib import Path; from towline.config import DriftConfig;"
        "from towline.monitoring.drift import detect, table;"
        f"found = detect(Path({str(plain)!r}), table(Path({str(tmp_path / 'rows.parquet')!r})), DriftConfig());"
        "print(found.state, *[name for name in ('evidently', 'sklearn', 'mlflow', 'prefect') if name in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).split() == ["quiet"]
