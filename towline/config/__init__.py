"""The two kinds of configuration: Settings are locations, PipelineConfig describes a pipeline.

Settings come from the environment (``TOWLINE_*``), PipelineConfig from one YAML file. Both are frozen, built at an
entrypoint and handed on as arguments.
"""

from towline.config.approval import ApprovalConfig
from towline.config.behaviour import (
    BehaviourConfig,
    CalibrationTest,
    DirectionalTest,
    ExpectedPrediction,
    FairnessTest,
    InvarianceTest,
    KnownCases,
    RobustnessCase,
    RobustnessTest,
)
from towline.config.monitoring import (
    AlertConfig,
    DriftConfig,
    PackageConfig,
    QualityConfig,
    RetrainConfig,
    ScheduleConfig,
    ScoringConfig,
    SloConfig,
)
from towline.config.pipeline import (
    ConfigOrPath,
    PipelineConfig,
    TrainingConfig,
    build_config,
    locating_errors,
    read_config,
)
from towline.config.record import (
    Duration,
    Frozen,
    OptionalDuration,
    bare_name,
    finite_or_none,
    format_duration,
    suggest,
)
from towline.config.rollout import RolloutConfig
from towline.config.settings import Settings
from towline.config.training import (
    DEFAULT_METRIC,
    FORMAT_SEPARATOR,
    GREATER_IS_BETTER,
    METRICS,
    CalibrationMethod,
    Candidate,
    ColumnRule,
    CrossValidationConfig,
    CustomCheck,
    CustomMetric,
    DataConfig,
    EvaluationConfig,
    Expectation,
    GateConfig,
    HistoryConfig,
    Kind,
    LoggingPolicy,
    LookupConfig,
    MetricName,
    PrivacyConfig,
    SearchConfig,
    Severity,
    SplitConfig,
    SqlSource,
    Task,
    ValidationConfig,
)

__all__ = [
    "DEFAULT_METRIC", "FORMAT_SEPARATOR", "GREATER_IS_BETTER", "METRICS", "AlertConfig", "ApprovalConfig",
    "BehaviourConfig", "CalibrationMethod",
    "CalibrationTest", "Candidate", "ColumnRule", "ConfigOrPath", "CrossValidationConfig", "CustomCheck",
    "CustomMetric", "DataConfig", "DirectionalTest", "DriftConfig", "Duration", "EvaluationConfig", "Expectation",
    "ExpectedPrediction", "FairnessTest", "Frozen", "GateConfig", "HistoryConfig", "InvarianceTest", "Kind",
    "KnownCases", "LoggingPolicy", "LookupConfig", "MetricName", "OptionalDuration", "PackageConfig",
    "PipelineConfig", "PrivacyConfig", "QualityConfig", "RetrainConfig", "RobustnessCase", "RobustnessTest",
    "RolloutConfig", "ScheduleConfig", "ScoringConfig", "SearchConfig", "Settings", "Severity", "SloConfig",
    "SplitConfig", "SqlSource", "Task", "TrainingConfig", "ValidationConfig", "bare_name", "build_config",
    "finite_or_none", "format_duration", "locating_errors", "read_config", "suggest",
]  # fmt: skip
