"""Evidently reports agree with the exact checks, whatever the rows contain."""

import datetime as dt
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.stats import wasserstein_distance

from tests.support.sample_store import MODEL, SampleStore
from towline.config import DataConfig, PipelineConfig, build_config
from towline.data.profile import profile_features
from towline.data.schema.inference import infer_contract
from towline.monitoring.journal import Journal
from towline.monitoring.reporting.evidently_report import add_missing_windows, add_window, write_report
from towline.monitoring.reporting.plot_samples import MAX_ROWS, OTHER, pair_samples, sample_log, sample_profile
from towline.monitoring.results import DriftCheckResult, DriftResult, DriftState
from towline.prediction_log import parquet_store

NOW = dt.datetime(2026, 3, 1, 2, tzinfo=dt.UTC)


def add_report(
    drift: DriftResult,
    reference: pd.DataFrame | None,
    current: pd.DataFrame | None,
    workspace: Path,
    model: str,
    now: dt.datetime,
) -> Path:
    names = [check.column for check in drift.checks]
    pair = None if reference is None or current is None else pair_samples(reference, current, names)
    return add_window(drift, pair, workspace, model, now)


def make_window(day: int = 28, state: DriftState = "drift", **more: Any) -> DriftResult:
    """A window in February; with drift, the column temp has moved."""
    end = dt.datetime(2026, 2, day, tzinfo=dt.UTC)
    moved = state == "drift"
    checks = (
        DriftCheckResult(column="temp", name="distribution", value=0.8 if moved else 0.1, threshold=0.3, alarm=moved),
        DriftCheckResult(column="weather", name="distribution", value=0.05, threshold=0.2, alarm=False),
        DriftCheckResult(column="weather", name="nulls", value=0.0, threshold=None, alarm=False),
    )
    facts: dict[str, Any] = {"version": 3, "rows": 300, "budget": 4.0, "reason": "as told", "checks": checks}
    return DriftResult(state=state, **{**facts, "start": end - dt.timedelta(days=1), "end": end, **more})


def rows(count: int = 300, seed: int = 0) -> pd.DataFrame:
    draw = np.random.default_rng(seed)
    return pd.DataFrame({"temp": draw.normal(15, 5, count), "weather": draw.choice(["clear", "rain"], count)})


def stored(workspace: Path) -> list[tuple[str, Any]]:
    """Every run of every project as (project, run), read by Evidently itself."""
    from evidently.ui.workspace import Workspace

    opened = Workspace.create(str(workspace))
    return [
        (each.name, opened.get_run(each.id, run))
        for each in opened.list_projects()
        for run in opened.list_runs(each.id)
    ]


def statuses(run: Any) -> dict[str, str]:
    return {test.name: test.status.value for result in run.metric_results.values() for test in result.tests}


@pytest.mark.parametrize(
    ("state", "verdict"), [("ok", "SUCCESS"), ("drift", "FAIL"), ("invalid_schema", "FAIL"), ("unknown", "WARNING")]
)
def test_statuses_are_those_of_the_checks(state: DriftState, verdict: str, tmp_path: Path) -> None:
    """Evidently's test statuses are the verdicts of the checks; values and times are those of the checks."""
    drift = make_window(state=state)
    add_report(drift, rows(), rows(seed=1), tmp_path / "evidently", "bikes", NOW)
    [(project, run)] = stored(tmp_path / "evidently")
    assert project == "bikes"
    assert run.timestamp.isoformat() == "2026-02-28T00:00:00"
    assert statuses(run) == {
        "verdict on the window": verdict,
        **{f"{f.column}: {f.name}": "FAIL" if f.alarm else "SUCCESS" for f in drift.checks},
    }
    values = {result.display_name: result.value for result in run.metric_results.values()}
    assert {f"{f.column}: {f.name}": f.value for f in drift.checks}.items() <= values.items()


def test_invalid_columns_fail_without_a_threshold(tmp_path: Path) -> None:
    """A missing column has no threshold, but its test fails."""
    gone = DriftCheckResult(
        column="temp", name="missing", value=1.0, threshold=None, alarm=True, invalid=True, detail="gone"
    )
    drift = make_window(state="invalid_schema", checks=(gone,))
    page = add_report(drift, rows(), rows().drop(columns="temp"), tmp_path / "evidently", "bikes", NOW)
    [(_, run)] = stored(tmp_path / "evidently")
    assert statuses(run) == {"verdict on the window": "FAIL", "temp: missing": "FAIL"}
    assert "Not plotted: temp (missing)" in page.read_text()


def crashing() -> Iterator[tuple[str, Any]]:
    good = rows()
    yield "no rows", good.head(0)
    yield "one row", good.head(1)
    yield "no columns", pd.DataFrame(index=range(300))
    yield "all null", good.assign(temp=np.nan, weather=None)
    yield "all infinite", good.assign(temp=np.inf)
    yield "one infinite", good.assign(temp=[-np.inf, *good["temp"][1:]])
    yield "huge", good.assign(temp=1e308)
    yield "constant", good.assign(temp=4.0, weather="rain")
    yield "a column gone", good.drop(columns="temp")
    yield "a column more", good.assign(new=1)
    yield "a name twice", pd.concat([good, good], axis=1)
    yield "names that are no strings", good.set_axis([0, ("a", "b")], axis=1)
    yield "an index of strings", good.set_axis([f"r{i % 7}" for i in range(300)], axis=0)
    yield "mixed types", good.assign(temp=["x", 1, None] * 100, weather=[1, b"y", [2]] * 100)
    yield "nullable types", good.convert_dtypes().astype({"temp": "Float32", "weather": "category"})
    yield "Arrow types", good.convert_dtypes(dtype_backend="pyarrow")
    yield "unsigned", good.assign(temp=np.arange(300, dtype=np.uint8))
    yield "times", good.assign(temp=pd.date_range("2026", periods=300, tz="UTC"))
    yield "other kinds", good.assign(temp="warm", weather=1.5)
    yield "long texts", good.assign(weather=["rain " * 1000] * 300)
    yield "a thousand levels", good.assign(weather=[f"w{i}" for i in range(300)])
    yield "lone surrogates", good.assign(weather=pd.Series(["\ud800"] * 300, dtype=object))


@pytest.mark.parametrize("current", [pytest.param(table, id=name) for name, table in crashing()])
def test_rows_that_crash_evidently_have_a_report(
    current: pd.DataFrame, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """For any rows there is a page, and a run that Evidently reads, with the verdict."""
    page = add_report(make_window(), rows(), current, tmp_path / "evidently", "bikes", NOW)
    [(_, run)] = stored(tmp_path / "evidently")
    assert statuses(run)["temp: distribution"] == "FAIL"
    assert "Exact checks" in page.read_text()
    assert caplog.text == ""


def test_failing_plots_leave_the_checks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If Evidently's plots fail, the report says so and has the checks."""
    from evidently.metrics.column_statistics import ValueDriftCalculation

    def fail(*_: object) -> None:
        raise ZeroDivisionError("a <b>fault</b> in a view")

    monkeypatch.setattr(ValueDriftCalculation, "calculate", fail)
    page = add_report(make_window(), rows(), rows(seed=1), tmp_path / "evidently", "bikes", NOW)
    assert statuses(stored(tmp_path / "evidently")[0][1])["temp: distribution"] == "FAIL"
    assert "Not plotted: all columns (a \\u2039b\\u203afault" in page.read_text()


def test_the_page_loads_nothing_and_escapes_values(tmp_path: Path) -> None:
    """No address is loaded, and a policy forbids it; a value that is a script stays text."""
    script = "</script><script>alert(1)</script>"
    outcome = DriftCheckResult(
        column=script, name="unseen", value=1.0, threshold=0.1, alarm=True, detail=f"such as {script}"
    )
    current = rows().assign(weather=script, **{script: script})
    drift = make_window(checks=(outcome,), reason=script)
    page = add_report(drift, current, current, tmp_path / "evidently", "bikes", NOW).read_text()
    assert "<script>alert" not in page
    assert "<\\/script><script>alert" not in page
    assert re.findall(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=", page.split("<body>")[0]) == []
    assert "default-src 'none'" in page
    assert script not in next((tmp_path / "evidently").rglob("snapshots/*.json")).read_text()


def test_a_window_is_stored_once(tmp_path: Path) -> None:
    """Missing windows are added in order; a repeated window replaces only its own run."""
    workspace = tmp_path / "evidently"
    quiet = [make_window(day, "ok") for day in range(1, 28)]
    assert add_missing_windows(quiet, workspace, "bikes", NOW) == 27
    assert add_missing_windows(quiet, workspace, "bikes", NOW) == 0
    first = add_report(make_window(), rows(), rows(seed=1), workspace, "bikes", NOW)
    again = add_report(make_window(state="ok"), rows(), rows(seed=2), workspace, "bikes", NOW)
    add_report(make_window(), None, None, workspace, "trees", NOW)
    assert first == again == tmp_path / "monitoring" / "bikes" / "drift-2026-02-28.html"
    runs = stored(workspace)
    assert sorted(name for name, _ in runs) == ["bikes"] * 28 + ["trees"]
    days = sorted((run.timestamp.date(), run.metadata["state"]) for name, run in runs if name == "bikes")
    assert days == [(dt.date(2026, 2, day), "ok") for day in range(1, 29)]


def test_the_dashboard_has_one_line_per_column(tmp_path: Path) -> None:
    """Windows with different values and thresholds are points of one line."""
    from evidently.ui.workspace import Workspace

    workspace = tmp_path / "evidently"
    add_missing_windows([make_window(1, "ok"), make_window(2)], workspace, "bikes", NOW)
    points = {
        json.dumps(result.metric_value_location.metric.params, sort_keys=True)
        for _, run in stored(workspace)
        for result in run.metric_results.values()
    }
    assert len(points) == 1 + len(make_window().checks)
    [project] = Workspace.create(str(workspace)).list_projects()
    texts = {panel.title: panel.values[0].metric for panel in project.dashboard.model().panels}
    assert texts["Distance from the training rows"] == "evidently:metric_v2:DriftScore"
    assert isinstance(project.id, UUID)


def log(folder: Path, version: int, source: str, count: int) -> None:
    """Predictions of one version at noon of the 27th: the size unmodified, the district hashed."""
    path = parquet_store.part_path(folder, dt.date(2026, 2, 27), source, version)
    path.parent.mkdir(parents=True, exist_ok=True)
    noon = dt.datetime(2026, 2, 27, 12, tzinfo=dt.UTC)
    size = pa.field("input.size", pa.float64(), metadata={"kept": "keep"})
    district = pa.field("input.district", pa.string(), metadata={"kept": "hash"})
    time = pa.field("time", pa.timestamp("us", "UTC"))
    schema = pa.schema([size, district, time, ("version", pa.int32()), ("prediction", pa.float64())])
    columns = [[1000.0 * version] * count, ["secret"] * count, [noon] * count, [version] * count, [0.5] * count]
    pq.write_table(pa.table([pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)], schema), path)


def test_the_log_is_sampled(tmp_path: Path) -> None:
    """The sample has at most 5,000 rows of one version and window, evenly from all files, and no hashed column."""
    assert sample_log(tmp_path / "none", 1, None, None).empty
    for source, version, count in (("a", 1, 9_000), ("b", 1, 3_000), ("c", 2, 50)):
        log(tmp_path, version, source, count)
    outcome = sample_log(tmp_path, 1, dt.datetime(2026, 2, 27, tzinfo=dt.UTC), dt.datetime(2026, 2, 28, tzinfo=dt.UTC))
    assert list(outcome.columns) == ["size", "prediction"]
    assert len(outcome) == MAX_ROWS
    assert set(outcome["size"]) == {1000.0}
    assert len(sample_log(tmp_path, 2, None, None)) == 50
    assert sample_log(tmp_path, 2, dt.datetime(2026, 2, 28, tzinfo=dt.UTC), None).empty


def test_a_report_is_written_from_the_store(sample_store: SampleStore) -> None:
    """The reference comes from the release, the current rows from the log; earlier windows are added to the history.

    The report of a compared table has a page, but is not one of the windows.
    """
    settings = sample_store.settings
    config = build_config({"name": MODEL, "data": {"source": "x", "target": "value"}}, "")
    serving = sample_store.ledger.champion(MODEL)
    assert serving
    log(settings.store / "predictions" / MODEL, 1, "a", 300)
    outcome = DriftCheckResult(column="size", name="distribution", value=99.0, threshold=0.3, alarm=True)
    drift = make_window(version=1, checks=(outcome,))
    for each in (make_window(26, "ok", version=1), make_window(27, "ok", version=1), drift):
        Journal.of(settings, MODEL).add(each, NOW)
    page = write_report(settings, config, serving, drift, NOW)
    runs = stored(settings.layout.evidently)
    assert sorted(run.metadata["state"] for _, run in runs) == ["drift", "ok", "ok"]
    assert page.name == "drift-2026-02-28.html"
    text = page.read_text()
    assert "Drift in column 'size'" in text
    assert "secret" not in text
    table = write_report(settings, config, serving, drift.model_copy(update={"start": None, "end": None}), NOW, rows())
    assert (table.name, len(stored(settings.layout.evidently))) == ("drift-2026-03-01-table.html", 3)


def test_sampled_rows_are_distributed_like_the_profile() -> None:
    """Shares of categories and nulls, and the distributions of numbers, are those of the profile."""
    draw = np.random.default_rng(3)
    table = pd.DataFrame(
        {
            "tail": draw.lognormal(0, 1, 20_000),
            "hour": draw.integers(0, 24, 20_000),
            "flag": draw.random(20_000) < 0.2,
            "level": draw.choice(["a", "b"], 20_000, p=[0.9, 0.1]),
            "when": pd.date_range("2020", periods=20_000, freq="h"),
            "y": 1.0,
        }
    )
    table.loc[table.index % 4 == 0, "tail"] = np.nan
    contract = infer_contract(table, PipelineConfig(name="x", data=DataConfig(source="t", target="y")))
    features = contract.features(table)
    outcome = sample_profile(profile_features(features, contract))
    assert len(outcome) == MAX_ROWS
    assert "when" not in outcome
    assert wasserstein_distance(outcome["tail"].dropna(), table["tail"].dropna()) < 0.05 * table["tail"].std()
    assert outcome["tail"].isna().mean() == pytest.approx(0.25, abs=0.001)
    assert set(outcome["hour"]) == set(range(24))
    assert outcome["flag"].mean() == pytest.approx(table["flag"].mean(), abs=0.001)
    assert (outcome["level"] == "a").mean() == pytest.approx((table["level"] == "a").mean(), abs=0.001)
    pd.testing.assert_frame_equal(outcome, sample_profile(profile_features(features, contract)))


def test_samples_are_bounded() -> None:
    """Many rows and columns are sampled, frequent categories keep their names; columns with alarms come first."""
    wide = pd.DataFrame({f"c{i}": np.arange(6_000.0) for i in range(60)} | {"l": [f"v{i % 100}" for i in range(6_000)]})
    made = pair_samples(wide, wide, ["c59", "l"])
    assert made.current.shape == made.reference.shape == (MAX_ROWS, 50)
    assert list(made.current.columns[:2]) == ["c59", "l"]
    assert made.current["l"].nunique() == 31
    assert OTHER in set(made.current["l"])
    assert made.excluded["c58"] == "only 50 columns are plotted"
