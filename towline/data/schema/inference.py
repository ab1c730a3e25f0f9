"""Reads a contract off a table: the kind, role, range and levels of each column, the task and its classes."""

import re
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

from towline.config import Kind, Task, TrainingConfig
from towline.data.schema import text_columns
from towline.data.schema.columns import convert_column, list_examples
from towline.data.schema.contract import Column, Contract, Label, Role
from towline.data.schema.kind_model import LABELLED_KINDS, KindModel, LabelledKind, describe_column
from towline.data.schema.notation import detect_date_formats
from towline.data.schema.pseudonyms import derive_salt
from towline.data.schema.task import infer_task
from towline.data.schema.values import Spelling, ValueFormat, category_name, column_format
from towline.errors import ConfigError

LEVELS = 100  # a category with more is known by its count alone
SURE = 0.9  # the probability from which the classifier of columns changes what the type of the values says
_REPEATED = 0.2  # of the rows: text, lists and addresses with fewer levels repeat, and are categories
_UNIQUE = 0.95  # of the values that are not null
_PROSE: dict[LabelledKind, str] = {"sentence": "free text", "list": "lists of values", "url": "addresses of web pages"}
_YES = {"yes", "true", "1", "y", "t", "positive"}
_NO = {"no", "false", "0", "n", "f", "negative"}
# a calendar part is worth deriving when the table has seen its cycle one and a half times
_CYCLES = {"month": 365, "weekday": 7, "day": 31, "hour": 1}


def infer_contract(frame: pd.DataFrame, config: TrainingConfig, time_format: str | None = None) -> Contract:
    """Reads kinds, roles, ranges and classes off a table; ``data.columns`` and ``task`` of the config come first.

    Args:
        frame: a snapshot as ``sources.read`` gives it.
        config: names the target, time and group, and the kinds that are declared.
        time_format: ``Dataset.time_format`` of the snapshot.

    Raises:
        ConfigError: the config asks for a kind, task or positive class the values do not allow.
    """
    target = frame[config.data.target]
    task, reason = (config.task, "") if config.task else infer_task(target)
    labelled = _classify_columns(frame, config)
    columns = tuple(
        _private(_column(frame[name], config, task, time_format, labelled.get(name)), config) for name in frame.columns
    )
    if reason:
        columns = tuple(c.model_copy(update={"reason": reason}) if c.role == "target" else c for c in columns)
    if task == "regression":
        return Contract(target=config.data.target, task=task, columns=columns, salt=derive_salt(config.name))
    classes = _classes(target)
    if task == "binary" and len(classes) > 2:
        raise ConfigError(
            f"the target {config.data.target!r} has {len(classes)} classes, not 2", where="task", remedy="multiclass"
        )
    positive = _positive(target, classes, config.data.positive) if task == "binary" else None
    return Contract(
        target=config.data.target,
        task=task,
        columns=columns,
        classes=classes,
        positive=positive,
        salt=derive_salt(config.name),
    )


class _Labelled(NamedTuple):
    """What the classifier of columns says of one: its most probable kind, and the probability."""

    kind: LabelledKind
    probability: float

    def is_surely(self, *kinds: LabelledKind) -> bool:
        return self.kind in kinds and self.probability >= SURE


class _InferredKind(NamedTuple):
    """The kind of a column, how its text is written if not as the config says, and why it is of that kind."""

    kind: Kind
    date_format: str | None = None
    reason: str = ""


def _classify_columns(frame: pd.DataFrame, config: TrainingConfig) -> dict[str, _Labelled]:
    """The classifier's answers for the columns whose kind neither the config nor the type of the values gives."""
    given = {config.data.target, config.data.time, *config.data.columns}
    names = [name for name in frame.columns if name not in given and frame[name].dtype.kind not in "bM"]
    probabilities = KindModel.read().predict([describe_column(frame[name]) for name in names])
    best = probabilities.argmax(axis=1)
    return {
        name: _Labelled(LABELLED_KINDS[place], float(row[place]))
        for name, row, place in zip(names, probabilities, best, strict=True)
    }


def _column(
    values: pd.Series, config: TrainingConfig, task: Task, time_format: str | None, labelled: _Labelled | None
) -> Column:
    name = str(values.name)
    data = config.data
    role: Role = "target" if name == data.target else "group" if name == data.group else "feature"
    configured = data.columns.get(name)
    if name == data.time:
        role, configured = "time", "datetime"
    fmt = column_format(data, name)
    inferred = _InferredKind(configured) if configured else _infer_kind(values, fmt, labelled)
    kind, reason = inferred.kind, inferred.reason
    if role == "target":
        kind = "numeric" if task == "regression" else "boolean" if values.dtype.kind == "b" else "category"
    if name == data.time:
        fmt = fmt.model_copy(update={"date_format": time_format})
    elif inferred.date_format:
        fmt = fmt.model_copy(update={"date_format": inferred.date_format})
    canonical, bad = (values, ()) if kind in ("text", "ignore") else convert_column(values, kind, fmt)
    if len(bad):
        raise ConfigError(
            f"column {name!r} holds values that are not {kind}",
            where="task" if role == "target" else f"data.columns: {name}",
            remedy="correct the values, or choose a kind or task that fits them",
            details=(list_examples(values, bad, shown=name not in config.privacy.pii),),
        )
    series = pd.Series(canonical)
    plain = Column(
        name=name, kind=kind, role=role, nullable=bool(series.isna().any()), levels=int(series.nunique()),
        min=None, max=None, categories=None, reason=reason,
        format=fmt.model_copy(update={"spelling": _spelling(series)}) if kind == "category" else fmt,
    )  # fmt: skip
    column = plain.model_copy(update=_facts(series, plain))
    if role == "time" and data.columns.get(name) == "ignore":
        return column.model_copy(update={"derive": (), "note": "data.columns says ignore"})
    note = ""
    if kind in ("text", "ignore"):
        note = reason or f"data.columns says {kind}"
    elif role == "feature":
        note = _useless(series, column, labelled)
    if role == "feature" and note:
        return plain.model_copy(update={"role": "ignored", "note": note})
    return column


def _spelling(levels: pd.Series) -> Spelling:
    distinct = levels.dropna().unique()
    return text_columns.detect_spelling(pa.chunked_array([pa.array(list(distinct), pa.large_string())]))


def _private(column: Column, config: TrainingConfig) -> Column:
    """Without a value of the table where it holds personal data."""
    if column.name not in config.privacy.pii:
        return column
    return column.model_copy(update={"pii": True, "min": None, "max": None, "categories": None})


def _facts(values: pd.Series, column: Column) -> dict[str, Any]:
    if column.kind == "category":
        return {"categories": tuple(sorted(values.dropna().unique())) if column.levels <= LEVELS else None}
    if column.kind == "datetime":
        return {"derive": _derive(values) if column.role in ("feature", "time") else ()}
    finite = values[np.isfinite(values)] if column.kind in ("numeric", "boolean") else values[:0]
    if finite.empty:
        return {}
    whole = bool((finite == np.floor(finite)).all())
    return {"min": float(finite.min()), "max": float(finite.max()), "integer": whole}


def _useless(values: pd.Series, column: Column, labelled: _Labelled | None) -> str:
    """Why a column is left out; empty if it is used. ``labelled`` is None for a column that the config declares."""
    if column.levels == 0:
        return "holds no values"
    if column.levels == 1 and not column.nullable:
        return "constant"
    if column.kind == "datetime" and not column.derive:
        return "spans too little time for any calendar part"
    if labelled and _identifies(values, column, labelled):
        return f"identifies the row; data.columns: {{{column.name}: {column.kind}}} would keep it"
    return ""


def _infer_kind(values: pd.Series, fmt: ValueFormat, labelled: _Labelled | None) -> _InferredKind:
    kinds: dict[str, Kind] = {"b": "boolean", "i": "numeric", "u": "numeric", "f": "numeric", "M": "datetime"}
    if values.dtype.kind in kinds:
        if labelled and labelled.is_surely("categorical") and _are_codes(values):
            reason = f"whole numbers that are codes, with probability {labelled.probability:.2f}"
            return _InferredKind("category", reason=reason)
        return _InferredKind(kinds[values.dtype.kind])
    present = values.dropna()
    levels = present.nunique()
    if not fmt.date_format and levels > 1 and len(formats := detect_date_formats(values)) == 1:
        return _InferredKind("datetime", formats[0], f"dates written as {formats[0]}")
    if levels <= 20:
        return _InferredKind("category")
    surely_ids = labelled is not None and labelled.is_surely("not-generalizable") and levels > _UNIQUE * len(present)
    if (levels == len(values) or surely_ids) and present.astype(str).str.fullmatch(r"[^\s]{1,64}").all():
        return _InferredKind("category")  # _identifies names it
    if labelled and labelled.kind in _PROSE and labelled.probability >= 0.5 and levels > _REPEATED * len(present):
        return _InferredKind("text", reason=f"{_PROSE[labelled.kind]}: {levels} levels in {len(present)} rows")
    if float(present.astype(str).str.len().median()) > 60:
        return _InferredKind("text", reason="long text")
    if levels > 0.5 * len(present):
        return _InferredKind("text", reason=f"nearly unique: {levels} levels in {len(present)} rows")
    return _InferredKind("category")


def _are_codes(values: pd.Series) -> bool:
    """Whether whole numbers can be levels of a category: few of them, and no years, which go on."""
    present = values.dropna().to_numpy(np.float64)
    if not np.isfinite(present).all() or not (present == np.floor(present)).all():
        return False
    levels, years = len(np.unique(present)), present.min() > 1_500 and present.max() < 2_200
    return not years and 2 < levels <= min(LEVELS, len(present) // 20)


def _identifies(values: pd.Series, column: Column, labelled: _Labelled) -> bool:
    if column.levels <= 20 or column.kind not in ("numeric", "category"):
        return False
    present = int(values.notna().sum())
    if column.levels != len(values):
        whole = column.kind == "category" or column.integer
        return whole and column.levels > _UNIQUE * present and labelled.is_surely("not-generalizable")
    if column.kind == "category":
        return True
    if not column.integer or not np.isfinite(values).all():
        return False
    named = re.search(r"(?i)(?:^|[\W_])(id|key|uuid|index|nr|no)$", column.name) is not None
    dense = float(values.max() - values.min()) < 2 * len(values)
    return named or dense or bool(values.is_monotonic_increasing or values.is_monotonic_decreasing)


def _derive(times: pd.Series) -> tuple[str, ...]:
    present = times.dropna()
    if present.empty:
        return ()
    days = (present.max() - present.min()) / pd.Timedelta(days=1)
    return tuple(
        part for part, cycle in _CYCLES.items() if days >= 1.5 * cycle and getattr(present.dt, part).nunique() > 1
    )


def _classes(target: pd.Series) -> tuple[Label, ...]:
    labels = target.dropna().unique().tolist()
    if target.dtype.kind == "f" and all(label.is_integer() for label in labels):
        labels = [int(label) for label in labels]
    return tuple(sorted(labels))


def _positive(target: pd.Series, classes: tuple[Label, ...], configured: str | int | bool | None) -> Label | None:
    names = {label: str(category_name(label)).lower() for label in classes}
    if configured is not None:
        exact = [label for label in classes if category_name(label) == category_name(configured)]
        if isinstance(configured, bool) and not exact:  # YAML reads yes and no as booleans
            exact = [label for label in classes if names[label] in (_YES if configured else _NO)]
        if len(exact) == 1:
            return exact[0]
        raise ConfigError(
            f"no class {configured!r} in the target", where="data.positive", remedy=f"the classes are {list(classes)}"
        )
    named = [label for label in classes if names[label] in _YES]
    if len(named) == 1:
        return named[0]
    counts = target.value_counts()
    return min(reversed(classes), key=lambda label: int(counts[label])) if classes else None
