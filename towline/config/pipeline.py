"""The pipeline config: the settings of one pipeline, read from one YAML file.

``TrainingConfig`` is the part that training depends on; ``PipelineConfig`` adds the gate and monitoring.
"""

import csv
import datetime as dt
import difflib
import gzip
import hashlib
import json
import logging
import math
import os
import shlex
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from pydantic import BeforeValidator, Field, ValidationError, field_validator, model_validator

from towline.config import strict_yaml
from towline.config.approval import ApprovalConfig
from towline.config.behaviour import BehaviourConfig
from towline.config.messages import ConfigProblem, ConfigProblemsError, describe_problems
from towline.config.monitoring import (
    MONITORING_SECTIONS,
    AlertConfig,
    DriftConfig,
    PackageConfig,
    QualityConfig,
    RetrainConfig,
    ScheduleConfig,
    ScoringConfig,
    SloConfig,
)
from towline.config.passwords import has_hidden_password
from towline.config.record import Budget, Frozen, suggest
from towline.config.rollout import RolloutConfig
from towline.config.settings import Settings
from towline.config.training import (
    GREATER_IS_BETTER,
    CalibrationMethod,
    Candidate,
    CandidateOrName,
    CrossValidationConfig,
    DataConfig,
    EvaluationConfig,
    FeatureExpression,
    FeatureName,
    GateConfig,
    LookupConfig,
    PrivacyConfig,
    SplitConfig,
    SqlSource,
    Task,
    TransformerOrPath,
    ValidationConfig,
    custom_metric_names,
)
from towline.errors import ConfigError, UserError
from towline.expressions.syntax import ExpressionError, list_columns, parse

_logger = logging.getLogger(__name__)
TABLES = (
    ".csv", ".tsv", ".data", ".dat", ".parquet", ".pq", ".json", ".jsonl", ".ndjson", ".xlsx", ".xls", ".feather",
    ".gz", ".bz2", ".xz", ".zst", ".zip",
)  # fmt: skip


class TrainingConfig(Frozen):
    """The part of a config that training depends on; runs with equal training configs share their fits."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$", description="the model's name")
    task: Task | None = Field(None, description="default: inferred from the target")
    seed: int = Field(42, ge=0, lt=2**32)
    data: DataConfig
    features: dict[FeatureName, FeatureExpression] = Field(
        default_factory=dict,
        description="features computed from columns of the row: name → expression",
    )
    lookups: dict[FeatureName, LookupConfig] = Field(
        default_factory=dict, description="second tables whose columns are joined to the rows; docs/features.md"
    )
    split: SplitConfig = SplitConfig()
    candidates: tuple[CandidateOrName, ...] = Field(
        (Candidate(estimator="linear"), Candidate(estimator="forest"), Candidate(estimator="boosting")), min_length=1
    )
    budget: Budget = Field(
        dt.timedelta(minutes=10),
        description="time for a training, e.g. 10m; null: no limit",
    )
    prepare: TransformerOrPath | None = Field(
        None, description="a transformer of your own before the preprocessing; docs/extending.md"
    )
    cross_validation: CrossValidationConfig = CrossValidationConfig()
    calibrate: CalibrationMethod | None = Field(
        None, description="calibrates the probabilities of a classifier on out-of-fold rows; null: no calibration"
    )
    evaluation: EvaluationConfig = EvaluationConfig()
    privacy: PrivacyConfig = PrivacyConfig()
    package: PackageConfig = PackageConfig()

    @field_validator("candidates")
    @classmethod
    def _check_names(cls, candidates: tuple[Candidate, ...]) -> tuple[Candidate, ...]:
        names = [candidate.name for candidate in candidates]
        duplicates = sorted({name for name in names if names.count(name) > 1})
        if duplicates:
            raise ValueError(f"two candidates have the name {duplicates[0]!r}; set another name for one of them")
        if "baseline" in names:
            raise ValueError("'baseline' is always a candidate; remove it from the list")
        for ensemble in candidates:
            if ensemble.is_ensemble:
                _check_parts(ensemble, {each.name: each.is_ensemble for each in candidates})
        return candidates

    @field_validator("evaluation")
    @classmethod
    def _check_metric_names(cls, evaluation: EvaluationConfig) -> EvaluationConfig:
        names = [metric.name for metric in evaluation.custom]
        duplicates = sorted({name for name in names if names.count(name) > 1 or name in GREATER_IS_BETTER})
        if duplicates:
            raise ValueError(f"two metrics have the name {duplicates[0]!r}; set another name in evaluation.custom")
        return evaluation

    @model_validator(mode="after")
    def _check_columns(self) -> Self:
        for role in ("time", "group"):
            if (column := getattr(self.data, role)) == self.data.target:
                raise ValueError(f"data.{role} and data.target are both {column!r}")
        for column in (self.data.target, self.data.time, self.data.group):
            if column in self.data.drop:
                raise ValueError(f"column {column!r} is needed and also in data.drop")
        if self.data.target in {*self.privacy.pii, *self.privacy.columns, *self.privacy.join_on}:
            raise ValueError(f"privacy names {self.data.target!r}, which is the target: a request does not hold it")
        if self.data.time in self.privacy.pii:
            raise ValueError(f"privacy.pii names {self.data.time!r}, which is data.time: a release keeps times of rows")
        if pii_slices := set(self.evaluation.slices or ()) & set(self.privacy.pii):
            raise ValueError(
                f"evaluation.slices names {min(pii_slices)!r}, which is pii: reports would show its values"
            )
        if self.split.by == "time" and not self.data.time:
            raise ValueError("split.by is time but data.time names no column")
        if not (isinstance(self.split.holdout, float) or self.by_time):
            raise ValueError("split.holdout is a duration, which needs a split by data.time; write a share such as 0.2")
        return self

    @model_validator(mode="after")
    def _check_derived_columns(self) -> Self:
        if problems := [*self._check_features(), *self._check_lookups()]:
            raise ConfigProblemsError(problems)
        return self

    @model_validator(mode="after")
    def _check_numbers(self) -> Self:
        """Rejects ``.nan`` and ``.inf`` also in values of any type: JSON, in which configs are sent, has neither."""
        if problems := [ConfigProblem(keys, "must be a finite number") for keys in _find_non_finite(self.model_dump())]:
            raise ConfigProblemsError(problems)
        return self

    def _check_features(self) -> Iterator[ConfigProblem]:
        """Rejects features of columns that are not read."""
        for name, text in self.features.items():
            for column in list_columns(parse(text)):
                error = None
                if column.name == self.data.target:
                    remedy = "use other columns: a request does not hold the target"
                    error = ExpressionError(f"{column.name!r} is the target", column.at, remedy)
                elif column.name in self.data.drop:
                    remedy = "remove it from data.drop; if no model may use it, it cannot be in a feature either"
                    error = ExpressionError(f"{column.name!r} is in data.drop", column.at, remedy)
                elif column.name in self.features:
                    remedy = "write its expression instead"
                    error = ExpressionError(f"{column.name!r} is a feature itself", column.at, remedy)
                if error:
                    yield ConfigProblem(("features", name), error.describe(text))

    def _check_lookups(self) -> Iterator[ConfigProblem]:
        """Rejects keys that a request does not hold, and names that are used twice."""
        names = dict.fromkeys(self.features, "features")
        for lookup, settings in self.lookups.items():
            place = ("lookups", lookup)
            for key in settings.key_columns:
                if message := self._reject_key(key):
                    yield ConfigProblem((*place, "key", key), message)
            for name in settings.names:
                if name in names:
                    message = f"{names[name]} has the name {name!r} too; "
                    message += f"rename the column, e.g. columns: {{{lookup}_{name}: {settings.names[name]}}}"
                    yield ConfigProblem((*place, "columns", name), message)
                elif name in self.privacy.pii:
                    message = f"the joined column {name!r} is in privacy.pii; do not join it"
                    yield ConfigProblem((*place, "columns", name), message)
                names[name] = f"lookups.{lookup}"
            if settings.time and not self.data.time:
                message = "needs the time of each row; name its column in data.time, or remove "
                message += f"lookups.{lookup}.time and keep one entry per key"
                yield ConfigProblem((*place, "time"), message)

    def _reject_key(self, key: str) -> str:
        """Why a lookup cannot have a key; empty if it can."""
        if key == self.data.target:
            return f"the key {key!r} is the target; a request does not hold it"
        if key in self.data.drop:
            return f"the key {key!r} is in data.drop; remove it from data.drop"
        if key in self.privacy.pii:
            remedy = "use another key, or join the columns in data.source"
            return f"the key {key!r} is in privacy.pii, and the release would store its values; {remedy}"
        return ""

    @property
    def single_candidates(self) -> tuple[Candidate, ...]:
        """The candidates that are not ensembles."""
        return tuple(candidate for candidate in self.candidates if not candidate.is_ensemble)

    @property
    def ensembles(self) -> tuple[Candidate, ...]:
        """The candidates that combine other candidates."""
        return tuple(candidate for candidate in self.candidates if candidate.is_ensemble)

    def parts_of(self, ensemble: Candidate) -> tuple[Candidate, ...]:
        """The candidates that an ensemble combines, in the order of ``candidates``."""
        return tuple(each for each in self.single_candidates if not ensemble.of or each.name in ensemble.of)

    @property
    def by_time(self) -> bool:
        """Whether the split is by time: the newest rows are held out."""
        return bool(self.data.time) and self.split.by != "random"

    @property
    def refits(self) -> bool:
        """Whether the released model is fitted again on all rows after the evaluation on the holdout."""
        return self.by_time if self.split.refit is None else self.split.refit

    @property
    def digest(self) -> str:
        """SHA-256 of everything that a run depends on: of all keys but monitoring and ``data.keep_snapshot``."""
        fields = self.model_dump(
            mode="json", exclude={**dict.fromkeys(MONITORING_SECTIONS, True), "data": {"keep_snapshot"}}
        )
        text = json.dumps(fields, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def _find_non_finite(value: object) -> Iterator[tuple[str, ...]]:
    """The path of keys of each number in a mapping that is not finite."""
    if isinstance(value, float) and not math.isfinite(value):
        yield ()
    members = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    for key, member in members:
        yield from ((str(key), *keys) for keys in _find_non_finite(member))


def _check_parts(ensemble: Candidate, candidates: Mapping[str, bool]) -> None:
    """Checks that an ensemble combines two other candidates or more; the mapping says which ones are ensembles."""
    single = [name for name, is_ensemble in candidates.items() if not is_ensemble]
    for name in ensemble.of:
        if name == "baseline":
            raise ValueError(f"{ensemble.name} combines the baseline, which uses no features; remove it from of")
        if candidates.get(name):
            raise ValueError(f"{ensemble.name} combines {name!r}, which is an ensemble; list its parts in of instead")
        if name not in candidates:
            raise ValueError(f"{ensemble.name} combines {name!r}, which is not a candidate; {suggest(name, single)}")
        if ensemble.of.count(name) > 1:
            raise ValueError(f"{ensemble.name} combines {name!r} twice; list it once in of")
    if len(ensemble.of or single) < 2:
        raise ValueError(f"{ensemble.name} combines fewer than two candidates; add others to candidates and to of")


class PipelineConfig(TrainingConfig):
    """The config of one pipeline: logged with each run and copied into each release."""

    description: str = ""
    validation: ValidationConfig = ValidationConfig()
    gate: GateConfig = GateConfig()
    behaviour: BehaviourConfig = BehaviourConfig()
    rollout: RolloutConfig | None = Field(
        None, description="how a version that passes replaces the champion; null: immediately; docs/rollouts.md"
    )
    approval: ApprovalConfig | None = Field(
        None,
        description="approvals that a version needs before it is promoted; null: none; docs/approvals.md",
    )
    drift: DriftConfig = DriftConfig()
    quality: QualityConfig = QualityConfig()
    retrain: RetrainConfig = RetrainConfig()
    slo: SloConfig = SloConfig()
    alerts: AlertConfig = AlertConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    scoring: ScoringConfig = ScoringConfig()

    @model_validator(mode="after")
    def _check_behaviour(self) -> Self:
        for where, column in self.behaviour.columns:
            if column == self.data.target:
                raise ValueError(f"{where} names {column!r}, which is the target")
            if column in self.data.drop:
                raise ValueError(f"{where} names {column!r}, which is in data.drop: it is not read")
            if column in self.privacy.pii and ".fairness." in where:
                raise ValueError(f"{where} names {column!r}, which is pii: reports would show its values")
        return self

    @property
    def training(self) -> TrainingConfig:
        """The part that training depends on; equal for configs that differ in the gate or in monitoring only."""
        fields = {name: getattr(self, name) for name in TrainingConfig.model_fields}
        fields["package"] = PackageConfig(trusted=self.package.trusted)
        return TrainingConfig.model_validate(fields)

    def masked(self) -> "PipelineConfig":
        """A copy to show and store: passwords and the webhook's path are masked."""
        return self.model_copy(update={"data": self.data.masked(), "alerts": self.alerts.masked()})


def read_config(path: Path, overrides: Iterable[str] = ()) -> PipelineConfig:
    """Reads the YAML file of a pipeline.

    Args:
        path: of the file.
        overrides: ``key.path=value`` texts that replace values of the file.

    Raises:
        ConfigError: there is no such file, or its YAML, a key or a value is invalid; names the line and column.
    """
    if path.name.lower().endswith(TABLES):
        raise _table_error(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        similar = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.y*ml")], 1)
        question = f"did you mean {path.parent / similar[0]}?" if similar else "give the path of a pipeline's YAML file"
        raise ConfigError("no such config", where=str(path), remedy=question) from None
    except (OSError, UnicodeDecodeError) as error:
        what = f"cannot read the config: {error}"
        raise ConfigError(what, where=str(path), remedy="give a UTF-8 YAML file") from None
    raw, tree = strict_yaml.parse(text, str(path))
    if not isinstance(raw, dict):
        raise ConfigError("the config is not a mapping", where=str(path), remedy="start from configs/bike_demand.yaml")
    for override in overrides:
        strict_yaml.override(raw, override)
    config = build_config(raw, str(path), tree)
    source = config.data.source
    if any(map(has_hidden_password, [source.url] if isinstance(source, SqlSource) else config.data.source_files)):
        _logger.warning(
            "%s: a URL of data.source has a literal password; write ${NAME} instead and set NAME in the environment, "
            "so that the file is not secret",
            path,
        )
    return config


@contextmanager
def locating_errors(path: object, overrides: Iterable[str] = ()) -> Iterator[None]:
    """Adds the line and column in a config file to errors whose ``where`` is a key of the config.

    Args:
        path: of the YAML file; errors of a config that is not a file are unchanged.
        overrides: as in ``read_config``; errors at their keys are unchanged.
    """
    try:
        yield
    except UserError as error:
        if isinstance(path, str | os.PathLike) and (position := _locate_key(Path(path), error.where, overrides)):
            error.where = f"{path}:{position[0]}:{position[1]}, {error.where}"
        raise


def _locate_key(path: Path, where: str, overrides: Iterable[str]) -> tuple[int, int] | None:
    key, _, value = where.partition(": ")
    if any(key.startswith(override.partition("=")[0]) for override in overrides):
        return None
    try:
        _, tree = strict_yaml.parse(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError, ConfigError):
        return None
    return strict_yaml.find_position(tree, [*key.split("."), value])


def _table_error(path: Path) -> ConfigError:
    """The error for a table given instead of a config; it names the command that writes a config for the table."""
    columns = _read_header(path)
    target = columns[-1] if columns else "COLUMN"
    shown = f"the columns are: {', '.join(columns[:20])}{', …' if len(columns) > 20 else ''}"
    return ConfigError(
        "this is a table, not a config",
        where=str(path),
        remedy=f"towline init {shlex.quote(str(path))} --target {shlex.quote(target)}",
        details=(shown,) if columns else (),
    )


def _read_header(path: Path) -> list[str]:
    """The column names of a CSV file; empty for another or an unreadable file."""
    if not any(path.name.lower().endswith(kind) for kind in (".csv", ".csv.gz", ".tsv", ".tsv.gz")):
        return []
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
            head = file.readline(100_000)
    except (OSError, UnicodeDecodeError):
        return []
    separator = max(",;\t|", key=head.count)
    return [cell.strip() for cell in next(csv.reader([head], delimiter=separator), [])]


def _read_if_named(value: object) -> object:
    return read_config(Settings.from_environment().project / value) if isinstance(value, str) else value


#: a parameter of flows: a config, or its path in the project, which is read when the flow runs
ConfigOrPath = Annotated[PipelineConfig, BeforeValidator(_read_if_named, json_schema_input_type=PipelineConfig | str)]


def build_config(raw: dict[str, Any], where: str, tree: yaml.Node | None = None) -> PipelineConfig:
    """Builds a config from a mapping.

    Args:
        raw: keys and values.
        where: the file, for errors.
        tree: the nodes of the YAML text, for positions.

    Raises:
        ConfigError: keys or values are invalid; one detail line for each.
    """
    try:
        return PipelineConfig.model_validate(raw, context={"custom_metrics": custom_metric_names(raw)})
    except ValidationError as invalid:
        errors = invalid.errors(include_url=False)
    unknown = [error["loc"][:-1] for error in errors if error["type"] == "extra_forbidden"]
    known = {tuple(str(part) for part in loc if part != "SqlSource"): _known_keys(loc) for loc in unknown}
    lines, remedy, first = [], "", where
    for keys, message, key_remedy in describe_problems(errors, known)[:10]:
        position = strict_yaml.find_position(tree, keys)
        hint = f"; {key_remedy}" if key_remedy and remedy else ""
        remedy = remedy or key_remedy
        lines.append(
            f"{'.'.join(keys) or 'config'}: {message}{hint}"
            + ("" if position is None else f" (line {position[0]}, column {position[1]})")
        )
        if first == where and position:
            first = f"{where}:{position[0]}:{position[1]}"
    remedy = remedy or "run `towline config schema` for every key and its meaning"
    raise ConfigError("the config is not valid", where=first, remedy=remedy, details=tuple(lines))


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
