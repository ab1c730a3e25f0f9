"""A round of the watch: which rows are looked at, what is known then, and what was decided.

Windows follow each other without a gap. One that says nothing (too few rows, too few labels) is not closed: the next
round looks at its rows together with those that came since.
"""

import datetime as dt
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from towline.config import PipelineConfig, Settings
from towline.data import sources
from towline.data.schema.contract import Contract
from towline.errors import PromotionRejectedError
from towline.manifest import Recorded, verify
from towline.monitoring.drift.clock_check import WHAT, Clock
from towline.monitoring.drift.detector import current, detect, table
from towline.monitoring.journal import Journal
from towline.monitoring.performance.champion_comparison import triage as compare
from towline.monitoring.performance.estimate import estimate
from towline.monitoring.performance.quality import measure
from towline.monitoring.policy import Decision, Evidence, decide
from towline.monitoring.results import ChampionComparison, DriftResult, QualityResult
from towline.prediction_log import labels
from towline.prediction_log.privacy import HASH_KEYS, HashKeys, read_policy
from towline.registry.ledger import Entry, actor, champion_of, open_ledger

NIGHT = dt.timedelta(days=1)
Window = TypeVar("Window", DriftResult, QualityResult)

SLACK = dt.timedelta(hours=1)  # a daily round does not come to the second
LONGEST = 30  # of a window that goes on because it says nothing, in nights or quality windows


def moment(as_of: dt.datetime | None) -> dt.datetime:
    """The time of a round, in UTC; a time without a zone is UTC."""
    if as_of is None:
        return dt.datetime.now(dt.UTC)
    return as_of.replace(tzinfo=dt.UTC) if as_of.tzinfo is None else as_of.astimezone(dt.UTC)


def champion(settings: Settings, model: str, now: dt.datetime) -> Entry:
    """The row that made the champion of that moment so.

    Raises:
        PromotionRejectedError: no version served then.
    """
    rows = [row for row in open_ledger(settings).history(model) if dt.datetime.fromisoformat(row.time) <= now]
    found = champion_of(rows[::-1])
    if found is None:
        raise PromotionRejectedError(
            f"no version of {model} serves", where=model, remedy="towline run CONFIG makes one"
        )
    return found


def drift(settings: Settings, config: PipelineConfig, serving: Entry, now: dt.datetime) -> DriftResult:
    """The rows that the champion answered since the last night that said something, against its training rows.

    Raises:
        ReleaseError: the champion's release is not what its manifest says.
        TransientError: the log's folder cannot be written, which its lock needs.
    """
    release = settings.layout.release(serving.release)
    verify(release)
    journal = Journal.of(settings, config.name)
    closed = _closed(journal.drift(serving.version, now), serving)
    start = _start(closed, serving, now, NIGHT)
    clock = Clock(start, now, dt.datetime.now(dt.UTC))
    clock.rounds(journal.drift(), dt.datetime.now(dt.UTC))
    log = _log(settings, config.name, release)
    kept = [field.name for field in log.fields if field.kept == "keep"]
    contract = Contract.read(release)
    positive = None if contract.positive is None else contract.classes.index(contract.positive)
    batches = current(log.predictions, serving.version, start, now, log.fields, positive, clock)
    return detect(release, batches, config.drift, start=start, end=now, columns=kept, clock=clock)


def drift_of(settings: Settings, config: PipelineConfig, serving: Entry, file: Path) -> DriftResult:
    """The rows of a table against the champion's training rows.

    Raises:
        DataError: the table cannot be read.
        ReleaseError: as ``drift``.
    """
    release = settings.layout.release(serving.release)
    verify(release)
    return detect(release, rows_of(settings, config, serving, file), config.drift)


def rows_of(
    settings: Settings, config: PipelineConfig, serving: Entry, file: Path
) -> Iterator[pa.Table | pa.RecordBatch]:
    """The rows of a table, some at a time, read as the champion's contract says.

    Raises:
        DataError: the table cannot be read.
    """
    contract = Contract.read(settings.layout.release(serving.release))
    return table(file, contract, config.data.separator)


def quality(settings: Settings, config: PipelineConfig, serving: Entry, now: dt.datetime) -> QualityResult:
    """The predictions since the last window that said something, as far as their labels are due.

    Raises:
        DataError: a part of the log cannot be read.
        ReleaseError, TransientError: as ``drift``.
    """
    release = settings.layout.release(serving.release)
    verify(release)
    journal, due = Journal.of(settings, config.name), now - config.quality.delay
    past = journal.quality(serving.version, due)
    start = _start(_closed(past, serving), serving, due, config.quality.window)
    rows = labels.read(_log(settings, config.name, release), start, now)
    # of a champion younger than the delay no label is due: an empty window, not one that ends before it begins
    found = measure(rows, release, config, start=start, end=max(start, due), now=now)
    nights = journal.drift(serving.version)
    coming = rows.filter(pc.greater_equal(rows["time"], pa.scalar(due, rows["time"].type)))
    guess = estimate(coming, release, config, nights[-1] if nights else None, [*past, found])
    if due < (until := start + config.quality.window - SLACK):
        open_ = f"the window lasts until {until + SLACK:%Y-%m-%d %H:%M}; so far: {found.reason}"
        found = found.model_copy(update={"state": "unknown", "reason": open_})
    return found.model_copy(update={"estimate": guess})


def triage(settings: Settings, config: PipelineConfig, serving: Entry, seen: Evidence) -> ChampionComparison | None:
    """The champion and the one before it on the labelled rows of the last window, where that is bad.

    Raises:
        DataError: a part of the log cannot be read.
    """
    if not seen.quality or seen.quality[-1].state != "degraded":
        return None
    window, ledger = seen.quality[-1], open_ledger(settings)
    try:
        earlier = ledger.rollback_target(config.name)
    except PromotionRejectedError:
        previous = None
    else:
        previous = Recorded(settings.layout.release(earlier.release), ledger.digest(earlier))
    release = settings.layout.release(serving.release)
    table = labels.read(_log(settings, config.name, release), window.start, window.end)
    champion = Recorded(release, ledger.digest(serving))
    return compare(table, champion, previous, config, seen.drift[-1] if seen.drift else None)


def evidence(
    settings: Settings, config: PipelineConfig, serving: Entry, now: dt.datetime, breach: str = ""
) -> Evidence:
    """What the journal and the ledger say at a moment; triage and new rows are added by who has them."""
    journal, ledger = Journal.of(settings, config.name), open_ledger(settings)
    after = now + dt.timedelta(microseconds=1)
    nights = journal.drift(serving.version, after)
    known = _closed(nights, serving)
    odd = [check.detail for night in nights if night.end == now for check in night.checks if check.name == WHAT]
    measured = _closed(journal.quality(serving.version, after), serving)
    try:
        previous: int | None = ledger.rollback_target(config.name).version
    except PromotionRejectedError:
        previous = None
    decided = [dt.datetime.fromisoformat(row.evidence["at"]) for row in ledger.decisions(config.name)
               if row.evidence.get("action") == "retrain"]  # fmt: skip
    return Evidence(
        now=now,
        champion=serving.version,
        since=dt.datetime.fromisoformat(serving.time),
        previous=previous,
        drift=tuple(known[-config.retrain.of :]),
        quality=tuple(measured[-config.retrain.of :]),
        trained=max((at for at in decided if at < now), default=None),
        breach=breach,
        clock="; ".join(odd),
        on_breach=config.slo.on_breach,
    )


def conclude(settings: Settings, config: PipelineConfig, serving: Entry, seen: Evidence) -> Decision:
    """Decides, and writes the decision with its evidence into the ledger; once for a cause.

    Before a training is decided its new rows are counted, which reads the source.

    Raises:
        DataError, TransientError: the source cannot be read.
    """
    decision = decide(seen, config.retrain)
    if decision.action == "retrain" and seen.new_rows is None:
        seen = seen.model_copy(update={"new_rows": new_rows(settings, config, serving, seen.now)})
        decision = decide(seen, config.retrain)
    facts = {
        "action": decision.action,
        "trigger": decision.trigger,
        "at": seen.now.isoformat(),
        "drift": [window.model_dump(mode="json", exclude={"checks"}) for window in seen.drift],
        "alarms": [f.model_dump(mode="json") for f in seen.drift[-1].checks if f.alarm][:20] if seen.drift else [],
        "quality": [window.model_dump(mode="json", exclude={"slices"}) for window in seen.quality],
        "triage": seen.triage.model_dump(mode="json") if seen.triage else None,
        "new_rows": seen.new_rows,
        "breach": seen.breach,
    }
    told = f"{decision.action}: {decision.reason}"
    open_ledger(settings).decide(config.name, actor(), told, facts, decision.cause)
    return decision


def new_rows(settings: Settings, config: PipelineConfig, serving: Entry, now: dt.datetime) -> int:
    """Rows of the source that the champion's table did not have: by time where there is one, else by their number."""
    trained = verify(settings.layout.release(serving.release)).dataset
    data, store = config.data, settings.store
    dataset = sources.load(data, settings.project, store, now.replace(tzinfo=None), config.privacy.pii)
    try:
        if dataset.digest == trained["digest"]:
            return 0
        if not (data.time and trained["end"]):
            return max(0, dataset.rows - int(trained["rows"]))
        times = pq.read_table(store / dataset.path, columns=[data.time])[data.time].to_pandas()
        return int((pd.to_datetime(times) > pd.Timestamp(trained["end"])).sum())
    finally:
        sources.drop(dataset, data, store)


def _closed(windows: Sequence[Window], serving: Entry) -> list[Window]:
    """Those that said something, since the champion serves: what it did before it was rolled back to is over."""
    since = dt.datetime.fromisoformat(serving.time)
    return [window for window in windows if window.state != "unknown" and window.end and window.end > since]


def _start(closed: Sequence[Window], serving: Entry, end: dt.datetime, length: dt.timedelta) -> dt.datetime:
    """The end of the last closed window, or the champion's first moment; not longer ago than 30 windows."""
    last = closed[-1].end if closed else None
    return max(last or dt.datetime.fromisoformat(serving.time), end - LONGEST * length)


def _log(settings: Settings, model: str, release: Path) -> labels.Log:
    contract = Contract.read(release)
    predictions = settings.layout.predictions(model)
    policy = read_policy(release, contract, HashKeys(predictions / HASH_KEYS))
    return labels.Log(predictions, settings.layout.labels(model), policy.fields)
