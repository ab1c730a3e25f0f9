"""A monitoring run: selects the window, measures drift or quality, gathers the evidence and records a decision.

Windows follow each other without a gap. A window whose state is unknown (too few rows, too few labels) stays open: the
next run checks its rows together with the newer ones. A run takes ``as_of`` and repeats the same window if it is run
again.
"""

import datetime as dt
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from towline.config import PipelineConfig, Settings
from towline.data.schema.contract import Contract
from towline.data.source import sources
from towline.errors import PromotionRejectedError
from towline.manifest import ReleaseLocation, verify_release
from towline.monitoring.drift.current_rows import read_log, read_table
from towline.monitoring.drift.detector import detect
from towline.monitoring.drift.row_checks import ClockCheck
from towline.monitoring.gain_evidence import find_last_training, select_windows
from towline.monitoring.journal import Journal
from towline.monitoring.performance import champion_comparison
from towline.monitoring.performance.estimate import estimate_performance
from towline.monitoring.performance.quality import measure_quality
from towline.monitoring.performance.retraining_gain import measure_gain
from towline.monitoring.policy import Decision, Evidence, decide
from towline.monitoring.results import CLOCK, ChampionComparison, DriftResult, GainResult, QualityResult
from towline.prediction_log import labels
from towline.prediction_log.privacy import HASH_KEYS, HashKeys, read_privacy_filter
from towline.registry.ledger import Entry, actor, champion_of, open_ledger, rows_until
from towline.times import to_utc

Result = TypeVar("Result", DriftResult, QualityResult, GainResult)

DRIFT_WINDOW = dt.timedelta(days=1)
SCHEDULE_TOLERANCE = dt.timedelta(hours=1)  # a daily run does not start to the second
MAX_WINDOWS = 30  # length of an open window, in drift or quality windows
MAX_ALARMS = 20  # recorded in the ledger
LABEL_WINDOWS = 30  # latest results that show whether labels arrive


def resolve_time(as_of: dt.datetime | None) -> dt.datetime:
    """The time of a run in UTC: ``as_of`` (UTC if it has no time zone), or now."""
    return to_utc(as_of) or dt.datetime.now(dt.UTC)


def champion_at(settings: Settings, model: str, now: dt.datetime) -> Entry:
    """The ledger entry that made the champion at a time the champion.

    If it is dated later than that, since the clock was set back, its time is that of the last row that is not.

    Raises:
        PromotionRejectedError: the model had no champion.
    """
    rows = rows_until(open_ledger(settings).rows(model), now)
    champion = champion_of(rows)
    if champion is not None and dt.datetime.fromisoformat(champion.time) > now:
        earlier = (row.time for row in rows[: champion.seq] if dt.datetime.fromisoformat(row.time) <= now)
        champion = champion.model_copy(update={"time": max(earlier, default=now.isoformat())})
    if champion is None:
        raise PromotionRejectedError(
            f"{model} has no champion", where=model, remedy="run `towline run CONFIG` to train and promote a version"
        )
    return champion


def detect_drift(settings: Settings, config: PipelineConfig, champion: Entry, now: dt.datetime) -> DriftResult:
    """Compares the rows that the champion predicted in the open window with its training rows.

    Raises:
        ReleaseError: the champion's release does not match its manifest.
        TransientError: the log's folder cannot be written, which its lock needs.
    """
    release = settings.layout.release(champion.release)
    verify_release(release)
    journal = Journal.of(settings, config.name)
    start = _window_start(_closed_windows(journal.drift(champion.version, now), champion), champion, now, DRIFT_WINDOW)
    clock = ClockCheck(start, now, dt.datetime.now(dt.UTC))
    clock.add_earlier_runs(journal.drift(), dt.datetime.now(dt.UTC))
    log = _prediction_log(settings, config.name, release)
    contract = Contract.read(release)
    positive = None if contract.positive is None else contract.classes.index(contract.positive)
    batches = read_log(log.predictions, champion.version, start, now, log.fields, positive, clock)
    columns = [field.name for field in log.fields if field.policy == "keep"]
    return detect(release, batches, config.drift, start=start, end=now, columns=columns, clock=clock)


def detect_drift_in_file(settings: Settings, config: PipelineConfig, champion: Entry, file: Path) -> DriftResult:
    """Compares the rows of a file with the champion's training rows.

    Raises:
        DataError: the file cannot be read.
        ReleaseError: the champion's release does not match its manifest.
    """
    release = settings.layout.release(champion.release)
    verify_release(release)
    return detect(release, read_file(settings, config, champion, file), config.drift)


def read_file(
    settings: Settings, config: PipelineConfig, champion: Entry, file: Path
) -> Iterator[pa.Table | pa.RecordBatch]:
    """Batches of a file's rows, read by the champion's contract.

    Raises:
        DataError: the file cannot be read.
    """
    return read_table(file, Contract.read(settings.layout.release(champion.release)), config.data.separator)


def measure_quality_window(
    settings: Settings, config: PipelineConfig, champion: Entry, now: dt.datetime
) -> QualityResult:
    """Measures the quality of the predictions in the open window whose labels are due, and estimates that of the rest.

    Raises:
        DataError: a part of the log cannot be read.
        ReleaseError: the champion's release does not match its manifest.
        TransientError: the log's folder cannot be written, which its lock needs.
    """
    release = settings.layout.release(champion.release)
    verify_release(release)
    journal, due = Journal.of(settings, config.name), now - config.quality.delay
    earlier = journal.quality(champion.version, due)
    start = _window_start(_closed_windows(earlier, champion), champion, due, config.quality.window)
    rows = labels.read(_prediction_log(settings, config.name, release), start, now, known=now)
    # no label of a champion younger than the delay is due: its window is empty, it does not end before it starts
    result = measure_quality(rows, release, config, start=start, end=max(start, due), now=now)
    drift = journal.drift(champion.version)
    unlabelled = rows.filter(pc.greater_equal(rows["time"], pa.scalar(due, rows["time"].type)))
    estimate = estimate_performance(unlabelled, release, config, drift[-1] if drift else None, [*earlier, result])
    end = start + config.quality.window
    if due < end - SCHEDULE_TOLERANCE:
        reason = f"the window ends at {end:%Y-%m-%d %H:%M}; so far: {result.reason}"
        result = result.model_copy(update={"state": "unknown", "reason": reason})
    return result.model_copy(update={"estimate": estimate})


def measure_gain_window(
    settings: Settings, config: PipelineConfig, champion: Entry, now: dt.datetime, *, at_once: bool = False
) -> GainResult | None:
    """Compares the champion with a refit of its recipe on the open window of labelled rows.

    Args:
        settings: names the store and the project.
        config: of the model.
        champion: what serves.
        now: labels that came later are ignored.
        at_once: do not wait until the window has the length of ``quality.window``, because the inputs have drifted.

    Returns:
        The result; None if gain is no trigger, there is no time column, or the window is not complete.

    Raises:
        DataError, TransientError: the source or a part of the log cannot be read.
        ReleaseError: the champion's release does not match its manifest.
    """
    if "gain" not in config.retrain.triggers or not config.data.time:
        return None
    release = settings.layout.release(champion.release)
    verify_release(release)
    due = now - config.quality.delay
    closed = _closed_windows(Journal.of(settings, config.name).gain(champion.version, due), champion)
    start = _window_start(closed, champion, due, config.quality.window)
    if due <= start or (not at_once and due < start + config.quality.window - SCHEDULE_TOLERANCE):
        return None
    rows = labels.read(_prediction_log(settings, config.name, release), start, due, known=now)
    labelled = rows.filter(pc.is_valid(rows["label"]))
    window: dict[str, Any] = {"start": start, "end": due, "now": now}
    if len(labelled) < config.quality.min_labels:  # the source is read only if it is needed
        return measure_gain(labelled, release, config, pd.DataFrame(), **window)
    reach = config.data.reach and (config.data.reach + (due - start),)  # of the refit for the start of the window
    data = config.data.model_copy(update={"keep_snapshot": False, "window": reach or ()})
    known = (due - config.quality.delay).astimezone(dt.UTC).replace(tzinfo=None)
    dataset = sources.load_dataset(data, settings.project, settings.store, known, config.privacy.pii)
    try:
        table = sources.read_snapshot(dataset, settings.store)
    finally:
        sources.remove_snapshot(dataset, data, settings.store)
    return measure_gain(labelled, release, config, table, **window)


def compare_champions(
    settings: Settings, config: PipelineConfig, champion: Entry, evidence: Evidence
) -> ChampionComparison | None:
    """Compares the champion with the previous champion on the labelled rows of the last window, if that is degraded.

    Raises:
        DataError: a part of the log cannot be read.
    """
    if not evidence.quality or evidence.quality[-1].state != "degraded":
        return None
    window, ledger = evidence.quality[-1], open_ledger(settings)
    try:
        target = ledger.rollback_target(config.name)
    except PromotionRejectedError:
        previous = None
    else:
        previous = ReleaseLocation(settings.layout.release(target.release), ledger.digest(target))
    release = settings.layout.release(champion.release)
    log = _prediction_log(settings, config.name, release)
    rows = labels.read(log, window.start, window.end, known=evidence.now)
    drift = evidence.drift[-1] if evidence.drift else None
    return champion_comparison.compare_champions_on_rows(
        rows, ReleaseLocation(release, ledger.digest(champion)), previous, config, drift
    )


def gather_evidence(
    settings: Settings, config: PipelineConfig, champion: Entry, now: dt.datetime, breach: str = ""
) -> Evidence:
    """Evidence from the journal and the ledger; the caller adds the comparison of champions and the new rows."""
    journal, ledger = Journal.of(settings, config.name), open_ledger(settings)
    until = now + dt.timedelta(microseconds=1)
    drift = journal.drift(champion.version, until)
    clock_problems = [
        check.detail for window in drift if window.end == now for check in window.checks if check.name == CLOCK
    ]
    try:
        previous: int | None = ledger.rollback_target(config.name).version
    except PromotionRejectedError:
        previous = None
    count, last_training = config.retrain.recent_windows, find_last_training(ledger.decisions(config.name), now)
    since = dt.datetime.fromisoformat(champion.time)
    return Evidence(
        now=now,
        champion=champion.version,
        since=since,
        previous=previous,
        drift=tuple(_closed_windows(drift, champion)[-count:]),
        quality=tuple(_closed_windows(journal.quality(champion.version, until), champion)[-count:]),
        gain=select_windows(journal.gain(champion.version, until), since, last_training),
        labels_arrive=bool(config.data.time) and do_labels_arrive(journal.quality(before=until)),
        last_training=last_training,
        breach=breach,
        clock_problem="; ".join(clock_problems),
        on_breach=config.slo.on_breach,
    )


def do_labels_arrive(results: Sequence[QualityResult]) -> bool:
    """Whether one of the latest results has labels; those of long ago do not say that labels still arrive."""
    return any(result.labelled for result in results[-LABEL_WINDOWS:])


def record_decision(settings: Settings, config: PipelineConfig, champion: Entry, evidence: Evidence) -> Decision:
    """Decides, and records the decision with its evidence in the ledger, once for each cause.

    New rows are counted, which reads the source, only if a training would start.

    Raises:
        DataError, TransientError: the source cannot be read.
    """
    decision = decide(evidence, config.retrain)
    if decision.action == "retrain" and evidence.new_rows is None:
        new_rows = _count_new_rows(settings, config, champion, evidence.now)
        evidence = evidence.model_copy(update={"new_rows": new_rows})
        decision = decide(evidence, config.retrain)
    alarms = [check for window in evidence.drift[-1:] for check in window.checks if check.alarm]
    record = {
        "action": decision.action,
        "trigger": decision.trigger,
        "at": evidence.now.isoformat(),
        "drift": [window.model_dump(mode="json", exclude={"checks"}) for window in evidence.drift],
        "alarms": [check.model_dump(mode="json") for check in alarms[:MAX_ALARMS]],
        "quality": [window.model_dump(mode="json", exclude={"slices"}) for window in evidence.quality],
        "gain": [window.model_dump(mode="json", exclude={"blocks"}) for window in evidence.gain],
        "comparison": evidence.comparison.model_dump(mode="json") if evidence.comparison else None,
        "new_rows": evidence.new_rows,
        "breach": evidence.breach,
    }
    reason = f"{decision.action}: {decision.reason}"
    open_ledger(settings).decide(config.name, actor(), reason, record, decision.cause)
    return decision


def _count_new_rows(settings: Settings, config: PipelineConfig, champion: Entry, now: dt.datetime) -> int:
    """Rows of the source that the champion was not trained on: newer ones, or without a time column the difference."""
    trained = verify_release(settings.layout.release(champion.release)).dataset
    data, store = config.data, settings.store
    dataset = sources.load_dataset(data, settings.project, store, now.replace(tzinfo=None), config.privacy.pii)
    try:
        if dataset.digest == trained["digest"]:
            return 0
        if not (data.time and trained["end"]):
            return max(0, dataset.rows - int(trained["rows"]))
        times = pq.read_table(settings.layout.dataset(dataset.path), columns=[data.time])[data.time].to_pandas()
        return int((pd.to_datetime(times) > pd.Timestamp(trained["end"])).sum())
    finally:
        sources.remove_snapshot(dataset, data, store)


def _closed_windows(windows: Sequence[Result], champion: Entry) -> list[Result]:
    """The windows with a known state since the champion serves; those before a rollback to it are left out."""
    since = dt.datetime.fromisoformat(champion.time)
    return [window for window in windows if window.state != "unknown" and window.end and window.end > since]


def _window_start(closed: Sequence[Result], champion: Entry, end: dt.datetime, length: dt.timedelta) -> dt.datetime:
    """The end of the last closed window, or the time from which the champion serves; at most 30 windows ago."""
    last = closed[-1].end if closed else None
    return max(last or dt.datetime.fromisoformat(champion.time), end - MAX_WINDOWS * length)


def _prediction_log(settings: Settings, model: str, release: Path) -> labels.LoggedModel:
    predictions = settings.layout.predictions(model)
    policy = read_privacy_filter(release, Contract.read(release), HashKeys(predictions / HASH_KEYS))
    return labels.LoggedModel(predictions, settings.layout.labels(model), policy.fields)
