"""Reads a contract off a table: the kind, role, range and levels of each column, the task and its classes."""

import re
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from towline.config import Kind, Task, TrainingConfig
from towline.data.schema import text_columns
from towline.data.schema.columns import convert_column, list_examples
from towline.data.schema.contract import Column, Contract, Label, Role
from towline.data.schema.pseudonyms import derive_salt
from towline.data.schema.values import Spelling, category_name, column_format
from towline.errors import ConfigError

LEVELS = 100  # a category with more is known by its count alone
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
    task = config.task or _task(target)
    columns = tuple(_private(_column(frame[name], name, config, task, time_format), config) for name in frame.columns)
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


def _column(values: pd.Series, name: str, config: TrainingConfig, task: Task, time_format: str | None) -> Column:
    data = config.data
    role: Role = "target" if name == data.target else "group" if name == data.group else "feature"
    configured = data.columns.get(name)
    if name == data.time:
        role, configured = "time", "datetime"
    kind, note = (configured, "") if configured else _kind(values)
    if role == "target":
        kind = "numeric" if task == "regression" else "boolean" if values.dtype.kind == "b" else "category"
    fmt = column_format(data, name)
    if name == data.time:
        fmt = fmt.model_copy(update={"date_format": time_format})
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
        min=None, max=None, categories=None,
        format=fmt.model_copy(update={"spelling": _spelling(series)}) if kind == "category" else fmt,
    )  # fmt: skip
    column = plain.model_copy(update=_facts(series, plain))
    if role == "time" and data.columns.get(name) == "ignore":
        return column.model_copy(update={"derive": (), "note": "data.columns says ignore"})
    if kind in ("text", "ignore"):
        note = note or f"data.columns says {kind}"
    elif role == "feature":
        note = _useless(series, column, bool(configured))
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


def _useless(values: pd.Series, column: Column, configured: bool) -> str:
    if column.levels == 0:
        return "holds no values"
    if column.levels == 1 and not column.nullable:
        return "constant"
    if column.kind == "datetime" and not column.derive:
        return "spans too little time for any calendar part"
    if not configured and _identifies(values, column):
        return f"identifies the row; data.columns: {{{column.name}: {column.kind}}} would keep it"
    return ""


def _kind(values: pd.Series) -> tuple[Kind, str]:
    kinds: dict[str, Kind] = {"b": "boolean", "i": "numeric", "u": "numeric", "f": "numeric", "M": "datetime"}
    if values.dtype.kind in kinds:
        return kinds[values.dtype.kind], ""
    present = values.dropna()
    levels = present.nunique()
    if levels <= 20:
        return "category", ""
    if levels == len(values) and present.astype(str).str.fullmatch(r"[^\s]{1,64}").all():
        return "category", ""  # _identifies names it
    if float(present.astype(str).str.len().median()) > 60:
        return "text", "long text"
    if levels > 0.5 * len(present):
        return "text", f"nearly unique: {levels} levels in {len(present)} rows"
    return "category", ""


def _identifies(values: pd.Series, column: Column) -> bool:
    if column.levels != len(values) or column.levels <= 20 or column.kind not in ("numeric", "category"):
        return False
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


def _task(target: pd.Series) -> Task:
    if target.dtype.kind == "M":
        raise ConfigError(
            f"the target {target.name!r} holds dates", where="data.target", remedy="name a number or a class"
        )
    present = target.dropna()
    levels = int(present.nunique())
    if target.dtype.kind not in "iuf" or 0 < levels <= 2:
        return "binary" if levels <= 2 else "multiclass"
    whole = bool(np.isfinite(present).all() and (present == np.floor(present)).all())
    return "multiclass" if 0 < levels <= 20 and whole and len(present) >= 20 * levels else "regression"


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
