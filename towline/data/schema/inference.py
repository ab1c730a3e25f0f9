"""Inference of the contract from a table: kind, role, range and levels of each column, the task and its classes."""

import re
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from towline.config import Kind, Task, TrainingConfig
from towline.data.schema import text_columns
from towline.data.schema.columns import convert_column, list_examples
from towline.data.schema.contract import Column, Contract, Label, Role
from towline.data.schema.pseudonyms import derive_salt
from towline.data.schema.values import Spelling, ValueFormat, category_name, column_format
from towline.errors import ConfigError

MAX_LEVELS = 100  # of a category whose levels are listed
_YES = {"yes", "true", "1", "y", "t", "positive"}
_NO = {"no", "false", "0", "n", "f", "negative"}
# days of the cycle of a calendar part, which is derived if the table has at least one and a half cycles
_CYCLES = {"month": 365, "weekday": 7, "day": 31, "hour": 1}


def infer_contract(
    frame: pd.DataFrame, config: TrainingConfig, formats: Iterable[tuple[str, ValueFormat]] = ()
) -> Contract:
    """Infers the contract; ``data.columns`` and ``task`` of the config have priority.

    Args:
        frame: a snapshot, from ``sources.read_snapshot``.
        config: names the target, time and group, and the declared kinds.
        formats: ``Dataset.formats`` of the snapshot.

    Raises:
        ConfigError: the values do not allow the kind, task or positive class that the config sets.
    """
    target = frame[config.data.target]
    task = config.task or _infer_task(target)
    known = dict(formats)
    columns = tuple(
        _hide_values(_infer_column(frame[name], config, task, known.get(name)), config) for name in frame.columns
    )
    name, classes = config.data.target, () if task == "regression" else _distinct_classes(target)
    if task == "binary" and len(classes) > 2:
        what = f"the target {name!r} has {len(classes)} classes, not 2"
        raise ConfigError(what, where="task", remedy="set task: multiclass")
    positive = _positive_class(target, classes, config.data.positive) if task == "binary" else None
    salt = derive_salt(config.name)
    return Contract(target=name, task=task, columns=columns, classes=classes, positive=positive, salt=salt)


def _infer_column(values: pd.Series, config: TrainingConfig, task: Task, fmt: ValueFormat | None) -> Column:
    data, name = config.data, str(values.name)
    role: Role = "target" if name == data.target else "group" if name == data.group else "feature"
    configured = data.columns.get(name)
    if name == data.time:
        role, configured = "time", "datetime"
    kind, note = (configured, "") if configured else _infer_kind(values)
    if role == "target":
        kind = "numeric" if task == "regression" else "boolean" if values.dtype.kind == "b" else "category"
    fmt = fmt or column_format(data, name)
    canonical, bad = (values, ()) if kind in ("text", "ignore") else convert_column(values, kind, fmt)
    if len(bad):
        raise ConfigError(
            f"column {name!r} holds values that are not {kind}",
            where="task" if role == "target" else f"data.columns: {name}",
            remedy="correct the values, or choose a kind or task that fits them",
            details=(list_examples(values, bad, hidden=name in config.privacy.pii),),
        )
    series = pd.Series(canonical)
    if kind == "category":
        fmt = fmt.model_copy(update={"spelling": _spelling(series)})
    nullable, levels = bool(series.isna().any()), int(series.nunique())
    plain = Column(name=name, kind=kind, role=role, nullable=nullable, levels=levels, format=fmt)
    column = plain.model_copy(update=_describe_values(series, plain))
    if role == "time" and data.columns.get(name) == "ignore":
        return column.model_copy(update={"derive": (), "note": "data.columns says ignore"})
    if kind in ("text", "ignore"):
        note = note or f"data.columns says {kind}"
    elif role == "feature":
        note = _reason_to_ignore(series, column, bool(configured))
    if role == "feature" and note:
        return plain.model_copy(update={"role": "ignored", "note": note})
    return column


def _spelling(levels: pd.Series) -> Spelling:
    distinct = levels.dropna().unique()
    return text_columns.detect_spelling(pa.chunked_array([pa.array(list(distinct), pa.large_string())]))


def _hide_values(column: Column, config: TrainingConfig) -> Column:
    """The column; without values of the table if it holds personal data."""
    if column.name not in config.privacy.pii:
        return column
    return column.model_copy(update={"pii": True, "min": None, "max": None, "categories": None})


def _describe_values(values: pd.Series, column: Column) -> dict[str, Any]:
    if column.kind == "category":
        return {"categories": tuple(sorted(values.dropna().unique())) if column.levels <= MAX_LEVELS else None}
    if column.kind == "datetime":
        return {"derive": _calendar_parts(values) if column.role in ("feature", "time") else ()}
    finite = values[np.isfinite(values)] if column.kind in ("numeric", "boolean") else values[:0]
    if finite.empty:
        return {}
    whole = bool((finite == np.floor(finite)).all())
    return {"min": float(finite.min()), "max": float(finite.max()), "integer": whole}


def _reason_to_ignore(values: pd.Series, column: Column, configured: bool) -> str:
    if column.levels == 0:
        return "has no values"
    if column.levels == 1 and not column.nullable:
        return "constant"
    if column.kind == "datetime" and not column.derive:
        return "spans too little time for any calendar part"
    if not configured and _identifies_rows(values, column):
        return f"identifies the row; data.columns: {{{column.name}: {column.kind}}} would use it"
    return ""


def _infer_kind(values: pd.Series) -> tuple[Kind, str]:
    kinds: dict[str, Kind] = {"b": "boolean", "i": "numeric", "u": "numeric", "f": "numeric", "M": "datetime"}
    if values.dtype.kind in kinds:
        return kinds[values.dtype.kind], ""
    present = values.dropna()
    levels = present.nunique()
    if levels <= 20:
        return "category", ""
    if levels == len(values) and present.astype(str).str.fullmatch(r"[^\s]{1,64}").all():
        return "category", ""  # _identifies_rows reports it
    if float(present.astype(str).str.len().median()) > 60:
        return "text", "long text"
    if levels > 0.5 * len(present):
        return "text", f"nearly unique: {levels} levels in {len(present)} rows"
    return "category", ""


def _identifies_rows(values: pd.Series, column: Column) -> bool:
    if column.levels != len(values) or column.levels <= 20 or column.kind not in ("numeric", "category"):
        return False
    if column.kind == "category":
        return True
    if not column.integer or not np.isfinite(values).all():
        return False
    has_key_name = re.search(r"(?i)(?:^|[\W_])(id|key|uuid|index|nr|no)$", column.name) is not None
    is_dense = float(values.max() - values.min()) < 2 * len(values)
    return has_key_name or is_dense or bool(values.is_monotonic_increasing or values.is_monotonic_decreasing)


def _calendar_parts(times: pd.Series) -> tuple[str, ...]:
    present = times.dropna()
    if present.empty:
        return ()
    days = (present.max() - present.min()) / pd.Timedelta(days=1)
    return tuple(
        part for part, cycle in _CYCLES.items() if days >= 1.5 * cycle and getattr(present.dt, part).nunique() > 1
    )


def _infer_task(target: pd.Series) -> Task:
    if target.dtype.kind == "M":
        what = f"the target {target.name!r} has dates"
        raise ConfigError(what, where="data.target", remedy="name a column of numbers or classes")
    present = target.dropna()
    levels = int(present.nunique())
    if target.dtype.kind not in "iuf" or 0 < levels <= 2:
        return "binary" if levels <= 2 else "multiclass"
    whole = bool(np.isfinite(present).all() and (present == np.floor(present)).all())
    return "multiclass" if 0 < levels <= 20 and whole and len(present) >= 20 * levels else "regression"


def _distinct_classes(target: pd.Series) -> tuple[Label, ...]:
    labels = target.dropna().unique().tolist()
    if target.dtype.kind == "f" and all(label.is_integer() for label in labels):
        labels = [int(label) for label in labels]
    return tuple(sorted(labels))


def _positive_class(target: pd.Series, classes: tuple[Label, ...], configured: str | int | bool | None) -> Label | None:
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
    affirmative = [label for label in classes if names[label] in _YES]
    if len(affirmative) == 1:
        return affirmative[0]
    counts = target.value_counts()
    return min(reversed(classes), key=lambda label: int(counts[label])) if classes else None
