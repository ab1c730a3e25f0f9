"""The table against its contract, in one run of Great Expectations, and the report of it.

``suite`` lists the expectations of Great Expectations; ``custom_rules`` holds the rules that it does not offer.
"""

import datetime as dt
import difflib
import logging
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from towline import files
from towline.config import Frozen, Severity, TrainingConfig, ValidationConfig
from towline.data.schema.contract import Contract
from towline.data.schema.inference import infer_contract
from towline.data.validation import custom_rules, data_docs
from towline.data.validation.custom_rules import Rule
from towline.data.workspace import Workspace
from towline.errors import ConfigError, DataValidationError

GE_SEVERITY: Mapping[Severity, str] = {"error": "critical", "warn": "warning"}
HIDDEN = "***"  # a value of a column with personal data, where reports show values
LINES = 12  # of an error: with its head and foot on one screen


class Validation(Frozen):
    """Every rule with its result; ``docs`` is a file of the workspace."""

    rules: tuple[Rule, ...]
    notes: tuple[str, ...]
    failed: int
    warned: int
    docs: str = "data_docs.html"

    def text(self) -> str:
        """For people: ``23 rules, 1 failed, 0 warned``."""
        return f"{len(self.rules)} rules, {self.failed} failed, {self.warned} warned"


def validate_table(
    work: Workspace, config: TrainingConfig, declared: ValidationConfig, previous: Contract | None, now: dt.datetime
) -> Validation:
    """Infers the contract, checks the table against it and keeps what was found.

    Saves ``contract.json``, ``suite.json``, ``validation.json`` and ``data_docs.html`` in the workspace, the last two
    before a refusal too.

    Args:
        work: whose table is read.
        config: names columns, folds and the split.
        declared: rules and expectations of the user.
        previous: the champion's contract, if there is a champion.
        now: rows after it are from the future; UTC, naive or aware.

    Raises:
        ConfigError: a rule or expectation that cannot be evaluated, with its place in the config.
        DataValidationError: an error-level rule failed; one detail line each.
    """
    table = work.table()
    contract = infer_contract(table, config, work.dataset.time_format)
    _privacy(contract, config)
    work.save(Contract.FILE, contract)
    expectations = build_expectations(contract, config, declared, previous=previous, now=now)
    work.save_json("suite.json", {"name": config.name, "expectations": expectations})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of libraries, about their own use of each other
        pii = frozenset(column.name for column in contract.columns if column.pii)
        shown = table.assign(**dict.fromkeys(pii, HIDDEN))
        rules = [
            *_evaluate(table, shown, pii, expectations),
            *custom_rules.check_rules(
                table, shown, contract, config, allowed_leaks=declared.allow_leaks, previous=previous
            ),
            *custom_rules.check_coerced(work.dataset.coerced),
        ]
    notes = [f"{column.name}: left out, {column.note}" for column in contract.columns if column.note]
    rules.sort(key=lambda rule: (rule.passed, rule.severity))
    validation = Validation(
        rules=tuple(rules),
        notes=tuple(notes),
        failed=len(_failed(rules, "error")),
        warned=len(_failed(rules, "warn")),
    )
    work.save("validation.json", validation)
    page = data_docs.render_report(config.name, work.dataset, contract, validation.rules, validation.notes, now)
    report = files.write(work.file(validation.docs), page)
    if validation.failed:
        lines = [rule.line() for rule in _failed(rules, "error")]
        more = (f"and {len(lines) - LINES} more, see the report",) if len(lines) > LINES else ()
        raise DataValidationError(
            f"the table breaks {validation.failed} of {len(rules)} rules",
            where=f"{work.dataset.source}, report {report}",
            remedy="correct the source, or change a wrong rule under data or validation in the config",
            details=(*lines[:LINES], *more),
        )
    return validation


def _privacy(contract: Contract, config: TrainingConfig) -> None:
    """A misspelt column would be logged although the config says otherwise; buckets need values of the table."""
    names = [column.name for column in contract.columns] + list(config.data.drop)
    privacy = config.privacy
    for key, configured in (("privacy.pii", privacy.pii), ("privacy.columns", privacy.columns)):
        for name in configured:
            if name not in names and name not in privacy.join_on:  # a key may come with requests alone
                near = difflib.get_close_matches(name, [*names, *privacy.join_on], 1)
                known = f"did you mean {near[0]!r}?" if near else "the columns are: " + ", ".join(names[:30])
                raise ConfigError(f"no column {name!r} in the table, and no such key", where=key, remedy=known)
    for column in contract.columns:
        if column.pii and column.kind in ("numeric", "category") and privacy.columns.get(column.name) == "bucket":
            raise ConfigError(
                f"column {column.name!r} is pii, and its buckets are values of the table",
                where="privacy.columns",
                remedy="say hash or drop; or take it out of privacy.pii, if its quantiles or levels may be kept",
            )


def _failed(rules: Iterable[Rule], severity: Severity) -> list[Rule]:
    return [rule for rule in rules if not rule.passed and rule.severity == severity]


def build_expectations(
    contract: Contract,
    config: TrainingConfig,
    declared: ValidationConfig,
    *,
    previous: Contract | None = None,
    now: dt.datetime | None = None,
) -> list[dict[str, Any]]:
    """The expectations as Great Expectations reads them: ``{type, kwargs, meta, severity}``.

    Raises:
        ConfigError: a declared rule or an expectation of the user's that makes no sense for its column.
    """
    expectations = [*_table(contract, config, declared), *_declared(contract, declared)]
    expectations += [*_time(config, now), *_champion(contract, previous), *_user_expectations(contract, declared)]
    for number, expectation in enumerate(expectations):
        expectation["meta"]["towline"]["id"] = number
    return expectations


def _expect(type_: str, says: str, severity: Severity = "error", where: str = "", **kwargs: Any) -> dict[str, Any]:
    meta = {"towline": {"says": says, "where": where or "the contract"}}
    return {"type": type_, "kwargs": kwargs, "meta": meta, "severity": GE_SEVERITY[severity]}


def _table(contract: Contract, config: TrainingConfig, rules: ValidationConfig) -> Iterator[dict[str, Any]]:
    target = contract.target
    # each fold needs a row, and so does the part before the first
    folds = config.cross_validation.folds
    held = config.split.holdout
    rows = max(rules.min_rows, math.ceil((folds + 1) / (1 - held)) if isinstance(held, float) else folds + 2)
    needs = f"needs at least {rows} rows" + (f" for {folds} folds and a holdout" if rows > rules.min_rows else "")
    names = sorted({*(column.name for column in contract.columns), *rules.columns, *rules.unique})
    yield _expect("expect_table_row_count_to_be_between", needs, min_value=rows)
    yield _expect(
        "expect_table_columns_to_match_set", f"has the {len(names)} columns", column_set=names, exact_match=False
    )
    yield _expect("expect_column_values_to_not_be_null", "the target is never null", column=target)
    yield _expect(
        "expect_column_unique_value_count_to_be_between",
        "the target needs two different values",
        column=target,
        min_value=2,
    )
    for column in contract.columns:
        if column.nullable and column.role != "target" and config.data.columns.get(column.name) != "ignore":
            yield _expect(
                "expect_column_proportion_of_non_null_values_to_be_between",
                "needs a value somewhere, else list it under data.drop",
                column=column.name,
                min_value=0.0,
                strict_min=True,
            )


def _declared(contract: Contract, rules: ValidationConfig) -> Iterator[dict[str, Any]]:
    present = {column.name: column for column in contract.columns}
    for name, rule in rules.columns.items():
        where = f"validation.columns.{name}"
        if name not in present:
            continue  # the column set names it
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
            spelled = [present[name].reader.spell(text) or text for text in rule.categories]
            yield _one_of(name, spelled, rule.severity, where)
        if rule.unique:
            yield _expect("expect_column_values_to_be_unique", "no value twice", rule.severity, where, column=name)
    key = rules.unique
    if key and present.keys() >= set(key):
        says = f"no two rows with the same {', '.join(key)}"
        if len(key) == 1:
            yield _expect("expect_column_values_to_be_unique", says, where="validation.unique", column=key[0])
        else:
            yield _expect(
                "expect_compound_columns_to_be_unique", says, where="validation.unique", column_list=list(key)
            )


def _time(config: TrainingConfig, now: dt.datetime | None) -> Iterator[dict[str, Any]]:
    time = config.data.time
    if time is None:
        return
    yield _expect("expect_column_values_to_not_be_null", "every row has a time", column=time)
    if now is not None:
        # a table in local time runs up to 14 hours ahead of UTC
        latest = _naive(now) + dt.timedelta(hours=14)
        says = f"no row from the future (after {latest:%Y-%m-%d %H:%M}, now with 14 hours for local time)"
        yield _expect("expect_column_values_to_be_between", says, column=time, max_value=latest)
    yield _expect("expect_column_values_to_be_increasing", "rows stand in order of time", "warn", column=time)


def _champion(contract: Contract, previous: Contract | None) -> Iterator[dict[str, Any]]:
    present = {column.name: column for column in contract.columns}
    where = "the champion's contract"
    for old in previous.feature_columns if previous else ():
        if old.name not in present or present[old.name].kind != old.kind:
            continue  # checks.run tells
        if not old.nullable:
            says = "never null, as in the champion's training"
            yield _expect("expect_column_values_to_not_be_null", says, "warn", where, column=old.name)
        if present[old.name].pii:
            continue  # a champion made before the column was named may know its values
        if old.kind == "numeric" and (old.min is not None or old.max is not None):
            yield _between(old.name, old.min, old.max, "warn", where, ", as in the champion's training")
        if old.kind == "category" and old.categories:
            yield _one_of(old.name, old.categories, "warn", where, ", as in the champion's training")


def _user_expectations(contract: Contract, rules: ValidationConfig) -> Iterator[dict[str, Any]]:
    """The user's expectations; what Great Expectations would take for valid and misread is refused."""
    kinds: dict[str, str] = {column.name: column.kind for column in contract.columns}
    for number, own in enumerate(rules.expectations):
        where = f"validation.expectations[{number}]"
        kwargs = dict(own.kwargs)
        named = [kwargs.get(key) for key in ("column", "column_A", "column_B")] + list(kwargs.get("column_list") or ())
        for name in named:
            if name is not None and name not in kinds:
                remedy = _did_you_mean(str(name), kinds)
                raise ConfigError(f"{own.type} names a column the table lacks: {name!r}", where=where, remedy=remedy)
        if kinds.get(str(kwargs.get("column"))) == "datetime":
            for key in kwargs.keys() & {"min_value", "max_value", "value_set"}:
                kwargs[key] = _times(kwargs[key], where)
        low, high = kwargs.get("min_value"), kwargs.get("max_value")
        if any(isinstance(bound, float) and math.isnan(bound) for bound in (low, high)):
            raise ConfigError(f"a bound of {own.type} is NaN", where=where, remedy="give a number, or leave it out")
        if low is not None and high is not None and type(low) is type(high) and low > high:
            raise ConfigError(f"min_value {low} is above max_value {high}", where=where, remedy="swap them")
        says = ", ".join(f"{key} {value}" for key, value in kwargs.items() if key != "column")
        yield _expect(own.type, says, own.severity, where, **kwargs)


def _between(
    name: str, low: float | None, high: float | None, severity: Severity, where: str, because: str = ""
) -> dict[str, Any]:
    says = " and ".join(
        f"{word} {bound:g}" for word, bound in (("at least", low), ("at most", high)) if bound is not None
    )
    bounds = {key: bound for key, bound in (("min_value", low), ("max_value", high)) if bound is not None}
    return _expect("expect_column_values_to_be_between", says + because, severity, where, column=name, **bounds)


def _one_of(name: str, categories: Sequence[str], severity: Severity, where: str, because: str = "") -> dict[str, Any]:
    # the contract writes categories as text; the table may hold the same as numbers or booleans
    values: list[Any] = list(categories)
    values += [number for text in categories if (number := _number(text)) is not None]
    values += [text in ("True", "true") for text in categories if text in ("True", "true", "False", "false")]
    more = f" and {len(categories) - 10} more" if len(categories) > 10 else ""
    says = f"one of {', '.join(categories[:10])}{more}{because}"
    return _expect("expect_column_values_to_be_in_set", says, severity, where, column=name, value_set=values)


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _naive(moment: dt.datetime) -> dt.datetime:
    return moment.astimezone(dt.UTC).replace(tzinfo=None) if moment.tzinfo else moment


def _times(value: Any, where: str) -> Any:
    """Dates and ISO strings as the naive UTC datetimes the table holds."""
    if isinstance(value, list | tuple):
        return [_times(one, where) for one in value]
    if value is None:
        return None
    try:
        return _naive(pd.Timestamp(value).to_pydatetime())
    except (ValueError, TypeError):
        raise ConfigError(f"not a date: {value!r}", where=where, remedy="write it as 2024-12-31") from None


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), 1, 0.5)
    return f"did you mean {near[0]}?" if near else "check the spelling"


def _evaluate(
    table: pd.DataFrame, shown: pd.DataFrame, pii: frozenset[str], expectations: Sequence[dict[str, Any]]
) -> list[Rule]:
    """One run of Great Expectations, in memory and without a word; ``shown`` is the table that examples are of."""
    logger = logging.getLogger("great_expectations")
    if not logger.handlers:  # else Python itself prints its warnings on stderr
        logger.addHandler(logging.NullHandler())
    import great_expectations as gx
    from great_expectations.data_context.types.base import ProgressBarsConfig
    from great_expectations.expectations.expectation_configuration import ExpectationConfiguration
    from great_expectations.expectations.registry import list_registered_expectation_implementations

    # the others are SQL, which a table in memory does not speak
    known = [name for name in list_registered_expectation_implementations() if name.startswith("expect_")]
    built = []
    for expectation in expectations:
        type_, where = expectation["type"], expectation["meta"]["towline"]["where"]
        if type_ not in known:  # Great Expectations would drop it and pass
            raise ConfigError(f"no such expectation: {type_}", where=where, remedy=_did_you_mean(type_, known))
        try:
            built.append(ExpectationConfiguration(**expectation).to_domain_obj())
        except (ValueError, TypeError, KeyError) as error:  # pydantic's ValidationError is a ValueError
            details = tuple(line.strip() for line in str(error).splitlines()[1:7])
            raise ConfigError(
                f"{type_} does not take these kwargs", where=where, remedy="correct its kwargs", details=details
            ) from None
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False, metric_calculations=False)
    asset = context.data_sources.add_pandas("towline").add_dataframe_asset("table")
    batch = asset.add_batch_definition_whole_dataframe("rows").get_batch({"dataframe": table})
    outcome: Any = batch.validate(
        gx.ExpectationSuite(name="towline", expectations=built),
        result_format={"result_format": "SUMMARY", "partial_unexpected_count": custom_rules.EXAMPLES},
    )
    results = {result.expectation_config.meta["towline"]["id"]: result for result in outcome.results}
    return [_rule(shown, pii, expectation, results[number]) for number, expectation in enumerate(expectations)]


def _rule(shown: pd.DataFrame, pii: frozenset[str], expectation: Mapping[str, Any], result: Any) -> Rule:
    kwargs, meta = expectation["kwargs"], expectation["meta"]["towline"]
    columns = [name for key in ("column", "column_A", "column_B") if (name := kwargs.get(key))]
    columns += list(kwargs.get("column_list") or ())
    hidden = not pii.isdisjoint(columns)
    if (message := _exception(result.exception_info)) is not None:
        raise ConfigError(
            f"{expectation['type']} could not be evaluated" + ("" if hidden else f": {message.strip()[:300]}"),
            where=f"{meta['where']}, column {kwargs.get('column')!r}",
            remedy="check that its kwargs fit the type of the column",
        )
    details = result.result
    count = int(details.get("unexpected_count") or 0)
    rows = [int(row) for row in details.get("partial_unexpected_index_list") or ()]
    detail = meta["says"]
    if (observed := details.get("observed_value")) is not None and not isinstance(observed, list) and not hidden:
        detail += f"; observed {custom_rules.show_value(observed)}"
    if missing := (details.get("details") or {}).get("mismatched", {}).get("missing"):
        detail += f"; missing {', '.join(map(repr, missing))}"
    return Rule(
        rule=expectation["type"],
        column=", ".join(columns) or None,
        severity="error" if expectation["severity"] == GE_SEVERITY["error"] else "warn",
        passed=bool(result.success),
        count=count,
        share=count / max(len(shown), 1),
        examples=() if result.success else custom_rules.example_rows(shown, columns, rows),
        detail=detail,
    )


def _exception(info: Mapping[str, Any]) -> str | None:
    """The message of an internal error: flat, or one for each metric that could not be computed."""
    for part in (info, *(part for part in info.values() if isinstance(part, Mapping))):
        if part.get("raised_exception"):
            return str(part.get("exception_message"))
    return None
