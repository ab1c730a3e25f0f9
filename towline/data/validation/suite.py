"""Validation checks a table against its contract and the rules of the config, and writes a report.

The *suite* is the list of expectations that Great Expectations evaluates; ``custom_rules`` has the rules that it does
not offer.
"""

import datetime as dt
import logging
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from towline import files
from towline.config import Frozen, Severity, TrainingConfig, ValidationConfig, suggest
from towline.data.schema.contract import Contract
from towline.data.schema.inference import infer_contract
from towline.data.schema.values import parse_number
from towline.data.snapshot import SnapshotColumns, Table, select_columns, take_rows
from towline.data.validation import custom_rules, streaming
from towline.data.validation.custom_rules import RowExamples, Rule
from towline.data.validation.streaming_rules import RuleResult, named_columns
from towline.data.workspace import Workspace
from towline.errors import ConfigError, DataValidationError
from towline.formatting import shorten_lines, shorten_list
from towline.html import render_page

GE_SEVERITY: Mapping[Severity, str] = {"error": "critical", "warn": "warning"}
SAMPLE_ROWS = 100_000  # of a large table, which Great Expectations sees too
MAX_LINES = 12  # of an error, so that it fits on one screen
_PAGE = Path(__file__).with_name("data_docs.html.jinja")


class Validation(Frozen):
    """All rules with their results; ``docs`` is the report, a file of the workspace."""

    rules: tuple[Rule, ...]
    notes: tuple[str, ...]
    failed: int
    warned: int
    docs: str = "data_docs.html"

    def text(self) -> str:
        """A summary: ``23 rules, 1 failed, 0 warned``."""
        return f"{len(self.rules)} rules, {self.failed} failed, {self.warned} warned"


def validate_table(
    work: Workspace, config: TrainingConfig, declared: ValidationConfig, previous: Contract | None, now: dt.datetime
) -> Validation:
    """Infers the contract, checks the table against it and saves the results.

    Saves ``contract.json``, ``suite.json``, ``validation.json`` and ``data_docs.html`` in the workspace, also if the
    table is rejected.

    Args:
        work: the run's workspace.
        config: names columns, folds and the split.
        declared: rules and expectations of the user.
        previous: the champion's contract; None if no version serves.
        now: rows after this time (UTC) are from the future.

    Raises:
        ConfigError: a rule or expectation cannot be evaluated; names its place in the config.
        DataValidationError: a rule with the severity error failed; one detail line for each.
    """
    table = work.columns()
    contract = infer_contract(table, config, work.dataset.formats, work.lookups(config))
    _check_privacy(contract, config)
    work.save(Contract.FILE, contract)
    expectations = build_expectations(contract, config, declared, previous=previous, now=now)
    work.save_json("suite.json", {"name": config.name, "expectations": expectations})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecation warnings of libraries about each other
        examples = RowExamples(table, frozenset(column.name for column in contract.columns if column.pii))
        allowed = declared.allow_leaks
        evaluated, notes = _evaluate(table, examples, expectations, config.seed)
        rules = [
            *evaluated,
            *custom_rules.check_rules(examples, contract, config, allowed_leaks=allowed, previous=previous),
            *custom_rules.check_dataset(work.dataset, config.data.target),
        ]
    columns = (*contract.columns, *contract.derived)
    notes += [f"{column.name}: left out, {column.note}" for column in columns if column.note]
    rules.sort(key=lambda rule: (rule.passed, rule.severity))
    lines = [rule.line() for rule in rules if rule.result == "failed"]
    warned = sum(rule.result == "warned" for rule in rules)
    validation = Validation(rules=tuple(rules), notes=tuple(notes), failed=len(lines), warned=warned)
    work.save("validation.json", validation)
    values = {"name": config.name, "dataset": work.dataset, "contract": contract, "now": f"{now:%Y-%m-%d %H:%M}"}
    report = files.write(work.file(validation.docs), render_page(_PAGE, validation=validation, **values))
    if lines:
        raise DataValidationError(
            f"the table breaks {len(lines)} of {len(rules)} rules",
            where=f"{work.dataset.source}, report {report}",
            remedy="correct the source, or change a wrong rule under data or validation in the config",
            details=tuple(shorten_lines(lines, MAX_LINES, ", see the report")),
        )
    return validation


def _check_privacy(contract: Contract, config: TrainingConfig) -> None:
    """Rejects misspelt columns, whose values would be logged, and buckets of personal data, which reveal values."""
    privacy = config.privacy
    # keys of privacy.join_on may occur in requests only
    names = [*(column.name for column in contract.columns), *config.data.drop, *privacy.join_on]
    for key, configured in (("privacy.pii", privacy.pii), ("privacy.columns", privacy.columns)):
        for name in configured:
            if name not in names:
                what = f"no column {name!r} in the table, and no such key"
                raise ConfigError(what, where=key, remedy=suggest(name, names))
    for column in contract.columns:
        if column.pii and column.kind in ("numeric", "category") and privacy.columns.get(column.name) == "bucket":
            raise ConfigError(
                f"column {column.name!r} is pii, and its buckets are values of the table",
                where="privacy.columns",
                remedy="write hash or drop, or remove it from privacy.pii if its quantiles or levels may be stored",
            )


def build_expectations(
    contract: Contract,
    config: TrainingConfig,
    declared: ValidationConfig,
    *,
    previous: Contract | None = None,
    now: dt.datetime | None = None,
) -> list[dict[str, Any]]:
    """The suite: expectations as Great Expectations reads them, ``{type, kwargs, meta, severity}``.

    Args:
        contract: of the table.
        config: names the time column, the folds and the split.
        declared: rules and expectations of the user.
        previous: the champion's contract; None if no version serves.
        now: rows after this time are from the future; None: not checked.

    Raises:
        ConfigError: a rule or an expectation of the user does not fit its column.
    """
    expectations = [*_expect_table_shape(contract, config, declared), *_expect_declared_rules(contract, declared)]
    expectations += _expect_valid_times(config, now)
    expectations += _expect_champion_ranges(contract, previous)
    expectations += _expect_user_expectations(contract, declared)
    for number, expectation in enumerate(expectations):
        expectation["meta"]["towline"]["id"] = number
    return expectations


def _expect(type_: str, detail: str, severity: Severity = "error", where: str = "", **kwargs: Any) -> dict[str, Any]:
    meta = {"towline": {"detail": detail, "where": where or "the contract"}}
    return {"type": type_, "kwargs": kwargs, "meta": meta, "severity": GE_SEVERITY[severity]}


def _expect_table_shape(
    contract: Contract, config: TrainingConfig, rules: ValidationConfig
) -> Iterator[dict[str, Any]]:
    target = contract.target
    # each fold needs a row, and so does the part before the first fold
    folds, share = config.cross_validation.folds, config.split.holdout
    rows = max(rules.min_rows, math.ceil((folds + 1) / (1 - share)) if isinstance(share, float) else folds + 2)
    detail = f"needs at least {rows} rows" + (f" for {folds} folds and a holdout" if rows > rules.min_rows else "")
    names = sorted({*(column.name for column in contract.columns), *rules.columns, *rules.unique})
    yield _expect("expect_table_row_count_to_be_between", detail, min_value=rows)
    detail = f"has the {len(names)} columns"
    yield _expect("expect_table_columns_to_match_set", detail, column_set=names, exact_match=False)
    yield _expect("expect_column_values_to_not_be_null", "the target is never null", column=target)
    detail = "the target needs two different values"
    yield _expect("expect_column_unique_value_count_to_be_between", detail, column=target, min_value=2)
    type_ = "expect_column_proportion_of_non_null_values_to_be_between"
    for column in contract.columns:
        if column.nullable and column.role != "target" and config.data.columns.get(column.name) != "ignore":
            detail = "needs a value in at least one row, else list it under data.drop"
            yield _expect(type_, detail, column=column.name, min_value=0.0, strict_min=True)


def _expect_declared_rules(contract: Contract, rules: ValidationConfig) -> Iterator[dict[str, Any]]:
    present = {column.name: column for column in contract.columns}
    for name, rule in rules.columns.items():
        where = f"validation.columns.{name}"
        if name not in present:
            continue  # the expectation of the column set reports it
        kind = present[name].kind
        if rule.nullable is False:
            yield _expect("expect_column_values_to_not_be_null", "never null", rule.severity, where, column=name)
        if rule.min is not None or rule.max is not None:
            if kind not in ("numeric", "boolean"):
                raise ConfigError(
                    f"min and max need numbers, and {name!r} is {kind}",
                    where=where,
                    remedy="for dates use expect_column_values_to_be_between under validation.expectations",
                )
            yield _between(name, rule.min, rule.max, rule.severity, where)
        if rule.categories is not None:
            categories = [present[name].reader.spell(text) or text for text in rule.categories]
            yield _in_set(name, categories, rule.severity, where)
        if rule.unique:
            yield _expect("expect_column_values_to_be_unique", "no value twice", rule.severity, where, column=name)
    key, where = rules.unique, "validation.unique"
    if key and present.keys() >= set(key):
        detail = f"no two rows with the same {', '.join(key)}"
        if len(key) == 1:
            yield _expect("expect_column_values_to_be_unique", detail, where=where, column=key[0])
        else:
            yield _expect("expect_compound_columns_to_be_unique", detail, where=where, column_list=list(key))


def _expect_valid_times(config: TrainingConfig, now: dt.datetime | None) -> Iterator[dict[str, Any]]:
    time = config.data.time
    if time is None:
        return
    yield _expect("expect_column_values_to_not_be_null", "every row has a time", column=time)
    if now is not None:
        # local time is up to 14 hours ahead of UTC
        latest = _naive(now) + dt.timedelta(hours=14)
        detail = f"no row from the future (after {latest:%Y-%m-%d %H:%M}, now with 14 hours for local time)"
        yield _expect("expect_column_values_to_be_between", detail, column=time, max_value=latest)
    yield _expect("expect_column_values_to_be_increasing", "rows are in order of time", "warn", column=time)


def _expect_champion_ranges(contract: Contract, previous: Contract | None) -> Iterator[dict[str, Any]]:
    present = {column.name: column for column in contract.columns}
    where, suffix = "the champion's contract", ", as in the champion's training"
    for old in previous.input_columns if previous else ():
        if old.name not in present or present[old.name].kind != old.kind:
            continue  # custom_rules.check_rules reports it
        if not old.nullable:
            yield _expect("expect_column_values_to_not_be_null", f"never null{suffix}", "warn", where, column=old.name)
        if present[old.name].pii:
            continue  # the champion's contract may contain its values, if the column was declared as pii later
        if old.kind == "numeric" and (old.min is not None or old.max is not None):
            yield _between(old.name, old.min, old.max, "warn", where, suffix)
        if old.kind == "category" and old.categories:
            yield _in_set(old.name, old.categories, "warn", where, suffix)


def _expect_user_expectations(contract: Contract, rules: ValidationConfig) -> Iterator[dict[str, Any]]:
    """The user's expectations; those that Great Expectations would accept and misread are rejected."""
    kinds: dict[str, str] = {column.name: column.kind for column in contract.columns}
    for number, expectation in enumerate(rules.expectations):
        type_, where, kwargs = expectation.type, f"validation.expectations[{number}]", dict(expectation.kwargs)
        for name in named_columns(kwargs):
            if name not in kinds:
                remedy = suggest(name, kinds)
                raise ConfigError(
                    f"{type_} names a column that is not in the table: {name!r}", where=where, remedy=remedy
                )
        if kinds.get(str(kwargs.get("column"))) == "datetime":
            for key in kwargs.keys() & {"min_value", "max_value", "value_set"}:
                kwargs[key] = _times(kwargs[key], where)
        low, high = kwargs.get("min_value"), kwargs.get("max_value")
        if low is not None and high is not None and type(low) is type(high) and low > high:
            raise ConfigError(f"min_value {low} is above max_value {high}", where=where, remedy="swap them")
        detail = ", ".join(f"{key} {value}" for key, value in kwargs.items() if key != "column")
        yield _expect(type_, detail, expectation.severity, where, **kwargs)


def _between(
    name: str, low: float | None, high: float | None, severity: Severity, where: str, suffix: str = ""
) -> dict[str, Any]:
    bounds = {key: bound for key, bound in (("min_value", low), ("max_value", high)) if bound is not None}
    words = {"min_value": "at least", "max_value": "at most"}
    detail = " and ".join(f"{words[key]} {bound:g}" for key, bound in bounds.items())
    return _expect("expect_column_values_to_be_between", detail + suffix, severity, where, column=name, **bounds)


def _in_set(name: str, categories: Sequence[str], severity: Severity, where: str, suffix: str = "") -> dict[str, Any]:
    # the contract has categories as text; the table may have the same values as numbers or booleans
    numbers = [number for text in categories if math.isfinite(number := parse_number(text))]
    flags = [text in ("True", "true") for text in categories if text in ("True", "true", "False", "false")]
    values: list[Any] = [*categories, *numbers, *flags]
    detail = f"one of {shorten_list(categories, 10)}{suffix}"
    return _expect("expect_column_values_to_be_in_set", detail, severity, where, column=name, value_set=values)


def _naive(moment: dt.datetime) -> dt.datetime:
    return moment.astimezone(dt.UTC).replace(tzinfo=None) if moment.tzinfo else moment


def _times(value: Any, where: str) -> Any:
    """Dates and ISO strings as naive UTC datetimes, like those of the table."""
    if isinstance(value, list | tuple):
        return [_times(item, where) for item in value]
    if value is None:
        return None
    try:
        return _naive(pd.Timestamp(value).to_pydatetime())
    except (ValueError, TypeError):
        raise ConfigError(f"not a date: {value!r}", where=where, remedy="write it as 2024-12-31") from None


def _evaluate(
    table: Table, examples: RowExamples, expectations: Sequence[dict[str, Any]], seed: int
) -> tuple[list[Rule], list[str]]:
    """The rule of each expectation, and notes.

    Great Expectations evaluates a table in memory. For a large table, ``streaming`` evaluates the expectations that it
    supports; Great Expectations gets the columns of the other expectations, and a sample.
    """
    built = _build(expectations)
    if not isinstance(table, SnapshotColumns):
        results, notes = _run_great_expectations(table, built, expectations, examples), []
    else:
        results = streaming.check_table(table, expectations)
        groups: dict[tuple[str, ...], list[int]] = {}
        for number in sorted(set(range(len(expectations))) - results.keys()):
            groups.setdefault(_read_columns(expectations[number]["kwargs"], table.columns), []).append(number)
        for names, numbers in groups.items():
            frame = select_columns(table, names) if names else take_rows(table, np.zeros(0, np.int64))
            part = [expectations[number] for number in numbers]
            results |= _run_great_expectations(frame, [built[number] for number in numbers], part, examples)
        notes = [_compare_with_sample(table, built, expectations, examples, seed)]
    rules = [_to_rule(examples, expectation, results[number]) for number, expectation in enumerate(expectations)]
    return rules, notes


def _read_columns(kwargs: Mapping[str, Any], columns: Iterable[str]) -> tuple[str, ...]:
    """The columns that an expectation reads: those it names, and those that occur in its condition."""
    condition = str(kwargs.get("row_condition") or "")
    return tuple(name for name in columns if name in named_columns(kwargs) or name in condition)


def _compare_with_sample(
    table: SnapshotColumns,
    built: Sequence[Any],
    expectations: Sequence[dict[str, Any]],
    examples: RowExamples,
    seed: int,
) -> str:
    """Evaluates the suite on a sample by Great Expectations; a note with its verdicts."""
    rows = min(SAMPLE_ROWS, len(table))
    positions = np.sort(np.random.default_rng(seed).choice(len(table), rows, replace=False))
    results = _run_great_expectations(table.take(positions), built, expectations, examples)
    passed = sum(result.passed for result in results.values())
    return (
        f"verdicts and counts are of all {len(table):,} rows, in one pass; on a sample of {rows:,} rows "
        f"Great Expectations passes {passed} of {len(results)} expectations"
    )


def _build(expectations: Sequence[dict[str, Any]]) -> list[Any]:
    """The expectations as objects of Great Expectations.

    Raises:
        ConfigError: there is no such expectation, or its arguments are invalid.
    """
    logger = logging.getLogger("great_expectations")
    if not logger.handlers:  # else Python prints its warnings on stderr
        logger.addHandler(logging.NullHandler())
    from great_expectations.expectations.expectation_configuration import ExpectationConfiguration
    from great_expectations.expectations.registry import list_registered_expectation_implementations

    # the others need a SQL database
    known = [name for name in list_registered_expectation_implementations() if name.startswith("expect_")]
    built = []
    for expectation in expectations:
        type_, where = expectation["type"], expectation["meta"]["towline"]["where"]
        if type_ not in known:  # Great Expectations would ignore it, and the suite would pass
            raise ConfigError(f"no such expectation: {type_}", where=where, remedy=suggest(type_, known))
        try:
            built.append(ExpectationConfiguration(**expectation).to_domain_obj())
        except (ValueError, TypeError, KeyError) as error:  # pydantic's ValidationError is a ValueError
            what, details = f"{type_} has invalid kwargs", tuple(line.strip() for line in str(error).splitlines()[1:7])
            raise ConfigError(what, where=where, remedy="correct its kwargs", details=details) from None
    return built


def _run_great_expectations(
    table: pd.DataFrame, built: Sequence[Any], expectations: Sequence[dict[str, Any]], examples: RowExamples
) -> dict[int, RuleResult]:
    """Runs Great Expectations in memory, without output; the results by the number of the expectation.

    Raises:
        ConfigError: an expectation cannot be evaluated.
    """
    groups: dict[tuple[str, ...], list[int]] = {}
    for number, expectation in enumerate(expectations):
        groups.setdefault(_list_confusable_columns(expectation, table.columns), []).append(number)
    results: dict[int, RuleResult] = {}
    for names, numbers in groups.items():
        part = [expectations[number] for number in numbers]
        results |= _run_suite(table.drop(columns=list(names)), [built[number] for number in numbers], part, examples)
    return results


def _list_confusable_columns(expectation: Mapping[str, Any], columns: Iterable[str]) -> tuple[str, ...]:
    """The columns whose names differ in case only from one that an expectation names.

    Great Expectations takes the first of such columns, whichever is named.

    Raises:
        ConfigError: the expectation names two of them.
    """
    named = named_columns(expectation["kwargs"])
    folded = {name.casefold() for name in named}
    if len(folded) < len(set(named)):
        what = f"Great Expectations does not distinguish {' and '.join(map(repr, named))}"
        where = expectation["meta"]["towline"]["where"]
        raise ConfigError(what, where=where, remedy="rename one of the columns, or remove the rule")
    return tuple(name for name in columns if name not in named and name.casefold() in folded)


def _run_suite(
    table: pd.DataFrame, built: Sequence[Any], expectations: Sequence[dict[str, Any]], examples: RowExamples
) -> dict[int, RuleResult]:
    """Runs Great Expectations on a table without columns that it would confuse.

    Raises:
        ConfigError: an expectation cannot be evaluated.
    """
    import great_expectations as gx
    from great_expectations.data_context.types.base import ProgressBarsConfig

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False, metric_calculations=False)
    asset = context.data_sources.add_pandas("towline").add_dataframe_asset("table")
    batch = asset.add_batch_definition_whole_dataframe("rows").get_batch({"dataframe": table})
    outcome: Any = batch.validate(
        gx.ExpectationSuite(name="towline", expectations=list(built)),
        result_format={"result_format": "SUMMARY", "partial_unexpected_count": custom_rules.EXAMPLES},
    )
    results = {result.expectation_config.meta["towline"]["id"]: result for result in outcome.results}
    for expectation in expectations:
        meta, kwargs = expectation["meta"]["towline"], expectation["kwargs"]
        if (message := _exception_message(results[meta["id"]].exception_info)) is not None:
            hidden = not examples.hidden.isdisjoint(named_columns(kwargs))
            raise ConfigError(
                f"{expectation['type']} could not be evaluated" + ("" if hidden else f": {message.strip()[:300]}"),
                where=f"{meta['where']}, column {kwargs.get('column')!r}",
                remedy="check that its kwargs fit the type of the column",
            )
    return {number: _read_result(result) for number, result in results.items()}


def _read_result(result: Any) -> RuleResult:
    details = result.result
    observed = details.get("observed_value")
    return RuleResult(
        passed=bool(result.success),
        broken=int(details.get("unexpected_count") or 0),
        rows=tuple(int(row) for row in details.get("partial_unexpected_index_list") or ()),
        observed=None if isinstance(observed, list) else observed,
        missing=tuple((details.get("details") or {}).get("mismatched", {}).get("missing") or ()),
    )


def _to_rule(examples: RowExamples, expectation: Mapping[str, Any], result: RuleResult) -> Rule:
    columns, detail = named_columns(expectation["kwargs"]), expectation["meta"]["towline"]["detail"]
    if result.observed is not None and examples.hidden.isdisjoint(columns):
        detail += f"; observed {custom_rules.show_value(result.observed)}"
    if result.missing:
        detail += f"; missing {', '.join(map(repr, result.missing))}"
    return Rule(
        rule=expectation["type"],
        column=", ".join(columns) or None,
        severity="error" if expectation["severity"] == GE_SEVERITY["error"] else "warn",
        passed=result.passed,
        count=result.broken,
        share=result.broken / max(len(examples.table), 1),
        examples=() if result.passed else examples.show(columns, result.rows),
        detail=detail,
    )


def _exception_message(info: Mapping[str, Any]) -> str | None:
    """The message of an internal error: of the expectation, or of the first metric that could not be computed."""
    for part in (info, *(part for part in info.values() if isinstance(part, Mapping))):
        if part.get("raised_exception"):
            return str(part.get("exception_message"))
    return None
