"""The two kinds of configuration: Settings say where, PipelineConfig says what.

Settings come from the environment (``TOWLINE_*``), PipelineConfig from one YAML file. Both are frozen, built at an
entrypoint and handed on as arguments.
"""

from towline.config.monitoring import (
    AlertConfig,
    DriftConfig,
    PackageConfig,
    QualityConfig,
    RetrainConfig,
    ScheduleConfig,
    SloConfig,
)
from towline.config.pipeline import Given, PipelineConfig, build_config, read_config
from towline.config.record import Duration, Frozen, Span, span
from towline.config.settings import Settings
from towline.config.training import (
    GREATER_IS_BETTER,
    METRICS,
    PRIMARY,
    Candidate,
    ColumnRule,
    CrossValidationConfig,
    DataConfig,
    EvaluationConfig,
    Expectation,
    GateConfig,
    Kind,
    LoggingPolicy,
    Metric,
    Past,
    PrivacyConfig,
    SearchConfig,
    Severity,
    SplitConfig,
    SqlSource,
    Task,
    ValidationConfig,
)

__all__ = [
    "GREATER_IS_BETTER",
    "METRICS",
    "PRIMARY",
    "AlertConfig",
    "Candidate",
    "ColumnRule",
    "CrossValidationConfig",
    "DataConfig",
    "DriftConfig",
    "Duration",
    "EvaluationConfig",
    "Expectation",
    "Frozen",
    "GateConfig",
    "Given",
    "Kind",
    "LoggingPolicy",
    "Metric",
    "PackageConfig",
    "Past",
    "PipelineConfig",
    "PrivacyConfig",
    "QualityConfig",
    "RetrainConfig",
    "ScheduleConfig",
    "SearchConfig",
    "Settings",
    "Severity",
    "SloConfig",
    "Span",
    "SplitConfig",
    "SqlSource",
    "Task",
    "ValidationConfig",
    "build_config",
    "read_config",
    "span",
]  # fmt: skip
