"""Evidently reports of drift results: the exact checks as metrics, and Evidently's plots of a sample.

Only windows with an alarm get a report immediately: importing Evidently takes seconds. Other windows are added to
Evidently's workspace with the next report, or by the web interface.
"""

import datetime as dt
import functools
import json
import logging
import math
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from towline import files
from towline.config import PipelineConfig, Settings
from towline.formatting import shorten_list
from towline.manifest import verify_release
from towline.monitoring.journal import Journal
from towline.monitoring.reporting.plot_samples import SamplePair, pair_samples, plain_text, sample_log, sample_profile
from towline.monitoring.results import DriftResult
from towline.monitoring.status.links import evidently_project
from towline.registry.ledger import Entry
from towline.release.reference import read_reference
from towline.store import StoreLayout
from towline.times import to_utc

MAX_CHECKS = 300  # of a window that become metrics, alarms first
MAX_EXCLUDED = 20  # columns named in the note
VERDICT = "verdict"
_CHECKS_TABLE = "checks"
_BASE_2_TO_E = math.sqrt(math.log(2))  # Evidently's Jensen-Shannon distance uses base e, ours base 2
# the page is complete; no address in a value can be loaded
_CONTENT_SECURITY_POLICY = (
    "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; script-src 'unsafe-inline'; "
    "style-src 'unsafe-inline'; img-src data: blob:; font-src data:\">"
)
_logger = logging.getLogger(__name__)


def write_report(
    settings: Settings,
    config: PipelineConfig,
    champion: Entry,
    drift: DriftResult,
    now: dt.datetime,
    current: pd.DataFrame | None = None,
) -> Path:
    """Writes the report of a monitoring run as one HTML file, and adds it to Evidently's workspace.

    Columns that Evidently cannot plot are left out of its plots. If it fails all the same, there are no plots.

    Args:
        settings: for the store.
        config: the model's config.
        champion: version that was monitored; its release describes the training rows.
        drift: result of the run.
        now: time of the run.
        current: the checked rows; default: those of the prediction log between ``drift.start`` and ``drift.end``.

    Returns:
        The path of the report.

    Raises:
        DataError: a part of the log cannot be read.
        ReleaseError: the release does not match its manifest.
        TransientError: the store cannot be written.
    """
    release, layout = settings.layout.release(champion.release), settings.layout
    verify_release(release)
    if current is None and drift.end is not None:
        current = sample_log(layout.predictions(config.name), drift.version, drift.start, drift.end)
    reference = read_reference(release)
    samples = pd.concat([sample_profile(reference.profile), sample_profile(reference.answers)], axis=1)
    pair = None if current is None else pair_samples(samples, current, [check.column for check in drift.checks])
    if drift.end is None:  # a file is not a window: it has a page, but no place in the history
        return _write_page(_run(drift, pair, now).snapshot, layout.drift_report(config.name, f"{now:%Y-%m-%d}-table"))
    add_missing_windows(Journal.of(settings, config.name).drift(before=now), layout.evidently, config.name, now)
    return add_window(drift, pair, layout.evidently, config.name, now)


def add_window(drift: DriftResult, pair: SamplePair | None, workspace: Path, model: str, now: dt.datetime) -> Path:
    """Adds a window to the workspace and writes its page.

    Every check is a metric with a test that has the check's outcome, and so is the verdict on the window.

    Args:
        drift: result of the window.
        pair: samples to plot; None: no plots.
        workspace: Evidently's workspace, created if needed; the model is a project in it.
        model: name of the model.
        now: the end of a window without an end.

    Returns:
        The path of the page.

    Raises:
        TransientError: the store cannot be written.
    """
    _create_project(workspace, model)
    run = _run(drift, pair, now)
    _store_run(workspace, model, run.content, _run_path(workspace, model, drift, now))
    layout = StoreLayout(workspace.parent)
    return _write_page(run.snapshot, layout.drift_report(model, f"{_window_time(drift, now):%Y-%m-%d}"))


def add_missing_windows(windows: Sequence[DriftResult], workspace: Path, model: str, now: dt.datetime) -> int:
    """Adds the windows that the workspace does not have yet, without plots; returns their number.

    Args:
        windows: results of the journal.
        workspace: Evidently's workspace, created if needed.
        model: name of the model.
        now: the end of a window without an end.
    """
    missing = [drift for drift in windows if not _run_path(workspace, model, drift, now).exists()]
    if missing:
        _create_project(workspace, model)
        for drift in missing:
            _store_run(workspace, model, _run(drift, None, now).content, _run_path(workspace, model, drift, now))
    return len(missing)


class _MetricRow(NamedTuple):
    """A check as the metrics read it."""

    column: str
    name: str
    value: float
    status: str
    threshold: float | None
    description: str
    detail: str


class _Run(NamedTuple):
    """An Evidently snapshot and its JSON."""

    snapshot: Any
    content: str


def _write_page(snapshot: Any, path: Path) -> Path:
    html = snapshot.get_html_str(as_iframe=False)
    return files.write(path, html.replace("<head>", f"<head>{_CONTENT_SECURITY_POLICY}", 1))


def _run(drift: DriftResult, pair: SamplePair | None, now: dt.datetime) -> _Run:
    """Runs the report; without plots if they fail."""
    if pair is not None and pair.has_columns:
        try:
            return _serialize(_compute_snapshot(drift, pair, now))
        except Exception as error:  # noqa: BLE001 - the checks are kept if a plot fails
            _logger.warning("Evidently's plots failed and are left out: %s", error)
            pair = pair._replace(numbers=[], categories=[], excluded={"all columns": plain_text(error)})
    return _serialize(_compute_snapshot(drift, pair, now))


def _serialize(snapshot: Any) -> _Run:
    """The JSON is loaded once: with a snapshot that cannot be read, the web interface would not start."""
    from evidently.core.report import Snapshot

    content = json.dumps(json.loads(snapshot.dumps(), parse_constant=lambda _: None))
    Snapshot.loads(content)
    return _Run(snapshot, content)


def _compute_snapshot(drift: DriftResult, pair: SamplePair | None, now: dt.datetime) -> Any:
    from evidently import DataDefinition, Dataset, Report
    from evidently.metrics import ValueDrift

    score, verdict = _metric_types()
    rows = [_verdict_row(drift), *_check_rows(drift)]
    metrics = [verdict(note=_note(drift, pair)), *(score(column=row.column, what=row.name) for row in rows[1:])]
    current: Any = pd.DataFrame({"rows": [drift.rows]})
    reference: Any = None
    if pair is not None and pair.has_columns:
        definition = DataDefinition(numerical_columns=pair.numbers, categorical_columns=pair.categories)
        current = Dataset.from_pandas(pair.current, data_definition=definition)
        reference = Dataset.from_pandas(pair.reference, data_definition=definition)
        thresholds = {row.column: row.threshold for row in rows if row.name == "distribution"}
        for column in pair.current.columns:
            numeric, threshold = column in pair.numbers, thresholds.get(column)
            method = "wasserstein" if numeric else "jensenshannon"
            threshold = 0.1 if threshold is None else threshold if numeric else threshold * _BASE_2_TO_E
            metrics.append(ValueDrift(column=column, method=method, threshold=threshold))
    report = Report(metrics, metadata={"version": str(drift.version), "state": drift.state}, tags=[drift.state])
    table = pd.DataFrame(rows, columns=_MetricRow._fields).astype({"value": float, "threshold": float})
    end = f" {drift.end:%Y-%m-%d}" if drift.end else ""
    return report.run(
        current,
        reference,
        additional_data={_CHECKS_TABLE: table},
        timestamp=_window_time(drift, now).replace(tzinfo=None),  # Evidently compares times without a time zone
        name=f"version {drift.version}{end}: {drift.state}",
    )


@functools.cache
def _metric_types() -> tuple[type[Any], type[Any]]:
    """Evidently's metric classes for a check and for the verdict; their values come from the run's additional data.

    Values and thresholds are not parameters: Evidently draws one line for all runs with equal parameters.
    """
    from evidently.core.metric_types import (
        BaseWidgetInfo,
        MetricTestResult,
        SingleValueCalculation,
        SingleValueMetric,
        TestStatus,
    )

    class DriftScore(SingleValueMetric):  # type: ignore[misc]
        column: str
        what: str

    class DriftVerdict(SingleValueMetric):  # type: ignore[misc]
        note: str

        def dict(self, *args: Any, **kwargs: Any) -> Any:
            return {key: value for key, value in super().dict(*args, **kwargs).items() if key != "note"}

    def add_test(calculation: Any, result: Any, row: Any) -> None:
        test = MetricTestResult(
            id="drift", name=calculation.display_name(), description=row.description, status=TestStatus(row.status),
            metric_config=calculation.to_metric_config(),
            test_config={} if math.isnan(row.threshold) else {"lt": row.threshold},
        )  # fmt: skip
        result.set_tests([test])

    class _DriftScore(SingleValueCalculation[DriftScore]):  # type: ignore[misc]
        def calculate(self, context: Any, current_data: Any, reference_data: Any) -> Any:  # noqa: ARG002
            table = context.additional_data[_CHECKS_TABLE].as_dataframe()
            selected = table[(table["column"] == self.metric.column) & (table["name"] == self.metric.what)]
            row = next(selected.itertuples(index=False))
            result = self.result(row.value)
            result.widget = []
            add_test(self, result, row)
            return result

        def display_name(self) -> str:
            return f"{self.metric.column}: {self.metric.what}"

    class _DriftVerdict(SingleValueCalculation[DriftVerdict]):  # type: ignore[misc]
        def calculate(self, context: Any, current_data: Any, reference_data: Any) -> Any:  # noqa: ARG002
            verdict, *checks = context.additional_data[_CHECKS_TABLE].as_dataframe().itertuples(index=False)
            result = self.result(verdict.value)
            text = {"text": self.metric.note}
            result.widget = [BaseWidgetInfo(title=verdict.description, type="text", size=2, params=text)]
            if checks:
                header = ["column", "check", "value", "threshold", "", "detail"]
                table = {"header": header, "data": [_table_cells(row) for row in checks]}
                result.widget.append(BaseWidgetInfo(title="Exact checks", type="table", size=2, params=table))
            add_test(self, result, verdict)
            return result

        def display_name(self) -> str:
            return "verdict on the window"

    return DriftScore, DriftVerdict


def _table_cells(row: Any) -> list[str]:
    threshold = "" if math.isnan(row.threshold) else f"{row.threshold:.4g}"
    return [row.column, row.name, f"{row.value:.4g}", threshold, "ALARM" if row.status == "FAIL" else "", row.detail]


def _verdict_row(drift: DriftResult) -> _MetricRow:
    status = {"ok": "SUCCESS", "unknown": "WARNING"}.get(drift.state, "FAIL")
    alarms = sum(check.alarm or check.invalid for check in drift.checks)
    description = _plain_words(f"{drift.state}: {drift.reason}")
    return _MetricRow("", VERDICT, float(alarms), status, None, description, "")


def _check_rows(drift: DriftResult) -> list[_MetricRow]:
    """Alarms first; of two results of the same check of a column, the first counts."""
    ranked = sorted(drift.checks, key=lambda check: not (check.alarm or check.invalid))
    rows: dict[tuple[str, str], _MetricRow] = {}
    for check in ranked[:MAX_CHECKS]:
        status = "FAIL" if check.alarm or check.invalid else "SUCCESS"
        column, name = plain_text(check.column), plain_text(check.name)
        value = check.value if math.isfinite(check.value) else 0.0
        threshold = "" if check.threshold is None else f", threshold {check.threshold:.4g}"
        description = f"{check.value:.4g}{threshold}" + (f"; {check.detail}" if check.detail else "")
        texts = _plain_words(description), _plain_words(check.detail)
        row = _MetricRow(column, name, value, status, check.threshold, *texts)
        rows.setdefault((column, name), row)
    return list(rows.values())


def _note(drift: DriftResult, pair: SamplePair | None) -> str:
    span = f", {drift.start:%Y-%m-%d %H:%M} to {drift.end:%Y-%m-%d %H:%M}" if drift.start and drift.end else ""
    sentences = [f"{drift.rows:,} rows{span}, compared with the training rows of version {drift.version}."]
    sentences.append(f"Without drift, at most {drift.budget:g} windows per year raise an alarm.")
    if len(drift.checks) > MAX_CHECKS:
        sentences.append(f"The first {MAX_CHECKS} of {len(drift.checks):,} checks are shown.")
    if pair is not None and pair.has_columns:
        sentences.append(
            f"The plots below show a sample of {len(pair.current):,} rows, and {len(pair.reference):,} rows drawn from "
            "the release's profile, column by column. They only illustrate; the exact checks give the verdict."
        )
    if pair is not None and pair.excluded:
        names = [f"{name} ({why})" for name, why in pair.excluded.items()]
        sentences.append(f"Not plotted: {shorten_list(names, MAX_EXCLUDED)}.")
    return " ".join(sentences)


def _plain_words(text: str) -> str:
    """Like ``plain_text``, for texts longer than a name."""
    return " ".join(plain_text(word) for word in text.split())[:500]


def _create_project(workspace: Path, model: str) -> None:
    """Creates the model's project with its dashboard, unless it exists."""
    from evidently.sdk.models import PanelMetric, ProjectModel
    from evidently.sdk.panels import bar_plot_panel, line_plot_panel
    from evidently.ui.workspace import Workspace

    def lines(name: str, legend: str) -> Any:
        return PanelMetric(legend=legend, metric="DriftScore", metric_labels={"what": name})

    project = evidently_project(model)
    with files.disk(workspace):
        workspace.mkdir(parents=True, exist_ok=True)
        with files.exclusive_lock(workspace.with_name(f".{workspace.name}.lock")):
            opened = Workspace.create(str(workspace))
            if opened.get_project(project) is not None:
                return
            description = f"Drift of {model} by window: exact checks of all rows."
            created = opened.add_project(ProjectModel(id=project, name=model, description=description))
            alarms = PanelMetric(legend="alarms", metric="DriftVerdict")
            share_checks = ("nulls", "unseen categories", "out of range", "wrong type")
            shares = [lines(name, f"{{{{column}}}}: {name}") for name in share_checks]
            units = "in standard deviations (numbers), Jensen-Shannon distance (categories)"
            panels = [
                bar_plot_panel("Alarms", [alarms], "checks of a window that exceed their threshold"),
                line_plot_panel("Distance from the training rows", [lines("distribution", "{{column}}")], units),
                line_plot_panel("Nulls, unseen categories, out of range, wrong type", shares, "share of the rows"),
            ]
            for panel in panels:
                created.dashboard.add_panel(panel, tab="Drift")


def _store_run(workspace: Path, model: str, content: str, path: Path) -> None:
    """Stores a run; the same window replaces the earlier run.

    The file is moved into the workspace complete: a server that watches the folder reads new files immediately.
    """
    draft = files.write(StoreLayout(workspace.parent).monitoring(model) / f".{path.name}", content)
    with files.disk(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.replace(path)


def _run_path(workspace: Path, model: str, drift: DriftResult, now: dt.datetime) -> Path:
    project = evidently_project(model)
    run = uuid.uuid5(project, f"{drift.version} {_window_time(drift, now).isoformat()}")
    return workspace / str(project) / "snapshots" / f"{run}.json"


def _window_time(drift: DriftResult, now: dt.datetime) -> dt.datetime:
    return to_utc(drift.end or now)
