"""The status of a model: its champion, predictions, SLOs, drift, quality, events and alarms in one record."""

import datetime as dt
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from towline.config import Frozen, PipelineConfig, Settings
from towline.errors import DataError, ReleaseError, TowlineError
from towline.monitoring.alerts.notifications import read_open_alerts
from towline.monitoring.gain_evidence import GainVerdict, find_last_training, judge_gain, select_windows
from towline.monitoring.journal import Journal
from towline.monitoring.results import DriftResult, GainResult, QualityResult
from towline.monitoring.rollout_history import RolloutEvaluation, read_evaluations
from towline.monitoring.slo.burn_rate import SloStatus
from towline.promotion.approval_decision import ApprovalStatus, list_approvals
from towline.registry.ledger import VERDICTS, Entry, Ledger, open_ledger
from towline.registry.rollouts import ID_LENGTH, active_rollout
from towline.times import to_utc
from towline.training.evaluation.predictions import Interval

MAX_WINDOWS = 60
MAX_GAIN_WINDOWS = 12
MAX_EVALUATIONS = 400  # of a rollout
TRAFFIC_DAYS = 30
MAX_EVENTS = 20
MAX_DRIFT_AGE = dt.timedelta(hours=36)  # of the last drift window

Health = Literal["ok", "warning", "alarm", "unknown"]
#: health → text for people
HEALTH_TEXT: dict[Health, str] = {"ok": "ok", "warning": "warning", "alarm": "alarm", "unknown": "not monitored yet"}


class ChampionStatus(Frozen):
    """The champion.

    Attributes:
        since: time from which it serves.
        trained: time of its training; None if its release is missing.
        estimator, rows, holdout: estimator, training rows and holdout metric of the release.
        previous: version that a rollback would promote.
    """

    version: int
    since: dt.datetime
    trained: dt.datetime | None = None
    estimator: str = ""
    rows: int | None = None
    metric: str = ""
    holdout: Interval | None = None
    previous: int | None = None


class ModelEvent(Frozen):
    """An event of the ledger: a decision, promotion, refusal or rollback.

    Attributes:
        what: name of the event, or action of the decision.
        times: number of equal decisions in a row; ``at`` is the last.
    """

    at: dt.datetime
    what: str
    version: int
    reason: str
    actor: str
    times: int = 1


class FlowStatus(Frozen):
    """The last run of a flow and the time of the next; ``run_id`` is that of the last run in Prefect."""

    flow: str
    run_id: str = ""
    started: dt.datetime | None = None
    state: str = ""
    next: dt.datetime | None = None


class StatusAlarm(Frozen):
    """A current problem, and since when it is known."""

    title: str
    reason: str
    since: dt.datetime | None = None
    severe: bool = True


class ModelStatus(Frozen):
    """The status of one model.

    Attributes:
        at: time of the status.
        traffic: number of predictions by day in UTC, of the last 30 days; days without predictions are left out.
        drift, quality: windows of all versions, oldest first.
        gain: windows in which the gain of a training was measured for the champion, oldest first.
        gain_verdict: whether a training pays; None if it was not measured.
        events: newest first; decisions to do nothing are only counted, in ``idle_decisions``.
        alarms: severe ones first.
        mirror: the versions that were missing in MLflow, and whether they were restored; else empty.
        approvals: versions that wait for approvals of people.
        rollout: the current rollout in one line; empty without one.
        evaluations: of this rollout, or of the last one, oldest first.
        reports: end dates of the windows that have an Evidently report.
    """

    model: str
    at: dt.datetime
    champion: ChampionStatus | None = None
    traffic: Mapping[dt.date, int] = {}
    slos: tuple[SloStatus, ...] = ()
    drift: tuple[DriftResult, ...] = ()
    quality: tuple[QualityResult, ...] = ()
    gain: tuple[GainResult, ...] = ()
    gain_verdict: GainVerdict | None = None
    events: tuple[ModelEvent, ...] = ()
    idle_decisions: int = 0
    flows: tuple[FlowStatus, ...] = ()
    alarms: tuple[StatusAlarm, ...] = ()
    mirror: str = ""
    approvals: tuple[ApprovalStatus, ...] = ()
    rollout: str = ""
    evaluations: tuple[RolloutEvaluation, ...] = ()
    reports: tuple[dt.date, ...] = ()

    @property
    def health(self) -> Health:
        """``alarm`` with a severe alarm, ``unknown`` without a champion or monitoring results."""
        if any(alarm.severe for alarm in self.alarms):
            return "alarm"
        if self.alarms:
            return "warning"
        return "ok" if self.champion and (self.drift or self.quality) else "unknown"


def read_status(
    settings: Settings,
    model: str,
    now: dt.datetime,
    config: PipelineConfig | None = None,
    flows: Sequence[FlowStatus] = (),
) -> ModelStatus:
    """Reads the status of a model from the store, without a server; writes no file.

    Args:
        settings: for the store.
        model: name of the model.
        now: current time.
        config: for the SLOs; default: the config in the champion's release.
        flows: status of its flows, if known.

    Raises:
        ReleaseError: the ledger's rows were changed.
        TransientError: the ledger cannot be read.
    """
    ledger, journal = open_ledger(settings), Journal.of(settings, model)
    rollout = active_rollout(ledger.rows(model))
    entries, champion = ledger.history(model), ledger.champion(model)
    drift, quality = journal.drift(), journal.quality()
    config = config or read_champion_config(settings, champion)
    decisions = [entry for entry in entries if entry.event == "decided"]
    idle = [entry for entry in decisions if entry.evidence.get("action") == "nothing"]
    known_flows = {flow.flow for flow in flows}
    status = ModelStatus(
        model=model,
        at=now,
        champion=_champion_status(settings, ledger, champion),
        traffic=count_predictions(settings.layout.predictions(model), now.date()),
        slos=_slo_statuses(journal, config, quality, now) if config else (),
        drift=tuple(drift[-MAX_WINDOWS:]),
        quality=tuple(quality[-MAX_WINDOWS:]),
        gain=tuple(journal.gain(champion.version)[-MAX_GAIN_WINDOWS:]) if champion else (),
        gain_verdict=judge_champion_gain(journal, champion, decisions, config, now),
        events=_events([entry for entry in entries if entry not in idle and entry.event != "registered"]),
        idle_decisions=len(idle),
        approvals=tuple(each for each in list_approvals(settings, ledger, model) if each.state == "waiting"),
        rollout=rollout.describe() if rollout else "",
        evaluations=_last_evaluations(settings, model, entries),
        reports=_report_dates(journal.folder),
        flows=(*flows, *(flow for flow in _flows(entries, drift, quality) if flow.flow not in known_flows)),
    )
    alarms = _find_alarms(status, decisions[0] if decisions else None, config)
    for alert in read_open_alerts(settings.store, model):
        reported = any(alarm.reason in alert.detail for alarm in alarms) or (alert.kind == "slo" and status.slos)
        if not reported:
            title, severe = alert.title.removeprefix(f"{model}: "), alert.severity == "page"
            alarms.append(StatusAlarm(title=title, reason=alert.detail, since=alert.at, severe=severe))
    return status.model_copy(update={"alarms": tuple(sorted(alarms, key=lambda alarm: not alarm.severe))})


def _last_evaluations(settings: Settings, model: str, entries: Sequence[Entry]) -> tuple[RolloutEvaluation, ...]:
    """The evaluations of the last rollout, from the rows of the ledger, newest first."""
    started = next((entry for entry in entries if entry.event == "rollout_started"), None)
    if started is None:
        return ()
    return tuple(read_evaluations(settings.layout.rollout(model, started.hash[:ID_LENGTH]))[-MAX_EVALUATIONS:])


def count_predictions(folder: Path, today: dt.date) -> dict[dt.date, int]:
    """Counts logged predictions by day, in Parquet files and segments, without locking the log.

    A file that another process removes is not counted.
    """
    if not folder.is_dir():
        return {}
    from towline.prediction_log import parquet_store

    first = today - dt.timedelta(days=TRAFFIC_DAYS - 1)
    counts = Counter(
        {day: count for day, count in parquet_store.count_unconverted(folder).items() if first <= day <= today}
    )
    for part in parquet_store.list_parts(folder, first, today):
        try:
            counts[part.day] += parquet_store.open_part(part.path).metadata.num_rows
        except (DataError, OSError):
            continue
    return dict(sorted(counts.items()))


def read_champion_config(settings: Settings, champion: Entry | None) -> PipelineConfig | None:
    """The config in the champion's release; None if there is none, or if an older towline wrote it."""
    from towline.config import read_config

    try:
        return read_config(settings.layout.release(champion.release) / "config.yaml") if champion else None
    except TowlineError:
        return None


def parse_ledger_time(text: str) -> dt.datetime:
    """A time of the ledger or of a release, in UTC."""
    return to_utc(dt.datetime.fromisoformat(text))


def judge_champion_gain(
    journal: Journal,
    champion: Entry | None,
    entries: Iterable[Entry],
    config: PipelineConfig | None,
    now: dt.datetime,
) -> GainVerdict | None:
    """Whether a training pays, from the measured windows of the champion; None if there are none.

    Args:
        journal: of the model.
        champion: what serves.
        entries: rows of the ledger with its decisions.
        config: for the least gain.
        now: later trainings are ignored.
    """
    if champion is None or config is None or "gain" not in config.retrain.triggers:
        return None
    decisions = (entry for entry in entries if entry.event == "decided")
    windows = select_windows(
        journal.gain(champion.version), parse_ledger_time(champion.time), find_last_training(decisions, now)
    )
    return judge_gain(windows, config.retrain.min_gain)


def _report_dates(folder: Path) -> tuple[dt.date, ...]:
    names = [path.stem.removeprefix("drift-") for path in folder.glob("drift-????-??-??.html")]
    return tuple(sorted(dt.date.fromisoformat(name) for name in names if name.replace("-", "").isdigit()))


def _champion_status(settings: Settings, ledger: Ledger, champion: Entry | None) -> ChampionStatus | None:
    from towline.manifest import read_manifest

    if champion is None:
        return None
    previous = ledger.aliases(champion.model)["previous"]
    status = ChampionStatus(version=champion.version, since=parse_ledger_time(champion.time), previous=previous)
    try:
        manifest = read_manifest(settings.layout.release(champion.release))
    except ReleaseError:
        return status
    return status.model_copy(
        update={
            "trained": parse_ledger_time(manifest.created),
            "estimator": manifest.estimator,
            "rows": manifest.dataset.get("rows"),
            "metric": manifest.primary,
            "holdout": manifest.metrics.get(manifest.primary),
        }
    )


def _slo_statuses(
    journal: Journal, config: PipelineConfig, quality: Sequence[QualityResult], now: dt.datetime
) -> tuple[SloStatus, ...]:
    from towline.monitoring.slo.burn_rate import evaluate_slos
    from towline.monitoring.slo.slo_history import read_history

    history = read_history(journal.folder)
    statuses = evaluate_slos(history, config.slo, now, quality=quality, metric=config.evaluation.metric)
    # if no service was ever scraped, its SLOs are not monitored
    return statuses if history else tuple(status for status in statuses if status.state != "unknown")


def _events(entries: Sequence[Entry]) -> tuple[ModelEvent, ...]:
    """Events, newest first. Equal decisions in a row are merged, and a rollback with the decision that led to it."""
    events: list[ModelEvent] = []
    for event in map(_event, entries):
        last = events[-1] if events else None
        if last and (last.what, last.version, last.reason) == (event.what, event.version, event.reason):
            events[-1] = last.model_copy(update={"times": last.times + 1})
        elif not (last and (event.what, last.what) == ("roll back", "rolled back") and last.reason == event.reason):
            events.append(event)
    return tuple(events[:MAX_EVENTS])


def _event(entry: Entry) -> ModelEvent:
    what = entry.evidence.get("action", "decided") if entry.event == "decided" else entry.event.replace("_", " ")
    reason = entry.reason.removeprefix(f"{what}: ")
    at = parse_ledger_time(entry.time)
    return ModelEvent(at=at, what=what, version=entry.version, reason=reason, actor=entry.actor)


def _flows(
    entries: Sequence[Entry], drift: Sequence[DriftResult], quality: Sequence[QualityResult]
) -> list[FlowStatus]:
    """The last runs of the flows that are recorded in the store."""
    trainings = [entry for entry in entries if entry.event in VERDICTS]
    flows = [
        FlowStatus(flow="training", started=parse_ledger_time(verdict.time), state=verdict.event)
        for verdict in trainings[:1]
    ]
    flows += [FlowStatus(flow="drift", started=window.end, state=window.state) for window in drift[-1:]]
    flows += [FlowStatus(flow="quality", started=window.end, state=window.state) for window in quality[-1:]]
    return flows


def _find_alarms(status: ModelStatus, decision: Entry | None, config: PipelineConfig | None) -> list[StatusAlarm]:
    alarms: list[StatusAlarm] = []
    if status.champion is None:
        alarms.append(StatusAlarm(title="no champion", reason="train a version: towline run CONFIG"))
    version = status.champion.version if status.champion else None
    drift = next((window for window in reversed(status.drift) if window.version == version), None)
    if drift and drift.is_alarm:
        title = "invalid input" if drift.state == "invalid_schema" else "drift"
        alarms.append(StatusAlarm(title=title, reason=drift.reason, since=drift.end))
    quality = next((window for window in reversed(status.quality) if window.version == version), None)
    if quality and quality.state == "degraded":
        alarms.append(StatusAlarm(title="degraded quality", reason=quality.reason, since=quality.end))
    alarms += [
        StatusAlarm(title=f"{slo.name} {slo.state}", reason=slo.reason, severe=slo.state == "burning")
        for slo in status.slos
        if slo.state in ("burning", "exhausted")
    ]
    blocked = decision and decision.evidence.get("action") == "block" and decision.version == version
    if decision and blocked and not (drift and drift.state == "invalid_schema"):
        event = _event(decision)
        alarms.append(StatusAlarm(title="blocked", reason=event.reason, since=event.at))
    last = max((window.end for window in status.drift if window.end), default=None)
    scheduled = config is not None and config.schedule.drift is not None
    if last and scheduled and status.at - last > MAX_DRIFT_AGE:
        reason = f"the last drift window ended {last:%Y-%m-%d %H:%M} UTC"
        alarms.append(StatusAlarm(title="no monitoring", reason=reason, since=last, severe=False))
    return alarms
