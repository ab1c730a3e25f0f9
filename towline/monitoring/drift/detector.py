"""Drift detection: compares the current rows of a window with the reference of a release.

Every column is checked for problems of its schema, and for differences from the training rows that are larger than
chance explains. The checks' thresholds share one false-alarm budget, so that more columns do not mean more false
alarms.
"""

import datetime as dt
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from towline.config import DriftConfig
from towline.data.blocks import CELLS
from towline.data.schema.contract import Column, Contract
from towline.formatting import shorten_list
from towline.monitoring.drift.column_importance import ColumnImportance
from towline.monitoring.drift.distances import distance, kolmogorov_smirnov
from towline.monitoring.drift.histograms import CategoryCounts, ColumnStats, HistogramAccumulator
from towline.monitoring.drift.row_checks import ClockCheck, RepeatedRows
from towline.monitoring.drift.thresholds import (
    CheckThresholds,
    ReferenceColumn,
    WindowSimulation,
    unseen_share_threshold,
)
from towline.monitoring.results import CLOCK, DriftCheckResult, DriftResult
from towline.release.reference import PREDICTION, PROBABILITY, Reference, read_reference

MAX_WRONG_TYPE = 0.05  # share of values of another type from which on a column is invalid
MIN_UNSEEN = 0.02  # minimum share of unseen categories, or of numbers out of range, that raises an alarm
# least effects as a part of drift.min_effect: if a category of half of the rows loses 10 points, the distance is .085
CATEGORY_EFFECT, SHARE_EFFECT = 0.5, 0.5
WINDOWS_PER_YEAR = 365
MAX_UNKNOWN_COLUMNS = 20
_CHECKS_PER_KIND = {"numeric": 4, "category": 4, "text": 3, "datetime": 1}  # distribution, nulls, unseen, share
_CHECKS_PER_BOOLEAN = 2
_CHECKS_PER_OUTPUT = 3
_MAX_COLUMNS_IN_REASON = 3


def detect(
    release: Path,
    batches: Iterable[pa.Table | pa.RecordBatch],
    config: DriftConfig,
    *,
    start: dt.datetime | None = None,
    end: dt.datetime | None = None,
    columns: Collection[str] | None = None,
    clock: ClockCheck | None = None,
) -> DriftResult:
    """Compares rows with the training rows of a release in one pass, in constant memory.

    Args:
        release: verified directory of the release.
        batches: the rows, under the names of the contract; with ``prediction`` and ``probability`` if there are any.
        config: false-alarm budget, least effect, ignored columns.
        start: start of the window.
        end: end of the window, not included.
        columns: features that the rows should have; default: all. A log leaves out private ones.
        clock: results of the clock check, complete when all batches are read.

    Returns:
        A result for any rows whatsoever.
    """
    rows = WindowCounts(release)
    for batch in batches:
        rows.add(batch)
    clock_results = clock.results(rows.inputs.rows) if clock else []
    return judge(rows, config, start=start, end=end, columns=columns, clock_results=clock_results)


def judge(
    rows: "WindowCounts",
    config: DriftConfig,
    *,
    start: dt.datetime | None = None,
    end: dt.datetime | None = None,
    columns: Collection[str] | None = None,
    clock_results: Sequence[DriftCheckResult] = (),
) -> DriftResult:
    """The result of ``detect`` from the counts of a window; the other arguments are those of ``detect``."""
    count = rows.inputs.rows
    result = partial(
        DriftResult,
        version=_version(rows.release),
        rows=count,
        start=start,
        end=end,
        budget=config.false_alarms_per_year,
    )
    features = [column for column in rows.contract.input_columns if columns is None or column.name in columns]
    checks = [*rows.unknown_columns(columns or ()), *(check for column in features for check in rows.schema(column))]
    invalid = {check.column: None for check in checks if check.invalid}
    if count < config.min_rows:
        reason = f"{count:,} rows, {config.min_rows:,} are needed"
        if invalid and count:
            reason += f"; invalid columns: {', '.join(list(invalid)[:_MAX_COLUMNS_IN_REASON])}"
        return result(state="unknown", reason=_join(reason, clock_results), checks=tuple(clock_results))
    repeated = rows.repeated.check(rows.reference.profile.get("repeated", 0.0))
    checks += [*([repeated] if repeated else []), *clock_results]
    clocks = {name: value for name, value in rows.contract.clock_columns.items() if name in rows.present}
    checks += [_clock_column(name, value) for name, value in clocks.items()]
    left_out = {*config.ignore, *invalid, *clocks}
    valid = [column for column in features if column.name not in left_out]
    outputs = [name for name in rows.outputs.columns if PREDICTION in rows.present and name not in config.ignore]
    number_of_checks = sum(
        1 if column.pii else _CHECKS_PER_KIND.get(column.kind, _CHECKS_PER_BOOLEAN) for column in valid
    )
    simulation = WindowSimulation(
        days=(end - start) / dt.timedelta(days=1) if start and end else None,
        checks=number_of_checks + _CHECKS_PER_OUTPUT * len(outputs),
        alpha=min(0.5, config.false_alarms_per_year / WINDOWS_PER_YEAR),
    )
    weight = 1 - rows.repeated.share if repeated else 1.0  # a row that was sent twice adds no information
    for column, stats, is_input in rows.reference_columns(valid, outputs):
        values, size = (math.ceil(number * weight) for number in (stats.count, stats.rows))
        checks += _distribution_checks(column, stats, simulation.thresholds(column, values, size), config)
        if is_input:
            checks += _unseen_check(column, stats, simulation)
    ranked = tuple(sorted(checks, key=_nearness, reverse=True))
    state = "invalid_schema" if invalid else "drift" if any(check.alarm for check in ranked) else "ok"
    if state != "drift":
        return result(state=state, checks=ranked, reason=_join(_reason(ranked), clock_results))
    importance = ColumnImportance.read(rows.release, rows.contract)
    share = importance.share({check.column for check in ranked if check.alarm})
    reason = _join(_reason(ranked, importance), clock_results)
    return result(state=state, checks=ranked, reason=reason, importance=share)


class WindowCounts:
    """The counts of a window's rows, with the reference of the release."""

    def __init__(self, release: Path) -> None:
        self.release, self.contract, self.reference = release, Contract.read(release), read_reference(release)
        self.inputs = HistogramAccumulator(self.reference.profile, self.contract)
        self.outputs = HistogramAccumulator(self.reference.answers, _output_contract(self.reference))
        self.repeated = RepeatedRows(self.contract.input_columns)
        self.present: set[str] = set()
        self.duplicated: set[str] = set()

    def add(self, batch: pa.Table | pa.RecordBatch) -> None:
        """Counts more rows."""
        names = batch.schema.names
        self.present.update(names)
        self.duplicated.update(name for name in names if names.count(name) > 1)
        self.inputs.add(batch)
        self.outputs.add(batch)
        self.repeated.add(batch)

    def unknown_columns(self, columns: Collection[str]) -> list[DriftCheckResult]:
        names = sorted(self.inputs.unknown_columns - {PREDICTION, PROBABILITY, *columns})[:MAX_UNKNOWN_COLUMNS]
        detail = "the training rows have no such column"
        return [DriftCheckResult(column=name, name="unknown column", value=1.0, detail=detail) for name in names]

    def schema(self, column: Column) -> list[DriftCheckResult]:
        """Input that no model should be trained on is invalid; a few values of the wrong type are only reported."""
        stats, profile = self.inputs.columns[column.name], self.reference.profile["columns"][column.name]
        check = partial(DriftCheckResult, column=column.name)
        invalid = partial(check, alarm=True, invalid=True)
        if column.name in self.duplicated:
            return [invalid(name="duplicate column", value=1.0, detail="the column occurs twice")]
        if column.name not in self.present:
            return [invalid(name="missing column", value=1.0, detail="the column is missing")]
        rows = self.inputs.rows
        stats.nulls, stats.rows = stats.nulls + rows - stats.rows, rows  # if only some of the files have the column
        share, detail = stats.wrong_type / max(1, stats.rows), f"{stats.wrong_type:,} values are not {column.kind}"
        if share > MAX_WRONG_TYPE:
            return [invalid(name="wrong type", value=share, detail=detail)]
        if stats.rows and stats.nulls == stats.rows and profile["nulls"] < 0.5 * (profile["nulls"] + profile["count"]):
            return [invalid(name="all null", value=1.0, detail="every value is null")]
        if not stats.wrong_type:
            return []
        return [check(name="wrong type", value=share, threshold=MAX_WRONG_TYPE, detail=detail)]

    def reference_columns(
        self, features: Iterable[Column], outputs: Iterable[str]
    ) -> Iterator[tuple[ReferenceColumn, ColumnStats, bool]]:
        """Each column's reference and statistics, and whether it is an input."""
        blocks = self.reference.blocks
        for name in (column.name for column in features):
            profile = self.reference.profile["columns"][name]
            yield ReferenceColumn(name, profile, blocks.get("inputs")), self.inputs.columns[name], True
        for name in outputs:
            profile = self.reference.answers["columns"][name]
            yield ReferenceColumn(name, profile, blocks.get("answers")), self.outputs.columns[name], False


def _clock_column(name: str, correlation: float) -> DriftCheckResult:
    detail = f"follows the time (rank correlation {correlation:.3f} in training): new values are not drift"
    return DriftCheckResult(column=name, name="clock column", value=abs(correlation), detail=detail)


def _version(release: Path) -> int:
    return int(release.name.partition("-")[0].removeprefix("v") or 0) if release.name.startswith("v") else 0


def _output_contract(reference: Reference) -> Contract:
    """A contract for the model's outputs, as if they were columns of a table."""
    columns = []
    for name, profile in reference.answers["columns"].items():
        numeric = profile["kind"] != "category"
        column = Column(
            name=name,
            kind=profile["kind"],
            role="feature",
            nullable=True,
            levels=profile.get("levels", 0),
            min=profile.get("min") if numeric else None,
            max=profile.get("max") if numeric else None,
            categories=None,
        )
        columns.append(column)
    return Contract(target="", task="regression", columns=tuple(columns))


def _distribution_checks(
    column: ReferenceColumn, stats: ColumnStats, thresholds: CheckThresholds, config: DriftConfig
) -> list[DriftCheckResult]:
    profile, checks = column.profile, list[DriftCheckResult]()
    check = partial(DriftCheckResult, column=column.name)

    def add(name: str, value: float, chance: float, effect: float, detail: str) -> None:
        threshold = max(chance, effect * config.min_effect)
        checks.append(check(name=name, value=value, threshold=threshold, alarm=value > threshold, detail=detail))

    value_distance = distance(profile, stats)
    if value_distance is not None and stats.categories is not None:
        change = _most_changed_category(profile, stats, stats.categories)
        detail = f"{change.category!r}: {change.reference_share:.1%} in training, {change.current_share:.1%} now"
        add("distribution", value_distance, thresholds.distance, CATEGORY_EFFECT, detail)
        difference = abs(change.current_share - change.reference_share)
        add("category share", difference, thresholds.share, SHARE_EFFECT, detail)
    elif value_distance is not None and stats.histogram is not None:
        mean = stats.histogram.total / stats.count
        training_mean = "" if profile["mean"] is None else f"{profile['mean']:.4g} in training, "
        measure = "mean length" if profile["kind"] == "text" else "mean"
        detail = f"{measure} {training_mean}{mean:.4g} now"
        add("distribution", value_distance, thresholds.distance, 1.0, detail)
        if profile["kind"] in ("numeric", "text"):
            ks = kolmogorov_smirnov(profile, stats.histogram, CELLS)
            add("cumulative share", ks, thresholds.share, SHARE_EFFECT, detail)
    training_rows = profile["nulls"] + profile["count"]
    if stats.rows and training_rows:
        reference_share, current_share = profile["nulls"] / training_rows, stats.nulls / stats.rows
        changed = current_share != reference_share
        detail = f"{reference_share:.1%} in training, {current_share:.1%} now" if changed else ""
        add("nulls", abs(current_share - reference_share), thresholds.nulls, SHARE_EFFECT, detail)
    return checks


def _unseen_check(column: ReferenceColumn, stats: ColumnStats, simulation: WindowSimulation) -> list[DriftCheckResult]:
    """Checks the share of values that the training rows did not have."""
    profile = column.profile
    if stats.categories is not None and stats.categories.unseen:
        singletons = sum(count == 1 for count in profile["counts"].values())
        share, name = stats.categories.unseen / stats.count, "unseen categories"
        detail = f"for example {', '.join(map(repr, stats.categories.examples[:3]))}"
    elif stats.histogram is not None and stats.histogram.out_of_range:
        singletons, share, name = 1, stats.histogram.out_of_range / stats.count, "out of range"
        detail = f"range in training: {profile['min']:.6g} to {profile['max']:.6g}"
    else:
        return []
    chance = unseen_share_threshold(profile["count"], stats.count, singletons, simulation.alpha_per_check)
    threshold = max(MIN_UNSEEN, chance)
    alarm = share > threshold
    return [
        DriftCheckResult(column=column.name, name=name, value=share, threshold=threshold, alarm=alarm, detail=detail)
    ]


class _CategoryChange(NamedTuple):
    category: str
    reference_share: float
    current_share: float


def _most_changed_category(
    profile: Mapping[str, Any], stats: ColumnStats, categories: CategoryCounts
) -> _CategoryChange:
    reference = {**profile["counts"], "(others)": profile["other"]}
    current = {**{name: categories.counts[name] for name in profile["counts"]}, "(others)": categories.other}
    changes = (
        _CategoryChange(name, count / profile["count"], current[name] / stats.count)
        for name, count in reference.items()
    )
    return max(changes, key=lambda change: abs(change.reference_share - change.current_share))


def _nearness(check: DriftCheckResult) -> tuple[bool, bool, float]:
    return check.invalid, check.alarm, check.value / check.threshold if check.threshold else 0.0


def _reason(ranked: Sequence[DriftCheckResult], importance: ColumnImportance | None = None) -> str:
    """The first alarms, of drift those of the most important columns, and how much of the importance they all carry."""
    alarms = [check for check in ranked if check.invalid] or [check for check in ranked if check.alarm]
    if not alarms:
        nearest = next((check for check in ranked if check.threshold), None)
        return f"nearest to its threshold: {nearest.column}, {nearest.name}" if nearest else "nothing to compare"
    share = importance.share({check.column for check in alarms}) if importance else None
    if importance:
        alarms.sort(key=lambda check: -(importance.share({check.column}) or 0.0))
    texts = [f"{check.column}: {check.name}" + (f" ({check.detail})" if check.detail else "") for check in alarms]
    carried = "" if share is None else f"; the columns with an alarm carry {share:.0%} of the model's importance"
    return shorten_list(texts, _MAX_COLUMNS_IN_REASON, "; ") + carried


def _join(reason: str, clock_results: Sequence[DriftCheckResult]) -> str:
    return "; ".join([reason, *(check.detail for check in clock_results if check.name == CLOCK)])
