"""What a row of a table is: the one door by which rows enter training and prediction."""

import datetime as dt
import difflib
import math
import numbers
import re
from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import Any, Literal

import numpy as np
import pandas as pd

from towline.config import Frozen, Kind, PipelineConfig, Task
from towline.errors import ConfigError, DataError

Role = Literal["feature", "target", "time", "group", "ignored"]
Label = str | int | bool | float

LEVELS = 100  # a category with more is known by its count alone
_YES = {"yes", "true", "1", "y", "t", "positive"}
_NO = {"no", "false", "0", "n", "f", "negative"}
# a calendar part is worth deriving when the table has seen its cycle one and a half times
_CYCLES = {"month": 365, "weekday": 7, "day": 31, "hour": 1}
_OFFENDERS = 5
_YEAR = re.compile(r"\d{4}")


class Column(Frozen):
    """One column. ``min`` and ``max`` are of numeric columns, ``categories`` of those with at most 100 levels."""

    name: str
    kind: Kind
    role: Role
    nullable: bool
    min: float | None
    max: float | None
    categories: tuple[str, ...] | None
    levels: int
    integer: bool = False
    note: str = ""
    derive: tuple[str, ...] = ()


class Contract(Frozen):
    """The columns of a table, and what is to be predicted."""

    target: str
    task: Task
    columns: tuple[Column, ...]
    classes: tuple[Label, ...] = ()
    positive: Label | None = None

    @property
    def feature_columns(self) -> tuple[Column, ...]:
        """Columns a model sees: the features, and the time where parts of it are derived."""
        return tuple(column for column in self.columns if column.role == "feature" or column.derive)

    def features(self, rows: pd.DataFrame) -> pd.DataFrame:
        """The canonical frame: equal values give an equal frame, whatever they came in.

        Args:
            rows: any frame that holds the feature columns; further columns are left out.

        Returns:
            Columns in the contract's order, index 0…n-1. Numeric and boolean are float64 (NaN for null), category is
            object of str (NaN for null), datetime is datetime64[us] (naive UTC, NaT for null).

        Raises:
            DataError: a column is missing or stands twice, or values do not fit its kind.
        """
        wanted = self.feature_columns
        absent = [column.name for column in wanted if column.name not in rows.columns]
        if absent:
            near = difflib.get_close_matches(absent[0], [str(name) for name in rows.columns], 1)
            raise DataError(
                f"columns are missing: {', '.join(map(repr, absent[:10]))}",
                where="rows",
                remedy=f"rename {near[0]!r}" if near else "give every feature column; a null is allowed",
            )
        converted, details = {}, []
        for column in wanted:
            values = rows[column.name]
            if isinstance(values, pd.DataFrame):
                raise DataError(f"column {column.name!r} stands twice", where="rows", remedy="rename one")
            converted[column.name], bad = _convert(values, column.kind)
            if len(bad):
                details.append(f"column {column.name!r} ({column.kind}): {examples(values, bad)}")
        if details:
            raise DataError(
                "values do not fit the contract", where="rows", remedy="mend the values", details=tuple(details[:10])
            )
        index = pd.RangeIndex(len(rows))
        return pd.DataFrame({name: _series(values, index) for name, values in converted.items()}, index=index)

    def labels(self, rows: pd.DataFrame) -> np.ndarray:
        """The target, shape (n,): float64 for regression, else an object array of ``classes``.

        Raises:
            DataError: the target is missing, null, not a number (regression) or not one of the classes.
        """
        if self.target not in rows.columns:
            raise DataError(f"the target {self.target!r} is missing", where="rows", remedy="give the target column")
        values = rows[self.target]
        if self.task == "regression":
            labels, _ = _convert(values, "numeric")
            bad = np.flatnonzero(np.isnan(labels))
        else:
            texts, _ = _convert(values, "category")
            known = {_text(label): place for place, label in enumerate(self.classes)}
            places = np.array([known.get(text, -1) for text in texts], dtype=np.int64)
            lookup = np.empty(len(known), dtype=object)
            lookup[:] = self.classes
            bad = np.flatnonzero(places < 0)
            labels = lookup[places] if not len(bad) else lookup[:0]
        if len(bad):
            raise DataError(
                f"target {self.target!r}: {len(bad)} of {len(values)} values are null or no "
                + ("number" if self.task == "regression" else "known class"),
                where=f"column {self.target!r}",
                remedy="mend or leave out these rows",
                details=(examples(values, bad),),
            )
        return labels


def infer(frame: pd.DataFrame, config: PipelineConfig) -> Contract:
    """Reads kinds, roles, ranges and classes off a table; ``data.columns`` and ``task`` of the config come first.

    Raises:
        ConfigError: the config asks for a kind, task or positive class the values do not allow.
    """
    target = frame[config.data.target]
    task = config.task or _task(target)
    columns = tuple(_column(frame[name], name, config, task) for name in frame.columns)
    if task == "regression":
        return Contract(target=config.data.target, task=task, columns=columns)
    classes = _classes(target)
    if task == "binary" and len(classes) > 2:
        raise ConfigError(
            f"the target {config.data.target!r} has {len(classes)} classes, not 2", where="task", remedy="multiclass"
        )
    positive = _positive(target, classes, config.data.positive) if task == "binary" else None
    return Contract(target=config.data.target, task=task, columns=columns, classes=classes, positive=positive)


def iso_times(values: pd.Series) -> pd.Series:
    """ISO 8601 strings and date objects as datetime64[us] in naive UTC; NaT where a value is neither, or null."""
    if values.dtype.kind == "M":
        naive = values.dt.tz_convert("UTC").dt.tz_localize(None) if getattr(values.dt, "tz", None) else values
        return naive.astype("datetime64[us]")
    # numbers would be taken for nanoseconds since 1970, and "now" for a date
    dated = [
        value
        if (_YEAR.match(value) if isinstance(value, str) else isinstance(value, (dt.date, np.datetime64)))
        else None
        for value in values.astype(object)
    ]
    times = pd.to_datetime(pd.Series(dated, dtype=object), format="ISO8601", utc=True, errors="coerce")
    return times.dt.tz_localize(None).astype("datetime64[us]")


def examples(values: Iterable[Any], rows: Sequence[int] | np.ndarray) -> str:
    """Up to five offending values with their row numbers (from 1, headers not counted)."""
    picked = {int(row): "" for row in rows[:_OFFENDERS]}
    at = values.iloc if isinstance(values, pd.Series) else list(values)
    shown = [f"row {row + 1}: {repr(at[row])[:60]}" for row in picked]
    return ", ".join(shown) + (f" and {len(rows) - len(shown)} more" if len(rows) > len(shown) else "")


def _convert(values: pd.Series, kind: Kind) -> tuple[np.ndarray, np.ndarray]:
    """Canonical values, and the positions of those that do not fit."""
    if isinstance(values.dtype, pd.CategoricalDtype) or getattr(values.dtype, "na_value", None) is pd.NA:
        values = values.astype(object)
    if kind == "category":
        return _texts(values)
    code = values.dtype.kind
    if kind == "datetime":
        numeric = code in "biufcm"
        times = np.full(len(values), "NaT", dtype="datetime64[us]") if numeric else iso_times(values).to_numpy()
        return times, _misfits(values, np.isnat(times))
    if code in "biuf":
        floats = values.to_numpy(np.float64)
        bad = np.empty(0, dtype=np.int64)
    else:
        floats = np.array([_number(value, kind == "boolean") for value in values.astype(object)], dtype=np.float64)
        bad = _misfits(values, np.isnan(floats))
    if kind == "boolean":
        bad = np.union1d(bad, np.flatnonzero(~np.isnan(floats) & (floats != 0.0) & (floats != 1.0)))
    return floats, bad


def _series(values: np.ndarray, index: pd.Index) -> pd.Series | np.ndarray:
    # pandas would turn an array of strings into its own string type
    return pd.Series(values, index=index, dtype=object) if values.dtype == object else values


def _misfits(values: pd.Series, unread: np.ndarray) -> np.ndarray:
    """Positions that could not be read and held something."""
    if not unread.any():
        return np.empty(0, dtype=np.int64)
    places = np.flatnonzero(unread & values.notna().to_numpy(bool))
    held = [not isinstance(value, str) or bool(value.strip()) for value in values.iloc[places]]
    misfits: np.ndarray = places[np.array(held, dtype=bool)]
    return misfits


def _number(value: Any, boolean: bool) -> float:
    if isinstance(value, str):
        text = value.strip().lower()
        if boolean and text in ("true", "false"):
            return float(text == "true")
        try:
            return math.nan if "_" in text else float(text)
        except ValueError:
            return math.nan
    return float(value) if isinstance(value, (numbers.Real, Decimal, np.bool_)) else math.nan


def _texts(values: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    if values.dtype == object:
        # not by unique value: 1, 1.0 and True are equal to a hash table
        texts = np.empty(len(values), dtype=object)
        texts[:] = [_text(value) for value in values]
    else:
        codes, uniques = pd.factorize(values)
        lookup = np.empty(len(uniques) + 1, dtype=object)
        lookup[:] = [*(_text(value) for value in uniques), math.nan]
        texts = lookup[codes]
    return texts, _misfits(values, pd.isna(texts))


def _text(value: Any) -> Any:
    """A level's name: 3.0 and 3 are "3"; null, "" and what is no scalar are NaN."""
    if isinstance(value, str):
        return str(value) or math.nan
    if isinstance(value, (bool, np.bool_)):
        return str(bool(value))
    if isinstance(value, numbers.Integral):
        return str(int(value))
    if isinstance(value, (numbers.Real, Decimal)):
        number = float(value)
        return math.nan if math.isnan(number) else str(int(number) if number.is_integer() else number)
    return str(value) if isinstance(value, dt.date) and value is not pd.NaT else math.nan


def _column(values: pd.Series, name: str, config: PipelineConfig, task: Task) -> Column:
    data = config.data
    role: Role = "target" if name == data.target else "group" if name == data.group else "feature"
    asked = data.columns.get(name)
    if name == data.time:
        role, asked = "time", "datetime"
    kind, note = (asked, "") if asked else _kind(values)
    if role == "target":
        kind = "numeric" if task == "regression" else "boolean" if values.dtype == bool else "category"
    canonical, bad = (values, ()) if kind in ("text", "ignore") else _convert(values, kind)
    if len(bad):
        raise ConfigError(
            f"column {name!r} holds values that are not {kind}",
            where="task" if role == "target" else f"data.columns: {name}",
            remedy="mend the values, or choose a kind or task they fit",
            details=(examples(values, bad),),
        )
    series = pd.Series(canonical)
    plain = Column(
        name=name, kind=kind, role=role, nullable=bool(series.isna().any()), levels=int(series.nunique()),
        min=None, max=None, categories=None,
    )  # fmt: skip
    found = plain.model_copy(update=_facts(series, plain))
    if kind in ("text", "ignore"):
        note = note or f"data.columns says {kind}"
    elif role == "feature":
        note = _useless(series, found, bool(asked))
    if role == "feature" and note:
        return plain.model_copy(update={"role": "ignored", "note": note})
    return found


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


def _useless(values: pd.Series, column: Column, asked: bool) -> str:
    if column.levels == 0:
        return "holds no values"
    if column.levels == 1 and not column.nullable:
        return "constant"
    if column.kind == "datetime" and not column.derive:
        return "spans too little time for any calendar part"
    if not asked and _identifies(values, column):
        return f"identifies the row; data.columns: {{{column.name}: {column.kind}}} would keep it"
    return ""


def _kind(values: pd.Series) -> tuple[Kind, str]:
    if values.dtype.kind == "b":
        return "boolean", ""
    if values.dtype.kind in "iuf":
        return "numeric", ""
    if values.dtype.kind == "M":
        return "datetime", ""
    present = values.dropna()
    if present.empty:
        return "category", ""
    levels = present.unique()
    if len(levels) <= 20:
        head = pd.Series(levels)
        return ("datetime" if _dates(head) else "category"), ""
    if _dates(present):
        return "datetime", ""
    if len(levels) == len(values) and present.astype(str).str.fullmatch(r"[^\s]{1,64}").all():
        return "category", ""  # _identifies names it
    if float(present.astype(str).str.len().median()) > 60:
        return "text", "long text"
    if len(levels) > 0.5 * len(present):
        return "text", f"nearly unique: {len(levels)} levels in {len(present)} rows"
    return "category", ""


def _dates(values: pd.Series) -> bool:
    dated = values.astype(str).str.match(r"\d{4}-\d\d-\d\d")
    return bool(dated.iloc[:100].all() and dated.all() and iso_times(values).notna().all())


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


def _positive(target: pd.Series, classes: tuple[Label, ...], asked: str | int | bool | None) -> Label | None:
    names = {label: str(_text(label)).lower() for label in classes}
    if asked is not None:
        exact = [label for label in classes if _text(label) == _text(asked)]
        if isinstance(asked, bool) and not exact:  # YAML reads yes and no as booleans
            exact = [label for label in classes if names[label] in (_YES if asked else _NO)]
        if len(exact) == 1:
            return exact[0]
        raise ConfigError(
            f"no class {asked!r} in the target", where="data.positive", remedy=f"the classes are {list(classes)}"
        )
    named = [label for label in classes if names[label] in _YES]
    if len(named) == 1:
        return named[0]
    counts = target.value_counts()
    return min(reversed(classes), key=lambda label: int(counts[label])) if classes else None
