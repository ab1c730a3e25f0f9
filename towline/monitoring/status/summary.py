"""How a model does, gathered into one record: what serves, what it is asked, what the watch found and decided."""

import datetime as dt
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from towline.config import Frozen, PipelineConfig, Settings
from towline.errors import DataError, ReleaseError, TowlineError
from towline.monitoring.alerts.notifications import opened
from towline.monitoring.journal import Journal
from towline.monitoring.results import DriftResult, QualityResult
from towline.registry.ledger import Entry, Ledger, open_ledger
from towline.training.evaluation.interval import Interval

NIGHTS = 60
WINDOWS = 60
DAYS = 30  # of traffic
ROWS = 20  # of the ledger
LATE = dt.timedelta(hours=36)  # after it a nightly round is missing

Health = Literal["good", "warn", "bad", "unknown"]


class Champion(Frozen):
    """The version that serves.

    Attributes:
        since: it serves.
        trained: when; None where its release is gone. estimator, rows, holdout: of the same.
        previous: where a rollback would lead.
    """

    version: int
    since: dt.datetime
    trained: dt.datetime | None = None
    estimator: str = ""
    rows: int | None = None
    metric: str = ""
    holdout: Interval | None = None
    previous: int | None = None


class Day(Frozen):
    """Predictions of a day in UTC."""

    day: dt.date
    rows: int


class Traffic(Frozen):
    """What was asked in the last 30 days, also what the services have not written into tables yet."""

    days: tuple[Day, ...] = ()

    @property
    def rows(self) -> int:
        return sum(day.rows for day in self.days)


class Goal(Frozen):
    """A promise of the service: ``budget`` is the share of what may go wrong that is left; None where unknown."""

    name: str
    target: str
    now: str
    budget: float | None
    state: Literal["met", "burning", "spent", "unknown"]
    reason: str = ""


class Step(Frozen):
    """Something that was done about the model: a decision of the watch, a promotion, a refusal, a rollback.

    ``times`` is how often it was decided in a row, for the same reason; ``at`` is the last of these.
    """

    at: dt.datetime
    what: str
    version: int
    reason: str
    actor: str
    times: int = 1


class Run(Frozen):
    """A flow: how its last run ended, and when the next one is due; ``number`` is that of the last run in Prefect."""

    flow: str
    number: str = ""
    started: dt.datetime | None = None
    state: str = ""
    next: dt.datetime | None = None


class Alarm(Frozen):
    """What is wrong now, since when it is known."""

    what: str
    reason: str
    since: dt.datetime | None = None
    bad: bool = True


class Status(Frozen):
    """One model.

    Attributes:
        at: when it was looked at.
        drift, quality: windows, oldest first, of all versions.
        steps: newest first; decisions that came to nothing are only counted, in ``calm``.
        alarms: worst first.
        mirror: what MLflow lacked of it, and what came of that; empty if nothing.
        reports: days of the nights that have a report of Evidently's.
    """

    model: str
    at: dt.datetime
    champion: Champion | None = None
    traffic: Traffic = Traffic()
    goals: tuple[Goal, ...] = ()
    drift: tuple[DriftResult, ...] = ()
    quality: tuple[QualityResult, ...] = ()
    steps: tuple[Step, ...] = ()
    calm: int = 0
    runs: tuple[Run, ...] = ()
    alarms: tuple[Alarm, ...] = ()
    mirror: str = ""
    reports: tuple[dt.date, ...] = ()

    @property
    def health(self) -> Health:
        """``bad`` with an alarm, ``unknown`` where nothing serves or nothing was looked at."""
        if any(alarm.bad for alarm in self.alarms):
            return "bad"
        if self.alarms:
            return "warn"
        return "good" if self.champion and (self.drift or self.quality) else "unknown"


def gather(
    settings: Settings,
    model: str,
    now: dt.datetime,
    config: PipelineConfig | None = None,
    runs: Sequence[Run] = (),
) -> Status:
    """Reads what the store says of a model; no server is asked, and nothing is written.

    Args:
        settings: where the store is.
        model: its name.
        now: the moment.
        config: for the promises; None: the one in the champion's release.
        runs: of its flows, where somebody knows.

    Raises:
        ReleaseError: the ledger's rows are not what was written.
        TransientError: the ledger cannot be read.
    """
    ledger, journal = open_ledger(settings), Journal.of(settings, model)
    rows = ledger.history(model)
    serving = ledger.champion(model)
    drift, quality = journal.drift(), journal.quality()
    config = config or promised(settings, serving)
    decided = [row for row in rows if row.event == "decided"]
    idle = [row for row in decided if row.evidence.get("action") == "nothing"]
    status = Status(
        model=model,
        at=now,
        champion=_champion(settings, ledger, serving),
        traffic=traffic(settings.layout.predictions(model), now.date()),
        goals=_goals(journal, config, quality, now) if config else (),
        drift=tuple(drift[-NIGHTS:]),
        quality=tuple(quality[-WINDOWS:]),
        steps=_steps([row for row in rows if row not in idle and row.event != "registered"]),
        calm=len(idle),
        reports=_reports(journal.folder),
        runs=(*runs, *(run for run in _known(rows, drift, quality) if run.flow not in {one.flow for one in runs})),
    )
    found = _alarms(status, decided[0] if decided else None, config)
    told = [alert for alert in opened(settings.store, model) if not any(one.reason in alert.detail for one in found)]
    found += [
        Alarm(
            what=alert.title.removeprefix(f"{model}: "),
            reason=alert.detail,
            since=alert.at,
            bad=alert.severity == "page",
        )
        for alert in told
        if alert.kind != "slo" or not status.goals
    ]
    return status.model_copy(update={"alarms": tuple(sorted(found, key=lambda alarm: not alarm.bad))})


def traffic(folder: Path, today: dt.date) -> Traffic:
    """Counts of a log without its lock: a part that goes meanwhile is not counted."""
    if not folder.is_dir():
        return Traffic()
    from towline.prediction_log import parquet_store

    first = today - dt.timedelta(days=DAYS - 1)
    rows = Counter(
        {day: count for day, count in parquet_store.count_unconverted(folder).items() if first <= day <= today}
    )
    for part in parquet_store.parts(folder, first, today):
        try:
            rows[part.day] += parquet_store.opened(part.path).metadata.num_rows
        except (DataError, OSError):
            continue
    return Traffic(days=tuple(Day(day=day, rows=count) for day, count in sorted(rows.items())))


def _reports(folder: Path) -> tuple[dt.date, ...]:
    names = [path.stem.removeprefix("drift-") for path in folder.glob("drift-????-??-??.html")]
    return tuple(sorted(dt.date.fromisoformat(name) for name in names if name.replace("-", "").isdigit()))


def _champion(settings: Settings, ledger: Ledger, serving: Entry | None) -> Champion | None:
    from towline.manifest import read_manifest

    if serving is None:
        return None
    known = Champion(
        version=serving.version, since=moment(serving.time), previous=ledger.aliases(serving.model)["previous"]
    )
    try:
        manifest = read_manifest(settings.layout.release(serving.release))
    except ReleaseError:
        return known
    return known.model_copy(
        update={
            "trained": moment(manifest.created),
            "estimator": manifest.estimator,
            "rows": manifest.dataset.get("rows"),
            "metric": manifest.primary,
            "holdout": manifest.metrics.get(manifest.primary),
        }
    )


def promised(settings: Settings, serving: Entry | None) -> PipelineConfig | None:
    """The config in the champion's release."""
    from towline.config import read_config

    try:
        return read_config(settings.layout.release(serving.release) / "config.yaml") if serving else None
    except TowlineError:  # a release of an older towline, or none any more
        return None


def _goals(
    journal: Journal, config: PipelineConfig, quality: Sequence[QualityResult], now: dt.datetime
) -> tuple[Goal, ...]:
    from towline.monitoring.slo import slo_history as looks
    from towline.monitoring.slo.burn_rate import evaluate

    totals = looks.read(journal.folder)
    found = evaluate(totals, config.slo, now, quality=quality, metric=config.evaluation.metric)
    if not totals:  # nobody looks at a service: what it promises is not watched
        found = tuple(one for one in found if one.state != "unknown")
    return tuple(
        Goal(name=one.name, target=one.goal, now=one.shown, budget=one.budget, state=one.state, reason=one.reason)
        for one in found
    )


def _steps(rows: Sequence[Entry]) -> tuple[Step, ...]:
    """What was done, newest first, each thing once.

    The flows of a night decide each for itself, and a rollback is written down after the decision that led to it.
    """
    steps: list[Step] = []
    for step in map(_step, rows):
        last = steps[-1] if steps else None
        if last and (last.what, last.version, last.reason) == (step.what, step.version, step.reason):
            steps[-1] = last.model_copy(update={"times": last.times + 1})
        elif not (last and (step.what, last.what) == ("roll back", "rolled back") and last.reason == step.reason):
            steps.append(step)
    return tuple(steps[:ROWS])


def _step(row: Entry) -> Step:
    what = row.evidence.get("action", "decided") if row.event == "decided" else row.event.replace("_", " ")
    reason = row.reason.removeprefix(f"{what}: ")
    return Step(at=moment(row.time), what=what, version=row.version, reason=reason, actor=row.actor)


def _known(rows: Sequence[Entry], drift: Sequence[DriftResult], quality: Sequence[QualityResult]) -> tuple[Run, ...]:
    """What the store itself knows of the flows' last runs."""
    trained = [row for row in rows if row.event in ("promoted", "refused")]
    runs = [Run(flow="training", started=moment(trained[0].time), state=trained[0].event)] if trained else []
    for flow, windows in (("drift", drift), ("quality", quality)):
        if windows:
            runs.append(Run(flow=flow, started=windows[-1].end, state=windows[-1].state))
    return tuple(runs)


def _alarms(status: Status, decided: Entry | None, config: PipelineConfig | None) -> list[Alarm]:
    """What of all this somebody should know."""
    found: list[Alarm] = []
    if status.champion is None:
        found.append(Alarm(what="no version serves", reason="towline run CONFIG makes one"))
    current = status.champion.version if status.champion else None
    night = next((window for window in reversed(status.drift) if window.version == current), None)
    if night and night.state in ("drift", "invalid_schema"):
        what = "input is broken" if night.state == "invalid_schema" else "drift"
        found.append(Alarm(what=what, reason=night.reason, since=night.end))
    measured = next((window for window in reversed(status.quality) if window.version == current), None)
    if measured and measured.state == "degraded":
        found.append(Alarm(what="quality is bad", reason=measured.reason, since=measured.end))
    found += [
        Alarm(what=f"{goal.name} {goal.state}", reason=goal.reason, bad=goal.state == "burning")
        for goal in status.goals
        if goal.state in ("burning", "spent")
    ]
    blocked = decided and decided.evidence.get("action") == "block" and decided.version == current
    if decided and blocked and not (night and night.state == "invalid_schema"):
        found.append(Alarm(what="blocked", reason=_step(decided).reason, since=moment(decided.time)))
    last = max((window.end for window in status.drift if window.end), default=None)
    scheduled = config is not None and config.schedule.drift is not None
    if last and scheduled and status.at - last > LATE:
        reason = f"the last night that was looked at ended {last:%Y-%m-%d %H:%M} UTC"
        found.append(Alarm(what="no watch", reason=reason, since=last, bad=False))
    return found


def moment(text: str) -> dt.datetime:
    """A time of the ledger or of a release."""
    found = dt.datetime.fromisoformat(text)
    return found.replace(tzinfo=dt.UTC) if found.tzinfo is None else found.astimezone(dt.UTC)
