"""One pass over a large table that evaluates the suite, with the verdicts and counts of Great Expectations.

Memory is bounded: a batch of rows, and for each rule about equal values 8 bytes a row up to ``MAX_KEYS`` rows. More
rows than that are read in several passes over the columns of the rule, each of which collects a part of the keys.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from towline.data import row_keys
from towline.data.row_keys import KeyCollector, KeyCounts, merge_counts
from towline.data.snapshot import SnapshotColumns
from towline.data.validation.batch_columns import Batch
from towline.data.validation.streaming_rules import (
    EXAMPLES,
    KeyedRule,
    RuleResult,
    StreamingRule,
    UniqueRows,
    compile_rule,
)


def check_table(table: SnapshotColumns, expectations: Sequence[Mapping[str, Any]]) -> dict[int, RuleResult]:
    """Evaluates the expectations that are compiled.

    Args:
        table: the snapshot.
        expectations: the suite, as in ``suite.build_expectations``.

    Returns:
        The results by the position of the expectation; those that only Great Expectations can evaluate are missing.
    """
    rules = dict[int, StreamingRule]()
    for number, expectation in enumerate(expectations):
        if rule := compile_rule(expectation["type"], expectation["kwargs"], table.schema):
            rules[number] = rule
    _evaluate(table, list(rules.values()))
    return {number: rule.result() for number, rule in rules.items()}


def find_copies(table: SnapshotColumns) -> tuple[int, list[int]]:
    """The number of rows that are equal to an earlier one, and the first of them.

    Above 200,000 such rows they are counted by keys of 64 bits.
    """
    rule = UniqueRows(table.columns, {"ignore_row_if": "never"})
    _evaluate(table, [rule])
    if (copies := rule.compared_copies()) is not None:
        return len(copies), copies[:EXAMPLES]
    return rule.copies, rule.rows


def _evaluate(table: SnapshotColumns, rules: Sequence[StreamingRule]) -> None:
    """Reads the table once for all rules, and again for those about equal values that need it."""
    keyed = [rule for rule in rules if isinstance(rule, KeyedRule)]
    parts = -(-len(table) // row_keys.MAX_KEYS)
    for rule in keyed:
        rule.collector = KeyCollector(0, parts)
    for batch in _read_batches(table, rules):
        for each in rules:
            each.add(batch)
    for rule in keyed:
        rule.end(_count_keys(table, rule, parts))
    for rule in keyed:
        if rule.are_rows_needed:
            _locate_rows(table, rule)


def _read_batches(table: SnapshotColumns, rules: Sequence[StreamingRule]) -> Iterator[Batch]:
    names = {name for rule in rules for name in rule.columns} or set(table.columns[:1])
    start = 0
    for batch in table.batches(names):
        yield Batch(batch, start)
        start += batch.num_rows


def _count_keys(table: SnapshotColumns, rule: KeyedRule, parts: int) -> KeyCounts:
    """The counts of all keys; the first part was collected already."""
    counts = [rule.collector.count()]
    for part in range(1, parts):
        collector = KeyCollector(part, parts)
        for batch in _read_batches(table, [rule]):
            collector.add(rule.keys(batch)[0])
        counts.append(collector.count())
    return merge_counts(counts)


def _locate_rows(table: SnapshotColumns, rule: KeyedRule) -> None:
    for batch in _read_batches(table, [rule]):
        if not rule.locate(batch):
            break
