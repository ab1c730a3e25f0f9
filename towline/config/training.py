"""Config sections of training: data, validation, split, candidates, evaluation, gate and privacy."""

import datetime as dt
import itertools
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    FiniteFloat,
    ValidationInfo,
    field_serializer,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from towline.config.passwords import hide_passwords, mask_passwords
from towline.config.record import Durations, Frozen, OptionalDuration, Share, format_duration, format_share, suggest
from towline.expressions.syntax import ExpressionError, parse

Kind = Literal["numeric", "category", "boolean", "datetime", "text", "ignore"]
Task = Literal["regression", "binary", "multiclass"]
MetricName = Literal[
    "accuracy", "precision", "recall", "f1", "roc_auc", "average_precision", "log_loss", "brier",
    "mae", "rmse", "r2", "mape",
]  # fmt: skip
Severity = Literal["error", "warn"]
CalibrationMethod = Literal["isotonic", "sigmoid"]
LoggingPolicy = Literal["keep", "drop", "hash", "bucket"]

_DOTTED_PATH = r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)+$"
GREATER_IS_BETTER: Mapping[str, bool] = {
    "accuracy": True, "precision": True, "recall": True, "f1": True, "roc_auc": True, "average_precision": True,
    "log_loss": False, "brier": False, "mae": False, "rmse": False, "r2": True, "mape": False,
}  # fmt: skip
METRICS: Mapping[str, tuple[str, ...]] = {
    "regression": ("mae", "rmse", "r2", "mape"),
    "binary": ("roc_auc", "average_precision", "f1", "precision", "recall", "accuracy", "log_loss", "brier"),
    "multiclass": ("f1", "precision", "recall", "accuracy", "roc_auc", "log_loss"),
}
DEFAULT_METRIC: Mapping[str, MetricName] = {"regression": "mae", "binary": "roc_auc", "multiclass": "f1"}


class HistoryConfig(Frozen):
    """The history that a model is trained on: how far back, with which weights, and with or without the trend.

    Attributes:
        window: older rows, counted from the newest one, are left out; None: all rows are used.
        half_life: a row of this age has half the weight of a new one; None: all rows have the same weight.
        detrend: half-life of the target's trend, which is removed from older targets; None: the target is unchanged.
    """

    window: OptionalDuration = None
    half_life: OptionalDuration = None
    detrend: OptionalDuration = None

    def __str__(self) -> str:
        rows = "all rows" if self.window is None else f"the last {format_duration(self.window)}"
        fading = f", half-life {format_duration(self.half_life)}" if self.half_life else ""
        return rows + fading + (f", detrended (half-life {format_duration(self.detrend)})" if self.detrend else "")


def _as_markers(value: object) -> object:
    """Null markers as text: YAML reads some of them as numbers or booleans."""
    markers = value if isinstance(value, list | tuple) else [value]
    words = {True: "true", False: "false", None: "null"}
    return tuple(
        words[marker] if marker is None or isinstance(marker, bool) else str(marker).strip() for marker in markers
    )


NullMarkers = Annotated[
    tuple[str, ...], BeforeValidator(_as_markers, json_schema_input_type=str | float | list[str | float])
]


FORMAT_SEPARATOR = " | "  # between two date formats of one column
_NAMED_DATE_FORMATS = (
    "epoch_d",
    "epoch_s",
    "epoch_ms",
    "epoch_us",
    "epoch_ns",
    "excel",
    "decimal_year",
    "quarter",
    "week",
)


def _is_date_format(text: str) -> bool:
    if text in _NAMED_DATE_FORMATS:
        return True
    try:
        dt.datetime.strptime(dt.datetime(2001, 2, 3, 4, 5, 6, tzinfo=dt.UTC).strftime(text), text)  # noqa: DTZ007
    except ValueError:
        return False
    return "%" in text


class SqlSource(Frozen):
    """A query on a database."""

    url: str = Field(description="SQLAlchemy URL; ${NAME} is replaced from the environment")
    query: str = Field(description="one SELECT")

    @field_validator("url")
    @classmethod
    def _hide_password(cls, url: str) -> str:
        return hide_passwords(url)

    def masked(self) -> "SqlSource":
        """A copy to show and store: passwords in the URL are masked, ``${NAME}`` is not."""
        return self.model_copy(update={"url": mask_passwords(self.url)})


class ClassesConfig(Frozen):
    """What happens to rare classes of the target."""

    rare: Literal["keep", "merge", "drop"] = Field(
        "keep", description="merge: one class for all of them; drop: their rows are left out"
    )
    min_rows: int = Field(20, ge=2, description="a class with fewer rows is rare")
    other: str = Field("other", min_length=1, description="the class that rare classes are merged into")


class DataConfig(Frozen):
    """The source of the rows, and the roles of their columns."""

    source: str | list[str] | SqlSource = Field(
        description="a CSV, Parquet or JSON file, a folder or glob of them, the URL of one such as "
        "s3://bucket/rows.parquet, a list of these, or {url, query}"
    )
    target: str
    time: str | None = Field(None, description="time of a row; makes the split and the folds time-aware")
    group: str | None = Field(None, description="rows of one group are never in both parts of a split")
    drop: tuple[str, ...] = Field((), description="columns that are not read: leaks, identifiers, personal data")
    window: Durations = Field(
        (), description="length of the history before the newest row, e.g. 90d; from a list, the best one is chosen"
    )
    half_life: Durations = Field(
        (),
        description="age at which a row has half the weight of a new one; all: equal weight; from a list, the best "
        "one is chosen",
    )
    detrend: Durations = Field(
        (),
        description="half-life of the target's trend, removed from old targets; from a list, the best one is chosen",
    )
    separator: str = Field(
        ",",
        pattern="^(. ?|aligned)$",
        description="column separator of a CSV: one character, also with a space before quotes, or aligned (by spaces)",
    )
    decimal: Literal[".", ","] = Field(".", description="decimal mark of numbers that are text")
    thousands: Literal["", ",", ".", " ", "'", "_"] = Field("", description="mark between groups of three digits")
    na_values: NullMarkers = Field((), description="texts or numbers that mean null in every column, e.g. ['?', -999]")
    date_format: str | dict[str, str] | None = Field(
        None,
        description="how times are written where they are not ISO 8601: a strptime format, epoch_s, epoch_ms, "
        "epoch_us, epoch_ns, epoch_d (days since 1970), excel (its serial dates), decimal_year or quarter (2026 Q1); "
        "two formats of one column as '%d.%m.%Y | %d/%m/%Y'; of all columns, or {column: format}",
    )
    positive: str | int | bool | None = Field(
        None, description="the positive class; default: yes/true/1 (ja, oui, sí, …), else the rarer"
    )
    columns: dict[str, Kind] = Field(default_factory=dict, description="column kinds where inference is wrong")
    ignore_case: tuple[str, ...] = Field(
        (), description="categories, also the target, whose levels may differ in case and spaces: yes and ' Yes'"
    )
    max_unlabelled: float = Field(
        0.2,
        ge=0,
        le=1,
        description="maximum share of rows without a target, which are left out; with more the run stops",
    )
    max_undated: float = Field(
        0.05,
        ge=0,
        le=1,
        description="maximum share of rows without a time in data.time, which are left out; with more the run stops",
    )
    max_unreadable: float = Field(
        0.1,
        ge=0,
        le=0.5,
        description="maximum share of words among numbers or times, which are null; with more the column is a category",
    )
    classes: ClassesConfig = ClassesConfig()
    train_rows: int | None = Field(
        2_000_000,
        ge=1_000,
        description="maximum number of rows that a model is trained on: the newest if there is a time, else a sample "
        "with the shares of the classes; null: all",
    )
    keep_snapshot: bool = Field(True, description="whether the snapshot of the rows is kept after the run")

    @field_validator("source")
    @classmethod
    def _hide_passwords(cls, source: str | list[str] | SqlSource) -> str | list[str] | SqlSource:
        if isinstance(source, str):
            return hide_passwords(source) if "://" in source else source
        if isinstance(source, list):
            return [hide_passwords(part, str(place)) if "://" in part else part for place, part in enumerate(source)]
        return source

    def masked(self) -> "DataConfig":
        """A copy to show and store: passwords in URLs are masked, ``${NAME}`` is not."""
        source = self.source
        if isinstance(source, SqlSource):
            return self.model_copy(update={"source": source.masked()})
        parts = [mask_passwords(part) if "://" in part else part for part in self.source_files]
        return self.model_copy(update={"source": parts[0] if isinstance(source, str) else parts})

    @property
    def source_files(self) -> tuple[str, ...]:
        """The paths, patterns and URLs of files; none for a query."""
        if isinstance(self.source, SqlSource):
            return ()
        return (self.source,) if isinstance(self.source, str) else tuple(self.source)

    @model_validator(mode="after")
    def _check_formats(self) -> "DataConfig":
        if self.thousands == self.decimal:
            raise ValueError(f"decimal and thousands are both {self.decimal!r}")
        formats = self.date_format.values() if isinstance(self.date_format, dict) else [self.date_format]
        for date_format in formats:
            if date_format is not None and not all(map(_is_date_format, date_format.split(FORMAT_SEPARATOR))):
                raise ValueError(f"date_format {date_format!r} is not a strptime format of a date, e.g. %d.%m.%Y")
        return self

    @property
    def reach(self) -> dt.timedelta | None:
        """The longest window; None: all rows."""
        lengths = [length for length in self.window if length is not None]
        return max(lengths) if lengths and len(lengths) == len(self.window) else None

    @property
    def histories(self) -> tuple[HistoryConfig, ...]:
        """The histories to choose from; a single window is not a choice, because the snapshot has only its rows."""
        windows = self.window if len(self.window) > 1 else (None,)
        options = itertools.product(windows, self.half_life or (None,), self.detrend or (None,))
        return tuple(
            dict.fromkeys(HistoryConfig(window=w, half_life=half_life, detrend=d) for w, half_life, d in options)
        )


def _check_expression(text: str) -> str:
    try:
        parse(text)
    except ExpressionError as error:
        raise ValueError(error.describe(text)) from None
    return text


def _check_feature_name(name: str) -> str:
    if not re.fullmatch(r"\w{1,100}", name):
        raise ValueError("the name of a feature must be letters, digits and underscores, at most 100")
    return name


FeatureName = Annotated[str, AfterValidator(_check_feature_name)]
FeatureExpression = Annotated[str, AfterValidator(_check_expression)]


class LookupConfig(Frozen):
    """A second table whose columns are joined to each row by a key of the row."""

    table: str = Field(description="a CSV, Parquet or JSON file, or another source of files as in data.source")
    key: str | tuple[str, ...] | dict[str, str] = Field(
        description="the column or columns of the key; {column of the row: column of the table} if the names differ"
    )
    columns: tuple[str, ...] | dict[FeatureName, str] = Field(
        min_length=1, description="the columns that are joined; {new name: column of the table} renames them"
    )
    time: str | None = Field(
        None, description="time from which an entry is valid: a row gets the latest entry at or before data.time"
    )
    kinds: dict[str, Kind] = Field(
        default_factory=dict, description="kinds of joined columns, where inference is wrong"
    )
    timeless: bool = Field(False, description="accept times in the table that are later than the time of a row")

    @model_validator(mode="after")
    def _check_names(self) -> "LookupConfig":
        if not self.key_columns:
            raise ValueError("key names no column")
        for values in (self.key, self.columns):
            if isinstance(values, tuple) and len(set(values)) < len(values):
                raise ValueError("a column is named twice; name it once")
        if unknown := set(self.kinds) - set(self.names):
            name = min(unknown)
            raise ValueError(f"kinds names {name!r}, which is not in columns; {suggest(name, self.names)}")
        return self

    @property
    def key_columns(self) -> dict[str, str]:
        """Columns of the row, and the columns of the table with which they are compared."""
        if isinstance(self.key, dict):
            return self.key
        return {name: name for name in ((self.key,) if isinstance(self.key, str) else self.key)}

    @property
    def names(self) -> dict[str, str]:
        """The names of the joined columns, and the columns of the table with their values."""
        return self.columns if isinstance(self.columns, dict) else {name: name for name in self.columns}


class ColumnRule(Frozen):
    """Validation rules for one column."""

    nullable: bool | None = None
    min: float | None = None
    max: float | None = None
    categories: tuple[str, ...] | None = None
    unique: bool = False
    severity: Severity = "error"

    @model_validator(mode="after")
    def _check_range(self) -> "ColumnRule":
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min} is above max {self.max}")
        return self


class Expectation(Frozen):
    """One expectation of Great Expectations, by its name there."""

    type: str = Field(examples=["expect_column_values_to_be_between"])
    kwargs: dict[str, Any] = Field(default_factory=dict)
    severity: Severity = "error"


class ValidationConfig(Frozen):
    """Rules that the table must satisfy before training."""

    min_rows: int = Field(20, ge=2)
    columns: dict[str, ColumnRule] = Field(default_factory=dict)
    unique: tuple[str, ...] = Field((), description="columns that together identify a row")
    expectations: tuple[Expectation, ...] = ()
    allow_leaks: tuple[str, ...] = Field((), description="columns that look like a leak, but are not")


class SplitConfig(Frozen):
    holdout: Share = Field(0.2, description="share of rows, or, by time, the duration of the newest rows, e.g. 28d")
    by: Literal["auto", "time", "random"] = "auto"
    refit: bool | None = Field(
        None, description="fit the same recipe again on all rows for the release; default: if the split is by time"
    )

    @field_serializer("holdout")
    def _format_holdout(self, holdout: float | dt.timedelta) -> float | str:
        return format_share(holdout)


class SearchConfig(Frozen):
    """Hyperparameter search with Optuna."""

    trials: int = Field(20, ge=1)
    timeout: float | None = Field(None, gt=0, description="seconds")
    batch: int = Field(1, ge=1, description="trials that are drawn at a time, so that workers can share them")
    space: dict[str, Any] = Field(
        default_factory=dict,
        description="parameter → [low, high] | {low, high, log} | {choices: [...]}; default: the estimator's own",
    )


class Candidate(Frozen):
    """An estimator to compare: a built-in name, the path of a scikit-learn compatible class, or an ensemble.

    An ensemble predicts the weighted mean of other candidates. It has no hyperparameters: cross-validation chooses the
    weights.
    """

    estimator: str = Field(examples=["linear", "forest", "boosting", "ensemble", "sklearn.svm.SVR"])
    name: str = Field("", pattern=r"^[\w-]{1,60}$", description="its name in reports; default: that of the estimator")
    params: dict[str, Any] = Field(default_factory=dict)
    weights: Literal["balanced"] | None = Field(None, description="class weights, classification only")
    search: SearchConfig | None = None
    of: tuple[str, ...] = Field((), description="ensemble: candidates that it combines, by name; default: all others")

    @property
    def is_ensemble(self) -> bool:
        return self.estimator == "ensemble"

    @model_validator(mode="after")
    def _check_ensemble(self) -> "Candidate":
        if self.is_ensemble:
            for key in ("params", "weights", "search"):
                if getattr(self, key):
                    raise ValueError(f"an ensemble has no {key}; set {key} on the candidates that it combines")
        elif self.of:
            raise ValueError(f"of is for an ensemble, and the estimator is {self.estimator}; remove of")
        return self

    @model_validator(mode="before")
    @classmethod
    def _shorthand(cls, value: object) -> object:
        if isinstance(value, str):
            value = {"estimator": value}
        if isinstance(value, dict) and "estimator" in value and not value.get("name"):
            value = {**value, "name": str(value["estimator"]).rpartition(".")[2]}
        return value


CandidateOrName = Annotated[Candidate, BeforeValidator(lambda value: value, json_schema_input_type=str | Candidate)]


class CrossValidationConfig(Frozen):
    folds: int = Field(5, ge=2, le=50)
    max_rows: int = Field(
        50_000,
        ge=1_000,
        description="maximum rows that a fold is fitted on (a seeded sample); the model is fitted on all rows",
    )


def _expand_path(value: object, key: str) -> object:
    """A path alone as a mapping; ``package.module:name`` as ``package.module.name``."""
    value = {key: value} if isinstance(value, str) else value
    if isinstance(value, dict) and isinstance(value.get(key), str):
        return {**value, key: value[key].replace(":", ".")}
    return value


def _expand_function(value: object) -> object:
    """As ``_expand_path``, with the name of the function as the default of ``name``."""
    value = _expand_path(value, "function")
    if isinstance(value, dict) and isinstance(value.get("function"), str):
        return {**value, "name": value.get("name") or value["function"].rpartition(".")[2]}
    return value


class TransformerConfig(Frozen):
    """A transformer of the columns that is a class of the user's project or of a trusted package."""

    transformer: str = Field(pattern=_DOTTED_PATH, examples=["my_features.Distances"])
    params: dict[str, Any] = Field(default_factory=dict, description="parameters of the constructor")

    @model_validator(mode="before")
    @classmethod
    def _shorthand(cls, value: object) -> object:
        return _expand_path(value, "transformer")


class _CustomFunction(Frozen):
    """A function of the user's project or of a trusted package."""

    function: str = Field(pattern=_DOTTED_PATH, examples=["my_metrics.profit"])
    name: str = Field("", pattern=r"^[A-Za-z_]\w{0,59}$", description="its name in reports; default: the function's")

    @model_validator(mode="before")
    @classmethod
    def _shorthand(cls, value: object) -> object:
        return _expand_function(value)


class CustomMetric(_CustomFunction):
    """A metric that is a function of ``y_true`` and ``y_pred``."""

    higher_is_better: bool = True
    response: Literal["labels", "probabilities"] = Field(
        "labels", description="what y_pred is: values or labels, or in a classification the probabilities"
    )


class CustomCheck(_CustomFunction):
    """A check of the gate that is a function of the holdout."""

    params: dict[str, Any] = Field(default_factory=dict, description="keyword arguments of the function")


TransformerOrPath = Annotated[
    TransformerConfig, BeforeValidator(lambda value: value, json_schema_input_type=str | TransformerConfig)
]
CustomMetricOrPath = Annotated[
    CustomMetric, BeforeValidator(lambda value: value, json_schema_input_type=str | CustomMetric)
]
CustomCheckOrPath = Annotated[
    CustomCheck, BeforeValidator(lambda value: value, json_schema_input_type=str | CustomCheck)
]


def custom_metric_names(raw: Mapping[str, Any]) -> tuple[str, ...]:
    """The names in ``evaluation.custom`` of a config that is not validated yet."""
    evaluation = raw.get("evaluation")
    entries = evaluation.get("custom") if isinstance(evaluation, dict) else None
    named = [_expand_function(entry) for entry in (entries if isinstance(entries, list | tuple) else [])]
    return tuple(str(entry["name"]) for entry in named if isinstance(entry, dict) and entry.get("name"))


def check_metric_name(name: str, info: ValidationInfo) -> str:
    """Rejects a name that is neither a built-in metric nor one of the custom ones that the context holds."""
    known = (*GREATER_IS_BETTER, *(info.context or {}).get("custom_metrics", ()))
    if name in known or info.context is None:
        return name
    raise PydanticCustomError("literal_error", "unknown metric", {"expected": ", ".join(map(repr, known))})


MetricOrCustom = Annotated[str, AfterValidator(check_metric_name)]


class EvaluationConfig(Frozen):
    metric: MetricOrCustom | None = Field(
        None, description="decides between candidates; default mae, roc_auc or f1 by task; or the name of a custom one"
    )
    custom: tuple[CustomMetricOrPath, ...] = Field((), description="metrics of your own; docs/extending.md")
    slices: tuple[str, ...] | None = Field(None, description="columns to report by; default: those with few values")
    threshold: Literal["f1", "precision", "recall", "accuracy", "none"] = Field(
        "f1",
        description="binary: metric that the decision threshold maximises in cross-validation; more classes: "
        "thresholds improve the primary metric; none: the class with the largest probability",
    )
    resamples: int = Field(200, ge=50, le=5000, description="bootstrap resamples behind each interval")


class GateConfig(Frozen):
    """Bounds and margins that a model must satisfy to be promoted."""

    max: dict[MetricOrCustom, FiniteFloat] = Field(
        default_factory=dict, description="metric → its maximum accepted value"
    )
    min: dict[MetricOrCustom, FiniteFloat] = Field(
        default_factory=dict, description="metric → its minimum accepted value"
    )
    custom: tuple[CustomCheckOrPath, ...] = Field((), description="checks of your own; docs/extending.md")
    baseline_margin: FiniteFloat = Field(0.0, ge=0, description="relative improvement over the baseline")
    champion_margin: FiniteFloat = Field(
        0.02, ge=0, description="relative loss against the champion that is still accepted"
    )
    slice_margin: FiniteFloat = Field(
        0.25, ge=0, description="relative loss against the champion that is accepted in a slice"
    )
    latency_ms: FiniteFloat = Field(250.0, gt=0, description="median of single-row predictions")
    inconclusive: Literal["refuse", "promote"] = Field(
        "refuse", description="whether a version with inconclusive checks, and none that fails, is promoted"
    )


class PrivacyConfig(Frozen):
    """Columns with personal data, and what the prediction log stores of a request."""

    pii: tuple[str, ...] = Field(
        (), description="columns with personal data: not logged, or as columns says; docs/privacy.md"
    )
    columns: dict[str, LoggingPolicy] = Field(default_factory=dict, description="how a column is logged; default keep")
    join_on: tuple[str, ...] = Field(
        (), description="fields of a request, features or not, that labels are joined and rows erased by; default hash"
    )

    @model_validator(mode="after")
    def _check_policies(self) -> "PrivacyConfig":
        for column, policy in self.columns.items():
            if column in self.pii and policy == "keep":
                raise ValueError(f"column {column!r} is pii, but its policy is keep; write drop, hash or bucket")
            if column in self.join_on and policy not in ("keep", "hash"):
                raise ValueError(f"column {column!r} is in join_on, but {policy} allows no join; write keep or hash")
        return self

    def of(self, column: str) -> LoggingPolicy:
        """How a column is logged. A key is hashed, also one that is pii."""
        default: LoggingPolicy = "hash" if column in self.join_on else "drop" if column in self.pii else "keep"
        return self.columns.get(column, default)
