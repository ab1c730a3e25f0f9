"""Validation rules that Great Expectations does not offer.

They find leaks of the target, infinite values, classes and duplicates of rows, levels that differ in spelling only,
numbers and dates in another notation, and differences from the champion's columns.
"""

import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from towline.config import Frozen, Severity, TrainingConfig
from towline.data.schema.contract import Column, Contract, Label
from towline.data.schema.detection import notation
from towline.data.schema.values import LARGEST, find_case_variants
from towline.data.snapshot import SnapshotColumns, Table, take_rows
from towline.data.source.sources import Dataset
from towline.data.validation import streaming
from towline.data.validation.leakage import find_leaks

EXAMPLES = 5
HIDDEN = "***"  # replaces values of columns with personal data in examples
MAX_UNMATCHED = 0.05  # share of rows without an entry in a lookup


class Rule(Frozen):
    """One rule and its result; ``count`` and ``share`` are of the rows that break it, if it is about rows."""

    rule: str
    column: str | None = None
    severity: Severity = "error"
    passed: bool = False
    count: int = 0
    share: float = 0.0
    examples: tuple[str, ...] = ()
    detail: str = ""

    @property
    def result(self) -> str:
        return "passed" if self.passed else "failed" if self.severity == "error" else "warned"

    @property
    def finding(self) -> str:
        """The violation in one line: ``x: 16 rows (0.04 %) break: at least 0``."""
        words = ("row", "breaks") if self.count == 1 else ("rows", "break")
        rows = f"{self.count:,} {words[0]} ({100 * self.share:.2f} %) {words[1]}: " if self.count else ""
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


class RowExamples(NamedTuple):
    """Shows values of rows in rules; those of columns with personal data are hidden.

    Attributes:
        table: the snapshot.
        hidden: the columns with personal data.
    """

    table: Table
    hidden: frozenset[str] = frozenset()

    def show(self, columns: Sequence[str], rows: Iterable[int]) -> tuple[str, ...]:
        """Up to five examples such as ``row 12: -3``; ``rows`` are positions from 0, numbers in the text from 1."""
        first, names = list(rows)[:EXAMPLES], list(columns)[:EXAMPLES]
        if not first:
            return ()
        selected, texts = take_rows(self.table, np.array(first), names), []
        for place, row in enumerate(first):
            values = [HIDDEN if name in self.hidden else show_value(selected[name].iloc[place]) for name in names]
            named = [f"{name} {value}" for name, value in zip(names, values, strict=True)]
            texts.append(f"row {row + 1}: " + ", ".join(values if len(columns) == 1 else named))
        return tuple(texts)


def check_rules(
    examples: RowExamples,
    contract: Contract,
    config: TrainingConfig,
    *,
    allowed_leaks: Collection[str] = (),
    previous: Contract | None = None,
) -> list[Rule]:
    """Checks all rules of this module.

    Args:
        examples: the snapshot, of which examples are shown.
        contract: of the table.
        config: of the pipeline.
        allowed_leaks: columns that are known not to be leaks.
        previous: the champion's contract; None if no version serves.
    """
    table = examples.table
    levels = _find_lookalikes(table, contract)
    infinities = _find_infinities(examples, contract)
    leaks = _find_leaks(table, contract, config.seed, set(allowed_leaks))
    features = len(contract.feature_columns)
    rules = [
        *_or_passed(levels, "levels_distinct", "no two levels differ in case or spaces only", "warn"),
        *_find_notations(table, contract, config),
        *_or_passed(infinities, "values_finite", "no number is too large"),
        *_check_class_sizes(table, contract, config.cross_validation.folds + 1),
        _check_duplicates(examples, contract),
        *_or_passed(leaks, "no_leak", "no column looks like a leak of the target"),
        *_check_lookups(contract),
        Rule(
            rule="fewer_features_than_rows",
            severity="warn",
            passed=features <= len(table),
            detail=f"{features:,} features, {len(table):,} rows",
        ),
    ]
    if previous:
        changes = _find_column_changes(contract, config, previous)
        rules += _or_passed(changes, "champion_columns", "the champion's columns, unchanged")
    return rules


def _or_passed(violations: Iterable[Rule], rule: str, detail: str, severity: Severity = "error") -> list[Rule]:
    """The violations of a rule; if there are none, its result that it passed."""
    return list(violations) or [Rule(rule=rule, severity=severity, passed=True, detail=detail)]


def _share(rows: int, table: Table) -> dict[str, Any]:
    """``count`` and ``share`` of a rule that ``rows`` rows of the table break."""
    return {"count": rows, "share": rows / max(len(table), 1)}


def check_dataset(dataset: Dataset, target: str) -> Iterator[Rule]:
    """Warns of values that were read as null, rows that were left out, and files that are not UTF-8."""
    for encoding in dataset.encodings:
        detail = f"a file is not UTF-8 and was read as {encoding}; save it as UTF-8 if accents look wrong"
        yield Rule(rule="encoding", severity="warn", detail=detail)
    for column in dataset.coerced:
        examples = (column.examples,) if column.examples else ()
        expected = "a time" if column.kind == "datetime" else "a finite number"
        detail, fields = f"{expected}; other values are read as null", column.model_dump(exclude={"examples", "kind"})
        if column.column != target:
            detail += f"; data.columns: {{{column.column}: category}} would use them"
        yield Rule(rule=f"values_{column.kind}", severity="warn", examples=examples, detail=detail, **fields)
    for reason, rows in dataset.left_out:
        share = rows / (dataset.rows + sum(dict(dataset.left_out).values()))
        detail = f"rows {reason} are left out"
        yield Rule(rule="rows_left_out", severity="warn", count=rows, share=share, detail=detail)


def _find_leaks(table: Table, contract: Contract, seed: int, allowed: set[str]) -> Iterator[Rule]:
    for leak in find_leaks(table, contract, seed):
        if not set(leak.columns) <= allowed:
            derived = {column.name for column in contract.derived}
            removal = "remove it from features or lookups" if set(leak.columns) & derived else "list it under data.drop"
            detail = f"{leak.detail}; {removal} or, if it is known when predicting, list it in validation.allow_leaks"
            severity: Severity = "warn" if leak.may_be_legitimate else "error"
            columns = ", ".join(leak.columns)
            yield Rule(rule=f"no_leak_by_{leak.kind}", column=columns, severity=severity, detail=detail)


def _find_lookalikes(table: Table, contract: Contract) -> Iterator[Rule]:
    """Levels and classes that differ in case or spaces only; a model treats them as different levels."""
    for column in contract.columns:
        if column.role == "ignored" or column.kind != "category" or (values := table[column.name]).dtype.kind in "biuf":
            continue
        counts = values.dropna().astype(str).value_counts()
        alike = find_case_variants(counts.index)
        if alike:
            rows = sum(int(counts[levels[1:]].sum()) for levels in alike)
            groups_shown = [] if column.pii else alike[:EXAMPLES]
            yield Rule(
                rule="levels_distinct",
                column=column.name,
                severity="warn",
                examples=tuple(" and ".join(map(repr, levels[:4])) for levels in groups_shown),
                detail="levels differ in more than case and spaces; list the column in data.ignore_case, "
                "or correct the source",
                **_share(rows, table),
            )


def _find_notations(table: Table, contract: Contract, config: TrainingConfig) -> Iterator[Rule]:
    """Text that is numbers or dates in a notation that the config does not name."""
    for column in contract.columns:
        if column.kind not in ("category", "text") or column.name in config.data.columns or column.role == "target":
            continue
        values = table[column.name]
        if values.dtype.kind in "biufM" or (detected := notation.detect_notation(values)) is None:
            continue
        use = f"left out ({column.note})" if column.role == "ignored" else f"a {column.kind}"
        verb = "set " if detected.remedy.startswith("data.") else ""
        detail = (
            f"{detected.share:.0%} of the values are {detected.described(hidden=column.pii)}, now {use}; "
            f"{verb}{detected.remedy}, or set data.columns: {{{column.name}: category}} if this is intended"
        )
        yield Rule(rule="notation", column=column.name, severity="warn", detail=detail)


def _find_infinities(examples: RowExamples, contract: Contract) -> Iterator[Rule]:
    table, detail = examples.table, f"values are within ±{LARGEST:g}; write null for unknown"
    for name in (column.name for column in contract.columns):
        if (values := table[name]).dtype.kind == "f" and len(rows := np.flatnonzero(np.abs(values) > LARGEST)):
            shown = examples.show([name], rows.tolist())
            yield Rule(rule="values_finite", column=name, examples=shown, detail=detail, **_share(len(rows), table))


def _check_lookups(contract: Contract) -> Iterator[Rule]:
    for lookup in contract.lookups:
        share = lookup.unmatched / max(1, lookup.rows)
        yield Rule(
            rule="rows_in_lookup",
            column=", ".join(lookup.key),
            severity="warn",
            passed=share <= MAX_UNMATCHED,
            count=lookup.unmatched,
            share=share,
            detail=f"the lookup {lookup.name} has an entry for the row; without one, its joined columns are null",
        )


def _check_class_sizes(table: Table, contract: Contract, minimum: int) -> Iterator[Rule]:
    """Warns of rare classes; an error if fewer than two classes have the rows that cross-validation needs."""
    if contract.task == "regression":
        return
    distinct = table[contract.target].value_counts().rename_axis(contract.target).reset_index(name="rows")
    counts = Counter[Label]()
    for label, rows in zip(contract.labels(distinct), distinct["rows"], strict=True):
        counts[label] += int(rows)
    small = sorted((rows, show_value(label)) for label, rows in counts.items() if rows < minimum)
    detail = f"each class has at least {minimum} rows: one for each of {minimum - 1} folds, one for the holdout"
    if small:
        detail += "; the model of a fold without a class cannot predict it; data.classes.rare can merge or drop them"
    yield Rule(
        rule="rows_in_each_class",
        column=contract.target,
        severity="error" if len(counts) - len(small) < 2 else "warn",
        passed=not small,
        examples=tuple(f"class {label}: {rows} row{'s' * (rows != 1)}" for rows, label in small[:EXAMPLES]),
        detail=detail,
        **_share(sum(rows for rows, _ in small), table),
    )


def _check_duplicates(examples: RowExamples, contract: Contract) -> Rule:
    table = examples.table
    count, rows = (
        streaming.find_copies(table) if isinstance(table, SnapshotColumns) else _find_copies_in_memory(table, contract)
    )
    return Rule(
        rule="rows_distinct",
        severity="warn",
        passed=not count,
        examples=examples.show(list(table.columns), rows),
        detail="no row is in the table twice",
        **_share(count, table),
    )


def _find_copies_in_memory(table: pd.DataFrame, contract: Contract) -> tuple[int, list[int]]:
    """The number of rows that are equal to an earlier one, and the first of them."""
    # few rows are equal in the eight columns with the most levels: only these rows are compared in all columns
    columns = [column.name for column in sorted(contract.columns, key=lambda column: -column.levels)[:8]]
    similar = table[table.duplicated(columns, keep=False)]
    copies = similar.index[similar.duplicated()]
    return len(copies), sorted(copies[:EXAMPLES].tolist())


def _find_column_changes(contract: Contract, config: TrainingConfig, previous: Contract) -> Iterator[Rule]:
    """Features of the champion that are missing or have another kind now, unless the config says so."""
    present = {column.name: column for column in contract.columns}
    for old in previous.input_columns:
        new: Column | None = present.get(old.name)
        severity: Severity = "error"
        if old.name in config.data.columns or old.name in (*config.data.drop, contract.target):
            continue
        if new is None:
            detail = "a feature of the champion is missing; if this is intended, list it under data.drop"
        elif new.role == "ignored" and new.kind != "text":
            severity, detail = "warn", f"a feature of the champion is left out: {new.note}"
        elif {new.kind, old.kind} == {"category", "text"}:
            severity, detail = "warn", f"{old.kind} for the champion, {new.kind} now; declare it under data.columns"
        elif new.kind != old.kind:
            detail = f"{old.kind} for the champion, {new.kind} now; if intended, declare it under data.columns"
        else:
            continue
        yield Rule(rule="champion_columns", column=old.name, severity=severity, detail=detail)
