"""The Evidently report of a night: exact scores as its metrics, Evidently's own views of a small sample beside them.

Nothing else imports Evidently, which takes seconds: a night without an alarm never comes here. Such nights are added
to the workspace by its web interface, and with the next report.
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
from towline.manifest import verify_release
from towline.monitoring.journal import Journal
from towline.monitoring.reporting.samples import Sides, drawn, logged, plain, sides
from towline.monitoring.results import DriftCheckResult, DriftResult
from towline.monitoring.status.links import evidently_project
from towline.registry.ledger import Entry
from towline.release.reference import read_reference

MOST = 300  # checks of a night that become metrics; they come alarms first
VERDICT = "verdict"
_TABLE = "checks"
_NATS = math.sqrt(math.log(2))  # Evidently's Jensen-Shannon distance has the base e, ours 2
# what the page needs is in it; what a value smuggles in can load nothing
_POLICY = (
    "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; script-src 'unsafe-inline'; "
    "style-src 'unsafe-inline'; img-src data: blob:; font-src data:\">"
)
_logger = logging.getLogger(__name__)


def report(
    drift: DriftResult,
    reference: pd.DataFrame | None,
    current: pd.DataFrame | None,
    workspace: Path,
    model: str,
    at: dt.datetime,
) -> Path:
    """Puts a night into the workspace and writes its page.

    Each check is a metric with a test, whose status says what the check says, and so is the verdict on the night.
    Columns that Evidently cannot take are left out of its views, and so are the views if it fails all the same.

    Args:
        drift: the exact scores.
        reference: rows that stand for the training rows, such as ``samples.drawn``; None: no views.
        current: rows of production; more than 5,000 are sampled.
        workspace: ``evidently`` of the store, made if need be; the model is a project in it.
        model: its name.
        at: when it was looked at, of a night whose rows have no end.

    Returns:
        ``watch/<model>/drift-<date>.html`` beside the workspace: one file that loads nothing.

    Raises:
        TransientError: the store cannot be written.
    """
    _project(workspace, model)
    snapshot, content = _run(drift, _pair(drift, reference, current), at)
    _keep(workspace, model, content, _path(workspace, model, drift, at))
    return _page(snapshot, _folder(workspace, model) / f"drift-{_moment(drift, at):%Y-%m-%d}.html")


def catch_up(nights: Sequence[DriftResult], workspace: Path, model: str, at: dt.datetime) -> int:
    """Adds the nights that the workspace does not have yet, with exact scores alone; returns how many.

    Args:
        nights: of the journal.
        workspace: as for ``report``.
        model: its name.
        at: stands for the end of a night that has none.
    """
    missing = [drift for drift in nights if not _path(workspace, model, drift, at).exists()]
    if missing:
        _project(workspace, model)
        for drift in missing:
            _keep(workspace, model, _run(drift, None, at)[1], _path(workspace, model, drift, at))
    return len(missing)


def write(
    settings: Settings,
    config: PipelineConfig,
    serving: Entry,
    drift: DriftResult,
    now: dt.datetime,
    current: pd.DataFrame | None = None,
) -> Path:
    """The report of a round of the watch; quiet nights that are not in the workspace yet are added to it.

    Args:
        settings: where the store is.
        config: of the model.
        serving: the version that was watched; its release says what training looked like.
        drift: what was found.
        now: the moment of the round.
        current: the rows that were looked at; None: those of the prediction log between ``drift.start`` and ``end``.

    Raises:
        DataError: a part of the log cannot be read.
        ReleaseError: the release is not what its manifest says.
        TransientError: the store cannot be written.
    """
    release, workspace = settings.layout.release(serving.release), settings.layout.evidently
    verify_release(release)
    if current is None and drift.end is not None:
        folder = settings.layout.predictions(config.name)
        current = logged(folder, drift.version, drift.start, drift.end)
    then = read_reference(release)
    reference = pd.concat([drawn(then.profile), drawn(then.answers)], axis=1)
    if drift.end is None:  # a table is no night: it has a page, and no place in the history
        snapshot, _ = _run(drift, _pair(drift, reference, current), now)
        return _page(snapshot, _folder(workspace, config.name) / f"drift-{now:%Y-%m-%d}-table.html")
    catch_up(Journal.of(settings, config.name).drift(before=now), workspace, config.name, now)
    return report(drift, reference, current, workspace, config.name, now)


class _Row(NamedTuple):
    """A check as the metrics read it."""

    column: str
    what: str
    value: float
    status: str
    threshold: float | None
    told: str
    detail: str


def _pair(drift: DriftResult, reference: pd.DataFrame | None, current: pd.DataFrame | None) -> Sides | None:
    if reference is None or current is None:
        return None
    return sides(reference, current, [check.column for check in drift.checks])


def _page(snapshot: Any, path: Path) -> Path:
    return files.write(path, snapshot.get_html_str(as_iframe=False).replace("<head>", f"<head>{_POLICY}", 1))


def _run(drift: DriftResult, pair: Sides | None, at: dt.datetime) -> tuple[Any, str]:
    """The run over the night and how it is stored; without views where they fail."""
    if pair is not None and pair.drawable:
        try:
            return _stored(_computed(drift, pair, at))
        except Exception as error:  # noqa: BLE001 - a view is no reason to lose the scores
            _logger.warning("Evidently's views failed and are left out: %s", error)
            pair = pair._replace(numbers=[], categories=[], left_out={"all columns": plain(error)})
    return _stored(_computed(drift, pair, at))


def _stored(snapshot: Any) -> tuple[Any, str]:
    """A run beside its JSON, which is read once: of one that cannot be read the web interface would not start."""
    from evidently.core.report import Snapshot

    content = json.dumps(json.loads(snapshot.dumps(), parse_constant=lambda _: None))
    Snapshot.loads(content)
    return snapshot, content


def _computed(drift: DriftResult, pair: Sides | None, at: dt.datetime) -> Any:
    from evidently import DataDefinition, Dataset, Report
    from evidently.metrics import ValueDrift

    score, verdict = _metrics()
    rows = [_verdict(drift), *_rows(drift)]
    metrics = [verdict(note=_note(drift, pair)), *(score(column=row.column, what=row.what) for row in rows[1:])]
    current: Any = pd.DataFrame({"rows": [drift.rows]})
    reference: Any = None
    if pair is not None and pair.drawable:
        definition = DataDefinition(numerical_columns=pair.numbers, categorical_columns=pair.categories)
        current = Dataset.from_pandas(pair.current, data_definition=definition)
        reference = Dataset.from_pandas(pair.reference, data_definition=definition)
        limits = {row.column: row.threshold for row in rows if row.what == "distribution"}
        for column in pair.current.columns:
            numeric, limit = column in pair.numbers, limits.get(column)
            method = "wasserstein" if numeric else "jensenshannon"
            limit = 0.1 if limit is None else limit if numeric else limit * _NATS
            metrics.append(ValueDrift(column=column, method=method, threshold=limit))
    run = Report(metrics, metadata={"version": str(drift.version), "state": drift.state}, tags=[drift.state])
    checks = pd.DataFrame(rows, columns=_Row._fields).astype({"value": float, "threshold": float})
    return run.run(
        current, reference, additional_data={_TABLE: checks}, timestamp=_naive(_moment(drift, at)), name=_name(drift)
    )


@functools.cache
def _metrics() -> tuple[type[Any], type[Any]]:
    """Evidently's classes for one score and for the verdict; what they say is read from the run's additional data.

    Values and limits are no parameters: Evidently draws one line for all runs with equal parameters.
    """
    from evidently.core.metric_types import MetricTestResult, SingleValueCalculation, SingleValueMetric, TestStatus
    from evidently.legacy.renderers.html_widgets import table_data, text_widget

    class DriftScore(SingleValueMetric):  # type: ignore[misc]
        column: str
        what: str

    class DriftVerdict(SingleValueMetric):  # type: ignore[misc]
        note: str

        def dict(self, *args: Any, **kwargs: Any) -> Any:
            return {key: value for key, value in super().dict(*args, **kwargs).items() if key != "note"}

    def tested(calculation: Any, result: Any, row: Any) -> None:
        test = MetricTestResult(
            id="drift", name=calculation.display_name(), description=row.told, status=TestStatus(row.status),
            metric_config=calculation.to_metric_config(),
            test_config={} if math.isnan(row.threshold) else {"lt": row.threshold},
        )  # fmt: skip
        result.set_tests([test])

    class _DriftScore(SingleValueCalculation[DriftScore]):  # type: ignore[misc]
        def calculate(self, context: Any, current_data: Any, reference_data: Any) -> Any:  # noqa: ARG002
            table = context.additional_data[_TABLE].as_dataframe()
            found = table[(table["column"] == self.metric.column) & (table["what"] == self.metric.what)]
            row = next(found.itertuples(index=False))
            result = self.result(row.value)
            result.widget = []
            tested(self, result, row)
            return result

        def display_name(self) -> str:
            return f"{self.metric.column}: {self.metric.what}"

    class _DriftVerdict(SingleValueCalculation[DriftVerdict]):  # type: ignore[misc]
        def calculate(self, context: Any, current_data: Any, reference_data: Any) -> Any:  # noqa: ARG002
            row, *rows = context.additional_data[_TABLE].as_dataframe().itertuples(index=False)
            result = self.result(row.value)
            cells = [
                [one.column, one.what, f"{one.value:.4g}", "" if math.isnan(one.threshold) else f"{one.threshold:.4g}",
                 "ALARM" if one.status == "FAIL" else "", one.detail]
                for one in rows
            ]  # fmt: skip
            names = ["column", "what", "value", "alarm from", "", "detail"]
            result.widget = [text_widget(title=row.told, text=self.metric.note)]
            if cells:
                result.widget.append(table_data(title="Exact scores", column_names=names, data=cells))
            tested(self, result, row)
            return result

        def display_name(self) -> str:
            return "verdict on the night"

    return DriftScore, DriftVerdict


def _verdict(drift: DriftResult) -> _Row:
    status = {"ok": "SUCCESS", "unknown": "WARNING"}.get(drift.state, "FAIL")
    alarms = sum(check.alarm or check.invalid for check in drift.checks)
    return _Row("", VERDICT, float(alarms), status, None, _text(f"{drift.state}: {drift.reason}"), "")


def _rows(drift: DriftResult) -> list[_Row]:
    """Alarms first; of two checks of the same thing the first counts."""
    ranked = sorted(drift.checks, key=lambda check: not (check.alarm or check.invalid))
    rows: dict[tuple[str, str], _Row] = {}
    for check in ranked[:MOST]:
        status = "FAIL" if check.alarm or check.invalid else "SUCCESS"
        column, what = plain(check.column), plain(check.name)
        value = check.value if math.isfinite(check.value) else 0.0
        row = _Row(column, what, value, status, check.threshold, _told(check), _text(check.detail))
        rows.setdefault((column, what), row)
    return list(rows.values())


def _told(check: DriftCheckResult) -> str:
    limit = "" if check.threshold is None else f", alarm from {check.threshold:.4g} on"
    return _text(f"{check.value:.4g}{limit}" + (f"; {check.detail}" if check.detail else ""))


def _note(drift: DriftResult, pair: Sides | None) -> str:
    span = f", {drift.start:%Y-%m-%d %H:%M} to {drift.end:%Y-%m-%d %H:%M}" if drift.start and drift.end else ""
    told = [f"{drift.rows:,} rows{span}, against the training rows of version {drift.version}."]
    told.append(f"At most {drift.budget:g} nights a year alarm with nothing changed.")
    if len(drift.checks) > MOST:
        told.append(f"The first {MOST} of {len(drift.checks):,} checks are shown.")
    if pair is not None and pair.drawable:
        told.append(
            f"The plots below rest on {len(pair.current):,} of these rows, and on {len(pair.reference):,} drawn from "
            "the release's profile, column by column. They illustrate; the verdict is that of the exact scores."
        )
    if pair is not None and pair.left_out:
        names = [f"{name} ({why})" for name, why in list(pair.left_out.items())[:20]]
        more = f" and {len(pair.left_out) - 20} more" if len(pair.left_out) > 20 else ""
        told.append(f"Not drawn: {', '.join(names)}{more}.")
    return " ".join(told)


def _text(told: str) -> str:
    """Words and examples from requests: longer than a name, and as harmless."""
    return " ".join(plain(word) for word in told.split())[:500]


def _project(workspace: Path, model: str) -> None:
    """Makes the model's project with its dashboard, unless it is there."""
    from evidently.sdk.models import PanelMetric, ProjectModel
    from evidently.sdk.panels import bar_plot_panel, line_plot_panel
    from evidently.ui.workspace import Workspace

    project = evidently_project(model)
    with files.disk(workspace):
        workspace.mkdir(parents=True, exist_ok=True)
        with files.locked(workspace.with_name(f".{workspace.name}.lock")):
            opened = Workspace.create(str(workspace))
            if opened.get_project(project) is not None:
                return
            told = f"Drift of {model}, night by night: exact scores of all rows."
            made = opened.add_project(ProjectModel(id=project, name=model, description=told))

            def lines(what: str, legend: str) -> Any:
                return PanelMetric(legend=legend, metric="DriftScore", metric_labels={"what": what})

            alarms = PanelMetric(legend="alarms", metric="DriftVerdict")
            shares = [lines(what, f"{{{{column}}}}: {what}") for what in ("nulls", "unseen", "out of range", "unfit")]
            far = "in standard deviations (numbers), Jensen-Shannon distance (categories)"
            panels = [
                bar_plot_panel("Alarms", [alarms], "checks of a night that are beyond their threshold"),
                line_plot_panel("Distance from the training rows", [lines("distribution", "{{column}}")], far),
                line_plot_panel(
                    "Nulls, unseen categories, out of range, not of their kind", shares, "share of the rows"
                ),
            ]
            for panel in panels:
                made.dashboard.add_panel(panel, tab="Drift")


def _keep(workspace: Path, model: str, content: str, path: Path) -> None:
    """Writes a run; the same night again takes its place.

    It is written beside the workspace and moved into it, whole: a server that watches the folder reads what appears.
    """
    begun = files.write(_folder(workspace, model) / f".{path.name}", content)
    with files.disk(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        begun.replace(path)


def _path(workspace: Path, model: str, drift: DriftResult, at: dt.datetime) -> Path:
    project = evidently_project(model)
    run = uuid.uuid5(project, f"{drift.version} {_moment(drift, at).isoformat()}")
    return workspace / str(project) / "snapshots" / f"{run}.json"


def _folder(workspace: Path, model: str) -> Path:
    return workspace.parent / "watch" / model


def _moment(drift: DriftResult, at: dt.datetime) -> dt.datetime:
    moment = drift.end or at
    return moment.replace(tzinfo=dt.UTC) if moment.tzinfo is None else moment.astimezone(dt.UTC)


def _naive(moment: dt.datetime) -> dt.datetime:
    """Evidently compares times without a zone."""
    return moment.replace(tzinfo=None)


def _name(drift: DriftResult) -> str:
    end = f" {drift.end:%Y-%m-%d}" if drift.end else ""
    return f"version {drift.version}{end}: {drift.state}"
