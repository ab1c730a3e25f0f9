"""Drift of a window: rows counted against a release's reference, and which differences are beyond chance."""

import datetime as dt
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from towline.config import DriftConfig
from towline.data.blocks import CELLS
from towline.data.schema import text_columns
from towline.data.schema.contract import Column, Contract
from towline.errors import DataError
from towline.monitoring.drift import thresholds
from towline.monitoring.drift.clock_check import WHAT, Clock
from towline.monitoring.drift.distances import distance, kolmogorov_smirnov
from towline.monitoring.drift.histograms import SLICE, ColumnStats, HistogramAccumulator, Levels
from towline.monitoring.drift.repeated_rows import RepeatedRows
from towline.monitoring.drift.thresholds import CheckThresholds, Window
from towline.monitoring.results import DriftCheckResult, DriftResult
from towline.prediction_log import parquet_store
from towline.prediction_log.clock_skew import SetBack
from towline.prediction_log.parquet_store import INPUT
from towline.prediction_log.privacy import Field
from towline.release.reference import PREDICTION, PROBABILITY, Reference, read

UNFIT = 0.05  # the share of values of another kind from which on a column is broken
RARE = 0.02  # the least share of unseen levels, or of values out of range, that alarms
# least effects, in parts of drift.min_effect: a level of half of the rows that moves by 10 points is .085 away
CATEGORY, SHARE = 0.5, 0.5
REPEATED = 0.2  # more of the rows than of the training rows that are equal to an earlier one
NIGHTS = 365
# distribution, nulls, what training never saw, the largest gap or level; of flags the first two
_CHECKS = {"numeric": 4, "category": 4, "datetime": 1}
_BATCH = 131_072
_SHOWN = 3  # columns that a reason names


def detect(
    release: Path,
    batches: Iterable[pa.Table | pa.RecordBatch],
    config: DriftConfig,
    *,
    start: dt.datetime | None = None,
    end: dt.datetime | None = None,
    columns: Collection[str] | None = None,
    clock: Clock | None = None,
    seed: int = 0,
) -> DriftResult:
    """Compares rows with the training rows of a release, in one pass and in memory that does not grow with them.

    Args:
        release: its verified directory.
        batches: the rows, under the names of the contract; ``prediction`` and ``probability`` if they are there.
        config: the budget of false alarms, the least effect, what is left out.
        start: of the rows.
        end: of the rows, not included.
        columns: the features that the rows should have; default all. A log leaves out what is private.
        clock: what there is to be told of the rows' times when they are read.
        seed: of the drawn nights.

    Returns:
        The verdict. Whatever the rows are, there is one.
    """
    contract = Contract.read(release)
    reference = read(release)
    version = int(release.name.partition("-")[0].removeprefix("v") or 0) if release.name.startswith("v") else 0
    inputs = HistogramAccumulator(reference.profile, contract)
    answered = HistogramAccumulator(reference.answers, _answers(reference))
    present: set[str] = set()
    twice: set[str] = set()
    repeats = RepeatedRows(contract.feature_columns)
    for batch in batches:
        names = batch.schema.names
        present.update(names)
        twice.update(name for name in names if names.count(name) > 1)
        inputs.add(batch)
        answered.add(batch)
        repeats.add(batch)
    rows, budget = inputs.rows, config.false_alarms_per_year
    odd = clock.results(rows) if clock else []
    told = {"version": version, "rows": rows, "start": start, "end": end, "budget": budget}
    features = [c for c in contract.feature_columns if columns is None or c.name in columns]
    found = [_new(name) for name in sorted(inputs.strange - {PREDICTION, PROBABILITY, *(columns or ())})[:20]]
    for column in features:
        seen = inputs.columns[column.name]
        if column.name in present and column.name not in twice:
            seen.nulls, seen.rows = seen.nulls + rows - seen.rows, rows  # where only some files have it
        found += _broken(column, seen, reference.profile["columns"][column.name], present, twice)
    if rows < config.min_rows:
        gone = [check.column for check in found if check.invalid] if rows else []
        reason = f"{rows:,} rows, {config.min_rows:,} are needed"
        reason += f"; they are not as they should be: {', '.join(gone[:_SHOWN])}" if gone else ""
        return DriftResult(state="unknown", reason=_with(reason, odd), checks=tuple(odd), **told)
    again = _repeated(repeats.share, reference.profile.get("repeated", 0.0))
    found += [*again, *odd]

    def of(count: int) -> int:
        """What is sent twice tells no more than if it were sent once."""
        return math.ceil(count * (1 - repeats.share)) if again else count

    wanted = [column for column in features if column.name not in config.ignore]
    spoilt = {check.column for check in found if check.invalid}
    days = (end - start) / dt.timedelta(days=1) if start and end else None
    sound = [column for column in wanted if column.name not in spoilt]
    outputs = [] if not present & {PREDICTION} else [c for c in answered.columns if c not in config.ignore]
    checks = sum(1 if column.pii else _CHECKS.get(column.kind, 2) for column in sound) + 3 * len(outputs)
    window = Window(days, checks, min(0.5, budget / NIGHTS))
    draws = thresholds.DRAWS if checks < 4 * 100 else thresholds.WIDE
    for column in sound:
        facts = reference.profile["columns"][column.name]
        blocks = reference.blocks.get("inputs")
        seen = inputs.columns[column.name]
        limits = thresholds.limits(facts, blocks, column.name, of(seen.count), of(seen.rows), window, draws, seed)
        found += _compared(column.name, facts, seen, limits, config)
        found += _rare(column.name, facts, seen, window)
    for name in outputs:
        facts, seen = reference.answers["columns"][name], answered.columns[name]
        blocks = reference.blocks.get("answers")
        limits = thresholds.limits(facts, blocks, name, of(seen.count), of(seen.rows), window, draws, seed)
        found += _compared(name, facts, seen, limits, config)
    return _verdict(found, told)


def current(
    folder: Path,
    version: int,
    start: dt.datetime | None,
    end: dt.datetime | None,
    fields: Sequence[Field],
    positive: int | None = None,
    clock: Clock | None = None,
) -> Iterator[pa.Table]:
    """What a version was asked and answered, from the prediction log: plain names, file by file.

    Text comes as strings or as dictionaries, as the file has it.

    Args:
        folder: ``predictions/<name>`` of the store.
        version: whose answers.
        start: of the predictions, in UTC where it has no zone.
        end: the same; not included.
        fields: what is logged; columns that are hashed or put into buckets are left out.
        positive: of a binary task, the place of the positive class among the classes.
        clock: is told of the times of all versions' rows.

    Raises:
        DataError: a part cannot be read.
        TransientError: the folder cannot be written, which its lock needs.
    """
    if not folder.is_dir():
        return
    names = [field.name for field in fields if field.kept == "keep"]
    wanted = {*(INPUT + name for name in names), "time", "prediction", "probabilities"}
    start, end = parquet_store.utc(start), parquet_store.utc(end)
    with parquet_store.held(folder):
        for rows in _logged(folder, version, start, end, wanted, clock):
            there = rows.schema.names
            taken = {name: rows[INPUT + name] for name in names if INPUT + name in there}
            if PREDICTION in there:
                taken[PREDICTION] = rows[PREDICTION]
            if positive is not None and "probabilities" in there:
                taken[PROBABILITY] = pc.list_element(rows["probabilities"], positive)
            yield pa.table(taken)


def _logged(
    folder: Path,
    version: int,
    start: dt.datetime | None,
    end: dt.datetime | None,
    wanted: Collection[str],
    clock: Clock | None,
) -> Iterator[pa.Table]:
    """Some rows at a time: a day's file may be larger than the memory."""
    for part in parquet_store.parts(folder, start and start.date(), end and end.date()):
        if part.version == version:
            file = parquet_store.opened(part.path)
            have = [name for name in file.schema_arrow.names if name in wanted]
            file = parquet_store.opened(part.path, _texts(file.schema_arrow))
            for batch in file.iter_batches(_BATCH, columns=have):
                yield parquet_store.between(pa.Table.from_batches([batch]), start, end)
    odd = list[SetBack]()
    for _, (_, of), rows in parquet_store.unconverted(folder, odd):
        if clock:
            clock.times(rows["time"])
        if of == version:
            yield parquet_store.between(rows, start, end)
    if clock:
        clock.back(odd)
        clock.log(folder)


def _texts(schema: pa.Schema) -> list[str]:
    """Columns of text: read as the levels that the file holds them by, they are counted without being spelt out."""
    return [field.name for field in schema if pa.types.is_string(field.type) or pa.types.is_large_string(field.type)]


def table(path: Path, contract: Contract, separator: str = ",") -> Iterator[pa.Table | pa.RecordBatch]:
    """The rows of a CSV, CSV.gz or Parquet file, some at a time, text read as the contract says.

    Raises:
        DataError: it cannot be read.
    """
    if not path.is_file():
        raise DataError("no such file", where=str(path), remedy="give a CSV, CSV.gz or Parquet file")
    readers = {column.name: column.reader for column in contract.feature_columns}
    if not path.name.lower().endswith((".parquet", ".pq")):
        yield from (text_columns.conform(batch, readers) for batch in _csv(path, separator))
        return
    try:
        # read ahead and by several threads, much of the file would be held at once
        file = pq.ParquetFile(path, pre_buffer=False, read_dictionary=_texts(pq.read_schema(path)))
        yield from file.iter_batches(SLICE, use_threads=False)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).split("\n")[0][:200]
        raise DataError(f"not a Parquet file: {reason}", where=str(path), remedy="write it again") from None


def _csv(path: Path, separator: str) -> Iterator[pa.RecordBatch]:
    """Text, in batches; a file that cannot be read so is read whole, by what names each fault."""
    from pyarrow import csv

    read = 0
    reading = csv.ReadOptions(block_size=2**24, use_threads=False)
    parsing_options = csv.ParseOptions(delimiter=separator, newlines_in_values=True)
    try:
        with csv.open_csv(str(path), reading, parsing_options) as file:
            names = file.schema.names
        texts = csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=True, null_values=[""]
        )
        with csv.open_csv(str(path), reading, parsing_options, texts) as file:
            for batch in file:
                yield batch
                read += len(batch)
    except (pa.ArrowException, OSError, EOFError):
        if read:
            where, remedy = f"{path}, after {read:,} rows", "correct the line that follows"
            raise DataError("not a readable CSV", where=where, remedy=remedy) from None
        from towline.data import formats

        yield from formats.file(path, separator).to_batches(_BATCH)


def _answers(reference: Reference) -> Contract:
    """The model's answers as if they were columns of a table."""
    columns = []
    for name, facts in reference.answers["columns"].items():
        number = facts["kind"] != "category"
        columns.append(
            Column(
                name=name,
                kind=facts["kind"],
                role="feature",
                nullable=True,
                levels=facts.get("levels", 0),
                min=facts.get("min") if number else None,
                max=facts.get("max") if number else None,
                categories=None,
            )
        )
    return Contract(target="", task="regression", columns=tuple(columns))


def _new(name: str) -> DriftCheckResult:
    return DriftCheckResult(
        column=name, name="new", value=1.0, threshold=None, alarm=False, detail="training had no such column"
    )


def _repeated(share: float, then: float) -> list[DriftCheckResult]:
    if share <= then + REPEATED:
        return []
    told = f"{share:.0%} of the rows are equal to an earlier one, of the training rows {then:.0%}: sent twice?"
    return [DriftCheckResult(column="rows", name="repeated", value=share, threshold=None, alarm=False, detail=told)]


def _broken(
    column: Column, seen: ColumnStats, facts: Mapping[str, Any], present: Collection[str], twice: Collection[str]
) -> list[DriftCheckResult]:
    """What no model should learn from; values of another kind that are few are only told."""
    name = column.name

    def bad(what: str, value: float, detail: str) -> list[DriftCheckResult]:
        return [
            DriftCheckResult(
                column=name, name=what, value=value, threshold=None, alarm=True, invalid=True, detail=detail
            )
        ]

    if name in twice:
        return bad("twice", 1.0, "the column stands twice")
    if name not in present:
        return bad("missing", 1.0, "the column is not there")
    share = seen.unfit / max(1, seen.rows)
    if share > UNFIT:
        return bad("unfit", share, f"{seen.unfit:,} values are not {column.kind}")
    if seen.rows and seen.nulls == seen.rows and facts["nulls"] < 0.5 * (facts["nulls"] + facts["count"]):
        return bad("all null", 1.0, "no value at all")
    if not seen.unfit:
        return []
    told = f"{seen.unfit:,} values are not {column.kind}"
    return [DriftCheckResult(column=name, name="unfit", value=share, threshold=UNFIT, alarm=False, detail=told)]


def _compared(
    name: str, facts: Mapping[str, Any], seen: ColumnStats, limits: CheckThresholds, config: DriftConfig
) -> list[DriftCheckResult]:
    found = []

    def add(what: str, value: float, drawn: float, least: float, told: str) -> None:
        limit = max(drawn, least * config.min_effect)
        found.append(
            DriftCheckResult(column=name, name=what, value=value, threshold=limit, alarm=value > limit, detail=told)
        )

    far = distance(facts, seen)
    if far is not None and seen.levels is not None:
        level, then, now = _moved(facts, seen, seen.levels)
        told = f"{level!r} {then:.1%} then, {now:.1%} now"
        add("distribution", far, limits.distance, CATEGORY, told)
        add("level", abs(now - then), limits.jump, SHARE, told)
    elif far is not None and seen.numbers is not None:
        told = "" if facts["mean"] is None else f"mean {facts['mean']:.4g} then, "
        told += f"{'mean ' if not told else ''}{seen.numbers.total / seen.count:.4g} now"
        add("distribution", far, limits.distance, 1.0, told)
        if facts["kind"] == "numeric":
            add("gap", kolmogorov_smirnov(facts, seen.numbers, CELLS), limits.jump, SHARE, told)
    total = facts["nulls"] + facts["count"]
    if seen.rows and total:
        then, now = facts["nulls"] / total, seen.nulls / seen.rows
        told = f"{then:.1%} of the training rows, {now:.1%} now" if now != then else ""
        add("nulls", abs(now - then), limits.nulls, SHARE, told)
    return found


def _rare(name: str, facts: Mapping[str, Any], seen: ColumnStats, window: Window) -> list[DriftCheckResult]:
    """Values of which training had none."""
    if seen.levels is not None and seen.levels.unseen:
        alone = sum(count == 1 for count in facts["counts"].values())
        value, what = seen.levels.unseen / seen.count, "unseen"
        told = f"such as {', '.join(map(repr, seen.levels.examples[:3]))}"
    elif seen.numbers is not None and seen.numbers.out_of_range:
        alone, value, what = 1, seen.numbers.out_of_range / seen.count, "out of range"
        told = f"training had {facts['min']:.6g} to {facts['max']:.6g}"
    else:
        return []
    limit = max(RARE, thresholds.rare(facts["count"], seen.count, alone, window.each))
    return [DriftCheckResult(column=name, name=what, value=value, threshold=limit, alarm=value > limit, detail=told)]


def _moved(facts: Mapping[str, Any], seen: ColumnStats, levels: Levels) -> tuple[str, float, float]:
    """The level whose share changed most, what it was and what it is."""
    then = {**facts["counts"], "(others)": facts["other"]}
    now = {**{name: levels.counts[name] for name in facts["counts"]}, "(others)": levels.other}
    shares = {name: (then[name] / facts["count"], now[name] / seen.count) for name in then}
    name = max(shares, key=lambda one: abs(shares[one][0] - shares[one][1]))
    return name, *shares[name]


def _verdict(found: Sequence[DriftCheckResult], told: Mapping[str, Any]) -> DriftResult:
    def nearness(check: DriftCheckResult) -> tuple[bool, bool, float]:
        return check.invalid, check.alarm, check.value / check.threshold if check.threshold else 0.0

    ranked = tuple(sorted(found, key=nearness, reverse=True))
    broken = [check for check in ranked if check.invalid]
    alarms = [check for check in ranked if check.alarm]
    state = "invalid_schema" if broken else "drift" if alarms else "ok"
    odd = [check for check in ranked if check.name == WHAT]
    return DriftResult(state=state, checks=ranked, reason=_with(_reason(broken or alarms, ranked), odd), **told)


def _with(reason: str, odd: Sequence[DriftCheckResult]) -> str:
    return "; ".join([reason, *(check.detail for check in odd)])


def _reason(bad: Sequence[DriftCheckResult], ranked: Sequence[DriftCheckResult]) -> str:
    if not bad:
        nearest = next((f for f in ranked if f.threshold), None)
        return f"nearest to its threshold: {nearest.column}, {nearest.name}" if nearest else "nothing to compare"
    named = [f"{f.column}: {f.name}" + (f" ({f.detail})" if f.detail else "") for f in bad[:_SHOWN]]
    more = f" and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
    return "; ".join(named) + more
