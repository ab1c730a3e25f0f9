"""The two kinds of configuration: Settings say where, PipelineConfig says what.

Settings come from the environment (``TOWLINE_*``), PipelineConfig from one YAML file. Both are frozen, built at an
entrypoint and handed on as arguments.
"""

import datetime as dt
import difflib
import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from towline import strict_yaml
from towline.errors import ConfigError

Kind = Literal["numeric", "category", "boolean", "datetime", "text", "ignore"]
Task = Literal["regression", "binary", "multiclass"]
Metric = Literal[
    "accuracy", "precision", "recall", "f1", "roc_auc", "average_precision", "log_loss", "brier",
    "mae", "rmse", "r2", "mape",
]  # fmt: skip
Severity = Literal["error", "warn"]
Keeping = Literal["keep", "drop", "hash", "bucket"]

GREATER_IS_BETTER: Mapping[str, bool] = {
    "accuracy": True, "precision": True, "recall": True, "f1": True, "roc_auc": True, "average_precision": True,
    "log_loss": False, "brier": False, "mae": False, "rmse": False, "r2": True, "mape": False,
}  # fmt: skip
METRICS: Mapping[str, tuple[str, ...]] = {
    "regression": ("mae", "rmse", "r2", "mape"),
    "binary": ("roc_auc", "average_precision", "f1", "precision", "recall", "accuracy", "log_loss", "brier"),
    "multiclass": ("f1", "precision", "recall", "accuracy", "roc_auc", "log_loss"),
}
PRIMARY: Mapping[str, Metric] = {"regression": "mae", "binary": "roc_auc", "multiclass": "f1"}


class Frozen(BaseModel):
    """A small immutable record: unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class SqlSource(Frozen):
    """A query on a database."""

    url: str = Field(description="SQLAlchemy URL; ${NAME} is replaced from the environment")
    query: str = Field(description="one SELECT")


def _as_duration(value: object) -> object:
    match = re.fullmatch(r"\s*(\d+)\s*(d|days?|h|hours?|w|weeks?)\s*", value) if isinstance(value, str) else None
    if not match:
        return value
    unit = {"d": "days", "h": "hours", "w": "weeks"}[match[2][0]]
    return dt.timedelta(**{unit: int(match[1])})


Duration = Annotated[dt.timedelta, BeforeValidator(_as_duration)]


class DataConfig(Frozen):
    """Where the rows come from and which of their columns count."""

    source: str | list[str] | SqlSource = Field(
        description="a CSV, CSV.gz or Parquet file, a folder or glob of them, a list of these, or {url, query}"
    )
    target: str
    time: str | None = Field(None, description="when the row happened; makes the split and the folds time-aware")
    group: str | None = Field(None, description="rows of one group never stand on both sides of a split")
    drop: tuple[str, ...] = Field((), description="columns never read: leaks, identifiers, personal data")
    window: Duration | None = Field(None, description="only this much history before the newest row, e.g. 90d")
    separator: str = Field(",", min_length=1, max_length=1)
    positive: str | int | bool | None = Field(
        None, description="the positive class; default: yes/true/1, else the rarer"
    )
    columns: dict[str, Kind] = Field(default_factory=dict, description="column kinds where inference is wrong")


class ColumnRule(Frozen):
    """What a column must hold."""

    nullable: bool | None = None
    min: float | None = None
    max: float | None = None
    categories: tuple[str, ...] | None = None
    unique: bool = False
    severity: Severity = "error"

    @model_validator(mode="after")
    def _ordered(self) -> "ColumnRule":
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min} is above max {self.max}")
        return self


class Expectation(Frozen):
    """One Great Expectations expectation, by its own name."""

    type: str = Field(examples=["expect_column_values_to_be_between"])
    kwargs: dict[str, Any] = Field(default_factory=dict)
    severity: Severity = "error"


class ValidationConfig(Frozen):
    """What the table must satisfy before anything is trained on it."""

    min_rows: int = Field(20, ge=2)
    columns: dict[str, ColumnRule] = Field(default_factory=dict)
    unique: tuple[str, ...] = Field((), description="columns that together identify a row")
    expectations: tuple[Expectation, ...] = ()
    allow_leaks: tuple[str, ...] = Field((), description="columns that look like a leak and are known not to be one")


class SplitConfig(Frozen):
    holdout: float = Field(0.2, gt=0.0, lt=0.9)
    by: Literal["auto", "time", "random"] = "auto"


class SearchConfig(Frozen):
    """Hyperparameter search with Optuna."""

    trials: int = Field(20, ge=1)
    timeout: float | None = Field(None, gt=0, description="seconds")
    space: dict[str, Any] = Field(
        default_factory=dict,
        description="parameter → [low, high] | {low, high, log} | {choices: [...]}; default: the estimator's own",
    )


class Candidate(Frozen):
    """An estimator to try: a name of ours, or an importable scikit-learn compatible class."""

    estimator: str = Field(examples=["linear", "forest", "boosting", "sklearn.svm.SVR"])
    name: str = Field("", pattern=r"^[\w-]{1,60}$", description="how it is called in reports; default: the estimator's")
    params: dict[str, Any] = Field(default_factory=dict)
    weights: Literal["balanced"] | None = Field(None, description="class weights, classification only")
    search: SearchConfig | None = None

    @model_validator(mode="before")
    @classmethod
    def _shorthand(cls, value: object) -> object:
        if isinstance(value, str):
            value = {"estimator": value}
        if isinstance(value, dict) and not value.get("name"):
            value = {**value, "name": str(value.get("estimator", "")).rpartition(".")[2]}
        return value


Named = Annotated[Candidate, BeforeValidator(lambda given: given, json_schema_input_type=str | Candidate)]


class CrossValidationConfig(Frozen):
    folds: int = Field(5, ge=2, le=50)


class EvaluationConfig(Frozen):
    metric: Metric | None = Field(None, description="decides between candidates; default mae, roc_auc or f1 by task")
    slices: tuple[str, ...] | None = Field(None, description="columns to report by; default: those with few values")
    threshold: Metric | Literal["none"] = Field(
        "f1", description="binary: metric the decision threshold maximises on CV"
    )
    resamples: int = Field(200, ge=50, le=5000, description="bootstrap resamples behind each interval")


class GateConfig(Frozen):
    """What a model must reach to serve."""

    max: dict[Metric, float] = Field(default_factory=dict)
    min: dict[Metric, float] = Field(default_factory=dict)
    baseline_margin: float = Field(0.0, ge=0, description="relative improvement over the baseline")
    champion_margin: float = Field(0.02, ge=0, description="relative loss against the champion that is still accepted")
    slice_margin: float = Field(0.25, ge=0, description="the same for each slice")
    latency_ms: float = Field(250.0, gt=0, description="median of single-row predictions")


class PrivacyConfig(Frozen):
    """What the prediction log keeps of a request."""

    pii: tuple[str, ...] = Field((), description="columns that tell of a person: not logged, or as columns says")
    columns: dict[str, Keeping] = Field(default_factory=dict, description="how a column is logged; default keep")
    join_on: tuple[str, ...] = Field(
        (), description="fields of a request, features or not, that labels are joined and rows erased by; default hash"
    )

    @model_validator(mode="after")
    def _sensible(self) -> "PrivacyConfig":
        for column, keeping in self.columns.items():
            if column in self.pii and keeping == "keep":
                raise ValueError(f"column {column!r} is pii and also kept: say drop, hash or bucket")
            if column in self.join_on and keeping not in ("keep", "hash"):
                raise ValueError(f"column {column!r} is a key, and nothing joins by {keeping}: say keep or hash")
        return self

    def of(self, column: str) -> Keeping:
        """How a column is logged. A key is hashed, also one that is pii."""
        default: Keeping = "hash" if column in self.join_on else "drop" if column in self.pii else "keep"
        return self.columns.get(column, default)


class PipelineConfig(Frozen):
    """What one pipeline does: logged with each run and copied into each release."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$", description="the model's name")
    description: str = ""
    task: Task | None = Field(None, description="default: inferred from the target")
    seed: int = Field(42, ge=0, lt=2**32)
    data: DataConfig
    validation: ValidationConfig = ValidationConfig()
    split: SplitConfig = SplitConfig()
    candidates: tuple[Named, ...] = Field(
        (Candidate(estimator="linear"), Candidate(estimator="forest"), Candidate(estimator="boosting")), min_length=1
    )
    cross_validation: CrossValidationConfig = CrossValidationConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    gate: GateConfig = GateConfig()
    privacy: PrivacyConfig = PrivacyConfig()

    @field_validator("candidates")
    @classmethod
    def _distinct(cls, candidates: tuple[Candidate, ...]) -> tuple[Candidate, ...]:
        names = [candidate.name for candidate in candidates]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two candidates are called {twice[0]!r}; give one a name of its own")
        if "baseline" in names:
            raise ValueError("'baseline' is always a candidate; leave it out")
        return candidates

    @model_validator(mode="after")
    def _columns_agree(self) -> "PipelineConfig":
        for role in ("time", "group"):
            if (column := getattr(self.data, role)) == self.data.target:
                raise ValueError(f"data.{role} and data.target are both {column!r}")
        for column in (self.data.target, self.data.time, self.data.group):
            if column in self.data.drop:
                raise ValueError(f"column {column!r} is needed and also in data.drop")
        if self.data.target in {*self.privacy.pii, *self.privacy.columns, *self.privacy.join_on}:
            raise ValueError(f"privacy names {self.data.target!r}, which is the target: a request does not hold it")
        if self.split.by == "time" and not self.data.time:
            raise ValueError("split.by is time but data.time names no column")
        return self

    def canonical(self) -> str:
        """One JSON text for equal configs: what the run key and the release digest."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, ensure_ascii=False, separators=(",", ":"))

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.canonical().encode()).hexdigest()


class Settings(Frozen):
    """Where things are. Nothing secret has a default."""

    project: Path
    store: Path
    tracking_uri: str
    ledger_url: str

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None, cwd: Path | None = None) -> "Settings":
        """Reads ``TOWLINE_PROJECT``, ``TOWLINE_STORE``, ``TOWLINE_TRACKING_URI`` and ``TOWLINE_LEDGER_URL``.

        The project defaults to the nearest folder upwards that holds ``flows/training.py``, else the working folder.

        Raises:
            ConfigError: a ``TOWLINE_*`` variable that does not exist.
        """
        env = os.environ if environ is None else environ
        known = {"TOWLINE_PROJECT", "TOWLINE_STORE", "TOWLINE_TRACKING_URI", "TOWLINE_LEDGER_URL"}
        for name in sorted(env.keys() - {"TOWLINE_API_KEY"}):  # of callers; it says not where anything is
            if name.startswith("TOWLINE_") and name not in known:
                raise ConfigError(f"unknown setting {name}", where="environment", remedy=_suggest(name, known))
        here = (cwd or Path.cwd()).resolve()
        found = next((d for d in (here, *here.parents) if (d / "flows" / "training.py").is_file()), here)
        project = Path(env.get("TOWLINE_PROJECT", found)).resolve()
        store = (project / env.get("TOWLINE_STORE", "mlruns")).resolve()
        return cls(
            project=project,
            store=store,
            tracking_uri=env.get("TOWLINE_TRACKING_URI", f"sqlite:///{store}/mlflow.db"),
            ledger_url=env.get("TOWLINE_LEDGER_URL", f"sqlite:///{store}/ledger.db"),
        )


def read_config(path: Path, overrides: Iterable[str] = ()) -> PipelineConfig:
    """Reads a pipeline's YAML, with ``key.path=value`` overrides.

    Raises:
        ConfigError: no such file, bad YAML (with its line), an unknown key (with the nearest known one) or a bad value.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.y*ml")], 1)
        hint = f"did you mean {path.parent / near[0]}?" if near else "give the path of a pipeline's YAML file"
        raise ConfigError("no such config", where=str(path), remedy=hint) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"cannot read the config: {error}", where=str(path), remedy="give a UTF-8 YAML file"
        ) from None
    raw, tree = strict_yaml.parse(text, str(path))
    if not isinstance(raw, dict):
        raise ConfigError("the config is not a mapping", where=str(path), remedy="start from configs/bike_demand.yaml")
    for override in overrides:
        strict_yaml.override(raw, override)
    return build_config(raw, str(path), tree)


def build_config(raw: dict[str, Any], where: str, tree: yaml.Node | None = None) -> PipelineConfig:
    """Validates a mapping as a PipelineConfig; errors name the key and, with ``tree``, the line."""
    try:
        return PipelineConfig.model_validate(raw)
    except ValidationError as invalid:
        errors = invalid.errors(include_url=False)
    # in a union (data.source) every branch complains; the longest path is the one the user meant
    lines = []
    remedy = "run `towline config schema` for every key and its meaning"
    first = where
    for error in errors[:10]:
        keys = [str(part) for part in error["loc"] if part not in ("str", "list[str]", "SqlSource")]
        line = strict_yaml.line(tree, keys)
        label = ".".join(keys) or "config"
        message = error["msg"].removeprefix("Value error, ")
        if error["type"] == "extra_forbidden":
            known = _known_keys(error["loc"][:-1])
            message = "unknown key"
            remedy = _suggest(keys[-1], known)
        lines.append(f"{label}: {message}" + (f" (line {line})" if line else ""))
        if first == where and line:
            first = f"{where}:{line}"
    raise ConfigError("the config is not valid", where=first, remedy=remedy, details=tuple(dict.fromkeys(lines)))


def _suggest(name: str, known: Iterable[str]) -> str:
    names = sorted(known)
    near = difflib.get_close_matches(name, names, 1, 0.5)
    return f"did you mean {near[0]}?" if near else "known: " + ", ".join(names)


def _known_keys(loc: tuple[int | str, ...]) -> set[str]:
    model: Any = PipelineConfig
    for part in loc:
        if part == "SqlSource":
            model = SqlSource
        elif isinstance(part, str) and part in getattr(model, "model_fields", {}):
            annotation = model.model_fields[part].annotation
            inner = [a for a in (annotation, *getattr(annotation, "__args__", ())) if hasattr(a, "model_fields")]
            model = inner[0] if inner else annotation
    return set(getattr(model, "model_fields", {}))
