"""The rules Great Expectations has no words for: infinities, classes, duplicates, the champion, leaks."""

import math
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence

import numpy as np
import pandas as pd

from towline.config import Frozen, Severity, TrainingConfig
from towline.data.schema import notation
from towline.data.schema.contract import Column, Contract
from towline.data.schema.values import LARGEST
from towline.data.sources import CoercedValues
from towline.data.validation.leakage import find_leaks

EXAMPLES = 5


class Rule(Frozen):
    """One rule and its result; ``count`` and ``share`` are of offending rows, where rows can offend."""

    rule: str
    column: str | None
    severity: Severity
    passed: bool
    count: int = 0
    share: float = 0.0
    examples: tuple[str, ...] = ()
    detail: str = ""

    @property
    def result(self) -> str:
        return "passed" if self.passed else "failed" if self.severity == "error" else "warned"

    @property
    def finding(self) -> str:
        """What is wrong, for a summary: ``x: 16 rows (0.04 %) break: at least 0``."""
        one = self.count == 1
        rows = (
            f"{self.count:,} row{'s' * (not one)} ({100 * self.share:.2f} %) break{'s' * one}: " if self.count else ""
        )
        return f"{self.column or 'table'}: {rows}{self.detail}"

    def line(self) -> str:
        """The finding with its examples and the rule's name, for an error."""
        examples = f", e.g. {'; '.join(self.examples[:3])}" if self.examples else ""
        return f"{self.finding}{examples} [{self.rule}]"


def show_value(value: object) -> str:
    """A value in at most 40 printable characters."""
    if value is None or value is pd.NaT or (isinstance(value, float) and math.isnan(value)):
        return "null"
    text = str(value.item() if isinstance(value, np.generic) else value)
    text = text if text.isprintable() else repr(text)
    return text if len(text) <= 40 else text[:39] + "…"


def example_rows(table: pd.DataFrame, columns: Sequence[str], rows: Iterable[int]) -> tuple[str, ...]:
    """``row 12: -3``; ``rows`` are positions from 0, those told count from 1 (headers not counted)."""
    first = list(rows)[:EXAMPLES]
    if len(columns) == 1:
        return tuple(f"row {row + 1}: {show_value(table[columns[0]].iloc[row])}" for row in first)
    some = columns[:EXAMPLES]
    return tuple(
        f"row {row + 1}: " + ", ".join(f"{name} {show_value(table[name].iloc[row])}" for name in some) for row in first
    )


def check_rules(
    table: pd.DataFrame,
    shown: pd.DataFrame,
    contract: Contract,
    config: TrainingConfig,
    *,
    allowed_leaks: Collection[str] = (),
    previous: Contract | None = None,
) -> list[Rule]:
    """Checks all rules of this module.

    Args:
        table: the snapshot.
        shown: the table that examples are taken from: without values of columns with personal data.
        contract: of the table.
        config: of the pipeline.
        allowed_leaks: columns that are known not to be leaks.
        previous: the champion's contract; None if no version serves.
    """
    rules = [
        *_lookalikes(table, contract),
        *_notation(table, contract, config),
        *_finite(table, shown, contract),
        *_classes(table, contract, config.cross_validation.folds + 1),
        _distinct(table, shown, contract),
        *_champion(contract, config, previous),
        *_leaks(table, contract, config.seed, set(allowed_leaks)),
    ]
    features = len(contract.feature_columns)
    detail = f"{features:,} features, {len(table):,} rows"
    wide = features > len(table)
    return [*rules, Rule(rule="fewer_features_than_rows", column=None, severity="warn", passed=not wide, detail=detail)]


def _leaks(table: pd.DataFrame, contract: Contract, seed: int, allowed: set[str]) -> Iterator[Rule]:
    leaks = [leak for leak in find_leaks(table, contract, seed) if not set(leak.columns) <= allowed]
    for leak in leaks:
        detail = f"{leak.detail}; list under data.drop or, if really known when predicting, validation.allow_leaks"
        column = ", ".join(leak.columns)
        yield Rule(rule=f"no_leak_by_{leak.kind}", column=column, severity="error", passed=False, detail=detail)
    if not leaks:
        yield Rule(rule="no_leak", column=None, severity="error", passed=True, detail="no column gives the target away")


def _offences(
    rule: str, column: str | None, bad: np.ndarray, shown: pd.DataFrame, detail: str, severity: Severity = "error"
) -> Rule:
    rows = np.flatnonzero(bad)
    return Rule(
        rule=rule,
        column=column,
        severity=severity,
        passed=not len(rows),
        count=len(rows),
        share=len(rows) / max(len(shown), 1),
        examples=example_rows(shown, [column] if column else list(shown.columns), rows[:EXAMPLES].tolist()),
        detail=detail,
    )


def check_coerced(coerced: Sequence[CoercedValues]) -> Iterator[Rule]:
    """Warns of values of numeric columns that are not numbers and were read as null."""
    for column in coerced:
        yield Rule(
            rule="values_numeric",
            column=column.column,
            severity="warn",
            passed=False,
            count=column.count,
            share=column.share,
            examples=(column.examples,) if column.examples else (),
            detail="a number; others are read as null, for data.columns says numeric",
        )


def _lookalikes(table: pd.DataFrame, contract: Contract) -> Iterator[Rule]:
    """Levels and classes that differ in case or spaces alone: to the model they are strangers to each other."""
    passed = True
    for column in contract.columns:
        if column.role == "ignored" or column.kind != "category" or table[column.name].dtype.kind in "biuf":
            continue
        counts = table[column.name].dropna().astype(str).value_counts()
        groups: dict[str, list[str]] = {}
        for level in counts.index:
            groups.setdefault(" ".join(unicodedata.normalize("NFKC", level).casefold().split()), []).append(level)
        alike = [levels for levels in groups.values() if len(levels) > 1]
        if not alike:
            continue
        passed = False
        rows = sum(int(counts[levels[1:]].sum()) for levels in alike)
        yield Rule(
            rule="levels_distinct",
            column=column.name,
            severity="warn",
            passed=False,
            count=rows,
            share=rows / max(len(table), 1),
            examples=tuple(" and ".join(map(repr, levels[:4])) for levels in alike[: 0 if column.pii else EXAMPLES]),
            detail="levels differ by more than case and spaces; make them one in the source",
        )
    if passed:
        detail = "no two levels differ by case or spaces alone"
        yield Rule(rule="levels_distinct", column=None, severity="warn", passed=True, detail=detail)


def _notation(table: pd.DataFrame, contract: Contract, config: TrainingConfig) -> Iterator[Rule]:
    """Text that is numbers or dates in a notation that the config does not name."""
    for column in contract.columns:
        values = table[column.name]
        if column.kind not in ("category", "text") or column.name in config.data.columns or column.role == "target":
            continue
        if values.dtype.kind in "biufM" or (other := notation.detect_notation(values)) is None:
            continue
        fate = f"left out ({column.note})" if column.role == "ignored" else "a category"
        yield Rule(
            rule="notation",
            column=column.name,
            severity="warn",
            passed=False,
            detail=f"{other.share:.0%} of the values are {other.described(hidden=column.pii)}, now {fate}; "
            f"set {other.remedy}, or data.columns: {{{column.name}: category}} if that is right",
        )


def _finite(table: pd.DataFrame, shown: pd.DataFrame, contract: Contract) -> Iterator[Rule]:
    infinite = {
        column.name: bad
        for column in contract.columns
        if table[column.name].dtype.kind == "f" and (bad := np.abs(table[column.name].to_numpy()) > LARGEST).any()
    }
    for name, bad in infinite.items():
        detail = f"values are finite, within ±{LARGEST:g}; write null for unknown"
        yield _offences("values_finite", name, bad, shown, detail)
    if not infinite:
        yield Rule(rule="values_finite", column=None, severity="error", passed=True, detail="no infinities")


def _classes(table: pd.DataFrame, contract: Contract, need: int) -> Iterator[Rule]:
    if contract.task == "regression":
        return
    counts = Counter(contract.labels(table[table[contract.target].notna()]).tolist())
    short = sorted((rows, show_value(label)) for label, rows in counts.items() if rows < need)
    lacking = sum(rows for rows, _ in short)
    yield Rule(
        rule="rows_in_each_class",
        column=contract.target,
        severity="error",
        passed=not short,
        count=lacking,
        share=lacking / max(len(table), 1),
        examples=tuple(f"class {label}: {rows} row{'s' * (rows != 1)}" for rows, label in short[:EXAMPLES]),
        detail=f"each class has at least {need} rows: one for each of {need - 1} folds, one to hold out",
    )


def _distinct(table: pd.DataFrame, shown: pd.DataFrame, contract: Contract) -> Rule:
    # few rows agree in the eight columns of most levels: only they are compared in full
    telling = [column.name for column in sorted(contract.columns, key=lambda column: -column.levels)[:8]]
    twins = table[table.duplicated(telling, keep=False)]
    bad = np.zeros(len(table), dtype=bool)
    bad[twins.index[twins.duplicated()]] = True
    return _offences("rows_distinct", None, bad, shown, "no row stands in the table twice", "warn")


def _champion(contract: Contract, config: TrainingConfig, previous: Contract | None) -> Iterator[Rule]:
    if previous is None:
        return
    present = {column.name: column for column in contract.columns}
    failed = False
    for old in previous.feature_columns:
        new: Column | None = present.get(old.name)
        severity: Severity = "error"
        if old.name in config.data.columns or old.name in (*config.data.drop, contract.target):
            continue  # the config says so
        if new is None:
            detail = "a feature of the champion is gone; if on purpose, list it under data.drop"
        elif new.role == "ignored" and new.kind != "text":
            severity, detail = "warn", f"a feature of the champion is left out: {new.note}"
        elif new.kind != old.kind:
            detail = f"{old.kind} for the champion, {new.kind} now; if on purpose, declare it under data.columns"
        else:
            continue
        failed = True
        yield Rule(rule="champion_columns", column=old.name, severity=severity, passed=False, detail=detail)
    if not failed:
        detail = "the champion's columns, unchanged"
        yield Rule(rule="champion_columns", column=None, severity="error", passed=True, detail=detail)
