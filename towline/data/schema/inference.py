"""Inference of the contract from a table: kind, role, range and levels of each column, the task and its classes."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pandas as pd
import pyarrow as pa

from towline.config import Kind, Task, TrainingConfig
from towline.data.schema import text_columns
from towline.data.schema.columns import convert_column, list_examples
from towline.data.schema.contract import Column, Contract, DerivedColumn, Label, Role, column_types
from towline.data.schema.detection.kind_model import LABELLED_KINDS, KindModel, LabelledKind, describe_column
from towline.data.schema.detection.task import infer_task
from towline.data.schema.lookup_tables import (
    LookupFrame,
    LookupSource,
    check_future,
    check_lookup_names,
    freeze_lookup,
    read_lookup_frame,
)
from towline.data.schema.lookups import Lookup
from towline.data.schema.pseudonyms import derive_salt
from towline.data.schema.values import (
    AFFIRMATIVE,
    NEGATIVE,
    PLAIN,
    Spelling,
    ValueFormat,
    category_name,
    column_format,
    fold_case,
)
from towline.data.snapshot import Table
from towline.errors import ConfigError
from towline.expressions.compilation import Expression
from towline.expressions.operations import Type
from towline.expressions.parts import Columns
from towline.expressions.syntax import ExpressionError, list_columns, parse

MAX_LEVELS = 100  # of a category whose levels are listed
SURE = 0.9  # the probability from which the classifier of columns changes what the type of the values says
_LIKELY = 0.5  # the same for text, which is a category or left out
_REPEATED = 0.2  # of the rows: text, lists and addresses with fewer levels repeat, and are categories
_UNIQUE = 0.95  # of the values that are not null
_CODE_ROWS = 20  # of a code, on average
_BLOCK_ROWS = 2**20  # that are described together
_CLOCK_CORRELATION, _CLOCK_VALUES = 0.98, 5  # least rank correlation with the time, least distinct values
_CLOCK_ROWS = 100_000  # from which the correlation is computed
_YEARS = (1_500, 2_200)
_KEY_NAME = re.compile(r"(?i)(?:^|[\W_])(id|key|uuid|index|nr|no)$")
_KEY_TEXT = re.compile(r"(?=.*[0-9])(?=.*[A-Za-z])[\w-]{10,64}", re.ASCII)  # as long as all others, such as a hash
# numbers from 1 that are quantities
_ORDER_NAME = re.compile(
    r"(?i)(?<![a-z])(rank|ranking|position|age|time|step|hour|day|week|month|quarter|year)s?(?![a-z])"
)
_PROSE: dict[LabelledKind, str] = {"sentence": "free text", "list": "lists of values", "url": "addresses of web pages"}
# days of the cycle of a calendar part, which is derived if the table has at least one and a half cycles
_CYCLES = {"month": 365, "weekday": 7, "day": 31, "hour": 1}
# kinds and dtypes of the results of expressions; texts are categories or texts, depending on their levels
_KINDS: Mapping[Type, Kind] = {"number": "numeric", "boolean": "boolean", "datetime": "datetime"}
_DTYPES: Mapping[Type, Any] = {"text": object}
_NO_LOOKUPS: Mapping[str, LookupSource] = MappingProxyType({})
_AnyColumn = TypeVar("_AnyColumn", bound=Column)


def infer_contract(
    frame: Table,
    config: TrainingConfig,
    formats: Iterable[tuple[str, ValueFormat]] = (),
    lookups: Mapping[str, LookupSource] = _NO_LOOKUPS,
) -> Contract:
    """Infers the contract; ``data.columns`` and ``task`` of the config have priority.

    Args:
        frame: a snapshot; one column after the other is read.
        config: names the target, time and group, and the declared kinds.
        formats: ``Dataset.formats`` of the snapshot.
        lookups: the tables of ``config.lookups``, from ``Workspace.lookups``.

    Raises:
        ConfigError: the values do not allow the kind, task or positive class that the config sets.
    """
    target = frame[config.data.target]
    task, reason = (config.task, "") if config.task else infer_task(target)
    known, predictions = dict(formats), _classify_columns(frame, config)
    columns = tuple(
        _hide_values(_infer_column(frame[name], config, task, known.get(name), predictions.get(name)), config)
        for name in frame.columns
    )
    columns = _mark_clock_columns(frame, columns)
    columns = tuple(c.model_copy(update={"reason": reason}) if c.role == "target" else c for c in columns)
    joins = _JoinedTables.join(frame, config, task, columns, lookups)
    derived = (*joins.columns, *_infer_derived(frame, config, task, columns, joins))
    columns, derived = _add_ages(columns, derived, trend=not config.data.detrend)
    name, classes = config.data.target, () if task == "regression" else _distinct_classes(target)
    if task == "binary" and len(classes) > 2:
        what = f"the target {name!r} has {len(classes)} classes, not 2"
        raise ConfigError(what, where="task", remedy="set task: multiclass")
    positive = _positive_class(target, classes, config.data.positive) if task == "binary" else None
    salt = derive_salt(config.name)
    return Contract(
        target=name, task=task, columns=columns, derived=derived, lookups=joins.lookups, classes=classes,
        positive=positive, salt=salt,
    )  # fmt: skip


class _Prediction(NamedTuple):
    """The most probable kind of a column according to the classifier of columns, and its probability."""

    kind: LabelledKind
    probability: float

    def is_sure(self, kind: LabelledKind) -> bool:
        return self.kind == kind and self.probability >= SURE


def _classify_columns(frame: Table, config: TrainingConfig) -> dict[str, _Prediction]:
    """Predictions for the columns whose kind neither the config nor the type of the values gives."""
    given = {config.data.target, config.data.time, *config.data.columns}
    names = [name for name in frame.columns if name not in given and frame[name].dtype.kind not in "bM"]
    probabilities = KindModel.read().predict([describe_column(frame[name]) for name in names])
    best = probabilities.argmax(axis=1)
    return {
        name: _Prediction(LABELLED_KINDS[place], float(row[place]))
        for name, row, place in zip(names, probabilities, best, strict=True)
    }


def _infer_column(
    values: pd.Series, config: TrainingConfig, task: Task, fmt: ValueFormat | None, prediction: _Prediction | None
) -> Column:
    data, name = config.data, str(values.name)
    role: Role = "target" if name == data.target else "group" if name == data.group else "feature"
    configured = data.columns.get(name)
    if name == data.time:
        role, configured = "time", "datetime"
    kind, reason = (configured, "") if configured else _infer_kind(values, prediction)
    if role == "target":
        kind = "numeric" if task == "regression" else "boolean" if values.dtype.kind == "b" else "category"
    fmt = fmt or column_format(data, name)
    canonical, bad = (values, ()) if kind == "ignore" else convert_column(values, kind, fmt)
    if len(bad):
        raise ConfigError(
            f"column {name!r} holds values that are not {kind}",
            where="task" if role == "target" else f"data.columns: {name}",
            remedy="correct the values, or choose a kind or task that fits them",
            details=(list_examples(values, bad, hidden=name in config.privacy.pii),),
        )
    series = pd.Series(canonical)
    if kind == "category" and fmt.spelling == "text":
        fmt = fmt.model_copy(update={"spelling": _spelling(series)})
    nullable, levels = bool(series.isna().any()), count_distinct(series)
    plain = Column(name=name, kind=kind, role=role, nullable=nullable, levels=levels, format=fmt, reason=reason)
    column = plain.model_copy(update=_describe_values(series, plain))
    if role == "time" and data.columns.get(name) == "ignore":
        return column.model_copy(update={"derive": (), "note": "data.columns says ignore"})
    note = ""
    if kind == "ignore":
        note = "data.columns says ignore"
    elif kind == "text" and name in config.privacy.pii:
        note = f"{reason or 'text'}, and personal data: its words cannot be replaced by pseudonyms"
    elif role == "feature":
        note = _reason_to_ignore(series, column, prediction)
    if role == "feature" and note:
        return plain.model_copy(update={"role": "ignored", "note": note})
    return column


class _JoinedTables(NamedTuple):
    """The lookups of a config, joined to the rows of the training table.

    Attributes:
        lookups: the frozen tables.
        columns: the joined columns.
        values: their canonical values (n,), in the order of ``columns``.
    """

    lookups: tuple[Lookup, ...]
    columns: tuple[DerivedColumn, ...]
    values: tuple[np.ndarray, ...]

    @classmethod
    def join(
        cls,
        frame: Table,
        config: TrainingConfig,
        task: Task,
        columns: Sequence[Column],
        sources: Mapping[str, LookupSource],
    ) -> "_JoinedTables":
        """Reads the tables, checks and freezes them, and joins their columns.

        Raises:
            ConfigError: a name, a key or the times of a lookup do not fit the rows.
            DataError: a key occurs twice.
        """
        lookups, joined, values = list[Lookup](), list[DerivedColumn](), list[np.ndarray]()
        by_name = {column.name: column for column in columns}
        check_lookup_names(config.lookups, by_name)
        for name, settings in config.lookups.items():
            table = read_lookup_frame(name, settings, sources[name], by_name)
            keys = [_canonical_values(frame, column) for column in table.keys]
            time = by_name[config.data.time] if config.data.time else None
            times = None if time is None else _canonical_values(frame, time)
            lookup, order = freeze_lookup(table, _infer_lookup_columns(table), config.data.time)
            places = lookup.table.find_entries(keys, times if lookup.row_time else None)
            if times is not None:
                check_future(table, order, places, times)
            unmatched = int((places == lookup.entries).sum())
            lookup = lookup.model_copy(update={"rows": len(frame), "unmatched": unmatched})
            for at, (column, kind) in enumerate(lookup.columns):
                values.append(lookup.table.read_values(at, places))
                dtype = object if values[-1].dtype == object else None
                series = pd.Series(values[-1], name=column, dtype=dtype)
                text = f"lookup {name} by {', '.join(lookup.inputs)}"
                joined.append(_infer_computed(series, kind, config, task, expression=text, inputs=lookup.inputs))
                joined[-1] = joined[-1].model_copy(update={"lookup": name})
            lookups.append(lookup)
        return cls(tuple(lookups), tuple(joined), tuple(values))


def _canonical_values(frame: Table, column: Column) -> np.ndarray:
    return convert_column(frame[column.name], column.kind, column.format)[0]


def _infer_lookup_columns(table: LookupFrame) -> dict[str, tuple[np.ndarray, Kind]]:
    """For each joined column its canonical values and its kind."""
    names = [name for name in table.config.names if name not in table.config.kinds]
    sources = [table.frame[table.config.names[name]] for name in names]
    probabilities = KindModel.read().predict([describe_column(values) for values in sources]) if names else ()
    kinds: dict[str, Kind] = dict(table.config.kinds)
    for name, values, row in zip(names, sources, probabilities, strict=True):
        best = int(np.argmax(row))
        prediction = None if values.dtype.kind in "bM" else _Prediction(LABELLED_KINDS[best], float(row[best]))
        kinds[name] = _infer_kind(values, prediction)[0]
    columns = {}
    for name, source in table.config.names.items():
        canonical, bad = convert_column(table.frame[source], kinds[name])
        if len(bad) or kinds[name] == "ignore":
            raise ConfigError(
                f"column {source!r} of the table holds values that are not {kinds[name]}",
                where=f"lookups.{table.name}.kinds: {name}",
                remedy="choose the kind category, or do not list the column",
                details=(list_examples(table.frame[source], bad),),
            )
        columns[name] = (canonical, kinds[name])
    return columns


def _infer_computed(
    series: pd.Series,
    kind: Kind,
    config: TrainingConfig,
    task: Task,
    *,
    expression: str,
    inputs: tuple[str, ...],
    pii: bool = False,
) -> DerivedColumn:
    """A computed column, described as a column of the table with these values and this kind."""
    name = str(series.name)
    privacy = config.privacy.model_copy(update={"pii": (name,) if pii else ()})
    data = config.data.model_copy(update={"columns": {name: kind}})
    declared = config.model_copy(update={"data": data, "privacy": privacy})
    column = _hide_values(_infer_column(series, declared, task, PLAIN, None), declared)
    fields = {field: getattr(column, field) for field in Column.model_fields}
    return DerivedColumn(**fields, expression=expression, inputs=inputs)


def _infer_derived(
    frame: Table, config: TrainingConfig, task: Task, columns: Sequence[Column], joins: _JoinedTables
) -> tuple[DerivedColumn, ...]:
    """The features of the config as columns; their kinds follow from their expressions."""
    if not config.features:
        return ()
    readable = [column for column in columns if column.role != "target" and column.kind != "ignore"]
    expressions = _compile_features(frame, config, columns, column_types([*readable, *joins.columns]))
    used = {name for expression in expressions.values() for name in expression.inputs}
    rows = {column.name: frame[column.name] if column.name in used else frame[column.name][:0] for column in readable}
    arrays = [convert_column(rows[c.name], c.kind, c.format)[0] for c in readable]
    values = Columns([*arrays, *joins.values], len(frame))
    pii = {column.name for column in readable if column.name in config.privacy.pii}
    joined = {column.name: column.inputs for column in joins.columns}
    derived = []
    for name, expression in expressions.items():
        series = pd.Series(expression.evaluate_columns(values), name=name, dtype=_DTYPES.get(expression.type))
        kind = _KINDS.get(expression.type) or _infer_kind(series, None)[0]
        inputs = dict.fromkeys(each for read in expression.inputs for each in joined.get(read, (read,)))
        column = _infer_computed(
            series, kind, config, task, expression=expression.text, inputs=tuple(inputs), pii=bool(pii & set(inputs))
        )
        reads = tuple(read for read in expression.inputs if read in joined)
        derived.append(column.model_copy(update={"joined": reads}))
    return tuple(derived)


def _compile_features(
    frame: Table, config: TrainingConfig, columns: Sequence[Column], types: Mapping[str, tuple[Type, int]]
) -> dict[str, Expression]:
    """The compiled expressions of the config.

    Raises:
        ConfigError: a feature has the name of a column, or an expression does not fit the columns.
    """
    ignored = {column.name for column in columns if column.kind == "ignore"}
    compiled, errors = {}, []
    for name, text in config.features.items():
        if name in frame.columns:
            what = "the table has a column of this name"
            raise ConfigError(what, where=f"features.{name}", remedy="give the feature another name")
        try:
            _check_readable(text, ignored)
            compiled[name] = Expression(text, types)
        except ExpressionError as error:
            errors.append((name, error.describe(text), error.remedy))
    if errors:
        name, what, remedy = errors[0]
        details = tuple(f"features.{other}: {message}" for other, message, _ in errors[1:10])
        what = what.removesuffix(f"; {remedy}")
        raise ConfigError(what, where=f"features.{name}", remedy=remedy or "correct the expression", details=details)
    return compiled


def _check_readable(text: str, ignored: Collection[str]) -> None:
    for column in list_columns(parse(text)):
        if column.name in ignored:
            remedy = "declare its kind under data.columns instead of ignore"
            raise ExpressionError(f"column {column.name!r} is not read", column.at, remedy)


def count_distinct(values: pd.Series) -> int:
    """The number of distinct values that are not null. For numbers, sorting needs less memory than a hash table.

    Example:
        >>> count_distinct(pd.Series([2.0, None, 1.5, 2.0]))
        2
    """
    if values.dtype.kind not in "fiM":
        return int(values.nunique())
    present = values.to_numpy()[values.notna().to_numpy()]
    present = present.view(np.int64) if present.dtype.kind == "M" else present
    present.sort()
    return int(np.count_nonzero(present[1:] != present[:-1])) + bool(len(present))


def _spelling(levels: pd.Series) -> Spelling:
    distinct = levels.dropna().unique()
    return text_columns.detect_spelling(pa.chunked_array([pa.array(list(distinct), pa.large_string())]))


def _hide_values(column: Column, config: TrainingConfig) -> Column:
    """The column; without values of the table if it holds personal data."""
    if column.name not in config.privacy.pii:
        return column
    return column.model_copy(update={"pii": True, "min": None, "max": None, "categories": None})


def _describe_values(values: pd.Series, column: Column) -> dict[str, Any]:
    """The attributes of a column that describe its values."""
    if column.kind == "category":
        return {"categories": tuple(sorted(values.dropna().unique())) if column.levels <= MAX_LEVELS else None}
    if column.kind == "datetime":
        return {"derive": _calendar_parts(values) if column.role in ("feature", "time") else ()}
    numbers = values.to_numpy() if column.kind in ("numeric", "boolean") else np.empty(0)
    smallest, largest, whole = np.inf, -np.inf, True
    for start in range(0, len(numbers), _BLOCK_ROWS):
        block = numbers[start : start + _BLOCK_ROWS]
        if len(finite := block[np.isfinite(block)]):
            smallest, largest = min(smallest, float(finite.min())), max(largest, float(finite.max()))
            whole = whole and bool((finite == np.floor(finite)).all())
    update = {"reason": "of texts such as <5, 10-20 and 7*"} if column.format.measure == "approximate" else {}
    return {"min": smallest, "max": largest, "integer": whole, **update} if smallest <= largest else update


def _reason_to_ignore(values: pd.Series, column: Column, prediction: _Prediction | None) -> str:
    """Empty if the column is used. There is no prediction for a column whose kind the config declares."""
    if column.levels == 0:
        return "has no values"
    if column.levels == 1 and not column.nullable:
        return "constant"
    if column.kind == "datetime" and not column.derive:
        return "spans too little time for any calendar part"
    if prediction and _identifies_rows(values, column, prediction):
        return f"identifies the row; data.columns: {{{column.name}: {column.kind}}} would use it"
    return ""


def _infer_kind(values: pd.Series, prediction: _Prediction | None) -> tuple[Kind, str]:
    """The kind, and the reason if the type of the values alone does not say it."""
    kinds: dict[str, Kind] = {"b": "boolean", "i": "numeric", "u": "numeric", "f": "numeric", "M": "datetime"}
    if values.dtype.kind in kinds:
        if prediction and prediction.is_sure("categorical") and _are_codes(values):
            return "category", f"whole numbers that are codes, with probability {prediction.probability:.2f}"
        return kinds[values.dtype.kind], ""
    present = values.dropna()
    levels = present.nunique()
    if levels <= 20:
        return "category", ""
    counts = f"{levels} levels in {len(present)} rows"
    likely = prediction.kind if prediction and prediction.probability >= _LIKELY else None
    if likely in _PROSE and levels > _REPEATED * len(present):
        return "text", f"{_PROSE[likely]}: {counts}"
    unique = levels == len(values) or _are_keys(values)
    if prediction and prediction.is_sure("not-generalizable"):
        unique |= levels > _UNIQUE * len(present)
    if unique and present.astype(str).str.fullmatch(r"[^\s]{1,64}").all():
        return "category", ""  # _identifies_rows reports it
    if float(present.astype(str).str.len().median()) > 60:
        return "text", "long text"
    return ("text", f"nearly unique: {counts}") if levels > 0.5 * len(present) else ("category", "")


def _are_codes(values: pd.Series) -> bool:
    """Whether whole numbers can be levels of a category: few of them, and no years, of which there will be more."""
    present = values.dropna().to_numpy(np.float64)
    if not np.isfinite(present).all() or not (present == np.floor(present)).all():
        return False
    years = present.min() >= _YEARS[0] and present.max() <= _YEARS[1]
    return not years and 2 < len(np.unique(present)) <= min(MAX_LEVELS, len(present) // _CODE_ROWS)


def _are_keys(values: pd.Series) -> bool:
    """Whether nearly all texts are different keys of one length, such as hashes, with letters and digits.

    Example:
        >>> _are_keys(pd.Series([f"id{number:09d}" for number in range(99)] + ["id000000000"]))
        True
    """
    texts = values.dropna().astype(str)
    if texts.nunique() <= _UNIQUE * len(texts) or texts.str.len().nunique() != 1:
        return False
    return bool(texts.str.fullmatch(_KEY_TEXT).mean() > _UNIQUE)


def _identifies_rows(values: pd.Series, column: Column, prediction: _Prediction) -> bool:
    if column.levels <= 20 or column.kind not in ("numeric", "category"):
        return False
    if column.levels != len(values):
        whole = column.kind == "category" or column.integer
        nearly_unique = column.levels > _UNIQUE * int(values.notna().sum())
        sure = prediction.is_sure("not-generalizable") or (column.kind == "category" and _are_keys(values))
        return whole and nearly_unique and sure
    if column.kind == "category":
        return True
    if not column.integer or not np.isfinite(values).all():
        return False
    if _KEY_NAME.search(column.name):
        return True
    if prediction.kind != "not-generalizable" or _ORDER_NAME.search(column.name):
        return False
    is_dense = float(values.max() - values.min()) < 2 * len(values)
    return is_dense or bool(values.is_monotonic_increasing or values.is_monotonic_decreasing)


def _mark_clock_columns(frame: Table, columns: tuple[Column, ...]) -> tuple[Column, ...]:
    """Sets the rank correlation of numbers that follow the time of the row."""
    time = next((column for column in columns if column.role == "time"), None)
    if time is None:
        return columns
    step = -(-len(frame) // _CLOCK_ROWS)
    ranks = pd.Series(_canonical_values(frame, time)[::step]).rank()
    return tuple(
        column.model_copy(update={"time_correlation": _clock_correlation(frame, column, step, ranks)})
        if column.role == "feature" and column.kind == "numeric" and column.levels >= _CLOCK_VALUES
        else column
        for column in columns
    )


def _clock_correlation(frame: Table, column: Column, step: int, ranks: pd.Series) -> float | None:
    values = pd.Series(_canonical_values(frame, column)[::step])
    correlation = float(values.rank().corr(ranks)) if values.nunique() >= _CLOCK_VALUES else 0.0
    return round(correlation, 4) if abs(correlation) >= _CLOCK_CORRELATION else None


def _calendar_parts(times: pd.Series) -> tuple[str, ...]:
    """The parts of a date that vary and whose cycle the dates cover one and a half times.

    Dates that stand for months or years, because all are the same day of the month or its last one, have no weekday and
    no day: a model would only recognize single months by them.
    """
    present = times.dropna()
    if present.empty:
        return ()
    days = (present.max() - present.min()) / pd.Timedelta(days=1)
    is_monthly = present.dt.day.nunique() == 1 or bool(present.dt.is_month_end.all())
    return tuple(
        part
        for part, cycle in _CYCLES.items()
        if days >= 1.5 * cycle
        and getattr(present.dt, part).nunique() > 1
        and not (is_monthly and part in ("weekday", "day"))
    )


def _add_ages(
    columns: tuple[Column, ...], derived: tuple[DerivedColumn, ...], *, trend: bool
) -> tuple[tuple[Column, ...], tuple[DerivedColumn, ...]]:
    """Dates with their age at the row's time, or with their days if there is no time column.

    If ``trend``, the time itself has its days. Personal dates get neither, which would reveal them. If the model does
    not use the time, because it has no parts or ``data.columns`` ignores it, a request need not have it.
    """

    def add_part(column: _AnyColumn, role: Role, part: str) -> _AnyColumn:
        if column.role != role or column.kind != "datetime" or column.pii or column.levels < 2 or column.note:
            return column
        return column.model_copy(update={"derive": (*column.derive, part)})

    if trend:
        columns = tuple(add_part(column, "time", "days") for column in columns)
    times = [column for column in columns if column.role == "time"]
    if times and not times[0].derive:
        return columns, derived
    part = "age" if times else "days"
    return (
        tuple(add_part(column, "feature", part) for column in columns),
        tuple(add_part(column, "feature", part) for column in derived),
    )


def _distinct_classes(target: pd.Series) -> tuple[Label, ...]:
    labels = target.dropna().unique().tolist()
    if target.dtype.kind == "f" and all(label.is_integer() for label in labels):
        labels = [int(label) for label in labels]
    return tuple(sorted(labels))


def _positive_class(target: pd.Series, classes: tuple[Label, ...], configured: str | int | bool | None) -> Label | None:
    names = {label: fold_case(str(category_name(label))) for label in classes}
    if configured is not None:
        exact = [label for label in classes if category_name(label) == category_name(configured)]
        if isinstance(configured, bool) and not exact:  # YAML reads yes and no as booleans
            exact = [label for label in classes if names[label] in (AFFIRMATIVE if configured else NEGATIVE)]
        exact = exact or [label for label in classes if names[label] == fold_case(str(configured))]
        if len(exact) == 1:
            return exact[0]
        raise ConfigError(
            f"no class {configured!r} in the target", where="data.positive", remedy=f"the classes are {list(classes)}"
        )
    affirmative = [label for label in classes if names[label] in AFFIRMATIVE]
    if len(affirmative) == 1:
        return affirmative[0]
    counts = target.value_counts()
    return min(reversed(classes), key=lambda label: int(counts[label])) if classes else None
